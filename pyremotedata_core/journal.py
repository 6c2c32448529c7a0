"""The node's memory of remote temporary files, so that a broken-off upload is continued or removed.

Each process that uploads keeps one small file per server in the node's private directory, with a
lock that the kernel frees when the process dies. A line names a temporary file and its final
name, and of a large upload its origin: which local file, and in what state; a line of the
temporary name and a number tells of a segment that the server has confirmed, one of the name alone
that the file is gone. The next process that logs in to that server finds the journals of the dead.
What may be continued is kept for a day, everything else is removed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from .errors import naming
from .names import file_name_for
from .nodestate import private_directory, state_directory
from .part import KEEP_S

COMPACT_LINES = 4096


class Orphan(NamedTuple):
    """A remote temporary file, and the name it was to get."""

    temporary: str
    final: str


class Origin(NamedTuple):
    """The state of a local file whose upload may be continued.

    Attributes
    ----------
    path : str
    size, mtime_ns, inode : int
        Bytes, nanoseconds since the epoch.
    segment_bytes : int
        What its segments are.
    """

    path: str
    size: int
    mtime_ns: int
    inode: int
    segment_bytes: int


@dataclass(slots=True)
class _Upload:
    final: str
    origin: Origin | None = None
    since: float = 0.0
    done: set[int] = field(default_factory=set)

    def may_be_continued(self) -> bool:
        """Whether a later upload may be of just this: its source is there, unchanged."""
        if self.origin is None or not self.done or not 0 <= time.time() - self.since < KEEP_S:
            return False
        try:
            info = os.stat(self.origin.path)
        except OSError:
            return False
        return (info.st_size, info.st_mtime_ns, info.st_ino) == self.origin[1:4]

    def lines(self, temporary: str) -> bytes:
        """Return it as the journal holds it."""
        told: list[Any] = [temporary, self.final]
        if self.origin:
            told += [list(self.origin), self.since]
        return b"".join([_line(told), *(_line([temporary, number]) for number in self.done)])


class Journal:
    """The uploads of this process to one server. Belongs to the loop's thread."""

    def __init__(self, server: str) -> None:
        # Made when something is noted, and removed when nothing is left in it, by any process.
        self._directory = state_directory() / "uploads" / file_name_for(server)
        self._path: Path | None = None
        self._fd = -1
        self._live: dict[str, _Upload] = {}
        self._lines = 0
        self._kept: dict[str, str] = {}  # final name to the temporary file that may be continued
        self._orphans: list[Orphan] = []

    def holds(self, temporary: str) -> bool:
        """Whether a temporary file is this process's, or a dead one's of this node."""
        self._adopt()
        return temporary in self._live

    def begin(self, temporary: str, final: str, origin: Origin | None = None) -> None:
        """Note an upload before its temporary file is made.

        Raises
        ------
        TransferError
            If that cannot be written: nobody would know of the file.
        """
        self._begin({temporary: _Upload(final, origin, time.time() if origin else 0.0)})

    def begin_all(self, uploads: list[Orphan]) -> None:
        """Note uploads of small files, all or none; see `begin`."""
        self._begin({temporary: _Upload(final) for temporary, final in uploads})

    def replace(self, old: str, new: str) -> None:
        """Note that an upload begins anew under another temporary name; the old one is an orphan.

        Raises
        ------
        TransferError
            As `begin`.
        """
        upload = self._live[old]
        self._begin({new: _Upload(upload.final, upload.origin, upload.since)})
        self._orphans.append(Orphan(old, upload.final))

    def note(self, temporary: str, segment: int) -> None:
        """Note that the server has a segment."""
        upload = self._live.get(temporary)
        if upload is not None:
            upload.done.add(segment)
            self._lines += 1
            with contextlib.suppress(OSError):  # then it only has to be sent once more
                self._write(_line([temporary, segment]))

    def end(self, *temporaries: str) -> None:
        """Note that temporary files are gone, renamed or removed."""
        gone = [name for name in temporaries if self._live.pop(name, None) is not None]
        if not gone:
            return
        self._lines += len(gone)
        # What it still tells of where this cannot be written is looked for in vain.
        with contextlib.suppress(OSError):
            if not self._live:
                os.ftruncate(self._fd, 0)
                self._lines = 0
            elif self._lines <= COMPACT_LINES + 2 * len(self._live):
                self._write(b"".join(_line([name]) for name in gone))
            else:
                self._compact()

    def keep(self, temporary: str) -> bool:
        """Leave a temporary file to a later `resume`; return whether it holds anything."""
        upload = self._live.get(temporary)
        if upload is None or not upload.done:
            return False
        self._kept[upload.final] = temporary
        return True

    def resume(self, final: str, origin: Origin) -> tuple[str, set[int]] | None:
        """Return the temporary file of an upload of just this, and the segments that it has.

        One of anything else to the same name is an orphan from now on.
        """
        self._adopt()
        temporary = self._kept.pop(final, None)
        if temporary is None:
            return None
        upload = self._live[temporary]
        if upload.origin == origin:
            return temporary, upload.done
        self._orphans.append(Orphan(temporary, final))
        return None

    def orphans(self) -> list[Orphan]:
        """Return what is to be removed: each once, and it stands in the journal until `end`."""
        self._adopt()
        orphans, self._orphans = self._orphans, []
        return orphans

    def close(self) -> None:
        """Leave it to the next process if uploads were cut off, else remove it."""
        if self._fd >= 0:
            if not self._live and self._path is not None:
                with contextlib.suppress(OSError):
                    self._path.unlink()
            os.close(self._fd)
            self._fd = -1
        with contextlib.suppress(OSError):
            self._directory.rmdir()

    def _adopt(self) -> None:
        """Take over what dead processes left; it stands in this journal from now on."""
        for path in self._paths():
            if path == self._path:
                continue
            with contextlib.suppress(OSError, ValueError):
                fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    for temporary, upload in _uploads(path.read_bytes()).items():
                        self._add({temporary: upload})
                        if upload.may_be_continued():
                            other = self._kept.get(upload.final, temporary)
                            if other != temporary:
                                self._orphans.append(Orphan(other, upload.final))
                            self._kept[upload.final] = temporary
                        else:
                            self._orphans.append(Orphan(temporary, upload.final))
                    path.unlink()
                finally:
                    os.close(fd)

    def _begin(self, uploads: dict[str, _Upload]) -> None:
        with naming("the journal of uploads"):
            self._add(uploads)

    def _compact(self) -> None:
        """Write what still holds into a new file, and remove the old one: no kill loses any."""
        unwanted = self._path, self._fd
        self._open()
        try:
            self._write(b"".join(upload.lines(name) for name, upload in self._live.items()))
            self._lines = sum(1 + len(upload.done) for upload in self._live.values())
        except OSError:
            (self._path, self._fd), unwanted = unwanted, (self._path, self._fd)
            raise
        finally:
            path, fd = unwanted
            if path is not None:
                path.unlink(missing_ok=True)
            os.close(fd)

    def _paths(self) -> list[Path]:
        try:
            return list(self._directory.iterdir())
        except OSError:
            return []

    def _add(self, uploads: dict[str, _Upload]) -> None:
        if self._fd < 0:
            self._open()
        content = b"".join(upload.lines(temporary) for temporary, upload in uploads.items())
        self._write(content)
        self._live.update(uploads)
        self._lines += sum(1 + len(upload.done) for upload in uploads.values())

    def _write(self, content: bytes) -> None:
        written = os.write(self._fd, content)
        if written < len(content):  # a disk that is just full takes a part
            os.ftruncate(self._fd, os.fstat(self._fd).st_size - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _open(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        while True:
            try:
                private_directory(self._directory.parent)
                path = private_directory(self._directory) / os.urandom(8).hex()
                fd = os.open(path, flags, 0o600)
            except FileNotFoundError:
                continue  # somebody removed the directory, empty, between two calls
            fcntl.flock(fd, fcntl.LOCK_EX)
            if os.fstat(fd).st_nlink:
                self._path, self._fd = path, fd
                return
            os.close(fd)  # somebody adopted it, empty, between our two calls


def _uploads(content: bytes) -> dict[str, _Upload]:
    """Read a journal; its last line may be broken off."""
    found: dict[str, _Upload] = {}
    for line in content.splitlines():
        try:
            temporary, *rest = json.loads(line)
            if not rest:
                found.pop(temporary, None)
                continue
            second, *rest = rest
            if isinstance(second, int):
                found[temporary].done.add(second)
            elif rest:
                found[temporary] = _Upload(second, Origin(*rest[0]), rest[1])
            else:
                found[temporary] = _Upload(second)
        except (ValueError, KeyError, TypeError):
            continue
    return found


def _line(parts: list[Any]) -> bytes:
    return json.dumps(parts).encode() + b"\n"
