"""The lftp session in a thread of its own, with the face that the pool expects.

All bookkeeping and all callbacks happen on the loop's thread; the session's thread only runs the
blocking calls and posts what came of them.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from ..errors import ConnectionLost, TransferError
from ..model import Entry
from .base import Operation
from .lftp import LftpSession

PROGRESS_S = 0.1  # progress is told at most this often
BATCHES_AHEAD = 4  # of entries, handed over and not yet taken
TAKE_S = 60.0
ROUND_TRIPS = 6  # of a small file: opened, read, closed, and opened again

_TRANSFERS = ("read", "write")


class ThreadedSession:
    """Runs a blocking session in a daemon thread, one operation at a time.

    All methods belong to the loop's thread.

    Parameters
    ----------
    blocking : LftpSession
        Not connected yet; the thread connects it.
    loop_call : callable
        Calls a function on the loop's thread, later; safe from any thread.
    on_open : callable
        Called once when the session is connected.
    on_lost : callable
        Called once with the error when the session ends other than by `close`. The operation
        under way has by then failed.

    Attributes
    ----------
    max_operations : int
        Operations that it serves at once: one.
    opened, alive : bool
    load : int
        Operations under way.
    load_bytes : int
        Bytes that they are to move.
    """

    max_operations = 1
    can_share = False  # every process has a connection of its own
    took_code = False

    def __init__(
        self,
        blocking: LftpSession,
        loop_call: Callable[[Callable[[], Any]], Any],
        on_open: Callable[[], None],
        on_lost: Callable[[TransferError], None],
    ) -> None:
        self.opened = False
        self.alive = True
        self.load = 0
        self.load_bytes = 0
        self._blocking = blocking
        self._loop_call = loop_call
        self._on_open = on_open
        self._on_lost = on_lost
        self._operation: Operation | None = None
        # One operation and the word to end: `submit` is only called when there is room.
        self._work: queue.Queue[Operation | None] = queue.Queue(maxsize=2)
        threading.Thread(target=self._serve, name="pyremotedata-session", daemon=True).start()

    @property
    def last_heard(self) -> float:
        """Monotonic time of the last sign of life."""
        return self._blocking.last_heard

    @property
    def rtt_s(self) -> float:
        """Half of what a file waits for answers, in seconds; 0 when it is not known.

        The pool reckons with two round trips for a file, which is what pipelined SFTP needs.
        Here they follow one another and are more, so further sessions help sooner.
        """
        return self._blocking.rtt_s * ROUND_TRIPS / 2

    def has_room(self, _operation: Operation) -> bool:
        """Whether it would serve an operation now."""
        return self.opened and self.alive and self._operation is None

    def submit(self, operation: Operation) -> None:
        """Begin an operation; its ``done`` is called exactly once, never from within this call."""
        assert self._operation is None, "one operation at a time"
        self._operation = operation
        self.load = 1
        self.load_bytes = operation.load_bytes
        if self.alive:
            self._work.put_nowait(operation)
        else:
            error = ConnectionLost("the connection was closed")
            self._loop_call(partial(self._ended, operation, None, error))

    def close(self) -> None:
        """End the session; an operation under way fails with `ConnectionLost`."""
        if self.alive:
            self.alive = False
            self._blocking.kill()
            self._work.put_nowait(None)
            if self._operation is not None:
                # At once: when the engine ends, the loop takes nothing from other threads any more.
                error = ConnectionLost("the connection was closed")
                self._ended(self._operation, None, error)

    # --- on the session's thread -------------------------------------------------------------

    def _serve(self) -> None:
        blocking = self._blocking
        try:
            blocking.connect()
        except Exception as error:
            self._loop_call(partial(self._lost, _as_ours(error)))
            return
        self._loop_call(self._connected)
        while (operation := self._work.get()) is not None:
            failure = self._perform(operation)
            if failure is not None and not blocking.alive:
                self._loop_call(partial(self._lost, failure))
                return

    def _perform(self, operation: Operation) -> TransferError | None:
        result, failure = None, None
        self._blocking.stop_when(lambda: operation.cancelled)
        progress = _Progress(operation, self._loop_call)
        try:
            method = getattr(self._blocking, operation.name)
            if operation.name == "scandir":
                path, take = operation.args
                self._pour(method(path), take)
            elif operation.name in _TRANSFERS:
                result = method(*operation.args, on_bytes=progress.add)
            else:
                result = method(*operation.args)
        except Exception as error:
            failure = _as_ours(error)
        progress.flush()
        self._loop_call(partial(self._ended, operation, result, failure))
        return failure

    def _pour(self, batches: Iterator[list[Entry]], take: Callable[[list[Entry]], None]) -> None:
        """Hand entries over on the loop's thread, and wait when it has not taken the last ones."""
        room = threading.Semaphore(BATCHES_AHEAD)
        refused: list[TransferError] = []

        def hand_over(batch: list[Entry]) -> None:
            try:
                if not refused:
                    take(batch)
            except TransferError as error:
                refused.append(error)
            finally:
                room.release()

        for batch in batches:
            if not room.acquire(timeout=TAKE_S):
                raise ConnectionLost("the engine was closed", retryable=False)
            if refused:
                break
            self._loop_call(partial(hand_over, batch))
        for _ in range(BATCHES_AHEAD):
            if not room.acquire(timeout=TAKE_S):
                raise ConnectionLost("the engine was closed", retryable=False)
        if refused:
            raise refused[0]

    # --- on the loop's thread ----------------------------------------------------------------

    def _connected(self) -> None:
        if self.alive:
            self.opened = True
            self._on_open()

    def _ended(self, operation: Operation, result: Any, error: TransferError | None) -> None:
        if self._operation is not operation:
            return  # `close` has ended it
        self._operation = None
        self.load = self.load_bytes = 0
        operation.done(result, error)

    def _lost(self, error: TransferError) -> None:
        if self.alive:
            self.close()  # with what was handed over since the thread has ended
            self._on_lost(error)


class _Progress:
    """Gathers bytes on the session's thread, and tells of them on the loop's."""

    def __init__(self, operation: Operation, loop_call: Callable[[Callable[[], Any]], Any]) -> None:
        self._operation = operation
        self._loop_call = loop_call
        self._count = 0
        self._told = time.monotonic()

    def add(self, count: int) -> None:
        """So many bytes more have moved."""
        self._count += count
        if time.monotonic() - self._told >= PROGRESS_S:
            self.flush()

    def flush(self) -> None:
        """Tell of what was gathered."""
        if self._count:
            self._loop_call(partial(self._operation.count, self._count))
        self._count = 0
        self._told = time.monotonic()


def _as_ours(error: Exception) -> TransferError:
    if isinstance(error, TransferError):
        return error
    return TransferError(f"unexpected failure: {error!r}")
