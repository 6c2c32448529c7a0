"""Listings of any length: in batches, in bounded memory, and with an end."""

from __future__ import annotations

import random
import shutil
import sys
import threading
from itertools import chain

import pytest

from pyremotedata_core import (
    Remote,
    RemoteFileNotFound,
    ServerRefused,
    TransferEngine,
)
from pyremotedata_core.listing import WINDOW_ENTRIES
from pyremotedata_core.spool import CHUNK_ITEMS, KEPT_ITEMS, NameSet, Spool

from .hostile_server import FILE
from .liars import helper_pid, liar
from .processes import most_memory_of
from .sites import WAIT_S, needs_lftp, tree

FULL = pytest.mark.full

# --- iterating ----------------------------------------------------------------------------------


def test_entries_come_as_scandir_has_them(site):
    for name in ("a", "b c", "ø"):
        site.make(name, name.encode())
    site.make_directory("d")
    with site.engine.iterdir(site.url()) as entries:
        assert sorted(entries) == sorted(site.engine.scandir(site.url()).result(WAIT_S))
        assert list(entries) == []


def test_a_missing_directory_and_a_file_are_the_errors_of_scandir(site):
    site.make("file")
    with pytest.raises(RemoteFileNotFound):
        next(site.engine.iterdir(site.url("none")))
    entries = site.engine.iterdir(site.url("file"))
    for _ in range(2):  # as often as it is asked
        with pytest.raises(ServerRefused, match="directory"):
            next(entries)


def test_a_remote_lists_a_file_as_itself(sshd, remote_directory):
    sshd.make(f"{remote_directory}/file", b"12345")
    with Remote(sshd.url(remote_directory), ssh_config=str(sshd.ssh_config)) as remote:
        assert [(e.name, e.stat.size) for e in remote.iterdir("file")] == [("file", 5)]
        with pytest.raises(RemoteFileNotFound):
            list(remote.iterdir("none"))


def test_no_python_runs_when_a_listing_that_has_ended_is_dropped(sshd, engine, remote_directory):
    """Ctrl-C that came to it there would be lost."""
    entries = engine.iterdir(sshd.url(remote_directory))
    assert list(entries) == []
    called = []
    sys.setprofile(lambda frame, event, _: event == "call" and called.append(frame.f_code.co_name))
    try:
        del entries
    finally:
        sys.setprofile(None)
    assert called == []


def test_what_is_closed_early_ends_and_the_engine_goes_on():
    with liar("many 1000000000", timeout_s=60.0) as (engine, base, _):
        with engine.iterdir(base) as entries:
            assert next(entries).name == f"{0:016d}"
        assert list(entries) == []
        assert next(engine.iterdir(base)).name == f"{0:016d}"  # dropped, which closes it, too
        assert engine.wait_cancelled(WAIT_S)
        assert engine.stat(f"{base}/file.bin").result(WAIT_S).size == len(FILE)


def test_a_walk_that_is_broken_off_ends_the_listing_that_it_was_in():
    with liar("many 1000000000", timeout_s=60.0) as (engine, base, _):
        walk = Remote(base, engine=engine).walk()
        next(walk)
        with pytest.raises(KeyboardInterrupt) as caught:
            walk.throw(KeyboardInterrupt)
        entries = caught.traceback[-1].frame.f_locals["entries"]  # a notebook keeps them, too
        assert next(entries, None) is None


def test_threads_share_the_entries_among_them():
    with liar("many 30000", timeout_s=30.0) as (engine, base, _):
        entries = engine.iterdir(base)
        shares: list[list[str]] = [[], [], []]

        def take(share: list[str]) -> None:
            share.extend(entry.name for entry in entries)

        threads = [threading.Thread(target=take, args=(share,)) for share in shares]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
    assert sorted(chain(*shares)) == [f"{number:016d}" for number in range(30000)]


def test_who_waits_when_another_thread_closes_finds_the_end():
    with liar("slow", timeout_s=30.0) as (engine, base, _):
        entries = engine.iterdir(base)
        found: list[int] = []
        thread = threading.Thread(target=lambda: found.append(len(list(entries))))
        thread.start()
        next(entries, None)
        entries.close()
        thread.join(WAIT_S)
        assert not thread.is_alive()
        assert found


