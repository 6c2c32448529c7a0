"""Servers that lie, disks that are full: an error in time, and no broken file."""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import wait

import pytest

from pyremotedata_core import (
    LocalStorageFull,
    RemotePermissionDenied,
    ServerRefused,
    TransferEngine,
    TransferError,
    UnsafeName,
)

from .hostile_server import FILE
from .liars import liar
from .page import told
from .servers import ScriptedSshd
from .sites import WAIT_S, temporaries, tree
from .waiting import wait_until


def test_a_listing_that_promises_too_many_names_is_refused():
    with liar("too many names") as (engine, base, _):
        assert type(engine.scandir(base).exception(WAIT_S)) is ServerRefused


@pytest.mark.parametrize(
    "name", ["../x", "..", "a/b", "/etc/x", "a\0b", "", "../../../../tmp/evil", "."]
)
def test_a_name_that_leaves_its_directory_is_refused(tmp_path, name):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    with liar("", "good.bin", name) as (engine, base, _):
        if name in (".", ".."):  # every server lists these two
            names = [entry.name for entry in engine.scandir(base).result(WAIT_S)]
            assert names == ["good.bin"]
            return
        assert type(engine.scandir(base).exception(WAIT_S)) is UnsafeName
        error = engine.fetch_tree(base, tmp_path / "in" / "deep").exception(WAIT_S)
        assert type(error) is UnsafeName
        told(error, "the server lists a name that leaves")
        error = engine.remove(base, recursive=True).exception(WAIT_S)
        assert type(error) is UnsafeName
    assert tree(tmp_path) == {"in": None, "in/deep": None}


def test_a_name_that_looks_like_a_temporary_one_of_ours_is_not_fetched(tmp_path):
    ours = ".pyremotedata-0123abcd-00ff.part"
    with liar("", "good.bin", ours) as (engine, base, _):
        engine.fetch_tree(base, tmp_path / "t").result(WAIT_S)
    assert tree(tmp_path / "t") == {"good.bin": FILE}


def test_a_server_that_reads_short_is_read_to_the_end(tmp_path):
    """Requests answered by less than they asked for, in files of one and of many segments."""
    data = os.urandom(9 * 2**20 + 7)
    with (
        ScriptedSshd("relay", {"read_bytes": 10_000}) as server,
        TransferEngine(server.settings()) as engine,
    ):
        server.make("large", data)
        server.make("small", data[:25_000])
        for name in ("large", "small"):
            engine.fetch(server.url(name), tmp_path / name).result(WAIT_S)
    assert tree(tmp_path) == {"large": data, "small": data[:25_000]}


# --- servers that do less, or otherwise, than OpenSSH's -------------------------------------


@pytest.mark.parametrize("extensions", [False, True])
def test_a_file_is_closed_when_all_of_it_is_read(tmp_path, extensions):
    """A read that is done after the close may be of the file that was opened next."""
    sizes = {"large": 9 * 2**20, **{f"{number}": 40_000 + number for number in range(20)}}
    with ScriptedSshd("relay", {"tardy": ["read"], "extensions": extensions}) as server:
        for name, size in sizes.items():
            server.make(f"t/{name}", os.urandom(size))
        with TransferEngine(server.settings()) as engine:
            assert engine.fetch_tree(server.url("t"), tmp_path / "t").result(WAIT_S).failed == []
            engine.fetch(server.url("t/0"), tmp_path / "alone").result(WAIT_S)
        assert tree(tmp_path / "t") == tree(server.root / "t")
        assert (tmp_path / "alone").read_bytes() == (server.root / "t/0").read_bytes()


def test_a_file_is_closed_and_dated_when_all_of_it_is_written(tmp_path):
    here = tmp_path / "t"
    here.mkdir()
    sizes = {"large": 9 * 2**20, **{f"{number}": 40_000 + number for number in range(20)}}
    for name, size in sizes.items():
        (here / name).write_bytes(os.urandom(size))
        os.utime(here / name, (1_000_000_000, 1_000_000_000))
    with ScriptedSshd("relay", {"tardy": ["write"], "extensions": False}) as server:
        with TransferEngine(server.settings()) as engine:
            assert engine.store_tree(here, server.url("t")).result(WAIT_S).failed == []
        assert tree(server.root / "t") == tree(here)
        times = {path.stat().st_mtime for path in (server.root / "t").iterdir()}
        assert times == {1_000_000_000}


