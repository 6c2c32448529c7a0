"""What each operation of a pipelined SFTP session is made of.

Short sequences of questions are generators that yield requests and receive replies. Downloads
and uploads are objects, since hundreds of their requests are in flight at once.
"""

from __future__ import annotations

import os
import posixpath
from collections import deque
from collections.abc import Callable, Generator
from functools import partial
from typing import Any

from ..errors import (
    ConnectionLost,
    RemoteChanged,
    RemoteFileNotFound,
    RemotePermissionDenied,
    ServerRefused,
    TransferError,
    from_oserror,
    from_status,
)
from ..model import Entry, Stat
from ..names import TemporaryNames, aside_name, check_component
from ..url import encode_path, wire_path
from . import wire
from .base import Operation, Sink, Source
from .sftp import CHUNK_BYTES, SftpSession

Request = tuple[int, bytes]
Answer = tuple[int, memoryview]
Sequence = Generator[Request | list[Request], Any, Any]

_temporary_names = TemporaryNames()


def begin(session: SftpSession, operation: Operation) -> None:
    """Start an operation on a session."""
    if operation.name == "read":
        _Download(session, operation)
    elif operation.name == "write":
        path, source, overwrite, temporary = operation.args
        _Upload(session, operation, temporary, source, 0, source.size, (path, overwrite))
    elif operation.name == "write_part":
        _Upload(session, operation, *operation.args)
    elif operation.name == "scandir":
        _Listing(session, operation)
    else:
        options = {"again": True} if operation.name in _REPEATED and operation.attempts else {}
        sequence = _SEQUENCES[operation.name](session, *operation.args, **options)
        _Run(session, sequence, partial(session.finish, operation))


# --- sequences of questions ---------------------------------------------------------------------


class _Run:
    """Drives a generator: sends what it yields, gives it the answers."""

    __slots__ = ("_answers", "_finish", "_missing", "_sequence", "_session")

    def __init__(
        self,
        session: SftpSession,
        sequence: Sequence,
        finish: Callable[[Any, TransferError | None], None],
    ) -> None:
        self._session, self._sequence, self._finish = session, sequence, finish
        self._step(None)

    def _step(self, answer: Any) -> None:
        try:
            request = self._sequence.send(answer)
        except StopIteration as stop:
            # Outside of the caller's frame: an outcome is never announced from within `submit`.
            self._session.loop.call_soon(partial(self._finish, stop.value, None))
            return
        except TransferError as error:
            self._session.loop.call_soon(partial(self._finish, None, error))
            return
        if isinstance(request, list):
            self._answers: list[Any] = [None] * len(request)
            self._missing = len(request)
            for number, (kind, body) in enumerate(request):
                self._session.request(kind, body, self._one_of, number)
        else:
            self._session.request(request[0], request[1], self._only)

    def _only(self, kind: int, body: memoryview, _data: Any) -> None:
        self._step((kind, memoryview(bytes(body))))

    def _one_of(self, kind: int, body: memoryview, number: int) -> None:
        self._answers[number] = (kind, memoryview(bytes(body)))
        self._missing -= 1
        if not self._missing:
            self._step(self._answers)


def _url(session: SftpSession, path: str) -> str:
    return session.url + encode_path(path)


def _path(path: str) -> bytes:
    return wire.string(wire_path(path))


def _error(session: SftpSession, path: str, answer: Answer) -> TransferError:
    kind, body = answer
    if kind != wire.STATUS:
        raise wire.Garbage(f"packet type {kind} for a status")
    code, text = wire.read_status(body)
    return from_status(code, text, _url(session, path))


def _expect_ok(session: SftpSession, path: str, answer: Answer) -> None:
    kind, body = answer
    if kind != wire.STATUS or wire.read_u32(body) != wire.OK:
        raise _error(session, path, answer)


def _attrs(session: SftpSession, path: str, answer: Answer) -> Stat:
    kind, body = answer
    if kind != wire.ATTRS:
        raise _error(session, path, answer)
    return wire.read_attrs(body)[0]


def _stat(session: SftpSession, path: str, follow: bool = True) -> Sequence:
    answer = yield (wire.STAT if follow else wire.LSTAT), _path(path)
    return _attrs(session, path, answer)


