"""What a hostile server says costs a bounded time and a bounded memory, and ends in an error."""

from __future__ import annotations

import os

import pytest

from pyremotedata_core import (
    ConnectionLost,
    RemoteChanged,
    ServerRefused,
    TransferError,
    TransferTimeout,
    UnsafeName,
)

from .hostile_server import FILE
from .liars import helper_pid, liar
from .page import told
from .processes import most_memory_of
from .sites import WAIT_S, tree

HELPER_BYTES = 100 << 20  # the helper at work has some 30 MiB


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("garbage", ServerRefused),
        ("huge", ServerRefused),
        ("tiny", ServerRefused),
        ("wrong id", ServerRefused),
        ("wrong type", ServerRefused),
        ("unknown type", ServerRefused),
        ("twice", ServerRefused),
        ("cut", ServerRefused),
        ("banner", ServerRefused),
        ("old", ServerRefused),
        ("lying length", ServerRefused),
        ("too much", ServerRefused),
        ("giant", TransferError),
        ("long handle", ServerRefused),
        ("limits cut", ServerRefused),
        ("limits tiny", None),
        ("limits huge", None),
        ("no text", None),
        ("nothing", RemoteChanged),
        ("early end", RemoteChanged),
        ("chatter", None),
        ("short", None),
        ("mute", TransferTimeout),
        ("silent", TransferTimeout),
        pytest.param("deaf", TransferTimeout, marks=pytest.mark.full),
        pytest.param("half", (ConnectionLost, TransferTimeout), marks=pytest.mark.full),
        pytest.param("quit", (ConnectionLost, TransferTimeout), marks=pytest.mark.full),
    ],
)
def test_a_lie_is_a_clear_error_and_fills_no_memory(tmp_path, what, expected):
    ends_in_time = expected in (TransferTimeout, (ConnectionLost, TransferTimeout))
    (tmp_path / "up").write_bytes(content := os.urandom(1 << 20))
    with liar(what, timeout_s=2.0 if ends_in_time else 10.0) as (engine, base, server):
        asked = [
            engine.fetch(f"{base}/file.bin", tmp_path / "file.bin"),
            engine.stat(f"{base}/file.bin"),
            engine.scandir(base),
            engine.store(tmp_path / "up", f"{base}/up"),
            engine.remove(f"{base}/file.bin"),
            engine.fetch_tree(base, tmp_path / "tree"),
            engine.realpath(base),
        ]
        errors = [each.exception(WAIT_S) for each in asked]
        assert most_memory_of(helper_pid(engine)) < HELPER_BYTES
    assert errors[0] is None if expected is None else isinstance(errors[0], expected)
    for error in errors:
        assert error is None or isinstance(error, TransferError)
        assert "internal error" not in str(error)
        assert "\n" not in str(error)
    if errors[0] is not None:
        assert str(server.port) in str(errors[0])
    if what == "banner":
        assert "Welcome" in str(errors[0])
        told(errors[0], "the server does not speak SFTP")
    found = tree(tmp_path)
    assert ("file.bin" in found) == (expected is None)
    assert {data for data in found.values() if data is not None} <= {content, FILE}


def test_names_that_no_file_system_takes_are_refused(tmp_path):
    with liar("long names") as (engine, base, _):
        assert type(engine.scandir(base).exception(WAIT_S)) is UnsafeName
        error = engine.fetch_tree(base, tmp_path / "t").exception(WAIT_S)
        assert type(error) is UnsafeName
        assert len(str(error)) < 300
        assert most_memory_of(helper_pid(engine)) < HELPER_BYTES
    assert tree(tmp_path / "t") == {}
