"""What all jobs on many files share: queues, bounds, counts."""

from __future__ import annotations

import os
import posixpath
from abc import abstractmethod
from collections import deque
from collections.abc import Callable
from functools import cached_property
from typing import Any

from ..bundle import BUNDLE_BYTES, BUNDLE_FILES
from ..errors import (
    AuthenticationFailed,
    ConfigurationError,
    ConnectionLost,
    HostKeyRejected,
    LocalStorageFull,
    TransferError,
    TransferTimeout,
    cancelled,
)
from ..fetch import Check, Fetch
from ..filters import Filter, TreeOptions
from ..growth import Growth
from ..jobs import Job
from ..model import Stat, TreeResult, sftp_time
from ..mover import Mover
from ..spool import LISTINGS_AT_ONCE, Spool
from ..transports.base import Done
from ..url import RemoteURL

FILES_UNDER_WAY = 512
ENTRIES_WAITING = 4096  # more of them are kept on disk, and nothing else is listed
FAILURES_KEPT = 10_000
PLANNED_KEPT = 1_000_000  # each is a line of a dry run
DIRECTORY_IN_THE_WAY = "is a directory, but a file is to be there; move it away"
FILE_IN_THE_WAY = "is a file, but a directory is to be there; move it away"
SPECIAL_IN_THE_WAY = "is a device, pipe or socket, and would be replaced; move it away"

# After one of these every further file would fail alike.
_HOPELESS = (
    AuthenticationFailed,
    ConfigurationError,
    ConnectionLost,
    HostKeyRejected,
    LocalStorageFull,
    TransferTimeout,
)
Count = Callable[[int, int], None]


class Many(Job):
    """A job made of many; subclasses queue steps, this bounds and counts them."""

    def __init__(
        self, mover: Mover, url: RemoteURL, done: Done, count: Count, *, dry_run: bool = False
    ) -> None:
        super().__init__(mover, url, done)
        self._tell = count
        self._dry_run = dry_run
        self._planned: list[tuple[str, str]] = []
        self._files = self._bytes = self._unchanged = self._deleted = 0
        self._skipped: list[tuple[str, str]] = []
        self._failed: list[dict[str, Any]] = []
        self._fatal: TransferError | None = None
        self._waiting_listings = Spool()
        self._waiting_files: Spool | deque[Any] = Spool()
        self._listings = 0
        self._children: set[Job] = set()
        self._asked = False

    def cancel(self, *, keep: bool = False) -> None:
        """Give up; what is under way ends, nothing else begins."""
        super().cancel(keep=keep)
        for child in list(self._children):
            child.cancel(keep=keep)
        self._ask_more()

    @abstractmethod
    def _list(self, item: Any) -> None:
        """Begin to list one directory; end with `_listed`."""

    @abstractmethod
    def _begin_file(self, item: Any) -> Job:
        """Begin one file."""

    def _ask_more(self) -> None:
        if not self._asked:
            self._asked = True
            self._mover.loop.call_soon(self._more)

    def _more(self) -> None:
        self._asked = False
        if self.cancelled and self._fatal is None:
            self._fatal = cancelled()
        if self._fatal is not None:
            self._waiting_listings.clear()
            while self._waiting_files:
                self._forget_waiting(self._waiting_files.popleft())
        while self._waiting_files and len(self._children) < FILES_UNDER_WAY:
            self._begin_next()
        while (
            self._waiting_listings
            and self._listings < LISTINGS_AT_ONCE
            and len(self._waiting_files) < ENTRIES_WAITING
        ):
            self._listings += 1
            self._list(self._waiting_listings.popleft())
        if not (self._children or self._listings or self._waiting_files or self._waiting_listings):
            self._finish()

    def _begin_next(self) -> None:
        """Begin the next of the waiting files."""
        self._children.add(self._begin_file(self._take()))

    def _take(self) -> Any:
        item = self._waiting_files.popleft()
        self._forget_waiting(item)
        return item

    def _listed(self, error: TransferError | None = None) -> None:
        self._listings -= 1
        if error is not None:
            self._fail(error)
        self._ask_more()

    def _file_size(self, _item: Any) -> int:
        """Return the bytes of a waiting file, 0 where it is not known yet."""
        return 0

    def _wait(self, item: Any) -> None:
        """Queue a file; the pool hears what is to come."""
        self._waiting_files.append(item)
        self._growth.expected_files += 1
        self._growth.waiting_bytes += self._file_size(item)

    @cached_property
    def _growth(self) -> Growth:
        return self._mover.pool(self._url).growth

    def _forget_waiting(self, item: Any) -> None:
        self._growth.expected_files -= 1
        self._growth.waiting_bytes -= self._file_size(item)

    def _file_done(self, job: Job, size: int, error: TransferError | None) -> None:
        self._children.discard(job)
        if error is not None:
            self._fail(error)
        else:
            self._files += 1
            self._bytes += size
            self._tell(0, 1)
        self._ask_more()

    def _fail(self, error: TransferError) -> None:
        if isinstance(error, _HOPELESS):
            self._fatal = self._fatal or error
        elif len(self._failed) < FAILURES_KEPT:
            self._failed.append(error.to_plain())

    def _skip(self, path: str, why: str) -> None:
        if len(self._skipped) < FAILURES_KEPT:
            self._skipped.append((path, why))

    def _count(self, count: int) -> None:
        self._tell(count, 0)

    def _plan(self, action: str, path: str, size: int = 0) -> None:
        """Count what a dry run would do."""
        if len(self._planned) < PLANNED_KEPT:
            self._planned.append((action, path))
        if action == "delete":
            self._deleted += 1
        else:
            self._files += 1
            self._bytes += size

    def _finish(self) -> None:
        if self._fatal is not None:
            self._end(None, self._fatal)
            return
        result = TreeResult(
            self._files,
            self._bytes,
            self._unchanged,
            self._deleted,
            self._skipped,
            self._failed,
            tuple(self._planned),
        )
        self._end(result, None)


