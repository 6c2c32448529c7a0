"""Leases: a staged file stays where it is for as long as somebody in this process wants it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..model import Stat
from ..url import RemoteURL
from .locks import Pin


class Lease:
    """A staged file, kept in place until the lease is released.

    Attributes
    ----------
    path : Path
        The local file, read-only, under its remote name.
    stat : Stat
        Size in bytes and mtime in seconds, of the remote file and of the local one.
    url : RemoteURL
    from_cache : bool
        False for the one lease for which this process moved the bytes.

    Notes
    -----
    A context manager. Released by `release`, at the latest with the object, and by the kernel
    when the process dies. Thread-safe. A forked child holds the leases that it inherits, too.
    """

    __slots__ = ("__weakref__", "_give_back", "from_cache", "path", "stat", "url")

    def __init__(
        self,
        path: Path,
        stat: Stat,
        url: RemoteURL,
        from_cache: bool,
        give_back: Callable[[bool], None],
    ) -> None:
        self.path = path
        self.stat = stat
        self.url = url
        self.from_cache = from_cache
        self._give_back: Callable[[bool], None] | None = give_back

    def release(self) -> None:
        """Allow the file to be evicted; a second call does nothing."""
        give_back, self._give_back = self._give_back, None
        if give_back is not None:
            give_back(True)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()

    def __del__(self) -> None:
        give_back, self._give_back = self._give_back, None
        if give_back is not None:
            give_back(False)

    def __reduce__(self) -> Any:
        raise TypeError("a lease belongs to its process; send the URL and stage it there")

    def __repr__(self) -> str:
        return f"<Lease of {self.url} at {self.path}>"


class Pins:
    """The pins of this process, counted: one descriptor however many leases on an entry.

    Thread-safe.
    """

    def __init__(self) -> None:
        self._held: dict[str, _Held] = {}
        self._later: deque[str] = deque()
        self.begin()

    def begin(self) -> None:
        """Make the lock; in a forked child, anew."""
        self._lock = threading.Lock()

    def add(self, key: str, pin: Pin) -> Pin:
        """Take in a pin and count it once; return the pin to use."""
        pin.lend()
        with self._settled():
            held = self._held.setdefault(key, _Held(pin))
            held.count += 1
            # The newer one: somebody may have deleted what the older one holds.
            older, held.pin = held.pin, pin
        if older is not pin:
            older.release()
        return pin

    def borrow(self, key: str, stat: Stat) -> Pin | None:
        """Count once more a pin that is held, if it keeps its file; return it."""
        with self._settled():
            held = self._held.get(key)
            if held is None or not held.pin.keeps(stat):
                return None
            held.count += 1
            return held.pin

    def give_back(self, key: str) -> None:
        """Count once less; the last one releases the pin."""
        with self._settled():
            self._give_back(key)

    def give_back_later(self, key: str) -> None:
        """Count once less from a destructor, which may run in the midst of anything."""
        self._later.append(key)
        self._settle()

    @contextmanager
    def _settled(self) -> Iterator[None]:
        """Hold the lock; then do what destructors have left meanwhile."""
        with self._lock:
            yield
        self._settle()

    def _settle(self) -> None:
        """Do what destructors have left, unless a thread is in the midst of something."""
        while self._later and self._lock.acquire(blocking=False):
            try:
                with suppress(IndexError):
                    self._give_back(self._later.popleft())
            finally:
                self._lock.release()

    def _give_back(self, key: str) -> None:
        held = self._held[key]
        held.count -= 1
        if held.count == 0:
            del self._held[key]
            held.pin.release()


@dataclass
class _Held:
    pin: Pin
    count: int = 0
