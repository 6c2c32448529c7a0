"""What the engine keeps on this machine for itself."""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pyremotedata_core import LocalStorageFull, TransferEngine
from pyremotedata_core.journal import COMPACT_LINES, Journal, Orphan
from pyremotedata_core.nodestate import state_directory

from .sites import WAIT_S


def test_the_directory_of_locks_and_sockets_is_closed_to_others(sshd):
    before = os.umask(0)
    try:
        with TransferEngine(sshd.settings()) as engine:
            engine.stat(sshd.url()).result(WAIT_S)
            for directory in (state_directory(), *state_directory().glob("*/")):
                assert stat.S_IMODE(directory.stat().st_mode) == 0o700, directory
    finally:
        os.umask(before)


def test_what_an_engine_notes_on_disk_holds_no_secret(miglike, tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    with TransferEngine(miglike.password_settings()) as engine:
        engine.store(tmp_path / "a", miglike.url("a")).result(WAIT_S)
        # `walk` passes over the directories that another process removes meanwhile.
        paths = [Path(at, name) for at, _, names in os.walk(state_directory()) for name in names]
        notes = [path for path in paths if path.is_file()]
        assert any(path.parent.name == "slots" for path in notes)
        assert not [path for path in notes if miglike.password.encode() in content(path)]


def content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:  # it was a note of a process that has ended
        return b""


def test_the_directory_of_a_journal_goes_with_the_last_one_and_takes_none_with_it():
    server = f"sftp://nowhere-{os.urandom(8).hex()}"

    def work(number: int) -> None:
        for turn in range(100):
            journal = Journal(server)
            temporary = f"/{number}-{turn}.part"
            journal.begin(temporary, "/final")
            assert temporary.encode() in journal._path.read_bytes()
            assert journal.holds(temporary)
            journal.end(temporary)
            journal.close()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert not Journal(server)._directory.exists()


def test_a_journal_that_is_not_empty_outlives_those_beside_it():
    server = f"sftp://nowhere-{os.urandom(8).hex()}"
    cut_off, other = Journal(server), Journal(server)
    cut_off.begin("/a.part", "/a")
    other.begin("/b.part", "/b")
    other.end("/b.part")
    cut_off.close()
    other.close()
    heir = Journal(server)
    assert heir.orphans() == [("/a.part", "/a")]
    heir.end("/a.part")
    heir.close()
    assert not heir._directory.exists()


def test_a_journal_of_the_dead_tells_only_of_what_may_be_there():
    server = f"sftp://nowhere-{os.urandom(8).hex()}"
    killed = Journal(server)
    killed.begin_all([Orphan(f"/{number}.part", f"/{number}") for number in range(100)])
    killed.end(*(f"/{number}.part" for number in range(98)))
    os.close(killed._fd)
    heir = Journal(server)
    assert sorted(heir.orphans()) == [("/98.part", "/98"), ("/99.part", "/99")]
    heir.end("/98.part", "/99.part")
    heir.close()
    assert not heir._directory.exists()


def test_a_journal_stays_small_and_tells_at_any_moment_of_what_is_there():
    journal = Journal(f"sftp://nowhere-{os.urandom(8).hex()}")
    slow = [Orphan(f"/{number}.part", f"/{number}") for number in range(1000)]
    journal.begin_all(slow)
    told, most, done = [], 0, threading.Event()

    def look() -> None:
        while not done.is_set():
            with contextlib.suppress(FileNotFoundError):  # another file has just taken its place
                text = b"".join(map(Path.read_bytes, journal._directory.iterdir()))
                told.append(all(f'"{temporary}"'.encode() in text for temporary, _ in slow))

    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(look)
        for _ in range(3 * COMPACT_LINES):
            journal.begin("/quick.part", "/quick")
            journal.end("/quick.part")
            most = max(most, journal._path.stat().st_size)
        done.set()
        looking.result()
    assert most < 50 * (COMPACT_LINES + 2 * len(slow))
    assert told
    assert all(told)
    journal.end(*(orphan.temporary for orphan in slow))
    journal.close()


def test_a_journal_on_a_full_disk_takes_no_further_upload_and_lets_the_others_end():
    journal = Journal(f"sftp://nowhere-{os.urandom(8).hex()}")
    journal.begin("/a.part", "/a")
    with open("/dev/full", "wb", buffering=0) as full:
        os.dup2(full.fileno(), journal._fd)
    journal.note("/a.part", 1)
    with pytest.raises(LocalStorageFull, match="journal"):
        journal.begin("/b.part", "/b")
    assert not journal.holds("/b.part")
    journal.end("/a.part")
    journal.close()
    assert not journal._directory.exists()