def _realpath(session: SftpSession, path: str) -> Sequence:
    kind, body = yield wire.REALPATH, _path(path)
    if kind != wire.NAME:
        raise _error(session, path, (kind, body))
    names = wire.read_names(body)
    if len(names) != 1:
        raise wire.Garbage(f"{len(names)} canonical paths")
    return names[0].name


def _mkdir(session: SftpSession, path: str) -> Sequence:
    answer = yield wire.MKDIR, _path(path) + wire.NO_ATTRS
    if answer[0] == wire.STATUS and wire.read_u32(answer[1]) == wire.OK:
        return
    # "failure" for a directory that is there; some servers answer "permission denied" instead.
    stat = yield wire.STAT, _path(path)
    if stat[0] == wire.ATTRS:
        if wire.read_attrs(stat[1])[0].kind == "directory":
            return
        raise ServerRefused(
            "cannot make a directory: a file of that name exists", _url(session, path)
        )
    error = _error(session, path, answer)
    raise error


def _remove(session: SftpSession, path: str, kind: int = wire.REMOVE) -> Sequence:
    answer = yield kind, _path(path)
    if answer[0] == wire.STATUS and wire.read_u32(answer[1]) == wire.OK:
        return
    error = _error(session, path, answer)
    if not isinstance(error, RemoteFileNotFound):
        # MiG answers "permission denied" for what is not there.
        stat = yield wire.LSTAT, _path(path)
        if stat[0] != wire.ATTRS:
            raise _error(session, path, stat)
        if wire.read_attrs(stat[1])[0].kind == "directory" and kind == wire.REMOVE:
            raise ServerRefused("is a directory; remove it recursively", _url(session, path))
        if kind == wire.RMDIR:
            raise TransferError(
                f"cannot remove the directory ({error.message}); is it empty?", _url(session, path)
            )
    raise error


def _rmdir(session: SftpSession, path: str) -> Sequence:
    return _remove(session, path, wire.RMDIR)


def _touch(session: SftpSession, path: str, mtime: int) -> Sequence:
    answer = yield wire.SETSTAT, _path(path) + wire.times(mtime)
    _expect_ok(session, path, answer)


def _rename(
    session: SftpSession, old: str, new: str, aside: str = "", *, again: bool = False
) -> Sequence:
    """Rename over whatever file stands there, as safely as the server can.

    With posix-rename one atomic step. Without: a plain rename, which some servers (MiG) let
    overwrite; where it is refused because the new name exists, that file is renamed aside, the
    new one renamed in, the old one removed, and put back if that fails.

    With ``again`` an attempt before may have done it, and its answer was lost: a missing old
    name is then no error if the new one is there.
    """
    if "posix-rename@openssh.com" in session.extensions:
        answer = yield (
            wire.EXTENDED,
            wire.string(b"posix-rename@openssh.com") + _path(old) + _path(new),
        )
        if answer[0] == wire.STATUS:
            code = wire.read_u32(answer[1])
            if code == wire.OK:
                return
            if code != wire.UNSUPPORTED:
                there, source = yield [(wire.LSTAT, _path(new)), (wire.LSTAT, _path(old))]
                if source[0] != wire.ATTRS:
                    if again and there[0] == wire.ATTRS:
                        return
                    raise _error(session, old, source)
                _refuse_directory(session, new, there)
                raise _error(session, new, answer)
    # A plain rename moves *into* a directory on some servers: look first.
    there = yield wire.LSTAT, _path(new)
    _refuse_directory(session, new, there)
    answer = yield wire.RENAME, _path(old) + _path(new)
    if answer[0] == wire.STATUS and wire.read_u32(answer[1]) == wire.OK:
        return
    source = yield wire.LSTAT, _path(old)
    if source[0] != wire.ATTRS:
        if again and there[0] == wire.ATTRS:
            return
        raise _error(session, old, source)
    if there[0] != wire.ATTRS:
        raise _error(session, new, answer)
    if not aside:
        name = aside_name(_temporary_names.next())
        aside = posixpath.join(posixpath.dirname(new), name)
    moved = yield wire.RENAME, _path(new) + _path(aside)
    _expect_ok(session, new, moved)
    answer = yield wire.RENAME, _path(old) + _path(new)
    if answer[0] == wire.STATUS and wire.read_u32(answer[1]) == wire.OK:
        yield wire.REMOVE, _path(aside)
        return
    yield wire.RENAME, _path(aside) + _path(new)
    raise _error(session, new, answer)


