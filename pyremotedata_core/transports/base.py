"""What the pool asks of a transport.

A *session* is one login at one server. The pool hands it operations and gets each one's outcome
through a callback; all callbacks run on the loop's thread. The pipelined SFTP session takes many
operations at once. A transport that can only block (lftp) implements `BlockingSession`, one
operation at a time, and `ThreadedSession` (in `threaded.py`) runs it in a thread of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from ..errors import ServerRefused, TransferError
from ..model import Entry, Stat

MAX_ENTRIES = 10_000_000  # of one directory; no server of ours lists more in a time worth waiting
MAX_LISTING_BYTES = 4 << 30  # of one directory, as sent
LISTING_TIMEOUTS = 20  # so many times the limit for silence, a listing may take

Done = Callable[[Any, TransferError | None], None]


def check_listing(
    count: int, taken_s: float, timeout_s: float, url: str, most: int = MAX_ENTRIES
) -> None:
    """Raise `ServerRefused` when a listing has become longer than one that is worth waiting for.

    Parameters
    ----------
    count : int
        Entries so far.
    taken_s, timeout_s : float
        Time so far, and the limit for silence.
    url : str
        The directory.
    most : int
        Entries that are taken.
    """
    if count > most:
        raise ServerRefused(f"the listing has no end: more than {most} entries", url)
    if taken_s > LISTING_TIMEOUTS * timeout_s:
        raise ServerRefused(
            f"the listing did not end within {LISTING_TIMEOUTS * timeout_s:g} s ({count} entries"
            " so far); if the server is that slow, raise PYREMOTEDATA_TIMEOUT",
            url,
        )


@dataclass(slots=True, eq=False)
class Source:
    """A local file that is uploaded.

    Attributes
    ----------
    path : str
    fd : int
        An open descriptor; -1 for a file that lies at the server itself.
    size, mtime : int
        Bytes; seconds since the epoch.
    mode : int or None
        The permission bits that the remote file is to have, None for the server's choice.
    """

    path: str
    fd: int
    size: int
    mtime: int
    mode: int | None = None


class SmallSource(Protocol):
    """What a small upload reads as a whole: a local file.

    ``size``, ``mtime`` and ``mode`` are those of what `read` has returned.
    """

    size: int
    mtime: int
    mode: int | None

    def read(self) -> bytes:
        """Return what the file holds; raises `TransferError`."""


class Sink(Protocol):
    """What a download fills: a local temporary file, or memory.

    A transport that drives another program needs the file: `fd` makes it, `path` names it;
    errors name `final`, by which the user knows it.
    """

    is_file: bool
    path: str
    final: str

    @property
    def fd(self) -> int:
        """An open descriptor of the file."""

    def write(self, data: memoryview, offset: int) -> None:
        """Keep bytes that stand at an offset of the source; raises OSError."""


@dataclass(slots=True, eq=False)
class Operation:
    """One request to a session.

    Attributes
    ----------
    name : str
        A method of `BlockingSession`, or what `sftp_operations` knows beyond those.
    args : tuple
        Its arguments. For ``scandir`` a function follows them that is called with each batch of
        entries, and may raise `TransferError`. An attempt after a lost connection begins anew.
    done : callable
        Called once with (result, None) or (None, error).
    load_bytes : int
        Bytes it will move, 0 for a question.
    on_bytes : callable or None
        Called with the number of bytes as they have moved.
    weight : int
        Files that it has open at a time.
    """

    name: str
    args: tuple[Any, ...]
    done: Done
    load_bytes: int = 0
    on_bytes: Callable[[int], None] | None = None
    weight: int = 1
    cancelled: bool = False
    attempts: int = 0
    born: float = 0.0
    moved: int = 0
    most: int = 0  # that any attempt moved
    troubled: float = 0.0  # since when no attempt got further

    def count(self, more: int) -> None:
        """Tell that so many bytes more have moved; fewer, when they move again."""
        self.moved += more
        if self.on_bytes:
            self.on_bytes(more)


class PoolSession(Protocol):
    """What the pool asks of a session; `SftpSession` and `ThreadedSession` are some."""

    opened: bool
    load: int
    load_bytes: int
    max_operations: int
    rtt_s: float
    last_heard: float

    @property
    def can_share(self) -> bool: ...
    @property
    def took_code(self) -> bool: ...
    def has_room(self, operation: Operation) -> bool: ...
    def submit(self, operation: Operation) -> None: ...
    def close(self) -> None: ...


MakeSession = Callable[
    [Callable[[], None], Callable[[TransferError], None], Any | None], PoolSession
]


class BlockingSession(Protocol):
    """A session that does one thing at a time, in the calling thread.

    Every method raises `TransferError` and returns within the session's time limit of the last
    sign of life. Paths are decoded, absolute, ``/~`` for the login directory. What is not there is
    `RemoteFileNotFound`, what may not be touched `RemotePermissionDenied`.
    """

    def connect(self) -> None:
        """Log in, once.

        Raises
        ------
        ConfigurationError
            If a program is not installed.
        AuthenticationFailed, HostKeyRejected, ConnectionLost, TransferTimeout, ServerRefused
            What is said of a login that failed.
        """

    def stat(self, path: str, follow: bool = True) -> Stat:
        """Return what the server says of a path."""

    def scandir(self, path: str) -> Iterator[list[Entry]]:
        """Yield the entries of a directory in batches, without ``.`` and ``..``.

        Raises
        ------
        ServerRefused
            If it is not a directory, or its listing is endless.
        UnsafeName
            If a name in it cannot be carried, or would leave the directory.
        """

    def read(
        self,
        path: str,
        sink: Sink,
        offset: int,
        length: int,
        expect: Stat,
        on_bytes: Callable[[int], None],
    ) -> None:
        """Write bytes [offset, offset + length) of the remote file into the sink at that offset.

        Raises
        ------
        RemoteChanged
            If the file is not, or does not remain, what ``expect`` says.
        ServerRefused
            If what is not a regular file is asked for.
        LocalStorageFull
        """

    def write(
        self,
        path: str,
        source: Source,
        overwrite: bool,
        temporary: str,
        on_bytes: Callable[[int], None],
    ) -> Stat:
        """Upload the source and publish it under ``path``, whole or not at all, mtime set.

        Until then it has the temporary path, in the same directory and ours alone; nothing
        remains of it.

        Raises
        ------
        RemoteFileNotFound
            If the directory does not exist.
        ServerRefused
            If a directory stands there, a file stands there and may not be overwritten, or the
            server cannot keep the file.
        """

    def mkdir(self, path: str) -> None:
        """Make one directory; an existing directory is no error.

        Raises
        ------
        RemoteFileNotFound
            If its parent does not exist.
        ServerRefused
            If a file has that name.
        """

    def remove(self, path: str) -> None:
        """Remove a file or link; a directory is `ServerRefused`."""

    def rmdir(self, path: str) -> None:
        """Remove an empty directory."""

    def rename(self, old: str, new: str) -> None:
        """Rename within the server, replacing a file as safely as the server allows.

        Raises
        ------
        ServerRefused
            If a directory has the new name.
        """

    def touch(self, path: str, mtime: int) -> None:
        """Set the mtime of an existing file, in seconds.

        Raises
        ------
        ServerRefused
            If the server offers no way, or did not keep the time.
        """

    def clear_orphan(self, temporary: str, final: str) -> None:
        """Remove what a killed upload left; put a file back that stood aside without successor."""

    def realpath(self, path: str) -> str:
        """Return the server's canonical form of a path."""

    def kill(self) -> None:
        """End the session at once; safe to call from another thread, more than once."""
