"""One remote file or directory of a workflow.

Every operation is written once, as a procedure over the engine's futures (see `waiting`), and
runs in two ways: the coroutines ``managed_*``, which Snakemake awaits, leave its event loop free,
so that many transfers are under way at once; the plain methods block.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from secrets import token_hex
from typing import Any, TypeVar

from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_storage_plugins.common import Operation, get_disk_free
from snakemake_interface_storage_plugins.io import IOCacheStorageInterface
from snakemake_interface_storage_plugins.storage_object import (
    StorageObjectGlob,
    StorageObjectRead,
    StorageObjectTouch,
    StorageObjectWrite,
)

from pyremotedata_core.errors import RemoteFileNotFound, TransferError
from pyremotedata_core.local import remove_local
from pyremotedata_core.model import Stat
from pyremotedata_core.url import RemoteURL

from . import changes, inventory, sidecar
from . import query as queries
from .copies import stat_of_copy
from .failures import explain
from .memory import POSITIVE_S
from .tally import rate_text, size_text
from .trees import TIMESTAMP, fetch_directory, tree_bytes, walk
from .waiting import Wait, blocking, on_loop, run_now

T = TypeVar("T")


class StorageObject(StorageObjectRead, StorageObjectWrite, StorageObjectGlob, StorageObjectTouch):
    """A remote file or directory; answers are shared with all objects of the provider.

    Every failure is a `WorkflowError` of one line. A lost connection is never "does not exist".
    """

    _keep_local = False
    _is_wanted = False

    def __post_init__(self) -> None:
        if "{" not in self.query:  # as in a wildcard
            with contextlib.suppress(TransferError):  # told when it is validated
                self.provider.expect(self.url)

    @property
    def keep_local(self) -> bool:
        """Whether the local copy stays after use: also if it is part of that of a directory."""
        if self._keep_local or "{" in self.query:  # as in a wildcard
            return self._keep_local
        return self.provider.directories.is_within_copy(self.local_path())

    @keep_local.setter
    def keep_local(self, value: bool) -> None:
        self._keep_local = value

    @property
    def is_ondemand_eligible(self) -> bool:
        """Whether one job reads it from begin to end, so that it needs no copy of its own."""
        return bool(super().is_ondemand_eligible)

    @is_ondemand_eligible.setter
    def is_ondemand_eligible(self, value: bool) -> None:
        # Snakemake says so right before it asks whether the local copy is out of date.
        self._is_ondemand_eligible = value
        self._is_wanted = True

    @property
    def url(self) -> RemoteURL:
        """The remote file."""
        return queries.to_url(self.query)

    def local_suffix(self) -> str:
        """Return the path of the local copy below the provider's prefix."""
        return queries.local_suffix(self.query)

    def get_inventory_parent(self) -> str | None:
        """Return the cache key of the directory that holds the file."""
        suffix = queries.parent_suffix(self.query)
        if self._overwrite_local_path or suffix is None:
            return None
        return self.cache_key(suffix)

    def cleanup(self) -> None:
        """Leave nothing local behind; Snakemake removes the local copy itself.

        It is called for each file at the end of a run, so the first call tells what was moved.
        """
        self.provider.tell()

    # --- questions

    def exists(self) -> bool:
        """Return whether the file exists."""
        return self._now("check existence of", self._exists)

    async def managed_exists(self) -> bool:
        """Return whether the file exists."""
        return await self._managed("check existence of", Operation.EXISTS, self._exists)

    def mtime(self) -> float:
        """Return the modification time in seconds since the epoch."""
        return self._now("get mtime of", self._mtime)

    async def managed_mtime(self) -> float:
        """Return the modification time in seconds since the epoch."""
        return await self._managed("get mtime of", Operation.MTIME, self._mtime)

    def size(self) -> int:
        """Return the size in bytes, 0 for a directory."""
        return self._now("get size of", self._size)

    async def managed_size(self) -> int:
        """Return the size in bytes, 0 for a directory.

        Snakemake asks for the sizes of the inputs of the jobs that it may run next.
        """
        size = await self._managed("get size of", Operation.SIZE, self._size)
        host = self.provider.host
        wanted = self.retrieve and host.fetches_for_jobs and not host.is_mere_target(self)
        if wanted and (stat := self._remembered()) is not None:
            self.provider.prefetch.want(self.url, stat, self.local_path())
        return size

    def checksum(self) -> str | None:
        """Return ``algorithm:checksum`` from a file beside it, if the user wants that."""
        return self._now("get checksum of", self._checksum)

    async def managed_checksum(self) -> str | None:
        """Return ``algorithm:checksum`` from a file beside it, if the user wants that."""
        return await self._managed("get checksum of", Operation.SIZE, self._checksum)

    def local_footprint(self) -> int:
        """Return the bytes that the local copy takes, for a directory those of all its files."""
        return self._now("get size of", self._footprint)

    async def managed_local_footprint(self) -> int:
        """Return the bytes that the local copy takes, for a directory those of all its files."""
        return await self._managed("get size of", Operation.SIZE, self._footprint)

    async def inventory(self, cache: IOCacheStorageInterface) -> None:
        """Fill Snakemake's cache with this file or, from the second of a directory, with all."""
        if self._overwrite_local_path:
            return
        if self.cache_key() not in cache.exists_in_storage:
            await self.managed_exists()
            memory, parent = self.provider.lookup.memory, self.get_inventory_parent()
            inventory.fill(cache, memory, self.url, self.cache_key(), parent)

    def list_candidate_matches(self) -> Iterable[str]:
        """Return queries of everything below the constant prefix of a query with wildcards."""
        return self._now("list matches of", self._candidates)

    # --- changes

    def retrieve_object(self) -> None:
        """Make the local copy, whole or not at all, with the remote modification time."""
        self._now("retrieve", self._retrieve)

    async def managed_retrieve(self) -> None:
        """Make the local copy, whole or not at all, once there is space for it."""
        try:
            with self.provider.tally.waiting():
                await self.wait_for_free_space()
                await self._managed("retrieve", Operation.RETRIEVE, self._retrieve)
        except Exception as error:
            # An outdated copy would pass for the current one.
            remove_local(self.local_path())
            raise self._explained("retrieve", error) from error
        self.provider.prefetch.begin()

    async def wait_for_free_space(self) -> None:
        """Wait until the local copy fits on the disk; what was fetched ahead makes way."""
        prefetch = self.provider.prefetch
        if prefetch.holds(self.url):
            return
        stat = self._remembered()
        if stat is not None and stat.size > get_disk_free(self.local_path()):
            prefetch.give_way()
        try:
            await super().wait_for_free_space()
        except WorkflowError:
            if not prefetch.give_way():
                raise
            await super().wait_for_free_space()

    def store_object(self) -> None:
        """Upload the local file or directory; each file appears whole or not at all."""
        self._now("store output in", self._store)

    async def managed_store(self) -> None:
        """Upload the local file or directory; each file appears whole or not at all.

        In the main process the other outputs of its job go with the first one: it ends when all
        are stored, and fails when one of them does.
        """
        storing = self.provider.storing
        if storing.was_stored(self.url, self.local_path()):
            return
        siblings = [o for o in self.provider.host.siblings(self) if o.local_path().exists()]
        with self.provider.tally.waiting():
            try:
                async with asyncio.TaskGroup() as group:
                    for each in (self, *siblings):
                        group.create_task(
                            each._managed("store output in", Operation.STORE, each._store)
                        )
            except ExceptionGroup as failed:
                error = failed.exceptions[0]
                raise error from error.__cause__
        storing.forget(self.url)

    def remove(self) -> None:
        """Remove the remote file or directory; a missing one is no error."""
        self._now("remove", self._remove)

    async def managed_remove(self) -> None:
        """Remove the remote file or directory; a missing one is no error."""
        await self._managed("remove", Operation.REMOVE, self._remove)

    def touch(self) -> None:
        """Set the remote modification time to now."""
        self._now("touch", self._touch)

    async def managed_touch(self) -> None:
        """Set the remote modification time to now."""
        await self._managed("touch", Operation.TOUCH, self._touch)

    # --- procedures

    async def _exists(self, wait: Wait) -> bool:
        return await self._stat(wait) is not None

    async def _found(self, wait: Wait) -> Stat:
        stat = await self._stat(wait)
        if stat is None:
            raise RemoteFileNotFound("no such file or directory")
        return stat

    async def _stat(self, wait: Wait) -> Stat | None:
        self.provider.refuse_outputs()
        for output in self.provider.host.stored_elsewhere():
            if output.provider is self.provider:
                self.provider.lookup.memory.forget(output.url)
        if self._is_to_be_made():
            return None
        stat = self._shared_copy() or await self.provider.lookup.stat(self.url, wait)
        if stat is not None:
            # Before any job's input is brought, which may take the room of this one.
            self.provider.fetching.keep(self.url, stat, self.local_path())
        return stat

    def _remembered(self) -> Stat | None:
        """Return what memory says that the file is, None where it knows of none."""
        known = self.provider.lookup.memory.recall(self.url)
        return known.stat if known is not None else None

    def _is_to_be_made(self) -> bool:
        """Whether it was missing within the last minute, and a job here has yet to make it.

        Before it runs a job, Snakemake asks about each of its outputs once more.
        """
        known = self.provider.lookup.memory.recall(self.url, time.monotonic() - POSITIVE_S)
        if known is None or known.stat is not None or not self.retrieve:
            return False
        return self.provider.host.makes(self) and not os.path.lexists(self.local_path())

    def _shared_copy(self) -> Stat | None:
        """Return what the local copy of a cluster job says, if the main process has made it."""
        host = self.provider.host
        if not (host.is_remote_job and host.shares_local_copies):
            return None
        return stat_of_copy(self.local_path())

    async def _mtime(self, wait: Wait) -> float:
        stat = await self._stat(wait)
        if stat is None and (made := self._made()) is not None:
            return made.st_mtime
        stat = stat or await self._found(wait)
        if stat.kind == "directory" and self._shared_copy() is None:
            timestamp = await self.provider.lookup.stat(self.url.join(TIMESTAMP), wait)
            stat = timestamp or stat
        self._outdate_other(stat.mtime)
        return float(stat.mtime)

    def _made(self) -> os.stat_result | None:
        """Return the stat of an output that is a file and lies here, None for all else.

        For `ensure`, Snakemake asks for size and time of an output before that is stored.
        """
        path = self.local_path()
        return path.stat() if path.is_file() and self.provider.host.is_output(self) else None

    def _outdate_other(self, mtime: int) -> None:
        """Have that retrieved whose local copy is of another file, or of a part of a directory.

        A copy has the remote time, while Snakemake looks for older ones only: of a file that was
        replaced by one of an earlier time the copy would pass for the current one.
        """
        wanted, self._is_wanted = self._is_wanted, False
        path = self.local_path()
        if wanted and not self.provider.directories.is_copy(path):
            with contextlib.suppress(OSError):
                if path.stat().st_mtime != mtime:
                    os.utime(path, (0, 0), follow_symlinks=False)

    async def _size(self, wait: Wait) -> int:
        made = self._made()
        if made is not None:
            return made.st_size
        stat = await self._found(wait)
        return 0 if stat.kind == "directory" else stat.size

    async def _footprint(self, wait: Wait) -> int:
        stat = await self._found(wait)
        if stat.kind != "directory":
            return stat.size
        return await tree_bytes(self.provider.engine(), self.url, wait)

    async def _checksum(self, wait: Wait) -> str | None:
        if self._made() is not None:
            return None
        told = await self._checksum_beside(wait) if self.provider.uses_checksums else None
        if told is None and self._is_outdated():
            # Without an answer Snakemake takes the checksum of the local copy, finds that it is
            # what it was, and does not run again what depends on the file.
            return f"sha256:{token_hex(32)}"
        return told

    async def _checksum_beside(self, wait: Wait) -> str | None:
        stat = await self._found(wait)
        if stat.kind != "file":
            return None
        engine, lookup = self.provider.engine(), self.provider.lookup
        return await sidecar.checksum(engine, lookup, self.url, stat, wait)

    def _is_outdated(self) -> bool:
        """Whether the remote file is newer than a local copy, as far as is known."""
        stat, path = self._remembered(), self.local_path()
        if stat is None or not path.is_file():
            return False
        return path.stat().st_mtime < stat.mtime

    async def _candidates(self, wait: Wait) -> list[str]:
        top = queries.constant_directory(self.query)
        levels = queries.levels_below(self.query)
        warn = self.provider.logger.warning
        found = await walk(
            self.provider.engine(),
            top,
            wait,
            levels,
            denied=lambda error: warn(f"Not searched for {self.print_query}: {error}"),
        )
        return [queries.from_url(url) for url, _stat in found]

    async def _retrieve(self, wait: Wait) -> None:
        started = time.monotonic()
        path = self.local_path()
        self.provider.directories.make_above(path)
        stat = await self._found(wait)
        files, ahead, cached = 1, False, False
        if stat.kind == "directory":
            files, moved = await self._retrieve_directory(path, wait)
        elif stat.kind == "file":
            if path.is_dir():
                remove_local(path)
            there = await self.provider.prefetch.take(self.url, stat, path, wait)
            ahead = bool(there)
            if there is None:
                fetch = self.provider.fetching.fetch
                stat, cached = await fetch(self.url, path, stat, wait, self.is_ondemand_eligible)
            moved = stat.size
        else:
            raise TransferError("it is neither a file nor a directory", str(self.url))
        self.provider.tally.retrieved(files, moved, ahead, cached)
        seconds = time.monotonic() - started
        self.provider.report.add(
            "ahead" if ahead else "retrieved", self.print_query, moved, seconds
        )
        how = "fetched ahead" if ahead else seconds
        how = "from the node's cache" if cached else how
        self._log("Retrieved", moved, how)

    async def _retrieve_directory(self, path: Path, wait: Wait) -> tuple[int, int]:
        result = await fetch_directory(self.provider.engine(), self.url, path, wait)
        for name, reason in result.skipped:
            self.provider.logger.warning(f"Left out of {self.print_query}: {name} {reason}")
        mtime = await self._mtime(wait)
        os.utime(path, (mtime, mtime))
        self.provider.directories.add(path)
        return result.files, result.bytes

    async def _store(self, wait: Wait) -> None:
        self.provider.refuse_change()
        started = time.monotonic()
        done = await self.provider.storing.store(self.url, self.local_path(), wait)
        if not self.keep_local:
            self.provider.leavings.add(self.local_path())
        if done.was_there:
            self._log("Stored", done.bytes, "by its job already")
            return
        seconds = time.monotonic() - started
        self.provider.tally.stored(done.files, done.bytes)
        self.provider.report.add("stored", self.print_query, done.bytes, seconds)
        self._log("Stored", done.bytes, seconds)

    async def _remove(self, wait: Wait) -> None:
        self.provider.refuse_change()
        self.provider.storing.forget(self.url)
        await changes.remove(self.provider.engine(), self.provider.lookup, self.url, wait)

    async def _touch(self, wait: Wait) -> None:
        self.provider.refuse_change()
        await changes.touch(self.provider.engine(), self.provider.lookup, self.url, wait)

    # --- how procedures are run

    def _now(self, action: str, procedure: Callable[[Wait], Any]) -> Any:
        try:
            return run_now(procedure(blocking))
        except Exception as error:
            raise self._explained(action, error) from error

    async def _managed(
        self, action: str, operation: Operation, procedure: Callable[[Wait], Awaitable[T]]
    ) -> T:
        try:
            async with self._limit(operation):
                return await procedure(on_loop)
        except Exception as error:
            raise self._explained(action, error) from error

    def _limit(self, operation: Operation) -> contextlib.AbstractAsyncContextManager[Any]:
        """Return the user's rate limit, nothing for a question that memory answers."""
        asks = operation in (Operation.EXISTS, Operation.MTIME, Operation.SIZE)
        known = asks and (
            self.provider.lookup.memory.recall(self.url)
            or self._is_to_be_made()
            or self._shared_copy()
        )
        if known:
            return contextlib.nullcontext()
        return self._rate_limiter(operation)

    def _explained(self, action: str, error: Exception) -> WorkflowError:
        return explain(action, self.print_query, self.local_path(), error)

    def _log(self, done: str, moved_bytes: int, how: float | str) -> None:
        if isinstance(how, float):
            how = f"in {how:.1f} s ({rate_text(moved_bytes, how)})"
        self.provider.logger.info(f"{done} {self.print_query}: {size_text(moved_bytes)} {how}")
