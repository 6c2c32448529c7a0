"""TransferEngine: the face of the engine, in futures.

The I/O lives in a helper process (see `helper`): pure-Python work in the calling process holds
the interpreter lock and would starve it.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from functools import partial
from operator import index
from typing import Any, Unpack

from .config import SECRETS, ConnectionSettings
from .entries import Entries, More, OnBatch, to_entry
from .errors import ConfigurationError, ConnectionLost, ServerRefused
from .filters import TreeKeywords, tree_options
from .helper import plain, plain_url
from .link import Answer, Caller, Link
from .model import Entry, Stat, TreeResult
from .names import absolute, check_local
from .progress import Progress
from .url import RemoteURL

MAX_LISTED = 1_000_000  # entries in a list
AnyPath = str | os.PathLike[str]
AnyURL = str | RemoteURL


class TransferEngine:
    """Moves bytes between local files and remote URLs.

    Every method returns a `concurrent.futures.Future` at once; synchronous callers wait with
    ``result()``, asyncio callers use `asyncio.wrap_future`. A future ends with a
    `TransferError` if the work fails; cancelling it gives the work up soon, leaving nothing
    behind. Callbacks of futures run on the engine's reader thread and must not block: one that
    waits for another answer of the engine gets a `RuntimeError`.

    Parameters
    ----------
    settings : ConnectionSettings, optional
        Default: read from the environment and the config file.
    in_process : bool
        Run the I/O in a thread of this process. For programs that do not compute.
    ask : bool
        Ask the person at this process's terminal for passwords, passphrases and one-time codes
        that a login needs and the settings do not have. Each is asked for once, and kept in
        memory only.
    keep : bool
        Keep what has arrived of a large file for a later call even if a transfer is cancelled.
    share : bool
        Let one helper, with its sessions, serve all processes of this user on this node that
        share, have the same settings, and belong to the same control group (Linux). It ends with
        the last of them.

    Notes
    -----
    Thread-safe. The helper process starts with the first request and ends with this process however
    that ends. If it dies it is started anew, and the files that it was moving are moved anew, once;
    not those that were to replace nothing (``overwrite=False``), which may have arrived. A forked
    child gets a helper of its own. An engine that nobody holds any more ends with what is under
    way; `close` does not wait for that.
    """

    def __init__(
        self,
        settings: ConnectionSettings | None = None,
        *,
        in_process: bool = False,
        ask: bool = False,
        keep: bool = False,
        share: bool = False,
    ) -> None:
        self.settings = settings or ConnectionSettings.load()
        # A program that was frozen would start itself once more.
        is_python = sys.executable and not getattr(sys, "frozen", False)
        self._in_process = in_process or not is_python
        self._ask = ask
        self._keep = keep
        self._share = share
        self._lock = threading.Lock()
        self._link: Link | None = None
        self._closed = False
        _engines.add(self)

    def __enter__(self) -> TransferEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        link = getattr(self, "_link", None)
        if link is not None:
            link.dismiss()

    def __repr__(self) -> str:
        return f"TransferEngine({self.settings!r})"

    def __reduce__(self) -> Any:
        raise TypeError("an engine belongs to its process; send the URL and make one there")

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def start(self) -> None:
        """Start the helper process, which takes a moment; nothing is connected to.

        For programs that know early that they will want something. Without it the first request
        does it.
        """
        self._linked()

    # --- questions and small changes -------------------------------------------------------

    def stat(self, url: AnyURL, *, follow: bool = True) -> Future[Stat]:
        """Ask what a file is; a missing one costs one request and is `RemoteFileNotFound`."""
        return self._request("stat", (_plain(url), follow), Stat._make)

    def scandir(self, url: AnyURL, *, explain: bool = True) -> Future[list[Entry]]:
        """List a directory. Links are not followed; our own temporary files are not listed.

        More than a million entries are `ServerRefused`: a list of them takes half a GiB.

        Parameters
        ----------
        url : str or RemoteURL
        explain : bool
            Where there is no such directory, ask whether it is a file, which is another error.
        """
        entries: list[Entry] = []

        def take(rows: list[Any], more: More) -> None:
            entries.extend(map(to_entry, rows))
            if len(entries) > MAX_LISTED:
                raise ServerRefused(f"holds more than {MAX_LISTED} entries; use iterdir", str(url))
            more(len(rows))

        return self._request("iterdir", (_plain(url), explain), lambda _: entries, on_batch=take)

    def iterdir(self, url: AnyURL) -> Entries:
        """Return an iterator of the entries of a directory, in bounded memory.

        Parameters
        ----------
        url : str or RemoteURL

        Returns
        -------
        Entries
            It yields each `Entry` as the server lists them, and raises what `scandir` would.
            Closing it (``with``, or `close`) ends the listing.
        """
        return Entries(partial(self._request, "iterdir", (_plain(url), True)))

    def realpath(self, url: AnyURL) -> Future[str]:
        """Ask for the server's canonical form of a path."""
        return self._request("realpath", (_plain(url),))

    def info(self, url: AnyURL) -> Future[dict[str, Any]]:
        """Ask what an SFTP server offers: extensions, limits (bytes), round trip (seconds)."""
        return self._request("info", (_plain(url),))

    def touch(self, url: AnyURL, mtime: int | None = None) -> Future[None]:
        """Set the mtime of an existing file, in seconds since the epoch; now by default."""
        seconds = int(time.time() if mtime is None else mtime)
        return self._request("touch", (_plain(url), seconds))

    def rename(self, old: AnyURL, new: AnyURL) -> Future[None]:
        """Rename within one server, over an existing file as safely as the server can."""
        old, new = _of_one_server(old, new, "rename")
        return self._request("rename", (plain_url(old), plain_url(new)))

    def copy(self, old: AnyURL, new: AnyURL, *, overwrite: bool = True) -> Future[Stat | None]:
        """Have a server copy a regular file of its own, whole or not at all, with its mtime.

        The result is None where the server cannot (it takes the extension ``copy-data``, OpenSSH
        9.0 and later): fetch it and store it then. The directory must be there.
        """
        old, new = _of_one_server(old, new, "copy")
        if old.scheme != "sftp" or self.settings.transport_for(old) != "sftp":
            nothing: Future[Stat | None] = Future()
            nothing.set_result(None)
            return nothing
        args = (plain_url(old), plain_url(new), overwrite)
        return self._request("copy", args, lambda value: Stat(*value) if value else None)

    def mkdir(self, url: AnyURL, *, parents: bool = True, exist_ok: bool = True) -> Future[None]:
        """Make a directory, by default with its parents."""
        return self._request("mkdir", (_plain(url), parents, exist_ok))

    def rmdir(self, url: AnyURL) -> Future[None]:
        """Remove an empty directory."""
        return self._request("rmdir", (_plain(url),))

    def remove(
        self, url: AnyURL, *, recursive: bool = False, missing_ok: bool = False
    ) -> Future[None]:
        """Remove a file or link; with ``recursive`` a directory and all that is in it.

        Links are removed, never followed.
        """
        return self._request("remove", (_plain(url), recursive, missing_ok))

    # --- files -----------------------------------------------------------------------------

    def fetch(
        self,
        url: AnyURL,
        path: AnyPath,
        *,
        expect: Stat | None = None,
        background: bool = False,
        verify: bool = False,
        modes: bool = False,
        on_progress: Progress | None = None,
    ) -> Future[Stat]:
        """Download a regular file to a local path, whole or not at all, with its mtime.

        What has arrived of a large file when the connection or this process ends is kept for a
        day under a temporary name, and a later call goes on from there.

        Parameters
        ----------
        url : str or RemoteURL
        path : path-like
            The local file; its directory is made if missing.
        expect : Stat, optional
            What the file is known to be: saves a request. If it is no longer that, the result is
            `RemoteChanged`; without ``expect`` a file that changes meanwhile is read anew.
        background : bool
            Serve it after everything else, until it is promoted.
        verify : bool
            Read it a second time, and compare, before it gets its name.
        modes : bool
            Give it the permission bits of its source.
        on_progress : callable, optional
            Called on the reader thread with (bytes, files) moved since the last call, a few
            times a second; negative when bytes have to be moved again.
        """
        options = {"background": background, "verify": verify, "modes": modes}
        report = on_progress is not None
        args = (_plain(url), _absolute(path), plain(expect), options, report)
        return self._request("fetch", args, Stat._make, on_progress, background)

    def promote(self, future: Future[Stat]) -> None:
        """Serve a background fetch like any other from now on: somebody waits for it.

        No harm if it was promoted before, was none, or has ended.
        """
        if isinstance(future, Answer):
            future.promote()

    def read(self, url: AnyURL, offset: int, length: int, expect: Stat) -> Future[bytes]:
        """Read part of a file into memory; keep ``length`` to a few MiB.

        Parameters
        ----------
        url : str or RemoteURL
        offset, length : int
            Bytes; the part must lie within the file.
        expect : Stat
            What the file is known to be; if it is no longer that, the result is `RemoteChanged`.
        """
        # Of NumPy, say: what else the helper would not know is told here.
        args = (_plain(url), index(offset), index(length), plain(expect))
        if min(args[1:3]) < 0:
            raise ValueError(f"no part of a file: {length} bytes from {offset}")
        return self._request("read", args, bytes)

    def store(
        self,
        path: AnyPath,
        url: AnyURL,
        *,
        overwrite: bool = True,
        parents: bool = True,
        verify: bool = False,
        modes: bool = False,
        on_progress: Progress | None = None,
    ) -> Future[Stat]:
        """Upload a regular file, whole or not at all, with its mtime.

        A large upload that is broken off is continued as a download is, see `fetch`.

        Parameters
        ----------
        path : path-like
            The local file.
        url : str or RemoteURL
            Its remote name.
        overwrite : bool
            Replace an existing file.
        parents : bool
            Make missing remote directories.
        verify : bool
            Read it back, and compare, before it gets its name; through lftp, once it has it.
        modes : bool
            Give it the permission bits of its source, where the server keeps them.
        on_progress : callable, optional
            As for `fetch`.
        """
        options = {"overwrite": overwrite, "parents": parents, "verify": verify, "modes": modes}
        args = (_absolute(path), _plain(url), options, on_progress is not None)
        return self._request("store", args, Stat._make, on_progress)

    def fetch_many(
        self,
        pairs: Iterable[tuple[AnyURL, AnyPath]],
        *,
        verify: bool = False,
        modes: bool = False,
        on_progress: Progress | None = None,
    ) -> Future[TreeResult]:
        """Download many files, each as `fetch` does; a failure of one does not stop the others."""
        plain_pairs = [(_plain(url), _absolute(path)) for url, path in pairs]
        args = (plain_pairs, {"verify": verify, "modes": modes})
        return self._request("fetch_many", args, TreeResult._make, on_progress)

    def fetch_tree(
        self,
        url: AnyURL,
        directory: AnyPath,
        *,
        on_progress: Progress | None = None,
        **options: Unpack[TreeKeywords],
    ) -> Future[TreeResult]:
        """Download what a remote directory holds into a local one, file by file.

        Parameters
        ----------
        url : str or RemoteURL
        directory : path-like
            Made if missing.
        compare : bool
            Leave files alone whose size and mtime agree; with ``size_only``, whose size does.
        delete : bool
            Remove local entries that the remote directory does not hold. With patterns given,
            only files that are meant go, and no directories.
        include, exclude : iterable of str
            Patterns for files that are meant, see `Filter`.
        dry_run : bool
            Change nothing; the result tells what would be done.
        verify, modes : bool
            As for `fetch` and `store`. With ``compare``, files whose size and mtime agree are
            compared byte by byte, too.
        on_progress : callable, optional
            As for `fetch`.

        Raises
        ------
        ConfigurationError
            For a wrong pattern.

        Notes
        -----
        A link to a file within the tree is fetched as the file; other links and special files
        are skipped and named in the result.
        """
        args = (_plain(url), _absolute(directory), tuple(tree_options(options)))
        return self._request("fetch_tree", args, TreeResult._make, on_progress)

    def store_tree(
        self,
        directory: AnyPath,
        url: AnyURL,
        *,
        on_progress: Progress | None = None,
        **options: Unpack[TreeKeywords],
    ) -> Future[TreeResult]:
        """Upload what a local directory holds into a remote one; see `fetch_tree`."""
        args = (_absolute(directory), _plain(url), tuple(tree_options(options)))
        return self._request("store_tree", args, TreeResult._make, on_progress)

    def wait_cancelled(self, timeout_s: float = 10.0) -> bool:
        """Wait until cancelled work has ended, and its temporary files are gone.

        Returns whether it has, within so many seconds.
        """
        link = self._link
        return link is None or link.wait_cancelled(timeout_s)

    def rest(self) -> None:
        """End the helper, with its sessions, unless it is busy; the next request starts another."""
        link = self._link
        if link is not None:
            link.retire()

    def close(self) -> None:
        """End the helper; what is under way fails. More than once is no error."""
        with self._lock:
            self._closed = True
            link, self._link = self._link, None
        if link is not None:
            link.close()

    # --- the link ----------------------------------------------------------------------------

    def _request(
        self,
        method: str,
        args: tuple[Any, ...],
        convert: Callable[[Any], Any] = lambda value: value,
        on_progress: Progress | None = None,
        background: bool = False,
        on_batch: OnBatch | None = None,
    ) -> Future[Any]:
        caller = Caller(method, args, convert, on_progress, on_batch, background)
        self._ask_for(caller)
        return caller.future

    def _ask_for(self, caller: Caller) -> None:
        for _ in range(2):
            if self._linked().ask_for(caller):
                return
        raise ConnectionLost(f"the helper process ends as soon as {sys.executable} starts it")

    def _linked(self) -> Link:
        with self._lock:
            if self._closed:
                raise ConnectionLost("the engine is closed", retryable=False)
            if self._link is None or self._link.ended:
                try:
                    # Weakly: an engine that nobody holds is to go.
                    self._link = Link(
                        self.settings,
                        self._in_process,
                        self._ask,
                        self._keep,
                        self._share,
                        take_over=partial(_take_over, weakref.ref(self)),
                    )
                except (OSError, RuntimeError) as error:  # the latter if no thread can be made
                    raise ConnectionLost(f"cannot start the helper process: {error}") from None
            return self._link

    def _after_fork(self) -> None:
        self._lock = threading.Lock()
        link, self._link = self._link, None
        if link is not None:
            link.abandon()


