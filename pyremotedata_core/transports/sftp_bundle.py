"""Bundles: many small files, moved with as few steps each as can be.

What goes otherwise than usual is an error of that file here, after which nothing of it is left: who
asked does it again, alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..errors import (
    ConnectionLost,
    RemoteChanged,
    ServerRefused,
    TransferError,
    cancelled,
    from_oserror,
)
from ..model import Stat
from . import wire
from .base import Operation, Sink, SmallSource
from .sftp import SftpSession
from .sftp_publish import creation_flags, dated_well, dating
from .sftp_sequences import POSIX_RENAME, error_of, ignore, is_ok, path_of, url_of


@dataclass(slots=True, eq=False)
class SmallFile:
    """One to download: where it is, what it is known to be, and where its bytes go."""

    path: str
    stat: Stat
    sink: Sink


@dataclass(slots=True, eq=False)
class SmallUpload:
    """One to upload: where its bytes come from, its name, and the temporary one.

    ``begun`` tells whether the server may have the temporary file, ``left`` that it would not
    remove it.
    """

    source: SmallSource
    path: str
    temporary: str
    begun: bool = False
    left: bool = False


class Bundle:
    """Moves the files of a list; ``ended(file, error)`` is called for each, and removes it."""

    __slots__ = ("ended", "left", "operation", "session")

    def __init__(self, session: SftpSession, operation: Operation) -> None:
        self.ended: Callable[[Any, TransferError | None], None]
        files, self.ended = operation.args
        self.session, self.operation = session, operation
        self.left = len(files)
        begin = _Download if operation.name == "read_bundle" else _Upload
        for file in list(files):
            begin(self, file)

    def end(self, file: Any, error: TransferError | None) -> None:
        """Tell of a file; after the last one the operation is done."""
        self.ended(file, error)
        self.left -= 1
        if not self.left:
            self.session.finish(
                self.operation, None, cancelled() if self.operation.cancelled else None
            )


class _Download:
    """As `Download`: OPEN; then the reads and FSTAT in flight together, and the FSTAT shows whether
    the file is still what it was; in the end CLOSE."""

    __slots__ = ("_bundle", "_error", "_file", "_flight", "_handle")
    is_small = False  # of a tree: they take their turn

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
        self._handle = wire.read_handle(body)
        session.want_reads(self)

    def issue(self) -> bool:
        """Send all reads, and the last question."""
        session = self._bundle.session
        size, offset = self._file.stat.size, 0
        if self._bundle.operation.cancelled:
            self._error, size = cancelled(), 0
        while offset < size:
            length = min(session.read_bytes, size - offset)
            self._flight += 1
            session.asked_for(length)
            body_ = self._handle + wire.u64(offset) + wire.u32(length)
            session.request(wire.READ, body_, self._read, (offset, length, session.loop.now))
            offset += length
        self._flight += 1
        session.request(wire.FSTAT, self._handle, self._statted)
        return False

    def _read(self, kind: int, body: memoryview, asked: tuple[int, int, float]) -> None:
        offset, size, since = asked
        bundle, session = self._bundle, self._bundle.session
        session.reads.answered(size, since, session.loop.now)
        self._flight -= 1
        if kind == wire.DATA:
            data = wire.read_data(body, size)
            if len(data) < size:
                self._error = self._error or self._changed()
            elif not self._error:
                try:
                    self._file.sink.write(data, offset)
                except OSError as error:
                    self._error = from_oserror(error, self._file.sink.path)
                else:
                    bundle.operation.count(size)
        else:
            self._error = self._error or self._changed()
        self._progress()

    def _statted(self, kind: int, body: memoryview, _data: Any) -> None:
        self._flight -= 1
        if kind != wire.ATTRS or not wire.read_attrs(body)[0].same_content(self._file.stat):
            self._error = self._error or self._changed()
        self._progress()

    def _progress(self) -> None:
        if not self._flight:
            self._bundle.session.request(wire.CLOSE, self._handle, ignore)
            self._bundle.end(self._file, self._error)

    def _changed(self) -> RemoteChanged:
        where = url_of(self._bundle.session, self._file.path)
        return RemoteChanged("the file changed while it was read", where)


class _Upload:
    """As `Upload`: OPEN; then the writes, CLOSE, times and STAT in flight together; then a rename
    that has to be atomic."""

    __slots__ = ("_bundle", "_error", "_file", "_flight", "_handle")
    is_small = False  # of a tree: they take their turn

    def __init__(self, bundle: Bundle, file: SmallUpload) -> None:
        self._bundle, self._file = bundle, file
        self._error: TransferError | None = None
        self._flight = 0
        session = bundle.session
        if file.begun:
            # The session before may still be about to rename it: another name is safer.
            self._discard(ConnectionLost("the connection broke", session.url))
        elif session.plain_uploads or POSIX_RENAME not in session.extensions:
            alone = ServerRefused("has to be uploaded alone", session.url)
            session.loop.call_soon(partial(bundle.end, file, alone))
        else:
            file.begun = True
            flags = creation_flags(file.temporary, file.path, True)
            body = path_of(file.temporary) + wire.u32(flags) + wire.NO_ATTRS
            session.request(wire.OPEN, body, self._opened)

    def _opened(self, kind: int, body: memoryview, _data: Any) -> None:
        session = self._bundle.session
        if kind != wire.HANDLE:
            self._bundle.end(self._file, error_of(session, self._file.path, (kind, body)))
            return
        self._handle = wire.read_handle(body)
        session.want_writes(self)

    def issue(self) -> bool:
        """Send all of it, and the questions."""
        bundle, source = self._bundle, self._file.source
        session = bundle.session
        data = b""
        if bundle.operation.cancelled:
            self._error = cancelled()
        else:
            try:
                data = source.read()
            except TransferError as error:
                self._error = error
        view = memoryview(data)
        for offset in range(0, len(data), session.write_bytes):
            piece = view[offset : offset + session.write_bytes]
            body = self._handle + wire.u64(offset) + wire.u32(len(piece))
            session.sent(len(piece))
            self._flight += 1
            session.request_write(body, piece, self._written, (len(piece), session.loop.now))
        self._flight += 1
        session.request(wire.CLOSE, self._handle, self._status)
        if self._error is None:
            for kind, body in dating(self._file.temporary, source):
                self._flight += 1
                session.request(kind, body, self._dated, kind)
        return False

    def _written(self, kind: int, body: memoryview, sent: tuple[int, float]) -> None:
        size, since = sent
        bundle, session = self._bundle, self._bundle.session
        session.writes.answered(size, since, session.loop.now)
        bundle.operation.count(size)
        self._status(kind, body, None)

    def _status(self, kind: int, body: memoryview, _data: Any) -> None:
        if not is_ok((kind, body)):
            session, path = self._bundle.session, self._file.path
            self._error = self._error or error_of(session, path, (kind, body))
        self._landed()

    def _dated(self, kind: int, body: memoryview, asked: int) -> None:
        if asked == wire.STAT:
            well = kind == wire.ATTRS and wire.read_attrs(body)[0].size == self._file.source.size
        else:
            well = dated_well((kind, body))
        if not well and not self._error:
            self._error = self._refused()
        self._landed()

    def _landed(self) -> None:
        self._flight -= 1
        if self._flight:
            return
        if self._error is None and self._bundle.operation.cancelled:
            self._error = cancelled()
        if self._error is not None:
            self._discard(self._error)
            return
        names = path_of(self._file.temporary) + path_of(self._file.path)
        body = wire.string(POSIX_RENAME.encode()) + names
        self._bundle.session.request(wire.EXTENDED, body, self._renamed)

    def _renamed(self, kind: int, body: memoryview, _data: Any) -> None:
        if is_ok((kind, body)):
            self._bundle.end(self._file, None)
        else:
            self._discard(self._refused())

    def _refused(self) -> TransferError:
        """Have this session's other files uploaded alone: the server is not as is usual."""
        session = self._bundle.session
        session.plain_uploads = True
        return ServerRefused("has to be uploaded alone", url_of(session, self._file.path))

    def _discard(self, error: TransferError) -> None:
        def removed(kind: int, body: memoryview, _data: Any) -> None:
            gone = kind == wire.STATUS and wire.read_u32(body) in (wire.OK, wire.NO_SUCH_FILE)
            self._file.left = not gone
            self._bundle.end(self._file, error)

        self._bundle.session.request(wire.REMOVE, path_of(self._file.temporary), removed)
