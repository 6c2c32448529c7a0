"""TransferEngine: the face of the engine, in futures.

The I/O lives in a helper process (see `helper`): pure-Python work in the calling process holds
the interpreter lock and would starve it.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import Future, InvalidStateError
from typing import Any

from .config import ConnectionSettings
from .errors import ConfigurationError, ConnectionLost, TransferError, from_plain
from .filters import Filter
from .helper import FAILED, FATAL_ID, OK, Server, pack, plain, plain_url, unpack
from .model import Entry, Stat, TreeResult
from .url import RemoteURL

CLOSE_S = 3.0  # a helper that has not ended by then is killed
SEND_S = 60.0
QUIET_S = 3600.0
Progress = Callable[[int, int], None]
AnyPath = str | os.PathLike[str]
AnyURL = str | RemoteURL


class TransferEngine:
    """Moves bytes between local files and remote URLs.

    Every method returns a `concurrent.futures.Future` at once; synchronous callers wait with
    ``result()``, asyncio callers use `asyncio.wrap_future`. A future ends with a
    `TransferError` if the work fails; cancelling it gives the work up soon, leaving nothing
    behind. Callbacks of futures run on the engine's reader thread and must not block.

    Parameters
    ----------
    settings : ConnectionSettings, optional
        Default: read from the environment and the config file.
    in_process : bool
        Run the I/O in a thread of this process. For programs that do not compute.

    Notes
    -----
    Thread-safe. The helper process starts with the first request, ends with this process however
    that ends, and is started anew if it dies. A forked child gets a helper of its own.
    """

    def __init__(
        self, settings: ConnectionSettings | None = None, *, in_process: bool = False
    ) -> None:
        self.settings = settings or ConnectionSettings.load()
        self._in_process = in_process or not sys.executable
        self._lock = threading.Lock()
        self._link: _Link | None = None
        self._closed = False
        _engines.add(self)

    def __enter__(self) -> TransferEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"TransferEngine({self.settings!r})"

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    # --- questions and small changes -------------------------------------------------------

    def stat(self, url: AnyURL, *, follow: bool = True) -> Future[Stat]:
        """Ask what a file is; a missing one costs one request and is `RemoteFileNotFound`."""
        return self._request("stat", (_plain(url), follow), _to_stat)

    def scandir(self, url: AnyURL) -> Future[list[Entry]]:
        """List a directory. Links are not followed; our own temporary files are not listed."""
        return self._request("scandir", (_plain(url),), _to_entries)

    def realpath(self, url: AnyURL) -> Future[str]:
        """Ask for the server's canonical form of a path."""
        return self._request("realpath", (_plain(url),), _same)

    def info(self, url: AnyURL) -> Future[dict[str, Any]]:
        """Ask what an SFTP server offers: extensions, limits (bytes), round trip (seconds)."""
        return self._request("info", (_plain(url),), _same)

    def touch(self, url: AnyURL, mtime: int | None = None) -> Future[None]:
        """Set the mtime of an existing file, in seconds since the epoch; now by default."""
        return self._request("touch", (_plain(url), mtime), _same)

    def rename(self, old: AnyURL, new: AnyURL) -> Future[None]:
        """Rename within one server, over an existing file as safely as the server can."""
        old, new = RemoteURL.parse(old), RemoteURL.parse(new)
        if old.server != new.server:
            raise ConfigurationError(f"cannot rename to another server: {new.server}", str(old))
        return self._request("rename", (plain_url(old), plain_url(new)), _same)

    def mkdir(self, url: AnyURL, *, parents: bool = True, exist_ok: bool = True) -> Future[None]:
        """Make a directory, by default with its parents."""
        return self._request("mkdir", (_plain(url), parents, exist_ok), _same)

    def rmdir(self, url: AnyURL) -> Future[None]:
        """Remove an empty directory."""
        return self._request("rmdir", (_plain(url),), _same)

    def remove(
        self, url: AnyURL, *, recursive: bool = False, missing_ok: bool = False
    ) -> Future[None]:
        """Remove a file or link; with ``recursive`` a directory and all that is in it.

        Links are removed, never followed.
        """
        return self._request("remove", (_plain(url), recursive, missing_ok), _same)

    # --- files -----------------------------------------------------------------------------

    def fetch(
        self,
        url: AnyURL,
        path: AnyPath,
        *,
        expect: Stat | None = None,
        background: bool = False,
        on_progress: Progress | None = None,
    ) -> Future[Stat]:
        """Download a regular file to a local path, whole or not at all, with its mtime.

        Parameters
        ----------
        url : str or RemoteURL
        path : path-like
            The local file; its directory is made if missing.
        expect : Stat, optional
            What the file is known to be: saves a request. If it is no longer that, the result is
            `RemoteChanged`; without ``expect`` a file that changes meanwhile is read anew.
        background : bool
            Serve it after everything else.
        on_progress : callable, optional
            Called on the reader thread with (bytes, files) moved since the last call, a few
            times a second; negative when bytes have to be moved again.
        """
        args = (_plain(url), _absolute(path), plain(expect), background, on_progress is not None)
        return self._request("fetch", args, _to_stat, on_progress)

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
        args = (_plain(url), offset, length, plain(expect))
        return self._request("read", args, bytes)

    def store(
        self,
        path: AnyPath,
        url: AnyURL,
        *,
        overwrite: bool = True,
        parents: bool = True,
        on_progress: Progress | None = None,
    ) -> Future[Stat]:
        """Upload a regular file, whole or not at all, with its mtime.

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
        on_progress : callable, optional
            As for `fetch`.
        """
        args = (_absolute(path), _plain(url), overwrite, parents, on_progress is not None)
        return self._request("store", args, _to_stat, on_progress)

    def fetch_many(
        self, pairs: Iterable[tuple[AnyURL, AnyPath]], *, on_progress: Progress | None = None
    ) -> Future[TreeResult]:
        """Download many files, each as `fetch` does; a failure of one does not stop the others."""
        plain_pairs = [(_plain(url), _absolute(path)) for url, path in pairs]
        return self._request("fetch_many", (plain_pairs,), _to_tree, on_progress)

    def fetch_tree(
        self,
        url: AnyURL,
        directory: AnyPath,
        *,
        compare: bool = False,
        delete: bool = False,
        include: Iterable[str] = (),
        exclude: Iterable[str] = (),
        dry_run: bool = False,
        on_progress: Progress | None = None,
    ) -> Future[TreeResult]:
        """Download what a remote directory holds into a local one, file by file.

        Parameters
        ----------
        url : str or RemoteURL
        directory : path-like
            Made if missing.
        compare : bool
            Leave files alone whose size and mtime agree.
        delete : bool
            Remove local entries that the remote directory does not hold. With patterns given,
            only files that are meant go, and no directories.
        include, exclude : iterable of str
            Patterns for files that are meant, see `Filter`.
        dry_run : bool
            Change nothing; the result tells what would be done.
        on_progress : callable, optional
            As for `fetch`.

        Notes
        -----
        A link to a file within the tree is fetched as the file; other links and special files
        are skipped and named in the result.
        """
        options = _tree_options(compare, delete, include, exclude, dry_run)
        args = (_plain(url), _absolute(directory), options)
        return self._request("fetch_tree", args, _to_tree, on_progress)

    def store_tree(
        self,
        directory: AnyPath,
        url: AnyURL,
        *,
        compare: bool = False,
        delete: bool = False,
        include: Iterable[str] = (),
        exclude: Iterable[str] = (),
        dry_run: bool = False,
        on_progress: Progress | None = None,
    ) -> Future[TreeResult]:
        """Upload what a local directory holds into a remote one; see `fetch_tree`."""
        options = _tree_options(compare, delete, include, exclude, dry_run)
        args = (_absolute(directory), _plain(url), options)
        return self._request("store_tree", args, _to_tree, on_progress)

    def wait_cancelled(self, timeout_s: float = 10.0) -> bool:
        """Wait until cancelled work has ended, and its temporary files are gone.

        Returns whether it has, within so many seconds.
        """
        link = self._link
        return link is None or link.wait_cancelled(timeout_s)

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
        convert: Callable[[Any], Any],
        on_progress: Progress | None = None,
    ) -> Future[Any]:
        for _ in range(2):
            with self._lock:
                if self._closed:
                    raise ConnectionLost("the engine is closed", retryable=False)
                if self._link is None or self._link.ended:
                    self._link = _Link(self.settings, self._in_process)
                link = self._link
            future = link.request(method, args, convert, on_progress)
            if future is not None:
                return future
        raise ConnectionLost("the helper process ends as soon as it starts")

    def _after_fork(self) -> None:
        self._lock = threading.Lock()
        link, self._link = self._link, None
        if link is not None:
            link.abandon()


