"""Processes, as /proc shows them (Linux)."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

from workflows.embedded_sshd import descendants


def command_of(pid: int) -> str:
    """Return the command line of a process, empty when it has ended."""
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return ""
    return raw.replace(b"\0", b" ").decode(errors="replace").strip()


def state_of(pid: int) -> str:
    """Return the letter for what a process does (``Z``: it is a zombie), empty when it has gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def alive(pids: Iterable[int]) -> list[int]:
    """Return which of these processes run; zombies do not."""
    return [pid for pid in pids if state_of(pid) not in ("", "Z")]


def most_memory_of(pid: int) -> int:
    """Return the most bytes of memory that a process has had."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")


def below(word: str) -> list[int]:
    """Return the processes below this one that have a word in their command line."""
    return [pid for pid in descendants(os.getpid()) if word in command_of(pid)]


def commands() -> list[str]:
    """Return the command lines of all processes."""
    return [command_of(int(name)) for name in os.listdir("/proc") if name.isdigit()]


def processes_with(mark: str) -> list[int]:
    """Return the processes that were started with ``NAME=value`` in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark.encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


def kill(process: subprocess.Popen, everything: bool) -> None:
    """Kill a process, and at once all that it has started if ``everything`` is to go."""
    for pid in (process.pid, *(descendants(process.pid) if everything else ())):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 9)
    process.wait(20)
