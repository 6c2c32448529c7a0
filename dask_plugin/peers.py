"""PeerSource: a worker's files come from the archive or from another node, as the broker says.

It is the `Source` of the worker's Stager. An `Order` is one file on its way. What concerns orders
runs on the worker's event loop, which never blocks: the engine has threads of its own. Whenever
the broker is silent, or a pull fails, the archive serves.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Hashable
from concurrent.futures import Future
from functools import partial
from time import monotonic
from typing import Any

from pyremotedata_core import RemoteURL, Stat, TransferError
from pyremotedata_core.jobs import SEGMENT_BYTES
from pyremotedata_core.stager import Stager
from pyremotedata_core.stager.daemons import Daemons

from .broker import ASK, TELL
from .chunks import Chunks, File, PullFailed, heed
from .order import Order

_log = logging.getLogger(__name__)

ANSWER_S = 10.0
RENEW_S = 30.0
LOOK_S = 2.0
_REMEMBERED = 4096


class PeerSource:
    """Brings files for one worker's Stager; a `Source`.

    Parameters
    ----------
    worker : distributed.Worker
    stager : Stager
        Files of which it is the source once the worker has joined.
    """

    def __init__(self, worker: Any, stager: Stager) -> None:
        self._worker = worker
        self._stager = stager
        self._nodes = 0
        self._is_closed = False
        self._loop = worker.loop.asyncio_loop
        self._orders: dict[Hashable, Order] = {}  # by file; on the loop only
        self._threads = Daemons("pyremotedata-order", 2)
        self._chunks = Chunks(worker, stager)
        self._look: Any = None
        self._tasks: set[asyncio.Task[None]] = set()  # the loop itself holds them weakly
        self._origins: OrderedDict[str, str] = OrderedDict()
        self._mutex = threading.Lock()
        worker.stream_handlers[TELL] = self._told

    def joined(self, nodes: int) -> None:
        """Begin, in a cluster of so many nodes; with one the archive serves, without a question."""
        self._nodes = self._nodes or nodes  # it may have been told of more meanwhile
        if not self._is_closed:
            self._stager.source = self

    def close(self) -> None:
        """Take no more orders; those that are on their way end. On the event loop."""
        if self._stager.source is self:
            self._stager.source = None
        self._chunks.close()
        # Words may be on their way, and one that nobody hears would end the worker's stream.
        self._worker.stream_handlers[TELL] = _ignore
        self._nodes, self._is_closed = 1, True
        for order in list(self._orders.values()):
            if not order.is_moving:
                self._read_archive(order)

    # --- for the Stager, on any thread --------------------------------------------------------

    def fetch(
        self, url: RemoteURL, path: str | os.PathLike[str], *, expect: Stat, background: bool
    ) -> Future[Stat]:
        """Begin to bring a file; see `Source`."""
        order = Order(self, url, os.fspath(path), expect, background)
        if self._nodes <= 1 or not self._call(self._ask, order):
            return self._stager.engine.fetch(url, path, expect=expect, background=background)
        return order

    def promote(self, future: Future[Stat]) -> None:
        """Bring a file before those in the background: a task waits for it; see `Source`."""
        if isinstance(future, Order):
            future.background = False
            self._call(self._promote, future)
        else:
            self._stager.engine.promote(future)

    def ended(self, url: RemoteURL, stat: Stat, *, is_here: bool) -> None:
        """Tell the broker that the node has a file, or does not bring it any more."""
        self._call(self._ended, (str(url), stat.size, stat.mtime), is_here)

    def origin_of(self, url: str) -> str:
        """Return where a file came from that this worker brought: "archive" or "peer"."""
        with self._mutex:
            return self._origins.get(url, "archive")

    def stop(self, order: Order) -> None:
        """Stop an order; on any thread."""
        if not self._call(self._stop, order):
            order.finish(None, TransferError("the worker has ended", str(order.url)))

    def _call(self, call: Any, *args: Any) -> bool:
        """Have something done on the event loop; False if it has ended."""
        try:
            self._loop.call_soon_threadsafe(call, *args)
        except RuntimeError:
            return False
        return True

    # --- orders, on the event loop ------------------------------------------------------------

    def _ask(self, order: Order, lost: str | None = None) -> None:
        if order.is_over:
            return
        self._orders[order.file] = order
        order.asked, order.answered = monotonic(), False
        order.is_moving, order.pulling = False, None
        want = {"what": "want", "file": order.file, "background": order.background, "lost": lost}
        if self._is_closed or not self._send(want):
            self._read_archive(order)
        elif self._look is None:
            self._look = self._loop.call_later(LOOK_S, self._look_after)

    def _send(self, message: dict[str, Any]) -> bool:
        stream = self._worker.batched_stream
        if not (stream and stream.comm and not stream.comm.closed()):
            return False
        self._worker.batched_send({"op": ASK, **message})
        return True

    def _told(self, what: str, file: Any = None, source: str | None = None, nodes: int = 0) -> None:
        """Hear the broker; an exception here would end the worker's stream."""
        try:
            if what == "nodes":
                self._nodes = nodes
                return
            if what == "connect":
                self._threads.submit(self._connect, str(file))
                return
            order = self._orders.get(tuple(file))
            if order is None:
                return
            order.answered = True
            if order.is_moving or order.is_over:
                return
            if what == "fetch":
                self._read_archive(order)
            elif what == "pull":
                order.asked, order.is_moving = 0.0, True
                order.pulling = self._loop.create_task(self._pull(order, source))
        except Exception:
            _log.exception("cannot do what the broker says: %s %s", what, file)

    def _look_after(self) -> None:
        """Ask again, or do without the broker, where it is silent for too long."""
        self._look = None
        now = monotonic()
        waiting = [order for order in self._orders.values() if order.asked and not order.is_over]
        for order in waiting:
            if not order.answered and now - order.asked > ANSWER_S:
                _log.warning("the broker is silent: %s comes from the archive", order.url)
                self._read_archive(order)
            elif order.answered and now - order.asked > RENEW_S:
                self._ask(order)
        if waiting and self._look is None:
            self._look = self._loop.call_later(LOOK_S, self._look_after)

    def _read_archive(self, order: Order) -> None:
        order.asked, order.is_moving = 0.0, True
        if order.stat.size > SEGMENT_BYTES:
            share = partial(self._send, {"what": "shares", "file": order.file})
            self._chunks.begin(order.file, order.path, share)
        self._threads.submit(self._begin_fetch, order)

    def _promote(self, order: Order) -> None:
        if order.fetching is not None:
            self._stager.engine.promote(order.fetching)
        elif order.asked and not order.is_over:
            self._ask(order)

    def _stop(self, order: Order) -> None:
        order.is_over = True
        if order.pulling is not None:
            order.pulling.cancel()
        elif order.fetching is not None:
            order.fetching.cancel()
        elif order.asked:
            self._finish(order, None, _stopped(order))
        # else `_begin_fetch` is about to look

    def _ended(self, file: File, is_here: bool) -> None:
        self._chunks.ended(file)
        self._send({"what": "ended", "file": file, "is_here": is_here})

    def _finish(self, order: Order, stat: Stat | None, error: BaseException | None) -> None:
        if self._orders.get(order.file) is order:
            del self._orders[order.file]
        order.is_over = True
        order.finish(stat, error)

    # --- from the archive ---------------------------------------------------------------------

    def _begin_fetch(self, order: Order) -> None:
        """Have the engine bring it: a call that may block, on a thread for such."""
        try:
            if order.is_over:
                raise _stopped(order)
            self._note_origin(order, "archive")
            background = order.background
            is_large = order.stat.size > SEGMENT_BYTES
            order.fetching = self._stager.engine.fetch(
                order.url,
                order.path,
                expect=order.stat,
                background=background,
                on_progress=partial(self._progress, order) if is_large else None,
            )
            if background and not order.background:  # promoted meanwhile
                self._stager.engine.promote(order.fetching)
        except Exception as error:
            self._end(order, None, error)
            return
        order.fetching.add_done_callback(lambda done: self._fetched(order, done))
        if order.is_over:  # stopped meanwhile
            order.fetching.cancel()

    def _progress(self, order: Order, count: int, _: int) -> None:
        self._call(self._spawn, self._chunks.progress, order.file, count)

    def _spawn(self, function: Any, *args: Any) -> None:
        task = self._loop.create_task(function(*args))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _fetched(self, order: Order, done: Future[Stat]) -> None:
        if done.cancelled():
            self._end(order, None, _stopped(order))
        else:
            error = done.exception()
            self._end(order, None if error else done.result(), error)

    def _end(self, order: Order, stat: Stat | None, error: BaseException | None) -> None:
        if not self._call(self._finish, order, stat, error):
            order.finish(stat, error)

    def _connect(self, url: str) -> None:
        """Have the engine log in before the first file is wanted."""
        try:
            self._stager.stat(url).add_done_callback(heed)
        except Exception as error:  # the first file will say it
            _log.debug("cannot connect early to %s: %s", url, error)

    # --- from another worker ------------------------------------------------------------------

    async def _pull(self, order: Order, source: str | None) -> None:
        failure: BaseException | None = None
        try:
            await self._chunks.pull(order.file, order.path, str(source))
        except asyncio.CancelledError:
            failure = _stopped(order)
        except Exception as error:
            failure = error
            _log.info("%s cannot be pulled from %s: %s", order.url, source, error)
        if failure is None:
            self._note_origin(order, "peer")
            self._finish(order, order.stat, None)
        elif order.is_over:
            self._finish(order, None, failure)
        elif isinstance(failure, TransferError) and not isinstance(failure, PullFailed):
            self._finish(order, None, failure)  # our own disk: no other source would help
        else:
            self._ask(order, lost=source)

    def _note_origin(self, order: Order, origin: str) -> None:
        with self._mutex:
            self._origins[str(order.url)] = origin
            if len(self._origins) > _REMEMBERED:
                self._origins.popitem(last=False)


def _ignore(**_: Any) -> None:
    pass


def _stopped(order: Order) -> TransferError:
    return TransferError("is not wanted any more", str(order.url))
