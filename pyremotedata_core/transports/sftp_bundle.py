"""Bundle: many small files, downloaded with as few steps each as can be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import RemoteChanged, TransferError, cancelled, from_oserror
from ..model import Stat
from . import wire
from .base import Operation, Sink
from .sftp import SftpSession
from .sftp_sequences import error_of, path_of, url_of


class SmallFile:
    """One of them: where it is, what it is known to be, and where its bytes go."""

    __slots__ = ("path", "sink", "stat")

    def __init__(self, path: str, stat: Stat, sink: Sink) -> None:
        self.path = path
        self.stat = stat
        self.sink = sink


class Bundle:
    """Downloads the files of a list; ``ended(file, error)`` is called for each, and removes it.

    As for `Download`: OPEN; then the reads, FSTAT and CLOSE in flight together, and the FSTAT
    shows whether the file is still what it was. A read that is answered short is an error here:
    who asked does it again, file by file.
    """

    __slots__ = ("ended", "left", "operation", "session")

    def __init__(self, session: SftpSession, operation: Operation) -> None:
        files: list[SmallFile]
        self.ended: Callable[[SmallFile, TransferError | None], None]
        files, self.ended = operation.args
        self.session, self.operation = session, operation
        self.left = len(files)
        for file in list(files):
            _One(self, file)

    def end(self, file: SmallFile, error: TransferError | None) -> None:
        """Tell of a file; after the last one the operation is done."""
        self.ended(file, error)
        self.left -= 1
        if not self.left:
            self.session.finish(
                self.operation, None, cancelled() if self.operation.cancelled else None
            )


class _One:
    __slots__ = ("_bundle", "_error", "_file", "_flight")

    def __init__(self, bundle: Bundle, file: SmallFile) -> None:
        self._bundle, self._file = bundle, file
        self._error: TransferError | None = None
        self._flight = 0
        body = path_of(file.path) + wire.u32(wire.O_READ) + wire.NO_ATTRS
        bundle.session.request(wire.OPEN, body, self._opened)

    def _opened(self, kind: int, body: memoryview, _data: Any) -> None:
        session = self._bundle.session
        if kind != wire.HANDLE:
            self._bundle.end(self._file, error_of(session, self._file.path, (kind, body)))
            return
        handle = wire.read_handle(body)
        size, offset = self._file.stat.size, 0
        if self._bundle.operation.cancelled:
            self._error, size = cancelled(), 0
        while offset < size:
            length = min(session.read_bytes, size - offset)
            self._flight += 1
            session.asked_for(length)
            body_ = handle + wire.u64(offset) + wire.u32(length)
            session.request(wire.READ, body_, self._read, (offset, length))
            offset += length
        self._flight += 2
        session.request(wire.FSTAT, handle, self._statted)
        session.request(wire.CLOSE, handle, self._closed)

    def _read(self, kind: int, body: memoryview, asked: tuple[int, int]) -> None:
        offset, size = asked
        bundle = self._bundle
        bundle.session.read_window -= size
        self._flight -= 1
        if kind == wire.DATA:
            length = wire.read_u32(body)
            if length > size or length != len(body) - 4:
                raise wire.Garbage(f"{length} bytes of data where {size} were asked for")
            if length < size:
                self._error = self._error or self._changed()
            elif not self._error:
                try:
                    self._file.sink.write(body[4:], offset)
                except OSError as error:
                    self._error = from_oserror(error, self._file.sink.path)
                else:
                    operation = bundle.operation
                    operation.moved += length
                    if operation.on_bytes:
                        operation.on_bytes(length)
        else:
            self._error = self._error or self._changed()
        if not self._flight:
            bundle.end(self._file, self._error)

    def _statted(self, kind: int, body: memoryview, _data: Any) -> None:
        self._flight -= 1
        if kind != wire.ATTRS or not wire.read_attrs(body)[0].same_content(self._file.stat):
            self._error = self._error or self._changed()
        if not self._flight:
            self._bundle.end(self._file, self._error)

    def _closed(self, _kind: int, _body: memoryview, _data: Any) -> None:
        self._flight -= 1
        if not self._flight:
            self._bundle.end(self._file, self._error)

    def _changed(self) -> RemoteChanged:
        where = url_of(self._bundle.session, self._file.path)
        return RemoteChanged("the file changed while it was read", where)
