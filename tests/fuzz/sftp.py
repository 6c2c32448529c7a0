"""The SFTP session, with operations in flight, fed by a server that says anything.

A script begins with a byte for the pieces in which the bytes arrive; then come steps, each a byte
and what it needs:

- ``BYTES``: a piece, sent as it is;
- ``ANSWER``: a type, which of the open questions it answers, a piece for its body;
- ``LONG``: the same with so many KiB of zeros after the body;
- ``ASK``: which operation is begun;
- ``WORDS``: a piece that ssh says on its standard error.

In the end the connection ends.
"""

from __future__ import annotations

import functools
import os
import socket
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

from pyremotedata_core.config import ConnectionSettings
from pyremotedata_core.errors import TransferError, from_ssh_stderr
from pyremotedata_core.loop import Loop
from pyremotedata_core.model import Stat
from pyremotedata_core.transports import wire
from pyremotedata_core.transports.base import Operation, Source
from pyremotedata_core.transports.sftp import OUT_BYTES, WINDOW_REQUESTS, SftpSession
from pyremotedata_core.transports.sftp_bundle import SmallFile, SmallUpload
from pyremotedata_core.transports.sftp_operations import begin  # noqa: F401 - late, otherwise

from .script import Script, once

BYTES, ANSWER, LONG, ASK, WORDS = range(5)
TYPES = [101, 102, 103, 104, 105, 201, 2]
SIZE = 96 << 10  # of the remote file, as it is known: three of the smallest reads
KEPT = Stat("file", SIZE, 1_600_000_000, 0o644)
SMALL = Stat("file", 5, 1_600_000_000, 0o644)
OUT_LIMIT = OUT_BYTES + (1 << 20)
PENDING_LIMIT = 4 * WINDOW_REQUESTS
URL = "sftp://host"


def run(data: bytes) -> None:
    """Play a script."""
    script = Script(data)
    theatre = Theatre(1 + script.byte() * 64)
    try:
        while script and theatre.session.alive:
            step = script.byte() % 5
            if step == BYTES:
                theatre.say(script.piece())
            elif step in (ANSWER, LONG):
                kind, number, body = script.choose(TYPES), script.byte(), script.piece()
                zeros = script.byte() * 1024 if step == LONG else 0
                theatre.answer(kind, number, body + bytes(zeros))
            elif step == ASK:
                theatre.ask(script.byte())
            else:
                theatre.carrier.words(script.piece())
                theatre.turn()
        theatre.end()
    finally:
        theatre.close()


class Carrier:
    """A socket pair and a pipe, in place of an ssh child."""

    can_share = took_code = False

    def __init__(self) -> None:
        self.socket, self.server = socket.socketpair()
        self.stderr_fd, self._stderr = os.pipe()
        for end in (self.socket, self.server):
            end.setblocking(False)
        os.set_blocking(self.stderr_fd, False)
        os.set_blocking(self._stderr, False)

    def explain(self, said: str, url: str, status: int | None = None) -> TransferError:
        return from_ssh_stderr(said, url, status)

    def kill(self) -> int | None:
        return None

    def words(self, data: bytes) -> None:
        os.write(self._stderr, data[:4096])

    def end_words(self) -> None:
        if self._stderr >= 0:
            os.close(self._stderr)
            self._stderr = -1

    def close(self) -> None:
        self.end_words()
        self.socket.close()
        self.server.close()
        os.close(self.stderr_fd)


