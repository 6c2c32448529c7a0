"""Local copies: what they tell of the remote file."""

from __future__ import annotations

import contextlib
from pathlib import Path

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
