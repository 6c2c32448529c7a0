"""Local files: temporary ones that become final in one step, and sources of uploads."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time

from .errors import LocalStorageFull, TransferError, from_oserror
from .model import Stat
from .names import TemporaryNames, host_tag, is_temporary, local_parent, temporary_host

FOREIGN_AGE_S = 24 * 3600.0  # a temporary file of another node is removed at this age
CHECK_SPACE_BYTES = 1 << 20

_names = TemporaryNames()
_swept: set[str] = set()


class Part:
    """A temporary file beside its final name, made on first use of `fd`.

    Its writer holds a lock on it, which the kernel frees when the writer dies: an unlocked one
    is nobody's, and `sweep` removes it.
    """

    __slots__ = ("_fd", "final", "path")
    is_file = True

    def __init__(self, final: str) -> None:
        self.final = final
        self.path = ""
        self._fd = -1

    @property
    def fd(self) -> int:
        """Its descriptor.

        Raises
        ------
        OSError
        """
        if self._fd < 0:
            self._make()
        return self._fd

    def write(self, data: memoryview, offset: int) -> None:
        """Write bytes at an offset.

        Raises
        ------
        OSError
        """
        fd, done = self.fd, 0
        while done < len(data):
            done += os.pwrite(fd, data[done:], offset + done)

    def publish(self, stat: Stat, fsync: bool) -> None:
        """Give it the mtime of its source and its final name.

        Raises
        ------
        TransferError
            `LocalStorageFull` or another, after which nothing is left of it.
        """
        try:
            os.utime(self.fd, (stat.mtime, stat.mtime))
            if fsync:
                os.fsync(self._fd)
            # Some file systems (NFS, quotas) report a failed write only when a descriptor is
            # closed; another one keeps the lock until the file has its name.
            fd, self._fd = self._fd, os.dup(self._fd)
            os.close(fd)
            os.replace(self.path, self.final)
            self.path = ""
            if fsync:
                _fsync_directory(local_parent(self.final))
        except OSError as error:
            raise from_oserror(error, self.final) from None
        finally:
            self.discard()

    def discard(self) -> None:
        """Remove it; more than once is no error."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self.path:
            with contextlib.suppress(OSError):
                os.unlink(self.path)
            self.path = ""

    def _make(self) -> None:
        directory = local_parent(self.final)
        if directory not in _swept:
            if len(_swept) > 10_000:
                _swept.clear()
            _swept.add(directory)
            sweep(directory)
        for _ in range(100):
            path = os.path.join(directory, _names.next())
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            if _lock(fd) is not False and os.fstat(fd).st_nlink:
                self.path, self._fd = path, fd
                return
            os.close(fd)  # a sweeper was between our two calls and took it for an orphan
        raise OSError(f"cannot keep a temporary file in {directory}")


def sweep(directory: str) -> int:
    """Remove temporary files whose writer is dead; return how many."""
    removed = 0
    try:
        with os.scandir(directory) as entries:
            names = [entry.name for entry in entries if is_temporary(entry.name)]
    except OSError:
        return 0
    for name in names:
        path = os.path.join(directory, name)
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                ours = temporary_host(name) == host_tag()
                old = time.time() - os.fstat(fd).st_mtime > FOREIGN_AGE_S
                locked = _lock(fd) if ours or old else False
                if locked or (locked is None and old):
                    os.unlink(path)
                    removed += 1
            finally:
                os.close(fd)
    return removed


def make_directory(path: str) -> None:
    """Make a directory and its parents; an existing one is no error.

    Raises
    ------
    TransferError
    """
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise from_oserror(error, path) from None


def check_target(final: str, size: int) -> None:
    """Check that a local file of so many bytes may stand under that name.

    Raises
    ------
    LocalStorageFull
        If the file system has less free space than the file needs.
    TransferError
        If a directory stands there.
    """
    if os.path.isdir(final):
        raise TransferError(f"{final}: is a directory; name the file, or end it with /")
    if size < CHECK_SPACE_BYTES:
        return
    try:
        free = os.statvfs(local_parent(final))
    except OSError as error:
        raise from_oserror(error, local_parent(final)) from None
    free_bytes = free.f_bavail * free.f_frsize
    if size > free_bytes:
        raise LocalStorageFull(
            f"{final} needs {size} bytes, but {local_parent(final)} has {free_bytes} free;"
            " free some space and run again"
        )


class Memory:
    """Bytes [offset, offset + length) of a file, kept in memory; a `Sink`."""

    __slots__ = ("_offset", "data", "path")
    is_file = False

    def __init__(self, offset: int, length: int) -> None:
        self.path = "memory"
        self.data = bytearray(length)
        self._offset = offset

    @property
    def fd(self) -> int:
        """There is none."""
        raise OSError(errno.ENOTSUP, "bytes in memory have no descriptor")

    def write(self, data: memoryview, offset: int) -> None:
        """Keep bytes."""
        start = offset - self._offset
        self.data[start : start + len(data)] = data


class LocalSource:
    """A local file to upload, opened on first use of `fd`; the attributes of `Source`."""

    __slots__ = ("_fd", "mtime", "path", "size")

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = -1
        try:
            info = os.stat(path)
        except OSError as error:
            raise from_oserror(error, path) from None
        if (info.st_mode & 0o170000) != 0o100000:
            kind = "a directory" if os.path.isdir(path) else "not a regular file"
            raise TransferError(f"{path}: is {kind}; a file was meant")
        self.size = info.st_size
        self.mtime = int(info.st_mtime)

    @property
    def fd(self) -> int:
        """Its descriptor.

        Raises
        ------
        OSError
        """
        if self._fd < 0:
            self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        return self._fd

    def close(self) -> None:
        """Close it; more than once is no error."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _lock(fd: int) -> bool | None:
    """Take the lock of a file; None where the file system has no locks."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _fsync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
