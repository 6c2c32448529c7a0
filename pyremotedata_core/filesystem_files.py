"""The open files of the fsspec file system: one that reads ahead, one that is stored on close."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shutil
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fsspec.compression import compr
from fsspec.core import OpenFile
from fsspec.spec import AbstractBufferedFile

from .errors import RemoteChanged, RemoteFileNotFound, TransferError, naming
from .futures import wait_for
from .local import NOTHING_TOLD, OwnDirectory, date_after
from .model import Stat
from .stream import BLOCK_BYTES, RemoteReader

if TYPE_CHECKING:
    from .filesystem import RemoteFileSystem
    from .stager import Lease

LINES_BYTES = 1 << 17
WRITING = ("wb", "w+b", "xb", "x+b", "ab", "a+b", "r+b")

_log = logging.getLogger(__name__)


class ReadFile(io.BufferedReader):
    """A `RemoteReader` with what users of fsspec expect of a file, and fast in lines.

    Pickles, which xarray and Dask need. A file that is no longer what it was when it was opened
    raises `RemoteChanged`. A forked child may read on with it. With a lease it reads the leased
    file, and has it until it is closed; with ``borrow`` it asks for one when it is first read.
    """

    mode = "rb"

    def __init__(
        self,
        fs: RemoteFileSystem,
        path: str,
        stat: Stat,
        lease: Lease | None = None,
        *,
        borrow: Callable[[], Lease | None] | None = None,
    ) -> None:
        def open_with(lease: Lease | None) -> _Leased | RemoteReader:
            if lease is not None:
                return _Leased(lease)
            return RemoteReader(fs.engine, fs.url(path), stat)

        raw: Any = _Later(lambda: open_with(borrow()), stat) if borrow else open_with(lease)
        super().__init__(raw, LINES_BYTES)
        self.fs, self.path, self.size = fs, path, stat.size
        self.blocksize = BLOCK_BYTES
        self.stat = stat

    def __reduce_ex__(self, _protocol: Any) -> Any:  # Python 3.12 has one that refuses
        return _reopen, (self.fs, self.path, tuple(self.stat), self.tell())

    @property
    def details(self) -> dict[str, Any]:
        """What `RemoteFileSystem.info` says of it."""
        return details(self.path, self.stat)

    @property
    def full_name(self) -> str:
        """Its URL."""
        return self.fs.unstrip_protocol(self.path)

    def info(self) -> dict[str, Any]:
        """Return what `RemoteFileSystem.info` says of it."""
        return self.details


class PartsFile(AbstractBufferedFile):
    """A `ReadFile` in parts that one of fsspec's caches asks for and keeps."""

    def __init__(
        self,
        file: ReadFile,
        block_size: int | None,
        cache_type: str,
        cache_options: dict[str, Any] | None,
    ) -> None:
        self._file = file
        self._how = block_size, cache_type, cache_options
        self._turn = threading.Lock()  # a cache may have a thread that looks ahead
        super().__init__(
            file.fs,
            file.path,
            "rb",
            block_size or "default",
            cache_type=cache_type,
            cache_options=cache_options,
            size=file.size,
        )
        self.stat = file.stat

    def __reduce__(self) -> Any:  # fsspec's would ask what the file is now
        return _reopen_in_parts, (self.fs, self.path, tuple(self.stat), self.tell(), *self._how)

    def _fetch_range(self, start: int, end: int) -> bytes:
        with self._turn:
            self._file.seek(start)
            return self._file.read(end - start)

    def close(self) -> None:
        """Close it; the cache goes."""
        super().close()
        self._file.close()