def test_a_file_is_made_as_most_clients_make_it(tmp_path):
    """Some servers know the usual combinations of flags, and no others."""
    sizes = {"small": 10, "large": 9 * 2**20}
    with ScriptedSshd("relay", {"refuse": ["create untruncated"]}) as server:
        with TransferEngine(server.settings()) as engine:
            for name, size in sizes.items():
                (tmp_path / name).write_bytes(os.urandom(size))
                engine.store(tmp_path / name, server.url(f"t/{name}")).result(WAIT_S)
        assert tree(server.root / "t") == tree(tmp_path)


@pytest.mark.parametrize("refusal", [3, 4])  # denied, failure
@pytest.mark.parametrize("verify", [False, True])
def test_where_no_file_can_be_continued_it_goes_in_one_piece(tmp_path, refusal, verify):
    """As to an object store, whose files are written from their beginning to their end."""
    here = tmp_path / "t"
    here.mkdir()
    for name, size in (("small", 10), ("large", 9 * 2**20), ("larger", 17 * 2**20)):
        (here / name).write_bytes(os.urandom(size))
    with ScriptedSshd("relay", {"refuse": ["continue"], "refusal": refusal}) as server:
        with TransferEngine(server.settings()) as engine:
            for name in ("small", "large", "larger", "large"):
                url = server.url(f"t/{name}")
                engine.store(here / name, url, verify=verify).result(WAIT_S)
        assert tree(server.root / "t") == tree(here)


def test_a_file_of_one_byte_does_not_show_whether_a_server_takes_parts(tmp_path):
    """It is one part; and where it is refused, it goes in one piece as any other."""
    (tmp_path / "small").write_bytes(b"1")
    (tmp_path / "large").write_bytes(os.urandom(9 * 2**20))
    with ScriptedSshd("relay", {"refuse": ["write elsewhere"], "refusal": 4}) as server:
        with TransferEngine(server.settings()) as engine:
            for name in ("small", "large"):
                url = server.url(f"t/{name}")
                engine.store(tmp_path / name, url, verify=True).result(WAIT_S)
        assert tree(server.root / "t") == tree(tmp_path)


def test_what_went_in_one_piece_is_compared_before_it_has_its_name(tmp_path):
    (tmp_path / "a").write_bytes(os.urandom(10_000))
    options = {"refuse": ["continue"], "spoil": "write", "mark": str(tmp_path / "mark")}
    with ScriptedSshd("relay", options) as server:
        place = server.make("t/a", b"old").parent
        with TransferEngine(server.settings()) as engine:
            url = server.url("t/a")
            error = engine.store(tmp_path / "a", url, verify=True).exception(WAIT_S)
            assert type(error) is ServerRefused
            told(error, "what the server holds is not what was sent")
            assert tree(place) == {"a": b"old"}
            engine.store(tmp_path / "a", url, verify=True).result(WAIT_S)
        assert tree(place) == {"a": (tmp_path / "a").read_bytes()}


def test_what_goes_in_one_piece_into_its_place_is_not_removed_there(tmp_path, relay_factory):
    """The beginning that was to go on goes first, be it removed by another session."""
    (tmp_path / "a").write_bytes(os.urandom(10_000))
    options = {"refuse": ["continue"], "hold": "remove", "mark": str(tmp_path / "mark")}
    with ScriptedSshd("relay", options) as server:
        server.make("many", bytes(30 * 2**20))
        place = server.make_directory("t")
        relay = relay_factory(server.port, one_way_ms=20)
        with TransferEngine(server.settings(publish="direct")) as engine:
            engine.fetch(relay.url(server.url("many")), tmp_path / "many").result(WAIT_S)
            assert len(server.session_pids()) > 1
            store = engine.store(tmp_path / "a", relay.url(server.url("t/a")), verify=True)
            wait_until((tmp_path / "mark0").exists, "the file is to be removed")
            wait([store], 1.0)  # while it is held, nothing else should come to pass
            (tmp_path / "mark0").write_bytes(b"")
            store.result(WAIT_S)
            wait_until((tmp_path / "mark0.done").exists, "it was removed")
        assert tree(place) == {"a": (tmp_path / "a").read_bytes()}


# --- full disks -----------------------------------------------------------------------------


def test_a_file_that_does_not_fit_is_refused(sshd, remote_directory, small_disk):
    sshd.make(f"{remote_directory}/a", bytes(20 * 2**20))
    (small_disk / "a").write_bytes(b"old")
    with TransferEngine(sshd.settings()) as engine:
        error = engine.fetch(sshd.url(f"{remote_directory}/a"), small_disk / "a").exception(WAIT_S)
    assert type(error) is LocalStorageFull
    told(error, "has … free; free some space")
    assert str(small_disk) in str(error)
    assert tree(small_disk) == {"a": b"old"}


