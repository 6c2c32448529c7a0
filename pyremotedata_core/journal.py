"""The node's memory of remote temporary files, so that a killed upload is cleared away.

Each process that uploads keeps one small file per server in the node's private directory, with a
lock that the kernel frees when the process dies. A line names a temporary file and its final
name. The next process that logs in to that server finds the journals of the dead, and removes
what they left.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from pathlib import Path
from typing import NamedTuple

from .names import file_name_for
from .nodestate import private_directory, state_directory

COMPACT_LINES = 4096


class Orphan(NamedTuple):
    """A remote temporary file, and the name it was to get."""

    temporary: str
    final: str


class Journal:
    """The uploads of this process to one server. Belongs to the loop's thread."""

    def __init__(self, server: str) -> None:
        base = private_directory(state_directory() / "uploads")
        self._directory = private_directory(base / file_name_for(server))
        self._path: Path | None = None
        self._fd = -1
        self._live: dict[str, str] = {}
        self._lines = 0

    def begin(self, temporary: str, final: str) -> None:
        """Note an upload before its temporary file is made."""
        if self._fd < 0:
            self._open()
        self._live[temporary] = final
        self._lines += 1
        os.write(self._fd, _line(temporary, final))

    def end(self, temporary: str) -> None:
        """Note that a temporary file is gone, renamed or removed."""
        if self._live.pop(temporary, None) is None:
            return
        if not self._live or self._lines > COMPACT_LINES + 2 * len(self._live):
            os.ftruncate(self._fd, 0)
            for entry in self._live.items():
                os.write(self._fd, _line(*entry))
            self._lines = len(self._live)

    def close(self) -> None:
        """Leave it to the next process if uploads were cut off, else remove it."""
        if self._fd >= 0:
            if not self._live and self._path is not None:
                with contextlib.suppress(OSError):
                    self._path.unlink()
            os.close(self._fd)
            self._fd = -1

    def adopt(self) -> list[Orphan]:
        """Take over what dead processes left behind; it stands in this journal from now on."""
        orphans = []
        for path in self._directory.iterdir():
            with contextlib.suppress(OSError, ValueError):
                fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    for line in path.read_bytes().splitlines():
                        orphans.append(Orphan(*json.loads(line)))
                        self.begin(*orphans[-1])
                    path.unlink()
                finally:
                    os.close(fd)
        return orphans

    def _open(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        while True:
            self._path = self._directory / os.urandom(8).hex()
            fd = os.open(self._path, flags, 0o600)
            fcntl.flock(fd, fcntl.LOCK_EX)
            if os.fstat(fd).st_nlink:
                self._fd = fd
                return
            os.close(fd)  # somebody adopted it, empty, between our two calls


def _line(temporary: str, final: str) -> bytes:
    return json.dumps([temporary, final]).encode() + b"\n"
