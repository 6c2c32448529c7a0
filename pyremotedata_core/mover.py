"""Jobs: what the engine's face asks for, made of operations of sessions.

``plan -> move -> verify -> publish``: a job looks at both ends, moves bytes into a temporary
file, checks it, and gives it its final name. Jobs live on the loop's thread and end by calling
``done(result, error)`` exactly once.
"""

from __future__ import annotations

import posixpath
import time
from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

from .config import ConnectionSettings
from .errors import (
    ConfigurationError,
    ConnectionLost,
    RemoteChanged,
    RemoteFileNotFound,
    RemotePermissionDenied,
    ServerRefused,
    TransferError,
    TransferTimeout,
    from_oserror,
)
from .journal import Journal, Orphan
from .local import LocalSource, Memory, Part, check_target, make_directory
from .loop import Loop
from .model import Entry, Stat
from .names import TemporaryNames, is_temporary, local_parent
from .pool import MakeSession, Pool, PoolSession
from .ssh import SshChild
from .throttle import Throttle
from .transports.base import Done, Operation
from .transports.sftp import SftpSession
from .url import RemoteURL

SEGMENT_BYTES = 8 << 20  # a larger file moves in segments, over as many sessions as help
SEGMENTS_AHEAD = 12  # of one file, queued or moving
CHANGED_ATTEMPTS = 3
OnBytes = Callable[[int], None]


