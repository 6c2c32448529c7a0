"""StoreTree: the upload of what a directory holds."""

from __future__ import annotations

import os
import posixpath
import stat as _stat
import time
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

from ..bundle import SMALL_BYTES, StoreBundle
from ..errors import RemoteFileNotFound, ServerRefused, TransferError, from_oserror
from ..jobs import Job
from ..listing import ListDirectory
from ..model import Entry, Stat
from ..names import is_temporary
from ..spool import NameSet, Spool
from ..store import Store
from ..transports.base import Done
from ..url import child_path
from .many import DIRECTORY_IN_THE_WAY, FILE_IN_THE_WAY, SPECIAL_IN_THE_WAY, Tree

REMOVALS_UNDER_WAY = 64  # in each directory
ORPHAN_AGE_S = 7 * 24 * 3600  # temporary files of nobody knows whom go at this age


class StoreTree(Tree):
    """Uploads what a local directory holds. See `TransferEngine.store_tree`."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        settings = self._mover.settings
        if settings.fsync or settings.publish == "direct":
            self._bundles = False

    @cached_property
    def _real_root(self) -> str:
        return os.path.join(os.path.realpath(self._directory), "")

    def _list(self, item: str) -> None:
        try:
            os.scandir(self._local(item)).close()
            directory = _Directory(item, os.stat(self._local(item)).st_dev)
        except OSError as error:
            self._not_listed(item, from_oserror(error, self._local(item)))
            return
        looks = self._compare or self._delete or self._dry_run
        if not looks or self._would_be_new(item):
            self._make(item)
            return

        def done(_: Any, error: TransferError | None) -> None:
            self._children.discard(job)
            self._got_all(directory, error)

        # Raw: orphans are to be seen here.
        take = partial(self._got_entries, directory)
        job = ListDirectory(self._mover, self._remote(item), take, done, raw=True)
        self._children.add(job)

    def _got_entries(self, directory: _Directory, entries: list[Entry]) -> None:
        if self._fatal is not None:
            raise self._fatal
        for name, there in entries:
            path = posixpath.join(directory.path, name)
            if is_temporary(name):
                if self._is_orphan(path, there):
                    directory.others.append((path, "part", None, 0))
                continue
            try:
                kind, here = self._look(path)
            except OSError:
                continue  # it is told of when the local directory is read
            may_go = self._delete and (
                self._filter.is_meant(path, there.kind == "directory")
                # What it leads to is not ours to clear.
                or (there.kind == "link" and kind == "directory")
            )
            if kind is None:
                # A link that is not followed is still there: what it once was is not to go.
                if may_go and not os.path.lexists(self._local(path)):
                    directory.others.append((path, "other", None, 0))
            elif why := in_the_way(there.kind, kind):
                if may_go:
                    directory.settled.add(name)
                    directory.others.append((path, "in the way", kind, _size(here)))
                elif there.kind != "link":
                    directory.settled.add(name)
                    self._fail(TransferError(why, str(self._remote(path))))
            elif there.kind == "file" and self._agrees(here, there):
                directory.settled.add(name)
                if self._dry_run or not self._verify:
                    self._unchanged += 1
                else:
                    self._wait((path, tuple(there), _size(here)))

    def _got_all(self, directory: _Directory, error: TransferError | None) -> None:
        if isinstance(error, RemoteFileNotFound):
            self._make(directory.path)
        elif error is None and (error := self._went_away(directory)) is None:
            # Removed while it is listed, they could hide others. Nothing comes before they have
            # gone: to a server that tells no case, or no normal forms, apart it is one name.
            self._remove_more(directory)
        else:
            self._not_listed(directory.path, error)

    def _went_away(self, directory: _Directory) -> TransferError | None:
        """Return what to say if the local directory is not there any more.

        A disk that has gone takes nothing along at the server.
        """
        local = self._local(directory.path)
        try:
            if os.stat(local).st_dev == directory.device:
                return None
        except OSError as error:
            return from_oserror(error, local)
        return TransferError(f"{local}: another file system has taken its place; run again")

    def _not_listed(self, path: str, error: TransferError) -> None:
        if path == "":
            self._fatal = self._fatal or error
        self._listed(error if path else None)

    def _make(self, path: str) -> None:
        def made(_: Any, error: TransferError | None) -> None:
            if error is not None:
                self._not_listed(path, error)
            else:
                self._enter(path, NameSet())

        if not self._dry_run:
            self._mover.mkdir(self._remote(path), made, parents=path == "", exist_ok=True)
        elif self._would_be_new(path):
            self._enter(path, NameSet())
        else:
            looked = partial(self._could_be_made, path, made)
            self._mover.stat(self._remote(path), looked, follow=False)

    def _could_be_made(
        self, path: str, made: Done, there: Stat | None, error: TransferError | None
    ) -> None:
        """Tell of a dry run what making a directory would tell."""

        def followed(stat: Stat | None, error: TransferError | None) -> None:
            if stat is None or stat.kind != "directory":
                why = "cannot make a directory: a file of that name exists"
                error = ServerRefused(why, str(self._remote(path)))
            made(None, error)

        if isinstance(error, RemoteFileNotFound):
            self._new.add(path)
            made(None, None)
        elif there is not None and there.kind == "link":
            self._mover.stat(self._remote(path), followed)
        elif there is not None:
            followed(there, None)
        else:
            made(None, error)

    def _enter(self, directory: str, settled: NameSet) -> None:
        """Queue what a local directory holds, but for the names that are settled."""
        try:
            with os.scandir(self._local(directory)) as here:
                for entry in here:
                    if entry.name not in settled and not is_temporary(entry.name):
                        self._consider(posixpath.join(directory, entry.name))
        except OSError as error:
            self._fail(from_oserror(error, self._local(directory)))
        self._listed()

    def _consider(self, path: str) -> None:
        try:
            kind, here = self._look(path, self._skip)
        except OSError as error:
            self._fail(from_oserror(error, self._local(path)))
        else:
            self._queue(path, kind, _size(here))

    def _queue(self, path: str, kind: str | None, size: int) -> None:
        if kind == "directory":
            self._waiting_listings.append(path)
        elif kind == "file" and self._dry_run:
            self._plan("store", path, size)
        elif kind == "file":
            self._wait((path, None, size))

    def _file_size(self, item: tuple[str, tuple[Any, ...] | None, int]) -> int:
        return item[2]

    def _look(
        self, path: str, skip: Callable[[str, str], None] | None = None
    ) -> tuple[str | None, os.stat_result | None]:
        """Return what a local entry is to be at the server, None for nothing, and a file's stat.

        Raises
        ------
        OSError
            If that cannot be seen.
        """
        local = self._local(path)
        try:
            info = os.lstat(local)
        except FileNotFoundError:
            return None, None
        if _stat.S_ISDIR(info.st_mode):
            return "directory" if self._filter.wants_directory(path) else None, None
        if not self._filter.wants_file(path):
            return None, None
        if _stat.S_ISREG(info.st_mode):
            return "file", info
        why = "is a special file"
        if _stat.S_ISLNK(info.st_mode):
            target = os.path.realpath(local)
            if not os.path.join(target, "").startswith(self._real_root):
                why = "is a link that leads out of the tree"
            elif os.path.isfile(target):
                return "file", os.stat(target)
            else:
                why = "is a link to a directory of the tree, or to nothing"
        if skip is not None:
            skip(local, why)
        return None, None

    # --- what is to go ------------------------------------------------------------------------

    def _is_orphan(self, path: str, stat: Stat) -> bool:
        # Not one that stands aside: it may be all that is left of a file.
        # Nor one that is to be continued: it may have the time of its source already.
        url = self._remote(path)
        old = time.time() - stat.mtime > ORPHAN_AGE_S
        return old and path.endswith(".part") and not self._mover.journal(url).holds(url.path)

    def _remove_more(self, directory: _Directory) -> None:
        """Remove what is to go; then queue what the local directory holds."""
        gives_up = self._fatal is not None or self.cancelled
        if gives_up:
            directory.others.clear()
        while directory.others and directory.removals < REMOVALS_UNDER_WAY:
            path, why, kind, size = directory.others.popleft()
            if not self._dry_run:
                self._remove(directory, path, why, kind, size)
            elif why != "part":
                self._plan("delete", path)
                if kind == "directory":
                    self._new.add(path)
                self._queue(path, kind, size)
        if not directory.others and not directory.removals:
            if gives_up:
                self._listed()
            else:
                self._enter(directory.path, directory.settled)

    def _remove(
        self, directory: _Directory, path: str, why: str, kind: str | None, size: int
    ) -> None:
        def removed(_: Any, error: TransferError | None) -> None:
            self._children.discard(job)
            directory.removals -= 1
            if error is None:
                self._deleted += why != "part"
                self._queue(path, kind, size)
            self._remove_more(directory)
            self._listed(error)

        directory.removals += 1
        self._listings += 1
        job = self._mover.remove(self._remote(path), removed, recursive=True, missing_ok=True)
        self._children.add(job)

    def _is_small(self, item: tuple[str, tuple[Any, ...] | None, int]) -> bool:
        return item[1] is None and item[2] <= SMALL_BYTES

    def _begin_bundle(self, items: list[tuple[str, tuple[Any, ...] | None, int]]) -> Job:
        def odd(path: str) -> None:
            if not self.cancelled:
                self._children.add(self._store(path))

        def done(_: Any, error: TransferError | None) -> None:
            self._bundle_ended(job, error)

        files = [
            (path, self._local(path), child_path(self._url.path, path), size)
            for path, _, size in items
        ]
        job = StoreBundle(self._mover, self._url, files, self._small_done, odd, done, self._modes)
        return job

    def _begin_file(self, item: tuple[str, tuple[Any, ...] | None, int]) -> Job:
        path, same, _size = item
        if same is not None:
            return self._unless_same(path, Stat(*same), partial(self._store, path))
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


def _size(info: os.stat_result | None) -> int:
    return info.st_size if info is not None else 0


def in_the_way(there: str, wanted: str) -> str | None:
    """Return why what stands at the server cannot become what it is to be, None if it can."""
    if there == "other":
        return SPECIAL_IN_THE_WAY
    if there == "directory" and wanted == "file":
        return DIRECTORY_IN_THE_WAY
    return FILE_IN_THE_WAY if there != "directory" and wanted == "directory" else None


class _Directory:
    """A remote directory while it is listed."""

    def __init__(self, path: str, device: int) -> None:
        self.path = path
        self.device = device  # of the local one
        self.settled = NameSet()  # nothing is left to be done about these
        self.others = Spool()  # what is to go
        self.removals = 0  # under way
