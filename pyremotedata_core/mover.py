"""Mover: what jobs run on, the pools of sessions, and what they have in common.

``plan -> move -> verify -> publish``: a job looks at both ends, moves bytes into a temporary
file, checks it, and gives it its final name.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable
from functools import partial
from typing import Any

from .carriers import open_carrier
from .config import ConnectionSettings
from .errors import (
    RemoteFileNotFound,
    RemotePermissionDenied,
    ServerRefused,
    TransferError,
    naming,
)
from .jobs import Job, Question
from .journal import Journal, Orphan
from .loop import Loop
from .model import Stat
from .names import temporary_name
from .pool import Pool
from .throttle import Throttle
from .transports.base import Done, MakeSession, Operation, PoolSession
from .transports.sftp import SftpSession
from .url import RemoteURL

ORPHANS_FIRST = 1024  # are removed before anything else moves, if a killed process left so many


class Mover:
    """Keeps the pools, and the jobs that run on them. Belongs to the loop's thread."""

    def __init__(self, loop: Loop, settings: ConnectionSettings) -> None:
        self.loop = loop
        self.settings = settings
        self._pools: dict[tuple[Any, ...], Pool] = {}
        self._jobs: set[Job] = set()
        self._journals: dict[str, Journal] = {}
        self._making: dict[RemoteURL, list[Done]] = {}  # directories, and who waits for each

    def close(self) -> None:
        """End every job and session."""
        for job in list(self._jobs):
            job.cancel(keep=True)
        for pool in self._pools.values():
            pool.close()
        self.loop.drain()  # jobs remove their local temporary files as they end
        for journal in self._journals.values():
            journal.close()

    # --- questions and small changes ---------------------------------------------------------

    def stat(self, url: RemoteURL, done: Done, *, follow: bool = True) -> Job:
        """Ask for a `Stat`."""
        return Question(self, url, "stat", (url.path, follow), done)

    def realpath(self, url: RemoteURL, done: Done) -> Job:
        """Ask for the server's canonical form of a path."""
        return Question(self, url, "realpath", (url.path,), done)

    def mkdir(self, url: RemoteURL, done: Done, *, parents: bool, exist_ok: bool) -> Job:
        """Make a directory, and with ``parents`` those above it."""
        if not exist_ok:

            def looked(stat: Stat | None, error: TransferError | None) -> None:
                if stat is not None:
                    done(None, ServerRefused("exists already", str(url)))
                elif isinstance(error, RemoteFileNotFound):
                    self.mkdir(url, done, parents=parents, exist_ok=True)
                else:
                    done(None, error)

            return self.stat(url, looked)

        def made(_: Any, error: TransferError | None) -> None:
            missing = isinstance(error, RemoteFileNotFound | RemotePermissionDenied)
            if missing and parents and url.parent != url:
                self.mkdir(url.parent, again, parents=True, exist_ok=True)
            else:
                done(None, error)

        def again(_: Any, error: TransferError | None) -> None:
            if error is not None:
                done(None, error)
            else:
                Question(self, url, "mkdir", (url.path,), done)

        return Question(self, url, "mkdir", (url.path,), made)

    def remove(self, url: RemoteURL, done: Done, *, recursive: bool, missing_ok: bool) -> Job:
        """Remove a file or link, and with ``recursive`` a directory and what is in it."""

        def removed(_: Any, error: TransferError | None) -> None:
            if missing_ok and isinstance(error, RemoteFileNotFound):
                error = None
            done(None, error)

        if not recursive:
            return Question(self, url, "remove", (url.path,), removed)
        from .trees import RemoveTree

        return RemoveTree(self, url, removed)

    # --- what jobs use -------------------------------------------------------------------------

    def pool(self, url: RemoteURL) -> Pool:
        """Return the pool of a URL's server.

        Raises
        ------
        ConfigurationError
            If no transport serves the URL.
        TransferError
            If this node's slots of the server cannot be had.
        """
        key = (url.scheme, url.user, url.host, url.port)
        pool = self._pools.get(key)
        if pool is None:
            settings = self.settings.for_url(url)
            make = self._session_maker(url, settings)
            on_open = partial(self.clear_orphans, url)
            with naming("the session slots of this node"):
                pool = self._pools[key] = Pool(self.loop, url.server, settings, make, on_open)
        return pool

    def temporary_beside(self, path: str) -> str:
        """Return a temporary path in the directory of a remote file.

        It is the file's own path where the server does not let a file be renamed.
        """
        if self.settings.publish == "direct":
            return path
        return posixpath.join(posixpath.dirname(path), temporary_name())

    def other_temporary(self, url: RemoteURL, temporary: str) -> str:
        """Return another temporary path for an upload whose connection was lost.

        The session before may still be about to rename the one that it had, which is removed.
        """
        other = self.temporary_beside(url.path)
        if other == url.path:
            return temporary
        journal = self.journal(url)
        try:
            journal.replace(temporary, other)
        except TransferError:
            return temporary
        self.clear_orphans(url)
        return other

    def journal(self, url: RemoteURL) -> Journal:
        """Return the journal of uploads to a URL's server."""
        journal = self._journals.get(url.server)
        if journal is None:
            journal = self._journals[url.server] = Journal(url.server)
        return journal

    def clear_orphans(self, url: RemoteURL) -> None:
        """Remove what killed uploads of this node left at a server.

        Most of it before anything else moves: then it is gone when that has moved, and the
        process ends.
        """
        journal = self.journal(url)
        for number, orphan in enumerate(journal.orphans()):

            def cleared(_: Any, error: TransferError | None, orphan: Orphan = orphan) -> None:
                if error is None:  # else it is left to the next process
                    journal.end(orphan.temporary)

            operation = Operation("clear_orphan", tuple(orphan), cleared)
            self.pool(url).submit(operation, background=number >= ORPHANS_FIRST)

    def make_parent(self, url: RemoteURL, done: Done) -> None:
        """Make the directory of a file, and those above it; once for all who ask meanwhile."""
        waiting = self._making.setdefault(url.parent, [])
        waiting.append(done)
        if len(waiting) > 1:
            return

        def made(_: Any, error: TransferError | None) -> None:
            for waiter in self._making.pop(url.parent):
                waiter(None, error)

        self.mkdir(url.parent, made, parents=True, exist_ok=True)

    def segments(self, url: RemoteURL) -> bool:
        """Whether a large file moves in segments over several of the pool's sessions.

        lftp moves it whole, over connections of its own.
        """
        return url.scheme == "sftp" and self.settings.transport_for(url) == "sftp"

    def _session_maker(self, url: RemoteURL, settings: ConnectionSettings) -> MakeSession:
        if settings.transport_for(url) == "lftp":
            from .transports.lftp import LftpSession
            from .transports.lftp_ftp import FtpSession
            from .transports.threaded import ThreadedSession

            def lftp(
                on_open: Callable[[], None],
                on_lost: Callable[[TransferError], None],
                _leader: PoolSession | None,
            ) -> Any:
                session = (LftpSession if url.scheme == "sftp" else FtpSession)(url, settings)
                return ThreadedSession(session, self.loop.call_soon_threadsafe, on_open, on_lost)

            return lftp

        limit = settings.bandwidth
        throttles = (Throttle(limit), Throttle(limit)) if limit else None

        def sftp(
            on_open: Callable[[], None],
            on_lost: Callable[[TransferError], None],
            leader: SftpSession | None,
        ) -> Any:
            carrier = open_carrier(settings, leader.carrier if leader else None)
            from .transports import sftp_operations  # noqa: F401  loaded while ssh logs in

            return SftpSession(
                self.loop, carrier, settings, url.server, on_open, on_lost, throttles
            )

        return sftp
