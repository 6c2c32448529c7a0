"""The child process of `ParamikoChild`: one SSH connection, whose channels are sockets outside.

paramiko's reading thread writes what has come straight into the socket of its channel, so that
no other thread has to wake for it. The engine reads all its sockets; one that is full holds the
connection back.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import struct
import sys
import threading

import paramiko

from ..config import ConnectionSettings
from ..errors import ConnectionLost, ServerRefused, TransferError, ended_at_once
from .carrier import ERROR
from .login import Login, log_in

ACK_BYTES = 1 << 20  # come in before the server's window is widened again
SEND_BYTES = 256 << 10
STATUS_S = 1.0  # that follows on the end of what the server ran
SWITCH_S = 0.0001  # requests must not wait behind the stream of answers


class Outlet:
    """Takes the place of a channel's input buffer: passes bytes on, and counts them.

    `read` serves `paramiko.Channel.recv`, which widens the window by the length of what it gets.
    """

    def __init__(self, out: socket.socket) -> None:
        self._out = out
        self._count = 0
        self.served = False
        self._closed = False
        self._changed = threading.Condition()

    def feed(self, data: bytes) -> None:
        """Pass bytes on. A session that has gone does not disturb the others."""
        with contextlib.suppress(OSError):
            self._out.sendall(data)
        self.served = True
        with self._changed:
            self._count += len(data)
            if self._count >= ACK_BYTES:
                self._changed.notify()

    def read(self, _size: int, _timeout_s: float | None = None) -> range:
        """Wait for the next megabyte to have passed; an empty range is the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._count >= ACK_BYTES)
            passed, self._count = self._count, 0
        return range(0 if self._closed else passed)

    def close(self) -> None:
        """No more will come."""
        with self._changed:
            self._closed = True
            self._changed.notify()


def serve(transport: paramiko.Transport, inside: socket.socket) -> None:
    """Run one SFTP session between a new channel and a socket, until either ends.

    Raises
    ------
    TransferError
        If the server does not give it.
    """
    try:
        channel = transport.open_session()
    except (paramiko.SSHException, EOFError, OSError) as error:
        if isinstance(error, paramiko.ChannelException) or "Timeout" in str(error):
            raise ServerRefused(
                f"the server takes no further session now: {error}", retryable=True
            ) from None
        why = str(error) or "the server closed it"
        raise ConnectionLost(f"the connection broke: {why}") from None
    channel.in_buffer = outlet = Outlet(inside)  # type: ignore[assignment]
    try:
        channel.invoke_subsystem("sftp")
    except (paramiko.SSHException, EOFError, OSError):
        if not transport.is_active():
            raise ConnectionLost("the server closed the connection") from None
        raise ServerRefused(
            "the server offers no SFTP; ask its administrator for the sftp subsystem"
        ) from None

    def widen() -> None:
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            while channel.recv(1):
                pass
        with contextlib.suppress(OSError):
            inside.shutdown(socket.SHUT_RDWR)  # the engine sees the end

    threading.Thread(target=widen, daemon=True).start()
    with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
        while data := inside.recv(SEND_BYTES):
            channel.sendall(data)
    outlet.close()
    if not outlet.served and channel.status_event.wait(STATUS_S) and channel.exit_status >= 0:
        raise ended_at_once("", channel.exit_status)
    channel.close()


def main(control_fd: int) -> None:
    """Run as the child process."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.setswitchinterval(SWITCH_S)
    logging.getLogger("paramiko").addHandler(logging.NullHandler())
    logging.getLogger("paramiko").propagate = False
    control = socket.socket(fileno=control_fd)
    inside = socket.socket(fileno=os.dup(0))
    # What ssh_config has run (Match exec) would read what is meant for the server.
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    login = _read_request(inside)
    connected = threading.Event()
    transports: list[paramiko.Transport] = []

    def add_sessions() -> None:
        # Its end is that of the engine, also in the middle of a login.
        while (fds := _receive(control)) is not None:
            connected.wait()
            threading.Thread(target=_serve_further, args=(transports[0], fds), daemon=True).start()
        os._exit(0)

    threading.Thread(target=add_sessions, daemon=True).start()
    status = 0
    try:
        transports.append(log_in(login))
        connected.set()
        serve(transports[0], inside)
    except TransferError as error:
        _say(error, sys.stderr.fileno())
        status = 1
    except Exception as error:
        _say(ConnectionLost(f"paramiko failed: {error!r}"), sys.stderr.fileno())
        status = 1
    os._exit(status)


def _serve_further(transport: paramiko.Transport, fds: list[int]) -> None:
    inside, stderr = socket.socket(fileno=fds[0]), fds[1]
    try:
        serve(transport, inside)
    except TransferError as error:
        _say(error, stderr)
    finally:
        inside.close()
        os.close(stderr)


def _receive(control: socket.socket) -> list[int] | None:
    try:
        data, fds, _, _ = socket.recv_fds(control, 1, 2)
    except OSError:
        return None
    return fds if data and len(fds) == 2 else None


def _read_request(inside: socket.socket) -> Login:
    (length,) = struct.unpack(">I", _read_all(inside, 4))
    request = json.loads(_read_all(inside, length))
    return Login(ConnectionSettings.from_plain(request["settings"]), request["answers"])


def _read_all(inside: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        more = inside.recv(length - len(data))
        if not more:
            os._exit(0)
        data += more
    return data


def _say(error: TransferError, stderr: int) -> None:
    with contextlib.suppress(OSError):
        os.write(stderr, (ERROR + json.dumps(error.to_plain()) + "\n").encode())
