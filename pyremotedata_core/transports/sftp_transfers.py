"""Downloads and uploads on an SFTP session, with hundreds of requests in flight."""

from __future__ import annotations

import os
from collections import deque
from functools import partial
from typing import Any

from ..errors import RemoteChanged, ServerRefused, TransferError, cancelled, from_oserror
from ..model import Stat
from . import wire
from .base import Operation, Sink, Source
from .sftp import CHUNK_BYTES, SftpSession
from .sftp_publish import cannot_create, creation_flags, dating, discard, local_changed, publish
from .sftp_sequences import Run, error_of, ignore, is_ok, path_of, url_of


class Download:
    """Reads bytes [offset, offset + length) of a file into a sink.

    OPEN; then all reads and FSTAT in flight together; in the end CLOSE, whose answer nobody needs.
    A server answers the requests on one handle as if in order, so the FSTAT shows the file as it
    was after the reads: equal to the earlier stat means that size and mtime stood still from then
    until now. Some servers begin them in order, and run them side by side: a CLOSE before the last
    answer would have a read go to the file that the server opens next.
    """

    def __init__(self, session: SftpSession, operation: Operation) -> None:
        path, sink, offset, length, expect = operation.args
        self._session, self._operation = session, operation
        self._path: str = path
        self._sink: Sink = sink
        self._expect: Stat = expect
        self._error: TransferError | None = None
        self._ranges = deque([(offset, offset + length)] if length else [])
        self._gaps: list[tuple[int, int]] = []
        self._flight = 0
        self._ended = False
        self.is_small = operation.is_small
        body = path_of(path) + wire.u32(wire.O_READ) + wire.NO_ATTRS
        session.request(wire.OPEN, body, self._opened)

    def _opened(self, kind: int, body: memoryview, _data: Any) -> None:
        if kind != wire.HANDLE:
            error = error_of(self._session, self._path, (kind, body))
            self._session.finish(self._operation, None, error)
            return
        self._handle = wire.read_handle(body)
        self._session.want_reads(self)

    def issue(self) -> bool:
        """Send the next read, or the last question."""
        session = self._session
        if self._ended:
            return False
        if self._operation.cancelled:
            self._fail(cancelled())
        if self._ranges:
            offset, end = self._ranges[0]
            chunk = session.reads.piece(session.read_bytes)
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
            session.request(wire.READ, body, self._data, (offset, size, session.loop.now))
            if self._ranges:
                return True
        self._flight += 1
        session.request(wire.FSTAT, self._handle, self._statted)
        return False

    def _data(self, kind: int, body: memoryview, asked: tuple[int, int, float]) -> None:
        offset, size, since = asked
        session = self._session
        session.reads.answered(size, since, session.loop.now)
        self._flight -= 1
        if kind == wire.DATA:
            data = wire.read_data(body, size)
            self._keep(data, offset)
            if len(data) < size:
                self._short(offset, size, len(data))
            elif size > session.read_bytes:
                session.read_bytes = size
        elif kind == wire.STATUS and wire.read_u32(body) == wire.EOF:
            self._fail(self._changed())
        else:
            self._fail(error_of(session, self._path, (kind, body)))
        self._progress()

    def _keep(self, data: memoryview, offset: int) -> None:
        if self._operation.cancelled:
            self._fail(cancelled())
        if self._error:
            return
        try:
            self._sink.write(data, offset)
        except OSError as error:
            self._fail(from_oserror(error, self._sink.final))
        else:
            self._operation.count(len(data))

    def _short(self, offset: int, size: int, length: int) -> None:
        session = self._session
        if not length:
            self._fail(self._changed())
            return
        if size > session.read_bytes:  # the probe's answer: the server's own limit
            session.read_bytes = max(session.read_bytes, length)
        self._gaps.append((offset + length, offset + size))

    def _statted(self, kind: int, body: memoryview, _data: Any) -> None:
        self._flight -= 1
        if kind != wire.ATTRS:
            self._fail(error_of(self._session, self._path, (kind, body)))
        elif not wire.read_attrs(body)[0].same_content(self._expect):
            self._fail(self._changed())
        self._progress()

    def _progress(self) -> None:
        if self._flight:
            return
        if self._gaps and not self._error:
            self._ranges.extend(self._gaps)
            self._gaps.clear()
            self._session.want_reads(self)
        elif not self._ranges:
            self._ended = True
            self._session.request(wire.CLOSE, self._handle, ignore)
            self._session.finish(self._operation, None, self._error)

    def _changed(self) -> RemoteChanged:
        return RemoteChanged(
            "the file changed while it was read", url_of(self._session, self._path)
        )

    def _fail(self, error: TransferError) -> None:
        self._error = self._error or error
        self._ranges.clear()
        self._gaps.clear()


