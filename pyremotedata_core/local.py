"""Local files: directories and targets of downloads, memory, sources of uploads."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import tempfile
import weakref
from typing import Self

from .errors import (
    LocalStorageFull,
    RemoteFileNotFound,
    RemotePermissionDenied,
    ServerRefused,
    TransferError,
    from_oserror,
    naming,
)
from .model import Stat, sftp_time
from .names import check_local, local_parent, temporary_name

CHECK_SPACE_BYTES = 1 << 20
# A file from further in the future than this tells of a wrong clock.
_AHEAD_S = 86_400
# A server that answers so has, or tells of, nothing that would be replaced.
NOTHING_TOLD = RemoteFileNotFound, RemotePermissionDenied, ServerRefused


def make_directory(path: str) -> None:
    """Make a directory and its parents; an existing one is no error.

    Raises
    ------
    TransferError
    """
    try:
        os.makedirs(path, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise in_place_of_directory(path) or from_oserror(error, path) from None
    except OSError as error:
        raise from_oserror(error, path) from None


def in_place_of_directory(path: str) -> TransferError | None:
    """Return what to say when something else stands where a directory is to be."""
    while not os.path.lexists(path) and os.path.dirname(path) != path:
        path = os.path.dirname(path)
    if os.path.isdir(path):
        return None
    kind = "a link that leads nowhere" if not os.path.exists(path) else "not a directory"
    return TransferError(
        f"{path}: is {kind}, but one is needed there; move it away, or choose another destination"
    )


def remove_local(path: str | os.PathLike[str]) -> None:
    """Remove a file, or a directory with all that is in it; a missing one is no error.

    A link is removed, not followed.

    Raises
    ------
    TransferError
    """
    with naming(path):
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)


def tells_case_apart(directory: str, *, look_only: bool) -> bool:
    """Whether a directory can hold two names that differ in upper and lower case only.

    With ``look_only`` nothing is written, and what holds of its own name is said of those in it.
    """
    if look_only:
        parent, name = os.path.split(directory)
        twin = os.path.join(parent, name.swapcase())
        return (
            twin == directory or not os.path.exists(twin) or not os.path.samefile(twin, directory)
        )
    name = temporary_name()
    path = os.path.join(directory, name)
    with contextlib.suppress(OSError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        try:
            return not os.path.lexists(os.path.join(directory, name.upper()))
        finally:
            os.unlink(path)
    return True  # nobody knows


def check_target(final: str, size: int) -> None:
    """Check that a local file of so many bytes may stand under that name.

    Raises
    ------
    LocalStorageFull
        If the file system has less free space than the file needs.
    TransferError
        If a directory stands there, or a device or pipe, which a rename would replace.
    """
    mode = stat.S_IFREG
    with contextlib.suppress(OSError):
        mode = os.stat(check_local(final)).st_mode
    if stat.S_ISDIR(mode):
        raise TransferError(f"{final}: is a directory; name the file, or end it with /")
    # /dev/stdout leads to a regular file where a shell has redirected it.
    if not stat.S_ISREG(mode) or os.path.dirname(final) == "/dev":
        raise TransferError(f"{final}: is a device or pipe; name a file to make or replace")
    if size < CHECK_SPACE_BYTES:
        return
    with naming(local_parent(final)):
        free = os.statvfs(local_parent(final))
    free_bytes = free.f_bavail * free.f_frsize
    if size > free_bytes:
        raise LocalStorageFull(
            f"{final} needs {size} bytes, but {local_parent(final)} has {free_bytes} free;"
            " free some space and run again"
        )


def date_after(path: str | os.PathLike[str], replaced: Stat) -> None:
    """Give a local file a later mtime than the remote file has that it is to replace.

    Size and mtime tell contents apart, in caches and to who reads meanwhile: of one size, and
    written within one second, the new one would be taken for the old one.

    Raises
    ------
    TransferError
    """
    with naming(path):
        info = os.stat(path)
        if int(info.st_mtime) <= replaced.mtime < info.st_mtime + _AHEAD_S:
            os.utime(path, (info.st_atime, replaced.mtime + 1))


class OwnDirectory:
    """A new temporary directory, which goes when it is closed, or else with this object.

    A forked child leaves it to its parent.

    Raises
    ------
    TransferError
        If it cannot be made.
    """

    def __init__(self) -> None:
        with naming(tempfile.gettempdir()):
            self.path = tempfile.mkdtemp(prefix="pyremotedata-")
        self.owner = os.getpid()
        self.close = weakref.finalize(self, _remove_own, self.path, self.owner)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def inherited(self) -> bool:
        """Whether this is a forked child."""
        return os.getpid() != self.owner


def _remove_own(path: str, owner: int) -> None:
    if os.getpid() == owner:
        shutil.rmtree(path, ignore_errors=True)


class _NoFile:
    """What a `Sink` has that is no file."""

    __slots__ = ()
    is_file = False
    path = final = "memory"

    @property
    def fd(self) -> int:
        """There is none."""
        raise OSError(errno.ENOTSUP, "what is in memory has no descriptor")


class Memory(_NoFile):
    """Bytes [offset, offset + length) of a file, kept in memory; a `Sink`."""

    __slots__ = ("_offset", "data")

    def __init__(self, offset: int, length: int) -> None:
        self.data = bytearray(length)
        self._offset = offset

    def write(self, data: memoryview, offset: int) -> None:
        """Keep bytes."""
        start = offset - self._offset
        self.data[start : start + len(data)] = data


class Compared(_NoFile):
    """Takes what is read from a server and compares it with a local file; a `Sink`."""

    __slots__ = ("_fd", "same")
    path = final = "the comparison"

    def __init__(self, fd: int) -> None:
        self.same = True
        self._fd = fd

    def write(self, data: memoryview, offset: int) -> None:
        """Compare bytes."""
        self.same = self.same and os.pread(self._fd, len(data), offset) == data


class LocalSource:
    """A local file to upload, opened on first use of `fd`; the attributes of `Source`."""

    __slots__ = ("_fd", "mode", "mtime", "mtime_ns", "path", "size")

    def __init__(self, path: str, modes: bool = False) -> None:
        self.path = path
        self._fd = -1
        try:
            info = os.stat(path)
        except OSError as error:
            raise from_oserror(error, path) from None
        if not stat.S_ISREG(info.st_mode):
            kind = "a directory" if os.path.isdir(path) else "not a regular file"
            raise TransferError(f"{path}: is {kind}; a file was meant")
        self.size = info.st_size
        self.mtime = sftp_time(info.st_mtime)
        self.mtime_ns = info.st_mtime_ns
        self.mode = info.st_mode & 0o777 if modes else None

    @property
    def fd(self) -> int:
        """Its descriptor.

        Raises
        ------
        OSError
        """
        if self._fd < 0:
            # A pipe that has taken its place would wait for a writer.
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                os.close(fd)
                raise OSError(errno.EINVAL, "is no longer a regular file")
            self._fd = fd
        return self._fd

    def close(self) -> None:
        """Close it; more than once is no error."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class SmallFileSource:
    """A local file of so many bytes at the most, read in one piece; a `SmallSource`."""

    __slots__ = ("_modes", "_most", "_path", "mode", "mtime", "size")

    def __init__(self, path: str, most: int, modes: bool) -> None:
        self._path, self._most, self._modes = path, most, modes
        self.size = self.mtime = 0
        self.mode: int | None = None

    def read(self) -> bytes:
        """Return what it holds at one moment.

        Raises
        ------
        TransferError
            If it cannot be read, is no regular file or too large, or changes meanwhile.
        """
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                before = os.fstat(fd)
                fits = stat.S_ISREG(before.st_mode) and before.st_size <= self._most
                data = os.read(fd, before.st_size + 1) if fits else b""
                after = os.fstat(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise from_oserror(error, self._path) from None
        same = (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
        if not fits or not same or len(data) != before.st_size:
            raise TransferError(f"{self._path}: changed while it was read", retryable=True)
        self.size, self.mtime = before.st_size, sftp_time(before.st_mtime)
        self.mode = before.st_mode & 0o777 if self._modes else None
        return data
