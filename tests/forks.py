"""Work in a forked child."""

from __future__ import annotations

import os
from collections.abc import Callable


def in_a_fork(work: Callable[[], object]) -> str:
    """Run in a forked child; return "" or what went wrong."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException as error:
            os.write(writing, repr(error).encode()[:4000])
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        said = file.read().decode()
    os.waitpid(pid, 0)
    return said