def test_a_disk_that_fills_up_holds_whole_files_only(sshd, remote_directory, small_disk):
    """Each of them fits, all of them do not."""
    names = [f"{number}" for number in range(8)]
    data = {name: os.urandom(3 * 2**20) for name in names}
    for name in names:
        sshd.make(f"{remote_directory}/{name}", data[name])
    with TransferEngine(sshd.settings()) as engine:
        urls = {name: sshd.url(f"{remote_directory}/{name}") for name in names}
        futures = {name: engine.fetch(urls[name], small_disk / name) for name in names}
        errors = {name: future.exception(WAIT_S) for name, future in futures.items()}
        full = [name for name, error in errors.items() if error]
        assert len(full) >= 6
        assert {type(errors[name]) for name in full} == {LocalStorageFull}
        assert tree(small_disk) == {name: data[name] for name in names if name not in full}

        with open(small_disk / "filler", "wb") as file:
            file.truncate(0)
            os.posix_fallocate(file.fileno(), 0, os.statvfs(small_disk).f_bavail * 4096)
        sshd.make(f"{remote_directory}/small", b"1")
        small = engine.fetch(sshd.url(f"{remote_directory}/small"), small_disk / "small")
        told(small.exception(WAIT_S), "cannot write …: …; free some space")
        (sshd.root / remote_directory / "small").unlink()

        for path in small_disk.iterdir():
            path.unlink()
        result = engine.fetch_tree(sshd.url(remote_directory), small_disk)
        assert type(result.exception(WAIT_S)) is LocalStorageFull
        assert all(tree(small_disk)[name] == data[name] for name in os.listdir(small_disk))

        for path in small_disk.iterdir():
            path.unlink()
        engine.fetch(urls["0"], small_disk / "0").result(WAIT_S)
    assert tree(small_disk) == {"0": data["0"]}


@pytest.mark.parametrize("size", [6 * 2**20, 20 * 2**20])
def test_a_full_remote_disk_is_told_and_nothing_remains(sshd, small_disk, tmp_path, size):
    (small_disk / "taken").write_bytes(bytes(4 * 2**20))
    (small_disk / "a").write_bytes(b"old")
    (tmp_path / "a").write_bytes(os.urandom(size))
    base = f"sftp://{sshd.user}@127.0.0.1:{sshd.port}{small_disk}"
    with TransferEngine(sshd.settings()) as engine:
        error = engine.store(tmp_path / "a", f"{base}/a").exception(WAIT_S)
        assert type(error) is ServerRefused
        assert "full" in str(error)
        fits = size < 8 * 2**20  # else it is asked for before it begins
        told(error, "the server cannot write" if fits else "the server's disk is full")
        assert not error.retryable
        assert temporaries(small_disk) == []
        assert (small_disk / "a").read_bytes() == b"old"
        (small_disk / "taken").unlink()
        (tmp_path / "b").write_bytes(b"fits")
        engine.store(tmp_path / "b", f"{base}/a").result(WAIT_S)
    assert tree(small_disk) == {"a": b"fits"}


def test_after_a_full_disk_files_go_in_parts_as_before(sshd_factory, small_disk, tmp_path):
    """It refuses the first part, and does not say why."""
    server = sshd_factory(log_requests=True, sftp_arguments="-P statvfs")
    filler = small_disk / "filler"
    with open(filler, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, os.statvfs(small_disk).f_bavail * 4096)
    (tmp_path / "a").write_bytes(os.urandom(100_000))
    url = f"sftp://{server.user}@127.0.0.1:{server.port}{small_disk}/a"
    with TransferEngine(server.settings()) as engine:
        error = engine.store(tmp_path / "a", url, verify=True).exception(WAIT_S)
        told(error, "the server cannot write")
        assert tree(small_disk).keys() == {"filler"}
        filler.unlink()
        opened = server.requests("open")
        engine.store(tmp_path / "a", url, verify=True).result(WAIT_S)
        assert server.requests("open") == opened + 4  # made, tried, written, read again
    assert tree(small_disk) == {"a": (tmp_path / "a").read_bytes()}


