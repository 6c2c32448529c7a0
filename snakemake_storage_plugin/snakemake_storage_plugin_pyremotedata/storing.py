"""Uploads: each file whole or not at all, and the same content not twice."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pyremotedata_core.errors import TransferError, raise_failures
from pyremotedata_core.model import Stat
from pyremotedata_core.url import RemoteURL

from .host import Host
from .lookup import Lookup
from .notes import Notes, digest
from .trees import TIMESTAMP
from .waiting import Wait, in_thread

if TYPE_CHECKING:
    from pyremotedata_core.engine import TransferEngine

Signature = tuple[Any, ...]


class Stored(NamedTuple):
    """What an upload has moved; ``was_there``: nothing, the server has it already."""

    files: int
    bytes: int
    was_there: bool = False


class Storing:
    """Stores for one provider. Thread-safe.

    Parameters
    ----------
    engine : callable
        Returns the engine.
    lookup : Lookup
        Learns what was stored.
    host : Host
        Says which process of the workflow this is.
    place : Path
        A directory that all processes which share local copies see; it gets the notes.
    """

    def __init__(
        self, engine: Callable[[], TransferEngine], lookup: Lookup, host: Host, place: Path
    ) -> None:
        self._engine = engine
        self._lookup = lookup
        self._host = host
        self._notes = Notes(place, engine, lookup.ask)
        self._done: dict[RemoteURL, Signature] = {}
        self._making: set[RemoteURL] = set()

    def was_stored(self, url: RemoteURL, path: Path) -> bool:
        """Return, once, whether `store` has stored just this and it is unchanged since."""
        signature = self._done.pop(url, None)
        return signature is not None and signature == signature_of(path)

    def forget(self, url: RemoteURL) -> None:
        """Drop what is known of an upload."""
        self._done.pop(url, None)

    async def store(self, url: RemoteURL, path: Path, wait: Wait) -> Stored:
        """Upload a file or directory.

        Raises
        ------
        TransferError
        """
        self.forget(url)
        if path.is_dir():
            _stamp(path)
        before = signature_of(path)
        noted = await self._notes.read(url, path, wait)
        again = self._host.stores_again
        if not again:
            self._notes.remove(url)
        if noted is not None and signature_of(path) == before:
            self._remember(url, before)
            if path.is_dir():
                self._lookup.memory.forget(url)  # what was known of its files is older
            return Stored(noted.files, noted.bytes, was_there=True)
        digesting = in_thread(digest, path) if again else None
        upload = self._store_directory if path.is_dir() else self._store_file
        done, got = await upload(url, path, wait)
        if digesting is not None:
            with contextlib.suppress(OSError):
                told = await wait(digesting)
                if signature_of(path) == before:
                    await self._notes.write(url, got, told, wait)
        if signature_of(path) == before:
            self._remember(url, before)
        return done

    async def _store_file(self, url: RemoteURL, path: Path, wait: Wait) -> tuple[Stored, Stat]:
        self._make_missing(url.parent)
        got = await wait(self._engine().store(path, url))
        self._lookup.memory.remember(url, got, time.monotonic())
        return Stored(1, got.size), got

    def _make_missing(self, directory: RemoteURL) -> None:
        """Have directories made that were missing when they were asked about, or lie in such.

        Nobody waits for it: the upload that follows asks for the same if it comes too late, and
        knows what is wrong if it cannot be done.
        """
        missing: list[RemoteURL] = []
        was_missing = self._lookup.memory.was_missing
        while directory not in self._making and (
            directory.parent in self._making or was_missing(directory)
        ):
            missing.append(directory)
            self._making.add(directory)
            directory = directory.parent
        for each in reversed(missing):
            self._engine().mkdir(each, parents=False)

    async def _store_directory(
        self, url: RemoteURL, path: Path, wait: Wait
    ) -> tuple[Stored, Stat | None]:
        engine = self._engine()
        try:
            # The time stamp goes first: it tells a directory of ours, so that an upload that was
            # broken off can be removed.
            self._make_missing(url)
            stamp = await wait(engine.store(path / TIMESTAMP, url.join(TIMESTAMP)))
            result = await wait(engine.store_tree(path, url))
        finally:
            self._lookup.memory.forget(url)
        # It is there, and so are the directories above it.
        self._lookup.memory.remember(url.join(TIMESTAMP), stamp, time.monotonic())
        raise_failures(result)
        if result.skipped:
            # The local copy may be removed after this, so nothing of it may be left behind.
            name, reason = result.skipped[0]
            raise TransferError(f"cannot upload all of it: {name} {reason}")
        return Stored(result.files, result.bytes), None

    def _remember(self, url: RemoteURL, signature: Signature | None) -> None:
        if signature is not None:
            self._done[url] = signature


def _stamp(path: Path) -> None:
    """Keep the time of a directory, which changes with each entry, as Snakemake does."""
    stamp = path / TIMESTAMP
    if not stamp.exists():
        info = path.stat()
        stamp.touch()
        for made in (stamp, path):
            os.utime(made, ns=(info.st_mtime_ns, info.st_mtime_ns))


def signature_of(path: Path) -> Signature | None:
    """Return what changes with every write to a file or below a directory, None if it is gone."""
    try:
        return _signature(path, path.stat())
    except OSError:
        return None


def _signature(path: Path, info: os.stat_result) -> Signature:
    own = (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)
    if not stat.S_ISDIR(info.st_mode):
        return own
    with os.scandir(path) as entries:
        inside = sorted(entries, key=lambda entry: entry.name)
    return (*own, *((e.name, _signature(Path(e), e.stat(follow_symlinks=False))) for e in inside))
