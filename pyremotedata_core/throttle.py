"""A bandwidth limit that all sessions of a server share."""

from __future__ import annotations

import time

BURST_S = 0.25


class Throttle:
    """A bucket of bytes that fills at a rate. Belongs to the loop's thread.

    Parameters
    ----------
    rate : int
        Bytes per second.
    """

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._level = rate * BURST_S
        self._at = time.monotonic()

    def take(self, size: int) -> None:
        """Take bytes out; the level may fall below zero, and is then to be waited for."""
        self._level -= size

    def wait_s(self) -> float:
        """Return the seconds until more may be taken, 0 if now."""
        now = time.monotonic()
        self._level = min(self._rate * BURST_S, self._level + (now - self._at) * self._rate)
        self._at = now
        return max(0.0, -self._level / self._rate)
