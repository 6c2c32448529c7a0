"""The pipelined SFTP session: many operations in flight on one connection.

`SftpSession` speaks the protocol over a carrier (a non-blocking socket with an ssh child at its
other end). What an operation is made of stands in `sftp_operations.py`. Everything runs on the
loop's thread.
"""

from __future__ import annotations

import os
import selectors
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from ..askpass import WAITING
from ..config import ConnectionSettings
from ..errors import ConnectionLost, ServerRefused, TransferError, TransferTimeout
from ..loop import Loop, Timer
from ..throttle import Throttle
from . import wire
from .base import Operation
from .window import Transfer, Turns, Window

MAX_PACKET = 1 << 20  # no server of ours sends more; anything larger is not SFTP
BUFFER_BYTES = MAX_PACKET + (1 << 16)
CHUNK_BYTES = 255 * 1024  # OpenSSH drops the connection at a packet of 256 KiB
SAFE_CHUNK_BYTES = 32 * 1024  # what every server must take
WINDOW_REQUESTS = 256
OUT_BYTES = 2 << 20  # waiting to be written to the carrier
# File bytes of unfinished operations, of small ones and of others; more stay in the pool's queue.
ASSIGN_BYTES = 24 << 20
MAX_OPERATIONS = 192

Reply = Callable[[int, memoryview, Any], None]


class Carrier(Protocol):
    """A byte stream to an SFTP server."""

    socket: socket.socket
    stderr_fd: int

    @property
    def can_share(self) -> bool:
        """Whether further sessions may use its connection."""

    @property
    def took_code(self) -> bool:
        """Whether its login took a one-time code, so that another login needs another."""

    def explain(self, said: str, url: str, status: int | None = None) -> TransferError:
        """Return why it ended, from what it said on standard error and its exit status."""

    def kill(self) -> int | None:
        """End it; return its exit status if it had ended by itself."""


