"""What one provider has moved, for the line at the end of a run. Thread-safe."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from humanfriendly import format_size  # type: ignore[import-untyped]


class Tally:
    """Counts of files and bytes, and the seconds in which somebody waited for them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._retrieved = self._retrieved_bytes = 0
        self._ahead = self._ahead_bytes = 0
        self._cached = self._cached_bytes = 0
        self._stored = self._stored_bytes = 0
        self._waiting = 0
        self._waiting_since = 0.0
        self._waited_s = 0.0
        self._told = 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time within; what overlaps counts once."""
        with self._lock:
            if not self._waiting:
                self._waiting_since = time.monotonic()
            self._waiting += 1
        try:
            yield
        finally:
            with self._lock:
                self._waiting -= 1
                if not self._waiting:
                    self._waited_s += time.monotonic() - self._waiting_since

    def retrieved(
        self, files: int, moved_bytes: int, ahead: bool = False, cached: bool = False
    ) -> None:
        """Count files that were retrieved.

        Parameters
        ----------
        files, moved_bytes : int
        ahead : bool
            They were there when asked for.
        cached : bool
            They came from the node's cache.
        """
        with self._lock:
            self._retrieved += files
            self._retrieved_bytes += moved_bytes
            if ahead:
                self._ahead += files
                self._ahead_bytes += moved_bytes
            if cached:
                self._cached += files
                self._cached_bytes += moved_bytes

    def stored(self, files: int, moved_bytes: int) -> None:
        """Count files that were stored."""
        with self._lock:
            self._stored += files
            self._stored_bytes += moved_bytes

    def news(self) -> str | None:
        """Return the line for what was moved so far, None if it was told before or is nothing."""
        with self._lock:
            files = self._retrieved + self._stored
            if files == self._told:
                return None
            self._told = files
            return self._line()

    def _line(self) -> str:
        parts = []
        if self._retrieved:
            share = round(100 * self._ahead_bytes / max(1, self._retrieved_bytes))
            ahead = f", {self._ahead} of them ({share}% of the bytes) ahead of their jobs"
            parts.append(
                f"{_files(self._retrieved)} ({size_text(self._retrieved_bytes)}) retrieved"
                + (ahead if self._ahead else "")
                + (f", {self._cached} of them from the node's cache" if self._cached else "")
            )
        if self._stored:
            parts.append(f"{_files(self._stored)} ({size_text(self._stored_bytes)}) stored")
        waited_bytes = self._retrieved_bytes - self._ahead_bytes - self._cached_bytes
        waited_bytes += self._stored_bytes
        rate = rate_text(waited_bytes, self._waited_s)
        return f"{'; '.join(parts)}; {self._waited_s:.1f} s of waiting for transfers ({rate})"


def size_text(count: int) -> str:
    """Return a number of bytes for people."""
    return str(format_size(count, binary=True))


def rate_text(count: int, seconds: float) -> str:
    """Return bytes per second for people."""
    return f"{size_text(round(count / max(seconds, 1e-3)))}/s"


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"
