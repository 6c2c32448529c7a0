"""The node's cache on disk: places, locks, pins and the byte budget. It knows no network.

Below one private directory per user and node::

    files/KEY/NAME        a staged file, read-only, under its own name (programs go by suffixes)
    pins/KEY              its side file: whoever uses the file holds a shared flock on it; its
                          mtime is the last use, its content says what the file is
    locks/KEY             whoever holds its exclusive flock is bringing KEY
    incoming/KEY.TOKEN/   a file on its way in, owned by the holder of locks/KEY; without one, what
                          has come of a large file until its transfer was broken off
    trash/                files on their way out, anybody's to delete
    usage                 the bytes of all pins; exclusive flock while it changes
    boot                  the start of the machine in which the cache was last opened

The kernel frees the locks of a process that dies, however it dies, so no state needs a clean end.
A lock file is deleted by its holder; who gets a lock on a deleted file looks again.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import ConfigurationError, LocalStorageFull, TransferTimeout
from ..model import Stat
from ..names import is_temporary
from ..part import boot, may_go_on
from .locks import Pin, TransferLock, close_own, holder_of, is_at, lock_soon, open_own
from .place import CHANGE_PLACE

_DIRECTORIES = ("files", "pins", "locks", "incoming", "trash")
# The process that moves the bytes outlives a killed one for a moment.
_DYING_S = 1.0
# The kernel writes to the disk within half a minute, if the disk keeps pace.
_UNWRITTEN_S = 120.0
# With many entries, a scan for victims frees somewhat more than asked, so that the next ones
# need no scan.
_MANY_ENTRIES = 500


class NoRoom(LocalStorageFull):
    """The budget, or the disk, is taken by files that are in use now."""


class NodeCache:
    """One node's cache directory, as seen by one process.

    Parameters
    ----------
    root : Path
        The directory, from `place.cache_root`.
    budget_bytes : int
        What all entries together may take.
    timeout_s : float
        How long another process may keep what it is to keep for moments only.

    Notes
    -----
    Thread-safe. Every method blocks on the local disk for a moment; only `wait_lock` waits for
    another process's transfer. Local errors pass through as `OSError`.
    """

    def __init__(self, root: Path, budget_bytes: int, timeout_s: float = 60.0) -> None:
        self.root = root
        self.budget_bytes = budget_bytes
        self._timeout_s = timeout_s
        self.make_directories()
        self._check_locks()
        self.sweep()

    # --- looking up -------------------------------------------------------------------------

    def find(self, key: str, name: str, stat: Stat) -> Pin | None:
        """Return a pin on a whole entry, None where there is none."""
        fd = self._open_pin(key)
        if fd is None:
            return None
        pin = Pin(fd, self.root / "pins" / key, self.root / "files" / key / name)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            if pin.keeps(stat):
                os.utime(fd)
                return pin
        except BlockingIOError:
            pass  # it is being evicted
        except OSError:
            close_own(fd)
            raise
        close_own(fd)
        return None

    # --- bringing one in --------------------------------------------------------------------

    def try_lock(self, key: str) -> TransferLock | None:
        """Return the right to bring an entry, None while another holds it."""
        return self._lock(key, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def wait_lock(self, key: str) -> TransferLock | None:
        """Wait for the holder to end; return the right, or None when it must be asked for anew.

        Blocks for as long as the holder lives: call it where waiting hurts nobody.
        """
        return self._lock(key, fcntl.LOCK_EX)

    def last_sign_of(self, key: str) -> int:
        """Return when the holder of an entry's lock last showed life, 0 when there is none."""
        try:
            return os.stat(self.root / "locks" / key).st_mtime_ns
        except FileNotFoundError:
            return 0

    def holder_of(self, key: str) -> str:
        """Return words that name the process which holds an entry's lock."""
        return holder_of(self.root / "locks" / key)

    def no_life(self, who: str, url: str = "") -> TransferTimeout:
        """Return the error for a process that holds a lock and does nothing."""
        return TransferTimeout(
            f"{who} on this node holds a lock in {self.root} and has shown no life for"
            f" {self._timeout_s:g} s; end it, or let it go on",
            url,
        )

    def reserve(
        self, key: str, name: str, url: str, stat: Stat, *, is_on_disk: bool = False
    ) -> Pin:
        """Make room for an entry and pin it. The caller holds its lock.

        What the file is (``url``, ``stat``) is noted for people, see `inventory`.
        With ``is_on_disk`` the file already lies in `incoming`: no free space is needed.

        Raises
        ------
        LocalStorageFull
            If the file exceeds the whole budget, or what the disk could ever give.
        NoRoom
            If files in use leave too little room.
        """
        size = key_bytes(key)
        if size > self.budget_bytes:
            raise LocalStorageFull(
                f"a file of {size} bytes exceeds the cache's budget of {self.budget_bytes} bytes;"
                " raise PYREMOTEDATA_CACHE_BYTES (cache_bytes)",
            )
        try:
            with self._usage() as usage:
                used = usage.read()
                here = size if is_on_disk else 0
                free, coming = _free_bytes(self.root) + here, 0
                if free - size < used:  # no more than that can be on its way
                    coming = self._still_to_come(key, free - size)
                    # What arrives meanwhile counts twice rather than not at all.
                    free = _free_bytes(self.root) + here
                # What is left of a transfer that was broken off counts already.
                more = 0 if (self.root / "pins" / key).exists() else size
                preferred = preferred_bytes(self.budget_bytes, used + free)
                if used + more > preferred or free - size < coming:
                    used = self._evict(
                        self.budget_bytes - more, preferred - more, size - free, coming
                    )
                    usage.write(used)
                record = {"url": url, "size": stat.size, "mtime": stat.mtime}
                pin = self._create_pin(key, name, json.dumps(record).encode())
                if pin.is_first:
                    usage.write(used + size)
        finally:
            self._empty_trash()
        return pin

    def make_room(self, size: int) -> bool:
        """Evict ``size`` bytes of files not in use; return whether there were as many."""
        try:
            with self._usage() as usage:
                usage.write(self._evict(self.budget_bytes, self.budget_bytes, size))
        except LocalStorageFull:
            return False
        finally:
            self._empty_trash()
        return True

    def incoming(self, key: str, *, is_first: bool = False) -> Path:
        """Return a directory for a file on its way in. The caller holds the entry's lock.

        It holds what has come of the file until a former transfer was broken off; with
        ``is_first`` there was none.
        """
        path = self.root / "incoming" / f"{key}.{secrets.token_hex(8)}"
        for left in () if is_first else self._left_of(key):
            if not path.exists() and may_go_on(str(left), for_s=_DYING_S):
                for name in os.listdir(left):
                    if not is_temporary(name):  # whole or not, nobody has published it
                        os.unlink(left / name)
                os.rename(left, path)
            else:
                shutil.rmtree(left, ignore_errors=True)
        path.mkdir(mode=0o700, exist_ok=True)
        return path

    def publish(self, key: str, incoming: Path, name: str) -> None:
        """Make an incoming file the entry, read-only. The caller holds its lock and a pin."""
        os.chmod(incoming / name, 0o444)
        for other in os.listdir(incoming):
            # Of a broken-off transfer; another node gave the file.
            if is_temporary(other) and other != name:
                os.unlink(incoming / other)
        final = self.root / "files" / key
        if final.exists():  # what is there is not whole, or the caller would have found it
            self._throw_away(final)
        os.rename(incoming, final)
        self._empty_trash()

    def withdraw(self, key: str, pin: Pin, incoming: Path | None) -> None:
        """Undo `reserve` and `incoming`. The caller holds the entry's lock.

        What a later transfer may go on with stays, counts, and goes when others need the room.
        """
        if incoming is not None:
            if may_go_on(str(incoming)):
                pin.release()
                return
            shutil.rmtree(incoming, ignore_errors=True)
        try:
            with self._usage() as usage, suppress(FileNotFoundError):
                os.unlink(self.root / "pins" / key)
                usage.write(usage.read() - key_bytes(key))
        finally:
            pin.release()

    # --- for people (see `inventory`) -------------------------------------------------------

    def keys_by_use(self) -> list[tuple[int, str]]:
        """Return (time of last use in ns, key) of every entry, the oldest first."""
        return sorted((used, key) for used, _, key in self._entries())

    def is_in_use(self, key: str) -> bool:
        """Whether a process pins the entry, or brings it now."""
        lock = self.try_lock(key)
        if lock is None:
            return True
        lock.release()
        return self._is_pinned(key)

    def trim(self, target_bytes: int) -> list[str]:
        """Evict what is not in use, least recently used first, down to so many bytes.

        Returns the keys that went.
        """
        gone = []
        with self._usage() as usage:
            entries = sorted(self._entries())
            used = sum(size for _, size, _ in entries)
            for _, size, key in entries:
                if used <= target_bytes:
                    break
                if self._remove(key):
                    gone.append(key)
                    used -= size
            usage.write(used)
        self._empty_trash()
        return gone

    def discard(self, key: str) -> bool:
        """Remove one entry unless it is in use; return whether it went."""
        with self._usage() as usage:
            went = self._remove(key)
            usage.write(sum(size for _, size, _ in self._entries()))
        self._empty_trash()
        return went

    # --- keeping house ----------------------------------------------------------------------

    def sweep(self) -> None:
        """Remove what killed processes left behind, and count anew."""
        incoming = {entry.rpartition(".")[0] for entry in os.listdir(self.root / "incoming")}
        for key in incoming.union(os.listdir(self.root / "locks")):
            lock = self.try_lock(key)
            if lock is None:
                continue  # its holder lives
            try:
                kept = (self.root / "files" / key).exists()
                for path in self._left_of(key):
                    if kept or not (self.root / "pins" / key).exists() or not may_go_on(str(path)):
                        shutil.rmtree(path, ignore_errors=True)
                    else:
                        kept = True
                if not kept:
                    self._remove(key)
            finally:
                lock.release()
        with self._usage() as usage:
            self._distrust_newest()
            pins = os.listdir(self.root / "pins")
            for key in set(os.listdir(self.root / "files")).difference(pins):
                self._throw_away(self.root / "files" / key)  # something deleted its side file
            usage.write(sum(map(key_bytes, pins)))
        self._empty_trash()

    def make_directories(self) -> None:
        """Make those of its directories that are missing, which somebody may have deleted."""
        for name in ("", *_DIRECTORIES):
            (self.root / name).mkdir(mode=0o700, exist_ok=True)

    def _distrust_newest(self) -> None:
        """Remove what a power cut may have left with its size and time, but zeros for bytes.

        That is what came in last before the machine was started anew.
        """
        mark = self.root / "boot"
        if not boot() or (mark.exists() and mark.read_text() == boot()):
            return
        if mark.exists():  # else the cache is new, or somebody has deleted it since
            came: dict[str, float] = {}
            for path in (self.root / "files").glob("*/*"):
                with suppress(FileNotFoundError):
                    came[path.parent.name] = path.stat().st_ctime
            last = max([*came.values(), (self.root / "usage").stat().st_mtime])
            for key, when in came.items():
                if when > last - _UNWRITTEN_S:
                    self._remove(key)
        with suppress(OSError):  # on a full disk; then it is for the next one
            mark.write_text(boot())

    def _check_locks(self) -> None:
        """Refuse a file system on which locks do not lock."""
        try:
            with self._usage(), open(self.root / "usage", "r+") as other:
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        except TransferTimeout:
            raise
        except OSError as error:
            raise ConfigurationError(
                f"{self.root} cannot hold the cache ({error.strerror}); {CHANGE_PLACE}"
            ) from None
        raise ConfigurationError(f"file locks do not hold in {self.root}; {CHANGE_PLACE}")

    def _lock(self, key: str, how: int) -> TransferLock | None:
        path = self.root / "locks" / key
        while True:
            fd = self._open(path)
            try:
                fcntl.flock(fd, how)
                if is_at(fd, path):
                    os.utime(fd)
                    return TransferLock(fd, path)
            except BlockingIOError:
                close_own(fd)
                return None
            except BaseException:
                close_own(fd)
                raise
            close_own(fd)  # its holder has finished meanwhile
            if not how & fcntl.LOCK_NB:
                return None

    def _open(self, path: Path) -> int:
        try:
            return open_own(path)
        except FileNotFoundError:  # somebody has deleted the cache: begin again
            self.make_directories()
            return open_own(path)

    def _create_pin(self, key: str, name: str, record: bytes) -> Pin:
        path = self.root / "pins" / key
        while True:
            is_new = not path.exists()
            fd = open_own(path)
            fcntl.flock(fd, fcntl.LOCK_SH)  # evictors hold `usage`, as we do: no wait
            if is_at(fd, path):
                break
            close_own(fd)
        pin = Pin(fd, path, self.root / "files" / key / name, is_new)
        try:
            # Not emptied first: ext4 would write such a file to the disk when it is closed.
            os.pwrite(fd, record, 0)
            os.ftruncate(fd, len(record))
        except BaseException:
            if is_new:
                path.unlink(missing_ok=True)
            pin.release()
            raise
        return pin

    def _evict(
        self, target_bytes: int, preferred_bytes: int, wanted_bytes: int, coming_bytes: int = 0
    ) -> int:
        """Evict the least recently used until both wishes are met; return the bytes in use.

        The caller holds `usage`. ``target_bytes`` is what the entries may take afterwards,
        ``wanted_bytes`` what must become free on the disk, beside the ``coming_bytes`` that others
        are about to take. When that cannot be, nothing goes.
        ``preferred_bytes`` is what they should take, as far as they are not in use.
        """
        entries = sorted(self._entries())
        used = sum(size for _, size, _ in entries)
        slack = self.budget_bytes // 20 if len(entries) > _MANY_ENTRIES else 0
        victims = []
        goal = max(used - target_bytes, wanted_bytes + coming_bytes)
        wish = max(goal, used - preferred_bytes)
        found = 0
        for _, size, key in entries:
            if found >= wish + slack:
                break
            if not self._is_pinned(key):
                victims.append(key)
                found += size
        if found >= goal:
            found = sum(key_bytes(key) for key in victims if self._remove(key))
        if found >= goal:
            return used - found
        if used - found > target_bytes:
            raise NoRoom(
                f"files in use fill the cache's budget of {self.budget_bytes} bytes;"
                " raise PYREMOTEDATA_CACHE_BYTES (cache_bytes), or use fewer files at a time"
            )
        # With less in the cache than is wanted there is nobody to wait for.
        raise (NoRoom if coming_bytes or wanted_bytes <= used else LocalStorageFull)(
            f"the disk that holds {self.root} is full ({_free_bytes(self.root)} bytes free);"
            f" free some space or {CHANGE_PLACE}"
        )

    def _still_to_come(self, key: str, spare_bytes: int) -> int:
        """Return the bytes of the disk that other entries on their way in have yet to take.

        0 where there is space to spare for all of them.
        """
        others = [other for other in os.listdir(self.root / "locks") if other != key]
        if sum(map(key_bytes, others)) <= spare_bytes:
            return 0
        here: dict[str, int] = {}
        for name in os.listdir(self.root / "incoming"):
            other = name.rpartition(".")[0]
            here[other] = here.get(other, 0) + _bytes_in(self.root / "incoming" / name)
        return sum(
            max(0, key_bytes(other) - here.get(other, 0))
            for other in others
            # Neither one whose holder was killed or waits for room, nor published meanwhile.
            if self._is_pinned(other) and not (self.root / "files" / other).exists()
        )

    def _entries(self) -> Iterator[tuple[int, int, str]]:
        """Yield (last use, bytes, key) of every entry, finished or not."""
        with os.scandir(self.root / "pins") as pins:
            for entry in pins:
                with suppress(FileNotFoundError):
                    yield entry.stat().st_mtime_ns, key_bytes(entry.name), entry.name

    def _is_pinned(self, key: str) -> bool:
        fd = self._open_pin(key)
        if fd is None:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(fd, fcntl.LOCK_UN)  # also for a child that is forked just now
        except BlockingIOError:
            return True
        finally:
            close_own(fd)
        return False

    def _remove(self, key: str) -> bool:
        """Remove an entry unless somebody holds a pin; return whether it went."""
        fd = self._open_pin(key)
        if fd is None:
            return True
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not (self.root / "files" / key).exists():
                for path in self._left_of(key):
                    self._throw_away(path)
            self._throw_away(self.root / "files" / key)
            (self.root / "pins" / key).unlink(missing_ok=True)
        except BlockingIOError:
            return False
        finally:
            close_own(fd)
        return True

    def _open_pin(self, key: str) -> int | None:
        try:
            return open_own(self.root / "pins" / key, 0)
        except FileNotFoundError:
            return None

    def _left_of(self, key: str) -> Iterator[Path]:
        """Yield the directories in which an entry is, or was, on its way in."""
        for name in os.listdir(self.root / "incoming"):
            if name.rpartition(".")[0] == key:
                yield self.root / "incoming" / name

    def _throw_away(self, path: Path) -> None:
        trash = self.root / "trash" / secrets.token_hex(8)
        try:
            os.rename(path, trash)
        except FileNotFoundError:
            if path.exists():  # somebody has deleted the empty place for it
                self.make_directories()
                os.rename(path, trash)

    def _empty_trash(self) -> None:
        with suppress(FileNotFoundError):
            for name in os.listdir(self.root / "trash"):
                shutil.rmtree(self.root / "trash" / name, ignore_errors=True)

    @contextmanager
    def _usage(self) -> Iterator[_Usage]:
        fd = self._open(self.root / "usage")
        try:
            if not lock_soon(fd, self.root / "usage", self._timeout_s):
                raise self.no_life(holder_of(self.root / "usage"))
            usage = _Usage(fd)
            if not os.fstat(fd).st_size:  # new, or somebody has deleted it
                usage.write(sum(size for _, size, _ in self._entries()))
            yield usage
        finally:
            close_own(fd)


