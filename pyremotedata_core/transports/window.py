"""What is under way on a session: what the line carries in about a second, and whose turn it is."""

from __future__ import annotations

from collections import deque
from typing import Protocol

from .base import SMALL_BYTES

LEAST_BYTES = 128 << 10
FIRST_BYTES = 1 << 20
MOST_BYTES = 16 << 20
PIECES = 4  # of a window, at the least
PIECE_BYTES = 32 << 10  # what every server must take
SOON_S, LATE_S = 1.0, 5.0  # an answer within the one is never late, after the other always
LATE = 2.0  # times what an answer takes when little is under way
PATIENCE = 1.05


class Window:
    """Bytes of one direction that are on their way and not yet answered.

    A question waits at the server, and on the line, behind all that was sent for before. So the
    window grows only while answers come soon, and shrinks when they come late. Where they are late
    even with the least, it is the server that takes so long, and not the line: patience grows.

    Attributes
    ----------
    used : int
    """

    def __init__(self) -> None:
        self.used = 0
        self._size = FIRST_BYTES
        self._late_s = LATE_S

    @property
    def is_full(self) -> bool:
        """Whether to wait for answers before more is sent."""
        return self.used >= self._size

    def piece(self, most: int) -> int:
        """Return how many bytes to move with one request, of so many that are possible."""
        return min(most, max(PIECE_BYTES, self._size // PIECES))

    def take(self, size: int) -> None:
        """Count bytes that were sent, or asked for."""
        self.used += size

    def answered(self, size: int, since: float, now: float) -> None:
        """Count bytes that were sent, or asked for, at a time and whose answer has come now."""
        taken_s = now - since
        was_full = self.used + size >= self._size
        self.used -= size
        self._late_s = min(self._late_s, max(SOON_S, LATE * taken_s))
        if taken_s > self._late_s:
            if self._size == LEAST_BYTES:
                self._late_s = min(LATE_S, self._late_s * PATIENCE)
            self._size = max(LEAST_BYTES, self._size - size // 2)
        elif was_full:
            self._size = min(MOST_BYTES, self._size + size)


class Transfer(Protocol):
    """An upload or download that wants to send more requests."""

    is_small: bool

    def issue(self) -> bool:
        """Send one more request; return whether there are others to come."""


class Turns:
    """Transfers that want to send more requests into a window.

    Small ones go first, but one of the others has a turn after each `SMALL_BYTES` of them.
    """

    def __init__(self, window: Window) -> None:
        self._window = window
        self._small: deque[Transfer] = deque()
        self._others: deque[Transfer] = deque()
        self._ahead = 0  # bytes of small ones since the last turn of another

    def __bool__(self) -> bool:
        return bool(self._small or self._others)

    def append(self, transfer: Transfer) -> None:
        """Queue a transfer behind its like."""
        (self._small if transfer.is_small else self._others).append(transfer)

    def issue(self) -> None:
        """Have the next one send a request."""
        is_small = bool(self._small) and not (self._others and self._ahead >= SMALL_BYTES)
        queue = self._small if is_small else self._others
        used = self._window.used
        if not queue[0].issue():
            queue.popleft()
        self._ahead = self._ahead + self._window.used - used if is_small else 0

    def clear(self) -> None:
        """Forget them all."""
        self._small.clear()
        self._others.clear()