class Mover:
    """Makes jobs and keeps the pools. Belongs to the loop's thread."""

    def __init__(self, loop: Loop, settings: ConnectionSettings) -> None:
        self.loop = loop
        self.settings = settings
        self._pools: dict[tuple[Any, ...], Pool] = {}
        self._names = TemporaryNames()
        self._jobs: set[Job] = set()
        self._journals: dict[str, Journal] = {}

    def close(self) -> None:
        """End every job and session."""
        for job in list(self._jobs):
            job.cancel()
        for pool in self._pools.values():
            pool.close()
        self.loop.drain()  # jobs remove their local temporary files as they end
        for journal in self._journals.values():
            journal.close()
        self._pools.clear()

    # --- questions and small changes ---------------------------------------------------------

    def stat(self, url: RemoteURL, done: Done, *, follow: bool = True) -> Job:
        """Ask for a `Stat`."""
        return self._ask(url, "stat", (url.path, follow), done)

    def scandir(self, url: RemoteURL, done: Done) -> Job:
        """List a directory, without our own temporary files."""

        def listed(entries: list[Entry] | None, error: TransferError | None) -> None:
            if entries is not None:
                entries = [entry for entry in entries if not is_temporary(entry.name)]
            elif isinstance(error, RemoteFileNotFound):
                self.stat(url, partial(explain, error))
                return
            done(entries, error)

        def explain(error: TransferError, stat: Stat | None, _: TransferError | None) -> None:
            if stat is not None and stat.kind != "directory":
                error = ServerRefused("is a file; a directory was meant", str(url))
            done(None, error)

        return self._ask(url, "scandir", (url.path,), listed)

    def touch(self, url: RemoteURL, mtime: int | None, done: Done) -> Job:
        """Set the mtime of an existing file; now by default."""
        return self._ask(
            url, "touch", (url.path, int(time.time()) if mtime is None else mtime), done
        )

    def rename(self, old: RemoteURL, new: RemoteURL, done: Done) -> Job:
        """Rename within one server."""
        return self._ask(old, "rename", (old.path, new.path), done)

    def realpath(self, url: RemoteURL, done: Done) -> Job:
        """Ask for the server's canonical form of a path."""
        return self._ask(url, "realpath", (url.path,), done)

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
                self._ask(url, "mkdir", (url.path,), done)

        return self._ask(url, "mkdir", (url.path,), made)

    def rmdir(self, url: RemoteURL, done: Done) -> Job:
        """Remove an empty directory."""
        return self._ask(url, "rmdir", (url.path,), done)

    def remove(self, url: RemoteURL, done: Done, *, recursive: bool, missing_ok: bool) -> Job:
        """Remove a file or link, and with ``recursive`` a directory and what is in it."""

        def removed(_: Any, error: TransferError | None) -> None:
            if missing_ok and isinstance(error, RemoteFileNotFound):
                error = None
            done(None, error)

        if not recursive:
            return self._ask(url, "remove", (url.path,), removed)
        from .trees import RemoveTree

        return RemoveTree(self, url, removed)

    def info(self, url: RemoteURL, done: Done) -> Job:
        """Ask what the server offers: its extensions, limits and round trip."""
        return self._ask(url, "info", (), done)

    # --- files -------------------------------------------------------------------------------

    def fetch(
        self,
        url: RemoteURL,
        path: str,
        done: Done,
        *,
        expect: Stat | None = None,
        background: bool = False,
        on_bytes: OnBytes | None = None,
    ) -> Job:
        """Download a regular file; the result is the source's `Stat`."""
        return Fetch(self, url, path, done, expect, background, on_bytes)

    def store(
        self,
        path: str,
        url: RemoteURL,
        done: Done,
        *,
        overwrite: bool = True,
        parents: bool = True,
        on_bytes: OnBytes | None = None,
    ) -> Job:
        """Upload a regular file; the result is the new file's `Stat`."""
        return Store(self, path, url, done, overwrite, parents, on_bytes)

    def read(self, url: RemoteURL, offset: int, length: int, expect: Stat, done: Done) -> Job:
        """Read bytes [offset, offset + length) of a file that is still what ``expect`` says."""
        return Read(self, url, offset, length, expect, done)

    # --- what jobs use -------------------------------------------------------------------------

    def pool(self, url: RemoteURL) -> Pool:
        """Return the pool of a URL's server.

        Raises
        ------
        ConfigurationError
            If no transport serves the URL.
        """
        key = (url.scheme, url.user, url.host, url.port)
        pool = self._pools.get(key)
        if pool is None:
            settings = self.settings.for_url(url)
            make = self._session_maker(url, settings)
            on_open = partial(self._clear_orphans, url)
            pool = Pool(self.loop, url.server, settings, make, on_open)
            self._pools[key] = pool
        return pool

    def temporary_beside(self, path: str) -> str:
        """Return a temporary remote path in the directory of a final one."""
        return posixpath.join(posixpath.dirname(path), self._names.next())

    def journal(self, url: RemoteURL) -> Journal:
        """Return the journal of uploads to a URL's server."""
        journal = self._journals.get(url.server)
        if journal is None:
            journal = self._journals[url.server] = Journal(url.server)
        return journal

    def _clear_orphans(self, url: RemoteURL) -> None:
        """Remove what killed uploads of this node left at a server, when nothing else waits."""
        journal = self.journal(url)
        for orphan in journal.adopt():

            def cleared(_: Any, error: TransferError | None, orphan: Orphan = orphan) -> None:
                if error is None or not error.retryable:
                    journal.end(orphan.temporary)

            operation = Operation("clear_orphan", tuple(orphan), cleared)
            self.pool(url).submit(operation, background=True)

    def segments(self, url: RemoteURL) -> bool:
        """Whether the URL's transport moves parts of a file."""
        return url.scheme == "sftp" and self._transport(url) == "sftp"

    def _transport(self, url: RemoteURL) -> str:
        chosen = self.settings.transport
        if url.scheme == "sftp":
            return "sftp" if chosen == "auto" else chosen
        if chosen == "sftp":
            raise ConfigurationError(f"{url.scheme}:// needs the lftp transport", str(url))
        return "lftp"

    def _session_maker(self, url: RemoteURL, settings: ConnectionSettings) -> MakeSession:
        if self._transport(url) == "lftp":
            from .transports.lftp import LftpSession
            from .transports.threaded import ThreadedSession

            def lftp(
                on_open: Callable[[], None],
                on_lost: Callable[[TransferError], None],
                _leader: PoolSession | None,
            ) -> Any:
                session = LftpSession(url, settings)
                return ThreadedSession(session, self.loop.call_soon_threadsafe, on_open, on_lost)

            return lftp

        limit = settings.bandwidth
        throttles = (Throttle(limit), Throttle(limit)) if limit else None

        def sftp(
            on_open: Callable[[], None],
            on_lost: Callable[[TransferError], None],
            leader: SftpSession | None,
        ) -> Any:
            shared = leader.carrier if leader else None
            assert shared is None or isinstance(shared, SshChild)
            carrier = SshChild(settings, shared)
            return SftpSession(
                self.loop, carrier, settings, url.server, on_open, on_lost, throttles
            )

        return sftp

    def _ask(self, url: RemoteURL, name: str, args: tuple[Any, ...], done: Done) -> Job:
        return _Question(self, url, name, args, done)


