"""What the processes of one user on one node share: a private directory, and session slots.

A session holds one of the ``connections`` slots of its server; a slot is a lock that the kernel
frees when its holder dies. A process that waits for a slot holds a shared lock on a second file,
so that holders can see that somebody waits.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
from pathlib import Path

from .errors import ConfigurationError
from .names import file_name_for

SWEEP_S = 24 * 3600.0
_reserved: dict[str, int] = {}  # slots, for the one who asks next


def state_directory() -> Path:
    """Return the private directory (0700) of this user on this node; make it if missing.

    It lies in the node's own temporary folder: ``$TMPDIR`` is often one per job, and then would
    not be shared.

    Raises
    ------
    ConfigurationError
        If it exists and is not the user's own.
    """
    for base in ("/tmp", "/var/tmp"):  # noqa: S108 - ownership and mode are checked below
        if os.access(base, os.W_OK | os.X_OK):
            break
    return private_directory(Path(base) / f"pyremotedata-{os.getuid()}")


def private_directory(path: Path) -> Path:
    """Make a directory with mode 0700, or check that an existing one is ours alone.

    Raises
    ------
    ConfigurationError
        If it is a link, or belongs to, or may be written by, somebody else.
    """
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    info = path.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid():
        raise ConfigurationError(
            f"{path} is not a directory of yours; somebody else made it: remove it"
        )
    if info.st_mode & 0o077:
        path.chmod(0o700)
    return path


class SessionSlots:
    """The slots of one server on this node. Not thread-safe: it belongs to the loop's thread."""

    def __init__(self, server: str, count: int) -> None:
        directory = private_directory(state_directory() / "slots")
        _sweep(directory)
        self._base = str(directory / file_name_for(server))
        self._count = count
        self._waiting: int | None = None

    def reserve(self) -> bool:
        """Take a slot for this process's next `acquire`, if one is free."""
        fd = self.acquire()
        if fd is not None:
            _reserved[self._base] = fd
        return fd is not None

    def acquire(self) -> int | None:
        """Take a free slot: a descriptor to close when done, or None when all are taken."""
        reserved = _reserved.pop(self._base, None)
        if reserved is not None:
            return reserved
        for number in range(self._count):
            fd = _try_lock(f"{self._base}.{number}", fcntl.LOCK_EX)
            if fd is not None:
                self.stop_waiting()
                return fd
        return None

    def wait(self) -> None:
        """Show the holders that this process waits."""
        if self._waiting is None:
            with contextlib.suppress(OSError):
                self._waiting = _try_lock(f"{self._base}.wait", fcntl.LOCK_SH)

    def stop_waiting(self) -> None:
        """No longer wait."""
        if self._waiting is not None:
            os.close(self._waiting)
            self._waiting = None

    def others_wait(self) -> bool:
        """Whether another process waits for a slot."""
        if self._waiting is not None:
            return True
        try:
            fd = _try_lock(f"{self._base}.wait", fcntl.LOCK_EX)
        except OSError:
            return False  # no descriptor is left, or no space: not a matter of politeness
        if fd is None:
            return True
        os.close(fd)
        return False


def _sweep(directory: Path) -> None:
    """Remove the lock files of servers that nobody has asked for lately; at most once a day."""
    now = time.time()
    stamp = directory / "swept"
    with contextlib.suppress(FileNotFoundError):
        if now - stamp.stat().st_mtime < SWEEP_S:
            return
    stamp.touch(0o600)
    for path in directory.iterdir():
        with contextlib.suppress(OSError):
            fd = _try_lock(str(path), fcntl.LOCK_EX) if _is_old(path, now) else None
            if fd is not None:
                path.unlink()
                os.close(fd)


def _is_old(path: Path, now: float) -> bool:
    return now - path.stat().st_mtime > SWEEP_S


def _try_lock(path: str, kind: int) -> int | None:
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
            if os.fstat(fd).st_nlink:
                return fd
        except BlockingIOError:
            os.close(fd)
            return None
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # swept away between our two calls
