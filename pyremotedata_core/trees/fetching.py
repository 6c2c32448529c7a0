"""FetchTree: the download of what a directory holds."""

from __future__ import annotations

import os
import stat as _stat
from functools import cached_property, partial
from typing import Any

from ..bundle import SMALL_BYTES, FetchBundle
from ..errors import RemoteChanged, TransferError, UnsafeName, naming
from ..fetch import Fetch
from ..jobs import Job
from ..listing import ListDirectory
from ..local import in_place_of_directory, make_directory, remove_local, tells_case_apart
from ..model import Entry, Stat
from ..names import check_local, folded, is_temporary
from ..spool import NameSet, Spool
from ..url import child_path
from .many import DIRECTORY_IN_THE_WAY, SPECIAL_IN_THE_WAY, Tree

LINKS_UNDER_WAY = 64


class FetchTree(Tree):
    """Downloads what a directory holds. See `TransferEngine.fetch_tree`."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
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
                self._enter(directory, name, stat)
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
                self._enter(directory, name, Stat(*stat))
        except TransferError as failure:
            if directory.path == "" and failure is not directory.failure:
                self._fatal = self._fatal or failure  # there is nothing to list
                self._listed()
            else:
                self._listed(failure)
            return
        self._listed()

    def _enter(self, directory: _Directory, name: str, stat: Stat) -> None:
        path = directory.below(name)
        if stat.kind == "directory":
            if self._filter.wants_directory(path) and self._can_be_local(directory, name):
                self._waiting_listings.append(path)
        elif not self._filter.wants_file(path) or not self._can_be_local(directory, name):
            return
        elif stat.kind == "file":
            self._consider(path, stat, directory.new)
        elif stat.kind == "link":
            self._waiting_links.append(path)
            self._follow_more()
        else:
            self._skip(str(self._remote(path)), "is a special file")

    def _can_be_local(self, directory: _Directory, name: str) -> bool:
        path = directory.below(name)
        try:
            check_local(path)
            if not directory.folded.add(folded(name)) and not self._tells_case_apart:
                raise UnsafeName(
                    "its name differs from another one there in upper and lower case only, and"
                    f" {self._directory} cannot hold both"
                )
        except UnsafeName as error:
            self._fail(UnsafeName(error.message, str(self._remote(path))))
            return False
        return True

    @cached_property
    def _tells_case_apart(self) -> bool:
        return tells_case_apart(self._directory, look_only=self._dry_run)

    def _prepare(self, directory: _Directory) -> None:
        """Make the local directory."""
        if directory.prepared:
            return
        directory.prepared = True
        relative = directory.path
        if self._would_be_new(relative):
            return
        local = self._local(relative)
        # A link in the tree is replaced: what it leads to is not ours to clear. The tree's own
        # root may well be one.
        real = os.path.isdir(local) and not os.path.islink(local)
        in_the_way = relative and os.path.lexists(local) and not real
        may_go = self._delete and (
            os.path.islink(local) or self._filter.is_meant(relative, is_directory=False)
        )
        if in_the_way and may_go:
            if self._clear(relative, local) and self._dry_run:
                self._new.add(relative)
        elif self._dry_run:
            directory.failure = in_place_of_directory(local) if os.path.lexists(local) else None
        if not self._dry_run:
            directory.new = not os.path.lexists(local)
            try:
                make_directory(local)
            except TransferError as error:
                directory.failure = error
        if directory.failure is not None:
            raise directory.failure

    def _make_way(self, path: str, mode: int) -> bool:
        """Remove what is to be a file and is none; return whether the file may come."""
        local = self._local(path)
        is_directory = _stat.S_ISDIR(mode)
        if self._delete and self._filter.is_meant(path, is_directory and not os.path.islink(local)):
            return self._clear(path, local)
        why = DIRECTORY_IN_THE_WAY if is_directory else SPECIAL_IN_THE_WAY
        self._fail(TransferError(f"{local}: {why}"))
        return False

    def _delete_others(self, directory: _Directory) -> None:
        """Remove what the remote directory does not hold."""
        local = self._local(directory.path)
        if not os.path.isdir(local) or self._would_be_new(directory.path):
            return
        with naming(local), os.scandir(local) as here:
            others = [
                (found.name, found.is_dir(follow_symlinks=False))
                for found in here
                if found.name not in directory.job.seen and not is_temporary(found.name)
            ]
        for name, is_directory in others:
            path = directory.below(name)
            if self._filter.is_meant(path, is_directory):
                self._clear(path, os.path.join(local, name))

    def _clear(self, path: str, local: str) -> bool:
        """Remove a local file or directory; return whether it is gone, or would be."""
        if self._dry_run:
            self._plan("delete", path)
            return True
        try:
            remove_local(local)
        except TransferError as error:
            self._fail(error)
            return False
        self._deleted += 1
        return True

    def _consider(self, path: str, stat: Stat, new: bool = False) -> None:
        """Queue a file, unless it is there already; nothing is in a ``new`` directory."""
        if new:
            self._wait((path, tuple(stat)))
            return
        here = None if self._would_be_new(path) else self._stat_here(path)
        if here is not None and not _stat.S_ISREG(here.st_mode):
            if not self._make_way(path, here.st_mode):
                return
            here = None
        if (self._dry_run or not self._verify) and self._agrees(here, stat):
            self._unchanged += 1
        elif self._dry_run:
            self._plan("fetch", path, stat.size)
        else:
            self._wait((path, tuple(stat)))

    def _file_size(self, item: tuple[str, tuple[Any, ...]]) -> int:
        size: int = item[1][1]
        return 0 if size >> 63 else size

    def _is_small(self, item: tuple[str, tuple[Any, ...]]) -> bool:
        return bool(item[1][1] <= SMALL_BYTES)

    def _begin_bundle(self, items: list[tuple[str, tuple[Any, ...]]]) -> Job:
        def odd(path: str, stat: Stat) -> None:
            if not self.cancelled:
                self._children.add(self._fetch(path, stat))

        def done(_: Any, error: TransferError | None) -> None:
            self._bundle_ended(job, error)

        files = [
            (path, child_path(self._url.path, path), self._local(path), Stat(*stat))
            for path, stat in items
        ]
        job = FetchBundle(self._mover, self._url, files, self._small_done, odd, done, self._modes)
        return job

    def _begin_file(self, item: tuple[str, tuple[Any, ...]]) -> Job:
        path, stat = item[0], Stat(*item[1])
        if self._verify and self._agrees(self._stat_here(path), stat):
            return self._unless_same(path, stat, partial(self._fetch, path, stat))
        return self._fetch(path, stat)

    def _fetch(self, path: str, stat: Stat | None) -> Job:
        def fetched(now: Stat | None, error: TransferError | None) -> None:
            if isinstance(error, RemoteChanged) and stat is not None and not self.cancelled:
                # It changed after it was listed: as it is now, once more.
                self._children.discard(job)
                self._children.add(self._fetch(path, None))
            else:
                self._file_done(job, now.size if now else 0, error)

        job = Fetch(
            self._mover,
            self._remote(path),
            self._local(path),
            fetched,
            expect=stat,
            on_bytes=self._count,
            prepared=True,
            verify=self._verify,
            modes=self._modes,
        )
        return job

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
        elif not f"{real}/".startswith(self._real_root):
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
        self.new = False
        self.folded = NameSet()  # what it holds
        # With ``delete``: what it holds, until the listing has ended.
        self.entries = Spool()

    def below(self, name: str) -> str:
        """Return the path of an entry."""
        return f"{self.path}/{name}" if self.path else name
