"""What processes of one node share: slots of sessions, and their files."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
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
    ssh,
)
from pyremotedata_core.jobs import SEGMENT_BYTES
from pyremotedata_core.nodestate import LIMIT_S, PAUSE_S, SWEEP_S, SessionSlots

from .sites import WAIT_S


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


@pytest.fixture
def age(state):
    """Let time pass since the server was seen to refuse a session."""

    def age(seconds):
        (note,) = state.glob("slots/*.limit")
        os.utime(note, (time.time() - seconds,) * 2)

    return age


def log_in(slots, server_takes_it=True):
    """Take a slot, and open a session in it; return the slot, None when the server refuses."""
    slot = slots.acquire()
    assert slot is not None
    if server_takes_it:
        slots.opened(slot)
        return slot
    slots.refused()
    os.close(slot)
    return None


def test_what_a_server_takes_bounds_all_processes_for_a_while(age):
    first, second, third = (SessionSlots("sftp://a", 4) for _ in range(3))
    slots = [log_in(first), log_in(second)]
    log_in(third, server_takes_it=False)
    assert third.limit == first.limit == 2
    age(PAUSE_S)
    assert third.acquire() is first.acquire() is None
    os.close(slots.pop())
    slots.append(log_in(third))
    age(LIMIT_S)
    log_in(second, server_takes_it=False)  # one more is tried
    assert second.limit == 2
    age(LIMIT_S)
    slots.append(log_in(second))
    assert first.limit == 3
    age(2 * LIMIT_S)
    assert first.limit == SessionSlots("sftp://a", 9).limit - 1 == 4
    assert SessionSlots("sftp://b", 4).limit == 4


def test_what_a_server_took_long_ago_is_forgotten(age):
    processes = [SessionSlots("sftp://a", 4) for _ in range(4)]
    first = log_in(processes[0])
    log_in(processes[1], server_takes_it=False)
    age(4 * LIMIT_S)
    slots = [first, *map(log_in, processes[1:])]
    assert None not in slots


def test_sessions_of_processes_with_other_settings_are_counted():
    many, one = SessionSlots("sftp://a", 4), SessionSlots("sftp://a", 1)
    first, *others = [log_in(many) for _ in range(4)]
    os.close(first)
    assert one.acquire() is not None
    assert one.refused()
    assert many.limit == len(others)


def test_a_refusal_where_no_other_session_is_bounds_nothing():
    slots = SessionSlots("sftp://a", 2)
    slot = slots.acquire()
    assert not slots.refused()
    assert slots.limit == 2
    assert slots.acquire() is not None
    assert slots.refused()
    os.close(slot)


def test_sessions_that_begin_together_show_how_many_the_server_takes():
    processes = [SessionSlots("sftp://a", 4) for _ in range(4)]
    slots = [process.acquire() for process in processes]
    assert processes[3].refused()
    os.close(slots[3])
    assert SessionSlots("sftp://a", 4).acquire() is None  # as long as it is not known
    for process, slot in zip(processes[:2], slots, strict=False):
        process.opened(slot)
    assert processes[2].refused()
    os.close(slots[2])
    assert processes[3].limit == 2


def test_nobody_logs_in_or_makes_way_soon_after_a_refusal(age):
    first, second = SessionSlots("sftp://a", 4), SessionSlots("sftp://a", 4)
    held = log_in(first)

    def refuse(pause_s):
        log_in(second, server_takes_it=False)
        second.wait()
        age(pause_s - 1)
        assert not first.others_wait()
        assert second.acquire() is None
        age(pause_s)
        assert first.others_wait()
        age(LIMIT_S)

    refuse(PAUSE_S)
    refuse(2 * PAUSE_S)
    refuse(4 * PAUSE_S)
    os.close(log_in(second))
    refuse(PAUSE_S)
    os.close(held)


HOLD = """\
import sys
from pathlib import Path
from pyremotedata_core import nodestate
nodestate.state_directory = lambda: Path(sys.argv[1])
slots = nodestate.SessionSlots("sftp://a", 4)
slot = slots.acquire()
slots.opened(slot)
print(flush=True)
sys.stdin.read()
"""


def test_the_session_of_a_process_that_was_killed_is_not_counted(state, age):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(state)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        holder.stdout.readline()
        slots = SessionSlots("sftp://a", 4)
        log_in(slots, server_takes_it=False)
        assert slots.limit == 1
        age(PAUSE_S)
        assert slots.acquire() is None
        holder.kill()
        holder.wait(30)
        log_in(slots)


def test_the_session_that_ended_last_may_still_count_at_the_server(age):
    first, second = SessionSlots("sftp://a", 4), SessionSlots("sftp://a", 4)
    held = log_in(first)
    log_in(second, server_takes_it=False)
    age(PAUSE_S)
    os.close(held)
    os.close(log_in(second))
    slot = first.acquire()
    assert first.refused()
    age(PAUSE_S)
    assert not first.refused()  # it is not that
    os.close(slot)


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


def test_the_socket_of_a_connection_is_left_alone_until_ssh_listens_there(state, monkeypatch):
    (state / "mux").mkdir(mode=0o700)
    monkeypatch.chdir(state / "mux")  # whose path may be too long for a socket
    with socket.socket(socket.AF_UNIX) as left, socket.socket(socket.AF_UNIX) as bound:
        left.bind("left")
        bound.bind("new.Ab3d")
    ssh._control_path()
    assert os.listdir() == ["new.Ab3d"]
    grow_old("new.Ab3d")
    ssh._control_path()
    assert os.listdir() == []
