"""Chunks: the pieces of files that workers give each other, over Dask's own comms.

A worker gives what lies in its node's cache, and of a large file that it is still reading from the
archive what has arrived: who asks for more waits for it. The last chunk is given only when the
whole file is in the cache, so nobody completes a file that its reader could not. The giver's
checksum of each chunk is compared with what arrived. A worker on the same host, which has a cache
of its own, is told where the chunk lies, and copies it. All of it runs on the worker's event loop,
which never blocks: the disk has threads of its own.
"""

from __future__ import annotations

import asyncio
import os
import stat as modes
import threading
import zlib
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from time import monotonic
from typing import Any, BinaryIO, NamedTuple

from pyremotedata_core import Stat, TransferError
from pyremotedata_core.errors import naming
from pyremotedata_core.part import boot, open_arrived
from pyremotedata_core.stager import Stager
from pyremotedata_core.stager.copying import copy_range

READ = "pyremotedata_read"  # a worker's question to another
# A pull holds two chunks: one is written while the next one comes.
CHUNK_BYTES = 4 * 2**20
# Of all pulls from this worker together.
READERS = 4
# A question for what is still to arrive is answered after so long in any case.
WAIT_S = 5.0

File = tuple[str, int, int]  # URL, size, mtime


class Place(NamedTuple):
    """Where a giver on the same host has a file; the numbers tell it from a namesake."""

    path: bytes
    device: int
    inode: int


class PullFailed(TransferError):
    """Another worker has not given the file; the next holder, or the archive, will."""


class Arriving:
    """A large file that this worker reads from the archive, while others pull it from here."""

    def __init__(self, path: str, share: Callable[[], object]) -> None:
        self.path = path
        self.bytes = 0
        self.more = asyncio.Event()  # set when more has arrived, and replaced
        self._share: Callable[[], object] | None = share

    def told_of(self, count: int) -> None:
        """Wake those who wait for more bytes."""
        self.bytes += count
        more, self.more = self.more, asyncio.Event()
        more.set()

    def share(self) -> None:
        """Tell, once, that there is something to pull."""
        share, self._share = self._share, None
        if share is not None:
            share()

    @property
    def is_shared(self) -> bool:
        """Whether that has been told."""
        return self._share is None


class Chunks:
    """Gives other workers chunks of files, and pulls files from them. On the event loop.

    Parameters
    ----------
    worker : distributed.Worker
    stager : Stager
        Its files are given.
    """

    def __init__(self, worker: Any, stager: Stager) -> None:
        self._worker = worker
        self._stager = stager
        self._loop = worker.loop.asyncio_loop
        self._disk = ThreadPoolExecutor(READERS, "pyremotedata-peer")
        self._arriving: dict[Hashable, Arriving] = {}
        worker.handlers[READ] = self.give

    def close(self) -> None:
        """Give no more."""
        self._worker.handlers.pop(READ, None)

    # --- giving -----------------------------------------------------------------------------

    def begin(self, file: File, path: str, share: Callable[[], object]) -> None:
        """Learn that a file comes from the archive; ``share`` is called when a part is here."""
        self.ended(file)  # a former attempt
        self._arriving[file] = Arriving(path, share)

    async def progress(self, file: File, count: int) -> None:
        """Learn that bytes of it have come."""
        arriving = self._arriving.get(file)
        if arriving is None:
            return
        arriving.told_of(count)
        if not arriving.is_shared and await self._on_disk(_has_any, arriving.path, file):
            arriving.share()

    def ended(self, file: File) -> None:
        """Learn that it is in the cache, or does not come."""
        arriving = self._arriving.pop(file, None)
        if arriving is not None:
            arriving.told_of(0)

    async def give(
        self, file: Any, start: int, length: int, wait_s: float = 0, host: str = ""
    ) -> dict[str, Any]:
        """Give another worker a chunk of a file, with its checksum, or tell where it lies here.

        What has not arrived is waited for, ``wait_s`` at the most; then the answer is how many
        bytes have.
        """
        from distributed.protocol import to_serialize

        url, size, mtime = file
        if length > CHUNK_BYTES:
            return {"missing": True}
        find = _locate if host and host == boot() else _read
        until = monotonic() + min(wait_s, WAIT_S)
        while True:
            arriving = self._arriving.get((url, size, mtime))
            # Looked at before the disk: what arrives meanwhile is not missed.
            more = arriving.more if arriving is not None else None
            path = arriving.path if arriving is not None and start + length < size else None
            found = await self._on_disk(
                find, self._stager, url, Stat("file", size, mtime), path, start, length
            )
            if isinstance(found, Place):
                return {"place": found}
            if found is not None:
                return {"checksum": found[1], "data": to_serialize(found[0])}
            if arriving is None or more is None:
                return {"missing": True}
            try:
                await asyncio.wait_for(more.wait(), max(0.0, until - monotonic()))
            except TimeoutError:
                return {"arrived": arriving.bytes}

    # --- pulling ----------------------------------------------------------------------------

    async def pull(self, file: File, path: str, source: str) -> None:
        """Pull a file in chunks; each is on the disk before the next but one is asked for.

        Raises
        ------
        PullFailed
            If the source does not give it. Another `TransferError` is this node's own.
        """
        size = file[1]
        sink = Sink(path)
        host = boot()
        coming: asyncio.Task[bytes | Place] | None = None
        whole = False
        try:
            await self._on_disk(sink.open)
            for start in range(0, size, CHUNK_BYTES):
                chunk = await (coming or self._ask(file, source, start, host))
                following = start + CHUNK_BYTES
                coming = None
                if following < size:
                    coming = self._loop.create_task(self._ask(file, source, following, host))
                length = min(CHUNK_BYTES, size - start)
                if isinstance(chunk, Place):
                    if await self._on_disk(sink.copy, chunk, start, length):
                        continue
                    host = ""  # of another mount namespace, say
                    chunk = await self._ask(file, source, start, host)
                await self._on_disk(sink.write, chunk, start)
            whole = True
        finally:
            if coming is not None:
                coming.cancel()
                coming.add_done_callback(heed)
            await asyncio.shield(self._on_disk(sink.close, whole))

    async def _ask(self, file: File, source: str, start: int, host: str) -> bytes | Place:
        """Return a chunk; wait for it for as long as the source gets on with the file."""
        url, size, _ = file
        length = min(CHUNK_BYTES, size - start)
        patience_s = self._stager.settings.timeout_s
        arrived, since = -1, monotonic()
        while True:
            read = getattr(self._worker.rpc(source), READ)
            asked = read(file=file, start=start, length=length, wait_s=patience_s / 4, host=host)
            try:
                answer = await asyncio.wait_for(asked, patience_s)
            except (OSError, TimeoutError) as error:
                raise PullFailed(f"{source} is gone, or silent: {error}", url) from None
            if not isinstance(answer, dict):
                raise PullFailed(f"{source} does not have it", url)
            if "arrived" not in answer:
                break
            if answer["arrived"] != arrived:
                arrived, since = answer["arrived"], monotonic()
            elif monotonic() - since > patience_s:
                raise PullFailed(f"{source} does not get on with it", url)
        if "place" in answer:
            return Place(*answer["place"])
        if "checksum" not in answer:
            raise PullFailed(f"{source} does not have it", url)
        data: bytes = answer["data"]
        if len(data) != length or await self._on_disk(zlib.crc32, data) != answer["checksum"]:
            raise PullFailed(f"{source} has sent other bytes than it read", url)
        return data

    async def _on_disk(self, call: Any, *args: Any) -> Any:
        return await self._loop.run_in_executor(self._disk, call, *args)


