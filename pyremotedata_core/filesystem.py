"""An fsspec file system on the engine: for pandas, Dask, xarray, zarr and all that take fsspec.

``fsspec.filesystem("pyremotedata", host="archive")``, or URLs with a scheme of our own:
``pyremotedata+sftp://archive/~/table.csv``. Paths begin with ``/``, with ``/~/`` for the login
directory, or are relative to the configured directory. In a URL percent-encoding is decoded
once, as everywhere; a path is taken as it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import posixpath
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from glob import has_magic
from typing import Any

from fsspec.callbacks import DEFAULT_CALLBACK, NoOpCallback
from fsspec.core import get_compression
from fsspec.utils import isfilelike, stringify_path

from .errors import (
    ConfigurationError,
    LocalStorageFull,
    RemoteChanged,
    RemoteFileNotFound,
    ServerRefused,
    naming,
)
from .filesystem_files import WRITING, PartsFile, ReadFile, WriteFile, WriteText
from .filesystem_looking import FILES_AT_ONCE, LISTINGS_AT_ONCE, LookingFileSystem, each, mirror
from .futures import wait_for
from .local import NOTHING_TOLD, OwnDirectory, date_after
from .model import Stat
from .stager import Lease, lending
from .stream import BLOCK_BYTES, block_bytes
from .url import RemoteURL, child_path

BLOCKS_AT_ONCE = 16
COPIES_AT_ONCE = 16  # each is on the local disk meanwhile

_log = logging.getLogger(__name__)


class RemoteFileExists(ServerRefused, FileExistsError):  # type: ignore[misc]
    """There is such a file or directory already."""


class RemoteIsADirectory(ServerRefused, IsADirectoryError):  # type: ignore[misc]
    """A file was meant, and it is a directory."""


class RemoteFileSystem(LookingFileSystem):
    """Files on a server, as fsspec sees them.

    Parameters
    ----------
    host : str, optional
        Default: the configured remote.
    username : str, optional
    port : int, optional
    scheme : {"sftp", "ftp", "ftps"}
    use_listings_cache, listings_expiry_time
        What a listing says of its files answers `info`, `isdir`, `isfile` and `size` for so many
        seconds (5), or until this process changes anything. `ls`, `find`, `glob`, `exists` and
        `open` always ask the server.
    batch_size : int, optional
        Files under way at once at the most.
    **settings
        Fields of `ConnectionSettings`, and what every fsspec file system takes. ``password`` and
        ``key_passphrase`` stay in this process: where a pickled file system arrives, they come
        from the environment or the config file.

    Raises
    ------
    ConfigurationError
        If a setting is unknown or wrong.

    Notes
    -----
    Errors are `TransferError`s (also FileNotFoundError, PermissionError, FileExistsError where
    that is what they mean). A link to a directory is listed as "link", and `find` does not follow
    it. Thread-safe, also after a fork; its open files are not.
    """

    protocol = ("pyremotedata+sftp", "pyremotedata", "pyremotedata+ftp", "pyremotedata+ftps")

    # --- reading ---------------------------------------------------------------------------

    async def _cat_file(
        self,
        path: Any,
        start: int | None = None,
        end: int | None = None,
        stats: dict[Any, Any] | None = None,
        **_: Any,
    ) -> bytes:
        url = self.url(path)
        stats = {} if stats is None else stats
        if url not in stats:
            stats[url] = asyncio.ensure_future(self._ask("stat", url))
        stat = _file(await asyncio.shield(stats[url]), url)
        first, stop, _step = slice(start, end).indices(stat.size)
        lent = lending.lend(self._reach()[0], url, stat) if lending.lend is not None else None
        if lent is not None:
            with contextlib.suppress(LocalStorageFull):
                return await asyncio.to_thread(_read, await asyncio.wrap_future(lent), first, stop)

        size = block_bytes(self.engine, url)

        def block(offset: int) -> Awaitable[bytes]:
            return self._ask("read", url, offset, min(size, stop - offset), stat)

        return b"".join(await each(block, range(first, stop, size), BLOCKS_AT_ONCE))

    async def _cat_ranges(
        self, paths: Any, starts: Any, ends: Any, *args: Any, on_error: str = "return", **_: Any
    ) -> list[Any]:
        # One stat for all ranges of a file: they are of one version of it, too.
        found = await super()._cat_ranges(paths, starts, ends, *args, stats={}, on_error="return")
        if on_error != "return":
            for error in (one for one in found if isinstance(one, Exception)):
                raise error
        return found

    async def _get(self, rpath: Any, lpath: Any, recursive: bool = False, **options: Any) -> Any:
        return await super()._get(rpath, lpath, recursive, in_tree=recursive, **options)

    async def _get_file(
        self,
        rpath: Any,
        lpath: Any = None,
        callback: Any = DEFAULT_CALLBACK,
        outfile: Any = None,
        in_tree: bool = False,
        **_: Any,
    ) -> None:
        url = self.url(rpath)
        if outfile is not None or isfilelike(lpath):
            await asyncio.to_thread(self._copy_into, outfile or lpath, rpath, callback)
            return
        if in_tree and not await self._lies_in_tree(rpath):
            _log.warning("%s is left out: a link that leads to no file, or a special file", url)
            return
        info = await self._info(rpath)
        if info["type"] == "directory":
            os.makedirs(lpath, exist_ok=True)
            return
        callback.set_size(info["size"])
        expect = Stat(info["type"], info["size"], info["mtime"], info["mode"])
        tell = _on_progress(callback)
        try:
            await self._ask("fetch", url, lpath, expect=expect, on_progress=tell)
        except RemoteChanged:  # since it was listed
            await self._ask("fetch", url, lpath, on_progress=tell)

    async def _lies_in_tree(self, path: str) -> bool:
        """Whether a copy of a tree has it: as everywhere, only files and directories."""
        if self._strip_protocol(path) in self._known():
            return True
        stat = await self._ask("stat", self.url(path), follow=False)
        return stat.kind in ("file", "directory") or await self._isfile(path)

    def _copy_into(self, outfile: Any, path: str, callback: Any) -> None:
        with self._open(path) as file:
            callback.set_size(file.size)
            while data := file.read(BLOCK_BYTES):
                outfile.write(data)
                callback.relative_update(len(data))

    # --- writing ---------------------------------------------------------------------------

    async def _refuse_existing(self, path: Any) -> None:
        if await self._lexists(path):
            raise RemoteFileExists("exists already", str(self.url(path)))

    async def _store(self, local: Any, path: Any, mode: str, tell: Any = None) -> None:
        if mode == "create":
            await self._refuse_existing(path)
        overwrite = mode != "create"
        await self._change("store", local, self.url(path), overwrite=overwrite, on_progress=tell)

    async def _put_file(
        self,
        lpath: Any,
        rpath: Any,
        callback: Any = DEFAULT_CALLBACK,
        mode: str = "overwrite",
        **_: Any,
    ) -> None:
        if os.path.isdir(lpath):
            await self._makedirs(rpath, exist_ok=True)
            return
        callback.set_size(os.path.getsize(lpath))
        await self._store(lpath, rpath, mode, _on_progress(callback))

    async def _pipe_file(self, path: Any, value: Any, mode: str = "overwrite", **_: Any) -> None:
        with _local_place() as local:
            await asyncio.to_thread(_write, local, value)
            with contextlib.suppress(*NOTHING_TOLD):
                date_after(local, await self._ask("stat", self.url(path)))
            await self._store(local, path, mode)

    async def _cp_file(self, path1: Any, path2: Any, **_: Any) -> None:
        if await self._isdir(path1):
            await self._makedirs(path2, exist_ok=True)
            return
        with contextlib.suppress(RemoteFileNotFound):  # the directory, perhaps: it is made below
            if await self._change("copy", self.url(path1), self.url(path2)) is not None:
                return
        with _local_place() as local:
            await self._ask("fetch", self.url(path1), local)
            await self._store(local, path2, "overwrite")

    async def _copy(
        self, path1: Any, path2: Any, *args: Any, batch_size: int | None = None, **options: Any
    ) -> None:
        batch_size = batch_size or min(COPIES_AT_ONCE, self.batch_size)
        await super()._copy(path1, path2, *args, batch_size=batch_size, **options)

    async def _mv(self, path1: Any, path2: Any, **_: Any) -> None:
        """Rename; several, and what goes into a directory, under their own names."""
        one = isinstance(path1, str) and not has_magic(path1)
        sources = [self._strip_protocol(path1)] if one else await self._expand_path(path1)
        asked = stringify_path(path2).endswith("/")
        target = self._strip_protocol(path2)
        if asked:
            await self._makedirs(target, exist_ok=True)
        into = asked or not one or await self._isdir(target)
        places = [
            child_path(target, posixpath.basename(one)) if into else target for one in sources
        ]
        twice = next((place for place, times in Counter(places).items() if times > 1), None)
        if twice is not None:
            raise ConfigurationError("two of the sources would become this", str(self.url(twice)))
        for source, new in zip(sources, places, strict=True):
            if self.url(source) != self.url(new):
                await self._change("rename", self.url(source), self.url(new))

    async def _rm_file(self, path: Any, **_: Any) -> None:
        await self._change("remove", self.url(path))

    async def _rm(
        self, path: Any, recursive: bool = False, maxdepth: int | None = None, **_: Any
    ) -> None:
        async def remove_tree(top: str) -> None:
            await self._change("remove", self.url(top), recursive=True)

        if recursive and maxdepth is None:
            await each(remove_tree, _tops(await self._expand_path(path)), LISTINGS_AT_ONCE)
            return
        paths = await self._expand_path(path, recursive=recursive, maxdepth=maxdepth)
        directories = [one for one in paths if recursive and await self._isdir(one)]
        await each(self._rm_file, sorted(set(paths).difference(directories)), FILES_AT_ONCE)
        for directory in reversed(directories):
            await self._rmdir(directory)

    async def _mkdir(self, path: Any, create_parents: bool = True, **_: Any) -> None:
        await self._refuse_existing(path)
        await self._change("mkdir", self.url(path), parents=create_parents)

    async def _makedirs(self, path: Any, exist_ok: bool = False) -> None:
        if not exist_ok:
            await self._refuse_existing(path)
        await self._change("mkdir", self.url(path))

    async def _rmdir(self, path: Any) -> None:
        await self._change("rmdir", self.url(path))

    async def _touch(self, path: Any, truncate: bool = True, **_: Any) -> None:
        if truncate or not await self._exists(path):
            await self._pipe_file(path, b"")
        else:
            await self._change("touch", self.url(path))

    # --- open files ------------------------------------------------------------------------

    def open(self, path: Any, mode: str = "rb", *args: Any, **options: Any) -> Any:
        """Open a file: "r" as a `ReadFile`, anything else as a `WriteFile`.

        "w" begins anew, "x" makes a new file; "a" and "r+" fetch what is there, and store it anew
        with what has been written. Each of them may read, too. With a ``cache_type`` of fsspec's
        "r" keeps parts of the file as that one does.
        """
        if mode in ("r", "rt", "rb"):
            return super().open(path, mode, *args, **options)
        names = ("encoding", "errors", "newline")
        text = {name: options.pop(name) for name in names if name in options}
        compression = get_compression(path, options.pop("compression", None))
        binary = mode.replace("t", "").replace("b", "") + "b"
        file = super().open(path, binary, *args, compress=compression, **options)
        return file if "b" in mode else WriteText(file, **text)

    def _open(
        self,
        path: Any,
        mode: str = "rb",
        autocommit: bool = True,
        compress: str | None = None,
        block_size: int | None = None,
        cache_type: str | None = None,
        cache_options: dict[str, Any] | None = None,
        **_: Any,
    ) -> Any:
        url = self.url(path)
        if mode == "rb":
            lease = self._borrow(url)
            stat = lease.stat if lease else _file(wait_for(self.engine.stat(url)), url)
            whole = ReadFile(self, path, stat, lease)
            if cache_type is None:
                return whole
            return PartsFile(whole, block_size, cache_type, cache_options)
        if mode not in WRITING:
            raise ConfigurationError(
                f"a file is opened with r, w, x, a or r+, not {mode!r}", str(url)
            )
        if mode[0] == "x":
            with contextlib.suppress(RemoteFileNotFound):
                wait_for(self.engine.stat(url, follow=False))
                raise RemoteFileExists("exists already", str(url))
        file = WriteFile(self, path, mode, autocommit, compress)
        if mode[0] == "r" and not autocommit:  # fsspec leaves it out
            self.transaction.files.append(file)
        return file

    def open_known(self, path: str, stat: Stat) -> ReadFile:
        """Open a file for reading of which it is known what it is, when it is first read."""
        return ReadFile(self, path, stat, borrow=lambda: self._borrow(self.url(path), stat))

    def _borrow(self, url: RemoteURL, stat: Stat | None = None) -> Lease | None:
        """Return a lease on a staged file, if somebody stages files for this process."""
        if lending.lend is None:
            return None
        try:
            lent = lending.lend(self._reach()[0], url, stat)
            return wait_for(lent) if lent is not None else None
        except LocalStorageFull:
            return None  # the server gives what is read of it


mirror(RemoteFileSystem)


# --- pieces -----------------------------------------------------------------------------------


def _file(stat: Stat, url: RemoteURL) -> Stat:
    if stat.kind == "directory":
        raise RemoteIsADirectory("is a directory; a file was meant", str(url))
    return stat


def _tops(paths: Iterable[str]) -> list[str]:
    """Leave out paths that are below others."""
    tops: list[str] = []
    for path in sorted(paths, key=lambda path: path.split("/")):
        if not tops or not path.startswith(tops[-1].rstrip("/") + "/"):
            tops.append(path)
    return tops


def _on_progress(callback: Any) -> Callable[[int, int], None] | None:
    if isinstance(callback, NoOpCallback):
        return None
    return lambda count, _files: callback.relative_update(count)


@contextlib.contextmanager
def _local_place() -> Iterator[str]:
    with OwnDirectory() as own:
        yield os.path.join(own.path, "content")


def _read(lease: Lease, first: int, stop: int) -> bytes:
    with naming(lease.path), lease, open(lease.path, "rb") as file:
        file.seek(first)
        return file.read(max(0, stop - first))


def _write(path: str, value: Any) -> None:
    with naming(path), open(path, "wb") as file:
        file.write(value)
