"""Remote files as streams: one file read ahead, or many files fetched ahead of their use.

Memory and disk that are used ahead of the reader have bounds that the caller sets.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections import OrderedDict, deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from .engine import TransferEngine
from .errors import ConnectionLost, ServerRefused
from .local import OwnDirectory
from .model import Stat
from .names import folded
from .url import RemoteURL

BLOCK_BYTES = 1 << 20
LFTP_BLOCK_BYTES = 4 << 20  # a block costs lftp some ten round trips, whatever its size
READ_AHEAD_BYTES = 16 << 20
SHELF_FILES = 1000  # of a stream, in one directory


def block_bytes(engine: TransferEngine, url: RemoteURL) -> int:
    """Return in what pieces a remote file is best read."""
    lftp = engine.settings.transport_for(url) == "lftp"
    return LFTP_BLOCK_BYTES if lftp else BLOCK_BYTES


class RemoteReader(io.BufferedIOBase):
    """A remote file opened for reading: seekable, read ahead, in bounded memory.

    Sequential reading makes it ask for more and more blocks ahead, up to `READ_AHEAD_BYTES`;
    after a seek to elsewhere it asks for what is read. Memory is bounded by twice that.

    Parameters
    ----------
    engine : TransferEngine
    url : RemoteURL
    stat : Stat
        Of the file; a file that is no longer that raises `RemoteChanged`.

    Notes
    -----
    Not thread-safe; a forked child may read on with it. Each block is a request of its own, so a
    lost connection costs nothing but the time to repeat it.
    """

    def __init__(self, engine: TransferEngine, url: RemoteURL, stat: Stat) -> None:
        self._blocks: OrderedDict[int, Future[bytes]] = OrderedDict()
        if stat.kind != "file":
            kind = "a directory" if stat.kind == "directory" else "not a regular file"
            raise ServerRefused(f"is {kind}; a file was meant", str(url))
        self.name = str(url)
        self.stat = stat
        self._engine = engine
        self._url = url
        self._at = 0
        self._block_bytes = block_bytes(engine, url)
        self._most_ahead = READ_AHEAD_BYTES // self._block_bytes
        self._ahead = 1
        self._pid = os.getpid()
        self._expected = 0  # where a sequential reader reads next

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position in bytes."""
        self._check_open()
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Change the position; beyond the end is allowed, and reads nothing there."""
        self._check_open()
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.stat.size}
        if whence not in base:
            raise ValueError(f"whence is 0, 1 or 2, not {whence!r}")
        position = base[whence] + offset
        if position < 0:
            raise ValueError(f"negative position {position}")
        self._at = position
        return position

    def read(self, size: int | None = -1) -> bytes:
        """Read so many bytes, fewer only at the end; all of the rest with None or -1."""
        left = max(0, self.stat.size - self._at)
        wanted = left if size is None or size < 0 else min(size, left)
        pieces = []
        while wanted:
            piece = self.read1(wanted)
            pieces.append(piece)
            wanted -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def read1(self, size: int | None = -1) -> bytes:
        """Read at least one byte, and no more than one block holds."""
        self._check_open()
        if self._pid != os.getpid():  # forked: what is on its way goes to the parent
            self._blocks.clear()
            self._pid = os.getpid()
        if self._at >= self.stat.size or size == 0:
            return b""
        number, start = divmod(self._at, self._block_bytes)
        last = number if size is None or size < 0 else (self._at + size - 1) // self._block_bytes
        data = self._block(number, last)
        stop = len(data) if size is None or size < 0 else min(len(data), start + size)
        piece = data[start:stop]
        self._at += len(piece)
        self._expected = self._at
        return piece

    def close(self) -> None:
        """Give up what is on its way."""
        for future in self._blocks.values():
            future.cancel()
        self._blocks.clear()
        super().close()

    def _block(self, number: int, needed: int) -> bytes:
        if self._at != self._expected:  # a jump
            self._ahead = 1 if number in self._blocks or number - 1 in self._blocks else 0
        elif number not in self._blocks or number + self._ahead not in self._blocks:
            self._ahead = min(max(1, 2 * self._ahead), self._most_ahead)
        ahead = max(self._ahead, min(needed - number, self._most_ahead))
        last = (self.stat.size - 1) // self._block_bytes
        for wanted in range(number, min(number + ahead, last) + 1):
            if wanted not in self._blocks:
                offset = wanted * self._block_bytes
                length = min(self._block_bytes, self.stat.size - offset)
                self._blocks[wanted] = self._engine.read(self._url, offset, length, self.stat)
        self._blocks.move_to_end(number)
        while len(self._blocks) > 2 * self._most_ahead:
            _, dropped = self._blocks.popitem(last=False)  # the one that rested longest
            dropped.cancel()
        future = self._blocks[number]
        try:
            return future.result()
        except BaseException:
            self._blocks.pop(number, None)  # the next read asks anew
            raise

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("read of a closed file")


class Streamed(NamedTuple):
    """One file of a stream: where it is now, and where it came from."""

    local: Path
    remote: RemoteURL


def stream_files(
    engine: TransferEngine,
    urls: Iterable[RemoteURL],
    directory: Path | None = None,
    *,
    ahead_files: int = 64,
    ahead_bytes: int = 1 << 30,
    clear: bool = False,
    keep_files: int = 1,
) -> Generator[Streamed, None, None]:
    """Fetch files ahead of their use, and yield them in order.

    Parameters
    ----------
    engine : TransferEngine
    urls : iterable of RemoteURL
    directory : Path, optional
        Where they go, under their names, in numbered directories. Default: a temporary
        directory, which goes with the end of the stream.
    ahead_files, ahead_bytes : int
        What may be on its way or waiting on disk, the file in use not counted. A single file
        that is larger than ``ahead_bytes`` comes alone.
    clear : bool
        Remove each file when the next one is asked for.
    keep_files : int
        With ``clear``: so many stay, those used last, the one in use counted.

    Raises
    ------
    TransferError
        When the turn of a file comes that could not be fetched; in a forked child, which leaves
        all to its parent, at once.
    """
    with OwnDirectory() as own:
        shelves = _Shelves(directory or Path(own.path))
        ahead = _Ahead(engine, iter(urls), shelves, max(1, ahead_files), ahead_bytes)
        used: deque[_Moving] = deque()
        try:
            while (item := ahead.next()) is not None:
                yield item.streamed
                if own.inherited:
                    raise ConnectionLost("a forked process does not share its parent's stream")
                if clear:
                    used.append(item)
                    if len(used) >= keep_files:
                        shelves.remove(used.popleft())
        finally:
            if not own.inherited:
                ahead.close(remove=clear)
                shelves.close()


class _Moving(NamedTuple):
    streamed: Streamed
    size: int
    future: Future[Stat]
    shelf: _Shelf


class _Ahead:
    """Files on their way: first their stats are asked for, then they are fetched, in order."""

    def __init__(
        self,
        engine: TransferEngine,
        urls: Iterator[RemoteURL],
        shelves: _Shelves,
        files: int,
        most_bytes: int,
    ) -> None:
        self._engine, self._urls, self._shelves = engine, urls, shelves
        self._files, self._most_bytes = files, most_bytes
        self._asked: deque[tuple[RemoteURL, Future[Stat]]] = deque()
        self._moving: deque[_Moving] = deque()
        self._bytes = 0

    def next(self) -> _Moving | None:
        """Return the next file when it is there, None after the last."""
        self._ask()
        if not self._moving and not self._begin(wait=True):
            return None
        while self._begin(wait=False):
            pass
        item = self._moving[0]
        item.future.result()
        self._moving.popleft()
        self._bytes -= item.size
        self._ask()
        while self._begin(wait=False):
            pass
        return item

    def close(self, *, remove: bool) -> None:
        """Give up what is on its way."""
        for _, asked in self._asked:
            asked.cancel()
        for item in self._moving:
            item.future.cancel()
        self._engine.wait_cancelled()  # from here on nobody writes into the directory
        for item in self._moving:
            if remove:
                self._shelves.remove(item)

    def _ask(self) -> None:
        while len(self._asked) + len(self._moving) < self._files:
            url = next(self._urls, None)
            if url is None:
                return
            self._asked.append((url, self._engine.stat(url)))

    def _begin(self, *, wait: bool) -> bool:
        """Begin to fetch the next file, if its stat is known and there is room for it."""
        if not self._asked or not (wait or self._asked[0][1].done()):
            return False
        url, asked = self._asked[0]
        if not wait and asked.exception() is not None:
            return False  # its turn will come
        stat = asked.result()
        if self._moving and self._bytes + stat.size > self._most_bytes:
            return False
        self._asked.popleft()
        shelf = self._shelves.place(url.name)
        local = shelf.path / url.name
        self._bytes += stat.size
        future = self._engine.fetch(url, local, expect=stat)
        self._moving.append(_Moving(Streamed(local, url), stat.size, future, shelf))
        return True


@dataclass(slots=True, eq=False)
class _Shelf:
    """A directory, how many files it has, and by what names it has had any."""

    path: Path
    files: int = 0
    names: set[str] = field(default_factory=set)


class _Shelves:
    """Numbered directories for files that keep their names; as many in each as can be.

    A directory for each file takes many file systems longer than a small file itself.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._count = 0
        self._free: list[_Shelf] = []  # made and emptied
        self._current = self._next()

    def place(self, name: str) -> _Shelf:
        """Return where a file of this name may go."""
        key = folded(name)
        full = self._current
        if key in full.names or len(full.names) >= SHELF_FILES:
            self._current = self._next()
            full.names.clear()
            if not full.files:
                self._free.append(full)
        self._current.names.add(key)
        self._current.files += 1
        return self._current

    def remove(self, item: _Moving) -> None:
        """Remove a file; where it was there may be others in time."""
        item.streamed.local.unlink(missing_ok=True)
        shelf = item.shelf
        shelf.files -= 1
        if not shelf.files and shelf is not self._current:
            self._free.append(shelf)

    def close(self) -> None:
        """Remove what is empty."""
        for shelf in (self._current, *self._free):
            with contextlib.suppress(OSError):
                shelf.path.rmdir()

    def _next(self) -> _Shelf:
        if self._free:
            return self._free.pop()
        self._count += 1
        return _Shelf(self._directory / f"{self._count:08d}")