def _refuse_directory(session: SftpSession, path: str, answer: Answer) -> None:
    if answer[0] == wire.ATTRS and wire.read_attrs(answer[1])[0].kind == "directory":
        raise ServerRefused("is a directory; a file was meant", _url(session, path))


# --- listing ------------------------------------------------------------------------------------


class _Listing:
    """Lists a directory with several READDIRs in flight; more as it proves to be large."""

    __slots__ = (
        "_ended",
        "_entries",
        "_error",
        "_flight",
        "_handle",
        "_operation",
        "_path",
        "_session",
    )

    def __init__(self, session: SftpSession, operation: Operation) -> None:
        self._session, self._operation = session, operation
        self._path = operation.args[0]
        self._entries: list[Entry] = []
        self._error: TransferError | None = None
        self._ended = False
        self._flight = 0
        session.request(wire.OPENDIR, _path(self._path), self._opened)

    def _opened(self, kind: int, body: memoryview, _data: Any) -> None:
        if kind != wire.HANDLE:
            error = _error(self._session, self._path, (kind, body))
            if type(error) is TransferError:
                error = ServerRefused(f"not a directory? {error.message}", error.url)
            self._session.finish(self._operation, None, error)
            return
        self._handle = wire.string(wire.read_string(body, 0)[0])
        for _ in range(4):
            self._ask()

    def _ask(self) -> None:
        self._flight += 1
        self._session.request(wire.READDIR, self._handle, self._named)

    def _named(self, kind: int, body: memoryview, _data: Any) -> None:
        self._flight -= 1
        if kind == wire.NAME:
            entries = wire.read_names(body)
            self._ended = self._ended or not entries
            try:
                for entry in entries:
                    if entry.name not in (".", ".."):
                        check_component(entry.name, _url(self._session, self._path))
                        self._entries.append(entry)
            except TransferError as error:
                self._error = self._error or error
                self._ended = True
            if not self._ended and not self._operation.cancelled:
                self._ask()
                if self._flight < 16:
                    self._ask()
        else:
            self._ended = True
            if kind != wire.STATUS or wire.read_u32(body) != wire.EOF:
                self._error = self._error or _error(self._session, self._path, (kind, body))
        if not self._flight:
            self._session.request(wire.CLOSE, self._handle, self._closed)

    def _closed(self, _kind: int, _body: memoryview, _data: Any) -> None:
        result = None if self._error else self._entries
        self._session.finish(self._operation, result, self._error)


# --- download -----------------------------------------------------------------------------------