class Upload:
    """Writes bytes [offset, offset + length) of a local file into a remote file.

    OPEN; then all writes and CLOSE in flight together. With a target it makes the file under its
    temporary name, and publishes it in the end; what that asks first is in flight with the rest.
    On a session that is to be careful each waits for the one before.
    """

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
        self.is_small = operation.is_small
        self._dated: list[Any] = []
        self._flight = 0
        flags = wire.O_WRITE
        if target:
            flags = creation_flags(temporary, *target)
            if operation.attempts and temporary != target[0]:  # one before may have left its file
                session.request(wire.REMOVE, path_of(temporary), ignore)
        body = path_of(temporary) + wire.u32(flags) + wire.NO_ATTRS
        session.request(wire.OPEN, body, self._opened)

    def _opened(self, kind: int, body: memoryview, _data: Any) -> None:
        session = self._session
        if kind != wire.HANDLE:
            path = self._target[0] if self._target else self._temporary
            error = cannot_create(error_of(session, path, (kind, body)))
            session.finish(self._operation, None, error)
            return
        self._handle = wire.read_handle(body)
        session.want_writes(self)

    def issue(self) -> bool:
        """Send the next write, or the last question."""
        session, source = self._session, self._source
        if self._operation.cancelled:
            self._fail(cancelled())
        if self._next < self._end and not self._error:
            size = min(session.writes.piece(session.write_bytes), self._end - self._next)
            try:
                data = os.pread(source.fd, size, self._next)
            except OSError as error:
                self._fail(from_oserror(error, source.path))
            else:
                if len(data) < size:
                    self._fail(local_changed(source))
                else:
                    body = self._handle + wire.u64(self._next) + wire.u32(size)
                    session.sent(size)
                    self._flight += 1
                    self._next += size
                    session.request_write(body, data, self._written, (size, session.loop.now))
                    if self._next < self._end:
                        return True
        if not (session.careful and self._flight):
            self._close()
        return False

    def _close(self) -> None:
        session = self._session
        if self._closing:
            return
        self._closing = True
        if session.settings.fsync and "fsync@openssh.com" in session.extensions:
            self._flight += 1
            body = wire.string(b"fsync@openssh.com") + self._handle
            session.request(wire.EXTENDED, body, self._status)
        self._flight += 1
        session.request(wire.CLOSE, self._handle, self._status)
        if self._target and not self._error and not session.careful:
            questions = dating(self._temporary, self._source)
            self._dated = [None] * len(questions)
            self._flight += len(questions)
            for number, (kind, body) in enumerate(questions):
                session.request(kind, body, self._answered, number)

    def _answered(self, kind: int, body: memoryview, number: int) -> None:
        self._dated[number] = (kind, memoryview(bytes(body)))
        self._flight -= 1
        if not self._flight:
            self._conclude()

    def _written(self, kind: int, body: memoryview, sent: tuple[int, float]) -> None:
        size, since = sent
        session = self._session
        session.writes.answered(size, since, session.loop.now)
        if is_ok((kind, body)):
            self._operation.count(size)
        self._status(kind, body, None)

    def _status(self, kind: int, body: memoryview, _data: Any) -> None:
        if not is_ok((kind, body)):
            session = self._session
            path = self._target[0] if self._target else self._temporary
            error = error_of(session, path, (kind, body))
            if type(error) is TransferError:
                error = ServerRefused(
                    f"the server cannot write ({error.message}); is its disk or your quota full?",
                    error.url,
                )
            self._fail(error)
        self._flight -= 1
        if self._flight:
            return
        if self._closing:
            self._conclude()
        elif self._next == self._end or self._error:
            self._close()

    def _conclude(self) -> None:
        session, operation, error = self._session, self._operation, self._error
        end = partial(session.finish, operation)
        if self._target is None:
            end(None, error)
        elif error:
            Run(session, discard(self._temporary, error), end)
        else:
            path, overwrite = self._target
            sequence = publish(
                session,
                self._temporary,
                path,
                self._source,
                overwrite,
                again=bool(operation.attempts),
                dated=self._dated,
            )
            Run(session, sequence, end)

    def _fail(self, error: TransferError) -> None:
        self._error = self._error or error
