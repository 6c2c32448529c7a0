"""IOHandler: pyRemoteData's names on top of `Remote`.

Scripts written for pyRemoteData change their import lines and go on. What they relied on stays:
names, arguments, results. What they suffered from is gone.
"""

from __future__ import annotations

import logging
import os
import posixpath
import re
import tempfile
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from .asker import may_ask
from .engine import TransferEngine
from .errors import (
    RemoteFileNotFound,
    RemotePermissionDenied,
    ServerRefused,
    TransferError,
    raise_failures,
)
from .futures import wait_for
from .local import remove_local
from .model import Stat, TreeResult
from .names import absolute
from .placing import wait_for_stores
from .remote import Remote, check_removal
from .url import RemoteURL, normalise

_log = logging.getLogger(__name__)
INDEX = ".folder_index.txt"
_NOT_INDEXED = {INDEX, "folder_index.txt"}
Paths = str | list[str] | tuple[str, ...]


class IOHandler:
    """A connection with a current remote and a current local directory.

    Parameters
    ----------
    local_dir : str, optional
        The local directory. Default: the configured one, else a new temporary directory, which
        is the caller's to remove (or see ``clean``).
    user_confirmation : bool
        Ask on the terminal before `clean` deletes.
    clean : bool
        Call `clean` in the end.
    user, password, remote : str, optional
        The account and the host; default as configured.
    lftp_settings, verbose
        Have no effect; name a key with ``ssh_key``.
    **settings
        Other fields of `ConnectionSettings`.

    Raises
    ------
    ConfigurationError
        If no remote is given or configured, or a setting is wrong.

    Notes
    -----
    Use it as a context manager, or call `start` and `stop`. Relative remote paths begin at `pwd`,
    relative local ones at `lpwd`. Failures are `TransferError`. Not thread-safe.
    """

    def __init__(
        self,
        local_dir: str | None = None,
        user_confirmation: bool = False,
        clean: bool = False,
        user: str | None = None,
        password: str | None = None,
        remote: str | None = None,
        lftp_settings: dict[str, str] | None = None,
        verbose: bool = False,  # noqa: ARG002 - see the module `logging`
        **settings: Any,
    ) -> None:
        if lftp_settings:
            _log.warning("lftp_settings has no effect; ssh_key and ssh_config name what ssh needs")
        self.user_confirmation = user_confirmation
        self.do_clean = clean
        self._owner = os.getpid()  # a forked child leaves the local files to its parent
        self.cache: dict[str, list[str]] = {}
        self._remote = Remote(username=user, password=password, host=remote, **settings)
        self._directory = self._remote.url
        self._local_given = local_dir or self._remote.engine.settings.local_directory or None
        self._local: Path | None = None
        self._own_local: Path | None = None

    def __enter__(self) -> Self:
        if self._remote.engine.closed:
            engine = TransferEngine(self._remote.engine.settings, ask=may_ask())
            self._remote = Remote(self._remote.url, engine=engine)
        # A wrong login is told here; and `pwd` is to be the server's own name for it.
        real = wait_for(self._remote.engine.realpath(self._directory))
        self._directory = replace(self._directory, path=normalise(real))
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self.do_clean and os.getpid() == self._owner:
                self.clean()
        finally:
            self._remote.engine.close()

    def start(self) -> None:
        """Connect; for interactive use. Remember `stop`."""
        self.__enter__()

    def stop(self) -> None:
        """Close the connection."""
        self.__exit__()

    # --- where we are ----------------------------------------------------------------------

    def cd(self, remote_path: str) -> None:
        """Change the current remote directory."""
        url = self._url(remote_path)
        if self._remote.stat(url).kind != "directory":
            raise ServerRefused("is a file; a directory was meant", str(url))
        self._directory = url

    def pwd(self) -> str:
        """Return the current remote directory."""
        return self._directory.path

    def lcd(self, local_path: str) -> None:
        """Change the current local directory."""
        path = self._local_path(local_path)
        if not path.is_dir():
            raise TransferError(f"{path}: no such directory")
        self._local = path

    def lpwd(self) -> str:
        """Return the current local directory."""
        if self._local is None:
            if self._local_given:
                self._local = Path(self._local_given).absolute()
                self._local.mkdir(parents=True, exist_ok=True)
            else:
                self._local = self._own_local = Path(tempfile.mkdtemp(prefix="pyremotedata-"))
        return str(self._local)

    # --- looking ---------------------------------------------------------------------------

    def ls(
        self,
        path: str = ".",
        recursive: bool = False,
        use_cache: bool = True,  # noqa: ARG002 - listings are never remembered
        pbar: int = 0,  # noqa: ARG002
    ) -> list[str]:
        """List a directory; with ``recursive`` the files below it, in paths for `download`.

        The index of files is not listed.
        """
        url = self._url(path)
        prefix = "" if path in ("", ".", "./") else posixpath.normpath(path) + "/"
        if not recursive:
            return [prefix + name for name in self._remote.ls(url) if name not in _NOT_INDEXED]
        found = (path for path, stat in self._remote.walk(url) if stat.kind != "directory")
        return sorted(
            prefix + path for path in found if posixpath.basename(path) not in _NOT_INDEXED
        )

    def lls(
        self,
        local_path: str = ".",
        recursive: bool = False,
        R: bool = False,  # noqa: N803
    ) -> list[str]:
        """List a local directory; with ``recursive`` (or ``R``) the files below it, relative."""
        top = self._local_path(local_path)
        if not (recursive or R):
            return sorted(os.listdir(top))
        return sorted(str(p.relative_to(top)) for p in top.rglob("*") if p.is_file())

    def exists(self, path: str, mode: str = "any") -> bool:
        """Whether there is a file (``mode="file"``), a directory, or either (``"any"``)."""
        mode = mode.strip().lower()
        if mode not in ("any", "file", "directory"):
            raise ValueError(f"mode is 'any', 'file' or 'directory', not {mode!r}")
        try:
            stat = self._remote.stat(self._url(path))
        except RemoteFileNotFound:
            return False
        return mode in ("any", stat.kind)

    def du(self, path: str = ".", all: bool = False, bytes: bool = True) -> dict[str, int]:  # noqa: A002
        """Return the size of what is below a path, by path; in bytes, else in KB.

        With ``all`` also the size of every file and directory below it.
        """
        sizes = {path: 0}
        for below, stat in self._remote.walk(self._url(path)):
            if stat.kind == "file":
                sizes[path] += stat.size
            if all:
                self._add_sizes(sizes, path, below, stat)
        return sizes if bytes else {p: -(-size // 1024) for p, size in sizes.items()}

    # --- moving ----------------------------------------------------------------------------

    def download(
        self,
        remote_path: Paths,
        local_destination: Paths | None = None,
        n: int = 14,  # noqa: ARG002 - the engine decides how much at once
        blocking: bool = True,
    ) -> Any:
        """Download files, or one directory, into local directories.

        Parameters
        ----------
        remote_path : str, or list or tuple of str
            Files, or one directory.
        local_destination : str, or list or tuple of str, optional
            The directory that receives them, or one for each. Default: the current one, where
            each of several keeps the directories of its path. The content of a remote directory
            goes into it.
        n : int
            Accepted and not used.
        blocking : bool
            Wait. Otherwise return a future at once, for a single file or directory.

        Returns
        -------
        str, or list or tuple of str
            Local paths, as many as were asked for.
        """
        if not isinstance(remote_path, str):
            return self._download_many(remote_path, local_destination)
        if local_destination is not None and not isinstance(local_destination, str):
            raise ValueError("one file or directory has one destination")
        url = self._url(remote_path)
        into = self._local_path(local_destination or ".")
        if self._remote.stat(url).kind == "directory":
            if local_destination is None:
                raise ValueError("a directory needs a local destination")
            tree = self._remote.engine.fetch_tree(url, into)
            return self._outcome(tree, str(into), blocking)
        target = into / url.name
        return self._outcome(self._remote.engine.fetch(url, target), str(target), blocking)

    def upload(
        self,
        local_path: Paths,
        remote_destination: Paths | None = None,
        n: int = 14,  # noqa: ARG002 - the engine decides how much at once
        blocking: bool = True,
    ) -> Any:
        """Upload files, or one directory, into remote directories; the mirror of `download`.

        Returns
        -------
        str, or list or tuple of str
            Remote paths, as many as were asked for.
        """
        if not isinstance(local_path, str):
            return self._upload_many(local_path, remote_destination)
        if remote_destination is not None and not isinstance(remote_destination, str):
            raise ValueError("one file or directory has one destination")
        source = self._local_path(local_path)
        into = self._url(remote_destination or ".")
        if source.is_dir():
            if remote_destination is None:
                raise ValueError("a directory needs a remote destination")
            tree = self._remote.engine.store_tree(source, into)
            return self._outcome(tree, into.path, blocking)
        target = into.join(source.name)
        stored = self._remote.engine.store(source, target)
        return self._outcome(stored, target.path, blocking)

    def sync(
        self,
        local_destination: str | None = None,
        direction: str = "down",
        allow_root: bool = False,
        progress: bool = False,
        batch_size: int = 128,  # noqa: ARG002 - the engine decides how much at once
        replace_local: bool = False,
        refresh_cache: bool = False,  # noqa: ARG002 - what is there is asked of the server
        n: int = 14,  # noqa: ARG002
    ) -> list[str]:
        """Make a local directory hold what the current remote one holds, or the reverse.

        Parameters
        ----------
        local_destination : str, optional
            Default: a directory of the same name in the current local one. A relative path begins
            at the working directory of the process.
        direction : {"down", "up", "both"}
        allow_root : bool
            Allow the root of the remote or of the local file system.
        progress : bool
            Show a bar on a terminal.
        replace_local : bool
            Move files although size and mtime agree.

        Returns
        -------
        list of str
            Relative paths of all files that the local directory now holds.
        """
        direction = direction.lower()
        if direction not in ("down", "up", "both"):
            raise ValueError(f"direction is 'down', 'up' or 'both', not {direction!r}")
        name = self._directory.name.removeprefix("~")
        if not name and local_destination is None and not allow_root:
            raise ValueError("this would be the whole remote; say so with allow_root=True")
        if local_destination is None:
            local = self._local_path(name or ".")
        else:
            local = Path(absolute(os.path.expandvars(Path(local_destination).expanduser())))
        if local == local.parent and not allow_root:
            raise ValueError("this is the root of the local file system; allow_root=True allows it")
        local.mkdir(parents=True, exist_ok=True)
        ways = ("down", "up") if direction == "both" else (direction,)
        for way in ways:
            self._remote.sync(
                self._directory,
                local,
                direction=way,
                exclude=_NOT_INDEXED,
                progress=progress,
                replace=replace_local,
            )
        return self.lls(str(local), recursive=True)

    def rm(self, path: Paths, force: bool = False) -> None:
        """Remove files; with ``force`` directories with all that is in them, too.

        With ``force`` a missing one is no error, but more than anybody would remove is: the root
        of the server, the login directory, and by a relative path the current directory or one
        above it.
        """
        paths = [path] if isinstance(path, str) else path
        urls = [self._url(one) for one in paths]
        if force:
            for one, url in zip(paths, urls, strict=True):
                check_removal(one, url, self._directory)
        for url in urls:
            wait_for(self._remote.engine.remove(url, recursive=force, missing_ok=force))

    # --- the index of files ------------------------------------------------------------------

    def get_file_index(
        self,
        skip: int = 0,
        nmax: int | None = None,
        override: bool = False,
        store: bool = True,
        pattern: str | None = None,
    ) -> list[str]:
        """Return the files below the current remote directory, from an index kept there.

        Parameters
        ----------
        skip, nmax : int
            Leave out the first ones; return so many at the most.
        override : bool
            Make the index anew.
        store : bool
            Keep it on the server (as ``.folder_index.txt``) for the next time.
        pattern : str, optional
            A regular expression that is searched in each path.
        """
        if override and not store:
            raise ValueError("override needs store: what is stored is made anew")
        files = None if override else self._stored_index()
        if files is None:
            files = self.ls(recursive=True)
            if store:
                self._store_index(files)
        search = re.compile(pattern).search if pattern else bool
        found = [f for f in files if f not in _NOT_INDEXED and search(f)]
        return found[skip : None if nmax is None else skip + nmax]

    def cache_file_index(
        self, skip: int = 0, nmax: int | None = None, override: bool = False
    ) -> None:
        """Remember the index of the current directory in this object."""
        self.cache[self.pwd()] = self.get_file_index(skip, nmax, override)

    def clean(self) -> None:
        """Delete what is in the current local directory; a temporary one goes altogether."""
        local = Path(self.lpwd())
        if self.user_confirmation:
            answer = input(f"Delete all that is in {local}? (y/n) ")
            if answer.strip().lower() != "y":
                return
        for path in local.iterdir():
            remove_local(path)
        if local == self._own_local:
            local.rmdir()
            self._local = self._own_local = None

    # --- details -----------------------------------------------------------------------------

    @staticmethod
    def _add_sizes(sizes: dict[str, int], path: str, below: str, stat: Stat) -> None:
        size = stat.size if stat.kind == "file" else 0
        while below:
            joined = posixpath.join(path, below)
            sizes[joined] = sizes.get(joined, 0) + size
            below = posixpath.dirname(below)

    def _url(self, path: str) -> RemoteURL:
        return replace(self._directory.join(path), trailing_slash=False)

    def _local_path(self, path: str) -> Path:
        return Path(absolute(os.path.join(self.lpwd(), Path(path).expanduser())))

    def _download_many(self, remote_paths: Sequence[str], destination: Paths | None) -> Any:
        urls = [self._url(path) for path in remote_paths]
        if destination is None:  # each below the current directory as it is below the remote one
            targets = [self._local_path(_below_top(path)) for path in remote_paths]
        else:
            places = _one_for_each(destination, len(urls))
            targets = [self._local_path(p) / u.name for p, u in zip(places, urls, strict=True)]
        if len(set(targets)) < len(targets):
            raise ValueError("two of the files would have the same local path")
        pairs = zip(urls, targets, strict=True)
        raise_failures(wait_for(self._remote.engine.fetch_many(pairs)))
        return type(remote_paths)(str(target) for target in targets)  # type: ignore[call-arg]

    def _upload_many(self, local_paths: Sequence[str], destination: Paths | None) -> Any:
        sources = [self._local_path(path) for path in local_paths]
        places = _one_for_each(destination, len(sources))
        targets = [self._url(p).join(s.name) for p, s in zip(places, sources, strict=True)]
        stores = [
            self._remote.engine.store(source, target)
            for source, target in zip(sources, targets, strict=True)
        ]
        raise_failures(wait_for_stores(stores))
        return type(local_paths)(target.path for target in targets)  # type: ignore[call-arg]

    def _outcome(self, future: Future[Any], path: str, blocking: bool) -> Any:
        if not blocking:
            return future
        result = wait_for(future)
        if isinstance(result, TreeResult):
            raise_failures(result)
        return path

    def _stored_index(self) -> list[str] | None:
        try:
            with self._remote.open(self._directory.join(INDEX)) as file:
                text = file.read().decode("utf-8", "surrogateescape")
        except RemoteFileNotFound:
            return None
        return [line for line in text.split("\n") if line]

    def _store_index(self, files: list[str]) -> None:
        text = "".join(f"{file}\n" for file in files if "\n" not in file)
        with tempfile.NamedTemporaryFile(suffix=INDEX) as file:
            file.write(text.encode("utf-8", "surrogateescape"))
            file.flush()
            try:
                wait_for(self._remote.engine.store(file.name, self._directory.join(INDEX)))
            except RemotePermissionDenied as error:
                _log.warning("The index of files cannot be kept on the server: %s", error)


def _below_top(path: str) -> str:
    return posixpath.normpath("/" + path).lstrip("/")


def _one_for_each(destination: Paths | None, count: int) -> list[str]:
    if destination is None:
        return ["."] * count
    if isinstance(destination, str):
        return [destination] * count
    if len(destination) != count:
        raise ValueError(f"{len(destination)} destinations for {count} files")
    return list(destination)
