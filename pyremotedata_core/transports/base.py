"""What the pool asks of a transport.

A *session* is one login at one server. The pool hands it operations and gets each one's outcome
through a callback; all callbacks run on the loop's thread. The pipelined SFTP session takes many
operations at once. A transport that can only block (lftp) implements `BlockingSession`, one
operation at a time, and `ThreadedSession` (in `threaded.py`) runs it in a thread of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from ..errors import ServerRefused, TransferError

MAX_ENTRIES = 10_000_000  # of one directory; no server of ours lists more in a time worth waiting
MAX_LISTING_BYTES = 4 << 30  # of one directory, as sent
SMALL_BYTES = 256 << 10  # moved before what takes long
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
        Bytes; seconds since the epoch, as the remote file is to have them.
    mode : int or None
        The permission bits that the remote file is to have, None for the server's choice.
    mtime_ns : int
        That of the local file, which shows a change.
    """

    path: str
    fd: int
    size: int
    mtime: int
    mode: int | None = None
    mtime_ns: int = 0


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
        A method of `LftpSession`, or what `sftp_operations` knows beyond those.
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
    renew : callable or None
        Returns the arguments of another attempt, where those of the last one are not to serve.
    """

    name: str
    args: tuple[Any, ...]
    done: Done
    load_bytes: int = 0
    on_bytes: Callable[[int], None] | None = None
    weight: int = 1
    renew: Callable[[], tuple[Any, ...]] | None = None
    cancelled: bool = False
    attempts: int = 0
    born: float = 0.0
    moved: int = 0
    most: int = 0  # that any attempt moved
    troubled: float = 0.0  # since when no attempt got further

    @property
    def is_small(self) -> bool:
        """Whether it takes little time, so that larger ones may wait for it."""
        return self.load_bytes <= SMALL_BYTES

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