class FetchMany(Many):
    """Downloads a list of files, of one or of several servers."""

    def __init__(
        self,
        mover: Mover,
        pairs: list[tuple[RemoteURL, str]],
        done: Done,
        count: Count,
        options: dict[str, Any],
    ) -> None:
        super().__init__(mover, pairs[0][0] if pairs else RemoteURL("sftp", "-", "/"), done, count)
        self._options = options
        self._waiting_files = deque(pairs)
        self._ask_more()

    def _begin_file(self, item: tuple[RemoteURL, str]) -> Job:
        url, path = item

        def done(stat: Stat | None, error: TransferError | None) -> None:
            self._file_done(job, stat.size if stat else 0, error)

        job = Fetch(self._mover, url, path, done, on_bytes=self._count, **self._options)
        return job

    def _forget_waiting(self, item: Any) -> None:
        """They may be of many servers: no pool was told."""

    def _list(self, item: Any) -> None:
        """There is nothing to list."""


class Tree(Many):
    """Moves what a directory holds, from either side to the other."""

    def __init__(
        self,
        mover: Mover,
        url: RemoteURL,
        directory: str,
        done: Done,
        count: Count,
        options: TreeOptions,
    ) -> None:
        super().__init__(mover, url, done, count, dry_run=options.dry_run)
        self._filter = Filter(options.include, options.exclude)
        self._directory = directory
        self._compare = options.compare
        self._size_only = options.size_only
        self._delete = options.delete
        self._verify = options.verify
        self._modes = options.modes
        # Alone go what is to be read twice, and what a limit of bandwidth is to pace.
        limited = mover.settings.bandwidth is not None
        self._bundles = mover.segments(url) and not options.verify and not limited
        self._new: set[str] = set()  # what a dry run would make anew, with all that is in it
        self._waiting_listings.append("")
        self._ask_more()

    def _remote(self, relative: str) -> RemoteURL:
        return self._url.below(relative) if relative else self._url

    def _local(self, relative: str) -> str:
        return f"{self._directory}/{relative}" if relative else self._directory

    def _would_be_new(self, path: str) -> bool:
        """Whether a dry run would find nothing at the destination of a directory or file."""
        while path and self._new and path not in self._new:
            path = posixpath.dirname(path)
        return path in self._new

    @abstractmethod
    def _is_small(self, item: Any) -> bool:
        """Whether a waiting file may move in a bundle."""

    @abstractmethod
    def _begin_bundle(self, items: list[Any]) -> Job:
        """Begin some small files; end with `_bundle_ended`."""

    def _begin_next(self) -> None:
        items: list[Any] = []
        room = BUNDLE_BYTES
        while self._waiting_files and len(items) < BUNDLE_FILES and room > 0:
            item = self._take()
            if not (self._bundles and self._is_small(item)):
                self._children.add(self._begin_file(item))
                break
            room -= self._file_size(item)
            items.append(item)
        if items:
            self._children.add(self._begin_bundle(items))

    def _small_done(self, _path: str, size: int) -> None:
        """Count a file of a bundle."""
        self._files += 1
        self._bytes += size
        self._tell(size, 1)

    def _bundle_ended(self, job: Job, error: TransferError | None) -> None:
        self._children.discard(job)
        if error is not None:
            self._fail(error)
        self._ask_more()

    def _agrees(self, here: os.stat_result | None, there: Stat) -> bool:
        """Whether size and mtime say that nothing is to be moved."""
        if not self._compare or here is None:
            return False
        mtime = int(here.st_mtime)
        dated_alike = self._size_only or there.mtime in (mtime, sftp_time(mtime))
        return here.st_size == there.size and dated_alike

    def _stat_here(self, path: str) -> os.stat_result | None:
        """Return the stat of a local file, None if there is none."""
        try:
            return os.stat(self._local(path))
        except OSError:
            return None

    def _unless_same(self, path: str, stat: Stat, begin: Callable[[], Job]) -> Job:
        """Compare a file's content; move it if that differs, or cannot be compared."""

        def checked(same: bool | None, _: TransferError | None) -> None:
            self._children.discard(job)
            if same:
                self._unchanged += 1
            elif not self.cancelled:
                self._children.add(begin())
            self._ask_more()

        job = Check(self._mover, self._remote(path), self._local(path), checked, expect=stat)
        return job
