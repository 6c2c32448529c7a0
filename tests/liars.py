"""Servers that lie (`hostile_server`), and engines that talk to them."""

from __future__ import annotations

import contextlib

from pyremotedata_core import TransferEngine

from .servers import ScriptedSshd

TIMEOUT_S = 2.0


@contextlib.contextmanager
def liar(what: str, *names: str, in_process: bool = False, **settings):
    """A server that lies as ``what`` says, and an engine that talks to it."""
    with (
        ScriptedSshd("lie", what, names) as server,
        TransferEngine(
            server.settings(**{"timeout_s": TIMEOUT_S, **settings}), in_process=in_process
        ) as engine,
    ):
        base = f"sftp://{server.user}@127.0.0.1:{server.port}/lies"
        yield engine, base, server


def helper_pid(engine: TransferEngine) -> int:
    assert engine._link is not None
    assert engine._link._process is not None
    return engine._link._process.pid
