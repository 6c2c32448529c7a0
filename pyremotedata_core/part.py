"""Part: a local temporary file that becomes final in one step, or is continued later.

Of a large download the parts that have arrived are listed in a second file, the record. It tells
the source, its size and mtime: a later download of the same source to the same final name goes on
where this one ended, whatever ended it. The record also names the boot of this machine, because
after a power cut what it lists may not have reached the disk.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from functools import cache
from typing import Any, BinaryIO

from .errors import from_oserror
from .model import Stat
from .names import (
    PGET_STATUS,
    host_tag,
    is_temporary,
    local_parent,
    record_name,
    temporary_host,
    temporary_name,
)

FOREIGN_AGE_S = 24 * 3600.0  # a temporary file of another node is removed at this age
KEEP_S = 24 * 3600.0  # what may be continued is kept for so long

_swept: set[str] = set()
_kept: dict[str, str] = {}  # final name to the part that may be continued


class Part:
    """A temporary file beside its final name, made on first use of `fd`.

    Its writer holds a lock on it, which the kernel frees when the writer dies: an unlocked one
    is nobody's, and `sweep` removes it, or keeps it for the next call of `resume`.
    """

    __slots__ = ("_fd", "_noted", "_record", "final", "path")
    is_file = True

    def __init__(self, final: str) -> None:
        self.final = final
        self.path = ""
        self._fd = -1
        self._record = -1
        self._noted = False

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

    def resume(self, source: str, stat: Stat, segment_bytes: int) -> set[int]:
        """Begin, where possible with what an earlier download of the same source has left.

        From here on `note` records what has arrived.

        Parameters
        ----------
        source : str
            The URL.
        stat : Stat
            What the source is now; a part of anything else is removed.
        segment_bytes : int
            What `note` counts in.

        Returns
        -------
        set of int
            The segments that are there.

        Raises
        ------
        TransferError
            If no file can be made.
        """
        header = {
            "name": os.path.basename(self.final),
            "source": source,
            "size": stat.size,
            "mtime": stat.mtime,
            "segment_bytes": segment_bytes,
            "boot": boot(),
        }
        try:
            self._sweep_once()
            done = self._adopt(header)
            if self._fd < 0:
                self._make()
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                self._record = os.open(record_name(self.path), flags, 0o600)
                os.write(self._record, json.dumps(header).encode() + b"\n")
        except OSError as error:
            self.discard()
            raise from_oserror(error, self.final) from None
        self._noted = bool(done)
        return done

    def note(self, segment: int) -> None:
        """Record that a segment is there."""
        if self._record >= 0:
            self._noted = True
            with contextlib.suppress(OSError):  # then it only has to be fetched once more
                os.write(self._record, _line(segment) + b"\n")

    def publish(self, stat: Stat, fsync: bool, *, modes: bool = False) -> None:
        """Give it the mtime of its source, with ``modes`` its permissions, and its final name.

        Raises
        ------
        TransferError
            `LocalStorageFull` or another, after which nothing is left of it.
        """
        try:
            os.utime(self.fd, (stat.mtime, stat.mtime))
            if modes and stat.mode is not None:
                os.fchmod(self._fd, stat.mode & 0o777)
            if fsync:
                os.fsync(self._fd)
            # Some file systems (NFS, quotas) report a failed write only when a descriptor is
            # closed; another one keeps the lock until the file has its name.
            fd, self._fd = self._fd, os.dup(self._fd)
            os.close(fd)
            os.replace(self.path, self.final)
            self._remove_record()
            self.path = ""
            if fsync:
                _fsync_directory(local_parent(self.final))
        except OSError as error:
            raise from_oserror(error, self.final) from None
        finally:
            self.discard()

    def keep(self) -> None:
        """Leave it for a later `resume`, if a record tells of anything; else discard it."""
        if self._record >= 0 and self._noted and self._close():
            _keep(self.final, self.path)
            self.path = ""
        self.discard()

    def discard(self) -> None:
        """Remove it; more than once is no error."""
        self._close()
        if self.path:
            _remove(self.path)
            _remove(self.path + PGET_STATUS)
            self._remove_record()
            self.path = ""
        _closes(self._record)
        self._record = -1

    def _close(self) -> bool:
        """Close it, which frees its lock; return whether all that was written is there."""
        fd, self._fd = self._fd, -1
        return _closes(fd)

    def _remove_record(self) -> None:
        if self._record >= 0:
            _remove(record_name(self.path))

    def _make(self) -> None:
        directory = self._sweep_once()
        kept = _kept.pop(self.final, None)
        if kept:  # of a source that is no longer the same
            _remove_free(kept)
        for _ in range(100):
            path = f"{directory}/{temporary_name()}"
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            if _lock(fd) is not False and os.fstat(fd).st_nlink:
                self.path, self._fd = path, fd
                return
            os.close(fd)  # a sweeper was between our two calls and took it for an orphan
        raise OSError(f"cannot keep a temporary file in {directory}")

    def _sweep_once(self) -> str:
        directory = local_parent(self.final)
        if directory not in _swept:
            if len(_swept) > 10_000:
                _swept.clear()
            _swept.add(directory)
            sweep(directory)
        return directory

    def _adopt(self, header: dict[str, Any]) -> set[int]:
        kept = _kept.get(self.final)
        fd = _take(kept) if kept else None
        if kept is None or fd is None:
            return set()
        try:
            with open(record_name(kept), "rb") as file:
                had, *lines = file.read().split(b"\n")
            if json.loads(had) != header:
                raise ValueError("of something else")
            self._record = os.open(record_name(kept), os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            count = -(-header["size"] // header["segment_bytes"])
            told = set(lines[:-1])  # the last one is empty, or was broken off
            done = {number for number in range(count) if _line(number) in told}
        except (OSError, ValueError):
            os.close(fd)  # `_make` removes it
            return set()
        del _kept[self.final]
        self.path, self._fd = kept, fd
        return done


def sweep(directory: str) -> None:
    """Remove temporary files whose writer is dead; what may be continued stays for a day."""
    try:
        with os.scandir(directory) as entries:
            names = {entry.name for entry in entries if is_temporary(entry.name)}
    except OSError:
        return
    kept = []
    for name in names:
        path = os.path.join(directory, name)
        if name.endswith(".done"):
            if name.removesuffix(".done") + ".part" not in names:
                _remove(path)
            continue
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                ours = temporary_host(name) == host_tag()
                age_s = time.time() - os.fstat(fd).st_mtime
                locked = _lock(fd) if ours or age_s > FOREIGN_AGE_S else False
                if locked and ours and age_s < KEEP_S and (final := _final_of(path)):
                    kept.append((final, path))
                elif locked or (locked is None and age_s > FOREIGN_AGE_S):
                    os.unlink(path)
                    _remove(record_name(path))
            finally:
                os.close(fd)
    for final, path in kept:
        _keep(final, path)


def _keep(final: str, path: str) -> None:
    """Have the next `resume` of a file go on with a part, or with one that has more of it."""
    other = _kept.get(final, path)
    if _told_bytes(other) > _told_bytes(path):
        path, other = other, path
    _kept[final] = path
    if other != path:  # two downloads of the file were broken off
        _remove_free(other)


def _told_bytes(path: str) -> int:
    """Return the size of a part's record, which grows with what has arrived."""
    try:
        return os.stat(record_name(path)).st_size
    except OSError:
        return -1


