"""Uploads: each file whole or not at all, and the same content not twice.

Snakemake stores an output twice where a cluster job and the main process share a file system (with
SLURM thrice), and touches the local copy in between, so that times tell nothing. The cluster job
leaves a note of what it stored: the digest of the content, and what the server then said of the
file. The next process skips the upload if both still hold, and in any doubt uploads.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from pyremotedata_core.errors import TransferError
from pyremotedata_core.model import Stat
from pyremotedata_core.url import RemoteURL

from .host import Host
from .lookup import Lookup
from .trees import raise_failure
from .waiting import Wait
from .workspace import temporary_path

if TYPE_CHECKING:
    from pyremotedata_core.engine import TransferEngine

# Where Snakemake keeps the time of a directory; a directory's own changes with each entry.
TIMESTAMP = ".snakemake_timestamp"
NOTES = ".stored"
T = TypeVar("T")
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
        self._notes = place / NOTES
        self._done: dict[RemoteURL, Signature] = {}

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
        memory = self._lookup.memory
        self.forget(url)
        if path.is_dir():
            try:
                return await self._store_directory(url, path, wait)
            finally:
                memory.forget(url)
        before = signature_of(path)
        known = await self._noted(url, path, wait)
        if known is not None:
            self._remember(url, path, before)
            return Stored(1, known.size, was_there=True)
        digest = in_thread(_digest, path) if self._host.stores_again else None
        got = await wait(self._engine().store(path, url))
        memory.remember(url, got, time.monotonic())
        if digest is not None:
            await self._note(url, got, digest, wait, lambda: signature_of(path) == before)
        self._remember(url, path, before)
        return Stored(1, got.size)

    def _remember(self, url: RemoteURL, path: Path, before: Signature | None) -> None:
        if before is not None and signature_of(path) == before:
            self._done[url] = before

    async def _store_directory(self, url: RemoteURL, path: Path, wait: Wait) -> Stored:
        # The time stamp goes first: it tells a directory of ours, so that an upload that was
        # broken off can be removed.
        stamp = path / TIMESTAMP
        if not stamp.exists():
            info = path.stat()
            stamp.touch()
            for made in (stamp, path):
                os.utime(made, ns=(info.st_mtime_ns, info.st_mtime_ns))
        before = signature_of(path)
        engine = self._engine()
        await wait(engine.store(stamp, url.join(TIMESTAMP)))
        result = await wait(engine.store_tree(path, url))
        raise_failure(result)
        if result.skipped:
            # The local copy may be removed after this, so nothing of it may be left behind.
            name, reason = result.skipped[0]
            raise TransferError(f"cannot upload all of it: {name} {reason}")
        self._remember(url, path, before)
        return Stored(result.files, result.bytes)

    # --- notes for the processes that store the same once more

    async def _noted(self, url: RemoteURL, path: Path, wait: Wait) -> Stat | None:
        """Return what the server has of a file, if that is the content of the local one."""
        note = self._note_of(url)
        if not note.exists():
            return None
        try:
            told = json.loads(note.read_text())
            before = signature_of(path)
            if told["size"] != path.stat().st_size:
                return None
            there = await self._lookup.ask(url, wait)
            if there is None or ["file", told["mtime"]] != [there.kind, there.mtime]:
                return None
            if there.size != told["size"]:
                return None
            same = await wait(in_thread(_digest, path)) == told["digest"]
            return there if same and signature_of(path) == before else None
        except (OSError, ValueError, KeyError, TypeError):
            return None
        finally:
            if not self._host.stores_again:
                with contextlib.suppress(OSError):
                    note.unlink()

    async def _note(
        self,
        url: RemoteURL,
        got: Stat,
        digest: Future[str],
        wait: Wait,
        unchanged: Callable[[], bool],
    ) -> None:
        """Tell the next process what was stored; without the note it stores it again."""
        try:
            told = {"digest": await wait(digest), "size": got.size, "mtime": got.mtime}
            if unchanged():
                self._notes.mkdir(exist_ok=True)
                part = temporary_path(self._notes)
                part.write_text(json.dumps(told))
                part.rename(self._note_of(url))
        except OSError:
            pass

    def _note_of(self, url: RemoteURL) -> Path:
        return self._notes / hashlib.sha256(str(url).encode("utf-8", "surrogateescape")).hexdigest()


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


def in_thread(work: Callable[..., T], *arguments: Any) -> Future[T]:
    """Do what only reads in a thread of its own; nobody waits for it when it is cancelled."""
    future: Future[T] = Future()

    def run() -> None:
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(work(*arguments))
            except BaseException as error:
                future.set_exception(error)

    threading.Thread(target=run, name="pyremotedata-digest", daemon=True).start()
    return future


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()
