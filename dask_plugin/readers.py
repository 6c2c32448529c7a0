"""Handles on what tasks will read through the core's fsspec file system, without one of ours."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from .remotefile import RemoteFile

_OPEN = {
    ("fsspec.core", "OpenFile"),
    ("pyremotedata_core.filesystem_files", "ReadFile"),
    ("pyremotedata_core.filesystem_files", "PartsFile"),
}


def file_of(item: Any) -> RemoteFile | None:
    """Return a handle on the file that an open file of fsspec reads, if it is one of ours."""
    kind = type(item)
    if (kind.__module__, kind.__name__) not in _OPEN or not _is_ours(item.fs):
        return None
    stat = getattr(item, "stat", None)
    return _handle(item.fs, item.path, *((stat.size, stat.mtime) if stat else ()))


def pieces_of(function: Any, arguments: Any) -> Iterator[RemoteFile]:
    """Yield handles on the files of a partition that ``dask.dataframe.read_parquet`` reads."""
    fs = getattr(function, "fs", None)
    if fs is None or not _is_ours(fs):
        return
    for parts in arguments:
        for part in parts if isinstance(parts, list) else [parts]:
            part = getattr(part, "data", part)
            piece = part.get("piece") if isinstance(part, dict) else None
            if isinstance(piece, tuple | list) and piece and isinstance(piece[0], str):
                handle = _handle(fs, piece[0])
                if handle is not None:
                    yield handle


def _is_ours(fs: Any) -> bool:
    module = sys.modules.get("pyremotedata_core.filesystem")
    return module is not None and isinstance(fs, module.RemoteFileSystem)


def _handle(fs: Any, path: str, *known: int) -> RemoteFile | None:
    try:
        return RemoteFile(str(fs.url(path)), *known)
    except Exception:  # wrong settings: the task will say it
        return None