class _Leased(io.FileIO):
    """A leased file, read at places of its own: a forked child shares the descriptor's."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        self._at = 0
        with naming(lease.path):
            super().__init__(lease.path)

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_CUR:
            offset, whence = self._at + offset, os.SEEK_SET
        self._at = super().seek(offset, whence)
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        if size is None or size < 0:
            return self.readall()
        data = os.pread(self.fileno(), min(size, BLOCK_BYTES), self._at)
        self._at += len(data)
        return data

    def readall(self) -> bytes:
        return b"".join(iter(lambda: self.read(BLOCK_BYTES), b""))

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        super().close()
        self._lease.release()


class _Later(io.BufferedIOBase):
    """A file that is opened when it is first read.

    Dask unpickles tasks on a worker's event loop, where none may be staged; they read elsewhere.
    """

    def __init__(self, open_now: Callable[[], Any], stat: Stat) -> None:
        self._open_now = open_now
        self._size = stat.size
        self._at = 0
        self._file: Any = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at if self._file is None else int(self._file.tell())

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if self._file is not None:
            return int(self._file.seek(offset, whence))
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        if self._file is None:
            self._file = self._open_now()
            self._file.seek(self._at)
        data: bytes = self._file.read(size)
        return data

    def close(self) -> None:
        super().close()
        if self._file is not None:
            self._file.close()


class WriteFile(io.BufferedRandom):
    """A temporary local file that is stored when it is closed, whole or not at all.

    Nothing is stored if its ``with`` block ends with an exception, or if it is never closed. It
    may be read and sought in meanwhile. What "a" and "r+" go on from is fetched first; if it is
    no longer that when it is to be stored, that is `RemoteChanged`.
    """

    def __init__(
        self, fs: RemoteFileSystem, path: str, mode: str, autocommit: bool, compression: str | None
    ) -> None:
        self._place = OwnDirectory()
        self._local = os.path.join(self._place.path, "content")
        self._before = None
        try:
            if mode[0] in "ar":
                self._before = _fetch(fs, path, mode, self._local, compression)
            how = mode[0].replace("x", "w") + "+"
            with naming(self._local):
                file = io.FileIO(self._local, how)
            super().__init__(file)
        except BaseException:
            self._place.close()
            raise
        self.fs, self.path, self.autocommit = fs, path, autocommit
        self._mode, self._compression = mode, compression
        self.wanted = True

    def __exit__(self, kind: Any, *_: Any) -> None:
        self.wanted = self.wanted and kind is None
        self.close()

    def __del__(self) -> None:
        if getattr(self, "wanted", False) and not self.closed and not self.inherited:
            _log.warning("%s was never closed, and so is not stored", self.name)
            self.discard()

    @property
    def mode(self) -> str:  # type: ignore[override]
        """One of `WRITING`."""
        return self._mode

    @property
    def name(self) -> str:
        """Its URL."""
        return self.fs.unstrip_protocol(self.path)

    full_name = name

    @property
    def inherited(self) -> bool:
        """Whether this is a forked child, which leaves it to its parent."""
        return self._place.inherited

    def write(self, data: Any) -> int:
        """Write to the temporary file."""
        with naming(self._local):
            return super().write(data)

    def close(self) -> None:
        """Store the file; in a transaction, leave that to its end."""
        if self.closed:
            return
        if self.inherited:
            self.raw.close()  # what is buffered is for the parent to write
            return
        self.wanted = self.wanted and not _leaves_by_exception(self)
        self._close_local()
        if not self.wanted:
            self.discard()
        elif self.autocommit:
            self.commit()

    def commit(self) -> None:
        """Store what was written."""
        self._close_local()
        try:
            if self.wanted:
                local = self._local
                if self._compression:
                    local = _compress(local, self._compression)
                engine, url = self.fs.engine, self.fs.url(self.path)
                now = None
                with contextlib.suppress(*NOTHING_TOLD):
                    now = wait_for(engine.stat(url))
                    date_after(local, now)
                if self._before and (now is None or not now.same_content(self._before)):
                    raise RemoteChanged("the file changed since it was opened", str(url))
                new = self._mode[0] == "x" or (self._mode[0] == "a" and self._before is None)
                wait_for(engine.store(local, url, overwrite=not new))
        finally:
            self.discard()
            self.fs.invalidate_cache()

    def discard(self) -> None:
        """Throw away what was written."""
        self.wanted = False
        with contextlib.suppress(TransferError):
            self._close_local()
        self._place.close()

    def _close_local(self) -> None:
        try:
            with naming(self._local):
                super().close()
        except TransferError:
            self.wanted = False
            self._place.close()
            raise


class WriteText(io.TextIOWrapper):
    """Text over a `WriteFile`, which it tells of an exception."""

    buffer: WriteFile

    def __exit__(self, kind: Any, *_: Any) -> None:
        self.buffer.wanted = self.buffer.wanted and kind is None
        self.close()

    def close(self) -> None:
        """Close it as `WriteFile` does."""
        if self.buffer.inherited:
            self.buffer.close()
        else:
            super().close()

    def __del__(self) -> None:
        if not self.closed:
            self.buffer.__del__()


def details(name: str, stat: Stat) -> dict[str, Any]:
    """Return what fsspec calls the info of a file."""
    size = stat.size if stat.kind == "file" else 0
    return {"name": name, "size": size, "type": stat.kind, "mtime": stat.mtime, "mode": stat.mode}


def _reopen(fs: RemoteFileSystem, path: str, stat: tuple[Any, ...], at: int) -> ReadFile:
    file = fs.open_known(path, Stat(*stat))
    file.seek(at)
    return file


def _reopen_in_parts(
    fs: RemoteFileSystem, path: str, stat: tuple[Any, ...], at: int, *how: Any
) -> PartsFile:
    file = PartsFile(fs.open_known(path, Stat(*stat)), *how)
    file.seek(at)
    return file


def _fetch(
    fs: RemoteFileSystem, path: str, mode: str, local: str, compression: str | None
) -> Stat | None:
    """Fetch what is to be gone on from, if there is anything; return what it was."""
    fetched = f"{local}.packed" if compression else local
    try:
        stat = wait_for(fs.engine.fetch(fs.url(path), fetched))
    except RemoteFileNotFound:
        if mode[0] == "r":
            raise
        return None
    if compression:
        _decompress(fetched, local, compression)
    return stat


def _decompress(packed: str, path: str, compression: str) -> None:
    with (
        naming(path),
        open(packed, "rb") as source,
        compr[compression](source, mode="rb") as file,
        open(path, "wb") as target,
    ):
        shutil.copyfileobj(file, target, BLOCK_BYTES)


def _compress(path: str, compression: str) -> str:
    packed = f"{path}.packed"
    with (
        naming(path),
        open(path, "rb") as source,
        open(packed, "wb") as target,
        compr[compression](target, mode="wb") as file,
    ):
        shutil.copyfileobj(source, file, BLOCK_BYTES)
    return packed


def _leaves_by_exception(file: WriteFile) -> bool:
    """Whether the file is being closed because the block of its `fsspec.open` has failed.

    OpenFile closes its file without a word of the exception, which only its own frame knows.
    """
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code is OpenFile.__exit__.__code__:
            known = frame.f_locals
            return known["self"].path == file.path and known["args"][0] is not None
        frame = frame.f_back  # type: ignore[assignment]
    return False
