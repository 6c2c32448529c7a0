"""Connections that break, stall and come back: transfers complete, or end within their time."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pyremotedata_core import (
    ConnectionLost,
    RemoteFileNotFound,
    TransferEngine,
    TransferError,
    TransferTimeout,
)

from .page import told
from .relay import Relay
from .servers import ScriptedSshd, Sshd
from .sites import SFTP_MOSTLY, TRANSPORTS, WAIT_S, temporaries, tree
from .waiting import wait_until, wait_until_stalled

LARGE = 17 * 2**20 + 12_345
FULL = pytest.mark.full
IN_TIME_S = 9.0  # for limits of 2 s; ssh itself gives up after 10 s
HOWS = ["truncated", "grown", "replaced", "rewritten"]
DIRECTIONS = {"fetch": "down", "store": "up"}


class Link:
    """An engine that reaches a server through a relay, and files at both ends."""

    def __init__(self, server, relay: Relay, local: Path, **settings) -> None:
        self.server, self.relay, self.local = server, relay, local
        self.engine = TransferEngine(server.settings(**{"timeout_s": 30.0, **settings}))

    def url(self, name: str) -> str:
        return self.relay.url(self.server.url(name))

    def ends(self, way: str) -> tuple[Path, Path]:
        """Return where files come from, and where they go."""
        ends = self.server.root, self.local
        return ends if way == "fetch" else ends[::-1]

    def move(self, way: str, name: str):
        return self.fetch(name) if way == "fetch" else self.store(name)

    def fetch(self, name: str):
        return self.engine.fetch(self.url(name), self.local / name)

    def store(self, name: str):
        return self.engine.store(self.local / name, self.url(name))

    def make(self, name: str, size: int) -> bytes:
        """Make a file on both sides' source: at the server."""
        data = os.urandom(size)
        self.server.make(name, data)
        return data

    def make_local(self, name: str, size: int) -> bytes:
        data = os.urandom(size)
        (self.local / name).write_bytes(data)
        return data


@pytest.fixture(scope="module")
def victim():
    """A server that these tests may break."""
    with Sshd() as server:
        yield server


@pytest.fixture
def link(victim, relay_factory, tmp_path):
    """Make an engine behind a relay to a server that has nothing."""
    links: list[Link] = []
    if victim.pid is None:
        victim.start()
    shutil.rmtree(victim.root)
    victim.root.mkdir()

    def make(transport: str = "sftp", rate: float | None = 30e6, **settings) -> Link:
        relay = relay_factory(victim.port, rate=rate)
        links.append(Link(victim, relay, tmp_path, transport=transport, **settings))
        return links[-1]

    yield make
    for each in links:
        each.engine.close()


def under_way(directory: Path) -> Callable[[], object]:
    """Whether a temporary file there has some bytes."""

    def look() -> bool:
        sizes = []
        for path in temporaries(directory):
            try:
                sizes.append(os.stat(path).st_blocks)
            except OSError:
                continue
        return any(sizes)

    return look


