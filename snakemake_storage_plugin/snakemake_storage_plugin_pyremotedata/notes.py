"""Notes of what cluster jobs have stored, so that the main process does not store it once more.

Snakemake stores an output twice where a cluster job and the main process share a file system (with
SLURM thrice), and touches the local copy in between, so that times tell nothing. The cluster job
leaves a note of what it stored: the digest of the content, and what the server then said of it.
The next process skips the upload if both still hold, and in any doubt uploads.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pyremotedata_core.errors import TransferError
from pyremotedata_core.model import Stat
from pyremotedata_core.part import Part
from pyremotedata_core.url import RemoteURL

from .trees import TIMESTAMP, walk
from .waiting import Wait, in_thread

if TYPE_CHECKING:
    from pyremotedata_core.engine import TransferEngine

FOLDER = ".stored"


class Noted(NamedTuple):
    """What the server has already."""

    files: int
    bytes: int


class Notes:
    """Notes that all processes of a workflow see. Thread-safe.

    Parameters
    ----------
    place : Path
        A directory that all processes which share local copies see.
    engine : callable
        Returns the engine.
    ask : callable
        Coroutine function that returns what the server says of a URL now.
    """

    def __init__(
        self, place: Path, engine: Callable[[], TransferEngine], ask: Callable[..., Any]
    ) -> None:
        self._folder = place / FOLDER
        self._engine = engine
        self._ask = ask

    async def read(self, url: RemoteURL, path: Path, wait: Wait) -> Noted | None:
        """Return what the server has, if it is noted and is the content of ``path``."""
        note = self._path(url)
        if not note.exists():
            return None
        try:
            told = json.loads(note.read_text())
            there = await self._there(url, wait)
            if not there or there != told["there"]:
                return None
            if await wait(in_thread(digest, path)) != told["digest"]:
                return None
        except (OSError, ValueError, KeyError, TypeError):
            return None
        sizes = [size for _name, kind, size, _mtime in there if kind == "file"]
        return Noted(len(sizes), sum(sizes))

    async def write(
        self, url: RemoteURL, got: Stat | None, content_digest: str, wait: Wait
    ) -> None:
        """Tell the next process what was stored; without the note it stores it again.

        Parameters
        ----------
        got : Stat or None
            What the server says of a file that was stored; None for a directory.
        content_digest : str
            See `digest`.
        """
        part = Part(str(self._path(url)))
        try:
            there = await self._there(url, wait) if got is None else [_entry("", got)]
            told = json.dumps({"digest": content_digest, "there": there}).encode()
            self._folder.mkdir(exist_ok=True)
            part.write(memoryview(told), 0)
            part.publish(Stat("file", len(told), int(time.time())), fsync=False)
        except (OSError, TransferError):
            pass
        finally:
            part.discard()

    def remove(self, url: RemoteURL) -> None:
        """Remove a note, if there is one."""
        with contextlib.suppress(OSError):
            self._path(url).unlink()

    async def _there(self, url: RemoteURL, wait: Wait) -> list[list[Any]]:
        """Return what the server has under a name, one entry a file or directory."""
        top = await self._ask(url, wait)
        if top is None:
            return []
        if top.kind != "directory":
            return [_entry("", top)]
        found = await walk(self._engine(), url, wait)
        below = len(url.path) + 1
        return sorted([_entry("", top), *(_entry(u.path[below:], s) for u, s in found)])

    def _path(self, url: RemoteURL) -> Path:
        name = hashlib.sha256(str(url).encode("utf-8", "surrogateescape")).hexdigest()
        return self._folder / name


def digest(path: Path) -> str:
    """Return the digest of a file's content, or of a directory's names and contents."""
    if not path.is_dir():
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "blake2b").hexdigest()
    whole = hashlib.blake2b()
    for directory, directories, files in os.walk(path):
        directories.sort()
        lines = [f"{name}/" for name in directories]
        # Snakemake renews the time stamp, and there is nothing in it.
        files = sorted(name for name in files if name != TIMESTAMP)
        lines += [f"{name}\0{digest(Path(directory, name))}" for name in files]
        for line in (os.path.relpath(directory, path), *lines):
            whole.update(os.fsencode(line) + b"\0")
    return whole.hexdigest()


def _entry(name: str, stat: Stat) -> list[Any]:
    # The time of a directory is of no account, its size neither.
    return [name, stat.kind, *((stat.size, stat.mtime) if stat.kind == "file" else (0, 0))]