class _Link:
    """The connection to one helper."""

    def __init__(self, settings: ConnectionSettings, in_process: bool) -> None:
        self.ended = False
        self._lock = threading.Lock()
        self._next_id = 0
        self._pending: dict[int, tuple[Future[Any], Callable[[Any], Any], Progress | None]] = {}
        self._cancelled: set[int] = set()
        self._settled = threading.Condition()
        self._process: subprocess.Popen[bytes] | None = None
        self._sock, theirs = socket.socketpair()
        self._fatal = ""
        try:
            self._sock.settimeout(SEND_S)
            if in_process:
                server = Server(theirs)
                threading.Thread(target=server.run, name="pyremotedata-io", daemon=True).start()
            else:
                self._process = _start_helper(theirs)
                theirs.close()
            self._sock.sendall(pack([(0, "hello", settings.to_plain())]))
        except BaseException:
            self._sock.close()
            theirs.close()
            raise
        self._reader = threading.Thread(
            target=self._read, args=(self._sock.dup(),), name="pyremotedata-reader", daemon=True
        )
        self._reader.start()

    def request(
        self,
        method: str,
        args: tuple[Any, ...],
        convert: Callable[[Any], Any],
        on_progress: Progress | None,
    ) -> Future[Any] | None:
        """Send a request; None if the helper has ended."""
        future: Future[Any] = Future()
        with self._lock:
            if self.ended:
                return None
            self._next_id += 1
            request_id = self._next_id
            self._pending[request_id] = (future, convert, on_progress)
            try:
                self._sock.sendall(pack([(request_id, method, args)]))
            except OSError:
                # It has ended, or hangs in the middle of a frame: of no use any more.
                self.ended = True
                del self._pending[request_id]
                with contextlib.suppress(OSError):
                    self._sock.shutdown(socket.SHUT_RDWR)
                if self._process is not None:
                    self._process.kill()
                return None

        def give_up(done: Future[Any]) -> None:
            if done.cancelled():
                done.set_running_or_notify_cancel()  # concurrent.futures.wait waits for this
                self._cancel(request_id)

        future.add_done_callback(give_up)
        return future

    def close(self) -> None:
        """End the helper and wait for it."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)
        if self._process is not None:
            try:
                self._process.wait(CLOSE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if threading.current_thread() is not self._reader:
            self._reader.join(CLOSE_S)
        self._sock.close()

    def abandon(self) -> None:
        """Forget it in a forked child: the helper, its thread and its futures are the parent's."""
        self.ended = True
        self._sock.close()
        if self._process is not None:
            self._process.returncode = 0  # not this process's child: nothing to wait for
        error = ConnectionLost("a forked process does not share its parent's transfers")
        for future, _, _ in self._pending.values():
            # Locks may have been held by threads that do not exist here.
            future._condition = threading.Condition()
            _fail(future, error)

    def _cancel(self, request_id: int) -> None:
        with self._lock, contextlib.suppress(OSError):
            if not self.ended and request_id in self._pending:
                del self._pending[request_id]
                self._cancelled.add(request_id)
                self._sock.sendall(pack([(request_id, "cancel", ())]))

    def wait_cancelled(self, timeout_s: float) -> bool:
        """Wait for the helper's last word on what was cancelled; return whether it came."""
        with self._settled:
            return self._settled.wait_for(lambda: not self._cancelled, timeout_s)

    def _settle(self, request_id: int | None) -> None:
        with self._settled:
            if request_id is None:
                self._cancelled.clear()
            else:
                self._cancelled.discard(request_id)
            self._settled.notify_all()

    def _read(self, sock: socket.socket) -> None:
        # Not None: the mode is shared with the sending end, which must not block for ever.
        sock.settimeout(QUIET_S)
        buffer = bytearray()
        while True:
            try:
                data = sock.recv(1 << 18)
            except TimeoutError:
                continue  # nothing was asked for long
            except OSError:
                data = b""
            if not data:
                break
            buffer += data
            for request_id, status, value in unpack(buffer):
                if request_id == FATAL_ID:
                    self._fatal = value
                else:
                    self._outcome(request_id, status, value)
        sock.close()
        self._end()

    def _outcome(self, request_id: int, status: int, value: Any) -> None:
        if status in (OK, FAILED):
            entry = self._pending.pop(request_id, None)
        else:
            entry = self._pending.get(request_id)
        if entry is None:
            if status in (OK, FAILED):
                self._settle(request_id)
            return
        future, convert, on_progress = entry
        if status == OK:
            with contextlib.suppress(InvalidStateError):
                future.set_result(convert(value))
        elif status == FAILED:
            _fail(future, from_plain(value))
        elif on_progress is not None:
            try:
                on_progress(*value)
            except Exception as error:
                # The caller's mistake is its outcome; this thread serves all the others, too.
                with contextlib.suppress(InvalidStateError):
                    future.set_exception(error)
                self._cancel(request_id)

    def _end(self) -> None:
        with self._lock:
            self.ended = True
            pending, self._pending = self._pending, {}
        self._settle(None)
        why = self._fatal or "the engine was closed"
        if not self._fatal and self._process is not None and pending:
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = self._process.wait(CLOSE_S)
                why = f"the helper process ended (exit status {status})" if status else why
        for future, _, _ in pending.values():
            _fail(future, ConnectionLost(why))


