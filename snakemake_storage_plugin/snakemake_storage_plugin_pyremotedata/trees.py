"""Directories: walked with many listings under way, fetched whole or not at all."""

from __future__ import annotations

import asyncio
import shutil
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyremotedata_core.errors import (
    RemoteFileNotFound,
    RemotePermissionDenied,
    TransferError,
    naming,
    raise_failures,
)
from pyremotedata_core.model import Stat, TreeResult
from pyremotedata_core.names import temporary_name
from pyremotedata_core.spool import LISTINGS_AT_ONCE
from pyremotedata_core.url import RemoteURL

from .waiting import Wait
from .workspace import Workspace

if TYPE_CHECKING:
    from pyremotedata_core.engine import TransferEngine

# Where Snakemake keeps the time of a directory; a directory's own changes with each entry.
TIMESTAMP = ".snakemake_timestamp"
CANCEL_TIMEOUT_S = 2.0


async def walk(
    engine: TransferEngine,
    top: RemoteURL,
    wait: Wait,
    levels: int | None = None,
    denied: Callable[[TransferError], None] = lambda _error: None,
) -> list[tuple[RemoteURL, Stat]]:
    """Return everything below a directory; links are listed and not followed.

    Parameters
    ----------
    levels : int or None
        How deep to go, 1 for the directory itself, None for all.
    denied : callable
        Told of each directory that the server does not let us list. For ``top`` it is raised.

    Notes
    -----
    A directory that does not exist holds nothing.
    """
    found: list[tuple[RemoteURL, Stat]] = []
    todo = deque([(top, 1)])
    running: deque[tuple[RemoteURL, int, Future[Any]]] = deque()
    try:
        while todo or running:
            while todo and len(running) < LISTINGS_AT_ONCE:
                url, level = todo.popleft()
                running.append((url, level, engine.scandir(url)))
            url, level, listing = running.popleft()
            try:
                entries = await wait(listing)
            except RemoteFileNotFound:
                continue
            except RemotePermissionDenied as error:
                if url == top:
                    raise
                denied(error)
                continue
            for entry in entries:
                child = url.join(entry.name)
                found.append((child, entry.stat))
                if entry.stat.kind == "directory" and level != levels:
                    todo.append((child, level + 1))
    finally:
        for _url, _level, listing in running:
            listing.cancel()
    return found


async def tree_bytes(engine: TransferEngine, top: RemoteURL, wait: Wait) -> int:
    """Return the size of all files below a directory."""
    found = await walk(engine, top, wait)
    return sum(stat.size for _url, stat in found if stat.kind == "file")


async def fetch_directory(
    engine: TransferEngine, url: RemoteURL, path: Path, wait: Wait
) -> TreeResult:
    """Fetch a directory, which stands under its final name when all of it is there.

    Raises
    ------
    TransferError
        After which nothing new stands under the final name.
    """
    with naming(path):
        workspace = Workspace(path.parent)
        try:
            part = workspace.path / "tree"
            result = await wait(engine.fetch_tree(url, part))
            raise_failures(result)
            _replace(part, path)
        except (asyncio.CancelledError, KeyboardInterrupt):
            engine.wait_cancelled(CANCEL_TIMEOUT_S)  # until then it may still make files here
            raise
        finally:
            workspace.close()
    return result


def _replace(part: Path, final: Path) -> None:
    if final.is_dir() and not final.is_symlink():
        old = final.parent / temporary_name()
        final.rename(old)
        part.rename(final)
        shutil.rmtree(old)
    else:
        final.unlink(missing_ok=True)
        part.rename(final)
