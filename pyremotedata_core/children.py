"""Child processes: the environment that they get, sockets to talk with them, and their end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from typing import Any

BUFFER_BYTES = 1 << 20  # of a socket; beyond it the server has to wait


def plain_environment() -> dict[str, str]:
    """Return this process's environment without our variables, some of which are secrets."""
    return {k: v for k, v in os.environ.items() if not k.startswith("PYREMOTEDATA_")}


def wide_socketpair() -> tuple[socket.socket, socket.socket]:
    """Return two connected sockets with room for much at once."""
    ends = socket.socketpair()
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
    return ends


def kill_group(process: subprocess.Popen[Any]) -> None:
    """Kill a process that leads a group, with all that is in it; no error if it has gone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def reap(process: subprocess.Popen[Any], timeout_s: float = 1.0) -> None:
    """Wait for a killed process; in an uninterruptible call, Popen does it later."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout_s)
