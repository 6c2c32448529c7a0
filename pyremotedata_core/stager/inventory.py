"""What a node's cache holds, for people: list it, verify it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import NamedTuple

from .nodecache import NodeCache


class CacheEntry(NamedTuple):
    """One staged file.

    Attributes
    ----------
    url : str
    path : str
        The local file.
    size, mtime : int
        Bytes, and seconds since the epoch, of the remote file.
    last_use : float
        Seconds since the epoch.
    in_use : bool
        Whether a process holds a lease on it now.
    sound : bool
        Whether the local file is there, with that size and time.
    """

    url: str
    path: str
    size: int
    mtime: int
    last_use: float
    in_use: bool
    sound: bool


def list_entries(cache: NodeCache) -> list[CacheEntry]:
    """Return what is in the cache, the least recently used first."""
    return [entry for _, entry in _entries(cache)]


def remove_unsound(cache: NodeCache) -> list[CacheEntry]:
    """Remove files that are not what they should be and that nobody uses; return them."""
    return [
        entry
        for key, entry in _entries(cache)
        if not entry.sound and not entry.in_use and cache.discard(key)
    ]


def _entries(cache: NodeCache) -> Iterator[tuple[str, CacheEntry]]:
    for last_use_ns, key in cache.keys_by_use():
        entry = _entry(cache, key, last_use_ns / 1e9)
        if entry is not None:
            yield key, entry


def _entry(cache: NodeCache, key: str, last_use: float) -> CacheEntry | None:
    try:
        record = json.loads((cache.root / "pins" / key).read_bytes())
        url, size, mtime = str(record["url"]), int(record["size"]), int(record["mtime"])
    except FileNotFoundError:
        return None  # it has just gone
    except (ValueError, KeyError, TypeError):
        url, size, mtime = "?", -1, -1
    directory = cache.root / "files" / key
    path, sound = "", False
    try:
        path = os.path.join(directory, os.listdir(directory)[0])
        info = os.stat(path)
        sound = info.st_size == size and int(info.st_mtime) == mtime
    except (OSError, IndexError):
        pass  # not there, or on its way in
    in_use = cache.is_in_use(key)
    if not in_use and not directory.exists():
        return None  # its transfer was broken off; the next one goes on with it
    return CacheEntry(url, path, size, mtime, last_use, in_use, sound)
