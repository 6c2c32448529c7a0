"""Fetch: the download of one file."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from .errors import RemoteChanged, ServerRefused, TransferError
from .jobs import SEGMENT_BYTES, FileJob, OnBytes, cancelled
from .local import Part, check_target, make_directory
from .model import Stat
from .names import local_parent
from .transports.base import Done
from .url import RemoteURL

if TYPE_CHECKING:
    from .mover import Mover

CHANGED_ATTEMPTS = 3


class Fetch(FileJob):
    """Downloads one regular file."""

    def __init__(
        self,
        mover: Mover,
        url: RemoteURL,
        path: str,
        done: Done,
        expect: Stat | None,
        background: bool,
        on_bytes: OnBytes | None,
        prepared: bool = False,
    ) -> None:
        super().__init__(mover, url, done, on_bytes, background)
        self._path = path
        self._prepared = prepared  # the local directory is there
        self._part = Part(path)
        self._given = expect
        self._attempts = 0
        self._stat: Stat
        if expect is None:
            self._look()
        else:
            self._mover.loop.call_soon(partial(self._looked, expect, None))

    def _look(self) -> None:
        self._attempts += 1
        self._submit("stat", (self._url.path, True), self._looked, background=self._background)

    def _looked(self, stat: Stat | None, error: TransferError | None) -> None:
        if error is not None or self.cancelled:
            self._end(None, error or cancelled())
            return
        assert stat is not None
        if stat.kind != "file":
            kind = "a directory" if stat.kind == "directory" else "not a regular file"
            self._end(None, ServerRefused(f"is {kind}; a file was meant", str(self._url)))
            return
        try:
            if not self._prepared:
                make_directory(local_parent(self._path))
            check_target(self._path, stat.size)
        except TransferError as local_error:
            self._end(None, local_error)
            return
        self._stat, self._size = stat, stat.size
        self._error = None
        self._next = 0
        if stat.size <= SEGMENT_BYTES or not self._mover.segments(self._url):
            self._next = stat.size
            self._under_way = 1
            self._segment(0, stat.size)
        else:
            self._expect(stat.size)
            self._move()

    def _segment(self, offset: int, length: int) -> None:
        self._submit(
            "read",
            (self._url.path, self._part, offset, length, self._stat),
            self._segment_done,
            load_bytes=length or 1,
            on_bytes=self._count,
            background=self._background,
        )

    def _all_moved(self) -> None:
        error = self._error
        if error is None and self.cancelled:
            error = cancelled()
        if error is None:
            try:
                self._part.publish(self._stat, self._mover.settings.fsync)
            except TransferError as local_error:
                error = local_error
        if error is None:
            self._end(self._stat, None)
            return
        self._part.discard()
        if (
            isinstance(error, RemoteChanged)
            and self._given is None
            and self._attempts < CHANGED_ATTEMPTS
            and not self.cancelled
        ):
            if self._on_bytes and self._moved:
                self._on_bytes(-self._moved)
            self._moved = 0
            self._look()
        else:
            self._end(None, error)
