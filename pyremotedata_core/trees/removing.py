"""RemoveTree: the removal of a directory with all that it holds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ..errors import RemoteFileNotFound, TransferError, cancelled
from ..jobs import Job
from ..listing import ListDirectory
from ..model import Entry, Stat
from ..mover import Mover
from ..spool import LISTINGS_AT_ONCE, Spool
from ..transports.base import Done
from ..url import RemoteURL, child_path, parent_path
from .many import ENTRIES_WAITING, FILES_UNDER_WAY

PASSES = 3  # over a directory that is not empty after all in it was removed


class RemoveTree(Job):
    """Removes a file, link or directory with all that is in it; links are not followed."""

    def __init__(self, mover: Mover, url: RemoteURL, done: Done) -> None:
        super().__init__(mover, url, done)
        self._left: dict[str, _Left] = {}
        self._waiting = Spool()
        self._waiting_directories = Spool()
        self._under_way = 0
        self._listings: set[Job] = set()
        self._error: TransferError | None = None
        self._submit("stat", (url.path, False), self._looked)

    def cancel(self, *, keep: bool = False) -> None:
        """Give up; what is under way ends, nothing else begins."""
        super().cancel(keep=keep)
        for listing in list(self._listings):
            listing.cancel(keep=keep)

    def _looked(self, stat: Stat | None, error: TransferError | None) -> None:
        if stat is None or self.cancelled:
            self._end(None, error or cancelled())
            return
        if stat.kind == "directory":
            self._waiting_directories.append(self._url.path)
        else:
            self._waiting.append(("remove", self._url.path))
        self._more()

    def _more(self) -> None:
        if self._error or self.cancelled:
            self._waiting.clear()
            self._waiting_directories.clear()
        while self._waiting and self._under_way < FILES_UNDER_WAY:
            name, path = self._waiting.popleft()
            self._under_way += 1
            self._submit(name, (path,), partial(self._removed, name, path))
        while (
            self._waiting_directories
            and len(self._listings) < LISTINGS_AT_ONCE
            and len(self._waiting) < ENTRIES_WAITING
        ):
            self._list(self._waiting_directories.pop())  # depth first: few are begun at a time
        if not (self._under_way or self._listings or self._waiting or self._waiting_directories):
            error = self._error
            if error is None and self.cancelled:
                error = cancelled()
            self._end(None, error)

    def _list(self, path: str) -> None:
        left = self._left.setdefault(path, _Left())
        left.entries = 1  # the listing itself
        left.removed = 0

        def take(entries: list[Entry]) -> None:
            if self._error:
                raise self._error
            left.entries += len(entries)
            for name, stat in entries:
                below = child_path(path, name)
                if stat.kind == "directory":
                    self._waiting_directories.append(below)
                else:
                    self._waiting.append(("remove", below))
            self._more()

        def listed(_: Any, error: TransferError | None) -> None:
            self._listings.discard(job)
            if isinstance(error, RemoteFileNotFound):
                error = None
            self._error = self._error or error
            self._one_less(path)
            self._more()

        url = replace(self._url, path=path)
        job = ListDirectory(self._mover, url, take, listed, raw=True)
        self._listings.add(job)

    def _removed(self, name: str, path: str, _: Any, error: TransferError | None) -> None:
        self._under_way -= 1
        if error is not None and name == "rmdir" and self._list_again(path, error):
            pass
        elif error is not None and not isinstance(error, RemoteFileNotFound):
            self._error = self._error or error
        else:
            if name == "rmdir":
                del self._left[path]
            if path != self._url.path:
                self._one_less(parent_path(path))
        self._more()

    def _one_less(self, directory: str) -> None:
        left = self._left[directory]
        left.entries -= 1
        left.removed += 1
        if not left.entries and not self._error:
            self._waiting.append(("rmdir", directory))

    def _list_again(self, path: str, error: TransferError) -> bool:
        """List a directory anew that is not empty: on some servers a listing misses names while
        others are removed."""
        left = self._left[path]
        left.passes += 1
        if type(error) is not TransferError or left.removed < 2 or left.passes >= PASSES:
            return False
        self._waiting_directories.append(path)
        return True


@dataclass(slots=True)
class _Left:
    """What is left to do in a directory that is removed."""

    entries: int = 0
    removed: int = 0
    passes: int = 0