def test_a_slow_reader_gets_all_and_the_listing_does_not_wait_for_it():
    total = 4 * WINDOW_ENTRIES
    with liar(f"many {total}", timeout_s=30.0) as (engine, base, server):
        entries = engine.iterdir(base)
        first = next(entries)
        assert len(engine.scandir(base).result(WAIT_S)) == total  # so the first has ended, too
        server.kill_sessions()
        rest = [entry.name for entry in entries]
    assert [first.name, *rest] == [f"{number:016d}" for number in range(total)]


@pytest.mark.parametrize(
    "way",
    [
        "walk",
        "sync down",
        *(pytest.param(way, marks=FULL) for way in ("glob", "sync up", "remove")),
    ],
)
def test_many_directories_are_listed_at_once(sshd_factory, relay_factory, tmp_path, way):
    server = sshd_factory(log_requests=True)
    for number in range(80):
        server.make(f"top/{number}/file", b"x")
    relay = relay_factory(server.port, one_way_ms=25)
    top = relay.url(server.url("top"))
    shutil.copytree(server.root / "top", tmp_path / "top")
    with Remote(top, ssh_config=str(server.ssh_config)) as remote:
        if way == "walk":
            assert sum(stat.kind == "file" for _, stat in remote.walk()) == 80
        elif way == "glob":
            assert len(list(remote.glob("*/*"))) == 80
        elif way == "remove":
            remote.rm(top, recursive=True)
        else:
            remote.sync("", tmp_path / "top", direction=way.split()[1])
    assert server.most_open("opendir") > 32


# --- without end --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "count", [100_000, pytest.param(1_000_000, marks=[FULL, pytest.mark.timeout(300)])]
)
def test_memory_stays_small_while_many_entries_stream_by(tmp_path, count):
    with liar(f"many {count}", timeout_s=60.0) as (engine, base, _):
        assert engine.stat(f"{base}/file.bin").result(WAIT_S)
        before = most_memory_of(helper_pid(engine))
        with engine.iterdir(base) as entries:
            assert sum(1 for _ in entries) == count
        for delete in (False, True):
            work = engine.fetch_tree(base, tmp_path / "t", exclude=["0*"], delete=delete)
            assert work.result(4 * WAIT_S).files == 0
        up = engine.store_tree(tmp_path / "t", base, compare=True, exclude=["*"])
        assert up.result(4 * WAIT_S).files == 0
        assert most_memory_of(helper_pid(engine)) - before < (20 << 20) + 60 * count


def test_memory_stays_small_while_many_directories_wait_for_their_reader():
    count = 8000
    with liar(f"many {count}", timeout_s=60.0) as (engine, base, _):
        assert engine.stat(f"{base}/file.bin").result(WAIT_S)
        before = most_memory_of(helper_pid(engine))
        listings = [engine.iterdir(base) for _ in range(32)]
        assert sum(1 for _ in listings[-1]) == count  # by then the others have come, too
        assert most_memory_of(helper_pid(engine)) - before < 30 << 20
        for entries in listings:
            entries.close()


def test_a_listing_that_repeats_itself_ends_and_names_the_directory(monkeypatch, tmp_path):
    from pyremotedata_core.transports import base as limits

    monkeypatch.setattr(limits.check_listing, "__defaults__", (5000,))
    with liar("the same", in_process=True, timeout_s=60.0) as (engine, base, _):
        entries = engine.iterdir(base)
        assert [next(entries).name, next(entries).name] == ["a.bin", "b.bin"]
        with pytest.raises(ServerRefused, match=r"/lies: the listing has no end"):
            next(entries)
        error = engine.fetch_tree(base, tmp_path / "t").exception(WAIT_S)
        assert type(error) is ServerRefused
        for data in tree(tmp_path / "t").values():
            assert data == FILE
        error = engine.remove(base, recursive=True).exception(WAIT_S)
        assert error is not None


def test_a_listing_that_trickles_ends(monkeypatch):
    monkeypatch.setattr("pyremotedata_core.transports.base.LISTING_TIMEOUTS", 0.5)
    with liar("slow", in_process=True, timeout_s=4.0) as (engine, base, _):
        error = engine.scandir(base).exception(WAIT_S)
        assert type(error) is ServerRefused
        assert "/lies: the listing did not end within 2 s" in str(error)


