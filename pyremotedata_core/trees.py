"""Jobs on many files: fetch, store and remove whole trees, fetch a list.

A tree is walked while its files move. At most so many files are under way, at most so many
entries wait; a directory is only listed when there is room for what it may hold.
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
from .local import make_directory
from .model import Entry, Stat, TreeResult
from .mover import Mover
from .names import is_temporary
from .store import Store
from .transports.base import Done
from .url import RemoteURL, child_path, parent_path

FILES_UNDER_WAY = 512
LISTINGS_UNDER_WAY = 8
ENTRIES_WAITING = 4096
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
        self._waiting_listings: deque[Any] = deque()
        self._waiting_files: deque[Any] = deque()
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
        self._waiting_files.extend(pairs)
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

    def _list(self, item: str) -> None:
        self._mover.scandir(self._remote(item), partial(self._got_listing, item))

    def _got_listing(
        self, relative: str, entries: list[Entry] | None, error: TransferError | None
    ) -> None:
        if error is not None:
            if relative == "":
                self._fatal = self._fatal or error
            self._listed(error if relative else None)
            return
        assert entries is not None
        try:
            self._prepare(relative, entries)
        except TransferError as local_error:
            self._listed(local_error)
            return
        for entry in entries:
            path = f"{relative}/{entry.name}" if relative else entry.name
            if entry.stat.kind == "directory":
                if self._filter.wants_directory(path):
                    self._waiting_listings.append(path)
            elif not self._filter.wants_file(path):
                continue
            elif entry.stat.kind == "file":
                self._consider(path, entry.stat)
            elif entry.stat.kind == "link":
                self._listings += 1
                self._follow(path)
            else:
                self._skip(str(self._remote(path)), "is a special file")
        self._listed()

    def _prepare(self, relative: str, entries: list[Entry]) -> None:
        """Make the local directory; with ``delete``, remove what the remote one does not hold."""
        local = self._local(relative)
        # A link in the tree is replaced: what it leads to is not ours to clear. The tree's own
        # root may well be one.
        real = os.path.isdir(local) and not os.path.islink(local)
        if self._delete and relative and os.path.lexists(local) and not real:
            self._clear(relative, local)
        if not self._dry_run:
            make_directory(local)
        if not self._delete or not os.path.isdir(local):
            return
        kinds = {entry.name: entry.stat.kind for entry in entries}
        with os.scandir(local) as here:
            for found in list(here):
                path = f"{relative}/{found.name}" if relative else found.name
                is_directory = found.is_dir(follow_symlinks=False)
                kind = kinds.get(found.name)
                wrong = kind is None or (kind == "file" and is_directory)
                meant = self._filter.is_meant(path, is_directory)
                if wrong and meant and not is_temporary(found.name):
                    self._clear(path, found.path)

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
            self._wait((path, stat))

    def _file_size(self, _item: tuple[str, Stat]) -> int:
        return _item[1].size

    def _begin_file(self, item: tuple[str, Stat | None]) -> Job:
        path, stat = item
        if self._verify and stat is not None and self._agrees(path, stat):
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

    def _follow(self, path: str) -> None:
        if not self._mover.segments(self._url):
            self._skip(str(self._remote(path)), "is a link, and lftp cannot tell where it leads")
            self._listed()
        elif self._real_root is None:
            self._mover.realpath(self._url, partial(self._got_root, path))
        else:
            self._mover.realpath(self._remote(path), partial(self._got_target, path))

    def _got_root(self, path: str, real: str | None, error: TransferError | None) -> None:
        if real is None:
            self._listed(error)
            return
        self._real_root = real.rstrip("/") + "/"
        self._follow(path)

    def _got_target(self, path: str, real: str | None, error: TransferError | None) -> None:
        assert self._real_root is not None
        if real is None:
            self._skip(str(self._remote(path)), f"is a link that leads nowhere ({error})")
            self._listed()
        elif not real.startswith(self._real_root):
            self._skip(str(self._remote(path)), "is a link that leads out of the tree")
            self._listed()
        else:
            self._mover.stat(self._remote(path), partial(self._got_link_stat, path))

    def _got_link_stat(self, path: str, stat: Stat | None, error: TransferError | None) -> None:
        if stat is None:
            self._skip(str(self._remote(path)), f"is a link that leads nowhere ({error})")
        elif stat.kind != "file":
            self._skip(str(self._remote(path)), "is a link to a directory of the tree")
        else:
            self._consider(path, stat)
        self._listed()


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
            # Raw: orphans are to be seen here.
            self._submit(
                "scandir",
                (self._remote(item).path,),
                partial(self._got_listing, item, entries),
            )
        else:
            self._make(item, entries)

    def _got_listing(
        self,
        relative: str,
        entries: list[os.DirEntry[str]],
        remote: list[Entry] | None,
        error: TransferError | None,
    ) -> None:
        if isinstance(error, RemoteFileNotFound):
            self._make(relative, entries)
        elif error is not None:
            if relative == "":
                self._fatal = self._fatal or error
            self._listed(error if relative else None)
        else:
            assert remote is not None
            self._enter(relative, entries, {entry.name: entry.stat for entry in remote})

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
                old = time.time() - stat.mtime > ORPHAN_AGE_S
                if old and name.endswith(".part") and not self._dry_run:
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
        self._left: dict[str, int] = {}  # directory to entries still in it
        self._waiting: deque[tuple[str, str]] = deque()
        self._under_way = 0
        self._error: TransferError | None = None
        self._submit("stat", (url.path, False), self._looked)

    def _looked(self, stat: Stat | None, error: TransferError | None) -> None:
        if stat is None or self.cancelled:
            self._end(None, error or ConnectionLost("cancelled", retryable=False))
            return
        self._waiting.append(("scandir" if stat.kind == "directory" else "remove", self._url.path))
        self._more()

    def _more(self) -> None:
        if self._error or self.cancelled:
            self._waiting.clear()
        while self._waiting and self._under_way < FILES_UNDER_WAY:
            name, path = self._waiting.pop()  # depth first: the queue stays short
            self._under_way += 1
            self._submit(name, (path,), partial(self._done_one, name, path))
        if not self._under_way and not self._waiting:
            error = self._error
            if error is None and self.cancelled:
                error = ConnectionLost("cancelled", retryable=False)
            self._end(None, error)

    def _done_one(self, name: str, path: str, result: Any, error: TransferError | None) -> None:
        self._under_way -= 1
        if error is not None and not isinstance(error, RemoteFileNotFound):
            self._error = self._error or error
        elif name == "scandir" and result:
            self._left[path] = len(result)
            for entry in result:
                kind = "scandir" if entry.stat.kind == "directory" else "remove"
                self._waiting.append((kind, child_path(path, entry.name)))
        elif name == "scandir":
            self._waiting.append(("rmdir", path))
        elif path != self._url.path:
            parent = parent_path(path)
            self._left[parent] -= 1
            if not self._left[parent]:
                del self._left[parent]
                self._waiting.append(("rmdir", parent))
        self._more()


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
