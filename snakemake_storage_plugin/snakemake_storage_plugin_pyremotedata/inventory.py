"""What Snakemake's own cache learns of remote files."""

from __future__ import annotations

import contextlib

from snakemake_interface_storage_plugins.io import IOCacheStorageInterface, Mtime

from pyremotedata_core.model import Stat
from pyremotedata_core.url import RemoteURL

from . import query as queries
from .memory import Memory


def fill(
    cache: IOCacheStorageInterface, memory: Memory, url: RemoteURL, key: str, parent: str | None
) -> None:
    """Tell the cache what memory knows of a file that was just asked about.

    Where that took a listing, all of its directory.

    Parameters
    ----------
    key, parent : str
        What the cache calls the file, and its directory.
    """
    listing = memory.listing(url.parent)
    if listing is not None and parent is not None:
        for name, stat in listing.items():
            _note(cache, f"{parent}/{queries.shield(name)}", stat)
        # From here on, what the listing does not hold is missing for Snakemake.
        with contextlib.suppress(AttributeError):
            cache.exists_in_storage.has_inventory.add(parent)
    known = memory.recall(url)
    if known is not None and known.stat is not None:
        _note(cache, key, known.stat)


def _note(cache: IOCacheStorageInterface, key: str, stat: Stat) -> None:
    cache.exists_in_storage[key] = True
    if stat.kind == "file":
        cache.size[key] = stat.size
        cache.mtime[key] = Mtime(storage=float(stat.mtime))
