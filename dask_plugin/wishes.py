"""Wishes: what a task wants, what became of it, and what all of it has cost."""

from __future__ import annotations

from collections.abc import Hashable
from concurrent.futures import Future
from typing import NamedTuple

from pyremotedata_core import Lease

from .remotefile import RemoteFile


class Counts(NamedTuple):
    """What the files of a worker's tasks have cost so far.

    Attributes
    ----------
    files, archive_bytes : int
        Fetched from the archive by this worker.
    peer_files, peer_bytes : int
        Pulled from other nodes by this worker.
    cache_files, cache_bytes : int
        Opened by tasks without that: they were on the node.
    waited_s : float
        That tasks have waited for their files.
    hidden_s : float
        That the fetching of their files took while they did not wait.
    stored_files, stored_bytes : int
        Uploaded by `stage_out`.
    """

    files: int = 0
    archive_bytes: int = 0
    peer_files: int = 0
    peer_bytes: int = 0
    cache_files: int = 0
    cache_bytes: int = 0
    waited_s: float = 0.0
    hidden_s: float = 0.0
    stored_files: int = 0
    stored_bytes: int = 0


class Opened(NamedTuple):
    """A file that a task has opened; ``start`` and ``stop`` of its fetching in seconds of `time`.

    ``source`` is "archive" if this worker has fetched it for the task, "peer" if it has pulled it
    from another node, else "node".
    """

    key: Hashable
    url: str
    bytes: int
    source: str
    start: float
    stop: float
    waited_s: float


class Wish:
    """One task's wish for one file."""

    __slots__ = (
        "ahead",
        "awaited",
        "came",
        "demand",
        "handle",
        "lease",
        "moved",
        "over",
        "stat",
        "took_s",
        "waited_s",
    )

    def __init__(self, handle: RemoteFile) -> None:
        self.handle = handle
        self.stat = handle.expected
        self.ahead: Future[Lease] | None = None  # the prefetch
        self.demand: Future[Lease] | None = None  # what the task itself waits for
        self.awaited = False  # by the task, now
        self.lease: Lease | None = None  # what the task uses
        self.took_s = 0.0  # the prefetch, once it has ended well
        self.waited_s: float | None = None  # the task, once it has the file, until that is counted
        self.came = 0.0  # when it ended, by `time`
        self.moved = False
        self.over = False
