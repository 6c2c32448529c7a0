"""What the processes of one user on one node share: a private directory, and session slots.

A session holds one of the ``connections`` slots of its server; a slot is a lock that the kernel
frees when its holder dies, and its file is empty until the session works. A process that waits for
a slot holds a shared lock on a second file, so that holders can see that somebody waits. A third
file says how many sessions the server takes, if it was seen to refuse one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
from pathlib import Path
from typing import NamedTuple

from .errors import ConfigurationError
from .names import file_name_for

SWEEP_S = 24 * 3600.0
LIMIT_S = 120.0  # after which a server that takes few sessions is asked for one more, and so on
PAUSE_S = 2.0  # after a refusal, as a server may see the end of a session late; doubles with each
_reserved: dict[str, int] = {}  # slots, for the one who asks next


def state_directory() -> Path:
    """Return the private directory (0700) of this user on this node; make it if missing.

    Raises
    ------
    ConfigurationError
        If there is no place for it, or it exists and is not the user's own.
    """
    return private_directory(Path(node_temporary()) / f"pyremotedata-{user_number()}")


def node_temporary() -> str:
    """Return the node's own temporary folder, ``$TMPDIR`` where that cannot be written to.

    ``$TMPDIR`` is often one per job, and then would not be shared.

    Raises
    ------
    ConfigurationError
        If there is none.
    """
    for place in ("/tmp", "/var/tmp", os.environ.get("TMPDIR", "")):  # noqa: S108 - see below
        if os.path.isabs(place) and os.access(place, os.W_OK | os.X_OK):
            return place
    raise ConfigurationError(
        "neither /tmp nor /var/tmp can be written to; set TMPDIR to a local directory that can"
    )


def user_number() -> int:
    """Return the number of this user on the node.

    In containers that map users to others, several may be root and see one temporary folder.
    """
    number = os.getuid()
    with contextlib.suppress(OSError), open("/proc/self/uid_map") as file:
        for line in file:
            inside, outside, count = map(int, line.split())
            if inside <= number < inside + count:
                return outside + number - inside
    return number


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
        """Take a free slot: a descriptor to close when done.

        None when all are taken, or when the server has just refused a session.
        """
        reserved = _reserved.pop(self._base, None)
        if reserved is not None:
            return reserved
        noted, limit = self._noted(), self.limit
        if (noted and noted.pauses) or (limit < self._count and len(self._held()) >= limit):
            return None
        for number in range(self._count):
            fd = _try_lock(f"{self._base}.{number}", fcntl.LOCK_EX)
            if fd is None:
                continue
            try:
                os.ftruncate(fd, 0)
                too_late = limit < self._count and len(self._held()) > limit
            except BaseException:
                os.close(fd)
                raise
            if too_late:
                os.close(fd)  # another process was as quick
                return None
            self.stop_waiting()
            return fd
        return None

    @property
    def limit(self) -> int:
        """How many sessions this node may have: ``count``, or as many as the server takes."""
        noted = self._noted()
        if noted is None:
            return self._count
        return min(self._count, max(1, noted.sessions) + int(max(0.0, noted.age_s) / LIMIT_S))

    def opened(self, slot: int) -> None:
        """Note that the session of a slot works."""
        with contextlib.suppress(OSError):
            os.pwrite(slot, b"+", 0)
            noted = self._noted()
            if noted is None:
                return
            working = sum(self._held())
            if noted.refusals or working > noted.sessions:
                self._note(max(working, noted.sessions), 0)

    def refused(self) -> bool:
        """Note that the server took no session for a slot, besides those that work.

        Returns
        -------
        bool
            Whether that may be all that it takes: another slot is taken, or was until just now.
            If not, the server has another reason.
        """
        with contextlib.suppress(OSError):
            held, noted = self._held(), self._noted()
            alone = len(held) <= 1
            if noted is None and alone:
                return False
            noted = noted or _Noted(0, 0, 0.0)
            refusals = noted.refusals + (not noted.pauses)  # those that began together are one
            if alone:
                refusals = min(refusals, 2)
            # Where no session works, those that log in are to show how many the server takes.
            self._note(sum(held) or noted.sessions, refusals)
            return refusals == 1 or not alone
        return False

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
        """Whether another process waits for a slot, and would get a session in it."""
        noted = self._noted()
        if noted and noted.pauses:
            return False
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

    def _held(self) -> list[bool]:
        """Return, of each slot that is taken, whether its session works.

        Also of those beyond ours, which processes with other settings have.
        """
        held: list[bool] = []
        number = 0
        while os.path.exists(path := f"{self._base}.{number}"):
            number += 1
            fd = _try_lock(path, fcntl.LOCK_SH)
            if fd is None:
                with contextlib.suppress(FileNotFoundError):  # it was swept away
                    held.append(os.stat(path).st_size > 0)
            else:
                os.close(fd)
        return held

    def _noted(self) -> _Noted | None:
        try:
            with open(f"{self._base}.limit") as file:
                sessions, refusals = map(int, file.read().split())
                age_s = time.time() - os.fstat(file.fileno()).st_mtime
        except (OSError, ValueError):  # mostly there is none
            return None
        # One that bounds nothing any more is forgotten: it would be renewed by each success.
        return _Noted(sessions, refusals, age_s) if age_s < LIMIT_S * self._count else None

    def _note(self, sessions: int, refusals: int) -> None:
        fd = _try_lock(f"{self._base}.limit", fcntl.LOCK_SH)
        if fd is not None:
            os.pwrite(fd, b"%6d %6d" % (sessions, refusals), 0)  # whole for those that read it
            os.close(fd)


class _Noted(NamedTuple):
    """What this node has seen of a server that takes few sessions."""

    sessions: int  # that worked side by side, 0 if none did yet
    refusals: int  # since a login has succeeded
    age_s: float

    @property
    def pauses(self) -> bool:
        """Whether it is too early for another login."""
        pause_s = min(LIMIT_S, PAUSE_S * 2 ** min(self.refusals - 1, 10))
        return self.sessions > 0 and self.refusals > 0 and 0 <= self.age_s < pause_s


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
            is_old = now - path.stat().st_mtime > SWEEP_S
            fd = _try_lock(str(path), fcntl.LOCK_EX) if is_old else None
            if fd is not None:
                path.unlink()
                os.close(fd)


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