class Job:
    """Something under way. ``done(result, error)`` is called once, and not from within the call
    that began it."""

    def __init__(self, mover: Mover, url: RemoteURL, done: Done) -> None:
        self._mover = mover
        self._url = url
        self._done: Done | None = done
        self._operations: set[Operation] = set()
        self.cancelled = False
        mover._jobs.add(self)

    def cancel(self) -> None:
        """Give up soon, leaving nothing behind; the outcome is then an error."""
        if self._done is None or self.cancelled:
            return
        self.cancelled = True
        for operation in list(self._operations):
            self._mover.pool(self._url).cancel(operation)

    def _submit(
        self,
        name: str,
        args: tuple[Any, ...],
        then: Done,
        *,
        load_bytes: int = 0,
        on_bytes: OnBytes | None = None,
        background: bool = False,
    ) -> None:
        def ended(result: Any, error: TransferError | None) -> None:
            self._operations.discard(operation)
            then(result, error)

        operation = Operation(name, args, ended, load_bytes, on_bytes)
        self._operations.add(operation)
        try:
            self._mover.pool(self._url).submit(operation, background=background)
        except TransferError as error:
            self._mover.loop.call_soon(partial(ended, None, error))

    def _end(self, result: Any, error: TransferError | None) -> None:
        done, self._done = self._done, None
        self._mover._jobs.discard(self)
        if done is not None:
            done(result, error)


class _Question(Job):
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

        if mover.segments(url):
            args = (url.path, memory, offset, length, expect)
            self._submit("read", args, moved, load_bytes=length or 1)
        else:
            refused = ServerRefused("the lftp transport reads whole files only", str(url))
            mover.loop.call_soon(partial(self._end, None, refused))


class _FileJob(Job):
    """A transfer of one file, large ones in segments."""

    def __init__(
        self, mover: Mover, url: RemoteURL, done: Done, on_bytes: OnBytes | None, background: bool
    ) -> None:
        super().__init__(mover, url, done)
        self._on_bytes = on_bytes
        self._background = background
        self._error: TransferError | None = None
        self._size = 0
        self._next = 0
        self._under_way = 0
        self._moved = 0
        self._expected = 0

    @abstractmethod
    def _segment(self, offset: int, length: int) -> None:
        """Submit the operation that moves this part."""

    @abstractmethod
    def _all_moved(self) -> None:
        """Go on: every part has moved, or one has failed and none is under way."""

    def _expect(self, size: int) -> None:
        """Tell the pool what is to come; 0 when nothing is."""
        pool = self._mover.pool(self._url)
        pool.expected_bytes += size - self._expected
        pool.expected_files += bool(size) - bool(self._expected)
        self._expected = size

    def _move(self) -> None:
        """Submit as many segments as may be under way."""
        while self._next < self._size and self._under_way < SEGMENTS_AHEAD and not self._error:
            length = min(SEGMENT_BYTES, self._size - self._next)
            self._under_way += 1
            self._segment(self._next, length)
            self._next += length

    def _segment_done(self, _: Any, error: TransferError | None) -> None:
        self._under_way -= 1
        if error is not None and self._error is None:
            self._error = error
            for operation in list(self._operations):
                self._mover.pool(self._url).cancel(operation)
        self._move()
        if not self._under_way:
            self._all_moved()

    def _count(self, count: int) -> None:
        self._moved += count
        self._expect(max(1, self._expected - count) if count > 0 else self._expected)
        if self._on_bytes:
            self._on_bytes(count)

    def _end(self, result: Any, error: TransferError | None) -> None:
        if self._expected:
            self._expect(0)
        if error is not None and self._moved and self._on_bytes:
            self._on_bytes(-self._moved)
        super()._end(result, error)


class Fetch(_FileJob):
    """Downloads one regular file."""

    def __init__(
        self,
        mover: Mover,
        url: RemoteURL,
        path: str,
        done: Done,
        expect: Stat | None,
        background: bool,
        on_bytes: OnBytes | None,
        prepared: bool = False,
    ) -> None:
        super().__init__(mover, url, done, on_bytes, background)
        self._path = path
        self._prepared = prepared  # the local directory is there
        self._part = Part(path)
        self._given = expect
        self._attempts = 0
        self._stat: Stat
        if expect is None:
            self._look()
        else:
            self._mover.loop.call_soon(partial(self._looked, expect, None))

    def _look(self) -> None:
        self._attempts += 1
        self._submit("stat", (self._url.path, True), self._looked, background=self._background)

    def _looked(self, stat: Stat | None, error: TransferError | None) -> None:
        if error is not None or self.cancelled:
            self._end(None, error or _cancelled())
            return
        assert stat is not None
        if stat.kind != "file":
            kind = "a directory" if stat.kind == "directory" else "not a regular file"
            self._end(None, ServerRefused(f"is {kind}; a file was meant", str(self._url)))
            return
        try:
            if not self._prepared:
                make_directory(local_parent(self._path))
            check_target(self._path, stat.size)
        except TransferError as local_error:
            self._end(None, local_error)
            return
        self._stat, self._size = stat, stat.size
        self._error = None
        self._next = 0
        if stat.size <= SEGMENT_BYTES or not self._mover.segments(self._url):
            self._next = stat.size
            self._under_way = 1
            self._segment(0, stat.size)
        else:
            self._expect(stat.size)
            self._move()

    def _segment(self, offset: int, length: int) -> None:
        self._submit(
            "read",
            (self._url.path, self._part, offset, length, self._stat),
            self._segment_done,
            load_bytes=length or 1,
            on_bytes=self._count,
            background=self._background,
        )

    def _all_moved(self) -> None:
        error = self._error
        if error is None and self.cancelled:
            error = _cancelled()
        if error is None:
            try:
                self._part.publish(self._stat, self._mover.settings.fsync)
            except TransferError as local_error:
                error = local_error
        if error is None:
            self._end(self._stat, None)
            return
        self._part.discard()
        if (
            isinstance(error, RemoteChanged)
            and self._given is None
            and self._attempts < CHANGED_ATTEMPTS
            and not self.cancelled
        ):
            if self._on_bytes and self._moved:
                self._on_bytes(-self._moved)
            self._moved = 0
            self._look()
        else:
            self._end(None, error)


