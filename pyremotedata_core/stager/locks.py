"""What a process holds of a node's cache: locks that the kernel frees when it dies."""

from __future__ import annotations

import fcntl
import os
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from ..model import Stat

# Descriptors that no forked child keeps.
_own: set[int] = set()
# A lease may be dropped in the midst of opening: the garbage collector comes at any moment.
_opening = threading.RLock()
_MOMENT_S = 1.0
# What waits for a lock that is held for moments only, and since when.
_waits: dict[Path, tuple[threading.Thread, float]] = {}


@dataclass(slots=True, eq=False)
class Pin:
    """A shared lock that keeps one entry from being evicted, held by this process.

    Closing the descriptor is what releases it (never ``LOCK_UN``): a child that is forked after
    `lend` shares the lock, and keeps it until it closes its own copy.

    ``is_first`` says that the cache had nothing of the entry before, not even a part.
    """

    _fd: int
    _side: Path
    path: Path
    is_first: bool = False

    def keeps(self, stat: Stat) -> bool:
        """Whether it holds a whole entry in place that nobody has written to."""
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            return False
        # A file system that cannot hold its time holds an earlier one.
        unchanged = found.st_size == stat.size and found.st_mtime <= stat.mtime
        return unchanged and is_at(self._fd, self._side)

    def lend(self) -> None:
        """Let forked children hold it, too: somebody gets a lease."""
        with _opening:
            _own.discard(self._fd)

    def release(self) -> None:
        """Let the entry go; a second call does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with suppress(OSError):
                os.utime(fd)
            close_own(fd)


@dataclass(slots=True, eq=False)
class TransferLock:
    """The exclusive right to bring one entry, held by this process."""

    _fd: int
    _path: Path

    def beat(self) -> None:
        """Show those who wait that the holder lives."""
        with suppress(OSError):
            os.utime(self._fd)

    def release(self) -> None:
        """Give the right back; a second call does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with suppress(OSError):
                if is_at(fd, self._path):
                    self._path.unlink()
            close_own(fd)


def open_own(path: Path, flags: int = os.O_CREAT) -> int:
    """Open a file that is to be locked: no forked child keeps it open."""
    with _opening:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | flags, 0o600)
        _own.add(fd)
    return fd


def close_own(fd: int) -> None:
    """Close what `open_own` has opened, which ends the lock."""
    with _opening:
        _own.discard(fd)
        os.close(fd)


def lock_soon(fd: int, path: Path, within_s: float) -> bool:
    """Lock a file that others lock for moments only; False if one has kept it for so long."""
    while True:
        with suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        # A lock has no deadline, a thread has. One is enough, however many callers come.
        waiting, since = _waits.get(path, (None, 0.0))
        if waiting is None or not waiting.is_alive():
            with _opening:
                copy = os.dup(fd)  # the caller may close its own, and another file get the number
                _own.add(copy)
            waiting, since = threading.Thread(target=_lock, args=(copy,), daemon=True), monotonic()
            waiting.start()
            _waits[path] = waiting, since
        # It may have got the lock just now.
        waiting.join(max(_MOMENT_S, since + within_s - monotonic()))
        if waiting.is_alive():
            return False


def _lock(copy: int) -> None:
    with suppress(OSError):
        fcntl.flock(copy, fcntl.LOCK_EX)
    close_own(copy)


def is_at(fd: int, path: Path) -> bool:
    """Whether an open file still is the one of that name.

    Its count of links does not tell on NFS, which renames what is deleted while it is open.
    """
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except FileNotFoundError:
        return False


def holder_of(path: Path) -> str:
    """Return words that name the process which holds a file's lock."""
    try:
        inode = os.stat(path).st_ino
        # 1: FLOCK  ADVISORY  WRITE 4711 fe:00:1234567 0 EOF
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()
            if fields[1] == "FLOCK" and fields[5].endswith(f":{inode}"):
                return f"process {fields[4]}"
    except (OSError, IndexError):
        pass
    return "another process"


def _forget_in_child() -> None:
    for fd in _own:
        with suppress(OSError):
            os.close(fd)
    _own.clear()
    _opening.release()


os.register_at_fork(
    before=_opening.acquire, after_in_parent=_opening.release, after_in_child=_forget_in_child
)
