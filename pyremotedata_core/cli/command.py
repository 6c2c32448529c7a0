"""The command ``pyremotedata``.

Exit status: 0 done; 1 something failed, each failure one line on standard error; 2 usage.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from ..asker import may_ask
from ..config import ConnectionSettings
from ..engine import TransferEngine
from ..errors import ConfigurationError, NoRemoteConfigured, TransferError
from ..model import one_line
from .output import complain
from .parser import make_parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and exit."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="surrogateescape")  # names are bytes to a server
    options = make_parser().parse_args(arguments)
    try:
        status = _run(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        status = 130
    except BrokenPipeError:  # the reader of our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 128 + signal.SIGPIPE
    sys.exit(status)


def _run(options: argparse.Namespace) -> int:
    given = {
        "transport": options.transport,
        "timeout_s": options.timeout,
        "connections": options.connections,
        "ssh_config": options.ssh_config,
        "ssh_key": options.ssh_key,
        "accept_new": options.accept_new or None,
        "bandwidth": options.bandwidth,
    }
    try:
        if options.verb in ("config", "cache"):
            return options.run(options)
        try:
            return _with_engine(options, given)
        except NoRemoteConfigured:
            from ..interactive import set_up

            if not may_ask():
                raise
            set_up()
            return _with_engine(options, given)
    except ConfigurationError as error:
        complain(error)
        return 2
    except TransferError as error:
        complain(error)
        return 1
    except BrokenPipeError:
        raise
    except OSError as error:
        print(f"pyremotedata: {one_line(str(error))}", file=sys.stderr)
        return 1


def _with_engine(options: argparse.Namespace, given: dict[str, Any]) -> int:
    settings = ConnectionSettings.load(**given)
    # This process computes nothing that could starve the I/O: no helper.
    with TransferEngine(settings, in_process=True, ask=may_ask()) as engine:
        return options.run(engine, options)
