"""The lftp session against real servers: what it moves, publishes and refuses."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import pytest

from pyremotedata_core import (
    ConnectionLost,
    LocalStorageFull,
    RemoteFileNotFound,
    RemotePermissionDenied,
    ServerRefused,
    Stat,
    TransferError,
)
from pyremotedata_core.names import PGET_STATUS, is_temporary, temporary_name
from pyremotedata_core.nodestate import SessionSlots
from pyremotedata_core.part import sweep
from pyremotedata_core.transports import lftp

from .lftp_sessions import (
    connected,
    fetch,
    listed,
    relayed,
    store,
)
from .page import told
from .servers import ScriptedSshd
from .sites import needs_lftp

pytestmark = [needs_lftp, pytest.mark.usefixtures("ending")]


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


def test_lftp_makes_nothing_in_the_home(sshd, ending, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    connected(sshd).stat("/")
    assert not list(tmp_path.iterdir())


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


def test_nothing_remains_of_a_large_download_that_is_given_up(
    sshd, relay_factory, there, tmp_path, monkeypatch
):
    monkeypatch.setattr(lftp, "SEGMENTED_BYTES", 8 << 20)
    (there / "f").write_bytes(os.urandom(32 << 20))
    session = relayed(sshd, relay_factory(sshd.port, rate=8 << 20), connections=3)

    def give_up(_count: int) -> None:
        session.stop_when(lambda: bool(os.listdir(tmp_path)))

    with pytest.raises(ConnectionLost):
        fetch(session, there / "f", tmp_path / "in", on_bytes=give_up)
    assert os.listdir(tmp_path) == []


def test_what_lftp_left_beside_a_part_is_no_file_of_the_users_and_is_swept(tmp_path):
    left = tmp_path / f"{temporary_name()}{PGET_STATUS}"
    left.write_bytes(b"size=9\n")
    assert is_temporary(left.name)
    sweep(str(tmp_path))
    assert os.listdir(tmp_path) == []


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


def test_a_login_directory_that_is_the_root_gives_paths_with_one_slash(chroot_sshd):
    session = connected(chroot_sshd)
    assert (session.realpath("/~"), session.realpath("/~/a/b")) == ("/", "/a/b")
    with pytest.raises(RemoteFileNotFound) as caught:
        session.stat("/~/nope")
    assert caught.value.url.endswith(f":{chroot_sshd.port}/nope")


# --- what is not there, or not allowed ----------------------------------------------------------


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


def test_a_full_directory_is_not_removed_and_none_gets_a_time(session, there):
    (there / "dir").mkdir()
    with pytest.raises(ServerRefused):
        session.touch(f"{there}/dir", 1)
    with pytest.raises(TransferError, match="empty"):
        session.rmdir(str(there))
    assert os.listdir(there) == ["dir"]


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