class Store(_FileJob):
    """Uploads one regular file."""

    def __init__(
        self,
        mover: Mover,
        path: str,
        url: RemoteURL,
        done: Done,
        overwrite: bool,
        parents: bool,
        on_bytes: OnBytes | None,
    ) -> None:
        super().__init__(mover, url, done, on_bytes, False)
        self._path = path
        self._overwrite = overwrite
        self._parents = parents
        self._attempts = 0
        self._source: LocalSource
        self._temporary = ""
        self._mover.loop.call_soon(self._start)

    def _start(self) -> None:
        self._attempts += 1
        self._error = None
        try:
            self._source = LocalSource(self._path)
        except TransferError as error:
            self._end(None, error)
            return
        self._size = self._source.size
        self._temporary = self._mover.temporary_beside(self._url.path)
        try:
            self._mover.journal(self._url).begin(self._temporary, self._url.path)
        except OSError as error:
            self._source.close()
            self._end(None, from_oserror(error, "the journal of uploads"))
            return
        if self._size <= SEGMENT_BYTES or not self._mover.segments(self._url):
            self._submit(
                "write",
                (self._url.path, self._source, self._overwrite, self._temporary),
                self._stored,
                load_bytes=self._size or 1,
                on_bytes=self._count,
            )
        else:
            self._expect(self._size)
            self._submit("create", (self._temporary, self._url.path), self._created)

    def _created(self, _: Any, error: TransferError | None) -> None:
        if error is not None:
            self._stored(None, error)
        elif self.cancelled:
            self._all_moved()
        else:
            self._next = 0
            self._move()

    def _segment(self, offset: int, length: int) -> None:
        self._submit(
            "write_part",
            (self._temporary, self._source, offset, length),
            self._segment_done,
            load_bytes=length,
            on_bytes=self._count,
        )

    def _all_moved(self) -> None:
        error = self._error or (_cancelled() if self.cancelled else None)
        if error is None:
            args = (self._temporary, self._url.path, self._source, self._overwrite)
            self._submit("publish", args, self._stored)
        elif isinstance(error, ConnectionLost | TransferTimeout) and not self.cancelled:
            # The time is up. It goes if the server is soon back, else when the next process comes.
            self._submit(
                "remove", (self._temporary,), partial(self._removed, self._temporary, None)
            )
            self._stored(None, error)
        else:
            # The temporary file is ours: it goes before the failure is told.
            self._submit(
                "remove", (self._temporary,), partial(self._removed, self._temporary, error)
            )

    def _removed(
        self, temporary: str, cause: TransferError | None, _: Any, error: TransferError | None
    ) -> None:
        if error is None:
            self._mover.journal(self._url).end(temporary)
        if cause is not None:
            self._stored(None, cause)

    def _stored(self, stat: Stat | None, error: TransferError | None) -> None:
        self._source.close()
        if error is None or not isinstance(error, ConnectionLost | TransferTimeout):
            self._mover.journal(self._url).end(self._temporary)
        missing = isinstance(error, RemoteFileNotFound | RemotePermissionDenied)
        if error is not None and self._attempts == 1 and not self.cancelled:
            if missing and self._parents:
                self._mover.mkdir(self._url.parent, self._made, parents=True, exist_ok=True)
                return
            if type(error) is TransferError and error.retryable:  # the local file changed
                self._start()
                return
        self._end(stat, error)

    def _made(self, _: Any, error: TransferError | None) -> None:
        if error is not None:
            self._end(None, error)
        else:
            self._start()


def _cancelled() -> TransferError:
    return ConnectionLost("cancelled", retryable=False)
