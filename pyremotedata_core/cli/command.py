"""One run of the command: parse, connect, act; the exit status."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..asker import may_ask
from ..config import ConnectionSettings
from ..engine import TransferEngine
from ..errors import ConfigurationError, NoRemoteConfigured, TransferError, from_oserror
from . import completing
from .output import complain
from .parser import make_parser


def run(arguments: Sequence[str] | None) -> int:
    """Do what a command line asks for; return the exit status."""
    parser = make_parser()
    if completing.is_asked():
        completing.answer(parser)
    options = parser.parse_args(arguments)
    try:
        if not options.connects:
            return options.run(options)
        try:
            return _with_engine(options)
        except NoRemoteConfigured:
            from ..interactive import set_up

            if not may_ask():
                raise
            set_up()
            return _with_engine(options)
    except ConfigurationError as error:
        complain(error)
        return 2
    except TransferError as error:
        complain(error)
        return 1
    except BrokenPipeError:
        raise
    except OSError as error:
        complain(from_oserror(error))
        return 1


def _with_engine(options: argparse.Namespace) -> int:
    settings = ConnectionSettings.load(
        transport=options.transport,
        timeout_s=options.timeout,
        connections=options.connections,
        ssh_config=options.ssh_config,
        ssh_key=options.ssh_key,
        accept_new=options.accept_new or None,
        bandwidth=options.bandwidth,
    )
    # This process computes nothing that could starve the I/O: no helper.
    with TransferEngine(settings, in_process=True, ask=may_ask(), keep=True) as engine:
        return options.run(engine, options)