class _Download:
    """Reads bytes [offset, offset + length) of a file into a sink.

    OPEN; then all reads, FSTAT and CLOSE in flight together. A server answers the requests on one
    handle as if in order, so the FSTAT shows the file as it was after the reads: equal to the
    earlier stat means that size and mtime stood still from then until now.
    """

    __slots__ = (
        "_closing",
        "_error",
        "_expect",
        "_flight",
        "_gaps",
        "_handle",
        "_operation",
        "_path",
        "_ranges",
        "_session",
        "_sink",
    )

    def __init__(self, session: SftpSession, operation: Operation) -> None:
        path, sink, offset, length, expect = operation.args
        self._session, self._operation = session, operation
        self._path: str = path
        self._sink: Sink = sink
        self._expect: Stat = expect
        self._error: TransferError | None = None
        self._gaps: list[tuple[int, int]] = [(offset, offset + length)] if length else []
        self._open()

    def _open(self) -> None:
        self._ranges = deque(self._gaps)
        self._gaps = []
        self._flight = 0
        self._closing = False
        body = _path(self._path) + wire.u32(wire.O_READ) + wire.NO_ATTRS
        self._session.request(wire.OPEN, body, self._opened)

    def _opened(self, kind: int, body: memoryview, _data: Any) -> None:
        if kind != wire.HANDLE:
            error = _error(self._session, self._path, (kind, body))
            self._session.finish(self._operation, None, error)
            return
        self._handle = wire.string(wire.read_string(body, 0)[0])
        self._session.want_reads(self)

    def issue(self) -> bool:
        """Send the next read, or the last questions."""
        session = self._session
        if self._operation.cancelled:
            self._fail(ConnectionLost("cancelled", retryable=False))
        if self._ranges:
            offset, end = self._ranges[0]
            chunk = session.read_bytes
            if session.may_probe and end - offset > chunk:
                session.may_probe = False  # one question shows what the server is good for
                chunk = CHUNK_BYTES
            size = min(chunk, end - offset)
            if offset + size < end:
                self._ranges[0] = (offset + size, end)
            else:
                self._ranges.popleft()
            body = self._handle + wire.u64(offset) + wire.u32(size)
            self._flight += 1
            session.asked_for(size)
            session.request(wire.READ, body, self._data, (offset, size))
            if self._ranges:
                return True
        if not session.careful or not self._flight:
            self._close()
        return False

    def _close(self) -> None:
        if not self._closing:
            self._closing = True
            self._flight += 2
            self._session.request(wire.FSTAT, self._handle, self._statted)
            self._session.request(wire.CLOSE, self._handle, self._closed)

    def _data(self, kind: int, body: memoryview, asked: tuple[int, int]) -> None:
        offset, size = asked
        session = self._session
        session.read_window -= size
        self._flight -= 1
        if kind == wire.DATA:
            length = wire.read_u32(body)
            if length > size or length != len(body) - 4:
                raise wire.Garbage(f"{length} bytes of data where {size} were asked for")
            self._keep(body[4:], offset)
            if length < size:
                self._short(offset, size, length)
            elif size > session.read_bytes:
                session.read_bytes = size
        elif kind == wire.STATUS and wire.read_u32(body) == wire.EOF:
            self._fail(self._changed())
        else:
            self._fail(_error(session, self._path, (kind, body)))
        self._progress()

    def _keep(self, data: memoryview, offset: int) -> None:
        if self._error or self._operation.cancelled:
            return
        try:
            self._sink.write(data, offset)
        except OSError as error:
            self._fail(from_oserror(error, self._sink.path))
            return
        operation = self._operation
        operation.moved += len(data)
        if operation.on_bytes:
            operation.on_bytes(len(data))

    def _short(self, offset: int, size: int, length: int) -> None:
        session = self._session
        if not length:
            self._fail(self._changed())
            return
        if size > session.read_bytes:  # the probe's answer: the server's own limit
            session.read_bytes = max(session.read_bytes, length)
        else:
            session.careful = True
        self._gaps.append((offset + length, offset + size))

    def _statted(self, kind: int, body: memoryview, _data: Any) -> None:
        self._flight -= 1
        if kind != wire.ATTRS:
            self._fail(_error(self._session, self._path, (kind, body)))
        elif not wire.read_attrs(body)[0].same_content(self._expect):
            self._fail(self._changed())
        self._progress()

    def _closed(self, _kind: int, _body: memoryview, _data: Any) -> None:
        self._flight -= 1
        self._progress()

    def _progress(self) -> None:
        if self._flight:
            return
        if self._gaps and not self._closing and not self._error:
            self._ranges.extend(self._gaps)
            self._gaps = []
            self._session.want_reads(self)
        elif not self._closing:
            if not self._ranges:
                self._close()
        elif self._gaps and not self._error:
            self._open()
        else:
            self._session.finish(self._operation, None, self._error)

    def _changed(self) -> RemoteChanged:
        return RemoteChanged("the file changed while it was read", _url(self._session, self._path))

    def _fail(self, error: TransferError) -> None:
        self._error = self._error or error
        self._ranges.clear()
        self._gaps.clear()


# --- upload -------------------------------------------------------------------------------------