def test_a_remote_disk_that_takes_no_further_file_is_told(sshd, small_disk, tmp_path):
    (small_disk / "taken").touch()
    subprocess.run(["mount", "-o", "remount,nr_inodes=2", str(small_disk)], check=True)
    (tmp_path / "a").write_bytes(b"1")
    base = f"sftp://{sshd.user}@127.0.0.1:{sshd.port}{small_disk}"
    with TransferEngine(sshd.settings()) as engine:
        error = engine.store(tmp_path / "a", f"{base}/a").exception(WAIT_S)
        told(error, "the server cannot make the file")
        (small_disk / "taken").unlink()
        engine.store(tmp_path / "a", f"{base}/a").result(WAIT_S)
    assert tree(small_disk) == {"a": b"1"}


@pytest.mark.parametrize("size", [1, 17 * 2**20])
def test_what_a_server_let_nobody_remove_goes_with_the_next_run(tmp_path, size):
    (tmp_path / "a").write_bytes(bytes(size))
    with ScriptedSshd("relay", {"refuse": ["rename", "remove"]}) as server:
        place = server.make_directory("t")
        with TransferEngine(server.settings()) as engine:
            error = engine.store(tmp_path / "a", server.url("t/a")).exception(WAIT_S)
            assert isinstance(error, RemotePermissionDenied)
            assert error.url == server.url("t/a")
        assert temporaries(place)
        server.refuse()
        with TransferEngine(server.settings()) as engine:
            engine.store(tmp_path / "a", server.url("t/a")).result(WAIT_S)
        assert tree(place) == {"a": bytes(size)}


@pytest.mark.parametrize("size", [1, 17 * 2**20])
def test_a_file_that_a_server_does_not_close_is_told_and_leaves_nothing(tmp_path, size):
    """As one whose disk or quota is full may do."""
    (tmp_path / "a").write_bytes(bytes(size))
    with ScriptedSshd("relay", {"refuse": ["close"]}) as server:
        place = server.make_directory("t")
        with TransferEngine(server.settings()) as engine:
            error = engine.store(tmp_path / "a", server.url("t/a")).exception(WAIT_S)
        assert isinstance(error, RemotePermissionDenied)
        assert tree(place) == {}


@pytest.mark.parametrize("refusal", [3, 4, 8])  # denied, failure, not supported
def test_where_no_time_can_be_set_files_arrive_all_the_same(tmp_path, refusal):
    here = tmp_path / "t"
    here.mkdir()
    for name, size in (("a", 10), ("b", 20), ("large", 300_000)):
        (here / name).write_bytes(os.urandom(size))
    with ScriptedSshd("relay", {"refuse": ["setstat"], "refusal": refusal}) as server:
        with TransferEngine(server.settings()) as engine:
            assert engine.store_tree(here, server.url("t")).result(WAIT_S).failed == []
        assert tree(server.root / "t") == tree(here)


def test_an_empty_file_for_a_disk_that_takes_none_is_told(sshd, remote_directory, small_disk):
    """With ``verify`` it is made only to be compared."""
    sshd.make(f"{remote_directory}/empty", b"")
    url = sshd.url(f"{remote_directory}/empty")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with TransferEngine(sshd.settings()) as engine:
        for verify in (False, True):
            error = engine.fetch(url, small_disk / "a", verify=verify).exception(WAIT_S)
            assert str(error) == f"{small_disk / 'a'}: Read-only file system"


# --- local files that are not what they were --------------------------------------------------


@pytest.mark.parametrize(
    ("size", "verify"),
    [
        pytest.param(0, False, marks=pytest.mark.full),
        pytest.param(0, True, marks=pytest.mark.full),
        (300_000, False),
    ],
)
@pytest.mark.parametrize("becomes", ["nothing", "a pipe", "a directory"])
def test_a_file_that_is_none_any_more_when_it_is_sent_fails_alone(
    sshd_factory, relay_factory, tmp_path, size, verify, becomes
):
    path = tmp_path / "a"
    path.write_bytes(bytes(size))
    (tmp_path / "b").write_bytes(b"b")
    server = sshd_factory()
    relay = relay_factory(server.port, one_way_ms=150)
    with TransferEngine(server.settings()) as engine:
        engine.stat(relay.url(server.url())).result(WAIT_S)
        future = engine.store(path, relay.url(server.url("a")), verify=verify)
        other = engine.store(tmp_path / "b", relay.url(server.url("b")))
        # It is open at the server, whose answer is still on its way.
        wait_until(lambda: len(temporaries(server.root)) == 2)
        path.unlink()
        if becomes == "a pipe":
            os.mkfifo(path)
        elif becomes == "a directory":
            path.mkdir()
        error = future.exception(WAIT_S)
        assert type(error) is TransferError
        assert str(error).startswith(f"{path}: ")
        other.result(WAIT_S)
    assert tree(server.root) == {"b": b"b"}
