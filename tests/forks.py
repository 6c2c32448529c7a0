"""Work in a forked child."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

WAIT_S = 120


def in_a_fork(work: Callable[[], object]) -> str:
    """Run in a forked child; return "" or what went wrong."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(WAIT_S)
        try:
            work()
        except BaseException as error:
            os.write(writing, repr(error).encode()[:4000])
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        said = file.read().decode()
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        said += f" killed by {signal.Signals(os.WTERMSIG(status)).name}"
    return said