class _Upload:
    """Writes bytes [offset, offset + length) of a local file into a remote file.

    OPEN; then all writes and CLOSE in flight together. With ``publish_as`` it makes the file
    under its temporary name, and publishes it in the end.
    """

    __slots__ = (
        "_closing",
        "_end",
        "_error",
        "_flight",
        "_handle",
        "_next",
        "_operation",
        "_session",
        "_source",
        "_target",
        "_temporary",
    )

    def __init__(
        self,
        session: SftpSession,
        operation: Operation,
        temporary: str,
        source: Source,
        offset: int,
        length: int,
        target: tuple[str, bool] | None = None,
    ) -> None:
        self._session, self._operation = session, operation
        self._temporary, self._source, self._target = temporary, source, target
        self._next, self._end = offset, offset + length
        self._error: TransferError | None = None
        self._closing = False
        self._flight = 0
        flags = wire.O_WRITE
        if target:
            flags |= wire.O_CREAT | wire.O_EXCL
            if operation.attempts:  # the attempt before may have left its file
                session.request(wire.REMOVE, _path(temporary), _ignore)
        body = _path(temporary) + wire.u32(flags) + wire.NO_ATTRS
        session.request(wire.OPEN, body, self._opened)

    def _opened(self, kind: int, body: memoryview, _data: Any) -> None:
        session = self._session
        if kind != wire.HANDLE:
            path = self._target[0] if self._target else self._temporary
            error = _cannot_create(_error(session, path, (kind, body)))
            session.finish(self._operation, None, error)
            return
        self._handle = wire.string(wire.read_string(body, 0)[0])
        session.want_writes(self)

    def issue(self) -> bool:
        """Send the next write, or the last question."""
        session, source = self._session, self._source
        if self._operation.cancelled:
            self._fail(ConnectionLost("cancelled", retryable=False))
        if self._next < self._end and not self._error:
            size = min(session.write_bytes, self._end - self._next)
            try:
                data = os.pread(source.fd, size, self._next)
            except OSError as error:
                self._fail(from_oserror(error, source.path))
            else:
                if len(data) < size:
                    self._fail(_local_changed(source))
                else:
                    body = self._handle + wire.u64(self._next) + wire.u32(size)
                    session.sent(size)
                    self._flight += 1
                    self._next += size
                    session.request_write(body, data, self._written, size)
                    if self._next < self._end:
                        return True
        self._close()
        return False

    def _close(self) -> None:
        session = self._session
        self._closing = True
        if session.settings.fsync and "fsync@openssh.com" in session.extensions:
            self._flight += 1
            body = wire.string(b"fsync@openssh.com") + self._handle
            session.request(wire.EXTENDED, body, self._status)
        self._flight += 1
        session.request(wire.CLOSE, self._handle, self._status)

    def _written(self, kind: int, body: memoryview, size: int) -> None:
        session = self._session
        session.write_window -= size
        if kind == wire.STATUS and wire.read_u32(body) == wire.OK:
            operation = self._operation
            operation.moved += size
            if operation.on_bytes:
                operation.on_bytes(size)
        self._status(kind, body, None)

    def _status(self, kind: int, body: memoryview, _data: Any) -> None:
        if kind != wire.STATUS or wire.read_u32(body) != wire.OK:
            session = self._session
            path = self._target[0] if self._target else self._temporary
            error = _error(session, path, (kind, body))
            if type(error) is TransferError:
                error = ServerRefused(
                    f"the server cannot write ({error.message}); is its disk or your quota full?",
                    error.url,
                )
            self._fail(error)
        self._flight -= 1
        if self._closing and not self._flight:
            self._conclude()

    def _conclude(self) -> None:
        session, operation, error = self._session, self._operation, self._error
        end = partial(session.finish, operation)
        if self._target is None:
            end(None, error)
        elif error:
            _Run(session, _discard(self._temporary, error), end)
        else:
            path, overwrite = self._target
            again = bool(operation.attempts)
            sequence = _publish(
                session, self._temporary, path, self._source, overwrite, again=again
            )
            _Run(session, sequence, end)

    def _fail(self, error: TransferError) -> None:
        self._error = self._error or error


def _ignore(_kind: int, _body: memoryview, _data: Any) -> None:
    """The answer does not matter."""


def _cannot_create(error: TransferError) -> TransferError:
    if isinstance(error, RemoteFileNotFound):
        return RemoteFileNotFound("the directory does not exist", error.url)
    if isinstance(error, RemotePermissionDenied):
        return RemotePermissionDenied(
            "the server does not let you write into that directory", error.url
        )
    if type(error) is TransferError:
        return ServerRefused(
            f"the server cannot make the file ({error.message});"
            " is its disk or your quota full, or the name too long?",
            error.url,
        )
    return error


def _local_changed(source: Source) -> TransferError:
    return TransferError(f"{source.path}: changed while it was uploaded", retryable=True)


