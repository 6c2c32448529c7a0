"""The engine's side of a connection by paramiko: a child process, and channels on its connection.

The cipher works in the child, beside the engine and not in its way. Its standard input is the
socket of the first session; the sockets of further ones follow over a control socket.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

from ..children import kill_group, plain_environment, reap, wide_socketpair
from ..config import ConnectionSettings
from ..errors import ConfigurationError, ConnectionLost, TransferError, from_plain
from ..ssh import login_environment, took_code

ERROR = "pyremotedata-error: "  # before what the child says of why it ends

_CHILD = """\
import sys
sys.path[:0] = sys.argv[2:]
from pyremotedata_core.pyssh.child import main
main(int(sys.argv[1]))
"""


class ParamikoChild:
    """An SFTP channel of a child process that speaks SSH; its face is that of `SshChild`.

    Attributes
    ----------
    socket : socket.socket
        This side of the channel, non-blocking.
    stderr_fd : int
        Reading end of what is said about it, non-blocking.

    Parameters
    ----------
    settings : ConnectionSettings
    shared : ParamikoChild, optional
        Use the connection of this child, which saves the login.
    """

    def __init__(self, settings: ConnectionSettings, shared: ParamikoChild | None = None) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._login = ""
        self.socket, theirs = wide_socketpair()
        self.stderr_fd, their_stderr = os.pipe()
        try:
            if shared is None:
                self._start(settings, theirs, their_stderr)
            else:
                shared._pass_on(theirs, their_stderr)
        except BaseException:
            self.socket.close()
            os.close(self.stderr_fd)
            raise
        finally:
            theirs.close()
            os.close(their_stderr)
        os.set_blocking(self.stderr_fd, False)
        self.socket.setblocking(False)

    @property
    def can_share(self) -> bool:
        """Whether further sessions may be channels of this one's connection."""
        return self._process is not None and self._process.poll() is None

    @property
    def took_code(self) -> bool:
        """Whether its login took a one-time code."""
        return bool(self._login) and took_code(self._login)

    def explain(self, said: str, url: str, status: int | None = None) -> TransferError:
        """Return why it ended, from what it said on standard error."""
        for line in said.splitlines():
            # A ProxyCommand may have begun the line.
            _, found, plain = line.partition(ERROR)
            if found:
                error = from_plain(json.loads(plain))
                return type(error)(error.message, url, error.retryable)
        if said.strip():
            return ConnectionLost(f"paramiko ended: {said.strip().splitlines()[-1]}", url)
        if status is None or status == 0:
            return ConnectionLost("the server closed the connection", url)
        return ConnectionLost(f"paramiko ended without a word (exit status {status})", url)

    def kill(self) -> int | None:
        """End the channel, with the process if it is its first; return its exit status if any."""
        self.socket.close()
        with contextlib.suppress(OSError):
            os.close(self.stderr_fd)
        process = self._process
        if process is None:
            return None
        assert self._control is not None
        self._control.close()
        status = process.poll()
        kill_group(process)
        reap(process)
        return status

    def _start(self, settings: ConnectionSettings, theirs: socket.socket, stderr: int) -> None:
        if not settings.host:
            raise ConfigurationError("no host to connect to")
        if not sys.executable:
            raise ConfigurationError("the paramiko carrier needs a Python program to run")
        answers = login_environment(settings)
        self._login = answers["PYREMOTEDATA_LOGIN"]
        request = json.dumps({"settings": settings.to_plain(), "answers": answers}).encode()
        # Ahead of the session's own bytes; secrets travel nowhere else.
        self.socket.sendall(struct.pack(">I", len(request)) + request)
        home = str(Path(__file__).absolute().parents[2])
        self._control, control = socket.socketpair()
        self._control.settimeout(1.0)
        with control:
            argv = [sys.executable, "-I", "-S", "-c", _CHILD, str(control.fileno()), home]
            self._process = subprocess.Popen(
                argv + [entry for entry in sys.path if entry],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                pass_fds=[control.fileno()],
                env=plain_environment(),
                start_new_session=True,
            )

    def _pass_on(self, theirs: socket.socket, stderr: int) -> None:
        if self._control is None or not self.can_share:
            raise ConnectionLost("the connection to be shared has ended")
        socket.send_fds(self._control, [b"+"], [theirs.fileno(), stderr])
