"""A program at a terminal, and somebody who answers its questions."""

from __future__ import annotations

import os
import pty
import select
import time

TIMEOUT_S = 60


def talk(
    argv: list[str],
    environment: dict[str, str],
    answers: list[tuple[str, str]],
    think_s: float = 0.0,
) -> str:
    """Run a program on a terminal; give each answer once its question has appeared."""
    pid, fd = pty.fork()
    if pid == 0:
        os.execvpe(argv[0], argv, environment)
    said, waiting, seen = "", list(answers), 0
    deadline = time.monotonic() + TIMEOUT_S
    try:
        while time.monotonic() < deadline:
            if waiting and waiting[0][0] in said[seen:]:
                seen = len(said)
                time.sleep(think_s)
                os.write(fd, waiting.pop(0)[1].encode() + b"\n")
            if select.select([fd], [], [], 0.2)[0]:
                try:
                    data = os.read(fd, 4096)
                except OSError:
                    break
                if not data:
                    break
                said += data.decode(errors="replace")
    finally:
        os.close(fd)
        _, status = os.waitpid(pid, 0)
    assert not waiting, f"never asked {waiting[0][0]!r}:\n{said}"
    return f"{said}\nexit {os.waitstatus_to_exitcode(status)}"
