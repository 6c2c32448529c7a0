"""WorkerStaging: the files of one worker's tasks, fetched ahead, handed out, given back.

A task's `Wish` for a file begins when the task arrives at the worker. One thread takes the wishes
by task priority and has the stager fetch them in the background, within bounds of files and
bytes. When the task opens the file, its own thread asks the stager anew, in the foreground: it
gets what is there, joins a transfer on its way, or starts one; so a failed prefetch is nothing
but lost time. What a task has opened stays until the task ends; what was fetched for it, too,
unless another file wants the room.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import math
import threading
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import Future
from time import monotonic, time
from typing import Any

from pyremotedata_core import Lease, LocalStorageFull, RemoteChanged, Stager, Stat

from .current import changed, check, release_result
from .remotefile import RemoteFile
from .wishes import Counts, Opened, Wish

_log = logging.getLogger(__name__)

QUESTIONS_AT_ONCE = 16
# Handles whose task is not known, found while unpickling: so many are fetched ahead at a time.
LOOSE_FILES = 16
_ARRIVALS = 256
# At the most this part of the cache's budget is for files that no task has opened yet.
_AHEAD_SHARE = 4


class WorkerStaging:
    """The files of one worker's tasks.

    Parameters
    ----------
    make_stager : callable
        Called on first use.
    ahead_files, ahead_bytes : int
        What may be fetched, and kept, for tasks that have not opened it yet.
    tell : callable
        Called with each file that a task has opened, on the task's thread.

    Notes
    -----
    Thread-safe. `want`, `end`, `arrived` and `settle` never block: they are for the event loop.
    """

    def __init__(
        self,
        make_stager: Callable[[], Stager],
        ahead_files: int,
        ahead_bytes: int,
        tell: Callable[[Opened], None],
    ) -> None:
        self._make_stager = make_stager
        self._tell = tell
        self.origin_of: Callable[[str], str] = lambda _: "archive"  # what this worker has moved
        self._stager: Stager | None = None
        self._ahead_files = ahead_files
        self._ahead_bytes = ahead_bytes
        self._changed = threading.Condition()
        self._tasks: dict[Hashable, dict[RemoteFile, Wish]] = {}
        self._queue: list[tuple[tuple[float, ...], int, Wish]] = []
        self._number = itertools.count()
        self._asking = 0
        self._held: dict[Wish, int] = {}  # wishes fetched ahead and not opened yet: their bytes
        self._arrivals: dict[RemoteFile, None] = {}
        self._loose: dict[RemoteFile, None] = {}
        self._paused = False
        self._closed = self._lets_go = False
        self._thread: threading.Thread | None = None
        self._counts: dict[str, Any] = Counts()._asdict()

    # --- on the event loop ------------------------------------------------------------------

    def want(
        self, key: Hashable, priority: Sequence[float] | None, handles: Iterable[RemoteFile]
    ) -> None:
        """Fetch files ahead for a task that has come."""
        with self._changed:
            if self._closed or not (self._ahead_files and self._ahead_bytes):
                return
            wishes = self._tasks.setdefault(key, {})
            for handle in handles:
                self._arrivals.pop(handle, None)
                if handle not in wishes:
                    wish = wishes[handle] = Wish(handle)
                    entry = (tuple(priority or ()), next(self._number), wish)
                    heapq.heappush(self._queue, entry)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._fetch_ahead, name="pyremotedata-ahead", daemon=True
                )
                self._thread.start()
            self._changed.notify()

    def end(self, key: Hashable, *, at_once: bool = False) -> None:
        """Give back the files of a task that has ended, or has left.

        With ``at_once`` a thread that waits for one does so no longer.
        """
        with self._changed:
            wishes = self._tasks.pop(key, {})
            for wish in wishes.values():
                wish.over = True
                self._let_go(wish)
                lease, wish.lease = wish.lease, None
                if lease is not None:
                    lease.release()
                if wish.demand is not None and not (at_once and wish.demand.cancel()):
                    wish.demand.add_done_callback(release_result)
            if wishes:
                self._paused = False
                self._changed.notify()

    def arrived(self, handle: RemoteFile) -> None:
        """Note a handle that came out of a pickle; on any thread."""
        if len(self._arrivals) < _ARRIVALS:
            self._arrivals[handle] = None

    def settle(self) -> None:
        """Fetch ahead what has arrived and belongs to no task that is known.

        Nobody may ever open it, so that it is given back when it has come.
        """
        with self._changed:
            known = {handle for wishes in self._tasks.values() for handle in wishes}
            fresh = [handle for handle in list(self._arrivals) if handle not in known]
            self._arrivals.clear()
            for handle in fresh[:LOOSE_FILES]:
                self._loose[handle] = None
                self.want(("loose", handle), (math.inf,), [handle])
            while len(self._loose) > LOOSE_FILES:
                self._end_loose(next(iter(self._loose)))

    def has_files(self, key: Hashable) -> bool:
        """Whether a task has opened files, or had them fetched."""
        with self._changed:
            return bool(self._tasks.get(key))

    @property
    def has_arrivals(self) -> bool:
        """Whether there is something to settle."""
        return bool(self._arrivals)

    # --- on a task's thread -----------------------------------------------------------------

    def claim(self, key: Hashable, handles: Sequence[RemoteFile]) -> list[Lease]:
        """Return the leases on files that a task opens; wait for them.

        Other files that are known to be the task's come with them, within the bounds of what is
        fetched ahead: a task may know of a thousand, and open one.

        Raises
        ------
        TransferError
        """
        _ = self.stager  # its budget is one of the bounds
        with self._changed:
            wishes = self._tasks.setdefault(key, {})
            for handle in handles:
                self._arrivals.pop(handle, None)
                wishes.setdefault(handle, Wish(handle))
            claimed = [wishes[handle] for handle in handles]
            for wish in claimed:
                wish.awaited = True
                if wish.demand is not None and wish.demand.done() and wish.demand.exception():
                    wish.demand = None  # it failed when nobody waited for it; now it may be there
            others = self._others(wishes.values())
            starting = [
                wish
                for wish in dict.fromkeys([*claimed, *others])
                if wish.demand is None and wish.lease is None
            ]
        try:
            for wish in starting:
                self._demand(wish)
            return [wish.lease or self._wait(key, wish) for wish in claimed]
        finally:
            for wish in claimed:
                wish.awaited = False

    def handle_on(self, key: Hashable, url: str, stat: Stat) -> RemoteFile:
        """Return a handle by which a task opens a file that is this now.

        It is the one of the prefetch, unless the task has opened by that what the file was before.
        """
        handle = RemoteFile(url)
        with self._changed:
            wish = self._tasks.get(key, {}).get(handle)
            if wish is None or (wish.lease is None and wish.demand is None):
                return handle
            if wish.lease is not None and wish.lease.stat.same_content(stat):
                return handle
        return RemoteFile(url, stat.size, stat.mtime)

    def _others(self, wishes: Iterable[Wish]) -> list[Wish]:
        """Return what is to come with the files that a task opens, as far as the bounds allow."""
        most_bytes = 0 if self._paused else self._ahead_bytes
        others: list[Wish] = []
        for wish in wishes:
            if wish.lease is not None or wish.awaited:
                continue
            most_bytes -= wish.stat.size if wish.stat is not None else 0
            if most_bytes < 0 or len(others) >= self._ahead_files:
                break
            others.append(wish)
        return others

    def _demand(self, wish: Wish) -> None:
        # Not what the prefetch was told: that may be long ago.
        demand = self.stager.stage(wish.handle.url, expect=wish.handle.expected)
        wish.demand = demand
        demand.add_done_callback(lambda done: self._note_moved(wish, done))
        if self._lets_go:  # `end` may have looked before
            demand.cancel()

    def _wait(self, key: Hashable, wish: Wish) -> Lease:
        assert wish.demand is not None
        began = monotonic()
        try:
            try:
                lease = wish.demand.result()
            except RemoteChanged:
                if wish.handle.expected is None:
                    raise
                raise changed(wish.handle) from None
            check(wish.handle, lease.stat)
        except BaseException:
            wish.demand = None  # an error is not remembered: who opens the file again asks again
            raise
        finally:
            waited_s = monotonic() - began
            self._count(waited_s=waited_s)
        with self._changed:
            wish.lease, wish.demand = lease, None
            if lease.from_cache and not wish.moved:
                self._count(cache_files=1, cache_bytes=lease.stat.size)
            wish.waited_s = waited_s
            self._count_hidden(wish)
            self._let_go(wish)
            self._end_loose(wish.handle)
            self._changed.notify()
        has_moved = wish.moved or not lease.from_cache
        source = self.origin_of(wish.handle.url) if has_moved else "node"
        took_s, stop = (wish.took_s, wish.came) if wish.came else (waited_s, time())
        size = lease.stat.size
        self._tell(Opened(key, wish.handle.url, size, source, stop - took_s, stop, waited_s))
        return lease

    def note_lent(self, done: Future[Lease]) -> None:
        """Count a file that a thread of no task reads: a library's own."""
        if done.cancelled() or done.exception() is not None:
            return
        lease = done.result()
        if lease.from_cache:
            self._count(cache_files=1, cache_bytes=lease.stat.size)
        else:
            self._count_moved(str(lease.url), lease.stat.size)

    def note_stored(self, size: int) -> None:
        """Count an output."""
        self._count(stored_files=1, stored_bytes=size)

    @property
    def stager(self) -> Stager:
        """The stager that this worker's process uses; made when first used."""
        if self._stager is None:
            self._stager = self._make_stager()
            share = self._stager.settings.cache_bytes // _AHEAD_SHARE
            self._ahead_bytes = min(self._ahead_bytes, share)
            self._stager.when_full.add(self._make_room)
        return self._stager

    # --- on the thread that fetches ahead ---------------------------------------------------

    def _fetch_ahead(self) -> None:
        while self._fetch_next():
            pass

    def _fetch_next(self) -> bool:
        """Take the next wish when the bounds allow; return whether others may follow."""
        # A call for each: no wish is kept while it waits, and with the handle what that has open.
        with self._changed:
            while not self._closed and not self._may_go_on():
                self._changed.wait()
            if self._closed:
                return False
            priority, number, wish = heapq.heappop(self._queue)
            if wish.over or wish.demand is not None or wish.lease is not None:
                return True
            stat = wish.stat
            if stat is None:
                self._asking += 1
            else:
                self._held[wish] = stat.size
        try:
            if stat is None:
                self._ask(priority, number, wish)
            else:
                self._fetch(wish, stat)
        except Exception as error:  # wrong settings, a closed engine: the task will say it
            _log.debug("not fetched ahead: %s: %s", wish.handle, error)
            with self._changed:
                if stat is None:
                    self._asking -= 1
                self._held.pop(wish, None)
        return True

    def _may_go_on(self) -> bool:
        """Whether the bounds allow what is next in the queue."""
        if not self._queue or self._paused:
            return False
        wish = self._queue[0][2]
        if wish.over or wish.demand is not None or wish.lease is not None:
            return True
        if wish.stat is None:
            return self._asking < QUESTIONS_AT_ONCE
        if not self._held:
            return True
        held_bytes = sum(self._held.values())
        return (
            len(self._held) < self._ahead_files and held_bytes + wish.stat.size <= self._ahead_bytes
        )

    def _ask(self, priority: tuple[float, ...], number: int, wish: Wish) -> None:
        def answered(answer: Future[Stat]) -> None:
            with self._changed:
                self._asking -= 1
                if answer.exception() is None:
                    wish.stat = answer.result()
                    heapq.heappush(self._queue, (priority, number, wish))
                self._changed.notify()

        self.stager.stat(wish.handle.url).add_done_callback(answered)

    def _fetch(self, wish: Wish, stat: Stat) -> None:
        began = monotonic()
        ahead = self.stager.stage(wish.handle.url, expect=stat, background=True)

        def came(done: Future[Lease]) -> None:
            error = done.exception()
            with self._changed:
                if error is None:
                    wish.took_s, wish.came = monotonic() - began, time()
                    self._count_hidden(wish)
                    self._note_moved(wish, done)
                    self._end_loose(wish.handle)
                else:
                    # Until a task ends there will be no room for the others either.
                    self._paused = self._paused or isinstance(error, LocalStorageFull)
                    _log.debug("not fetched ahead: %s: %s", wish.handle, error)
                if error is not None or wish.ahead is None:
                    self._held.pop(wish, None)
                self._changed.notify()

        with self._changed:
            wish.ahead = ahead
            if wish.over or wish.lease is not None:  # meanwhile
                self._let_go(wish)
        ahead.add_done_callback(came)

    # --- keeping house ----------------------------------------------------------------------

    def _let_go(self, wish: Wish) -> None:
        """Release what was fetched ahead; what is on its way comes nevertheless, for others."""
        ahead, wish.ahead = wish.ahead, None
        if ahead is not None:
            ahead.add_done_callback(release_result)
            if ahead.done():  # else it counts until then
                self._held.pop(wish, None)

    def _end_loose(self, handle: RemoteFile) -> None:
        """Give back a file that was fetched for no task that is known."""
        self._loose.pop(handle, None)
        self.end(("loose", handle))

    def _make_room(self) -> None:
        """Give back what no task has opened: one waits for room in the cache."""
        dropped: list[Future[Lease]] = []
        with self._changed:
            for wish in list(self._held):
                self._let_go(wish)
            self._paused = True
            for wish in itertools.chain(*(wishes.values() for wishes in self._tasks.values())):
                if wish.demand is not None and not wish.awaited:
                    dropped.append(wish.demand)
                    wish.demand = None
        for demand in dropped:  # which calls what has locks of its own
            if not demand.cancel():
                demand.add_done_callback(release_result)

    def _note_moved(self, wish: Wish, done: Future[Lease]) -> None:
        if not done.cancelled() and not done.exception() and not done.result().from_cache:
            wish.moved = True
            self._count_moved(wish.handle.url, done.result().stat.size)

    def _count_moved(self, url: str, size: int) -> None:
        if self.origin_of(url) == "peer":
            self._count(peer_files=1, peer_bytes=size)
        else:
            self._count(files=1, archive_bytes=size)

    def _count_hidden(self, wish: Wish) -> None:
        """Count, once, what a prefetch has saved: its end and the task's may come in any order."""
        if wish.waited_s is not None and wish.took_s:
            self._count(hidden_s=max(0.0, wish.took_s - wish.waited_s))
            wish.waited_s = None

    def _count(self, **more: float) -> None:
        with self._changed:
            for name, number in more.items():
                self._counts[name] += number

    def counts(self) -> Counts:
        """Return what the files of this worker's tasks have cost so far."""
        with self._changed:
            return Counts(**self._counts)

    def close(
        self, keep: Callable[[Any], bool] = lambda _: False, *, at_once: bool = False
    ) -> bool:
        """Stop fetching ahead and give back all but the files of tasks to ``keep``.

        With ``at_once`` threads that wait for files, or begin to, are let go with an error. Returns
        whether everything has been given back; may be called again.
        """
        with self._changed:
            self._closed = True
            self._lets_go = self._lets_go or at_once
            self._changed.notify_all()
            keys = [key for key in self._tasks if not keep(key)]
        for key in keys:
            self.end(key, at_once=at_once)
        if self._stager is not None:
            self._stager.when_full.discard(self._make_room)
        return not self._tasks

    def begin_in_child(self) -> None:
        """Forget, in a forked child, what is on its way: it comes to the parent only."""
        self._changed = threading.Condition()
        for wishes in self._tasks.values():
            for wish in wishes.values():
                wish.ahead = wish.demand = None

    def rest(self) -> None:
        """End the engine's helper process, unless others want something of it. Blocks."""
        if self._stager is not None:
            self._stager.engine.rest()

    def shares_stager(self, other: WorkerStaging) -> bool:
        """Whether another worker's files come by the same stager."""
        return self._stager is not None and self._stager is other._stager
