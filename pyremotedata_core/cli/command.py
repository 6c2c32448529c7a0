"""One run of the command: parse, connect, act; the exit status."""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable, Sequence
from contextlib import suppress
from errno import ENOENT
from importlib import import_module

from ..carriers import begin_login
from ..config import ConnectionSettings
from ..errors import ConfigurationError, NoRemoteConfigured, TransferError, from_oserror
from ..url import RemoteURL, looks_like_url
from . import completing
from .parser import make_parser


def run(arguments: Sequence[str] | None) -> int:
    """Do what a command line asks for; return the exit status."""
    parser = make_parser()
    if completing.is_asked():
        completing.answer(parser)
    options = parser.parse_args(arguments)
    try:
        if not options.connects:
            return _function(options)(options)
        try:
            return _with_engine(options)
        except NoRemoteConfigured:
            from ..asker import may_ask
            from ..interactive import set_up

            if not may_ask():
                raise
            set_up()
            return _with_engine(options)
    except ConfigurationError as error:
        _complain(error)
        return 2
    except TransferError as error:
        _complain(error)
        return 1
    except BrokenPipeError:
        raise
    except OSError as error:
        nameless = "the current directory" if error.errno == ENOENT else "standard output"
        _complain(from_oserror(error, error.filename or nameless))
        return 1


def _with_engine(options: argparse.Namespace) -> int:
    from ..asker import may_ask

    settings = ConnectionSettings.load(
        transport=options.transport,
        timeout_s=options.timeout,
        connections=options.connections,
        ssh_config=options.ssh_config,
        ssh_key=options.ssh_key,
        accept_new=options.accept_new or None,
        bandwidth=options.bandwidth,
    )
    ask = may_ask()
    if options.verb != "doctor":  # which looks at the steps of a login
        with suppress(TransferError, OSError):  # the verb will meet it, too
            begin_login(settings, _first_url(options) or settings.root(), ask=ask)
    from ..engine import TransferEngine  # while the login goes on

    gc.enable()

    # This process computes nothing that could starve the I/O: no helper.
    with TransferEngine(settings, in_process=True, ask=ask, keep=True) as engine:
        return _function(options)(engine, options)


def _first_url(options: argparse.Namespace) -> RemoteURL | None:
    """Return the first URL of a command line."""
    for value in vars(options).values():
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and looks_like_url(text):
                return RemoteURL.parse(text)
    return None


def _function(options: argparse.Namespace) -> Callable[..., int]:
    module, _, name = options.run.partition(".")
    return getattr(import_module(f".{module}", __package__), name)


def _complain(error: TransferError) -> None:
    from .output import complain

    complain(error)
