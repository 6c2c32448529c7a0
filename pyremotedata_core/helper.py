"""The helper: the process that owns the engine's I/O, and the messages it exchanges.

A frame is a 32-bit length and a list of messages packed by `marshal`: builtins only, both ends
run the same interpreter. To the helper go ``(id, method, args)``; back come ``(id, OK, result)``,
``(id, FAILED, error)``, ``(id, PROGRESS, (bytes, files))`` and, while a directory is listed,
``(id, BATCH, rows)``, no faster than ``(id, "more", count)`` asks for. The first frame carries the
settings, secrets included, which is why it is a socket pair and nothing that others could read.

The helper ends when its end of the socket does: however the parent dies, the kernel closes it.
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
    """Serves one owner: reads requests from a socket, runs them, writes their outcomes."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._fd = sock.fileno()
        self._loop = Loop()
        self._mover: Mover | None = None
        self._input = bytearray()
        self._outcomes: list[Any] = []
        self._output = bytearray()
        self._asked = False
        self._jobs: dict[int, Job | Feed] = {}
        self._progress: dict[int, list[int]] = {}
        self._reporter: Timer | None = None
        self._loop.register(self._fd, selectors.EVENT_READ, self._ready)

    def run(self) -> None:
        """Serve until the owner has gone."""
        try:
            self._loop.run()
        except Exception as error:
            # A mistake of ours: the owner gets it as the error of all that is under way.
            trace = error.__traceback__
            while trace is not None and trace.tb_next is not None:
                trace = trace.tb_next
            where = trace.tb_frame.f_code.co_qualname if trace else "?"
            text = f"internal error in {where}: {error!r}; please report it"
            with contextlib.suppress(OSError):
                self._sock.setblocking(True)
                self._sock.settimeout(1.0)
                self._sock.sendall(bytes(self._output) + pack([(FATAL_ID, FAILED, text)]))
        finally:
            if self._mover is not None:
                self._mover.close()
            self._sock.close()

    def watch_parent(self, pid: int) -> None:
        """End with the parent even if somebody else still holds the other end of the socket."""
        if not hasattr(os, "pidfd_open"):
            return
        with contextlib.suppress(OSError):
            fd = os.pidfd_open(pid)
            if os.getppid() != pid:
                self._loop.stop()
            self._loop.register(fd, selectors.EVENT_READ, lambda _events: self._loop.stop())

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
            self._loop.stop()
            return
        self._input += data
        for message in unpack(self._input):
            self._handle(*message)

    def _handle(self, request_id: int, method: str, args: Any) -> None:
        if method == "hello":
            self._hello(*args)
        elif method in ("cancel", "promote"):
            job = self._jobs.get(request_id)
            if job:
                job.cancel(keep=args) if method == "cancel" else job.promote()
        elif method == "more":
            feed = self._jobs.get(request_id)
            if isinstance(feed, Feed):
                feed.more(*args)
        elif method == "iterdir":
            assert self._mover is not None
            send, done = partial(self._batch, request_id), partial(self._done, request_id)
            url, explain = args
            self._jobs[request_id] = Feed(self._mover, _url(url), send, done, explain=explain)
        else:
            assert self._mover is not None
            done = partial(self._done, request_id)
            try:
                job = _METHODS[method](self._mover, done, partial(self._count, request_id), *args)
            except TransferError as error:
                self._done(request_id, None, error)
            else:
                self._jobs[request_id] = job

    def _hello(self, settings: dict[str, Any], asker: str, ticket: str) -> None:
        known = ConnectionSettings.from_plain(settings)
        use_owner(asker, ticket, known)
        self._mover = Mover(self._loop, known)

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
        self._outcomes.append(message)
        if not self._asked:
            self._asked = True
            self._loop.flush_later(self)

    def flush(self) -> None:
        """Write the outcomes of this turn in one frame."""
        self._asked = False
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
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if blocked else 0)
        self._loop.modify(self._fd, events, self._ready)


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


def main(fd: int, parent: int) -> None:
    """Run as the helper process."""
    # Whoever stops the owner (Ctrl-C in a terminal) stops this through the socket.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTTOU):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    allow_open_files(8192)
    os.chdir("/")
    sock = socket.socket(fileno=fd)
    sock.set_inheritable(False)
    server = Server(sock)
    server.watch_parent(parent)

    def terminate(_number: int, _frame: Any) -> None:
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, terminate)
    with contextlib.suppress(SystemExit):
        server.run()
