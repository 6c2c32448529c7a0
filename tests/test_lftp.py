"""The lftp session against real servers: what it moves, publishes and refuses."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyremotedata_core import (
    LocalStorageFull,
    RemoteFileNotFound,
    RemotePermissionDenied,
    ServerRefused,
    Stat,
    TransferError,
    UnsafeName,
)
from pyremotedata_core.nodestate import SessionSlots
from pyremotedata_core.transports import lftp
from pyremotedata_core.transports.lftp import LftpSession

from .lftp_sessions import (
    connected,
    end_sessions,
    fetch,
    listed,
    relayed,
    store,
)
from .page import told
from .servers import ScriptedSshd
from .sites import needs_lftp

pytestmark = needs_lftp

NAMES = [
    "a b", " lead", "trail ", "-dash", "--", "-o", "q'uote", 'd"q', "back\\slash", "\\", "a\\\\b",
    "semi;colon", "ex!cl", "!touch x", "$(touch x)", "`touch x`", "$HOME", "[ab]", "*", "?",
    "{a,b}", "{}", "~", "~root", "%41", "a%2Fb", "#h", "&amp", "|pipe", ">redir", "a&&b",
    "tab\there",
    "cr\rx", "bell\x07", "æøå", "emoji😀", "日本", "a:b", "user@host", "file:x", "http:x",
    "x -> y", "...", ".hid", "e\u0301", "\u2028x", "12345 6 name", ") && echo x", "\udce6\udcff",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _sessions_end_with_their_test() -> Iterator[None]:
    yield
    end_sessions()


@pytest.fixture
def session(sshd) -> LftpSession:
    return connected(sshd)


def test_hostile_names_survive_every_operation_and_run_nothing(session, there, tmp_path):
    (tmp_path / "out").write_bytes(b"content")
    for number, name in enumerate(NAMES):
        store(session, tmp_path / "out", there / name)
        session.touch(str(there / name), 1_000_000_000 + number)
    assert set(os.listdir(there)) == set(NAMES)
    entries = listed(session, there)
    assert {name: entry.mtime for name, entry in entries.items()} == {
        name: 1_000_000_000 + number for number, name in enumerate(NAMES)
    }
    for number, name in enumerate(NAMES):
        path = str(there / name)
        assert session.stat(path) == Stat("file", 7, 1_000_000_000 + number)
        assert session.stat(path, False) == entries[name]
        fetch(session, path, tmp_path / "in")
        assert (tmp_path / "in").read_bytes() == b"content"
        session.rename(path, f"{path}.renamed")
        session.remove(f"{path}.renamed")
        session.mkdir(path)
        assert listed(session, path) == {}
        session.rmdir(path)
    assert os.listdir(there) == []
    assert not any(Path(place, "x").exists() for place in (".", "/", Path.home()))


def test_hostile_names_of_local_files_are_carried(session, there, tmp_path):
    for number, name in enumerate(NAMES):
        (tmp_path / name).write_bytes(b"%d" % number)
        store(session, tmp_path / name, there / "f")
        local = tmp_path / f"in {name}"
        fetch(session, there / "f", local)
        assert local.read_bytes() == b"%d" % number


def test_a_line_break_in_a_name_is_refused_and_runs_nothing(session, there, tmp_path):
    evil = f"{there}/a\n!touch {tmp_path}/ran"
    for call in (
        lambda: session.stat(evil),
        lambda: session.remove(evil),
        lambda: list(session.scandir(evil)),
        lambda: session.rename(str(there), evil),
    ):
        with pytest.raises(UnsafeName) as caught:
            call()
        told(caught.value, "lftp cannot carry a name")
    assert not (tmp_path / "ran").exists()
    (there / "a\n-rw-r--r--        5 1293840000 forged").touch()
    with pytest.raises(UnsafeName, match="line break"):
        listed(session, there)
    assert session.alive


def test_kinds_and_links_are_told_apart(session, there):
    (there / "file").write_bytes(b"abc")
    (there / "file").chmod(0o4640)
    os.utime(there / "file", (5, 5))
    (there / "dir").mkdir(mode=0o750)
    os.utime(there / "dir", (7, 7))
    links = {"to-file": "file", "to-dir": "dir", "dangling": "none", "me": "me"}
    for link, target in links.items():
        (there / link).symlink_to(target)
    os.mkfifo(there / "fifo")
    kinds = {name: stat.kind for name, stat in listed(session, there).items()}
    assert kinds == {
        "file": "file", "dir": "directory", "to-file": "link", "to-dir": "link",
        "dangling": "link", "me": "link",
    }  # fmt: skip
    assert session.stat(f"{there}/to-file") == Stat("file", 3, 5)
    assert session.stat(f"{there}/to-file", False).kind == "link"
    assert session.stat(f"{there}/file", False) == Stat("file", 3, 5, 0o4640)
    assert session.stat(f"{there}/to-dir")[::2] == ("directory", 7)
    assert session.stat(f"{there}/dir", False)[::2] == ("directory", 7)
    assert session.stat(f"{there}/fifo").kind == "other"
    assert session.stat(f"{there}/fifo", False).kind == "other"
    assert session.stat(f"{there}/dangling", False).kind == "link"
    with pytest.raises(RemoteFileNotFound):
        session.stat(f"{there}/dangling")
    assert session.stat("/").kind == session.stat("/", False).kind == "directory"


def test_paths_below_the_login_directory_are_resolved(session):
    home = Path.home()
    assert session.realpath("/~") == str(home)
    assert session.realpath("/~/x y") == str(home / "x y")
    assert session.stat("/~").kind == "directory"


def test_a_large_file_comes_over_several_connections(
    sshd, relay_factory, there, tmp_path, monkeypatch
):
    monkeypatch.setattr(lftp, "SEGMENTED_BYTES", 8 << 20)
    data = os.urandom(64 << 20)
    (there / "f").write_bytes(data)
    relay = relay_factory(sshd.port, one_way_ms=25)
    session = relayed(sshd, relay, connections=3)
    slots = SessionSlots(f"sftp://{sshd.user}@127.0.0.1:{relay.port}", 3)
    held = [slots.acquire()]  # as the pool does for the session
    before = sshd.logins()
    received: list[int] = []
    fetch(session, there / "f", tmp_path / "in", on_bytes=received.append)
    assert (tmp_path / "in").read_bytes() == data
    assert sum(received) == len(data)
    assert sshd.logins() == before + 2
    held += [slots.acquire() for _ in range(3)]
    assert [fd is not None for fd in held] == [True, True, True, False]
    assert session.stat(f"{there}/f").size == len(data)
    for fd in held[:3]:
        os.close(fd)


@pytest.mark.parametrize("read_bytes", [32_768, 100_000])
def test_a_server_that_answers_long_reads_short_is_read_right(read_bytes, tmp_path):
    with ScriptedSshd("relay", {"extensions": False, "read_bytes": read_bytes}) as server:
        session = connected(server)
        for size in (read_bytes - 1, 140_000, 3_000_001):
            data = os.urandom(size)
            server.make("f", data)
            fetch(session, f"{server.root}/f", tmp_path / "in")
            assert (tmp_path / "in").read_bytes() == data


def test_a_question_about_a_large_file_moves_none_of_it(sshd, relay_factory, there):
    with (there / "f").open("wb") as file:
        file.truncate(5 << 30)
    relay = relay_factory(sshd.port)
    session = relayed(sshd, relay)
    before = relay.status()["down"]
    assert session.stat(f"{there}/f").size == 5 << 30
    session.touch(f"{there}/f", 9)
    assert session.stat(f"{there}/f").mtime == 9
    assert relay.status()["down"] - before < 10_000


# --- what is not there, or not allowed ----------------------------------------------------------


def test_a_missing_file_is_not_found_whatever_is_asked(session, there, tmp_path):
    missing = f"{there}/none"
    expect = Stat("file", 3, 3)
    for call in (
        lambda: session.stat(missing),
        lambda: session.stat(missing, False),
        lambda: list(session.scandir(missing)),
        lambda: fetch(session, missing, tmp_path / "in", expect),
        lambda: session.remove(missing),
        lambda: session.rmdir(missing),
        lambda: session.touch(missing, 1),
        lambda: session.rename(missing, f"{there}/new"),
        lambda: session.mkdir(f"{missing}/sub"),
    ):
        with pytest.raises(RemoteFileNotFound) as caught:
            call()
        assert missing in caught.value.url
    assert os.listdir(tmp_path) == []
    assert session.alive


def test_an_upload_into_a_missing_directory_is_not_found(session, there, tmp_path):
    (tmp_path / "out").write_bytes(b"x")
    with pytest.raises(RemoteFileNotFound, match="directory does not exist") as caught:
        store(session, tmp_path / "out", f"{there}/none/f")
    assert caught.value.url.endswith("/none/f")


def test_what_is_denied_is_denied_and_what_is_only_unreadable_has_a_stat(chroot_sshd, tmp_path):
    top = f"denied-{secrets.token_hex(4)}"
    chroot_sshd.make(f"{top}/unreadable", b"abc", mtime=9, mode=0)
    closed = chroot_sshd.make_directory(f"{top}/closed")
    chroot_sshd.make(f"{top}/closed/f", b"abc")
    closed.chmod(0)
    (chroot_sshd.root / top / "roots").mkdir(mode=0o755)
    (chroot_sshd.root / top / "roots/f").write_bytes(b"old")
    remote = chroot_sshd.remote_path(top)
    (tmp_path / "out").write_bytes(b"x")
    session = connected(chroot_sshd)
    assert session.stat(f"{remote}/unreadable") == Stat("file", 3, 9, 0)
    assert session.stat(f"{remote}/closed").kind == "directory"
    for call in (
        lambda: fetch(session, f"{remote}/unreadable", tmp_path / "in"),
        lambda: list(session.scandir(f"{remote}/closed")),
        lambda: session.stat(f"{remote}/closed/f"),
        lambda: session.remove(f"{remote}/roots/f"),
        lambda: session.mkdir(f"{remote}/roots/d"),
        lambda: store(session, tmp_path / "out", f"{remote}/roots/new"),
        lambda: store(session, tmp_path / "out", f"{remote}/roots/f"),
    ):
        with pytest.raises(RemotePermissionDenied):
            call()
    assert (chroot_sshd.root / top / "roots/f").read_bytes() == b"old"


def test_a_directory_is_not_taken_for_a_file_nor_a_file_for_a_directory(session, there, tmp_path):
    (there / "dir").mkdir()
    (there / "file").write_bytes(b"abc")
    (tmp_path / "out").write_bytes(b"x")
    for call in (
        lambda: store(session, tmp_path / "out", f"{there}/dir"),
        lambda: session.rename(f"{there}/file", f"{there}/dir"),
        lambda: session.remove(f"{there}/dir"),
        lambda: list(session.scandir(f"{there}/file")),
        lambda: session.mkdir(f"{there}/file"),
        lambda: session.touch(f"{there}/dir", 1),
        lambda: fetch(session, there / "dir", tmp_path / "in"),
    ):
        with pytest.raises(ServerRefused):
            call()
    with pytest.raises(TransferError, match="empty"):
        session.rmdir(str(there))
    session.mkdir(f"{there}/dir")
    assert sorted(os.listdir(there)) == ["dir", "file"]
    assert os.listdir(there / "dir") == []


def test_special_files_are_not_read(session, there, tmp_path):
    os.mkfifo(there / "fifo")
    with pytest.raises(ServerRefused):
        fetch(session, there / "fifo", tmp_path / "in")


# --- publication --------------------------------------------------------------------------------


def test_an_upload_replaces_a_link_and_not_what_it_points_to(session, there, tmp_path):
    (there / "target").write_bytes(b"old")
    (there / "link").symlink_to("target")
    (there / "dangling").symlink_to("none")
    (tmp_path / "out").write_bytes(b"new")
    for name in ("link", "dangling"):
        store(session, tmp_path / "out", there / name)
        assert (there / name).read_bytes() == b"new"
        assert not (there / name).is_symlink()
    assert (there / "target").read_bytes() == b"old"
    assert sorted(os.listdir(there)) == ["dangling", "link", "target"]


def test_the_old_file_stays_where_the_server_refuses_to_rename(sshd_factory, tmp_path):
    server = sshd_factory(sftp_arguments="-P rename")
    (server.root / "f").write_bytes(b"old")
    (tmp_path / "out").write_bytes(b"new")
    session = connected(server)
    with pytest.raises(TransferError):
        store(session, tmp_path / "out", server.root / "f")
    assert {p.name: p.read_bytes() for p in server.root.iterdir()} == {"f": b"old"}


def test_a_local_file_that_changes_during_its_upload_is_not_published(sshd, there, tmp_path):
    (tmp_path / "out").write_bytes(os.urandom(20 << 20))
    session = connected(sshd)

    def grow(_count: int) -> None:
        with (tmp_path / "out").open("ab") as file:
            file.write(b"more")

    with pytest.raises(TransferError, match=r"changed|kept"):
        store(session, tmp_path / "out", there / "f", on_bytes=grow)
    assert os.listdir(there) == []


def test_an_upload_to_a_full_disk_leaves_nothing(session, tmp_path, small_disk):
    (tmp_path / "out").write_bytes(os.urandom(10 << 20))
    (small_disk / "f").write_bytes(b"old")
    with pytest.raises(ServerRefused) as refused:
        store(session, tmp_path / "out", small_disk / "f")
    told(refused.value, "the server cannot write")
    assert {p.name: p.read_bytes() for p in small_disk.iterdir()} == {"f": b"old"}
    assert session.alive


def test_a_full_local_disk_is_named(session, there, small_disk):
    (there / "f").write_bytes(os.urandom(10 << 20))
    with pytest.raises(LocalStorageFull, match="No space left") as caught:
        fetch(session, there / "f", small_disk / "in")
    told(caught.value, "cannot write …: …; free some space")
    assert os.listdir(small_disk) == []
    assert session.alive
