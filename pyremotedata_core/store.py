"""Store: the upload of one file."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .errors import (
    ConnectionLost,
    RemoteFileNotFound,
    RemotePermissionDenied,
    ServerRefused,
    TransferError,
    TransferTimeout,
    cancelled,
    from_oserror,
    naming,
)
from .fetch import Check
from .jobs import SEGMENT_BYTES, FileJob, OnBytes
from .journal import Origin
from .local import Compared, LocalSource
from .model import Stat
from .transports.base import Done
from .url import RemoteURL

if TYPE_CHECKING:
    from .mover import Mover


class Store(FileJob):
    """Uploads one regular file.

    With ``verify`` it is read back, and compared, before it gets its name.
    """

    def __init__(
        self,
        mover: Mover,
        path: str,
        url: RemoteURL,
        done: Done,
        *,
        overwrite: bool = True,
        parents: bool = True,
        on_bytes: OnBytes | None = None,
        verify: bool = False,
        modes: bool = False,
    ) -> None:
        super().__init__(mover, url, done, on_bytes, False)
        self._path = path
        self._overwrite = overwrite
        self._parents = parents
        self._verify = verify
        self._modes = modes
        self._attempts = 0
        self._resumed = False
        self._whole = False  # the server has refused a part of it
        self._source: LocalSource
        self._compared: Compared | None = None
        self._stat: Stat  # of the temporary file, when it is to be compared
        self._temporary = ""
        self._check: Check | None = None
        self._mover.loop.call_soon(self._start)

    def cancel(self, *, keep: bool = False) -> None:
        """Give up soon; see `Job.cancel`."""
        super().cancel(keep=keep)
        if self._check is not None:
            self._check.cancel(keep=keep)

    def _start(self) -> None:
        if self.cancelled:
            self._end(None, cancelled())
            return
        self._attempts += 1
        self._take_back()
        self._error = None
        self._compared = None
        segments = self._mover.segments(self._url)
        parts = segments and not self._whole and self._takes_parts() is not False
        try:
            self._source = LocalSource(self._path, self._modes)
        except TransferError as local_error:
            self._end(None, local_error)
            return
        self._size = self._source.size
        in_parts = parts and (self._size > SEGMENT_BYTES or self._verify)
        try:
            had = self._begin(large=parts and self._size > SEGMENT_BYTES)
        except TransferError as local_error:
            self._source.close()
            self._end(None, local_error)
            return
        self._resumed = had is not None
        if had is not None:
            self._move_all(had)
        elif in_parts:
            self._expect(self._size)
            self._submit(
                "create", self._creation(), self._created, renew=self._anew(self._creation)
            )
        else:
            then = self._written if segments else self._stored_unseen
            self._submit(
                "write",
                self._writing(),
                then if self._verify else self._stored,
                load_bytes=self._size or 1,
                on_bytes=self._count,
                renew=self._anew(self._writing),
            )

    def _creation(self) -> tuple[Any, ...]:
        return self._temporary, self._url.path, self._overwrite, self._size

    def _writing(self) -> tuple[Any, ...]:
        compares_first = self._verify and self._mover.segments(self._url)
        path = self._temporary if compares_first else self._url.path
        return path, self._source, self._overwrite, self._temporary

    def _anew(self, args: Callable[[], tuple[Any, ...]]) -> Callable[[], tuple[Any, ...]]:
        """Return what makes arguments for another attempt."""

        def renew() -> tuple[Any, ...]:
            self._temporary = self._mover.other_temporary(self._url, self._temporary)
            return args()

        return renew

    def _begin(self, *, large: bool) -> set[int] | None:
        """Choose the temporary name; return the segments that one left before has."""
        self._temporary = self._mover.temporary_beside(self._url.path)
        if self._temporary == self._url.path:
            return None
        journal = self._mover.journal(self._url)
        origin = self._origin() if large else None
        if origin:
            found = journal.resume(self._url.path, origin)
            if found:
                self._temporary, done = found
                return set(done)
            self._mover.clear_orphans(self._url)
        journal.begin(self._temporary, self._url.path, origin)
        return None

    def _origin(self) -> Origin:
        with naming(self._path):
            info = os.fstat(self._source.fd)
        return Origin(self._path, info.st_size, info.st_mtime_ns, info.st_ino, SEGMENT_BYTES)

    def _created(self, _: Any, error: TransferError | None) -> None:
        if error is not None:
            self._stored(None, error)
        elif self.cancelled:
            self._all_moved()
        elif self._takes_parts() is None and self._size:
            # Some servers take a file from its beginning to its end, and not otherwise.
            args = (self._temporary, self._source, min(SEGMENT_BYTES, self._size - 1), 1)
            self._submit("write_part", args, self._probed)
        else:
            self._move_all(set())

    def _takes_parts(self) -> bool | None:
        """Whether the server takes a file in parts; None if that is not known yet."""
        try:
            return self._mover.pool(self._url).takes_parts
        except TransferError:
            return None  # the operations meet it, too

    def _probed(self, _: Any, error: TransferError | None) -> None:
        if error is None and self._size > 1:  # one byte alone is the whole
            self._mover.pool(self._url).takes_parts = True
        refused = isinstance(error, ServerRefused | RemotePermissionDenied | RemoteFileNotFound)
        if refused and not self.cancelled:
            self._whole = True
            self._expect(0)
            self._start_over()
        elif error is not None or self.cancelled:
            self._error = error
            self._all_moved()
        else:
            self._move_all(set())

    def _written(self, stat: Stat | None, error: TransferError | None) -> None:
        """Compare what has gone in one piece, and has no name yet."""
        if error is not None:
            self._stored(None, error)
        else:
            self._looked(stat, None)

    def _segment(self, offset: int, length: int, then: Done) -> None:
        if self._compared is not None:
            args: tuple[Any, ...] = (self._temporary, self._compared, offset, length, self._stat)
            self._submit("read", args, then, load_bytes=length)
            return
        self._submit(
            "write_part",
            (self._temporary, self._source, offset, length),
            then,
            load_bytes=length,
            on_bytes=self._count,
        )

    def _note(self, number: int) -> None:
        if self._compared is None:
            self._mover.journal(self._url).note(self._temporary, number)

    def _all_moved(self) -> None:
        error = self._error or (cancelled() if self.cancelled else None)
        if error is None and self._verify:
            if self._compared is None:
                self._submit("stat", (self._temporary, True), self._looked)
                return
            if not self._compared.same and self._resumed:
                # What an earlier call sent was something else, of the same size and time.
                self._start_over()
                return
            if not self._compared.same:
                error = ServerRefused("what the server holds is not what was sent", str(self._url))
        if error is None:
            args = (self._temporary, self._url.path, self._source, self._overwrite)
            self._submit("publish", args, self._published)
        elif isinstance(error, RemoteFileNotFound) and self._resumed and not self.cancelled:
            # Somebody has cleared it away.
            self._mover.journal(self._url).end(self._temporary)
            self._source.close()
            self._start()
        elif self._may_be_continued(error):
            self._stored(None, error)
        elif isinstance(error, ConnectionLost | TransferTimeout) and not self.cancelled:
            # The time is up. It goes if the server is soon back, else when the next process comes.
            self._discard(None)
            self._stored(None, error)
        else:
            # The temporary file is ours: it goes before the failure is told.
            self._discard(error)

    def _published(self, stat: Stat | None, error: TransferError | None) -> None:
        if error is not None and self.cancelled and not self.keep:
            self._discard(error)  # it may have been given up between two attempts
        else:
            self._stored(stat, error)

    def _may_be_continued(self, error: TransferError) -> bool:
        if self.cancelled:
            wanted = self.keep
        else:
            wanted = isinstance(error, ConnectionLost | TransferTimeout)
        return wanted and self._mover.journal(self._url).keep(self._temporary)

    def _looked(self, stat: Stat | None, error: TransferError | None) -> None:
        if stat is None or self.cancelled:
            self._error = error or cancelled()
            self._all_moved()
            return
        self._stat = stat
        try:
            self._compared = Compared(self._source.fd)
        except OSError as failure:  # an empty file is opened only now
            self._error = from_oserror(failure, self._path)
            self._all_moved()
        else:
            self._move_all(set())

    def _discard(self, cause: TransferError | None) -> None:
        def removed(gone: bool) -> None:
            if cause is not None:
                cause.left_temporary = not gone
                self._stored(None, cause)

        self._remove(removed)

    def _start_over(self) -> None:
        """Begin anew without what is at the server, where it may have the final name."""

        def removed(_gone: bool) -> None:
            self._source.close()
            self._start()

        self._remove(removed)

    def _remove(self, then: Callable[[bool], None]) -> None:
        temporary = self._temporary

        def removed(_: Any, error: TransferError | None) -> None:
            gone = error is None or isinstance(error, RemoteFileNotFound)
            if gone:
                self._mover.journal(self._url).end(temporary)
            then(gone)

        self._submit("remove", (temporary,), removed)

    def _stored_unseen(self, stat: Stat | None, error: TransferError | None) -> None:
        """Compare what lftp has uploaded, which by then has its name."""

        def checked(same: bool | None, error: TransferError | None) -> None:
            if same is False:
                error = ServerRefused("what the server holds is not what was sent", str(self._url))
            self._stored(None if error else stat, error)

        if stat is None or self.cancelled:
            self._stored(None, error or cancelled())
        else:
            self._check = Check(self._mover, self._url, self._path, checked, expect=stat)

    def _stored(self, stat: Stat | None, error: TransferError | None) -> None:
        self._source.close()
        if error is None and self._whole:  # else the disk may be full, say
            self._mover.pool(self._url).takes_parts = False
        journal = self._mover.journal(self._url)
        if isinstance(error, ConnectionLost | TransferTimeout):
            journal.keep(self._temporary)
        elif error is None or not error.left_temporary:
            journal.end(self._temporary)
        missing = isinstance(error, RemoteFileNotFound | RemotePermissionDenied)
        if error is not None and self._attempts == 1 and not self.cancelled:
            if missing and self._parents:
                self._mover.make_parent(self._url, self._made)
                return
            # The local file has changed, or somebody has cleared the temporary one away.
            changed = type(error) is TransferError and error.retryable
            if changed or isinstance(error, RemoteFileNotFound):
                self._start()
                return
        if error is not None and os.path.basename(self._temporary) in error.url:
            # The user knows the file by its own name.
            error = type(error)(error.message, str(self._url), error.retryable)
        self._end(stat, error)

    def _made(self, _: Any, error: TransferError | None) -> None:
        if error is not None:
            self._end(None, error)
        else:
            self._start()
