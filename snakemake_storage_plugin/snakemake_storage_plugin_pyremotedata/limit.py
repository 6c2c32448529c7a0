"""The user's limit of requests per second."""

from __future__ import annotations

import asyncio
import threading
import time


class RequestLimit:
    """An asynchronous context manager in whose blocks requests are made; thread-safe.

    They begin evenly spaced, so that no second has more of them. Snakemake's own limiter turns
    1.1 a second into 11 at once in 10 s, and 0.333 into 333 at once.

    Parameters
    ----------
    per_second : float
        Greater than zero.
    """

    def __init__(self, per_second: float) -> None:
        self._interval_s = 1 / per_second
        self._lock = threading.Lock()
        self._next = 0.0

    async def __aenter__(self) -> None:
        with self._lock:
            now = time.monotonic()
            begin = max(now, self._next)
            self._next = begin + self._interval_s
        await asyncio.sleep(begin - now)

    async def __aexit__(self, *_error: object) -> None:
        pass
