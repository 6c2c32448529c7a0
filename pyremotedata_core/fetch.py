"""Fetch: the download of one file; Check: whether a local file has the content of a remote one."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

from .errors import (
    ConnectionLost,
    RemoteChanged,
    ServerRefused,
    TransferError,
    TransferTimeout,
    cancelled,
    from_oserror,
)
from .jobs import SEGMENT_BYTES, FileJob, OnBytes
from .local import Compared, check_target, make_directory
from .model import Stat
from .names import local_parent
from .part import Part
from .transports.base import Done
from .url import RemoteURL

if TYPE_CHECKING:
    from .mover import Mover

CHANGED_ATTEMPTS = 3


class Fetch(FileJob):
    """Downloads one regular file.

    With ``verify`` it is read a second time, and compared, before it gets its name.
    """

    def __init__(
        self,
        mover: Mover,
        url: RemoteURL,
        path: str,
        done: Done,
        *,
        expect: Stat | None = None,
        background: bool = False,
        on_bytes: OnBytes | None = None,
        prepared: bool = False,
        verify: bool = False,
        modes: bool = False,
    ) -> None:
        super().__init__(mover, url, done, on_bytes, background)
        self._path = path
        self._prepared = prepared  # the local directory is there
        self._part = Part(path)
        self._compared: Compared | None = None
        self._given = expect
        self._verify = verify
        self._modes = modes
        self._attempts = 0
        self._stat: Stat
        if expect is None:
            self._look()
        else:
            self._mover.loop.call_soon(partial(self._looked, expect, None))

    def _look(self) -> None:
        self._attempts += 1
        self._take_back()
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
        if stat.size >> 63:
            refused = ServerRefused(f"cannot have {stat.size} bytes, as it says", str(self._url))
            self._end(None, refused)
            return
        segments = self._mover.segments(self._url)
        done: set[int] = set()
        self._stat, self._size = stat, stat.size
        self._compared = None
        try:
            if not self._prepared:
                make_directory(local_parent(self._path))
            large = segments and stat.size > SEGMENT_BYTES
            if large:
                done = self._part.resume(str(self._url), stat, SEGMENT_BYTES)
            check_target(self._path, stat.size - len(done) * SEGMENT_BYTES)
        except TransferError as local_error:
            self._part.keep()
            self._end(None, local_error)
            return
        if large:
            self._move_all(done)
        else:
            self._move_whole()

    def _segment(self, offset: int, length: int, then: Done) -> None:
        self._submit(
            "read",
            (self._url.path, self._compared or self._part, offset, length, self._stat),
            then,
            load_bytes=length or 1,
            on_bytes=None if self._compared else self._count,
            background=self._background,
        )

    def _note(self, number: int) -> None:
        if self._compared is None:
            self._part.note(number)

    def _all_moved(self) -> None:
        error = self._error
        if error is None and self.cancelled:
            error = cancelled()
        if error is None and self._verify:
            if self._compared is None:
                try:
                    self._compared = Compared(self._part.fd)
                except OSError as failure:  # of an empty file it is made only now
                    error = from_oserror(failure, self._path)
                else:
                    self._move_again()
                    return
            elif not self._compared.same:
                error = RemoteChanged("was not the same when it was read again", str(self._url))
        if error is None:
            try:
                self._part.publish(self._stat, self._mover.settings.fsync, modes=self._modes)
            except TransferError as local_error:
                error = local_error
        if error is None:
            self._end(self._stat, None)
            return
        if self.keep or (
            isinstance(error, ConnectionLost | TransferTimeout) and not self.cancelled
        ):
            self._part.keep()
        else:
            self._part.discard()
        if (
            isinstance(error, RemoteChanged)
            and self._given is None
            and self._attempts < CHANGED_ATTEMPTS
            and not self.cancelled
        ):
            self._look()
        else:
            self._end(None, error)


class Check(FileJob):
    """Reads a file to compare it with a local one; the result is whether they are the same."""

    def __init__(
        self, mover: Mover, url: RemoteURL, path: str, done: Done, *, expect: Stat
    ) -> None:
        super().__init__(mover, url, done, None, False)
        self._expect_stat = expect
        self._size = expect.size
        self._fd = -1
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            mover.loop.call_soon(partial(self._end, None, from_oserror(error, path)))
            return
        self._compared = Compared(self._fd)
        self._move_again()

    def _segment(self, offset: int, length: int, then: Done) -> None:
        args = (self._url.path, self._compared, offset, length, self._expect_stat)
        self._submit("read", args, then, load_bytes=length)

    def _all_moved(self) -> None:
        os.close(self._fd)
        error = self._error or (cancelled() if self.cancelled else None)
        self._end(None if error else self._compared.same, error)
