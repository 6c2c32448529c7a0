"""Wishes: what a task wants, what became of it, and what all of it has cost."""

from __future__ import annotations

from collections.abc import Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple

from pyremotedata_core import Lease, Stat

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


@dataclass(slots=True, eq=False)
class Wish:
    """One task's wish for one file."""

    handle: RemoteFile
    stat: Stat | None = field(init=False)
    ahead: Future[Lease] | None = None  # the prefetch
    demand: Future[Lease] | None = None  # what the task itself waits for
    awaited: bool = False  # by the task, now
    lease: Lease | None = None  # what the task uses
    took_s: float = 0.0  # the prefetch, once it has ended well
    waited_s: float | None = None  # the task, once it has the file, until that is counted
    came: float = 0.0  # when it ended, by `time`
    moved: bool = False
    over: bool = False

    def __post_init__(self) -> None:
        self.stat = self.handle.expected
