"""What processes of one node share: slots of sessions, and their files."""

from __future__ import annotations

import contextlib
import os
import threading
import time

import pytest

from pyremotedata_core import (
    ConfigurationError,
    Stat,
    TransferEngine,
    TransferError,
    journal,
    nodestate,
)
from pyremotedata_core.jobs import SEGMENT_BYTES
from pyremotedata_core.nodestate import SWEEP_S, SessionSlots


@pytest.fixture(autouse=True)
def state(monkeypatch, tmp_path):
    tmp_path.chmod(0o700)
    monkeypatch.setattr(nodestate, "state_directory", lambda: tmp_path)
    return tmp_path


def grow_old(*paths):
    long_ago = time.time() - 2 * SWEEP_S
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            os.utime(path, (long_ago, long_ago))


WAIT_S = 30.0


def test_no_more_slots_are_given_than_there_are():
    first, second = SessionSlots("sftp://a", 2), SessionSlots("sftp://a", 2)
    held = [first.acquire(), second.acquire()]
    assert None not in held
    assert first.acquire() is None
    os.close(held.pop())
    assert first.acquire() is not None


def test_a_reserved_slot_goes_to_who_asks_next_in_this_process():
    first, second = SessionSlots("sftp://a", 1), SessionSlots("sftp://a", 1)
    assert first.reserve()
    assert second.acquire() is not None
    assert second.acquire() is None


def test_lock_files_of_servers_long_gone_are_swept_and_held_ones_stay(state):
    gone, held = SessionSlots("sftp://gone", 2), SessionSlots("sftp://held", 2)
    os.close(gone.acquire())
    slot = held.acquire()
    slots = state / "slots"
    assert len(list(slots.glob("*.0"))) == 2
    grow_old(*slots.iterdir())
    SessionSlots("sftp://new", 2)
    (left,) = slots.glob("*.0")
    assert os.fstat(slot).st_ino == left.stat().st_ino
    grow_old(left)
    os.close(slot)
    SessionSlots("sftp://new", 2)  # once a day is enough
    assert left.exists()


def test_a_lock_on_a_file_that_was_swept_meanwhile_is_no_lock(state):
    """Whoever has opened the file before it goes must not hold a slot that nobody else sees."""
    stop = threading.Event()

    def sweep():
        while not stop.is_set():
            for path in (state / "slots").glob("*.0"):
                grow_old(path)
            nodestate._sweep(state / "slots")
            (state / "slots" / "swept").unlink(missing_ok=True)

    mine, other = SessionSlots("sftp://a", 1), SessionSlots("sftp://a", 1)
    sweeper = threading.Thread(target=sweep)
    sweeper.start()
    try:
        for _ in range(300):
            slot = mine.acquire()
            if slot is None:
                continue  # the sweeper looked at it
            assert other.acquire() is None
            assert os.fstat(slot).st_nlink == 1
            os.close(slot)
    finally:
        stop.set()
        sweeper.join()


def test_a_node_that_has_no_place_for_slots_is_a_clear_error(sshd, state, monkeypatch):
    (state / "file").touch()
    monkeypatch.setattr(nodestate, "state_directory", lambda: state / "file")
    large = Stat("file", 2 * SEGMENT_BYTES, 1)
    with TransferEngine(sshd.settings(), in_process=True) as engine:
        for future in (
            engine.stat(sshd.url()),
            engine.fetch(sshd.url("large"), state / "large", expect=large),
        ):
            with pytest.raises(TransferError, match=r"^the session slots of this node"):
                future.result(WAIT_S)


def test_an_upload_that_cannot_be_noted_fails_and_nothing_else_does(sshd, state, monkeypatch):
    monkeypatch.setattr(journal, "state_directory", lambda: state)
    (state / "uploads").touch()
    sshd.make("noted/a", b"a")
    with TransferEngine(sshd.settings(), in_process=True) as engine:
        with pytest.raises(ConfigurationError, match="uploads"):
            engine.store(state / "uploads", sshd.url("noted/b")).result(WAIT_S)
        with pytest.raises(ConfigurationError, match="uploads"):
            engine.copy(sshd.url("noted/a"), sshd.url("noted/c")).result(WAIT_S)
        assert [entry.name for entry in engine.scandir(sshd.url("noted")).result(WAIT_S)] == ["a"]
