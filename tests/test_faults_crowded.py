"""Servers that take fewer sessions than the processes of a node would have, and hang up on more."""

from __future__ import annotations

import os

import pytest

from pyremotedata_core import TransferEngine

from .crowd import move_at_once
from .miglike import MigLike
from .miglike_server import WRONG_SECRETS
from .sites import WAIT_S, needs_lftp


@pytest.fixture
def crowded_factory():
    """Start servers that take so many sessions; they end with the test."""
    started = []

    def start(most_sessions: int) -> MigLike:
        started.append(MigLike(most_sessions=most_sessions).start())
        return started[-1]

    yield start
    for server in started:
        server.stop()


def logins(server: MigLike, how: str) -> int:
    return sum(line.endswith(how) for line in server.log_text().splitlines())


@pytest.mark.parametrize(
    "through",
    [
        {"carrier": "openssh"},
        pytest.param({"carrier": "paramiko"}, marks=pytest.mark.full),
        pytest.param({"transport": "lftp"}, marks=[pytest.mark.full, needs_lftp]),
    ],
    ids=str,
)
def test_one_login_too_many_waits_for_the_session_of_another_process(crowded_factory, through):
    server = crowded_factory(1)
    settings = server.password_settings(**through)
    with TransferEngine(settings) as first, TransferEngine(settings) as second:
        for engine in (first, second, first):  # each has a process of its own
            assert engine.stat(server.url()).result(WAIT_S).kind == "directory"
    assert logins(server, "accepted") == 3
    assert 0 < logins(server, "crowded") < WRONG_SECRETS


@needs_lftp
def test_one_session_too_many_waits_for_that_of_another_process_over_ftp(ftp_factory):
    server = ftp_factory(most=2)
    with TransferEngine(server.settings()) as first, TransferEngine(server.settings()) as second:
        for engine in (first, second, first):
            assert engine.stat(server.url()).result(WAIT_S).kind == "directory"


def test_processes_share_what_a_server_takes(crowded_factory, tmp_path, monkeypatch):
    processes = 6
    server = crowded_factory(2)
    server.make("a", os.urandom(200_000))
    monkeypatch.setenv("PYREMOTEDATA_SSH_CONFIG", str(server.ssh_config))
    monkeypatch.setenv("PYREMOTEDATA_SSH_KEY", str(server.key))
    move_at_once(server, tmp_path, processes, pause_s=0.3)
    assert logins(server, "locked") == 0
    assert 0 < logins(server, "crowded") < processes
