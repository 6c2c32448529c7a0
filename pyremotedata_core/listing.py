"""Listings of directories, in batches: however large a directory is, few entries are in memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from .entries import Row
from .errors import RemoteFileNotFound, ServerRefused, TransferError, cancelled
from .jobs import Job
from .model import Entry, Stat
from .mover import Mover
from .names import is_temporary
from .spool import NameSet, Spool
from .transports.base import Done
from .url import RemoteURL

WINDOW_ENTRIES = 2048  # on their way to a reader in another process
BATCH_ENTRIES = 1024

Take = Callable[[list[Entry]], None]


class ListDirectory(Job):
    """Lists a directory: hands its entries on as they come, each name once.

    Parameters
    ----------
    mover : Mover
    url : RemoteURL
    take : callable
        Called with each batch; it may raise `TransferError`, which ends the listing.
    done : callable
        Called once, in the end, with (None, error).
    raw : bool
        Our own temporary files are listed, too.
    explain : bool
        Where there is no such directory, ask whether it is a file, which is another error.

    Attributes
    ----------
    seen : NameSet
        The names so far.
    """

    def __init__(
        self,
        mover: Mover,
        url: RemoteURL,
        take: Take,
        done: Done,
        *,
        raw: bool = False,
        explain: bool = True,
    ) -> None:
        super().__init__(mover, url, done)
        self._take = take
        self._raw = raw
        self._explains = explain and not raw
        # A server may name one twice, and a listing begins anew after a lost connection.
        self.seen = NameSet()
        self._submit("scandir", (url.path, self._took), self._listed)

    def _took(self, entries: list[Entry]) -> None:
        if self.cancelled:
            raise cancelled()
        new, raw = self.seen.add, self._raw
        fresh = [e for e in entries if new(e.name) and (raw or not is_temporary(e.name))]
        if fresh:
            self._take(fresh)

    def _listed(self, _: Any, error: TransferError | None) -> None:
        if self.cancelled:
            self._end(None, error or cancelled())
        elif isinstance(error, RemoteFileNotFound) and self._explains:
            self._submit("stat", (self._url.path, True), partial(self._explain, error))
        else:
            self._end(None, error)

    def _explain(self, error: TransferError, stat: Stat | None, _: TransferError | None) -> None:
        if stat is not None and stat.kind != "directory":
            error = ServerRefused("is a file; a directory was meant", str(self._url))
        self._end(None, error)


class Feed:
    """Hands the entries of a directory to a reader, no faster than it asks for more.

    The listing does not wait for the reader: what is too early lies on disk. So a slow reader
    holds neither a session nor a handle of the server.

    Parameters
    ----------
    mover : Mover
    url : RemoteURL
    send : callable
        Called with each batch of rows: (name, kind, size, mtime, mode).
    done : callable
        Called once, after the last batch, with (None, error).
    explain : bool
        As for `ListDirectory`.
    """

    def __init__(
        self,
        mover: Mover,
        url: RemoteURL,
        send: Callable[[list[Row]], None],
        done: Done,
        *,
        explain: bool = True,
    ) -> None:
        self._send = send
        self._done: Done | None = done
        self._room = WINDOW_ENTRIES
        self._waiting = Spool()
        self._ended = False
        self._error: TransferError | None = None
        self._job = ListDirectory(mover, url, self._took, self._listed, explain=explain)

    def more(self, count: int) -> None:
        """The reader has taken so many entries."""
        self._room += count
        while self._waiting and self._room > 0:
            size = min(len(self._waiting), BATCH_ENTRIES)
            self._pass_on([self._waiting.popleft() for _ in range(size)])
        self._conclude()

    def cancel(self, *, keep: bool = False) -> None:
        """Give up soon; the outcome is then an error."""
        self._waiting.clear()
        self._job.cancel(keep=keep)
        self._error = self._error or cancelled()
        self._conclude()

    def promote(self) -> None:
        """Nothing: it is not in the background."""

    def _took(self, entries: list[Entry]) -> None:
        rows = [(name, *stat) for name, stat in entries]
        if self._room > 0 and not self._waiting:
            self._pass_on(rows)
        else:
            for row in rows:
                self._waiting.append(row)

    def _pass_on(self, rows: list[Row]) -> None:
        self._room -= len(rows)
        self._send(rows)

    def _listed(self, _: Any, error: TransferError | None) -> None:
        self._ended = True
        self._error = self._error or error
        self._conclude()

    def _conclude(self) -> None:
        if self._ended and not self._waiting and self._done is not None:
            done, self._done = self._done, None
            done(None, self._error)
