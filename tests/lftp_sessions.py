"""What the tests of the lftp session share: sessions, transfers, processes to look for."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pyremotedata_core import RemoteURL, Stat, TransferError
from pyremotedata_core.local import LocalSource
from pyremotedata_core.names import temporary_name
from pyremotedata_core.part import Part
from pyremotedata_core.transports.lftp import LftpSession
from workflows.embedded_sshd import descendants

from .processes import command_of

_sessions: list[LftpSession] = []


@pytest.fixture
def ending() -> Iterator[None]:
    """End with the test what sessions it makes."""
    yield
    end_sessions()


@pytest.fixture
def session(sshd, ending) -> LftpSession:
    return connected(sshd)


def end_sessions() -> None:
    """Kill every session that was made here."""
    while _sessions:
        _sessions.pop().kill()


def connected(server, **more) -> LftpSession:
    """Log in to a server."""
    session = through(server, server.port, **more)
    session.connect()
    return session


def relayed(server, relay, **more) -> LftpSession:
    """Log in through a relay."""
    session = through(server, relay.port, **more)
    session.connect()
    return session


def through(server, port: int, /, **more) -> LftpSession:
    """Return a session to a server by this port, not connected yet."""
    url = RemoteURL.parse(f"sftp://{server.user}@127.0.0.1:{port}/")
    session = LftpSession(url, server.settings(**{"timeout_s": 20.0, **more}).for_url(url))
    _sessions.append(session)
    return session


def fetch(session: LftpSession, remote, local, expect: Stat | None = None, on_bytes=None) -> Stat:
    """Download as the engine does: into a temporary file that is published."""
    expect = expect or session.stat(str(remote))
    part = Part(str(local))
    try:
        session.read(str(remote), part, 0, expect.size, expect, on_bytes or (lambda _: None))
        part.publish(expect, fsync=False)
    finally:
        part.discard()
    return expect


def store(session: LftpSession, local, remote, overwrite=True, on_bytes=None) -> Stat:
    source = LocalSource(str(local))
    temporary = os.path.join(os.path.dirname(remote), temporary_name())
    try:
        return session.write(
            str(remote), source, overwrite, temporary, on_bytes or (lambda _: None)
        )
    finally:
        source.close()


def listed(session: LftpSession, path) -> dict[str, Stat]:
    return {entry.name: entry.stat for batch in session.scandir(str(path)) for entry in batch}


def children(*programs: str) -> list[int]:
    """Return the processes of lftp and ssh below this one, or of one of them."""
    return [
        pid
        for pid in descendants(os.getpid())
        if os.path.basename(command_of(pid).partition(" ")[0]) in (programs or ("lftp", "ssh"))
    ]


@contextmanager
def in_background(function, *args):
    """Run a call in a thread; the caller gets what came of it from ``outcome``."""
    outcome: list = []

    def run() -> None:
        try:
            outcome.append(function(*args))
        except TransferError as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield outcome
    finally:
        thread.join(60)
        assert not thread.is_alive()