def _take_over(reference: weakref.ref[TransferEngine], callers: list[Caller]) -> None:
    """Ask another helper for what one was asked that has been killed."""
    engine = reference()
    for caller in callers:
        try:
            if engine is None:
                raise ConnectionLost("the helper process ended, and nobody holds its engine")
            engine._ask_for(caller)
        except Exception as error:  # whatever it is, it is this caller's outcome
            caller.fail(error)


def _plain(url: AnyURL) -> Any:
    return plain_url(RemoteURL.parse(url))


def _absolute(path: AnyPath) -> str:
    return check_local(absolute(os.fspath(path)))


def _of_one_server(old: AnyURL, new: AnyURL, verb: str) -> tuple[RemoteURL, RemoteURL]:
    old, new = RemoteURL.parse(old), RemoteURL.parse(new)
    if old.server != new.server:
        raise ConfigurationError(f"cannot {verb} to another server: {new.server}", str(old))
    return old, new


# --- one engine for all of a process -----------------------------------------------------------

_engines: weakref.WeakSet[TransferEngine] = weakref.WeakSet()
_shared: dict[tuple[Any, ...], TransferEngine] = {}
_shared_lock = threading.Lock()


def shared_engine(
    settings: ConnectionSettings | None = None, *, share: bool = False
) -> TransferEngine:
    """Return this process's engine for these settings; it is closed at exit.

    With ``share`` its helper serves other processes, too, see `TransferEngine`. Thread-safe; a
    forked child gets an engine of its own on its next request.
    """
    settings = settings or ConnectionSettings.load()
    with _shared_lock:
        # Secrets take no part in the comparison of settings, but make another login.
        key = (settings, share, *(getattr(settings, name) for name in SECRETS))
        engine = _shared.get(key)
        if engine is None or engine._closed:
            engine = _shared[key] = TransferEngine(settings, share=share)
        return engine


def _close_all() -> None:
    for engine in list(_engines):
        engine.close()


def _after_fork() -> None:
    global _shared_lock
    _shared_lock = threading.Lock()
    for engine in list(_engines):
        engine._after_fork()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_after_fork)
