"""The helper: the process that owns the engine's I/O, and the messages it exchanges.

A frame is a 32-bit length and a list of messages packed by `marshal`: builtins only, both ends
run the same interpreter. To the helper go ``(id, method, args)``; back come ``(id, OK, result)``,
``(id, FAILED, error)``, ``(id, PROGRESS, (bytes, files))`` and, while a directory is listed,
``(id, BATCH, rows)``, no faster than ``(id, "more", count)`` asks for. The first frame carries the
settings, secrets included, which is why it is a socket that no other user can read from.

Processes of one user may share a helper (see `sharing`): they come by a socket that listens, and
are let in with the owner's settings only.

The helper ends when the last of those that it serves has: however one dies, the kernel closes its
end of the socket.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import selectors
import signal
import socket
import struct
from collections.abc import Callable
from functools import partial
from typing import Any

from . import sharing
from .config import ConnectionSettings
from .copying import Copy
from .errors import TransferError
from .fetch import Fetch
from .filters import TreeOptions
from .jobs import Job, Question, Read
from .listing import Feed
from .loop import Loop, Timer
from .model import Stat
from .mover import Mover
from .openfiles import allow_open_files
from .ssh import use_owner
from .store import Store
from .transports.base import Done
from .url import RemoteURL

OK, FAILED, PROGRESS, BATCH = 0, 1, 2, 3
FATAL_ID = -1
PROGRESS_S = 0.1

PlainURL = tuple[str, str, str, str | None, int | None]


def pack(messages: list[Any]) -> bytes:
    """Return a frame."""
    body = marshal.dumps(messages, 4)
    return struct.pack(">I", len(body)) + body


def unpack(buffer: bytearray) -> list[Any]:
    """Take the messages of all whole frames out of a buffer."""
    messages: list[Any] = []
    at = 0
    while len(buffer) - at >= 4:
        (length,) = struct.unpack_from(">I", buffer, at)
        if len(buffer) - at - 4 < length:
            break
        messages += marshal.loads(memoryview(buffer)[at + 4 : at + 4 + length])  # noqa: S302
        at += 4 + length
    del buffer[:at]
    return messages


def plain_url(url: RemoteURL) -> PlainURL:
    """Return a URL as builtins."""
    return url.scheme, url.host, url.path, url.user, url.port


def url_in(args: tuple[Any, ...]) -> str:
    """Return the URL among a request's arguments, the first of several, for a person to read."""
    if args and isinstance(args[0], list):  # of pairs
        args = next(iter(args[0]), ())
    # Whatever else is a tuple comes after it.
    first = next((arg for arg in args if isinstance(arg, tuple)), None)
    return str(_url(first)) if first else ""


def plain(value: Any) -> Any:
    """Return a result as builtins: named tuples lose their names."""
    if isinstance(value, tuple):
        return tuple([plain(item) for item in value])
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value


class Server:
    """Serves an owner, and those who share its helper.

    Parameters
    ----------
    owner : socket
        Connected to the process that has started it.
    listener : socket, optional
        Where others come in.
    """

    def __init__(self, owner: socket.socket, listener: socket.socket | None = None) -> None:
        self.loop = Loop()
        self.mover: Mover | None = None
        self._settings: dict[str, Any] = {}
        self._listener = listener
        self.owner = _Client(self, owner)
        self._clients = {self.owner}
        if listener is not None:
            listener.setblocking(False)
            self.loop.register(listener.fileno(), selectors.EVENT_READ, self._accept)

    def run(self) -> None:
        """Serve until all have gone."""
        try:
            self.loop.run()
        except Exception as error:
            # A mistake of ours: all get it as the error of what is under way.
            trace = error.__traceback__
            while trace is not None and trace.tb_next is not None:
                trace = trace.tb_next
            where = trace.tb_frame.f_code.co_qualname if trace else "?"
            text = f"internal error in {where}: {error!r}; please report it"
            for client in self._clients:
                client.fail(text)
        finally:
            if self._listener is not None:
                self._listener.close()
            if self.mover is not None:
                self.mover.close()
            for client in self._clients:
                client.close()

    def watch_owner(self, pid: int) -> None:
        """Let the owner's process go even if somebody else holds its end of the socket."""
        self._watch(self.owner, pid)
        if os.getppid() != pid:
            self._died(self.owner)

    def begin(self, settings: dict[str, Any], asker: str, ticket: str) -> None:
        """Take the owner's settings; it sends them before everything else."""
        known = ConnectionSettings.from_plain(settings)
        use_owner(asker, ticket, known)
        self._settings = settings
        self.mover = Mover(self.loop, known)

    def lets_in(self, settings: dict[str, Any]) -> bool:
        """Whether somebody who has these settings may be served."""
        return self.mover is not None and sharing.common(settings) == sharing.common(self._settings)

    def leave(self, client: _Client) -> None:
        """End what somebody has asked for, who has gone; end with the last."""
        if client in self._clients:
            self._clients.discard(client)
            if self._clients:
                client.part()
            else:
                self._clients.add(client)  # closed once its jobs have ended
                self.loop.stop()

    def _died(self, client: _Client) -> None:
        self.leave(client)
        client.close()

    def _accept(self, _events: int) -> None:
        assert self._listener is not None
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        pid, uid = sharing.peer_of(sock)
        if uid != os.getuid():
            sock.close()
            return
        client = _Client(self, sock)
        self._clients.add(client)
        self._watch(client, pid)

    def _watch(self, client: _Client, pid: int) -> None:
        """Let somebody go with its process: a child of it may hold the socket, too."""
        if not hasattr(os, "pidfd_open"):
            return
        with contextlib.suppress(OSError):
            client.process = fd = os.pidfd_open(pid)
            self.loop.register(fd, selectors.EVENT_READ, lambda _events: self._died(client))


