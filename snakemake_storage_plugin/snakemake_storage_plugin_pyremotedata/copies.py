"""Local copies: what they tell of the remote file."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pyremotedata_core.errors import TransferError
from pyremotedata_core.local import remove_local
from pyremotedata_core.model import Stat

from .trees import TIMESTAMP


def stat_of_copy(path: Path) -> Stat | None:
    """Return the remote stat that a local copy tells, None if it is none or its maker is not known.

    A copy has the remote time, in whole seconds; a file that a job has just written has not.
    """
    try:
        info = path.stat()
        if path.is_dir():
            with contextlib.suppress(FileNotFoundError):
                info = (path / TIMESTAMP).stat()
        seconds, rest = divmod(info.st_mtime_ns, 10**9)
        if rest:
            return None
        if path.is_dir():
            return Stat("directory", 0, seconds)
        return Stat("file", info.st_size, seconds)
    except OSError:
        return None


class Directories:
    """Local copies of remote directories, in which single files may have copies, too.

    A file that is retrieved makes the directories above it, which Snakemake would then take for
    copies of the remote ones; and its copy would be removed after use from a directory that is one.

    Parameters
    ----------
    top : Path
        Below which local copies lie.
    """

    def __init__(self, top: Path) -> None:
        self._top = str(top)
        self._retrieved: set[str] = set()

    def add(self, path: Path) -> None:
        """Note that a directory was retrieved; jobs may write into it what they like."""
        self._retrieved.add(str(path))

    def make_above(self, path: Path) -> None:
        """Make the directories that are to hold the copy of a file."""
        for above in path.parents:
            if above.is_dir():
                break
            self._retrieved.discard(str(above))
        path.parent.mkdir(parents=True, exist_ok=True)

    def is_copy(self, path: Path) -> bool:
        """Return whether a directory was retrieved by this process, or stored by whatever one."""
        return path.is_dir() and self._is_known(str(path))

    def is_within_copy(self, path: Path) -> bool:
        """Return whether the copy of a file is part of that of a directory.

        Snakemake wants to know it of each input of each job that it thinks of, so it is plain
        strings that are looked at.
        """
        each = self._top
        name = str(path)
        below = name.removeprefix(each + os.sep)
        if below == name:
            return False
        for part in below.split(os.sep)[:-1]:
            each = f"{each}{os.sep}{part}"
            if not os.path.isdir(each):
                break  # nor is there anything in it
            if self._is_known(each):
                return True
        return False

    def _is_known(self, directory: str) -> bool:
        return directory in self._retrieved or os.path.exists(f"{directory}/{TIMESTAMP}")


class Leavings:
    """What would stay on the disk of a node: Snakemake removes copies of inputs and outputs only.

    Not those of logs and benchmarks, which it stores as well, and no directories; and nothing at
    all where an output could not be stored and the server does not answer. Thread-safe.

    Parameters
    ----------
    top : Path
        Below which local copies lie.
    """

    def __init__(self, top: Path) -> None:
        self._top = top
        self._stored: set[Path] = set()

    def add(self, path: Path) -> None:
        """Note a local copy that was stored, and that nobody wants to keep."""
        self._stored.add(path.absolute())

    def clear(self, job_id: str | None, files: Iterable[Any]) -> None:
        """Remove what was noted and, in the directory named after the job, what it has used.

        There, what is empty then is removed as well.

        Parameters
        ----------
        job_id : str or None
            None if other jobs may write below the same directory: what is there may be in use.
        files : iterable of StorageObject
            What the job reads and makes.
        """
        for path in self._stored:
            with contextlib.suppress(OSError):
                path.unlink()
        own = directory_of_job(self._top, job_id) if job_id else None
        if own is None:
            return
        for file in files:
            with contextlib.suppress(TransferError):
                if not file.keep_local:
                    remove_local(file.local_path())
        for directory, _directories, _files in os.walk(own, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(directory)


def directory_of_job(top: Path, job_id: str) -> Path | None:
    """Return the lowest directory, ``top`` or above it, that has the id of a job in its name."""
    named = re.compile(rf"(?<![0-9A-Za-z]){re.escape(job_id)}(?![0-9A-Za-z])")
    above = (top, *top.parents) if top.is_absolute() else ()
    return next((each for each in above if named.search(each.name)), None)
