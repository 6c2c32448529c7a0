"""One I/O thread: a selector, timers, and a way in for other threads.

Everything that owns a socket of the engine lives on the thread that calls `Loop.run`. Callbacks
are plain functions; none of them may block.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import selectors
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol


class Flushable(Protocol):
    """Something with output collected during one turn of the loop."""

    def flush(self) -> None:
        """Write out what was collected."""


class Timer:
    """A callback due at a time; `cancel` makes it a no-op."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], Any]) -> None:
        self.callback: Callable[[], Any] | None = callback

    def cancel(self) -> None:
        """Never call it."""
        self.callback = None


class Loop:
    """A selector loop.

    All methods belong to the loop's thread, except `call_soon_threadsafe`.
    """

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = 0
        self._soon: deque[Callable[[], Any]] = deque()
        self._posted: deque[Callable[[], Any]] = deque()
        self._unflushed: list[Flushable] = []
        self._running = True
        # A pipe whose reading end wakes the selector.
        self._wake_in, self._wake_out = os.pipe()
        self._wake_lock = threading.Lock()  # the pipe's number may be another file's after the end
        os.set_blocking(self._wake_in, False)
        os.set_blocking(self._wake_out, False)
        self.register(self._wake_in, selectors.EVENT_READ, self._woken)
        self.now = time.monotonic()

    def run(self) -> None:
        """Serve until `stop`; then close the selector."""
        try:
            while self._running:
                self._turn()
        finally:
            self._selector.close()
            with self._wake_lock:
                os.close(self._wake_in)
                os.close(self._wake_out)
                self._wake_out = -1

    def stop(self) -> None:
        """Leave `run` at the end of this turn; before it, in its place."""
        self._running = False

    def drain(self) -> None:
        """Call what was asked for with `call_soon`, without waiting for any I/O."""
        for _ in range(1_000_000):
            if not self._soon:
                return
            self._soon.popleft()()

    def register(self, fd: int, events: int, callback: Callable[[int], Any]) -> None:
        """Call ``callback(events)`` whenever the descriptor is ready."""
        self._selector.register(fd, events, callback)

    def modify(self, fd: int, events: int, callback: Callable[[int], Any]) -> None:
        """Change what a registered descriptor waits for."""
        self._selector.modify(fd, events, callback)

    def unregister(self, fd: int) -> None:
        """Forget a descriptor; an unknown one is no error."""
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(fd)

    def call_later(self, delay_s: float, callback: Callable[[], Any]) -> Timer:
        """Call once after a delay in seconds."""
        timer = Timer(callback)
        self._order += 1
        heapq.heappush(self._timers, (time.monotonic() + delay_s, self._order, timer))
        return timer

    def call_soon(self, callback: Callable[[], Any]) -> None:
        """Call once, later in this turn or in the next."""
        self._soon.append(callback)

    def call_soon_threadsafe(self, callback: Callable[[], Any]) -> None:
        """Call once on the loop's thread; safe from any thread."""
        self._posted.append(callback)
        # No error: the pipe is full, so the loop is awake already; or the loop has ended.
        with self._wake_lock, contextlib.suppress(OSError):
            os.write(self._wake_out, b"\0")

    def flush_later(self, writer: Flushable) -> None:
        """Call ``writer.flush()`` at the end of this turn, so that small messages leave together.

        The caller sees to it that a writer asks once a turn.
        """
        self._unflushed.append(writer)

    def _turn(self) -> None:
        timeout = None
        if self._soon or self._posted or self._unflushed:
            timeout = 0.0
        elif self._timers:
            timeout = max(0.0, self._timers[0][0] - time.monotonic())
        ready = self._selector.select(timeout)
        self.now = now = time.monotonic()
        for key, events in ready:
            key.data(events)
        while self._timers and self._timers[0][0] <= now:
            timer = heapq.heappop(self._timers)[2]
            if timer.callback is not None:
                timer.callback()
        for _ in range(len(self._soon)):
            self._soon.popleft()()
        while self._unflushed:
            writers, self._unflushed = self._unflushed, []
            for writer in writers:
                writer.flush()

    def _woken(self, _events: int) -> None:
        try:
            os.read(self._wake_in, 4096)
        except BlockingIOError:
            return
        for _ in range(len(self._posted)):
            self._posted.popleft()()