def heed(task: asyncio.Task[Any] | Future[Any]) -> None:
    """Take note of a failure that no longer matters."""
    if not task.cancelled():
        task.exception()


# --- on threads for the disk --------------------------------------------------------------------


def _has_any(path: str, file: File) -> bool:
    """Whether a part of a file that arrives can be given."""
    length = min(CHUNK_BYTES, file[1])
    with suppress(OSError):
        part = open_arrived(path, Stat("file", *file[1:]), 0, length)
        if part is not None:
            part.close()
            return True
    return False


def _open(
    stager: Stager, url: str, stat: Stat, arriving: str | None, start: int, length: int
) -> BinaryIO | None:
    """Open a file that has a chunk: in the cache, or the part that arrives; None if not here."""
    try:
        lease = stager.find(url, stat)
        if lease is not None:
            with lease:
                return open(lease.path, "rb", buffering=0)
        if arriving is not None:
            return open_arrived(arriving, stat, start, length)
    except (OSError, TransferError):
        pass
    return None


def _read(
    stager: Stager, url: str, stat: Stat, arriving: str | None, start: int, length: int
) -> tuple[bytes, int] | None:
    """Read a chunk and its checksum; None if it is not here."""
    file = _open(stager, url, stat, arriving, start, length)
    if file is None:
        return None
    try:
        with file:
            data = os.pread(file.fileno(), length, start)
    except OSError:
        return None
    return data, zlib.crc32(data)


def _locate(
    stager: Stager, url: str, stat: Stat, arriving: str | None, start: int, length: int
) -> Place | None:
    """Tell where a chunk lies; None if it is not here."""
    file = _open(stager, url, stat, arriving, start, length)
    if file is None:
        return None
    with file:
        found = os.fstat(file.fileno())
        return Place(os.fsencode(file.name), found.st_dev, found.st_ino)


class Sink:
    """The file that a pull writes. Once closed nothing is written any more. Thread-safe."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1
        self._source: tuple[Place, int] | None = None  # a file that is copied, opened
        self._is_closed = False
        self._lock = threading.Lock()

    def open(self) -> None:
        """Make the file."""
        with self._lock:
            if self._is_closed:
                return
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            with naming(self._path):
                self._fd = os.open(self._path, flags, 0o600)

    def write(self, data: bytes, start: int) -> None:
        """Write a chunk."""
        view = memoryview(data)
        with self._lock, naming(self._path):
            while view and not self._is_closed:
                written = os.pwrite(self._fd, view, start)
                view, start = view[written:], start + written

    def copy(self, place: Place, start: int, length: int) -> bool:
        """Copy a chunk from another file of this host; False if that cannot be done."""
        with self._lock:
            if self._is_closed:
                return True
            if self._source is None or self._source[0] != place:
                self._leave_source()
                self._source = _open_place(place)
            if self._source is None:
                return False
            try:
                return copy_range(self._source[1], self._fd, start, length)
            except OSError:  # of either file: who sends it, or writes it, will say
                return False

    def _leave_source(self) -> None:
        source, self._source = self._source, None
        if source is not None:
            os.close(source[1])

    def close(self, keep: bool) -> None:
        """Close the file, and remove it unless it is to be kept."""
        with self._lock:
            self._is_closed = True
            self._leave_source()
            fd, self._fd = self._fd, -1
            if fd >= 0:
                os.close(fd)
                if not keep:
                    with suppress(OSError):
                        os.unlink(self._path)


def _open_place(place: Place) -> tuple[Place, int] | None:
    try:
        # Not waiting for a writer, should it be a pipe.
        fd = os.open(place.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return None
    found = os.fstat(fd)
    if modes.S_ISREG(found.st_mode) and (found.st_dev, found.st_ino) == place[1:]:
        return place, fd
    os.close(fd)
    return None
