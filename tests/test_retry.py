"""What is tried again, and what is told at once."""

from __future__ import annotations

import pytest

from pyremotedata_core import (
    AuthenticationFailed,
    ConnectionLost,
    HostKeyRejected,
    RemoteChanged,
    RemoteFileNotFound,
    ServerRefused,
    TransferTimeout,
)
from pyremotedata_core.errors import ENDED_LOGIN, IN_LOGIN
from pyremotedata_core.retry import (
    FIRST_REFUSALS_S,
    LOGINS_BROKEN_OFF,
    MAX_ATTEMPTS,
    MIN_ATTEMPTS,
    may_be_one_too_many,
    pause_s,
    worth_reopening,
    worth_retrying,
)
from pyremotedata_core.transports.base import Operation

TIMEOUT_S = 30.0
NOW = 1000.0


def retried(error, *, heard=NOW, **state):
    operation = Operation("read", (), lambda *_: None, born=NOW - 500)
    for name, value in state.items():
        setattr(operation, name, value)
    return worth_retrying(operation, error, now=NOW, heard=heard, timeout_s=TIMEOUT_S)


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (ConnectionLost("broke"), True),
        (TransferTimeout("silent"), True),
        (ServerRefused("busy", retryable=True), True),
        (ServerRefused("no"), False),
        (ConnectionLost("closed", retryable=False), False),
        (RemoteFileNotFound("none"), False),
        (RemoteChanged("other"), False),
    ],
)
def test_only_what_may_end_otherwise_is_tried_again(error, again):
    assert retried(error) is again


def test_an_operation_that_gets_no_further_ends():
    lost = ConnectionLost("broke")
    assert retried(lost, attempts=MAX_ATTEMPTS - 1, troubled=NOW)
    assert not retried(lost, attempts=MAX_ATTEMPTS, troubled=NOW)
    assert not retried(lost, attempts=MIN_ATTEMPTS, troubled=NOW - TIMEOUT_S - 1)
    assert retried(lost, attempts=MIN_ATTEMPTS - 1, troubled=NOW - TIMEOUT_S - 1)


def test_an_operation_that_gets_further_goes_on_however_often_it_breaks():
    lost = ConnectionLost("broke")
    assert retried(lost, attempts=100, troubled=NOW - 900, moved=2, most=1)


def test_a_server_that_stays_silent_ends_the_attempts():
    assert not retried(ConnectionLost("broke"), heard=NOW - TIMEOUT_S)
    assert retried(ConnectionLost("broke"), heard=NOW - TIMEOUT_S, born=NOW - 1)


@pytest.mark.parametrize(
    ("error", "ever_opened", "troubled_s", "again"),
    [
        (ConnectionLost("connection refused"), False, 0.0, False),
        (ConnectionLost("connection refused"), True, 0.0, True),
        (ConnectionLost("connection refused"), True, TIMEOUT_S, False),
        (ConnectionLost("the server closed the connection"), False, 1.0, True),
        (ConnectionLost("the server closed the connection"), False, FIRST_REFUSALS_S, False),
        (ConnectionLost(f"{IN_LOGIN}; wait"), False, 1.0, False),
        (ConnectionLost(f"{IN_LOGIN}; wait"), True, 1.0, True),
        (ServerRefused("no session now", retryable=True), False, 1.0, True),
        (AuthenticationFailed("wrong"), True, 0.0, False),
        (HostKeyRejected("other key"), True, 0.0, False),
    ],
)
def test_a_login_is_tried_again_where_patience_may_help(error, ever_opened, troubled_s, again):
    decision = worth_reopening(
        error,
        ever_opened=ever_opened,
        failures=LOGINS_BROKEN_OFF,
        troubled_s=troubled_s,
        timeout_s=TIMEOUT_S,
    )
    assert decision is again


@pytest.mark.parametrize(
    ("error", "may_be"),
    [
        (ConnectionLost(f"{IN_LOGIN}; wait"), True),
        (AuthenticationFailed(f"{ENDED_LOGIN}: wait"), True),  # by paramiko
        (ServerRefused("no session now: 421 Too many", retryable=True), True),
        (ServerRefused("no session now: Exceeded MaxStartups", retryable=True), False),
        (ServerRefused("no SFTP"), False),
        (ConnectionLost("the server closed the connection"), False),
        (AuthenticationFailed("wrong"), False),
    ],
)
def test_a_login_that_may_be_one_too_many_is_known_by_its_error(error, may_be):
    assert may_be_one_too_many(error) is may_be


def test_pauses_grow_up_to_a_bound():
    assert all(0.05 <= pause_s(0) <= 0.1 for _ in range(20))
    assert all(2.5 <= pause_s(1000) <= 5.0 for _ in range(20))
    assert all(pause_s(1000, 0.2) <= 0.2 for _ in range(20))