def test_a_list_has_a_limit_and_names_the_way_without(monkeypatch):
    monkeypatch.setattr("pyremotedata_core.engine.MAX_LISTED", 1500)
    with liar("many 3000", timeout_s=30.0) as (engine, base, _):
        error = engine.scandir(base).exception(WAIT_S)
        assert type(error) is ServerRefused
        assert "use iterdir" in str(error)
        assert sum(1 for _ in engine.iterdir(base)) == 3000


def test_an_absurd_size_is_the_error_of_that_file_alone(tmp_path):
    with liar("", "a.bin", "giant.bin", "b.bin") as (engine, base, _):
        sizes = {e.name: e.stat.size for e in engine.scandir(base).result(WAIT_S)}
        assert sizes == {"a.bin": len(FILE), "giant.bin": 2**63 + 5, "b.bin": len(FILE)}
        result = engine.fetch_tree(base, tmp_path / "t").result(WAIT_S)
    assert tree(tmp_path / "t") == {"a.bin": FILE, "b.bin": FILE}
    (failure,) = result.failed
    assert failure["class"] == "ServerRefused"
    assert failure["url"].endswith("/lies/giant.bin")
    assert "cannot have 9223372036854775813 bytes" in failure["message"]


def test_a_name_listed_twice_is_one_file(tmp_path):
    with liar("", "a.bin", "b.bin", "a.bin") as (engine, base, _):
        assert [e.name for e in engine.scandir(base).result(WAIT_S)] == ["a.bin", "b.bin"]
        result = engine.fetch_tree(base, tmp_path / "t").result(WAIT_S)
    assert (result.files, result.failed) == (2, [])
    assert tree(tmp_path / "t") == {"a.bin": FILE, "b.bin": FILE}


@needs_lftp
def test_lftp_ends_a_listing_without_end(monkeypatch):
    monkeypatch.setattr("pyremotedata_core.transports.lftp_site.LFTP_ENTRIES", 5000)
    settings = {"transport": "lftp", "timeout_s": 60.0}
    with liar("many 1000000000", in_process=True, **settings) as (engine, base, _):
        error = engine.scandir(base).exception(WAIT_S)
        assert type(error) is ServerRefused
        assert "more than 5000 entries" in str(error)


# --- a connection lost on the way ------------------------------------------------------------


def test_a_listing_goes_on_after_a_lost_connection_and_names_nothing_twice(
    sshd_factory, relay_factory
):
    server = sshd_factory()
    names = {f"file-{number:05d}-{'x' * 60}" for number in range(3000)}
    server.make_directory("d")
    for name in names:
        (server.root / "d" / name).touch()
    relay = relay_factory(server.port)
    with TransferEngine(server.settings(timeout_s=30.0)) as engine:
        url = relay.url(server.url("d"))
        engine.stat(url).result(WAIT_S)
        relay.drop_after(200_000)
        found = [entry.name for entry in engine.iterdir(url)]
    assert len(found) == len(names)
    assert set(found) == names


# --- what they are made of -------------------------------------------------------------------


def test_a_spool_gives_back_what_it_took_from_either_end():
    spool, there, number = Spool(), [], 0
    order = random.Random(5)
    for share in (0.9, 0.2, 0.8, 0.1):
        for _ in range(6 * KEPT_ITEMS):
            if order.random() < share:
                spool.append((number, "ø\udcff"))
                there.append((number, "ø\udcff"))
                number += 1
            elif there:
                first = order.random() < 0.5
                assert (spool.popleft() if first else spool.pop()) == there.pop(0 if first else -1)
            assert len(spool) == len(there)
    assert number > 3 * KEPT_ITEMS
    assert CHUNK_ITEMS < KEPT_ITEMS
    while there:
        assert spool.popleft() == there.pop(0)
    assert not spool


def test_a_set_of_names_knows_them():
    names = NameSet()
    assert [names.add(f"n{number % 3000}") for number in range(6000)] == [True] * 3000 + [
        False
    ] * 3000
    assert "n7" in names
    assert "n3000" not in names
