"""Jobs on many files: fetch, store and remove whole trees, fetch a list.

A tree is walked while its files move. At most so many files are under way; of the entries that
wait, few are in memory and the others on disk. A directory is only listed when few wait.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import shutil
import stat as _stat
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from .errors import (
    AuthenticationFailed,
    ConfigurationError,
    ConnectionLost,
    HostKeyRejected,
    LocalStorageFull,
    RemoteChanged,
    RemoteFileNotFound,
    TransferError,
    TransferTimeout,
    from_oserror,
)
from .fetch import Check, Fetch
from .filters import Filter, TreeOptions
from .jobs import Job
from .listing import ListDirectory
from .local import make_directory
from .model import Entry, Stat, TreeResult
from .mover import Mover
from .names import is_temporary
from .spool import Spool
from .store import Store
from .transports.base import Done
from .url import RemoteURL, child_path, parent_path

FILES_UNDER_WAY = 512
LINKS_UNDER_WAY = 64
LISTINGS_UNDER_WAY = 8
ENTRIES_WAITING = 4096  # more of them are kept on disk, and nothing else is listed
PASSES = 3  # over a directory that is not empty after all in it was removed
FAILURES_KEPT = 10_000
PLANNED_KEPT = 1_000_000  # each is a line of a dry run
ORPHAN_AGE_S = 7 * 24 * 3600  # temporary files of nobody knows whom go at this age

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


class _Many(Job):
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
            self._fatal = ConnectionLost("cancelled", retryable=False)
        if self._fatal is not None:
            self._waiting_listings.clear()
            while self._waiting_files:
                self._forget_waiting(self._waiting_files.popleft())
        while self._waiting_files and len(self._children) < FILES_UNDER_WAY:
            item = self._waiting_files.popleft()
            self._forget_waiting(item)
            self._children.add(self._begin_file(item))
        while (
            self._waiting_listings
            and self._listings < LISTINGS_UNDER_WAY
            and len(self._waiting_files) < ENTRIES_WAITING
        ):
            self._listings += 1
            self._list(self._waiting_listings.popleft())
        if not (self._children or self._listings or self._waiting_files or self._waiting_listings):
            self._finish()

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
        pool = self._mover.pool(self._url)
        pool.expected_files += 1
        pool.expected_bytes += self._file_size(item)

    def _forget_waiting(self, item: Any) -> None:
        pool = self._mover.pool(self._url)
        pool.expected_files -= 1
        pool.expected_bytes -= self._file_size(item)

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


class FetchMany(_Many):
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


class _Tree(_Many):
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
        self._delete = options.delete
        self._verify = options.verify
        self._modes = options.modes
        self._waiting_listings.append("")
        self._ask_more()

    def _remote(self, relative: str) -> RemoteURL:
        return self._url.below(relative) if relative else self._url

    def _local(self, relative: str) -> str:
        return os.path.join(self._directory, relative) if relative else self._directory

    def _agrees(self, path: str, stat: Stat) -> bool:
        """Whether size and mtime say that nothing is to be moved."""
        return self._compare and _same_local(self._local(path), stat)

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


class FetchTree(_Tree):
    """Downloads what a directory holds. See `TransferEngine.fetch_tree`."""

    def __init__(
        self,
        mover: Mover,
        url: RemoteURL,
        directory: str,
        done: Done,
        count: Count,
        options: TreeOptions,
    ) -> None:
        super().__init__(mover, url, directory, done, count, options)
        self._real_root: str | None = None
        self._waiting_links = Spool()
        self._links = 0

    def _list(self, item: str) -> None:
        directory = _Directory(item)
        take, done = partial(self._got_entries, directory), partial(self._got_all, directory)
        directory.job = ListDirectory(self._mover, self._remote(item), take, done)
        self._children.add(directory.job)

    def _got_entries(self, directory: _Directory, entries: list[Entry]) -> None:
        if self._fatal is not None:
            raise self._fatal
        if not self._delete:
            self._prepare(directory)
            for name, stat in entries:
                self._enter(directory.below(name), stat)
            self._ask_more()
            return
        # What is to be deleted goes first, and is known in the end.
        for name, stat in entries:
            directory.entries.append((name, tuple(stat)))

    def _got_all(self, directory: _Directory, _: Any, error: TransferError | None) -> None:
        self._children.discard(directory.job)
        try:
            if error is not None:
                raise error
            self._prepare(directory)
            if self._delete:
                self._delete_others(directory)
            while directory.entries:
                name, stat = directory.entries.popleft()
                self._enter(directory.below(name), Stat(*stat))
        except TransferError as failure:
            if directory.path == "" and failure is not directory.failure:
                self._fatal = self._fatal or failure  # there is nothing to list
                self._listed()
            else:
                self._listed(failure)
            return
        self._listed()

    def _enter(self, path: str, stat: Stat) -> None:
        if stat.kind == "directory":
            if self._filter.wants_directory(path):
                self._waiting_listings.append(path)
        elif not self._filter.wants_file(path):
            return
        elif stat.kind == "file":
            if self._delete:
                self._make_way(path)
            self._consider(path, stat)
        elif stat.kind == "link":
            self._waiting_links.append(path)
            self._follow_more()
        else:
            self._skip(str(self._remote(path)), "is a special file")

    def _prepare(self, directory: _Directory) -> None:
        """Make the local directory."""
        if directory.prepared:
            return
        directory.prepared = True
        relative = directory.path
        local = self._local(relative)
        # A link in the tree is replaced: what it leads to is not ours to clear. The tree's own
        # root may well be one.
        real = os.path.isdir(local) and not os.path.islink(local)
        if self._delete and relative and os.path.lexists(local) and not real:
            self._clear(relative, local)
        if not self._dry_run:
            try:
                make_directory(local)
            except TransferError as error:
                directory.failure = error
                raise

    def _make_way(self, path: str) -> None:
        """Remove a local directory that is to be a file."""
        local = self._local(path)
        is_directory = os.path.isdir(local) and not os.path.islink(local)
        if is_directory and self._filter.is_meant(path, is_directory=True):
            self._clear(path, local)

    def _delete_others(self, directory: _Directory) -> None:
        """Remove what the remote directory does not hold."""
        local = self._local(directory.path)
        if not os.path.isdir(local):
            return
        try:
            with os.scandir(local) as here:
                others = [
                    (found.name, found.is_dir(follow_symlinks=False))
                    for found in here
                    if found.name not in directory.job.seen and not is_temporary(found.name)
                ]
        except OSError as error:
            raise from_oserror(error, local) from None
        for name, is_directory in others:
            path = directory.below(name)
            if self._filter.is_meant(path, is_directory):
                self._clear(path, os.path.join(local, name))

    def _clear(self, path: str, local: str) -> None:
        if self._dry_run:
            self._plan("delete", path)
        else:
            _remove_local(local)
            self._deleted += 1

    def _consider(self, path: str, stat: Stat) -> None:
        if (self._dry_run or not self._verify) and self._agrees(path, stat):
            self._unchanged += 1
        elif self._dry_run:
            self._plan("fetch", path, stat.size)
        else:
            self._wait((path, tuple(stat)))

    def _file_size(self, item: tuple[str, tuple[Any, ...]]) -> int:
        size: int = item[1][1]
        return 0 if size >> 63 else size

    def _begin_file(self, item: tuple[str, tuple[Any, ...]]) -> Job:
        path, stat = item[0], Stat(*item[1])
        if self._verify and self._agrees(path, stat):
            return self._unless_same(path, stat, partial(self._fetch, path, stat))
        return self._fetch(path, stat)

    def _fetch(self, path: str, stat: Stat | None) -> Job:
        done = partial(self._fetched, path, stat)
        job = Fetch(
            self._mover,
            self._remote(path),
            self._local(path),
            done,
            expect=stat,
            on_bytes=self._count,
            prepared=True,
            verify=self._verify,
            modes=self._modes,
        )
        done.keywords["job"] = job
        return job

    def _fetched(
        self,
        path: str,
        known: Stat | None,
        stat: Stat | None,
        error: TransferError | None,
        *,
        job: Job,
    ) -> None:
        if isinstance(error, RemoteChanged) and known is not None and not self.cancelled:
            # It changed after it was listed: as it is now, once more.
            self._children.discard(job)
            self._children.add(self._fetch(path, None))
            return
        self._file_done(job, stat.size if stat else 0, error)

    # --- links: followed to files within the tree ---------------------------------------------

    def _follow_more(self) -> None:
        if self._fatal is not None:
            self._waiting_links.clear()
        while self._waiting_links and self._links < LINKS_UNDER_WAY:
            self._links += 1
            self._listings += 1
            self._follow(self._waiting_links.popleft())

    def _followed(self, error: TransferError | None = None) -> None:
        self._links -= 1
        if error is not None:
            self._fail(error)
        self._follow_more()
        self._listed()

    def _follow(self, path: str) -> None:
        if not self._mover.segments(self._url):
            self._skip(str(self._remote(path)), "is a link, and lftp cannot tell where it leads")
            self._mover.loop.call_soon(self._followed)
        elif self._real_root is None:
            self._mover.realpath(self._url, partial(self._got_root, path))
        else:
            self._mover.realpath(self._remote(path), partial(self._got_target, path))

    def _got_root(self, path: str, real: str | None, error: TransferError | None) -> None:
        if real is None:
            self._followed(error)
            return
        self._real_root = real.rstrip("/") + "/"
        self._follow(path)

    def _got_target(self, path: str, real: str | None, error: TransferError | None) -> None:
        assert self._real_root is not None
        if real is None:
            self._skip(str(self._remote(path)), f"is a link that leads nowhere ({error})")
            self._followed()
        elif not real.startswith(self._real_root):
            self._skip(str(self._remote(path)), "is a link that leads out of the tree")
            self._followed()
        else:
            self._mover.stat(self._remote(path), partial(self._got_link_stat, path))

    def _got_link_stat(self, path: str, stat: Stat | None, error: TransferError | None) -> None:
        if stat is None:
            self._skip(str(self._remote(path)), f"is a link that leads nowhere ({error})")
        elif stat.kind != "file":
            self._skip(str(self._remote(path)), "is a link to a directory of the tree")
        else:
            self._consider(path, stat)
        self._followed()


class _Directory:
    """A remote directory while it is listed."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.job: ListDirectory
        self.prepared = False
        self.failure: TransferError | None = None  # of the local directory
        # With ``delete``: what it holds, until the listing has ended.
        self.entries = Spool()

    def below(self, name: str) -> str:
        """Return the path of an entry."""
        return f"{self.path}/{name}" if self.path else name


