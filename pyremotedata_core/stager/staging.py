"""What `Bringing` deals with: wishes for a lease, and one entry on its way to the node."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

from ..model import Stat
from ..url import RemoteURL
from .lease import Lease
from .locks import Pin, TransferLock
from .source import Source


@dataclass(slots=True, eq=False)
class Request:
    """Somebody's wish for a lease; ``looks_left``: how often a changed file is asked for anew."""

    url: RemoteURL
    background: bool
    looks_left: int
    future: Future[Lease] = field(default_factory=Future)

    def succeed(self, lease: Lease) -> bool:
        """Hand over the lease; False if nobody wants it any more."""
        if not self.future.set_running_or_notify_cancel():
            return False
        self.future.set_result(lease)
        return True

    def fail(self, error: BaseException) -> None:
        """Hand over an error."""
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


class Staging:
    """One entry on its way to the node, and those who asked for it."""

    def __init__(self, key: str, stat: Stat, first: Request) -> None:
        self.key = key
        self.stat = stat
        self.url = first.url
        self.background = first.background
        self.requests: list[Request] = []
        self.phase = "queue"  # lock, room, transfer, ended
        self.since = monotonic()  # when it entered the phase, or its progress was last seen
        self.sign = 0  # the last sign of life of the process that it waits for
        self.parked = True  # no step runs, and none will come by itself
        self.waits = 0  # how often it has begun to wait for the lock
        self.made_room = 0  # times
        self.mended = False
        self.lock: TransferLock | None = None
        self.pin: Pin | None = None
        self.incoming: Path | None = None
        self.transfer: Future[Stat] | None = None
        self.source: Source | None = None
        self.is_here = False
        self.over = threading.Event()

    def enter(self, phase: str) -> None:
        """Begin a phase, and its deadline."""
        self.phase = phase
        self.since = monotonic()
