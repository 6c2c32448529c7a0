"""Removing and touching remote files and directories."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pyremotedata_core.errors import RemoteFileNotFound, TransferError
from pyremotedata_core.url import RemoteURL

from .lookup import Lookup
from .trees import TIMESTAMP
from .waiting import Wait

if TYPE_CHECKING:
    from pyremotedata_core.engine import TransferEngine


async def remove(engine: TransferEngine, lookup: Lookup, url: RemoteURL, wait: Wait) -> None:
    """Remove a file, or a directory that Snakemake has made; a missing one is no error.

    Raises
    ------
    TransferError
        Also for a directory with files that is perhaps somebody's data, and a mistaken output.
    """
    stat = await lookup.ask(url, wait)
    if stat is None:
        return
    is_tree = stat.kind == "directory"
    ours = not is_tree or await lookup.ask(url.join(TIMESTAMP), wait) is not None
    if not ours and await wait(engine.scandir(url)):
        raise TransferError(
            f"it is a directory that holds files and that Snakemake has not made (it has no"
            f" {TIMESTAMP}); remove it yourself if it is meant to be an output"
        )
    await wait(engine.remove(url, recursive=is_tree, missing_ok=True))
    lookup.memory.forget(url)
    lookup.memory.remember(url, None, time.monotonic())


async def touch(engine: TransferEngine, lookup: Lookup, url: RemoteURL, wait: Wait) -> None:
    """Set the time of a file or directory to now.

    Raises
    ------
    TransferError
    """
    stat = await lookup.stat(url, wait)
    if stat is None:
        raise RemoteFileNotFound("no such file or directory")
    now = int(time.time())
    if stat.kind == "directory":
        timestamp = url.join(TIMESTAMP)
        if await lookup.ask(timestamp, wait) is not None:
            await wait(engine.touch(timestamp, now))
    await wait(engine.touch(url, now))
    lookup.memory.forget(url)
    if stat.kind == "file":
        lookup.memory.remember(url, stat._replace(mtime=now), time.monotonic())
