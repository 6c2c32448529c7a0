"""Bringing files to the node: one transfer per file, however many requests in how many processes.

A `Staging` goes through phases: it queues while too many transfers run; seeks the file's lock,
or waits while another process holds it; seeks room in the budget; has the engine move the bytes;
publishes. Steps run on threads that may touch the disk; at any time at most one step of a staging
runs, and only steps give up what a staging holds, so an end from outside (a cancelled request, a
deadline) marks it and leaves the rest to the step that runs or comes.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any

from ..errors import LocalStorageFull, TransferError, from_oserror
from ..futures import error_of, unless_forked
from ..model import Stat
from .daemons import Daemons
from .lease import Lease, Pins
from .locks import Pin, TransferLock
from .nodecache import NoRoom
from .source import check_delivered
from .staging import Request, Staging

if TYPE_CHECKING:
    from .stager import Stager

WAITING_THREADS = 32
# Each holds two descriptors and an order at the engine.
TRANSFERS_AT_ONCE = 128
# So many more if somebody waits for them: the others may all be in the background.
URGENT_MORE = 32
ROOM_TIMES = 3  # that old files go for one, which is several on its way
LOOK_S = 1.0
_CLOSE_S = 2.0


class Bringing:
    """All stagings of one `Stager`. Thread-safe."""

    def __init__(
        self,
        stager: Stager,
        pins: Pins,
        steps: Daemons,
        lend: Callable[..., None],
        deny: Callable[[Request, BaseException], None],
    ) -> None:
        self._stager = stager
        self._pins = pins
        self._steps = steps
        self._lend = lend
        self._deny = deny
        self._waiters = Daemons("pyremotedata-await", WAITING_THREADS)
        self._mutex = threading.RLock()
        self._stagings: dict[str, Staging] = {}
        # Ordered sets: foreground, background.
        self._queues: tuple[_Queue, _Queue] = (OrderedDict(), OrderedDict())
        self._moving: set[Staging] = set()
        self._keeper: threading.Thread | None = None
        self._wake = threading.Event()
        self._closed = False

    def join(self, key: str, stat: Stat, request: Request) -> None:
        """Let a request wait for an entry; begin to bring it if nobody here does."""
        promoted = None
        with self._mutex:
            if self._closed:
                raise TransferError("the stager was closed", str(request.url))
            staging = self._stagings.get(key)
            if staging is None:
                staging = self._stagings[key] = Staging(key, stat, request)
                self._queues[request.background][staging] = None
            elif staging.background and not request.background:
                staging.background = False
                promoted = staging.transfer
                if self._queues[True].pop(staging, self) is None:
                    self._queues[False][staging] = None
            staging.requests.append(request)
            self._keep()
        # Without a reference to the request: a dropped lease is to go at once.
        request.future.add_done_callback(lambda future: self._left(future, staging))
        if promoted is not None:
            (staging.source or self._stager.engine).promote(promoted)
        self._start_next()

    def wake(self) -> None:
        """Look for room again: something was given back."""
        self._wake.set()

    def close(self) -> None:
        """End all stagings with an error."""
        with self._mutex:
            self._closed = True
            stagings = list(self._stagings.values())
            # Those that wait for another process hold nothing, and may wait for long.
            holding = [staging for staging in stagings if staging.phase != "lock"]
        for staging in stagings:
            self._fail(staging, TransferError("the stager was closed", str(staging.url)))
        deadline = monotonic() + _CLOSE_S
        for staging in holding:
            staging.over.wait(max(0.0, deadline - monotonic()))

    # --- the steps --------------------------------------------------------------------------

    def _step(self, staging: Staging, step: Callable[..., None], *more: Any) -> None:
        """Run one step; whatever it raises ends the staging."""
        try:
            step(staging, *more)
        except TransferError as error:
            self._fail(staging, error)
        except OSError as error:
            if self._helps_itself(staging, error):
                self._begin_again(staging)
            else:
                self._fail(staging, from_oserror(error))
        except Exception as error:
            self._fail(staging, error)
        finally:
            if staging.phase == "ended" and staging.transfer is None:
                self._give_up(staging)

    def _start_next(self) -> None:
        """Go on with what the bound on transfers allows, foreground first."""
        while True:
            with self._mutex:
                queue = self._queues[0] or self._queues[1]
                limit = TRANSFERS_AT_ONCE + (URGENT_MORE if self._queues[0] else 0)
                if not queue or len(self._moving) >= limit:
                    return
                staging, _ = queue.popitem(last=False)
                self._moving.add(staging)
                staging.enter("room")
                staging.parked = False
            self._step(staging, self._bring if staging.lock else self._seek_lock)

    def _seek_lock(self, staging: Staging) -> None:
        pin = self._stager.cache.find(staging.key, staging.url.name, staging.stat)
        if pin is not None:
            self._finish(staging, pin, from_cache=True)
            return
        lock = self._stager.cache.try_lock(staging.key)
        with self._mutex:
            if lock is not None:
                staging.lock = lock
            elif staging.phase != "ended":
                self._moving.discard(staging)
                staging.enter("lock")
                staging.waits += 1
                self._waiters.submit(self._step, staging, self._wait_for_lock, staging.waits)
        if lock is not None:
            self._bring(staging)

    def _wait_for_lock(self, staging: Staging, wait: int) -> None:
        if staging.phase == "lock" and staging.waits == wait:
            lock = self._stager.cache.wait_lock(staging.key)
            self._steps.submit(self._step, staging, self._waited_for_lock, wait, lock)

    def _waited_for_lock(self, staging: Staging, wait: int, lock: TransferLock | None) -> None:
        with self._mutex:
            if staging.phase != "lock" or staging.waits != wait:
                if lock is not None:
                    lock.release()
                return
            staging.lock = lock
            self._requeue(staging)
        self._start_next()

    def _requeue(self, staging: Staging) -> None:
        staging.enter("queue")
        staging.parked = True
        self._queues[staging.background][staging] = None

    def _bring(self, staging: Staging) -> None:
        cache, key, name = self._stager.cache, staging.key, staging.url.name
        pin = cache.find(key, name, staging.stat)
        if pin is None:
            try:
                staging.pin = cache.reserve(key, name, str(staging.url), staging.stat)
            except NoRoom:
                if staging.background or self._overdue(staging):
                    raise
                with self._mutex:
                    staging.parked = True  # `_look_at` tries again
                    ended = staging.phase == "ended"
                if ended:
                    self._give_up(staging)
                else:
                    self._stager.ask_for_room()
                return
            # An evictor that looked at it may have hidden it before.
            pin = cache.find(key, name, staging.stat)
            if pin is not None:
                staging.pin.release()
                staging.pin = None
        if pin is not None:
            self._finish(staging, pin, from_cache=True)
        elif staging.phase != "ended":
            assert staging.pin is not None
            staging.incoming = cache.incoming(key, is_first=staging.pin.is_first)
            self._transfer(staging)

    def _transfer(self, staging: Staging) -> None:
        assert staging.incoming is not None
        staging.source = self._stager.source
        mover = staging.source or self._stager.engine
        background = staging.background
        transfer = mover.fetch(
            staging.url,
            staging.incoming / staging.url.name,
            expect=staging.stat,
            background=background,
        )
        with self._mutex:
            staging.transfer = transfer
            ended = staging.phase == "ended"
            promoted = background and not staging.background
            if not ended:
                staging.enter("transfer")
        if promoted:  # meanwhile
            mover.promote(transfer)

        def settle(done: Future[Stat]) -> None:
            self._steps.submit(self._step, staging, self._transferred, done)

        transfer.add_done_callback(unless_forked(settle))
        if ended:
            transfer.cancel()

    def _transferred(self, staging: Staging, done: Future[Stat]) -> None:
        try:
            tries_again = self._settle(staging, done)
        finally:
            if staging.source is not None:
                staging.source.ended(staging.url, staging.stat, is_here=staging.is_here)
        if tries_again:
            self._transfer(staging)

    def _settle(self, staging: Staging, done: Future[Stat]) -> bool:
        """Publish what has come, or end; return whether to try again."""
        with self._mutex:
            staging.transfer = None
            if staging.phase == "ended":
                return False
        error = error_of(done)
        cache = self._stager.cache
        if error is not None and self._make_room(staging, error):
            return True
        if error is not None:
            self._fail(staging, error)
            return False
        assert staging.incoming is not None
        assert staging.pin is not None
        if staging.source is not None:
            check_delivered(staging.incoming / staging.url.name, staging.stat, str(staging.url))
        cache.publish(staging.key, staging.incoming, staging.url.name)
        staging.is_here = True
        pin, staging.pin = staging.pin, None
        self._finish(staging, pin, from_cache=False)
        return False

    def _helps_itself(self, staging: Staging, error: OSError) -> bool:
        """Whether it is worth another try after an error of the local disk."""
        with suppress(OSError):
            if isinstance(error, FileNotFoundError) and not staging.mended:
                staging.mended = True
                self._stager.cache.make_directories()
                return True
        return self._make_room(staging, from_oserror(error))

    def _make_room(self, staging: Staging, error: BaseException) -> bool:
        """Have old files go where the disk, or a quota, has no space or no file left."""
        if not isinstance(error, LocalStorageFull) or staging.made_room >= ROOM_TIMES:
            return False
        wishes = [1] if staging.made_room else [max(1, staging.stat.size), 1]
        staging.made_room += 1
        with suppress(OSError):
            # One old file is enough where it is not the bytes that are lacking.
            return any(map(self._stager.cache.make_room, wishes))
        return False

    def _begin_again(self, staging: Staging) -> None:
        pin, staging.pin = staging.pin, None
        if pin is not None:
            with suppress(OSError):
                self._stager.cache.withdraw(staging.key, pin, staging.incoming)
        with self._mutex:
            if staging.phase != "ended":
                self._moving.discard(staging)
                self._requeue(staging)
        self._steps.submit(self._start_next)

    # --- the end ----------------------------------------------------------------------------

    def _finish(self, staging: Staging, pin: Pin, *, from_cache: bool) -> None:
        requests = self._end(staging)
        self._give_up(staging)
        if not requests:
            pin.release()
        for _ in requests:  # count all before the first can give back
            pin = self._pins.add(staging.key, pin)
        for request in requests:
            self._lend(request, staging.key, staging.stat, pin, from_cache=from_cache)
            from_cache = True

    def _fail(self, staging: Staging, error: BaseException) -> None:
        if isinstance(error, TransferError) and not error.url:  # of the cache, which knows no URL
            error.url = str(staging.url)
        for request in self._end(staging):
            self._deny(request, error)

    def _left(self, future: Future[Lease], staging: Staging) -> None:
        """End a staging that nobody wants any more."""
        if not future.cancelled():
            return
        with self._mutex:
            staging.requests = [one for one in staging.requests if one.future is not future]
            if staging.requests:
                return
        self._end(staging)

    def _end(self, staging: Staging) -> list[Request]:
        """Close a staging; return the requests that it has, once."""
        with self._mutex:
            staging.enter("ended")
            if self._stagings.get(staging.key) is staging:
                del self._stagings[staging.key]
            for queue in self._queues:
                queue.pop(staging, None)
            self._moving.discard(staging)
            requests, staging.requests = staging.requests, []
            parked, staging.parked = staging.parked, False
            transfer = staging.transfer
        if transfer is not None:
            transfer.cancel()  # then `_transferred` comes
        elif parked:
            self._steps.submit(self._step, staging, self._give_up)
        self._steps.submit(self._start_next)
        return requests

    def _give_up(self, staging: Staging) -> None:
        """Release what a staging still holds: its reservation, its lock."""
        with self._mutex:
            pin, staging.pin = staging.pin, None
            lock, staging.lock = staging.lock, None
        with suppress(OSError):  # who asked has been answered; the next sweep counts anew
            if pin is not None:
                self._stager.cache.withdraw(staging.key, pin, staging.incoming)
        if lock is not None:
            lock.release()
        staging.over.set()

    # --- deadlines, signs of life, room -----------------------------------------------------

    def _keep(self) -> None:
        if self._keeper is None:
            self._keeper = threading.Thread(
                target=self._look_after, name="pyremotedata-stager", daemon=True
            )
            self._keeper.start()

    def _look_after(self) -> None:
        while True:
            self._wake.wait(min(LOOK_S, self._stager.settings.timeout_s / 4))
            self._wake.clear()
            with self._mutex:
                stagings = list(self._stagings.values())
                if not stagings:
                    self._keeper = None
                    return
            for staging in stagings:
                try:
                    self._look_at(staging)
                except TransferError as error:
                    self._fail(staging, error)
                except OSError as error:
                    self._fail(staging, from_oserror(error))

    def _look_at(self, staging: Staging) -> None:
        with self._mutex:
            if staging.lock is not None:
                staging.lock.beat()
            retry = staging.phase == "room" and staging.parked
            if retry:
                staging.parked = False
        if retry:
            self._steps.submit(self._step, staging, self._bring)
        elif staging.phase == "room" and self._overdue(staging, 2):
            # A step hangs in a lock that is held for milliseconds only.
            self._fail(staging, self._stager.cache.no_life("a process", str(staging.url)))
        elif staging.phase == "lock":
            sign = self._stager.cache.last_sign_of(staging.key)
            if not sign:  # all waiting threads are taken, or this one's has not come to run yet
                with self._mutex:
                    if staging.phase == "lock":
                        self._requeue(staging)
                self._steps.submit(self._start_next)
            elif sign != staging.sign:
                staging.sign, staging.since = sign, monotonic()
            elif self._overdue(staging):
                who = self._stager.cache.holder_of(staging.key)
                self._fail(staging, self._stager.cache.no_life(who, str(staging.url)))

    def _overdue(self, staging: Staging, factor: float = 1) -> bool:
        return monotonic() - staging.since > factor * self._stager.settings.timeout_s


_Queue = OrderedDict[Staging, None]
