"""What a hostile server says costs a bounded time and a bounded memory, and ends in an error."""

from __future__ import annotations

import os

import pytest

from pyremotedata_core import ServerRefused, TransferError, UnsafeName

from .hostile_server import FILE
from .liars import helper_pid, liar
from .processes import most_memory_of
from .sites import WAIT_S, tree

HELPER_BYTES = 100 << 20  # the helper at work has some 30 MiB


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("garbage", ServerRefused),
        ("huge", ServerRefused),
        ("wrong id", ServerRefused),
        ("cut", ServerRefused),
        ("lying length", ServerRefused),
        ("too much", ServerRefused),
        ("giant", TransferError),
        ("long handle", ServerRefused),
        ("limits cut", ServerRefused),
        ("limits tiny", None),
        ("limits huge", None),
        ("no text", None),
    ],
)
def test_a_lie_is_a_clear_error_and_fills_no_memory(tmp_path, what, expected):
    (tmp_path / "up").write_bytes(os.urandom(1 << 20))
    with liar(what, timeout_s=10.0) as (engine, base, _):
        asked = [
            engine.fetch(f"{base}/file.bin", tmp_path / "file.bin"),
            engine.stat(f"{base}/file.bin"),
            engine.scandir(base),
            engine.store(tmp_path / "up", f"{base}/up"),
            engine.remove(f"{base}/file.bin"),
        ]
        errors = [each.exception(WAIT_S) for each in asked]
        assert most_memory_of(helper_pid(engine)) < HELPER_BYTES
    assert errors[0] is None if expected is None else isinstance(errors[0], expected)
    for error in errors:
        assert error is None or isinstance(error, TransferError)
        assert "internal error" not in str(error)
        assert "\n" not in str(error)
    found = tree(tmp_path)
    assert found.pop("up")
    assert found == ({} if errors[0] else {"file.bin": FILE})


def test_names_that_no_file_system_takes_are_refused(tmp_path):
    with liar("long names") as (engine, base, _):
        assert type(engine.scandir(base).exception(WAIT_S)) is UnsafeName
        error = engine.fetch_tree(base, tmp_path / "t").exception(WAIT_S)
        assert type(error) is UnsafeName
        assert len(str(error)) < 300
        assert most_memory_of(helper_pid(engine)) < HELPER_BYTES
    assert tree(tmp_path / "t") == {}
