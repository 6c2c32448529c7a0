"""Jobs: what the engine's face asks for, made of operations of sessions.

Jobs live on the loop's thread and end by calling ``done(result, error)`` exactly once.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from .errors import TransferError
from .local import Memory
from .model import Stat
from .transports.base import Done, Operation
from .url import RemoteURL

if TYPE_CHECKING:
    from .mover import Mover

SEGMENT_BYTES = 8 << 20  # a larger file moves in segments, over as many sessions as help
SEGMENTS_AHEAD = 12  # of one file, queued or moving
OnBytes = Callable[[int], None]


class Job:
    """Something under way. ``done(result, error)`` is called once, and not from within the call
    that began it."""

    def __init__(self, mover: Mover, url: RemoteURL, done: Done) -> None:
        self._mover = mover
        self._url = url
        self._done: Done | None = done
        self._operations: set[Operation] = set()
        self.cancelled = False
        self.keep = False
        mover._jobs.add(self)

    def cancel(self, *, keep: bool = False) -> None:
        """Give up soon; the outcome is then an error.

        Nothing is left behind, but with ``keep`` what a later call may continue.
        """
        if self._done is None or self.cancelled:
            return
        self.cancelled, self.keep = True, keep
        for operation in list(self._operations):
            self._mover.pool(self._url).cancel(operation)

    def promote(self) -> None:
        """Serve it before what is in the background: somebody waits for it."""

    def _submit(
        self,
        name: str,
        args: tuple[Any, ...],
        then: Done,
        *,
        load_bytes: int = 0,
        on_bytes: OnBytes | None = None,
        background: bool = False,
        weight: int = 1,
        renew: Callable[[], tuple[Any, ...]] | None = None,
    ) -> None:
        def ended(result: Any, error: TransferError | None) -> None:
            self._operations.discard(operation)
            then(result, error)

        operation = Operation(name, args, ended, load_bytes, on_bytes, weight, renew)
        try:
            self._mover.pool(self._url).submit(operation, background=background)
        except TransferError as error:
            self._mover.loop.call_soon(partial(ended, None, error))
        else:
            self._operations.add(operation)

    def _end(self, result: Any, error: TransferError | None) -> None:
        done, self._done = self._done, None
        self._mover._jobs.discard(self)
        if done is not None:
            done(result, error)


class Question(Job):
    """One operation, its outcome passed on."""

    def __init__(
        self, mover: Mover, url: RemoteURL, name: str, args: tuple[Any, ...], done: Done
    ) -> None:
        super().__init__(mover, url, done)
        self._submit(name, args, self._end)


class Read(Job):
    """Reads part of a file into memory."""

    def __init__(
        self, mover: Mover, url: RemoteURL, offset: int, length: int, expect: Stat, done: Done
    ) -> None:
        super().__init__(mover, url, done)
        memory = Memory(offset, length)

        def moved(_: Any, error: TransferError | None) -> None:
            self._end(None if error else memory.data, error)

        args = (url.path, memory, offset, length, expect)
        self._submit("read", args, moved, load_bytes=length or 1)


class FileJob(Job):
    """A transfer of one file, large ones in segments."""

    def __init__(
        self, mover: Mover, url: RemoteURL, done: Done, on_bytes: OnBytes | None, background: bool
    ) -> None:
        super().__init__(mover, url, done)
        self._on_bytes = on_bytes
        self._background = background
        self._error: TransferError | None = None
        self._size = 0
        self._todo: Iterator[int] = iter(())  # numbers of segments
        self._under_way = 0
        self._moved = 0
        self._expected = 0

    def promote(self) -> None:
        """Serve it before what is in the background, with all that it still asks for."""
        self._background = False
        for operation in self._operations:
            self._mover.pool(self._url).promote(operation)

    @abstractmethod
    def _segment(self, offset: int, length: int, then: Done) -> None:
        """Submit the operation that moves this part."""

    def _note(self, number: int) -> None:
        """Record that a segment has moved, where that is kept."""

    @abstractmethod
    def _all_moved(self) -> None:
        """Go on: every part has moved, or one has failed and none is under way."""

    def _expect(self, size: int) -> None:
        """Tell the pool what is to come; 0 when nothing is."""
        try:
            growth = self._mover.pool(self._url).growth
        except TransferError:
            return  # the operations meet it, too
        growth.expected_bytes += size - self._expected
        growth.expected_files += bool(size) - bool(self._expected)
        self._expected = size

    def _move_whole(self) -> None:
        """Move the file in one piece."""
        self._error = None
        self._todo = iter(())
        self._under_way = 1
        self._segment(0, self._size, partial(self._segment_done, -1))

    def _move_again(self) -> None:
        """Move all of it, as the transport does it best."""
        if self._mover.segments(self._url):
            self._move_all(set())
        else:
            self._move_whole()

    def _move_all(self, done: set[int]) -> None:
        """Move the segments that are not done yet; with none to move, a later turn goes on."""
        count = -(-self._size // SEGMENT_BYTES)
        self._error = None
        self._todo = (number for number in range(count) if number not in done)
        had = sum(self._length(number) for number in done)
        if had and self._on_bytes:
            self._on_bytes(had)
        self._moved += had
        self._expect(max(1, self._size - had))
        self._under_way = 1  # this call
        self._move()
        self._mover.loop.call_soon(partial(self._segment_done, -1, None, None))

    def _move(self) -> None:
        """Submit as many segments as may be under way."""
        while self._under_way < SEGMENTS_AHEAD and not self._error:
            number = next(self._todo, None)
            if number is None:
                return
            self._under_way += 1
            then = partial(self._segment_done, number)
            self._segment(number * SEGMENT_BYTES, self._length(number), then)

    def _length(self, number: int) -> int:
        return min(SEGMENT_BYTES, self._size - number * SEGMENT_BYTES)

    def _segment_done(self, number: int, _: Any, error: TransferError | None) -> None:
        self._under_way -= 1
        if error is None and number >= 0:
            self._note(number)
        elif error is not None and self._error is None:
            self._error = error
            for operation in list(self._operations):
                self._mover.pool(self._url).cancel(operation)
        self._move()
        if not self._under_way:
            self._all_moved()

    def _count(self, count: int) -> None:
        self._moved += count
        if self._expected and count > 0:
            self._expect(max(1, self._expected - count))
        if self._on_bytes:
            self._on_bytes(count)

    def _take_back(self) -> None:
        """Count nothing of what has moved: it moves again, or in vain."""
        if self._moved and self._on_bytes:
            self._on_bytes(-self._moved)
        self._moved = 0

    def _end(self, result: Any, error: TransferError | None) -> None:
        if self._expected:
            self._expect(0)
        if error is not None:
            self._take_back()
        super()._end(result, error)