class StoreTree(_Tree):
    """Uploads what a local directory holds. See `TransferEngine.store_tree`."""

    def __init__(
        self,
        mover: Mover,
        url: RemoteURL,
        directory: str,
        done: Done,
        count: Count,
        options: TreeOptions,
    ) -> None:
        super().__init__(mover, url, directory, done, count, options)
        self._real_root = os.path.realpath(directory) + os.sep

    def _list(self, item: str) -> None:
        try:
            with os.scandir(self._local(item)) as here:
                entries = [entry for entry in here if not is_temporary(entry.name)]
        except OSError as error:
            local_error = from_oserror(error, self._local(item))
            if item == "":
                self._fatal = local_error
                self._listed()
            else:
                self._listed(local_error)
            return
        if self._compare or self._delete:
            found: dict[str, Stat] = {}

            def done(_: Any, error: TransferError | None) -> None:
                self._children.discard(job)
                self._got_listing(item, entries, found, error)

            # Raw: orphans are to be seen here.
            job = ListDirectory(self._mover, self._remote(item), found.update, done, raw=True)
            self._children.add(job)
        else:
            self._make(item, entries)

    def _got_listing(
        self,
        relative: str,
        entries: list[os.DirEntry[str]],
        remote: dict[str, Stat],
        error: TransferError | None,
    ) -> None:
        if isinstance(error, RemoteFileNotFound):
            self._make(relative, entries)
        elif error is not None:
            if relative == "":
                self._fatal = self._fatal or error
            self._listed(error if relative else None)
        else:
            self._enter(relative, entries, remote)

    def _make(self, relative: str, entries: list[os.DirEntry[str]]) -> None:
        if self._dry_run:
            self._enter(relative, entries, {})
            return

        def made(_: Any, error: TransferError | None) -> None:
            if error is not None:
                if relative == "":
                    self._fatal = self._fatal or error
                self._listed(error if relative else None)
            else:
                self._enter(relative, entries, {})

        url = self._remote(relative)
        self._mover.mkdir(url, made, parents=relative == "", exist_ok=True)

    def _enter(
        self, relative: str, entries: list[os.DirEntry[str]], remote: dict[str, Stat]
    ) -> None:
        wanted: dict[str, str] = {}
        for entry in entries:
            path = posixpath.join(relative, entry.name)
            kind = self._kind(path, entry)
            if kind is None:
                continue
            wanted[entry.name] = kind
            there = remote.get(entry.name)
            if (
                there is not None
                and self._delete
                and (there.kind == "directory") != (kind == "directory")
            ):
                self._replace(path, kind)
            else:
                self._queue(path, kind, there)
        self._clean(relative, remote, wanted)
        self._listed()

    def _replace(self, path: str, kind: str) -> None:
        """A file stands where a directory is to be, or the reverse."""
        queue = partial(self._queue, path, kind, None)
        if self._dry_run:
            self._plan("delete", path)
            queue()
        else:
            self._remove(path, then=queue)

    def _queue(self, path: str, kind: str, there: Stat | None) -> None:
        if kind == "directory":
            self._waiting_listings.append(path)
            return
        if there is not None and (there.kind != "file" or not self._agrees(path, there)):
            there = None
        if there is not None and (self._dry_run or not self._verify):
            self._unchanged += 1
        elif self._dry_run:
            local = self._local(path)
            self._plan("store", path, os.stat(local).st_size if os.path.exists(local) else 0)
        else:
            self._wait((path, there))

    def _kind(self, path: str, entry: os.DirEntry[str]) -> str | None:
        """Return what an entry is to be at the server, None for nothing."""
        try:
            if entry.is_dir(follow_symlinks=False):
                return "directory" if self._filter.wants_directory(path) else None
            if not self._filter.wants_file(path):
                return None
            if entry.is_symlink():
                target = os.path.realpath(entry.path)
                if not target.startswith(self._real_root):
                    self._skip(entry.path, "is a link that leads out of the tree")
                    return None
                if not os.path.isfile(target):
                    self._skip(entry.path, "is a link to a directory of the tree, or to nothing")
                    return None
                return "file"
            mode = entry.stat(follow_symlinks=False).st_mode
        except OSError as error:
            self._fail(from_oserror(error, entry.path))
            return None
        if _stat.S_ISREG(mode):
            return "file"
        self._skip(entry.path, "is a special file")
        return None

    def _clean(self, relative: str, remote: dict[str, Stat], wanted: dict[str, str]) -> None:
        for name, stat in remote.items():
            path = posixpath.join(relative, name)
            if is_temporary(name):
                # Not one that stands aside: it may be all that is left of a file.
                # Nor one that is to be continued: it may have the time of its source already.
                url = self._remote(path)
                known = self._mover.journal(url).holds(url.path)
                old = time.time() - stat.mtime > ORPHAN_AGE_S
                if old and not known and name.endswith(".part") and not self._dry_run:
                    self._remove(path)
            elif (
                self._delete
                and name not in wanted
                and self._filter.is_meant(path, stat.kind == "directory")
            ):
                if self._dry_run:
                    self._plan("delete", path)
                else:
                    self._deleted += 1
                    self._remove(path)

    def _remove(self, path: str, then: Callable[[], None] | None = None) -> None:
        def removed(_: Any, error: TransferError | None) -> None:
            if then is not None and error is None:
                then()
            self._listed(error)

        self._listings += 1
        self._mover.remove(self._remote(path), removed, recursive=True, missing_ok=True)

    def _begin_file(self, item: tuple[str, Stat | None]) -> Job:
        path, same = item
        if same is not None:
            return self._unless_same(path, same, partial(self._store, path))
        return self._store(path)

    def _store(self, path: str) -> Job:
        def done(stat: Stat | None, error: TransferError | None) -> None:
            self._file_done(job, stat.size if stat else 0, error)

        job = Store(
            self._mover,
            self._local(path),
            self._remote(path),
            done,
            parents=False,
            on_bytes=self._count,
            verify=self._verify,
            modes=self._modes,
        )
        return job


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
            self._end(None, error or ConnectionLost("cancelled", retryable=False))
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
            and len(self._listings) < LISTINGS_UNDER_WAY
            and len(self._waiting) < ENTRIES_WAITING
        ):
            self._list(self._waiting_directories.pop())  # depth first: few are begun at a time
        if not (self._under_way or self._listings or self._waiting or self._waiting_directories):
            error = self._error
            if error is None and self.cancelled:
                error = ConnectionLost("cancelled", retryable=False)
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

        url = RemoteURL(self._url.scheme, self._url.host, path, self._url.user, self._url.port)
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


class _Left:
    """What is left to do in a directory that is removed."""

    __slots__ = ("entries", "passes", "removed")

    def __init__(self) -> None:
        self.entries = self.removed = self.passes = 0


def _same_local(path: str, stat: Stat) -> bool:
    try:
        info = os.stat(path)
    except OSError:
        return False
    return info.st_size == stat.size and int(info.st_mtime) == stat.mtime


def _remove_local(path: str) -> None:
    try:
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
    except OSError as error:
        raise from_oserror(error, path) from None
