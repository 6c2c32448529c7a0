"""Directories: walked with many listings under way, fetched whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyremotedata_core.errors import (
    RemoteFileNotFound,
    RemotePermissionDenied,
    TransferError,
    from_oserror,
    from_plain,
)
from pyremotedata_core.model import Stat, TreeResult
from pyremotedata_core.names import TemporaryNames, host_tag, is_temporary, temporary_host
from pyremotedata_core.url import RemoteURL

from .waiting import Wait

if TYPE_CHECKING:
    from pyremotedata_core.engine import TransferEngine

LISTINGS_AT_ONCE = 32
_names = TemporaryNames()


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
    with _incoming(path) as part:
        result = await wait(engine.fetch_tree(url, part))
        raise_failure(result)
        try:
            _replace(part, path)
        except OSError as error:
            raise from_oserror(error, path) from None
    return result


def raise_failure(result: TreeResult) -> None:
    """Raise the first error of a tree, if there was one."""
    if result.failed:
        error = from_plain(result.failed[0])
        more = len(result.failed) - 1
        if more:
            error = type(error)(f"{error.message} (and {more} more files)", error.url)
        raise error


@contextlib.contextmanager
def _incoming(final: Path) -> Iterator[Path]:
    """Make a temporary directory beside the final one; it is gone afterwards.

    It is locked while its writer lives, so that others can tell what a killed one has left.
    """
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        _sweep(final.parent)
        part = final.parent / _names.next()
        part.mkdir()
        lock = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise from_oserror(error, final.parent) from None
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)
        os.close(lock)


def _replace(part: Path, final: Path) -> None:
    if final.is_dir() and not final.is_symlink():
        old = final.parent / _names.next()
        final.rename(old)
        part.rename(final)
        shutil.rmtree(old)
    else:
        final.unlink(missing_ok=True)
        part.rename(final)


def _sweep(parent: Path) -> None:
    """Remove temporary directories of writers on this node that are dead."""
    for name in os.listdir(parent):
        if not is_temporary(name) or temporary_host(name) != host_tag():
            continue
        with contextlib.suppress(OSError):
            lock = os.open(parent / name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(parent / name, ignore_errors=True)
            finally:
                os.close(lock)
