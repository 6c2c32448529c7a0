"""Questions about remote files: answered from memory, with one request, or with one listing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Any

from pyremotedata_core.errors import (
    RemoteFileNotFound,
    RemotePermissionDenied,
    ServerRefused,
    TransferError,
)
from pyremotedata_core.futures import pass_on
from pyremotedata_core.model import Entry, Stat
from pyremotedata_core.url import RemoteURL

from .expected import Expected
from .memory import Memory
from .waiting import Wait

if TYPE_CHECKING:
    from pyremotedata_core.engine import TransferEngine


# Directories asked about before anybody wants to know: at most so many whose answers nobody has
# wanted yet, and so many for each directory that was wanted.
AHEAD = 32
AHEAD_FOR_EACH = 4


class Lookup:
    """What one provider knows and asks. Thread-safe.

    Parameters
    ----------
    engine : callable
        Returns the engine; called with the first question that memory cannot answer.
    looks_ahead : bool
        Whether to ask what is to be expected, before somebody waits for it.
    """

    def __init__(self, engine: Callable[[], TransferEngine], looks_ahead: bool = True) -> None:
        self.memory = Memory()
        self.expected = Expected()
        self._engine = engine
        self._looks_ahead = looks_ahead
        self._lock = threading.Lock()
        self._running: dict[tuple[str, RemoteURL], Future[bool]] = {}
        self._wanted: set[RemoteURL] = set()
        self._not_wanted_yet: set[RemoteURL] = set()

    async def stat(self, url: RemoteURL, wait: Wait) -> Stat | None:
        """Return the stat of a file or directory (links followed), None if it does not exist.

        A directory is listed when a second question about it is asked or to be expected, and
        where two directories had what was asked for, their neighbours are asked about at the same
        time. The second directory without what was asked for has the one above it listed, and
        while that is missing, all that lies below costs one question.
        Raises `TransferError` for everything but a clear "there is no such file".
        """
        directory, above = url.parent, url.parent.parent
        self._not_wanted_yet.discard(directory)
        known = self.memory.recall(url)
        if known is not None:
            return known.stat
        asked_at = time.monotonic()
        if (missing := self.memory.topmost_missing(above)) is not None:
            await wait(_follow(self._ask_shared("stat", missing)))
            if (known := self.memory.recall(url, asked_at)) is not None:
                return known.stat
        self._look_ahead(directory)
        if self.memory.should_list(url, self.expected.count(directory)):
            listing = self._ask_shared("scandir", directory)
            looking = self._look_above(above)
            if await wait(_follow(listing)):
                known = self.memory.recall(url, asked_at)
            if looking is not None and known is not None and known.stat is None:
                await wait(_follow(looking))
        elif ("stat", url) in self._running:
            await wait(_follow(self._ask_shared("stat", url)))
            known = self.memory.recall(url, asked_at)
        stat = known.stat if known is not None else await self.ask(url, wait)
        # Outputs often have directories of their own, none of which exists before the first run.
        top = self.memory.recall(above)
        exists = top is None or top.stat is not None
        if stat is None and exists and self.memory.should_list_above(directory):
            await wait(_follow(self._ask_shared("scandir", above)))
        return stat

    async def ask(self, url: RemoteURL, wait: Wait) -> Stat | None:
        """Return what the server says of a file now, None if it does not exist."""
        asked_at = time.monotonic()
        try:
            stat = await wait(self._engine().stat(url))
        except RemoteFileNotFound:
            stat = None
        self.memory.remember(url, stat, asked_at)
        return stat

    def _look_above(self, above: RemoteURL) -> Future[bool] | None:
        """Ask at the same time whether there is anything, where more directories are expected."""
        known = self.memory.recall(above) is not None or self.memory.has_asked(above)
        if known or not self._looks_ahead or self.expected.count_below(above) < 2:
            return None
        return self._ask_shared("stat", above)

    def _look_ahead(self, directory: RemoteURL) -> None:
        """Ask about the neighbours of a directory, if some of them had what was asked for."""
        above = directory.parent
        if len(self._wanted) < AHEAD:
            self._wanted.add(directory)
        if not (self._looks_ahead and self.memory.found_below(above)):
            return
        at_most = min(AHEAD, AHEAD_FOR_EACH * len(self._wanted)) - len(self._not_wanted_yet)
        for neighbour, names in self.expected.take(above, at_most):
            if neighbour == directory or self.memory.has_asked(neighbour):
                continue
            self._not_wanted_yet.add(neighbour)
            if len(names) > 1:
                self._ask_shared("scandir", neighbour)
            else:
                self._ask_shared("stat", neighbour.join(names[0]))

    def _ask_shared(self, question: str, url: RemoteURL) -> Future[bool]:
        """Ask, or join who asks just now; the result is whether memory has the answer."""
        with self._lock:
            shared = self._running.get((question, url))
            if shared is not None:
                return shared
            asked_at = time.monotonic()
            asked: Future[Any]
            if question == "scandir":
                asked = self._engine().scandir(url, explain=False)
            else:
                asked = self._engine().stat(url)
            shared = self._running[question, url] = Future()
        learn = self._learn_listing if question == "scandir" else self._learn_stat

        def answered(done: Future[Any]) -> None:
            try:
                learned, error = learn(url, done, asked_at), None
            except (Exception, CancelledError) as failed:
                learned, error = False, failed
            with self._lock:
                del self._running[question, url]
            if error is None:
                shared.set_result(learned)
            elif isinstance(error, CancelledError):
                shared.set_exception(TransferError("the engine was closed"))
            else:
                shared.set_exception(error)

        asked.add_done_callback(answered)
        return shared

    def _learn_stat(self, url: RemoteURL, done: Future[Stat], asked_at: float) -> bool:
        try:
            self.memory.remember(url, done.result(), asked_at)
        except RemoteFileNotFound:
            self.memory.remember(url, None, asked_at)
        return True

    def _learn_listing(
        self, directory: RemoteURL, done: Future[list[Entry]], asked_at: float
    ) -> bool:
        try:
            self.memory.remember_listing(directory, done.result(), asked_at)
        except RemoteFileNotFound:
            self.memory.remember_listing(directory, [], asked_at)
            self.memory.remember(directory, None, asked_at)
        except TransferError as error:
            if type(error) not in (TransferError, RemotePermissionDenied, ServerRefused):
                raise
            self.memory.never_list(directory)
            return False
        return True


def _follow(shared: Future[bool]) -> Future[bool]:
    """Return a future that ends as another one does, and whose cancelling leaves that alone."""
    own: Future[bool] = Future()
    shared.add_done_callback(lambda done: pass_on(done, own))
    return own
