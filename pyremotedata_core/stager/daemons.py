"""A bounded pool of daemon threads.

Unlike `concurrent.futures`, whose threads the interpreter waits for at exit: ours may hang in a
lock that another process holds.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

_IDLE_S = 10.0
_log = logging.getLogger(__name__)


class Daemons:
    """Runs calls on at most ``limit`` threads, made when needed, ended when idle. Thread-safe."""

    def __init__(self, name: str, limit: int) -> None:
        self._name = name
        self._limit = limit
        self._changed = threading.Condition()
        self._calls: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._threads = 0
        self._idle = 0

    def submit(self, call: Callable[..., None], *args: Any) -> None:
        """Run a call soon, in order of submission."""
        with self._changed:
            self._calls.append((call, args))
            if len(self._calls) > self._idle and self._threads < self._limit:
                self._threads += 1
                threading.Thread(target=self._serve, name=self._name, daemon=True).start()
            else:
                self._changed.notify()

    def _serve(self) -> None:
        while True:
            with self._changed:
                while not self._calls:
                    self._idle += 1
                    woken = self._changed.wait(_IDLE_S)
                    self._idle -= 1
                    if not woken and not self._calls:
                        self._threads -= 1
                        return
                call, args = self._calls.popleft()
            try:
                call(*args)
            except Exception:
                _log.exception("unexpected error in %s", self._name)
            del call, args
