"""Listings on an SFTP session, with several requests in flight."""

from __future__ import annotations

from typing import Any

from ..errors import ServerRefused, TransferError
from ..names import check_component
from . import wire
from .base import MAX_LISTING_BYTES, Operation, check_listing
from .sftp import SftpSession
from .sftp_sequences import error_of, ignore, path_of, url_of

MOST_READDIRS = 16  # in flight for one listing


class Listing:
    """Lists a directory with several READDIRs in flight; more as it proves to be large.

    What has come in one turn of the loop is seen before more is asked for: it most often tells
    that a small directory is at its end.
    """

    def __init__(self, session: SftpSession, operation: Operation) -> None:
        self._session, self._operation = session, operation
        self._path, self._take = operation.args
        self._began = session.loop.now
        self._count = self._bytes = 0
        self._error: TransferError | None = None
        self._ended = False
        self._flight = 0
        self._answered = 0  # with names, since more was asked for
        session.request(wire.OPENDIR, path_of(self._path), self._opened)

    def _opened(self, kind: int, body: memoryview, _data: Any) -> None:
        if kind != wire.HANDLE:
            error = error_of(self._session, self._path, (kind, body))
            if type(error) is TransferError:
                error = ServerRefused(f"not a directory? {error.message}", error.url)
            self._session.finish(self._operation, None, error)
            return
        self._handle = wire.read_handle(body)
        self._ask(4)

    def _ask(self, count: int) -> None:
        self._flight += count
        for _ in range(count):
            self._session.request(wire.READDIR, self._handle, self._named)

    def _ask_more(self) -> None:
        count, self._answered = min(2 * self._answered, MOST_READDIRS - self._flight), 0
        if not self._session.alive:
            return
        if not (self._ended or self._operation.cancelled):
            self._ask(count)
        elif not self._flight:
            self._close()

    def _named(self, kind: int, body: memoryview, _data: Any) -> None:
        self._flight -= 1
        if kind == wire.NAME:
            if not self._error and not self._operation.cancelled:
                self._keep(body)
            if not self._answered:
                self._session.loop.call_soon(self._ask_more)
            self._answered += 1
        else:
            self._ended = True
            if kind != wire.STATUS or wire.read_u32(body) != wire.EOF:
                self._error = self._error or error_of(self._session, self._path, (kind, body))
        if not (self._flight or self._answered):
            self._close()

    def _keep(self, body: memoryview) -> None:
        entries = wire.read_names(body)
        self._ended = self._ended or not entries
        self._count += len(entries)
        self._bytes += len(body)
        url = url_of(self._session, self._path)
        try:
            self._take(
                [
                    entry
                    for entry in entries
                    if entry.name not in (".", "..") and check_component(entry.name, url)
                ]
            )
            if self._bytes > MAX_LISTING_BYTES:
                raise ServerRefused(f"the listing has no end: {self._bytes} bytes so far", url)
            taken_s = self._session.loop.now - self._began
            check_listing(self._count, taken_s, self._session.settings.timeout_s, url)
        except TransferError as error:
            self._error = error
            self._ended = True

    def _close(self) -> None:
        self._session.request(wire.CLOSE, self._handle, ignore)
        self._session.finish(self._operation, None, self._error)
