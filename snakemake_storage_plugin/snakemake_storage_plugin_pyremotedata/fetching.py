"""Downloads of files: straight to the local copy, or through the cache that a node's jobs share."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pyremotedata_core.errors import (
    ConfigurationError,
    LocalStorageFull,
    RemoteChanged,
    RemoteFileNotFound,
    TransferError,
)
from pyremotedata_core.model import Stat
from pyremotedata_core.names import temporary_name
from pyremotedata_core.part import Part
from pyremotedata_core.url import RemoteURL

from .lookup import Lookup
from .waiting import Wait, in_thread

if TYPE_CHECKING:
    from pyremotedata_core.engine import TransferEngine
    from pyremotedata_core.stager import Lease, Stager


class Fetched(NamedTuple):
    """A file that is there; ``from_cache``: another process of the node had moved the bytes."""

    stat: Stat
    from_cache: bool = False


class Fetching:
    """Fetches for one provider. Thread-safe.

    Parameters
    ----------
    engine : callable
        Returns the engine.
    lookup : Lookup
        Learns what was fetched.
    stager : callable or None
        Returns the stager of the node's cache, None where the cache is not used.
    warn : callable
        Told what keeps the cache from being used.
    links : callable
        Says whether a link into the cache will do where a file is read once, from its begin to
        its end.
    """

    def __init__(
        self,
        engine: Callable[[], TransferEngine],
        lookup: Lookup,
        stager: Callable[[], Stager] | None,
        warn: Callable[[str], None],
        links: Callable[[], bool],
    ) -> None:
        self._engine = engine
        self._lookup = lookup
        self._stager = stager
        self._warn = warn
        self._links = links
        self._linked: dict[Path, Lease] = {}

    async def fetch(
        self, url: RemoteURL, path: Path, stat: Stat, wait: Wait, on_demand: bool = False
    ) -> Fetched:
        """Fetch a file that is known to be what ``stat`` says, or what it is by now.

        Parameters
        ----------
        on_demand : bool
            Whether one job reads it from begin to end, so that it needs no copy of its own.

        Raises
        ------
        TransferError
        """
        memory = self._lookup.memory
        asked_at = time.monotonic()
        try:
            got = await self._from_cache(url, path, stat, wait, on_demand and self._links())
            if got is None:
                got = Fetched(await wait(self._engine().fetch(url, path, expect=stat)))
        except RemoteChanged:
            # It has changed since it was asked about: what was remembered is out of date.
            memory.forget(url)
            got = Fetched(await wait(self._engine().fetch(url, path)))
        except RemoteFileNotFound:
            memory.remember(url, None, asked_at)
            raise
        if not got.from_cache:
            memory.remember(url, got.stat, asked_at)
        return got

    def keep(self, url: RemoteURL, stat: Stat, path: Path) -> None:
        """Keep the file in the cache to which a link leads that a killed run has left."""
        if self._stager is None or path in self._linked or not path.is_symlink():
            return
        with contextlib.suppress(TransferError):
            lease = self._stager().find(url, stat)
            if lease is not None:
                self._hold(lease, path)

    async def _from_cache(
        self, url: RemoteURL, path: Path, stat: Stat, wait: Wait, link: bool
    ) -> Fetched | None:
        """Copy a file from the node's cache, or link to it; fetch it into the cache if need be."""
        if self._stager is None:
            return None
        try:
            lease = await wait(self._stager().stage(url, expect=stat))
        except (LocalStorageFull, ConfigurationError) as error:
            self._warn(f"Not through the node's cache: {error}")
            return None
        if link:
            self._link(lease, path)
            return Fetched(lease.stat, lease.from_cache)
        try:
            with lease:
                await self._copy(lease, path, wait)
        except LocalStorageFull as error:
            cache = self._stager().cache
            # Their disk has no room for it twice, but may have for it once.
            is_theirs = os.stat(path.parent).st_dev == os.stat(cache.root).st_dev
            if not (is_theirs and cache.make_room(lease.stat.size)):
                raise
            self._warn(f"Not through the node's cache: {error}")
            return None
        return Fetched(lease.stat, lease.from_cache)

    async def _copy(self, lease: Lease, path: Path, wait: Wait) -> None:
        from pyremotedata_core.stager.copying import fill

        part = Part(str(path))
        copying = in_thread(fill, part, lease.path)
        try:
            await wait(copying)
            part.publish(lease.stat, fsync=False)
        finally:
            # A thread cannot be stopped: what it still makes has to go.
            copying.add_done_callback(lambda _copied: part.discard())

    def _link(self, lease: Lease, path: Path) -> None:
        """Make the local copy a link into the cache, where the file stays as long as the link."""
        part = path.parent / temporary_name()
        part.symlink_to(lease.path)
        os.replace(part, path)
        self._hold(lease, path)

    def _hold(self, lease: Lease, path: Path) -> None:
        assert self._stager is not None
        self._linked[path] = lease
        self._let_go()
        self._stager().when_full.add(self._let_go)

    def _let_go(self) -> None:
        """Release the files whose links are gone."""
        for path in list(self._linked):
            if not os.path.lexists(path) and (unused := self._linked.pop(path, None)) is not None:
                unused.release()
