"""The command ``pyremotedata``.

Exit status: 0 done; 1 something failed, each failure one line on standard error; 2 usage. Ctrl-C
gives 130, a reader of the output that has gone 141, SIGTERM 143, as shells have it.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and exit."""
    try:
        signal.signal(signal.SIGTERM, _terminate)
        for name in ("stdout", "stderr"):
            if getattr(sys, name) is None:  # closed by the caller: to write there fails
                fd = os.open(os.devnull, os.O_RDONLY if name == "stdout" else os.O_WRONLY)
                setattr(sys, name, os.fdopen(fd, "w"))
            stream = getattr(sys, name)
            if hasattr(stream, "reconfigure"):
                # Names are bytes to a server, and go out as those, whatever the locale.
                stream.reconfigure(encoding="utf-8", errors="surrogateescape")
        from .command import run  # here: Ctrl-C while it loads is quiet, too

        try:
            status = run(arguments)
        except SystemExit as end:  # of --help, or usage
            status = end.code if isinstance(end.code, int) else 1
        sys.stdout.flush()
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
    except BrokenPipeError:  # the reader of our output has gone
        status = 128 + signal.SIGPIPE
        _forget_output()
    except OSError as error:  # a full disk
        status = 1
        with contextlib.suppress(OSError):
            print(f"pyremotedata: standard output: {error.strerror}", file=sys.stderr)
        _forget_output()
    sys.exit(status)


def program() -> None:
    """Run the command as a program of its own."""
    gc.disable()  # loading makes no garbage
    status: int | str | None = 0
    try:
        main()
    except SystemExit as end:
        status = end.code
    # To take the interpreter apart takes longer than many a transfer. What was asked for at exit
    # is done, and no thread has anything left to do.
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(status if isinstance(status, int) else 1)


def _terminate(_number: int, _frame: Any) -> None:
    raise SystemExit(128 + signal.SIGTERM)


def _forget_output() -> None:
    """Keep the interpreter from writing again, at its end, what cannot be written."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