class _Client:
    """One who is served: reads requests from a socket, runs them, writes their outcomes."""

    def __init__(self, server: Server, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.process = -1  # a descriptor
        self._server = server
        self._loop = server.loop
        self._sock = sock
        self._fd = sock.fileno()
        self._input = bytearray()
        self._outcomes: list[Any] = []
        self._output = bytearray()
        self._asked = self._closed = self._is_let_in = self._parts = False
        self._jobs: dict[int, Job | Feed] = {}
        self._progress: dict[int, list[int]] = {}
        self._reporter: Timer | None = None
        self._loop.register(self._fd, selectors.EVENT_READ, self._ready)

    def part(self) -> None:
        """End all that is under way, and close once all is said; others are still served."""
        for job in list(self._jobs.values()):
            job.cancel(keep=True)
        self._say((FATAL_ID, OK, ""))
        self._parts = True
        self.flush()

    def fail(self, text: str) -> None:
        """Say that all ends with an internal error."""
        with contextlib.suppress(OSError):
            self._sock.setblocking(True)
            self._sock.settimeout(1.0)
            self._sock.sendall(bytes(self._output) + pack([(FATAL_ID, FAILED, text)]))

    def close(self) -> None:
        """Hear and say nothing more."""
        if self._closed:
            return
        self._closed = True
        self._loop.unregister(self._fd)
        self._sock.close()
        if self.process >= 0:
            self._loop.unregister(self.process)
            os.close(self.process)

    # --- input ---------------------------------------------------------------------------

    def _ready(self, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self.flush()
        if not events & selectors.EVENT_READ:
            return
        try:
            data = self._sock.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._server.leave(self)
            return
        self._input += data
        for message in unpack(self._input):
            self._handle(*message)

    def _handle(self, request_id: int, method: str, args: Any) -> None:
        mover = self._server.mover
        if method == "hello" and self is self._server.owner:
            self._server.begin(*args)
            self._is_let_in = True
        elif method == "join":
            self._is_let_in = self._server.lets_in(*args)
            self._say((request_id, OK, self._is_let_in))
        elif mover is None or not self._is_let_in:
            self._server.leave(self)
        elif method in ("cancel", "promote"):
            job = self._jobs.get(request_id)
            if job:
                job.cancel(keep=args) if method == "cancel" else job.promote()
        elif method == "more":
            feed = self._jobs.get(request_id)
            if isinstance(feed, Feed):
                feed.more(*args)
        elif method == "iterdir":
            send, done = partial(self._batch, request_id), partial(self._done, request_id)
            url, explain = args
            self._jobs[request_id] = Feed(mover, _url(url), send, done, explain=explain)
        else:
            done = partial(self._done, request_id)
            try:
                job = _METHODS[method](mover, done, partial(self._count, request_id), *args)
            except TransferError as error:
                self._done(request_id, None, error)
            else:
                self._jobs[request_id] = job

    # --- output --------------------------------------------------------------------------

    def _done(self, request_id: int, result: Any, error: TransferError | None) -> None:
        self._jobs.pop(request_id, None)
        progress = self._progress.pop(request_id, None)
        if progress is not None:
            self._say((request_id, PROGRESS, tuple(progress)))
        if error is not None:
            self._say((request_id, FAILED, error.to_plain()))
        else:
            self._say((request_id, OK, plain(result)))

    def _batch(self, request_id: int, rows: list[Any]) -> None:
        self._say((request_id, BATCH, rows))

    def _count(self, request_id: int, count: int, files: int = 0) -> None:
        progress = self._progress.setdefault(request_id, [0, 0])
        progress[0] += count
        progress[1] += files
        if self._reporter is None:
            self._reporter = self._loop.call_later(PROGRESS_S, self._report)

    def _report(self) -> None:
        self._reporter = None
        for request_id, progress in self._progress.items():
            self._say((request_id, PROGRESS, tuple(progress)))
        self._progress.clear()

    def _say(self, message: Any) -> None:
        if self._closed or self._parts:
            return
        self._outcomes.append(message)
        if not self._asked:
            self._asked = True
            self._loop.flush_later(self)

    def flush(self) -> None:
        """Write the outcomes of this turn in one frame."""
        self._asked = False
        if self._closed:
            return
        if self._outcomes:
            self._output += pack(self._outcomes)
            self._outcomes = []
        blocked = False
        while self._output and not blocked:
            try:
                sent = self._sock.send(memoryview(self._output)[: 1 << 18])
                del self._output[:sent]
            except BlockingIOError:
                blocked = True
            except OSError:
                self._output.clear()  # the reading side sees the end
        if not self._parts:
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if blocked else 0)
            self._loop.modify(self._fd, events, self._ready)
        elif blocked:
            self._loop.modify(self._fd, selectors.EVENT_WRITE, self._ready)
        else:
            self.close()


# --- what can be asked ----------------------------------------------------------------------------

Count = Callable[..., None]


def _url(url: PlainURL) -> RemoteURL:
    return RemoteURL(*url)


def _ask(name: str, mover: Mover, done: Done, _count: Count, *args: Any) -> Job:
    """Ask a session for one operation, at the server of the first of the URLs."""
    paths = tuple([_url(arg).path if isinstance(arg, tuple) else arg for arg in args])
    return Question(mover, _url(args[0]), name, paths, done)


def _mkdir(
    mover: Mover, done: Done, _count: Count, url: PlainURL, parents: bool, exist_ok: bool
) -> Job:
    return mover.mkdir(_url(url), done, parents=parents, exist_ok=exist_ok)


def _remove(
    mover: Mover, done: Done, _count: Count, url: PlainURL, recursive: bool, missing_ok: bool
) -> Job:
    return mover.remove(_url(url), done, recursive=recursive, missing_ok=missing_ok)


def _copy(
    mover: Mover, done: Done, _count: Count, old: PlainURL, new: PlainURL, overwrite: bool
) -> Job:
    return Copy(mover, _url(old), _url(new), done, overwrite=overwrite)


def _read(
    mover: Mover,
    done: Done,
    _count: Count,
    url: PlainURL,
    offset: int,
    length: int,
    expect: tuple[Any, ...],
) -> Job:
    return Read(mover, _url(url), offset, length, Stat(*expect), done)


def _fetch(
    mover: Mover,
    done: Done,
    count: Count,
    url: PlainURL,
    path: str,
    expect: tuple[Any, ...] | None,
    options: dict[str, bool],
    report: bool,
) -> Job:
    known = Stat(*expect) if expect else None
    on_bytes = count if report else None
    return Fetch(mover, _url(url), path, done, expect=known, on_bytes=on_bytes, **options)


def _store(
    mover: Mover,
    done: Done,
    count: Count,
    path: str,
    url: PlainURL,
    options: dict[str, bool],
    report: bool,
) -> Job:
    return Store(mover, path, _url(url), done, on_bytes=count if report else None, **options)


def _fetch_many(
    mover: Mover,
    done: Done,
    count: Count,
    pairs: list[tuple[PlainURL, str]],
    options: dict[str, bool],
) -> Job:
    from .trees import FetchMany

    return FetchMany(mover, [(_url(url), path) for url, path in pairs], done, count, options)


def _fetch_tree(
    mover: Mover, done: Done, count: Count, url: PlainURL, directory: str, options: Any
) -> Job:
    from .trees import FetchTree

    return FetchTree(mover, _url(url), directory, done, count, TreeOptions(*options))


def _store_tree(
    mover: Mover, done: Done, count: Count, directory: str, url: PlainURL, options: Any
) -> Job:
    from .trees import StoreTree

    return StoreTree(mover, _url(url), directory, done, count, TreeOptions(*options))


_METHODS: dict[str, Callable[..., Job]] = {
    **{
        name: partial(_ask, name)
        for name in ("stat", "realpath", "info", "touch", "rename", "rmdir")
    },
    "mkdir": _mkdir,
    "remove": _remove,
    "copy": _copy,
    "read": _read,
    "fetch": _fetch,
    "store": _store,
    "fetch_many": _fetch_many,
    "fetch_tree": _fetch_tree,
    "store_tree": _store_tree,
}


def main(fd: int, listening: int, parent: int) -> None:
    """Run as the helper process; the second descriptor may be -1."""
    # Whoever stops the owner (Ctrl-C in a terminal) stops this through the socket.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTTOU):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    allow_open_files(8192)
    os.chdir("/")
    owner = socket.socket(fileno=fd)
    listener = socket.socket(fileno=listening) if listening >= 0 else None
    for sock in (owner, listener):
        if sock is not None:
            sock.set_inheritable(False)
    server = Server(owner, listener)
    server.watch_owner(parent)

    def terminate(_number: int, _frame: Any) -> None:
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, terminate)
    with contextlib.suppress(SystemExit):
        server.run()
