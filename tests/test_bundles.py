"""The small files of a tree move many at a time, and keep every promise that a single one has."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from pyremotedata_core import Remote, RemotePermissionDenied, TransferEngine

from .servers import ScriptedSshd
from .sites import WAIT_S, temporaries, tree
from .waiting import wait_until


@pytest.fixture
def small(tmp_path) -> tuple[Path, dict[str, bytes | None]]:
    """A local directory of small files, and what is in it."""
    here = tmp_path / "t"
    (here / "sub").mkdir(parents=True)
    for number in range(60):
        path = here / ("sub" if number % 3 else "") / f"{number:02}"
        path.write_bytes(os.urandom(number * 1500))
        os.utime(path, (1_000_000_000 + number, 1_000_000_000 + number))
    return here, tree(here)


def test_an_upload_of_a_small_file_takes_six_requests(sshd_factory, small):
    here, wanted = small
    server = sshd_factory(log_requests=True)
    with Remote(server.url(), ssh_config=str(server.ssh_config)) as remote:
        remote.put(here, "t")
    assert tree(server.root / "t") == wanted
    asked = server.request_kinds()
    assert {name: asked[name] for name in ("open", "close", "setstat", "stat", "posix-rename")} == {
        "open": 60, "close": 60, "setstat": 60, "stat": 60 + 1, "posix-rename": 60,
    }  # fmt: skip
    for path in here.rglob("*"):
        if path.is_file():
            sent = server.root / path.relative_to(here.parent)
            assert int(sent.stat().st_mtime) == int(path.stat().st_mtime)


def test_permission_bits_go_along_where_they_are_wanted(sshd_factory, small):
    here, _ = small
    (here / "01").write_bytes(b"#!")
    (here / "01").chmod(0o750)
    server = sshd_factory()
    with Remote(server.url(), ssh_config=str(server.ssh_config)) as remote:
        remote.sync("t", here, direction="up", modes=True)
    assert (server.root / "t/01").stat().st_mode & 0o777 == 0o750
    assert int((server.root / "t/01").stat().st_mtime) == int((here / "01").stat().st_mtime)


def test_what_stands_in_the_way_of_one_fails_that_one_alone(sshd_factory, small):
    here, wanted = small
    server = sshd_factory()
    server.make_directory("t/sub/01")
    with TransferEngine(server.settings()) as engine:
        result = engine.store_tree(here, server.url("t")).result(WAIT_S)
    assert result.files == 59
    assert [failure["url"] for failure in result.failed] == [server.url("t/sub/01")]
    assert "is a directory" in result.failed[0]["message"]
    assert tree(server.root / "t") == wanted | {"sub/01": None}


def test_a_file_that_vanishes_is_told_and_leaves_nothing(sshd_factory, relay_factory, small):
    here, wanted = small
    server = sshd_factory()
    relay = relay_factory(server.port, one_way_ms=150)
    with TransferEngine(server.settings()) as engine:
        engine.stat(relay.url(server.url())).result(WAIT_S)
        future = engine.store_tree(here, relay.url(server.url("t")))
        # All are open at the server, whose answers are still on their way.
        wait_until(lambda: len(temporaries(server.root)) == 20)
        (here / "00").unlink()
        result = future.result(WAIT_S)
    told = [failure["message"] for failure in result.failed]
    assert told == [f"{here / '00'}: No such file or directory"]
    assert tree(server.root / "t") == {name: wanted[name] for name in wanted if name != "00"}


def test_where_nobody_may_rename_each_file_says_so_and_none_stays(sshd_factory, small):
    here, _ = small
    server = sshd_factory(sftp_arguments="-P posix-rename,rename", external=True)
    with TransferEngine(server.settings()) as engine:
        result = engine.store_tree(here, server.url("t")).result(WAIT_S)
    assert result.files == 0
    assert {failure["class"] for failure in result.failed} == {RemotePermissionDenied.__name__}
    assert len(result.failed) == 60
    assert all("PYREMOTEDATA_PUBLISH=direct" in failure["message"] for failure in result.failed)
    assert tree(server.root / "t") == {"sub": None}


def test_what_uploads_have_left_is_gone_when_another_one_has_ended(relay_factory, tmp_path):
    """Also if there was no time for all of it in the run between."""
    here = tmp_path / "t"
    here.mkdir()
    for number in range(200):
        (here / f"{number}").touch()
    with ScriptedSshd("relay", {"refuse": ["rename", "remove"]}) as server:
        relay = relay_factory(server.port, one_way_ms=50)
        with TransferEngine(server.settings(), in_process=True) as engine:
            engine.store_tree(here, relay.url(server.url("t"))).result(WAIT_S)
        assert len(temporaries(server.root)) > 300
        server.refuse()
        with TransferEngine(server.settings(), in_process=True) as engine:
            engine.stat(relay.url(server.url())).result(WAIT_S)
        assert temporaries(server.root)
        with TransferEngine(server.settings(), in_process=True) as engine:
            engine.store_tree(here, relay.url(server.url("more"))).result(WAIT_S)
        assert not temporaries(server.root)


@pytest.mark.parametrize("unusual", [{"extensions": False}, {"spoil": "lose"}])
def test_where_a_server_is_not_as_is_usual_each_file_goes_alone(small, tmp_path, unusual):
    """One without an atomic rename, and one that loses a write."""
    here, wanted = small
    with ScriptedSshd("relay", {**unusual, "mark": str(tmp_path / "mark")}) as server:
        with TransferEngine(server.settings()) as engine:
            result = engine.store_tree(here, server.url("t")).result(WAIT_S)
        assert (result.files, result.failed) == (60, [])
        assert tree(server.root / "t") == wanted
    assert (tmp_path / "mark").exists() == ("spoil" in unusual)


@pytest.mark.parametrize("way", ["fetch", "store"])
def test_small_files_of_a_tree_that_is_given_up_are_whole_or_absent(
    sshd_factory, relay_factory, tmp_path, way
):
    server = sshd_factory()
    source, target = server.root / "from", tmp_path / "to"
    if way == "store":
        source, target = tmp_path / "from", server.root / "to"
    for place in (source, target):
        place.mkdir()
    for number in range(400):
        (source / f"{number}").write_bytes(os.urandom(20_000 + number))
    wanted = tree(source)
    relay = relay_factory(server.port, one_way_ms=10, rate=4e6)
    with TransferEngine(server.settings()) as engine:
        for enough in (1, 60, 200):
            moved: list[int] = []
            if way == "fetch":
                move = engine.fetch_tree
                ends = relay.url(server.url("from")), target / f"{enough}"
            else:
                move = engine.store_tree
                ends = source, relay.url(server.url(f"to/{enough}"))
            future = move(*ends, on_progress=lambda _, n, m=moved: m.append(n))
            wait_until(lambda moved=moved, enough=enough: sum(moved) >= enough)
            future.cancel()
            assert engine.wait_cancelled(30)
            found = tree(target / f"{enough}")
            assert found == {name: wanted[name] for name in found}
            assert 0 < len(found) < len(wanted)


def test_small_files_arrive_whole_though_their_sessions_are_killed(sshd_factory, tmp_path):
    here = tmp_path / "t"
    here.mkdir()
    for number in range(1500):
        (here / f"{number}").write_bytes(os.urandom(number * 30))
    server = sshd_factory()
    ended = threading.Event()

    def kill() -> None:
        for _ in range(3):
            if ended.wait(0.15):
                return
            server.kill_sessions()

    with TransferEngine(server.settings()) as engine:
        engine.stat(server.url()).result(WAIT_S)
        killer = threading.Thread(target=kill)
        killer.start()
        result = engine.store_tree(here, server.url("t")).result(WAIT_S)
        ended.set()
        killer.join()
        assert result.failed == []
        assert result.files == 1500
    with TransferEngine(server.settings()) as engine:  # the next login clears away
        engine.stat(server.url()).result(WAIT_S)
        wait_until(lambda: not temporaries(server.root))
    assert tree(server.root / "t") == tree(here)
