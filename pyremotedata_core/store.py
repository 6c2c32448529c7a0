"""Store: the upload of one file."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from .errors import (
    ConnectionLost,
    RemoteFileNotFound,
    RemotePermissionDenied,
    TransferError,
    TransferTimeout,
    from_oserror,
)
from .jobs import SEGMENT_BYTES, FileJob, OnBytes, cancelled
from .local import LocalSource
from .model import Stat
from .transports.base import Done
from .url import RemoteURL

if TYPE_CHECKING:
    from .mover import Mover


class Store(FileJob):
    """Uploads one regular file."""

    def __init__(
        self,
        mover: Mover,
        path: str,
        url: RemoteURL,
        done: Done,
        overwrite: bool,
        parents: bool,
        on_bytes: OnBytes | None,
    ) -> None:
        super().__init__(mover, url, done, on_bytes, False)
        self._path = path
        self._overwrite = overwrite
        self._parents = parents
        self._attempts = 0
        self._source: LocalSource
        self._temporary = ""
        self._mover.loop.call_soon(self._start)

    def _start(self) -> None:
        self._attempts += 1
        self._error = None
        try:
            self._source = LocalSource(self._path)
        except TransferError as error:
            self._end(None, error)
            return
        self._size = self._source.size
        self._temporary = self._mover.temporary_beside(self._url.path)
        try:
            self._mover.journal(self._url).begin(self._temporary, self._url.path)
        except OSError as error:
            self._source.close()
            self._end(None, from_oserror(error, "the journal of uploads"))
            return
        if self._size <= SEGMENT_BYTES or not self._mover.segments(self._url):
            self._submit(
                "write",
                (self._url.path, self._source, self._overwrite, self._temporary),
                self._stored,
                load_bytes=self._size or 1,
                on_bytes=self._count,
            )
        else:
            self._expect(self._size)
            self._submit("create", (self._temporary, self._url.path), self._created)

    def _created(self, _: Any, error: TransferError | None) -> None:
        if error is not None:
            self._stored(None, error)
        elif self.cancelled:
            self._all_moved()
        else:
            self._next = 0
            self._move()

    def _segment(self, offset: int, length: int) -> None:
        self._submit(
            "write_part",
            (self._temporary, self._source, offset, length),
            self._segment_done,
            load_bytes=length,
            on_bytes=self._count,
        )

    def _all_moved(self) -> None:
        error = self._error or (cancelled() if self.cancelled else None)
        if error is None:
            args = (self._temporary, self._url.path, self._source, self._overwrite)
            self._submit("publish", args, self._stored)
        elif isinstance(error, ConnectionLost | TransferTimeout) and not self.cancelled:
            # The time is up. It goes if the server is soon back, else when the next process comes.
            self._submit(
                "remove", (self._temporary,), partial(self._removed, self._temporary, None)
            )
            self._stored(None, error)
        else:
            # The temporary file is ours: it goes before the failure is told.
            self._submit(
                "remove", (self._temporary,), partial(self._removed, self._temporary, error)
            )

    def _removed(
        self, temporary: str, cause: TransferError | None, _: Any, error: TransferError | None
    ) -> None:
        if error is None:
            self._mover.journal(self._url).end(temporary)
        if cause is not None:
            self._stored(None, cause)

    def _stored(self, stat: Stat | None, error: TransferError | None) -> None:
        self._source.close()
        if error is None or not isinstance(error, ConnectionLost | TransferTimeout):
            self._mover.journal(self._url).end(self._temporary)
        missing = isinstance(error, RemoteFileNotFound | RemotePermissionDenied)
        if error is not None and self._attempts == 1 and not self.cancelled:
            if missing and self._parents:
                self._mover.mkdir(self._url.parent, self._made, parents=True, exist_ok=True)
                return
            if type(error) is TransferError and error.retryable:  # the local file changed
                self._start()
                return
        self._end(stat, error)

    def _made(self, _: Any, error: TransferError | None) -> None:
        if error is not None:
            self._end(None, error)
        else:
            self._start()
