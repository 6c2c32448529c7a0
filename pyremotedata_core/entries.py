"""Entries: the iterator of what a remote directory holds."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, Protocol

from .model import Entry, Stat

Row = tuple[Any, ...]
More = Callable[[int], None]  # asks for so many further rows
OnBatch = Callable[[list[Row], More], None]


class Begin(Protocol):
    """Begins a listing; the future ends with it."""

    def __call__(self, *, on_batch: OnBatch) -> Future[None]: ...


class Entries:
    """Iterates over the entries of a directory while the server lists them.

    See `TransferEngine.iterdir`. Entries come in the server's order, each name once. The listing
    goes on by itself, and what its reader has not yet asked for lies on disk, not in memory.

    Notes
    -----
    Thread-safe: several threads may share the entries among them. `close`, the end of a ``with``
    block, or dropping the object ends the listing; a thread that waits then finds the end.
    """

    def __init__(self, begin: Begin) -> None:
        self._lock = threading.Lock()
        self._rows: list[Row] = []
        self._closed = False
        # Neither callback knows this object: when its user drops it, it ends.
        inbox: queue.SimpleQueue[tuple[list[Row], More] | None] = queue.SimpleQueue()
        self._inbox = inbox
        self._future = begin(on_batch=partial(_put, inbox))
        self._future.add_done_callback(lambda _: inbox.put(None))
        # Not __del__: it would run for each that has come to its end, too, and a Ctrl-C that
        # comes to Python in it is lost.
        self._give_up = weakref.finalize(self, self._future.cancel)
        self._give_up.atexit = False

    def __enter__(self) -> Entries:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Entries:
        return self

    def __next__(self) -> Entry:
        with self._lock:
            while self._closed or not self._rows:
                batch = None if self._closed else self._inbox.get()
                if batch is None:
                    self._inbox.put(None)  # for whoever asks next
                    self._give_up.detach()
                    error = None if self._closed else self._future.exception()
                    raise error or StopIteration
                self._rows, more = batch
                self._rows.reverse()
                more(len(self._rows))
            return to_entry(self._rows.pop())

    def close(self) -> None:
        """End the listing; more than once is no error."""
        self._closed = True
        self._give_up()


def to_entry(row: Row) -> Entry:
    """Return the entry of a row: (name, kind, size, mtime, mode)."""
    return Entry(row[0], Stat(*row[1:]))


def _put(inbox: queue.SimpleQueue[Any], rows: list[Row], more: More) -> None:
    inbox.put((rows, more))