class _Usage:
    """The bytes of all entries, in the file that also is the lock on changing them."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def read(self) -> int:
        text = os.pread(self._fd, 32, 0)
        return int(text) if text.strip().isdigit() else 0

    def write(self, used_bytes: int) -> None:
        # One write of fixed length: a reader never sees half a number.
        os.pwrite(self._fd, b"%-20d" % max(0, used_bytes), 0)


def cache_key(digest: str, size: int) -> str:
    """Return the key of an entry: the digest of what identifies it, and its bytes."""
    return f"{digest}-{size}"


def key_bytes(key: str) -> int:
    """Return the bytes of an entry from its key."""
    size = key.rpartition("-")[2]
    return int(size) if size.isdigit() else 0


def preferred_bytes(budget: int, room: int) -> int:
    """Return what the entries should take, as far as they are not in use.

    Parameters
    ----------
    budget : int
        What they may take.
    room : int
        What they take and what is free on their disk. Where that is less than the budget, half of
        it is for others: the outputs of jobs, the temporary files of all users.
    """
    return budget if room >= budget else room // 2


def _bytes_in(path: Path) -> int:
    with suppress(FileNotFoundError), os.scandir(path) as files:
        return sum(file.stat().st_blocks * 512 for file in files)
    return 0


def _free_bytes(path: Path) -> int:
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize
