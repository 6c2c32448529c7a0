"""Inputs fetched while other jobs compute, before Snakemake asks for them.

In every scheduling round Snakemake asks for the sizes of the inputs of all jobs that could run:
those are the files it will want next. They are fetched in the background, after everything that
is wanted now, into a workspace of this process, and get their final name when they are retrieved.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyremotedata_core.errors import TransferError
from pyremotedata_core.model import Stat
from pyremotedata_core.part import files_to_go_on
from pyremotedata_core.url import RemoteURL

from .trees import CANCEL_TIMEOUT_S
from .waiting import Wait
from .workspace import Workspace, sweep

if TYPE_CHECKING:
    from pyremotedata_core.engine import TransferEngine

MAX_FILES = 10_000
# Of the free disk space, what may be used for files that nobody has asked for yet.
DISK_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class _Ahead:
    """A file on its way, or there already."""

    stat: Stat
    path: Path
    future: Future[Any]


def fits(size: int, held: int, budget: int, free: int) -> bool:
    """Whether one more file may be fetched ahead; all in bytes.

    Parameters
    ----------
    size : int
        Of the file.
    held : int
        Of the files that are there or on their way.
    budget : int
        What the user allows.
    free : int
        Free space of the file system.
    """
    return held + size <= budget and held + size <= free * DISK_SHARE


class Prefetch:
    """Files fetched ahead for one provider. Thread-safe.

    Parameters
    ----------
    engine : callable
        Returns the engine.
    parent : Path
        Where the workspace is made, on the file system of the local copies.
    budget_bytes : int
        Held at the most; 0 fetches nothing.
    """

    def __init__(
        self, engine: Callable[[], TransferEngine], parent: Path, budget_bytes: int
    ) -> None:
        self._engine = engine
        self._parent = parent
        self._budget = budget_bytes
        self._lock = threading.Lock()
        self._begun = False
        self._wanted: dict[RemoteURL, Stat] = {}
        self._ahead: dict[RemoteURL, _Ahead] = {}
        self._begun_before: dict[Path, set[str]] = {}  # by directory, what another run began
        self._held = 0
        self._count = 0
        self._workspace: Workspace | None = None

    def want(self, url: RemoteURL, stat: Stat, path: Path) -> None:
        """Note that a file may be retrieved to ``path`` soon."""
        suitable = stat.kind == "file" and stat.size <= self._budget
        if not self._budget or not suitable or os.path.lexists(path):
            return
        with self._lock:
            if url in self._wanted or url in self._ahead or len(self._wanted) >= MAX_FILES:
                return
            if self._was_begun(path):
                return  # the job's own fetch goes on with it
            self._wanted[url] = stat
            self._fetch_more()

    def begin(self) -> None:
        """Note that this process does retrieve files: from now on, what is wanted is fetched."""
        with self._lock:
            if not self._begun:
                self._begun = True
                with contextlib.suppress(OSError):
                    sweep(self._parent)
            self._fetch_more()

    def holds(self, url: RemoteURL) -> bool:
        """Whether a file is there or on its way."""
        return url in self._ahead

    async def take(self, url: RemoteURL, stat: Stat, path: Path, wait: Wait) -> bool | None:
        """Give a file its final name, if it was fetched ahead and is still what it was.

        Returns
        -------
        bool or None
            None if it was not; else whether it was there already when it was asked for.
        """
        with self._lock:
            self._wanted.pop(url, None)
            ahead = self._ahead.pop(url, None)
            if ahead is None:
                return None
            self._held -= ahead.stat.size
        was_there = ahead.future.done()
        try:
            if ahead.stat.same_content(stat):
                self._engine().promote(ahead.future)
                await wait(ahead.future)
                os.replace(ahead.path, path)
                return was_there
        except (TransferError, OSError):
            pass  # whoever asked fetches it, and learns what is wrong
        finally:
            _drop(ahead)
        return None

    def give_way(self) -> bool:
        """Drop everything, for space on the disk; return whether there was anything."""
        with self._lock:
            dropped, self._ahead = self._ahead, {}
            self._held = 0
            self._wanted.clear()
        for ahead in dropped.values():
            _drop(ahead)
        return bool(dropped)

    def close(self) -> None:
        """Stop and leave nothing behind."""
        self._budget = 0
        dropped = self.give_way()
        if self._workspace is not None:
            if dropped:
                self._engine().wait_cancelled(CANCEL_TIMEOUT_S)  # it may still make files there
            self._workspace.close()

    def _was_begun(self, path: Path) -> bool:
        begun = self._begun_before.get(path.parent)
        if begun is None:
            begun = self._begun_before[path.parent] = files_to_go_on(str(path.parent))
        return str(path) in begun

    def _fetch_more(self) -> None:
        if not (self._begun and self._wanted):
            return
        if self._workspace is None:
            try:
                self._workspace = Workspace(self._parent)
            except OSError:
                self._wanted.clear()
                return
            # Registered after the engine's own, so called before it.
            atexit.register(self.close)
        free = shutil.disk_usage(self._parent).free
        while self._wanted and len(self._ahead) < MAX_FILES:
            url, stat = next(iter(self._wanted.items()))
            if not fits(stat.size, self._held, self._budget, free):
                break  # until something is taken; looking through all each time would cost
            del self._wanted[url]
            self._fetch(url, stat)

    def _fetch(self, url: RemoteURL, stat: Stat) -> None:
        assert self._workspace is not None
        self._count += 1
        path = self._workspace.path / str(self._count)
        with contextlib.suppress(TransferError):
            future = self._engine().fetch(url, path, expect=stat, background=True)
            self._ahead[url] = _Ahead(stat, path, future)
            self._held += stat.size


def _drop(ahead: _Ahead) -> None:
    """Give a file up, wherever it is."""
    ahead.future.cancel()
    ahead.path.unlink(missing_ok=True)
