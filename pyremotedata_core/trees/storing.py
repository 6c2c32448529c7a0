"""StoreTree: the upload of what a directory holds."""

from __future__ import annotations

import os
import posixpath
import stat as _stat
import time
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

from ..errors import (
    RemoteFileNotFound,
    TransferError,
    from_oserror,
)
from ..jobs import Job
from ..listing import ListDirectory
from ..model import Stat
from ..names import is_temporary
from ..store import Store
from .many import Tree

ORPHAN_AGE_S = 7 * 24 * 3600  # temporary files of nobody knows whom go at this age


class StoreTree(Tree):
    """Uploads what a local directory holds. See `TransferEngine.store_tree`."""

    @cached_property
    def _real_root(self) -> str:
        return os.path.realpath(self._directory) + os.sep

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
            kind, size = self._look(path, entry)
            if kind is None:
                continue
            wanted[entry.name] = kind
            there = remote.get(entry.name)
            if (
                there is not None
                and self._delete
                and (there.kind == "directory") != (kind == "directory")
            ):
                self._replace(path, kind, size)
            else:
                self._queue(path, kind, size, there)
        self._clean(relative, remote, wanted)
        self._listed()

    def _replace(self, path: str, kind: str, size: int) -> None:
        """A file stands where a directory is to be, or the reverse."""
        queue = partial(self._queue, path, kind, size, None)
        if self._dry_run:
            self._plan("delete", path)
            queue()
        else:
            self._remove(path, then=queue)

    def _queue(self, path: str, kind: str, size: int, there: Stat | None) -> None:
        if kind == "directory":
            self._waiting_listings.append(path)
            return
        if there is not None and (there.kind != "file" or not self._agrees(path, there)):
            there = None
        if there is not None and (self._dry_run or not self._verify):
            self._unchanged += 1
        elif self._dry_run:
            self._plan("store", path, size)
        else:
            self._wait((path, there, size))

    def _file_size(self, item: tuple[str, Stat | None, int]) -> int:
        return item[2]

    def _look(self, path: str, entry: os.DirEntry[str]) -> tuple[str | None, int]:
        """Return what an entry is to be at the server, None for nothing, and its bytes."""
        nothing = None, 0
        try:
            if entry.is_dir(follow_symlinks=False):
                return ("directory", 0) if self._filter.wants_directory(path) else nothing
            if not self._filter.wants_file(path):
                return nothing
            if entry.is_symlink():
                target = os.path.realpath(entry.path)
                if not target.startswith(self._real_root):
                    self._skip(entry.path, "is a link that leads out of the tree")
                    return nothing
                if not os.path.isfile(target):
                    self._skip(entry.path, "is a link to a directory of the tree, or to nothing")
                    return nothing
                return "file", os.path.getsize(target)
            info = entry.stat(follow_symlinks=False)
        except OSError as error:
            self._fail(from_oserror(error, entry.path))
            return nothing
        if _stat.S_ISREG(info.st_mode):
            return "file", info.st_size
        self._skip(entry.path, "is a special file")
        return nothing

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

    def _begin_file(self, item: tuple[str, Stat | None, int]) -> Job:
        path, same, _size = item
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