class SftpSession:
    """One SFTP connection.

    Parameters
    ----------
    loop : Loop
    carrier : Carrier
    settings : ConnectionSettings
        Already those of the server.
    url : str
        The server, for messages.
    on_open : callable
        Called once when the server has answered the greeting.
    on_lost : callable
        Called once with the error when the session ends other than by `close`. Operations in
        flight have by then failed with it.
    throttles : (Throttle, Throttle), optional
        Limits for downloads and for uploads, shared with the server's other sessions.
    """

    def __init__(
        self,
        loop: Loop,
        carrier: Carrier,
        settings: ConnectionSettings,
        url: str,
        on_open: Callable[[], None],
        on_lost: Callable[[TransferError], None],
        throttles: tuple[Throttle, Throttle] | None = None,
    ) -> None:
        self.loop = loop
        self._down = throttles[0] if throttles else None
        self._up = throttles[1] if throttles else None
        self._pause: Timer | None = None
        self.url = url
        self.settings = settings
        self.extensions: dict[str, str] = {}
        self.read_bytes = self.write_bytes = SAFE_CHUNK_BYTES
        self.may_probe = False  # ask once for more than the server is known to serve
        self.rtt_s = 0.0  # shortest answer to a question asked while nothing else was under way
        self.careful = False  # the server may run what is in flight side by side, a CLOSE, too
        self.plain_uploads = False  # it is not as is usual: bundles hand their files back
        self.opened = False
        self.alive = True
        self.last_heard = time.monotonic()
        self.load = 0
        self._loads = {True: 0, False: 0}  # bytes of small operations, and of others
        self.max_operations = 64
        self.carrier = carrier
        self._on_open = on_open
        self._on_lost = on_lost
        self._operations: set[Operation] = set()
        self._pending: dict[int, tuple[Reply, Any]] = {}
        self._next_id = 0
        self._lone_id: int | None = None
        self._out: deque[bytes | memoryview] = deque()
        self._out_bytes = 0
        self._flush_asked = False
        self._want_write = False
        self._buffer = bytearray(BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._end = 0  # of what has come and was not whole yet
        self._said = b""
        self._why_lost: str | None = None
        self.reads = Window()
        self.writes = Window()
        self._readers = Turns(self.reads)
        self._writers = Turns(self.writes)
        self._socket_fd = carrier.socket.fileno()
        loop.register(self._socket_fd, selectors.EVENT_READ, self._ready)
        loop.register(carrier.stderr_fd, selectors.EVENT_READ, self._hear_stderr)
        self._watchdog = loop.call_later(settings.timeout_s, self._watch)
        self._send(struct.pack(">IBI", 5, wire.INIT, 3))

    @property
    def load_bytes(self) -> int:
        """File bytes of unfinished operations."""
        return sum(self._loads.values())

    @property
    def can_share(self) -> bool:
        """Whether further sessions may use this one's connection.

        Not at a server that knows newer versions of the protocol, as OpenSSH's does not: ProFTPD's
        stalls now and then when it has several on one.
        """
        return self.carrier.can_share and "versions" not in self.extensions

    @property
    def took_code(self) -> bool:
        """Whether the login took a one-time code."""
        return self.carrier.took_code

    # --- what the pool uses --------------------------------------------------------------

    def has_room(self, operation: Operation) -> bool:
        """Whether it would serve an operation now rather than only queue it."""
        if not self.opened or not self.alive or self.load >= self.max_operations:
            return False
        return not operation.load_bytes or self._loads[operation.is_small] < ASSIGN_BYTES

    def submit(self, operation: Operation) -> None:
        """Begin an operation; its ``done`` is called exactly once, never from within this call."""
        from .sftp_operations import begin

        self.load += operation.weight
        self._loads[operation.is_small] += operation.load_bytes
        self._operations.add(operation)
        begin(self, operation)

    def close(self) -> None:
        """End the session; operations in flight fail with `ConnectionLost`."""
        self._end_session(ConnectionLost("the connection was closed", self.url), tell=False)

    # --- what operations use -------------------------------------------------------------

    def request(self, kind: int, body: bytes, reply: Reply, data: Any = None) -> None:
        """Send a request; ``reply(type, body, data)`` is called with the answer.

        The body of the answer is a view that is only valid during the call.
        """
        self._send(wire.head.pack(len(body) + 5, kind, self._number(reply, data)) + body)

    def request_write(
        self, body: bytes, payload: bytes | memoryview, reply: Reply, data: Any
    ) -> None:
        """Send a WRITE whose payload is not copied."""
        length = len(body) + len(payload) + 5
        self._send(wire.head.pack(length, wire.WRITE, self._number(reply, data)) + body)
        self._out.append(payload)
        self._out_bytes += len(payload)

    def _number(self, reply: Reply, data: Any) -> int:
        request_id = self._next_id
        self._next_id = (request_id + 1) & 0xFFFFFFFF
        if not self._pending:
            self.last_heard = time.monotonic()  # silence counts from the first question on
            self._lone_id = request_id
        self._pending[request_id] = (reply, data)
        return request_id

    def want_reads(self, transfer: Transfer) -> None:
        """Let a download send its requests as the window allows."""
        self._readers.append(transfer)
        self.pump()

    def want_writes(self, transfer: Transfer) -> None:
        """Let an upload send its requests as the window allows."""
        self._writers.append(transfer)
        self.pump()

    def pump(self) -> None:
        """Send requests of waiting transfers while the windows have room."""
        readers = self._readers
        while readers and not self.reads.is_full and len(self._pending) < 2 * WINDOW_REQUESTS:
            if self._must_wait(self._down):
                break
            readers.issue()
        writers = self._writers
        while writers and not self.writes.is_full and self._out_bytes < OUT_BYTES:
            if self._must_wait(self._up):
                break
            writers.issue()

    def asked_for(self, size: int) -> None:
        """Count bytes that a download has asked for."""
        self.reads.take(size)
        if self._down:
            self._down.take(size)

    def sent(self, size: int) -> None:
        """Count bytes that an upload has sent."""
        self.writes.take(size)
        if self._up:
            self._up.take(size)

    def _must_wait(self, throttle: Throttle | None) -> bool:
        if throttle is None or not (wait_s := throttle.wait_s()):
            return False
        if self._pause is None:
            self._pause = self.loop.call_later(wait_s, self._go_on)
        return True

    def _go_on(self) -> None:
        self._pause = None
        if self.alive:
            self.pump()

    def finish(self, operation: Operation, result: Any, error: TransferError | None) -> None:
        """Hand an operation's outcome to its owner."""
        if operation not in self._operations:
            return
        self._operations.discard(operation)
        self.load -= operation.weight
        self._loads[operation.is_small] -= operation.load_bytes
        operation.done(result, error)

    # --- input ----------------------------------------------------------------------------

    def _ready(self, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self.flush()
        if events & selectors.EVENT_READ and self.alive:
            self._receive()

    def _receive(self) -> None:
        view, sock = self._view, self.carrier.socket
        # One bufferful a turn: other sessions and timers want their turn too.
        for _ in range(8):
            try:
                count = sock.recv_into(view[self._end :])
            except BlockingIOError:
                break
            except OSError as error:
                self._lost(f"the connection broke ({error.strerror})")
                return
            if not count:
                self._parse()
                if self.alive:
                    self._lost("")
                return
            self._end += count
            if self._end > BUFFER_BYTES - (1 << 16):
                break
        self._before = self.last_heard
        self.last_heard = self.loop.now
        self._parse()
        if self.alive:
            self.pump()

    def _parse(self) -> None:
        buffer, view, pending = self._buffer, self._view, self._pending
        start, end = 0, self._end
        unpack = wire.head.unpack_from
        try:
            while end - start >= 9:
                length, kind, request_id = unpack(buffer, start)
                stop = start + 4 + length
                if length > MAX_PACKET or length < 5:
                    raise wire.Garbage(f"a packet of {length} bytes")
                if stop > end:
                    break
                if not self.opened:
                    if kind != wire.VERSION:
                        raise wire.Garbage(f"packet type {kind} for a greeting")
                    self._greeted(request_id, view[start + 9 : stop])
                else:
                    try:
                        reply, data = pending.pop(request_id)
                    except KeyError:
                        raise wire.Garbage(f"an answer to no question ({request_id})") from None
                    if request_id == self._lone_id:
                        self._lone_id = None
                        if length < 1024:
                            self._measure()
                    reply(kind, view[start + 9 : stop], data)
                if not self.alive:
                    return
                start = stop
        except wire.Garbage as error:
            text = bytes(view[start : min(end, start + 60)]).decode("ascii", "replace")
            hint = (
                f"; it begins {text!r}: a login script that prints something?"
                if not self.opened
                else ""
            )
            self._end_session(
                ServerRefused(f"the server does not speak SFTP: {error}{hint}", self.url)
            )
            return
        self._end = end - start
        if start:
            view[: self._end] = view[start:end]

    def _measure(self) -> None:
        taken = self.loop.now - self._before
        self.rtt_s = min(self.rtt_s, taken) if self.rtt_s else taken

    def _greeted(self, version: int, body: memoryview) -> None:
        if version < 3:
            raise wire.Garbage(f"protocol version {version}")
        self.extensions = wire.read_extensions(body)
        # Who offers none may be a few lines upon an asynchronous library, as ssh2 for Node.
        self.careful = not self.extensions
        self.opened = True
        self._hear_stderr(0)
        self._said = b""  # a greeting, warnings: not why the session ends one day
        if self.extensions.get("limits@openssh.com") == "1":
            self.request(wire.EXTENDED, wire.string(b"limits@openssh.com"), self._limited)
        else:
            self.may_probe = True
        self._on_open()

    def _limited(self, kind: int, body: memoryview, _data: Any) -> None:
        if kind != wire.EXTENDED_REPLY:
            self.may_probe = True
            return
        packet, read, write, handles = wire.read_limits(body)
        room = max(packet - 1024, SAFE_CHUNK_BYTES) if packet else CHUNK_BYTES
        # Who claims less than every server must take would have us ask a million times over.
        if read:
            self.read_bytes = max(min(read, room, CHUNK_BYTES), SAFE_CHUNK_BYTES)
        if write:
            self.write_bytes = max(min(write, room, CHUNK_BYTES), SAFE_CHUNK_BYTES)
        if handles:
            self.max_operations = max(1, min(MAX_OPERATIONS, handles // 2))

    def _hear_stderr(self, _events: int) -> None:
        try:
            data = os.read(self.carrier.stderr_fd, 4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if WAITING.encode() in data:
            self.last_heard = time.monotonic()  # a person may take longer than a server
        self._said = (self._said + data)[-8192:]
        if not data:
            self.loop.unregister(self.carrier.stderr_fd)
            if self._why_lost is not None:
                self._conclude()

    # --- output ---------------------------------------------------------------------------

    def _send(self, packet: bytes) -> None:
        self._out.append(packet)
        self._out_bytes += len(packet)
        if not self._flush_asked:
            self._flush_asked = True
            self.loop.flush_later(self)

    def flush(self) -> None:
        """Write what is queued, many packets to a system call."""
        if not self.alive:
            return
        self._flush_asked = True  # what is sent from here on leaves in this call
        out = self._out
        blocked = False
        while out and not blocked:
            batch = [out[i] for i in range(min(len(out), 128))]
            try:
                sent = self.carrier.socket.sendmsg(batch)
            except BlockingIOError:
                blocked = True
                break
            except OSError:
                # The reading side will see the end, after the child's last words.
                out.clear()
                self._out_bytes = 0
                break
            self._out_bytes -= sent
            while sent:
                size = len(out[0])
                if size > sent:
                    out[0] = memoryview(out[0])[sent:]
                    break
                sent -= size
                out.popleft()
            if self._out_bytes < OUT_BYTES and self._writers:
                self.pump()
        self._flush_asked = False
        if blocked != self._want_write:
            self._want_write = blocked
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if blocked else 0)
            self.loop.modify(self._socket_fd, events, self._ready)

    # --- the end --------------------------------------------------------------------------

    def _watch(self) -> None:
        limit = self.settings.timeout_s
        silent = time.monotonic() - self.last_heard
        if not self.opened and silent >= limit:
            self._end_session(
                TransferTimeout(
                    f"the server did not answer within {limit:g} s; check host, port and firewall",
                    self.url,
                )
            )
        elif self._pending and silent >= limit:
            self._end_session(
                TransferTimeout(f"the server has been silent for {limit:g} s", self.url)
            )
        else:
            wait = limit - silent if self._pending or not self.opened else limit
            self._watchdog = self.loop.call_later(max(0.05, wait), self._watch)

    def _lost(self, why: str) -> None:
        # The child may still be saying why; its standard error ends with it, or is held open by
        # a program that it started.
        self.loop.unregister(self._socket_fd)
        self._why_lost = why
        self._conclusion = self.loop.call_later(0.5, self._conclude)
        self._hear_stderr(0)

    def _conclude(self) -> None:
        self._conclusion.cancel()
        why = self._why_lost
        self._end_session(ConnectionLost(why, self.url) if why and not self._said.strip() else None)

    def _end_session(self, error: TransferError | None, tell: bool = True) -> None:
        """End it, with the carrier's own explanation if there is no error."""
        if not self.alive:
            return
        self.alive = False
        self._watchdog.cancel()
        self.loop.unregister(self._socket_fd)
        self.loop.unregister(self.carrier.stderr_fd)
        status = self.carrier.kill()
        if error is None:
            said = self._said.decode("utf-8", "replace")
            # Once it has served, an end is a fault that passes, whatever the status.
            error = self.carrier.explain(said, self.url, None if self.opened else status)
        self._pending.clear()
        self._out.clear()
        self._readers.clear()
        self._writers.clear()
        for operation in list(self._operations):
            self.finish(operation, None, error)
        if tell:
            self._on_lost(error)
