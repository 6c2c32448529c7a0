"""What keeps the memory of a long listing small: a queue on disk, a set of hashes."""

from __future__ import annotations

import contextlib
import marshal
import os
import tempfile
from array import array
from collections import deque
from typing import IO, Any

LISTINGS_AT_ONCE = 64  # of one walk: a directory takes some three round trips
KEPT_ITEMS = 1024  # at either end, in memory
CHUNK_ITEMS = 512


class Spool:
    """A queue that holds few items in memory, the others in a temporary file without a name.

    Items are builtins. Not thread-safe. When the disk is full, the items stay in memory. The file
    goes with the object, however the process ends.
    """

    __slots__ = ("_chunks", "_file", "_head", "_length", "_tail")

    def __init__(self) -> None:
        self._head: deque[Any] = deque()
        self._chunks: deque[tuple[int, int]] = deque()  # place and bytes in the file
        self._tail: list[Any] = []
        self._file: IO[bytes] | None = None
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def append(self, item: Any) -> None:
        """Add an item at the end."""
        self._length += 1
        if not self._chunks and not self._tail and len(self._head) < KEPT_ITEMS:
            self._head.append(item)
            return
        self._tail.append(item)
        if len(self._tail) >= KEPT_ITEMS and len(self._tail) % CHUNK_ITEMS == 0:
            with contextlib.suppress(OSError):
                self._write(self._tail[:CHUNK_ITEMS])
                del self._tail[:CHUNK_ITEMS]

    def popleft(self) -> Any:
        """Take the first item."""
        if not self._head:
            if self._chunks:
                self._head.extend(self._read(self._chunks.popleft()))
            else:
                self._head.extend(self._tail)
                self._tail.clear()
        self._length -= 1
        return self._head.popleft()

    def pop(self) -> Any:
        """Take the last item."""
        if not self._tail and self._chunks:
            self._tail = self._read(self._chunks.pop())
        self._length -= 1
        return self._tail.pop() if self._tail else self._head.pop()

    def clear(self) -> None:
        """Drop everything."""
        self._head.clear()
        self._tail.clear()
        self._chunks.clear()
        self._length = 0
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, items: list[Any]) -> None:
        data = marshal.dumps(items, 4)
        place = sum(self._chunks[-1]) if self._chunks else 0
        if self._file is None:
            # Not /tmp, which is memory on many machines.
            where = "/var/tmp" if os.access("/var/tmp", os.W_OK) else None  # noqa: S108
            self._file = tempfile.TemporaryFile(dir=where, buffering=0)  # noqa: SIM115
        view = memoryview(data)
        while view:
            view = view[os.pwrite(self._file.fileno(), view, place + len(data) - len(view)) :]
        self._chunks.append((place, len(data)))

    def _read(self, chunk: tuple[int, int]) -> list[Any]:
        assert self._file is not None
        place, size = chunk
        items: list[Any] = marshal.loads(os.pread(self._file.fileno(), size, place))  # noqa: S302
        return items


class NameSet:
    """A set of names in 11 to 23 bytes each: it keeps 64 bits of their hashes.

    So a name may be taken for another one; for a million names the odds are one in ten million
    that it ever happens. The hash is Python's own, which a server cannot foresee.
    """

    __slots__ = ("_count", "_slots")

    def __init__(self) -> None:
        self._slots = _empty(64)
        self._count = 0

    def __contains__(self, name: str) -> bool:
        key = hash(name) or 1
        return self._slots[_place(self._slots, key)] == key

    def add(self, name: str) -> bool:
        """Add a name; return whether it is new."""
        key = hash(name) or 1
        slots = self._slots
        mask = len(slots) - 1
        at = key & mask
        while (there := slots[at]) != 0:
            if there == key:
                return False
            at = (at + 1) & mask
        slots[at] = key
        self._count += 1
        if self._count * 10 > len(slots) * 7:
            self._slots = _empty(2 * len(slots))
            for key in slots:
                if key:
                    self._slots[_place(self._slots, key)] = key
        return True


def _empty(size: int) -> array[int]:
    return array("q", bytes(8 * size))


def _place(slots: array[int], key: int) -> int:
    """Return where a key is, or is to be."""
    mask = len(slots) - 1
    at = key & mask
    while slots[at] and slots[at] != key:
        at = (at + 1) & mask
    return at
