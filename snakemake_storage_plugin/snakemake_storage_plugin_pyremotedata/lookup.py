"""Questions about remote files: answered from memory, with one request, or with one listing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from pyremotedata_core.errors import (
    RemoteFileNotFound,
    RemotePermissionDenied,
    ServerRefused,
    TransferError,
)
from pyremotedata_core.model import Stat
from pyremotedata_core.url import RemoteURL

from .memory import Memory
from .waiting import Wait

if TYPE_CHECKING:
    from pyremotedata_core.engine import TransferEngine


class Lookup:
    """What one provider knows and asks. Thread-safe.

    Parameters
    ----------
    engine : callable
        Returns the engine; called with the first question that memory cannot answer.
    """

    def __init__(self, engine: Callable[[], TransferEngine]) -> None:
        self.memory = Memory()
        self._engine = engine
        self._lock = threading.Lock()
        self._listings: dict[RemoteURL, tuple[Future[Any], float]] = {}

    async def stat(self, url: RemoteURL, wait: Wait) -> Stat | None:
        """Return the stat of a file or directory (links followed), None if it does not exist.

        The second question about a directory lists it, and the second directory without what was
        asked for has the one above it listed. Raises `TransferError` for everything
        but a clear "there is no such file".
        """
        known = self.memory.recall(url)
        if known is None and self.memory.should_list(url) and await self._list(url.parent, wait):
            known = self.memory.recall(url)
        if known is not None:
            return known.stat
        stat = await self.ask(url, wait)
        # Outputs often have directories of their own, none of which exists before the first run.
        if stat is None and self.memory.should_list(url.parent):
            await self._list(url.parent.parent, wait)
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

    async def _list(self, directory: RemoteURL, wait: Wait) -> bool:
        """List a directory into the memory; return whether that was possible."""
        with self._lock:
            running = self._listings.get(directory)
            if running is None or running[0].done():
                asked_at = time.monotonic()
                running = (self._engine().scandir(directory), asked_at)
                self._listings[directory] = running
            shared, asked_at = running
        try:
            entries = await wait(_follow(shared))
        except RemoteFileNotFound:
            entries = []
        except TransferError as error:
            if type(error) not in (TransferError, RemotePermissionDenied, ServerRefused):
                raise
            self.memory.never_list(directory)
            return False
        finally:
            with self._lock:
                first = self._listings.get(directory) is running and shared.done()
                if first:
                    del self._listings[directory]
        if first:
            self.memory.remember_listing(directory, entries, asked_at)
        return True


def _follow(shared: Future[Any]) -> Future[Any]:
    """Return a future that ends as another one does, and whose cancelling leaves that alone."""
    own: Future[Any] = Future()

    def copy(done: Future[Any]) -> None:
        if not own.set_running_or_notify_cancel():
            return
        if done.cancelled():
            own.set_exception(TransferError("the engine was closed"))
        elif (error := done.exception()) is not None:
            own.set_exception(error)
        else:
            own.set_result(done.result())

    shared.add_done_callback(copy)
    return own
