"""Remote: a directory on a server, for scripts and notebooks."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import IO, Any

from .asker import may_ask
from .config import ConnectionSettings
from .engine import AnyPath, TransferEngine
from .errors import (
    ConfigurationError,
    NoRemoteConfigured,
    RemoteFileNotFound,
    ServerRefused,
    raise_failures,
)
from .finding import find, locate_pattern
from .futures import wait_for
from .model import Entry, Stat, TreeResult
from .placing import get_all, own_name, put_all, sync_trees
from .progress import Progress, shown
from .spool import LISTINGS_AT_ONCE, Spool
from .stream import BLOCK_BYTES, RemoteReader, Streamed, stream_files
from .url import RemoteURL, looks_like_url

SORTED_ENTRIES = 10_000


class Remote:
    """A remote directory; paths are relative to it, or absolute, or whole URLs.

    Parameters
    ----------
    url : str or RemoteURL, optional
        Default: the configured remote (environment or config file). Where none is configured
        and there is a terminal, it is asked for.
    engine : TransferEngine, optional
        Use this engine, and leave it open. Default: one of its own.
    **settings
        Fields of `ConnectionSettings`.

    Raises
    ------
    ConfigurationError
        If no remote is given or configured, or a setting is wrong.

    Notes
    -----
    Thread-safe. Nothing connects before the first request. Every method waits for its result
    and raises a `TransferError` if it fails.
    """

    def __init__(
        self,
        url: str | RemoteURL | None = None,
        *,
        engine: TransferEngine | None = None,
        **settings: Any,
    ) -> None:
        if engine is not None and settings:
            raise ConfigurationError("give either an engine or settings: the engine has its own")
        loaded = engine.settings if engine else ConnectionSettings.load(**settings)
        try:
            self.url = RemoteURL.parse(url) if url is not None else loaded.root()
        except NoRemoteConfigured:
            from .interactive import set_up

            if engine is not None or not may_ask():
                raise
            set_up()
            loaded = ConnectionSettings.load(**settings)
            self.url = loaded.root()
        given = [name for name in ("password", "one_time_code") if settings.get(name)]
        if given and self.url.host != loaded.host:
            # Given together with the URL: meant for its host, not for the configured one.
            secrets = {name: getattr(loaded, name) for name in given}
            loaded = replace(loaded.for_url(self.url), **secrets)
        self._owns_engine = engine is None
        self.engine = engine or TransferEngine(loaded, ask=may_ask())

    def __enter__(self) -> Remote:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Remote({str(self.url)!r})"

    def close(self) -> None:
        """End the engine, if it is this object's own."""
        if self._owns_engine:
            self.engine.close()

    def locate(self, path: str | RemoteURL) -> RemoteURL:
        """Return the URL of a path."""
        if isinstance(path, RemoteURL):
            return path
        return RemoteURL.parse(path) if looks_like_url(path) else self.url.join(path)

    # --- looking ---------------------------------------------------------------------------

    def ls(self, path: str | RemoteURL = "") -> list[str]:
        """Return the names in a directory, sorted; for a file, its name."""
        return [entry.name for entry in self.scandir(path)]

    def scandir(self, path: str | RemoteURL = "") -> list[Entry]:
        """Return the entries of a directory, sorted by name; for a file, its own."""
        url = self.locate(path)
        try:
            entries = wait_for(self.engine.scandir(url))
            return sorted(entries)
        except ServerRefused:
            stat = wait_for(self.engine.stat(url))
            if stat.kind == "directory":
                raise
            return [Entry(url.name, stat)]

    def iterdir(self, path: str | RemoteURL = "") -> Iterator[Entry]:
        """Yield the entries of a directory as they come, unsorted; for a file, its own.

        However large the directory is, memory is bounded. Closing the generator ends the listing.
        """
        url = self.locate(path)
        begun = False
        try:
            with self.engine.iterdir(url) as entries:
                for entry in entries:
                    begun = True
                    yield entry
        except ServerRefused:
            stat = None if begun else wait_for(self.engine.stat(url))
            if stat is None or stat.kind == "directory":
                raise
            yield Entry(url.name, stat)

    def stat(self, path: str | RemoteURL = "") -> Stat:
        """Return what the server says of a file; links are followed."""
        return wait_for(self.engine.stat(self.locate(path)))

    def exists(self, path: str | RemoteURL) -> bool:
        """Whether there is such a file or directory. Anything else than yes or no is an error."""
        try:
            self.stat(path)
        except RemoteFileNotFound:
            return False
        return True

    def walk(self, path: str | RemoteURL = "") -> Iterator[tuple[str, Stat]]:
        """Yield (relative path, stat) of all that is below a directory; links are not followed.

        Directories come before what is in them. Several are listed at once. However large the
        tree is, memory is bounded; so only directories of moderate size come sorted. Closing the
        generator ends the listings.
        """
        top = self.locate(path)
        waiting = deque([("", self.engine.iterdir(top))])
        unlisted = Spool()
        try:
            while waiting:
                parent, entries = waiting[0]
                while some := sorted(islice(entries, SORTED_ENTRIES)):
                    for name, stat in some:
                        below = f"{parent}/{name}" if parent else name
                        yield below, stat
                        if stat.kind == "directory":
                            unlisted.append(below)
                waiting.popleft()
                while unlisted and len(waiting) < LISTINGS_AT_ONCE:
                    below = unlisted.popleft()
                    waiting.append((below, self.engine.iterdir(top.join(below))))
        finally:
            for _, entries in waiting:
                entries.close()

    def glob(self, pattern: str) -> Iterator[str]:
        """Yield the paths of files and directories that match, as they are found.

        Parameters
        ----------
        pattern : str
            ``*.tif``, ``run?/[ab]*/x.csv``, ``**/*.tif``: ``**`` stands for any number of
            directories. Relative patterns give relative paths, URLs give URLs. ``[*]`` stands for
            a real ``*`` (`glob.escape` writes it), in a URL ``%2A`` does, too.

        Notes
        -----
        Each directory is listed once, and only if something below it may match. Links count as
        what they point to, but ``**`` does not descend into them. Names that begin with a dot
        match only a pattern that does. A pattern that ends in ``/`` finds directories only.
        """
        prefix = self.url.path.rstrip("/") + "/"
        for url, _ in find(self.engine, locate_pattern(self.url, pattern)):
            if looks_like_url(pattern):
                yield str(url)
            else:
                relative = not pattern.startswith("/") and url.path.startswith(prefix)
                yield url.path.removeprefix(prefix) if relative else url.path

    def du(self, path: str | RemoteURL = "") -> int:
        """Return the bytes of a file, or of all files below a directory."""
        stat = self.stat(path)
        if stat.kind != "directory":
            return stat.size
        return sum(found.size for _, found in self.walk(path) if found.kind == "file")

    # --- moving ----------------------------------------------------------------------------

    def get(
        self,
        source: str | RemoteURL,
        destination: AnyPath = ".",
        *,
        verify: bool = False,
        modes: bool = False,
        progress: bool | Progress | None = None,
    ) -> Path:
        """Download a file, or a directory with all that is in it.

        Parameters
        ----------
        source : str or RemoteURL
        destination : path-like
            An existing directory, or one that ends in ``/``, receives the source under its own
            name; otherwise this is the new name. Missing parents are made.
        verify : bool
            Read every file a second time, and compare, before it gets its name.
        modes : bool
            Keep the permission bits of files.
        progress : bool or callable
            True for a bar on a terminal; or a function of (bytes, files).

        Returns
        -------
        pathlib.Path
            Where it is now.

        Raises
        ------
        TransferError
            If it fails. Of a directory, the files that could be moved are then there.
        """
        url = self.locate(source)
        with shown(progress, url.name or url.host) as tell:
            (target,), result = get_all(
                self.engine, [url], destination, verify=verify, modes=modes, tell=tell
            )
        raise_failures(result)
        return target

    def get_many(
        self,
        sources: Iterable[str | RemoteURL],
        directory: AnyPath = ".",
        *,
        verify: bool = False,
        modes: bool = False,
        progress: bool | Progress | None = None,
    ) -> list[Path]:
        """Download many files into one directory, all at once.

        Returns
        -------
        list of pathlib.Path
            Where they are now, in the order of the sources.

        Raises
        ------
        ConfigurationError
            If two sources have the same name.
        TransferError
            If one fails; the others have been moved by then.
        """
        urls = [self.locate(source) for source in _several(sources)]
        targets = [Path(directory) / url.name for url in urls]
        if len(set(targets)) < len(targets):
            twice = next(t.name for i, t in enumerate(targets) if t in targets[:i])
            raise ConfigurationError(f"two of the files are called {twice!r}")
        with shown(progress, f"{len(urls)} files") as tell:
            pairs = zip(urls, targets, strict=True)
            many = self.engine.fetch_many(pairs, verify=verify, modes=modes, on_progress=tell)
            raise_failures(wait_for(many))
        return targets

    def put(
        self,
        source: AnyPath,
        destination: str | RemoteURL = "",
        *,
        verify: bool = False,
        modes: bool = False,
        progress: bool | Progress | None = None,
    ) -> RemoteURL:
        """Upload a file, or a directory with all that is in it; the mirror of `get`.

        Returns
        -------
        RemoteURL
            Where it is now.
        """
        url = self.locate(destination)
        with shown(progress, own_name(source)) as tell:
            (target,), result = put_all(
                self.engine, [source], url, verify=verify, modes=modes, tell=tell
            )
        raise_failures(result)
        return target

    def sync(
        self,
        remote: str | RemoteURL = "",
        local: AnyPath = ".",
        *,
        direction: str = "down",
        delete: bool = False,
        replace: bool = False,
        size_only: bool = False,
        include: Iterable[str] = (),
        exclude: Iterable[str] = (),
        dry_run: bool = False,
        verify: bool | str = False,
        modes: bool = False,
        progress: bool | Progress | None = None,
    ) -> TreeResult:
        """Make one directory hold what the other holds; files with equal size and mtime stay.

        Parameters
        ----------
        remote : str or RemoteURL
        local : path-like
        direction : {"down", "up"}
            Which of both is changed: the local one, or the remote one.
        delete : bool
            Remove what the source does not hold.
        replace : bool
            Move files although size and mtime agree.
        size_only : bool
            Leave files alone whose size agrees, whatever their mtime: for servers that keep times
            of their own.
        include, exclude : iterable of str
            Patterns: ``*.csv`` for names at any depth, ``raw/**/*.csv`` for paths. Only files
            that match an included pattern, and none that matches an excluded one.
        dry_run : bool
            Change nothing; the result's ``planned`` tells what would be done.
        verify : bool or str
            True: compare what was moved with its source byte by byte, and so, too, what size and
            mtime say is the same. A name: that of a manifest in the remote directory, such as
            ``SHA256SUMS``; ``direction="down"`` compares all files that it lists with it,
            ``direction="up"`` writes it.
        modes : bool
            Keep the permission bits of files that are moved.
        progress : bool or callable
            As for `get`.

        Returns
        -------
        TreeResult

        Raises
        ------
        TransferError
            If a file fails; the others have been moved by then.
        """
        if direction not in ("down", "up"):
            raise ConfigurationError(f"direction is 'down' or 'up', not {direction!r}")
        with shown(progress, "sync") as tell:
            result = sync_trees(
                self.engine,
                self.locate(remote),
                local,
                up=direction == "up",
                tell=tell,
                compare=not replace,
                size_only=size_only,
                delete=delete,
                include=include,
                exclude=exclude,
                dry_run=dry_run,
                verify=verify is True,
                modes=modes,
                manifest=verify if isinstance(verify, str) else None,
            )
        raise_failures(result)
        return result

    def open(self, path: str | RemoteURL, mode: str = "rb") -> IO[Any]:
        """Open a file for reading without downloading it: seekable, read ahead.

        Parameters
        ----------
        path : str or RemoteURL
        mode : {"rb", "r", "rt"}
            Text is UTF-8.

        Raises
        ------
        ConfigurationError
            For any other mode; upload with `put`.
        """
        if mode not in ("rb", "r", "rt"):
            raise ConfigurationError(f"a remote file is opened with 'rb' or 'r', not {mode!r}")
        url = self.locate(path)
        reader: Any = RemoteReader(self.engine, url, wait_for(self.engine.stat(url)))
        buffered = io.BufferedReader(reader, BLOCK_BYTES)  # finds lines without Python's help
        return buffered if mode == "rb" else io.TextIOWrapper(buffered, encoding="utf-8")

    def stream(
        self,
        paths: Iterable[str | RemoteURL],
        *,
        ahead_files: int = 64,
        ahead_bytes: int = 1 << 30,
        clear: bool = False,
        directory: AnyPath | None = None,
    ) -> Iterator[Streamed]:
        """Yield (local, remote) of files in order, fetched ahead of their use.

        Parameters
        ----------
        paths : iterable of str or RemoteURL
            Taken as they are needed: it may be endless.
        ahead_files, ahead_bytes : int
            How much may be on its way or waiting on disk.
        clear : bool
            Remove each file when the next one is asked for.
        directory : path-like, optional
            Where they go. Default: a temporary directory, which goes with the end of the stream.
        """
        return stream_files(
            self.engine,
            map(self.locate, _several(paths)),
            Path(directory) if directory is not None else None,
            ahead_files=ahead_files,
            ahead_bytes=ahead_bytes,
            clear=clear,
        )

    # --- changing --------------------------------------------------------------------------

    def mkdir(self, path: str | RemoteURL) -> None:
        """Make a directory and its parents; an existing one is no error."""
        wait_for(self.engine.mkdir(self.locate(path)))

    def rm(self, path: str | RemoteURL, *, recursive: bool = False) -> None:
        """Remove a file; with ``recursive`` a directory and all that is in it.

        Raises
        ------
        ConfigurationError
            If, with ``recursive``, that would be all that is on the server or in the login
            directory, or if a relative path means the directory where such paths begin, or one
            above it.
        """
        url = self.locate(path)
        if recursive:
            check_removal(path, url, self.url)
        wait_for(self.engine.remove(url, recursive=recursive))


def check_removal(path: str | RemoteURL, url: RemoteURL, base: RemoteURL) -> None:
    """Refuse a path, which means this URL, if it means more than anybody would remove by it.

    A variable that is not set must not mean ``base``, where relative paths begin, nor a directory
    above it.
    """
    is_named = isinstance(path, RemoteURL) or looks_like_url(path) or path.startswith("/")
    if url.path in ("/", "/~") or (not is_named and f"{base.path}/".startswith(f"{url.path}/")):
        raise ConfigurationError("this would remove all that is there; name it", str(url))


def _several(paths: Iterable[str | RemoteURL]) -> Iterable[str | RemoteURL]:
    """Refuse a single path, whose letters would be taken for paths."""
    if isinstance(paths, str | RemoteURL):
        raise ConfigurationError(f"several files were meant; write [{str(paths)!r}]")
    return paths