# --- broken ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("way", "kind"),
    [
        ("fetch", "reset"),
        pytest.param("fetch", "close", marks=FULL),
        pytest.param("store", "reset", marks=FULL),
        ("store", "close"),
    ],
)
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_transfer_goes_on_after_the_connection_broke(link, transport, way, kind):
    there = link(transport)
    source, target = there.ends(way)
    (source / "a").write_bytes(data := os.urandom(LARGE))
    (target / "a").write_bytes(b"old")
    there.engine.stat(there.url("a")).result(WAIT_S)
    times = 2 if (way, transport) == ("fetch", "sftp") else 1
    there.relay.drop_after(LARGE // 2, direction=DIRECTIONS[way], kind=kind, times=times)
    assert there.move(way, "a").result(WAIT_S).size == LARGE
    assert tree(target) == {"a": data}
    assert there.relay.status()["faults"] >= 1


def test_a_tree_goes_on_after_the_connection_broke_again_and_again(link, tmp_path):
    there = link()
    wanted = {}
    for number in range(60):
        wanted[f"{number:02}"] = there.make(f"t/{number:02}", number * 3000)
    there.engine.stat(there.url("t")).result(WAIT_S)
    there.relay.drop_after(400_000, times=3)
    result = there.engine.fetch_tree(there.url("t"), tmp_path / "t").result(WAIT_S)
    assert (result.files, result.failed) == (60, [])
    assert tree(tmp_path / "t") == wanted
    there.relay.drop_after(400_000, direction="up", times=3)
    result = there.engine.store_tree(tmp_path / "t", there.url("u")).result(WAIT_S)
    assert (result.files, result.failed) == (60, [])
    assert tree(there.server.root / "u") == wanted
    assert there.relay.status()["faults"] == 6


@pytest.mark.parametrize("transport", SFTP_MOSTLY)
def test_a_server_that_is_killed_and_restarted_is_waited_for(link, tmp_path, transport):
    there = link(transport)
    data = there.make("a", LARGE)
    up = there.make_local("b", LARGE)
    future = there.fetch("a")
    wait_until(under_way(tmp_path))
    there.server.halt()
    time.sleep(1.0)
    there.server.start()
    assert future.result(WAIT_S).size == LARGE
    future = there.store("b")
    wait_until(under_way(there.server.root))
    there.server.kill_sessions()
    assert future.result(WAIT_S).size == LARGE
    assert tree(tmp_path) == {"a": data, "b": up}
    assert tree(there.server.root) == {"a": data, "b": up}


def test_a_server_that_does_not_come_back_is_given_up(link, tmp_path):
    there = link(timeout_s=2.0)
    there.make("a", LARGE)
    there.make_local("b", LARGE)
    (tmp_path / "a").write_bytes(b"old")
    futures = [there.fetch("a"), there.store("b")]
    wait_until(under_way(tmp_path))
    there.server.halt()
    for future in futures:
        assert isinstance(future.exception(WAIT_S), ConnectionLost)
    assert (tmp_path / "a").read_bytes() == b"old"
    assert temporaries(tmp_path) == []
    assert not (there.server.root / "b").exists()


@pytest.mark.full
def test_a_connection_that_breaks_before_it_gets_any_further_is_given_up(link):
    there = link(timeout_s=2.0)
    there.make("a", LARGE)
    there.make_local("b", LARGE)
    there.relay.drop_after(500_000, times=1000)
    assert isinstance(there.fetch("a").exception(WAIT_S), ConnectionLost)
    there.relay.resume()
    there.relay.drop_after(500_000, times=1000, direction="up")
    assert isinstance(there.store("b").exception(WAIT_S), ConnectionLost)
    assert tree(there.local).keys() == {"b"}
    assert not (there.server.root / "b").exists()


# --- silent ---------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_black_hole_ends_a_download_in_time(link, tmp_path, transport):
    there = link(transport, timeout_s=2.0)
    data = there.make("a", LARGE)
    (tmp_path / "a").write_bytes(b"old")
    future = there.fetch("a")
    wait_until(under_way(tmp_path))
    there.relay.stall()
    error = future.exception(IN_TIME_S)
    assert type(error) is TransferTimeout
    told(error, "the server said nothing" if transport == "lftp" else "the server has been silent")
    assert tree(tmp_path) == {"a": b"old"}
    there.relay.resume()
    there.relay.set(rate=0)
    assert there.fetch("a").result(WAIT_S).size == LARGE
    assert tree(tmp_path) == {"a": data}


@pytest.mark.parametrize("transport", SFTP_MOSTLY)
def test_a_black_hole_ends_an_upload_in_time(link, transport):
    there = link(transport, timeout_s=3.0)
    data = there.make_local("a", LARGE)
    there.server.make("a", b"old")
    future = there.store("a")
    wait_until(under_way(there.server.root))
    there.relay.stall()
    assert type(future.exception(IN_TIME_S)) is TransferTimeout
    assert (there.server.root / "a").read_bytes() == b"old"
    there.relay.resume()
    there.relay.set(rate=0)
    assert there.store("a").result(WAIT_S).size == LARGE
    assert (there.server.root / "a").read_bytes() == data
    if transport == "sftp":  # its temporary file goes as soon as the server is back
        wait_until(lambda: tree(there.server.root) == {"a": data})
    # What cannot be removed then is removed by the next process that gets there.
    there.engine.close()
    with TransferEngine(there.engine.settings) as engine:
        engine.stat(there.url("a")).result(WAIT_S)
        wait_until(lambda: tree(there.server.root) == {"a": data})


def test_a_black_hole_before_the_login_ends_in_time(link):
    there = link(timeout_s=2.0)
    there.relay.stall()
    futures = [there.engine.stat(there.url("a")) for _ in range(5)]
    assert {type(future.exception(IN_TIME_S)) for future in futures} == {TransferTimeout}
    there.relay.resume()
    with pytest.raises(RemoteFileNotFound):
        there.engine.stat(there.url("a")).result(WAIT_S)


def test_an_idle_session_in_a_black_hole_does_not_hold_up_the_next_request_for_ever(link):
    there = link(timeout_s=2.0)
    there.engine.stat(there.url("")).result(WAIT_S)
    there.relay.stall()
    assert type(there.engine.stat(there.url("")).exception(IN_TIME_S)) is TransferTimeout


def test_a_pause_shorter_than_the_limit_is_sat_out(link, tmp_path):
    there = link(timeout_s=20.0)
    data = there.make("a", LARGE)
    future = there.fetch("a")
    wait_until(under_way(tmp_path))
    there.relay.stall()
    time.sleep(2.0)
    there.relay.resume()
    assert future.result(WAIT_S).size == LARGE
    assert tree(tmp_path) == {"a": data}


@pytest.mark.parametrize("transport", ["sftp", pytest.param("lftp", marks=FULL)])
def test_a_connection_that_dies_silently_is_replaced_while_the_server_takes_others(
    link, tmp_path, transport
):
    """As behind a NAT that has forgotten it, or from another network than before."""
    there = link(transport, timeout_s=9.0)
    data = there.make("a", LARGE)
    future = there.fetch("a")
    wait_until(under_way(tmp_path))
    there.server.freeze()
    try:
        assert future.result(WAIT_S).size == LARGE
    finally:
        there.server.kill_sessions()
    assert tree(tmp_path) == {"a": data}


def test_a_black_hole_that_ends_the_connection_leaves_its_login_the_rest_of_the_limit(link):
    futures = []
    for transport in ("sftp", "lftp"):
        for way in ("fetch", "store"):
            there = link(transport, timeout_s=9.0)  # ssh gives the connection up after some five
            there.make("a", LARGE)
            there.make_local("b", LARGE)
            there.engine.stat(there.url("a")).result(WAIT_S)
            there.relay.stall(after_bytes=1 << 20, direction="down" if way == "fetch" else "up")
            futures.append(there.fetch("a") if way == "fetch" else there.store("b"))
    errors = [future.exception(WAIT_S) for future in futures]
    assert {type(error) for error in errors} == {TransferTimeout}, errors
    # One that had a limit of its own would say that no session began, or that none was answered.
    silences = ("has been silent for 9 s", "said nothing for 9 s")
    assert all(any(silence in str(error) for silence in silences) for error in errors), errors


def test_what_is_asked_late_in_a_silence_has_a_whole_login(sshd_factory, relay_factory):
    """The server lives, but one answer does not come, as of an archive whose tape is stuck."""
    server = sshd_factory(external=True)
    server.make("a", b"1")
    relay = relay_factory(server.port)
    url = relay.url(server.url("a"))
    with TransferEngine(server.settings(timeout_s=6.0)) as engine:
        engine.stat(url).result(WAIT_S)
        commands = {pid: Path(f"/proc/{pid}/cmdline") for pid in server.session_pids()}
        stuck = [pid for pid, file in commands.items() if b"sftp-server" in file.read_bytes()]
        for pid in stuck:
            os.kill(pid, signal.SIGSTOP)
        try:
            early = engine.stat(url)
            time.sleep(4.0)
            late = engine.stat(url)
            relay.set(one_way_ms=120)
            assert type(early.exception(WAIT_S)) is TransferTimeout
            assert late.result(WAIT_S).size == 1
        finally:
            for pid in stuck:
                os.kill(pid, signal.SIGKILL)


# --- slow -----------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["fetch", pytest.param("store", marks=FULL)])
def test_small_things_do_not_wait_for_a_large_file_on_a_slow_line(
    sshd_factory, relay_factory, tmp_path, way
):
    size, direction = 64 << 20, "down" if way == "fetch" else "up"
    server = sshd_factory()
    small = os.urandom(1000)
    os.truncate(server.make("large"), size)
    server.make("small", small)
    (tmp_path / "up").touch()
    os.truncate(tmp_path / "up", size)
    relay = relay_factory(server.port, one_way_ms=10, rate=8e6)
    with TransferEngine(server.settings(timeout_s=60.0)) as engine:
        if way == "fetch":
            large = engine.fetch(relay.url(server.url("large")), tmp_path / "large")
        else:
            large = engine.store(tmp_path / "up", relay.url(server.url("up")))
        wait_until(lambda: relay.status()[direction] > 8 << 20)
        before = relay.status()[direction]
        assert engine.stat(relay.url(server.url("small"))).result(WAIT_S).size == 1000
        engine.fetch(relay.url(server.url("small")), tmp_path / "small").result(WAIT_S)
        passed = relay.status()[direction] - before
        large.cancel()
        assert engine.wait_cancelled(WAIT_S)
    assert (tmp_path / "small").read_bytes() == small
    assert passed < 32 << 20


@pytest.mark.parametrize(
    ("transport", "small_bytes", "at_once"), [("sftp", 250_000, 250), ("lftp", 1000, 4)]
)
def test_a_large_file_comes_beside_more_small_ones_than_sessions_take_at_once(
    sshd_factory, relay_factory, tmp_path, transport, small_bytes, at_once
):
    server = sshd_factory()
    server.make("small", bytes(small_bytes))
    server.make("large", data := os.urandom(1 << 20))
    relay = relay_factory(server.port, one_way_ms=5, rate=10e6)
    numbers = itertools.count()
    enough = threading.Event()
    with TransferEngine(server.settings(connections=1, transport=transport)) as engine:

        def begin(_: object = None) -> None:
            """Fetch one after the other, as if there were no end of them."""
            if not enough.is_set():
                path = tmp_path / str(next(numbers))
                engine.fetch(relay.url(server.url("small")), path).add_done_callback(begin)

        for _ in range(at_once):
            begin()
        try:
            engine.fetch(relay.url(server.url("large")), tmp_path / "large").result(WAIT_S)
        finally:
            enough.set()
    assert (tmp_path / "large").read_bytes() == data


def test_small_files_on_a_slow_line_come_in_the_order_in_which_they_were_asked_for(
    sshd_factory, relay_factory, tmp_path
):
    server = sshd_factory()
    server.make("a", bytes(100_000))
    relay = relay_factory(server.port, one_way_ms=10, rate=4e6)
    came: list[int] = []
    with TransferEngine(server.settings(connections=1)) as engine:
        futures = []
        for number in range(60):
            future = engine.fetch(relay.url(server.url("a")), tmp_path / str(number))
            future.add_done_callback(lambda _, number=number: came.append(number))
            futures.append(future)
        for future in futures:
            future.result(WAIT_S)
    assert came == sorted(came)


# --- an answer is lost ----------------------------------------------------------------------


@pytest.mark.parametrize("size", [3, LARGE])
@pytest.mark.parametrize(
    ("request_kind", "extensions"),
    [
        ("create", True),
        pytest.param("rename", True, marks=FULL),
        ("rename", False),
        pytest.param("mkdir", True, marks=FULL),
        pytest.param("remove", False, marks=FULL),
    ],
)
def test_a_request_whose_answer_is_lost_is_not_done_twice(tmp_path, request_kind, extensions, size):
    """The server did it; the connection broke before it could say so."""
    mark = str(tmp_path / "mark")
    options = {"end_after": request_kind, "extensions": extensions, "mark": mark}
    (tmp_path / "a").write_bytes(data := os.urandom(size))
    with ScriptedSshd("relay", options) as server:
        server.make("old/a", b"old")
        with TransferEngine(server.settings(timeout_s=20.0)) as engine:
            engine.store(tmp_path / "a", server.url("old/a")).result(WAIT_S)
            new = server.url("new/deep/a")
            engine.store(tmp_path / "a", new, overwrite=False).result(WAIT_S)
        assert (tmp_path / "mark").exists(), "the fault never struck"
        assert tree(server.root) == {
            "new": None, "new/deep": None, "new/deep/a": data, "old": None, "old/a": data,
        }  # fmt: skip


@pytest.mark.parametrize("size", [3, LARGE])
def test_a_lost_answer_does_not_fail_a_file_of_a_tree(tmp_path, size):
    """Nothing makes missing directories there, which would hide a second attempt."""
    options = {"end_after": "rename", "mark": str(tmp_path / "mark")}
    (tmp_path / "t").mkdir()
    (tmp_path / "t/a").write_bytes(data := os.urandom(size))
    with ScriptedSshd("relay", options) as server:
        with TransferEngine(server.settings(timeout_s=20.0)) as engine:
            result = engine.store_tree(tmp_path / "t", server.url("t")).result(WAIT_S)
        assert (tmp_path / "mark").exists(), "the fault never struck"
        assert result.failed == []
        assert tree(server.root) == {"t": None, "t/a": data}


@pytest.mark.parametrize("extensions", [True, False])
def test_small_changes_whose_answer_is_lost_are_not_told_as_failures(tmp_path, extensions):
    for kind in ("rename", "remove", "mkdir"):
        mark = tmp_path / kind
        options = {"end_after": kind, "mark": str(mark), "extensions": extensions}
        with (
            ScriptedSshd("relay", options) as server,
            TransferEngine(server.settings(timeout_s=20.0)) as engine,
        ):
            server.make("a", b"1")
            url = server.url("a")
            {
                "rename": lambda e=engine, u=url: e.rename(u, u + "2"),
                "remove": lambda e=engine, u=url: e.remove(u),
                "mkdir": lambda e=engine, u=url: e.mkdir(u + "/../d"),
            }[kind]().result(WAIT_S)
            assert mark.exists(), "the fault never struck"
            wanted = {"rename": {"a2": b"1"}, "remove": {}, "mkdir": {"a": b"1", "d": None}}
            assert tree(server.root) == wanted[kind]


# --- sources that change --------------------------------------------------------------------


def rewrite(path: Path, how: str, data: bytes) -> bytes:
    """Change a file as ``how`` says; return what it holds then."""
    if how == "replaced":
        new = path.with_name("new")
        new.write_bytes(data)
        new.rename(path)
        return data
    if how == "rewritten":
        path.write_bytes(data)
        return data
    old = path.read_bytes()
    content = old[: len(old) // 2] if how == "truncated" else old + data[:1000]
    with path.open("r+b") as file:
        file.truncate(len(content))
        file.seek(0)
        file.write(content)
    return content


@pytest.mark.parametrize("transport", SFTP_MOSTLY)
@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("way", DIRECTIONS)
def test_a_source_that_changes_meanwhile_is_never_spliced(link, transport, how, way):
    there = link(transport)
    source, target = there.ends(way)
    (source / "a").write_bytes(old := os.urandom(LARGE))
    os.utime(source / "a", (1_000_000_000, 1_000_000_000))
    (target / "a").write_bytes(b"old")
    there.relay.stall(after_bytes=LARGE // 2, direction=DIRECTIONS[way])
    future = there.move(way, "a")
    wait_until_stalled(there.relay)
    new = rewrite(source / "a", how, os.urandom(LARGE))
    there.relay.resume()
    future.result(WAIT_S)
    # Whoever holds a file open reads it whole although another one has its name by now.
    assert tree(target) in [{"a": new}] + [{"a": old}] * (how == "replaced")


def test_a_source_that_does_not_stop_changing_is_an_error_and_the_old_file_stays(link, tmp_path):
    there = link()
    data = there.make("a", LARGE)
    (tmp_path / "a").write_bytes(b"old")
    stop = threading.Event()

    def change() -> None:
        mtime = 1_000_000_000
        while not stop.wait(0.02):
            mtime += 1
            os.utime(there.server.root / "a", (mtime, mtime))

    changer = threading.Thread(target=change)
    changer.start()
    try:
        error = there.fetch("a").exception(WAIT_S)
    finally:
        stop.set()
        changer.join()
    assert isinstance(error, TransferError)
    assert type(error).__name__ == "RemoteChanged"
    told(error, "the file changed while it was read")
    assert error.retryable
    assert tree(tmp_path) == {"a": b"old"}
    there.relay.set(rate=0)
    there.fetch("a").result(WAIT_S)
    assert tree(tmp_path) == {"a": data}


@pytest.mark.parametrize("transport", SFTP_MOSTLY)
def test_a_source_that_changes_twice_within_a_second_is_never_spliced(link, tmp_path, transport):
    there = link(transport)
    there.make_local("a", LARGE)
    os.utime(tmp_path / "a", ns=(10**18, 10**18))
    there.relay.stall(after_bytes=LARGE // 2, direction="up")
    future = there.store("a")
    wait_until_stalled(there.relay)
    (tmp_path / "a").write_bytes(new := os.urandom(LARGE))
    os.utime(tmp_path / "a", ns=(10**18, 10**18 + 10**8))
    there.relay.resume()
    future.result(WAIT_S)
    assert tree(there.server.root) == {"a": new}


@pytest.mark.full
def test_an_upload_given_up_while_its_directory_is_made_is_not_begun_again(
    sshd_factory, relay_factory, tmp_path
):
    server = sshd_factory()
    relay = relay_factory(server.port, one_way_ms=300)
    (tmp_path / "f").write_bytes(b"x")
    with TransferEngine(server.settings()) as engine:
        future = engine.store(tmp_path / "f", relay.url(server.url("new/f")))
        wait_until((server.root / "new").exists)
        future.cancel()  # the server's answer is still on its way
        assert engine.wait_cancelled(30)
        assert list((server.root / "new").iterdir()) == []