class Theatre:
    """A session on a loop that turns when it is told to, and the server's end of its connection."""

    def __init__(self, chunk_bytes: int, root: str = "/d") -> None:
        self.chunk_bytes = chunk_bytes
        self.root = root
        self.loop = Loop()
        self.carrier = Carrier()
        self.asked: list[str] = []
        self.told: list[str] = []
        self.session = SftpSession(
            self.loop,
            self.carrier,
            ConnectionSettings(timeout_s=1e6),
            URL,
            once(self.told, "open"),
            once(self.told, "lost"),
        )
        self.turn()

    def turn(self) -> None:
        """Let the session do what there is to do."""
        for _ in range(3):
            self.loop.call_soon(_nothing)  # so that it does not wait
            self.loop._turn()
            self._hear()
        session = self.session
        assert session._out_bytes <= OUT_LIMIT, f"{session._out_bytes} bytes wait to be sent"
        assert len(session._pending) <= PENDING_LIMIT, f"{len(session._pending)} questions"

    def say(self, data: bytes) -> None:
        """Send bytes to the session, in pieces."""
        view = memoryview(data)
        while view and self.session.alive:
            try:
                sent = self.carrier.server.send(view[: max(self.chunk_bytes, len(data) // 8)])
            except BlockingIOError:
                sent = 0
            view = view[sent:]
            self.turn()
        self.turn()

    def answer(self, kind: int, number: int, body: bytes) -> None:
        """Answer one of the open questions, the oldest ones first; greet when there is none."""
        pending = self.session._pending
        request_id = list(pending)[number % len(pending)] if pending else 3
        self.say(wire.head.pack(5 + len(body), kind, request_id) + body)

    def ask(self, number: int) -> None:
        """Begin an operation, if the session takes one."""
        if not self.session.opened or len(self.asked) > 40 or not self.session.alive:
            return
        name, arguments = OPERATIONS[number % len(OPERATIONS)]
        label = f"{len(self.asked)} {name}"
        sink = _Kept()
        tell = once(self.told, label)

        def done(_result: Any, error: TransferError | None) -> None:
            tell()
            if error is not None:
                assert isinstance(error, TransferError)
                assert "\n" not in str(error), "an error of several lines"
            if name == "read" and error is None:
                assert sink.whole(), "a download ended well with bytes that never came"

        self.asked.append(label)
        operation = Operation(
            name,
            arguments(Props(sink, _source(), self.root)),
            done,
            load_bytes=9 * (name in ("read", "write")),
        )
        operation.attempts = number >> 7
        self.session.submit(operation)
        assert label not in self.told, "an outcome was told from within the call"
        self.turn()

    def end(self) -> None:
        """End the connection; everything must have an outcome then."""
        self.carrier.end_words()
        self.carrier.server.close()
        for _ in range(20):
            if not self.session.alive:
                break
            self.loop.call_soon(_nothing)
            self.loop._turn()
        assert not self.session.alive, "the session outlives its connection"
        self.loop.drain()
        assert set(self.asked) <= set(self.told), "an operation has no outcome"
        assert "lost" in self.told, "nobody is told that the session has ended"

    def close(self) -> None:
        self.carrier.close()
        self.loop._selector.close()
        os.close(self.loop._wake_in)
        os.close(self.loop._wake_out)

    def _hear(self) -> None:
        try:
            while self.carrier.server.recv(1 << 20):
                pass
        except OSError:
            return


class _Kept:
    """What a download has brought, by where it begins."""

    is_file = False
    path = final = "memory"
    fd = -1

    def __init__(self) -> None:
        self.pieces: dict[int, int] = {}  # sizes by where they begin

    def write(self, data: memoryview, offset: int) -> None:
        end = offset + len(data)
        assert 0 <= offset <= end <= SIZE, "bytes from outside of the file"
        for there, size in self.pieces.items():
            assert end <= there or offset >= there + size, "bytes that came before"
        if data:
            self.pieces[offset] = len(data)

    def whole(self) -> bool:
        return sum(self.pieces.values()) == SIZE


@functools.cache
def _source() -> Source:
    with tempfile.TemporaryFile() as file:
        file.write(bytes(range(250)) * 200)
        file.flush()
        info = os.fstat(file.fileno())
        fd = os.dup(file.fileno())
    return Source("local", fd, info.st_size, int(info.st_mtime), 0o644, info.st_mtime_ns)


def _nothing(*_: object) -> None:
    """What is called only so that something is."""


class Props(NamedTuple):
    """What the arguments of operations are made of."""

    sink: _Kept
    source: Source
    root: str

    @property
    def file(self) -> str:
        return f"{self.root}/a"

    @property
    def temporary(self) -> str:
        return f"{self.root}/.pyremotedata-0123abcd-00ff.part"


def _bundle(props: Props) -> tuple[Any, ...]:
    files = [SmallFile(f"{props.root}/{name}", SMALL, _Kept()) for name in "bcd"]
    return files, lambda file, _error: files.remove(file)


class _Small(NamedTuple):
    """What a small upload reads."""

    size: int = 300
    mtime: int = 1_000_000_000
    mode: int | None = 0o644

    def read(self) -> bytes:
        return bytes(self.size)


def _uploads(props: Props) -> tuple[Any, ...]:
    names = [(f"{props.root}/{name}", f"{props.root}/.pyremotedata-{name}.part") for name in "bcd"]
    files = [SmallUpload(_Small(), *both) for both in names]
    return files, lambda file, _error: files.remove(file)


OPERATIONS: list[tuple[str, Callable[[Props], tuple[Any, ...]]]] = [
    ("stat", lambda p: (p.file, True)),
    ("scandir", lambda p: (p.root, _nothing)),
    ("read", lambda p: (p.file, p.sink, 0, SIZE, KEPT)),
    ("write", lambda p: (p.file, p.source, True, p.temporary)),
    ("write", lambda p: (p.file, p.source, False, p.temporary)),
    ("write_part", lambda p: (p.temporary, p.source, 0, p.source.size)),
    ("read_bundle", _bundle),
    ("realpath", lambda _: ("/~/x",)),
    ("mkdir", lambda p: (f"{p.root}/new",)),
    ("remove", lambda p: (p.file,)),
    ("rmdir", lambda p: (p.root,)),
    ("rename", lambda p: (p.file, f"{p.root}/b")),
    ("touch", lambda p: (p.file, KEPT.mtime)),
    ("clear_orphan", lambda p: (p.temporary, p.file)),
    ("info", lambda p: (p.file,)),
    ("create", lambda p: (p.temporary, p.file, True, 1 << 20)),
    ("publish", lambda p: (p.temporary, p.file, p.source, True)),
    ("copy", lambda p: (p.file, p.temporary, f"{p.root}/new", True)),
    ("write_bundle", _uploads),
]