def may_go_on(directory: str, *, for_s: float = 0.0) -> bool:
    """Whether a directory holds a part that a later `resume` may go on with.

    While its writer dies, waits ``for_s`` seconds for that; then it is one nevertheless.
    """
    for path, _ in _left(directory):
        if for_s:
            _wait_until_free(path, for_s)
        return True
    return False


def files_to_go_on(directory: str) -> set[str]:
    """Return the final paths in a directory of which it holds such a part."""
    return {final for _, final in _left(directory)}


def _left(directory: str) -> Iterator[tuple[str, str]]:
    """Yield the parts that a later `resume` may go on with, each with its final path."""
    try:
        names = os.listdir(directory)
    except OSError:
        return
    for name in names:
        path = os.path.join(directory, name)
        if not is_temporary(name) or not name.endswith(".part") or not (final := _final_of(path)):
            continue
        with contextlib.suppress(OSError):
            if time.time() - os.stat(path).st_mtime <= KEEP_S:
                yield path, final


def _wait_until_free(path: str, for_s: float) -> None:
    """Wait until nobody writes a part any more, for some seconds at the most."""

    def lock() -> None:
        with contextlib.suppress(OSError), open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)

    waiting = threading.Thread(target=lock, daemon=True)  # a lock has no deadline, a thread has
    waiting.start()
    waiting.join(for_s)


def open_arrived(final: str, stat: Stat, start: int, length: int) -> BinaryIO | None:
    """Open a large file that is on its way to its final name; None if that piece is not there.

    For whoever is not its writer: another thread, or another process of the same user.

    Parameters
    ----------
    final : str
        Its final name, in a directory in which few files are on their way.
    stat : Stat
        What its source is.
    start, length : int
        The piece, in bytes; within the file.

    Raises
    ------
    OSError
    """
    directory, name = os.path.split(final)
    for temporary in os.listdir(directory or "."):
        if not (is_temporary(temporary) and temporary.endswith(".part")):
            continue
        path = os.path.join(directory, temporary)
        try:
            with open(record_name(path), "rb") as file:
                header, *lines = file.read().split(b"\n")
            told = json.loads(header)
            if (told["name"], told["size"], told["mtime"]) != (name, stat.size, stat.mtime):
                continue
            segment = told["segment_bytes"]
            needed = range(start // segment, -(-(start + length) // segment))
            if set(map(_line, needed)) <= set(lines[:-1]):
                return open(path, "rb", buffering=0)
        except (FileNotFoundError, ValueError, KeyError):
            continue  # it has just been published, or given up, or begins
    return None


@cache
def boot() -> str:
    """Return what is different after every start of this machine, empty where nothing tells."""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["sysctl", "-n", "kern.bootsessionuuid"]
        return subprocess.run(command, capture_output=True, text=True, timeout=5).stdout.strip()
    return ""


def _line(segment: int) -> bytes:
    """Return what a record says of a segment.

    It begins with a sign: what a full disk has kept of one line makes no number with the next.
    """
    return b"+%d" % segment


def _final_of(path: str) -> str | None:
    """Return the final name of a part that may be continued."""
    try:
        with open(record_name(path), "rb") as file:
            header = json.loads(file.readline())
            holds_anything = file.readline().endswith(b"\n")
        if holds_anything and header["boot"] and header["boot"] == boot():
            return os.path.join(os.path.dirname(path), header["name"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def _take(path: str) -> int | None:
    """Open and lock a part that nobody writes."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    if _lock(fd) and os.fstat(fd).st_nlink:
        return fd
    os.close(fd)
    return None


def _remove_free(path: str) -> None:
    """Remove a part that nobody writes, with its record."""
    if (fd := _take(path)) is not None:
        _remove(path)
        _remove(record_name(path))
        os.close(fd)


def _closes(fd: int) -> bool:
    """Close a descriptor, -1 for none; return whether all that was written is there."""
    try:
        if fd >= 0:
            os.close(fd)
    except OSError:  # see `Part.publish`
        return False
    return True


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)


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