def _create(session: SftpSession, temporary: str, path: str, *, again: bool = False) -> Sequence:
    """Make an empty file under a temporary name."""
    if again:
        yield wire.REMOVE, _path(temporary)
    flags = wire.O_WRITE | wire.O_CREAT | wire.O_EXCL
    answer = yield wire.OPEN, _path(temporary) + wire.u32(flags) + wire.NO_ATTRS
    if answer[0] != wire.HANDLE:
        raise _cannot_create(_error(session, path, answer))
    closed = yield wire.CLOSE, wire.string(wire.read_string(answer[1], 0)[0])
    _expect_ok(session, path, closed)


def _discard(temporary: str, error: TransferError) -> Sequence:
    yield wire.REMOVE, _path(temporary)
    raise error


def _publish(
    session: SftpSession,
    temporary: str,
    path: str,
    source: Source,
    overwrite: bool,
    *,
    again: bool = False,
) -> Sequence:
    """Check a complete temporary file, set its mtime, rename it.

    The times are set alone and after the close: some servers drop them from a request that sets
    more, and set their own when a handle closes.

    With ``again`` an attempt before may have done any part of it, and its answer was lost.
    """
    url = _url(session, path)
    wanted = Stat("file", source.size, source.mtime)
    try:
        if again:
            there = yield from _put_back(temporary, path)
            left = yield wire.LSTAT, _path(temporary)
            # Nobody else knows the temporary name.
            if left[0] != wire.ATTRS and there and there.same_content(wanted):
                return there
        dated, checked = yield [
            (wire.SETSTAT, _path(temporary) + wire.times(source.mtime)),
            (wire.STAT, _path(temporary)),
        ]
        # Where the server refuses to set times, the file keeps the time of its upload.
        if dated[0] != wire.STATUS or wire.read_u32(dated[1]) not in (
            wire.OK,
            wire.DENIED,
            wire.UNSUPPORTED,
        ):
            raise _error(session, path, dated)
        stat = _attrs(session, path, checked)
        if stat.size != source.size:
            raise ServerRefused(f"the server kept {stat.size} of {source.size} bytes", url)
        try:
            now = os.fstat(source.fd)
        except OSError as error:
            raise from_oserror(error, source.path) from None
        if now.st_size != source.size or int(now.st_mtime) != source.mtime:
            raise _local_changed(source)
        if not overwrite:
            answer = yield wire.LSTAT, _path(path)
            if answer[0] == wire.ATTRS:
                there = wire.read_attrs(answer[1])[0]
                if again and there.same_content(wanted):
                    yield wire.REMOVE, _path(temporary)
                    return there
                raise ServerRefused("exists already", url)
        yield from _rename(session, temporary, path, aside_name(temporary))
    except TransferError:
        yield wire.REMOVE, _path(temporary)
        raise
    return stat


def _clear_orphan(_session: SftpSession, temporary: str, final: str) -> Sequence:
    """Remove what a killed upload left; put a file back that stood aside without successor."""
    yield wire.REMOVE, _path(temporary)
    yield from _put_back(temporary, final)


def _put_back(temporary: str, final: str) -> Sequence:
    """Put a file back that stood aside without successor; return what then stands there."""
    aside = aside_name(temporary)
    old, new = yield [(wire.LSTAT, _path(aside)), (wire.LSTAT, _path(final))]
    if old[0] == wire.ATTRS:
        if new[0] == wire.ATTRS:
            yield wire.REMOVE, _path(aside)
        else:
            yield wire.RENAME, _path(aside) + _path(final)
            new = old
    return wire.read_attrs(new[1])[0] if new[0] == wire.ATTRS else None


def _info(session: SftpSession) -> Sequence:
    """Return what the server says of itself, with one round trip measured."""
    yield wire.REALPATH, wire.string(b".")
    return {
        "extensions": sorted(session.extensions),
        "read_bytes": session.read_bytes,
        "write_bytes": session.write_bytes,
        "operations": session.max_operations,
        "round_trip_s": session.rtt_s,
    }


_REPEATED = ("create", "publish", "rename")  # must know of an attempt whose answer was lost
_SEQUENCES: dict[str, Callable[..., Sequence]] = {
    "stat": _stat,
    "realpath": _realpath,
    "mkdir": _mkdir,
    "remove": _remove,
    "rmdir": _rmdir,
    "touch": _touch,
    "rename": _rename,
    "create": _create,
    "publish": _publish,
    "clear_orphan": _clear_orphan,
    "info": _info,
}