_HELPER = """\
import sys
sys.path.insert(0, sys.argv[3])
from pyremotedata_core.helper import main
sys.path[1:1] = sys.argv[4:]
main(int(sys.argv[1]), int(sys.argv[2]))
"""


def _start_helper(theirs: socket.socket) -> subprocess.Popen[bytes]:
    home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    # Isolated and without site: starts in half the time, and no user's .pth file runs in it.
    # The owner's path follows for paramiko and PyYAML.
    argv = [sys.executable, "-I", "-S", "-c", _HELPER]
    argv += [str(theirs.fileno()), str(os.getpid()), home]
    argv += [entry for entry in sys.path if entry]
    return subprocess.Popen(
        argv,
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _fail(future: Future[Any], error: TransferError) -> None:
    with contextlib.suppress(InvalidStateError):
        future.set_exception(error)


def _plain(url: AnyURL) -> Any:
    return plain_url(RemoteURL.parse(url))


def _absolute(path: AnyPath) -> str:
    return os.path.abspath(os.fspath(path))


def _tree_options(
    compare: bool, delete: bool, include: Iterable[str], exclude: Iterable[str], dry_run: bool
) -> dict[str, Any]:
    chosen = Filter(include, exclude)  # a wrong pattern is told here and now
    return {
        "compare": compare,
        "delete": delete,
        "include": chosen.include,
        "exclude": chosen.exclude,
        "dry_run": dry_run,
    }


def _same(value: Any) -> Any:
    return value


def _to_stat(value: Any) -> Stat:
    return Stat(*value)


def _to_entries(value: Any) -> list[Entry]:
    return [Entry(name, Stat(*stat)) for name, stat in value]


def _to_tree(value: Any) -> TreeResult:
    return TreeResult(*value)


# --- one engine for all of a process -----------------------------------------------------------

_engines: weakref.WeakSet[TransferEngine] = weakref.WeakSet()
_shared: dict[tuple[Any, ...], TransferEngine] = {}
_shared_lock = threading.Lock()


def shared_engine(settings: ConnectionSettings | None = None) -> TransferEngine:
    """Return this process's engine for these settings; it is closed at exit.

    Thread-safe; a forked child gets an engine of its own on its next request.
    """
    settings = settings or ConnectionSettings.load()
    with _shared_lock:
        # Secrets take no part in the comparison of settings, but make another login.
        key = (settings, settings.password, settings.key_passphrase)
        engine = _shared.get(key)
        if engine is None or engine._closed:
            engine = _shared[key] = TransferEngine(settings)
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
