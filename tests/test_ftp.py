"""FTP and FTPS through lftp: logins, certificates, poor servers, faults. The rest is contract."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from typing import Any

import pytest

from pyremotedata_core import (
    AuthenticationFailed,
    ConfigurationError,
    ConnectionLost,
    ConnectionSettings,
    HostKeyRejected,
    Remote,
    RemoteFileNotFound,
    RemotePermissionDenied,
    Secret,
    ServerRefused,
    TransferEngine,
    TransferError,
    TransferTimeout,
)
from pyremotedata_core.filesystem import RemoteFileSystem
from pyremotedata_core.transports.lftp_ftp_text import from_failure
from pyremotedata_core.transports.lftp_text import Failure
from workflows.embedded_sshd import descendants

from .command import CLI
from .page import told
from .processes import alive, commands
from .sites import WAIT_S, needs_lftp, temporaries, tree
from .waiting import wait_until

pytestmark = needs_lftp
MTIME = 1_234_567_890
SERVERS: list[dict[str, Any]] = [
    {},
    {"without": ("MLSD", "MLST"), "terse": True},
    {"tls": "explicit"},
    {"tls": "implicit"},
]


def reach(server, user: str | None = None, **more) -> Remote:
    settings = server.settings(**{"timeout_s": 20.0, **more})
    return Remote(server.url(user=user), engine=TransferEngine(settings))


@pytest.fixture
def remote(ftp):
    with reach(ftp) as remote, remote.engine:
        yield remote


# --- what a user does -------------------------------------------------------------------------


@pytest.mark.parametrize("options", SERVERS, ids=str)
def test_files_go_up_and_come_back_with_their_bytes_and_times(ftp_factory, tmp_path, options):
    server = ftp_factory(**options)
    data = os.urandom(3_000_000)
    local = tmp_path / 'a "b" ø.bin'
    local.write_bytes(data)
    os.utime(local, (MTIME, MTIME))
    with reach(server) as remote, remote.engine:
        remote.put(local, "new/deep/")
        remote.put(local, "new/deep/")  # over what is there
        assert remote.ls("new/deep") == [local.name]
        stat = remote.stat(f"new/deep/{local.name}")
        assert (stat.size, stat.mtime) == (len(data), MTIME)
        entries = remote.engine.scandir(server.url("new/deep")).result(WAIT_S)
        assert entries[0].stat.mtime == MTIME
        got = remote.get(f"new/deep/{local.name}", tmp_path / "back/")
        assert got.read_bytes() == data
        assert int(got.stat().st_mtime) == MTIME
        with remote.open(f"new/deep/{local.name}") as file:
            file.seek(1_234_567)
            assert file.read(100_000) == data[1_234_567:1_334_567]
            assert file.read() == data[1_334_567:]
        remote.rm("new", recursive=True)
        assert not remote.exists("new")
    assert tree(server.root) == {}


@pytest.mark.parametrize("options", SERVERS[:2], ids=str)
def test_directories_are_listed_among_files_and_alone(ftp_factory, options):
    server = ftp_factory(**options)
    server.make_directory("top/a/b 1 @2 3")
    server.make("top/f", b"123")
    with reach(server) as remote, remote.engine as engine:
        for path, kinds in (("", {"top": "directory"}), ("top", {"a": "directory", "f": "file"})):
            entries = engine.scandir(server.url(path)).result(WAIT_S)
            assert {entry.name: entry.stat.kind for entry in entries} == kinds
        assert remote.ls("top/a") == ["b 1 @2 3"]


def test_where_no_time_can_be_set_an_upload_has_the_servers(ftp_factory, tmp_path):
    server = ftp_factory(without=("MFMT",))  # its MDTM only tells
    (tmp_path / "a").write_bytes(b"1")
    os.utime(tmp_path / "a", (MTIME, MTIME))
    with reach(server) as remote, remote.engine:
        remote.put(tmp_path / "a", "a")
        assert remote.stat("a").mtime > MTIME
    assert tree(server.root) == {"a": b"1"}


def test_a_server_that_sends_files_from_their_beginning_only_says_so_at_once(ftp_factory, tmp_path):
    server = ftp_factory(without=("REST",))
    data = os.urandom(3_000_000)
    server.make("a", data)
    with reach(server) as remote, remote.engine as engine:
        assert remote.get("a", tmp_path / "a").read_bytes() == data
        with remote.open("a") as file:
            assert file.read(1000) == data[:1000]
        stat = remote.stat("a")
        assert engine.read(server.url("a"), 0, 1000, expect=stat).result(WAIT_S) == data[:1000]
        error = engine.read(server.url("a"), 1000, 1000, expect=stat).exception(WAIT_S)
    assert type(error) is ServerRefused
    assert "REST" in str(error)
    assert server.url("a") in str(error)


def test_pieces_of_a_file_are_read_without_an_abort(ftp_factory):
    """lftp takes a late answer to that for the answer to the next command."""
    server = ftp_factory()
    data = os.urandom(1_000_000)
    server.make("a", data)
    with reach(server) as remote, remote.engine as engine:
        url, stat = server.url("a"), remote.stat("a")
        for offset in range(0, 500_000, 50_000):
            piece = engine.read(url, offset, 100, expect=stat).result(WAIT_S)
            assert piece == data[offset : offset + 100]
    assert "aborts" not in server.faults()


@pytest.mark.parametrize("without", [(), ("LANG",)])
def test_names_are_bytes_whether_or_not_the_server_offers_a_language(
    ftp_factory, tmp_path, without
):
    """Where it does lftp would convert them, to question marks in its locale, which is C."""
    server = ftp_factory(without=without)
    (tmp_path / "in").mkdir()
    for name in ("é", "è", "\udce9", "日本"):
        (tmp_path / "in" / name).write_bytes(os.fsencode(name))
    with reach(server) as remote, remote.engine:
        remote.put(tmp_path / "in", "in")
        assert tree(server.root / "in") == tree(tmp_path / "in")
        assert remote.get("in", tmp_path / "out") == tmp_path / "out"
    assert tree(tmp_path / "out") == tree(tmp_path / "in")


@pytest.mark.parametrize("directory", ["some", "all timeless"])
def test_what_the_server_tells_no_time_of_is_listed_and_copied(ftp, tmp_path, directory):
    for name in ("a", "timeless", "timeless d/b"):
        ftp.make(f"{directory}/{name}", os.urandom(1000))
    (tmp_path / "timeless").write_bytes(b"old")
    with reach(ftp) as remote, remote.engine:
        assert sorted(remote.ls(directory)) == ["a", "timeless", "timeless d"]
        remote.sync(directory, tmp_path, delete=True)
    assert tree(tmp_path) == tree(ftp.root / directory)


def test_a_server_that_lists_as_windows_does_is_read(ftp_factory, tmp_path):
    server = ftp_factory(without=("MLSD", "MLST"))
    server.faults(windows=True)
    for name in ("a b", "12345", "sub/c", "sub/d/e"):
        server.make(f"tree/{name}", os.urandom(1000))
    with reach(server) as remote, remote.engine:
        assert sorted(remote.ls("tree")) == ["12345", "a b", "sub"]
        remote.sync("tree", tmp_path)
    assert tree(tmp_path) == tree(server.root / "tree")


@pytest.mark.parametrize("answers", [{}, {"denies": True}, {"terse": True}], ids=str)
def test_names_that_list_writes_in_another_way_are_listed_once(ftp_factory, answers):
    server = ftp_factory(terse="terse" in answers)
    server.faults(question_marks=True, denies="denies" in answers)
    for name in ("a", "ø"):
        server.make(f"tree/{name}")
    with reach(server) as remote, remote.engine:
        assert sorted(remote.ls("tree")) == ["a", "ø"]


@pytest.mark.parametrize("strict", [False, True])
def test_times_are_asked_for_all_at_once_where_the_server_lets_one(ftp_factory, strict):
    server = ftp_factory(without=("MLSD", "MLST"))
    server.faults(strict=strict)
    times = {f"{number:02}": 1_000_000_007 + number for number in range(50)}
    for name, mtime in times.items():
        server.make(f"many/{name}")
        os.utime(server.root / "many" / name, (mtime, mtime))
    with reach(server) as remote, remote.engine:
        entries = remote.engine.scandir(server.url("many")).result(WAIT_S)
    assert {entry.name: entry.stat.mtime for entry in entries} == times
    assert server.faults()["hurries"] > (0 if strict else 40)


def test_no_link_passes_for_a_directory_where_the_server_is_crowded(ftp_factory):
    server = ftp_factory()
    server.make("kept/a")
    server.make("tree/b")
    (server.root / "tree/link").symlink_to("../kept")  # which MLSD does not tell
    server.faults(crowded=True)
    with reach(server) as remote, remote.engine:
        entries = remote.engine.scandir(server.url("tree")).result(WAIT_S)
    assert {entry.name: entry.stat.kind for entry in entries} == {"b": "file", "link": "link"}


def test_pieces_come_from_a_server_that_is_mute_when_it_is_left_early(ftp_factory, monkeypatch):
    monkeypatch.setattr("pyremotedata_core.transports.lftp_ftp_site.SETTLE_S", 0.5)
    server = ftp_factory()
    data = os.urandom(20_000_000)
    server.make("a", data)
    server.faults(mute=True)
    with TransferEngine(server.settings(timeout_s=20.0), in_process=True) as engine:
        url = server.url("a")
        stat = engine.stat(url).result(WAIT_S)
        for offset in (0, 5_000_000, 10_000_000, 19_999_900):
            piece = engine.read(url, offset, 100, expect=stat).result(WAIT_S)
            assert piece == data[offset : offset + 100]


def test_a_directory_that_is_filled_while_it_is_listed_is_listed(ftplist):
    ftplist.make_directory("filled")
    ftplist.faults(late="a.bin")
    with reach(ftplist) as remote, remote.engine:
        assert remote.ls("filled") == ["a.bin"]


def test_the_command_takes_ftp_urls(ftp, run):
    ftp.make("command/a b.txt", b"hello")
    run.environment["PYREMOTEDATA_PASSWORD"] = ftp.password
    assert run("ls", ftp.url("command")).stdout == "a b.txt\n"
    assert run("cat", ftp.url("command/a b.txt")).stdout == "hello"
    said = run("doctor", ftp.url("command/a b.txt")).stdout
    assert "logged in" in said
    assert "not encrypted" in said
    assert ftp.password not in said


def test_what_the_system_tells_lftp_changes_nothing(ftp_factory, run, tmp_path, machine_wide):
    server = ftp_factory(without=("MLSD", "MLST"))
    (tmp_path / "a").write_bytes(b"hello")
    (tmp_path / "lftp.conf").write_text(
        'alias put "echo put"\nset cmd:verify-path no\nset cmd:trace yes\nset ftp:home /none\n'
        "set ftp:skey-force yes\nset cmd:fail-exit yes\n"
    )
    run.argv = [*machine_wide(tmp_path / "lftp.conf", "/etc/lftp.conf"), *run.argv]
    run.environment["PYREMOTEDATA_PASSWORD"] = server.password
    assert run("put", tmp_path / "a", server.url("a")).stderr == ""
    assert tree(server.root) == {"a": b"hello"}


def test_fsspec_reads_and_writes_by_an_ftp_url(ftp, monkeypatch):
    monkeypatch.setenv("PYREMOTEDATA_PASSWORD", ftp.password)
    data = os.urandom(100_000)
    ftp.make("fsspec/a", data)
    fs = RemoteFileSystem(**RemoteFileSystem._get_kwargs_from_urls("pyremotedata+" + ftp.url()))
    assert fs.cat_file("/fsspec/a", 10, 50_000) == data[10:50_000]
    with fs.open("pyremotedata+" + ftp.url("fsspec/b"), "wb") as file:
        file.write(data)
    assert tree(ftp.root / "fsspec") == {"a": data, "b": data}
    assert fs.unstrip_protocol("/fsspec/a") == "pyremotedata+" + ftp.url("fsspec/a")


# --- logins -----------------------------------------------------------------------------------


def test_a_wrong_password_is_told_at_once_and_tried_once(ftp_factory):
    server = ftp_factory()
    with reach(server, password=Secret("wrong")) as remote, remote.engine:
        with pytest.raises(AuthenticationFailed) as caught:
            remote.ls("")
        assert "wrong" not in str(caught.value).replace("wrong logins", "")
        told(caught.value, "the login was refused: check user name")
    assert server.faults()["refused"] == 1


def test_without_a_user_the_login_is_anonymous(ftp, tmp_path):
    ftp.make("open/a", b"1")
    with reach(ftp, user="", password=None) as remote, remote.engine:
        assert remote.ls("open") == ["a"]
        (tmp_path / "b").write_bytes(b"2")
        with pytest.raises(RemotePermissionDenied):
            remote.put(tmp_path / "b", "open/b")
    assert tree(ftp.root / "open") == {"a": b"1"}


def test_the_password_is_in_no_command_line(ftp, remote):
    remote.ls("")
    everything = commands()
    assert any("lftp" in command for command in everything)
    assert not [command for command in everything if ftp.password in command]


def test_a_certificate_of_nobody_known_is_refused_and_the_remedy_named(ftps):
    remedy = r"PYREMOTEDATA_CA_FILE"
    with reach(ftps, ca_file=None) as remote, remote.engine:  # noqa: SIM117
        with pytest.raises(HostKeyRejected, match=remedy):
            remote.ls("")


@pytest.mark.parametrize(("content", "why"), [(None, "No such file"), ("none", "no certificate")])
def test_a_file_of_authorities_that_cannot_be_used_is_named(ftps, tmp_path, content, why):
    if content:
        (tmp_path / "ca").write_text(content)
    with reach(ftps, ca_file=str(tmp_path / "ca")) as remote, remote.engine:  # noqa: SIM117
        with pytest.raises(ConfigurationError, match=f"{tmp_path}/ca .*{why}.*CA_FILE"):
            remote.ls("")


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("NOT trusted. The certificate issuer is unknown. ", "PYREMOTEDATA_CA_FILE"),
        ("NOT trusted. The certificate chain uses expired certificate. ", "administrator"),
        ("certificate common name doesn't match requested host name 'h'", "host name that it is"),
    ],
)
def test_a_certificate_is_refused_with_the_remedy_for_what_is_wrong_with_it(said, remedy):
    text = f"Fatal error: Certificate verification: {said}"
    error = from_failure(Failure("", text, None), (), "ftps://h")
    assert type(error) is HostKeyRejected
    assert remedy in str(error)


def test_a_server_that_begins_with_tls_is_thought_of_where_none_answers(ftp_factory):
    server = ftp_factory(tls="implicit")
    with reach(server, ftps_mode="explicit", timeout_s=1.5) as remote, remote.engine:
        with pytest.raises(TransferTimeout, match="PYREMOTEDATA_FTPS_MODE=implicit") as caught:
            remote.ls("")
        told(caught.value, "the server said nothing")


def test_a_certificate_for_another_name_is_refused(ftps):
    url = ftps.url().replace("127.0.0.1", "127.1")  # the same address, but not the same name
    with TransferEngine(ftps.settings(timeout_s=20.0)) as engine:
        error = engine.stat(url).exception(WAIT_S)
    assert type(error) is HostKeyRejected


def refusal(server, url: str, **settings) -> TransferError:
    """Log in, which must fail; return the error."""
    with TransferEngine(server.settings(**{"timeout_s": 20.0, **settings})) as engine:
        error = engine.stat(url).exception(WAIT_S)
    assert isinstance(error, TransferError)
    return error


def test_a_server_that_wants_tls_and_one_that_has_none_are_told_apart(ftp, ftps):
    told(refusal(ftps, ftps.url().replace("ftps:", "ftp:")), "the server asks for TLS")
    told(refusal(ftp, ftp.url().replace("ftp:", "ftps:")), "the server does not offer TLS")


def test_tls_from_the_beginning_where_it_is_to_be_asked_for_is_told(ftps):
    error = refusal(ftps, ftps.url(), ftps_mode="implicit")
    assert type(error) is ConnectionLost
    told(error, "no TLS could be agreed on")


def test_no_such_host_is_told():
    with TransferEngine(ConnectionSettings(timeout_s=20.0)) as engine:
        error = engine.stat("ftp://no-such-host.invalid/").exception(WAIT_S)
    assert type(error) is ConnectionLost
    told(error, "its spelling: …")


def test_where_nothing_listens_is_told(ftp_factory):
    server = ftp_factory()
    server.halt()
    with reach(server) as remote, remote.engine, pytest.raises(ConnectionLost) as caught:
        remote.ls("")
    told(caught.value, "nothing listens")


# --- poor servers -----------------------------------------------------------------------------


def test_where_a_rename_does_not_replace_the_old_file_steps_aside(ftp_factory, tmp_path):
    server = ftp_factory()
    server.make("a", b"old")
    server.faults(no_replace=True)
    (tmp_path / "a").write_bytes(b"new")
    with reach(server) as remote, remote.engine:
        remote.put(tmp_path / "a", "a")
    assert tree(server.root) == {"a": b"new"}


def test_a_file_that_the_server_gives_another_name_is_told(ftp_factory, tmp_path):
    """Pure-FTPd does so where a name ends in a space, or holds a tab."""
    server = ftp_factory()
    server.faults(trims=True)
    (tmp_path / "a ").write_bytes(b"new")
    with reach(server) as remote, remote.engine, pytest.raises(ServerRefused) as caught:
        remote.put(tmp_path / "a ", "a ")
    told(caught.value, "the server has given the file another name")


@pytest.mark.parametrize(("options", "of_each"), [(SERVERS[0], 0), (SERVERS[1], 1)], ids=str)
def test_the_times_of_files_are_asked_for_once_and_where_they_are_wanted(
    ftp_factory, tmp_path, options, of_each
):
    server = ftp_factory(**options)
    for number in range(20):
        server.make(f"many/{number}", b"1", mtime=MTIME)
    (tmp_path / "new").write_bytes(b"2")
    with reach(server) as remote, remote.engine:
        assert {entry.stat.mtime for entry in remote.scandir("many")} == {MTIME}
        directories = 2  # of which lftp asks, too
        assert server.faults().get("times", 0) <= of_each * (20 + directories)
        server.faults(times=0)
        remote.put(tmp_path / "new", "many/new")
        assert not remote.exists("many/none")
        assert server.faults()["times"] < 10


def test_a_full_server_keeps_the_old_file(ftp_factory, tmp_path):
    server = ftp_factory()
    server.make("a", b"old")
    server.faults(full=True)
    (tmp_path / "a").write_bytes(b"new")
    with reach(server) as remote, remote.engine, pytest.raises(ServerRefused, match=r"full"):
        remote.put(tmp_path / "a", "a")
    assert tree(server.root) == {"a": b"old"}


def test_a_reader_may_not_write_and_what_is_missing_is_not_found(ftp, tmp_path):
    ftp.make("reader/a", b"1")
    (tmp_path / "b").write_bytes(b"2")
    with reach(ftp, user="reader") as remote, remote.engine:
        for change in (
            lambda: remote.put(tmp_path / "b", "reader/b"),
            lambda: remote.rm("reader/a"),
            lambda: remote.mkdir("reader/d"),
        ):
            with pytest.raises(RemotePermissionDenied):
                change()
        with pytest.raises(RemoteFileNotFound):
            remote.get("reader/none", tmp_path / "x")
    assert tree(ftp.root / "reader") == {"a": b"1"}


def test_with_fewer_connections_than_asked_for_the_work_is_done(ftp_factory, tmp_path):
    server = ftp_factory(most=3)
    for number in range(30):
        server.make(f"many/{number}", os.urandom(10_000))
    with reach(server) as remote, remote.engine:
        remote.get("many", tmp_path / "many")
    assert tree(tmp_path / "many") == tree(server.root / "many")


@pytest.mark.parametrize("options", SERVERS[:2], ids=str)
def test_a_link_that_leads_nowhere_is_removed(ftp_factory, tmp_path, options):
    server = ftp_factory(**options)
    (tmp_path / "empty").mkdir()
    with reach(server) as remote, remote.engine:
        (server.root / "a").symlink_to("none")
        remote.rm("a", recursive=True)
        assert not os.listdir(server.root)
        (server.root / "a").symlink_to("none")
        assert remote.sync("", tmp_path / "empty", direction="up", delete=True).deleted == 1
        assert not os.listdir(server.root)
        with pytest.raises(RemoteFileNotFound):
            remote.rm("a", recursive=True)


# --- faults -----------------------------------------------------------------------------------


@pytest.mark.parametrize("tls", ["", "explicit"])
def test_transfers_survive_connections_that_break(ftp_factory, tmp_path, tls):
    server = ftp_factory(tls=tls)
    data = os.urandom(8 << 20)
    server.make("a", data)
    (tmp_path / "b").write_bytes(data)
    with reach(server) as remote, remote.engine:
        server.faults(drop_after=2 << 20, drops=2)
        remote.get("a", tmp_path / "a")
        server.faults(drops=2)
        remote.put(tmp_path / "b", "b")
    assert (tmp_path / "a").read_bytes() == (server.root / "b").read_bytes() == data
    assert not temporaries(tmp_path)
    assert not temporaries(server.root)


def test_a_server_that_is_killed_and_comes_back_is_used_on(ftp_factory, tmp_path):
    server = ftp_factory()
    for number in range(40):
        server.make(f"many/{number}", os.urandom(200_000))
    with reach(server) as remote, remote.engine:
        future = remote.engine.fetch_tree(server.url("many"), tmp_path / "many")
        while len(tree(tmp_path)) < 5 and not future.done():
            time.sleep(0.02)
        server.halt()
        threading.Timer(1.0, server.start).start()
        future.result(WAIT_S)
    assert tree(tmp_path / "many") == tree(server.root / "many")


def test_a_transfer_that_stands_still_ends_in_the_time_limit(ftp_factory, tmp_path):
    server = ftp_factory()
    server.make("a", os.urandom(4 << 20))
    server.faults(stall_after=1 << 20)
    with reach(server, timeout_s=2.0) as remote, remote.engine, pytest.raises(TransferTimeout):
        remote.get("a", tmp_path / "a")
    assert not tree(tmp_path)


@pytest.mark.parametrize("size", [8 << 20, 80 << 20])  # over one connection, and over several
def test_lftp_ends_when_its_parent_is_killed_in_mid_download(ftp_factory, tmp_path, size):
    server = ftp_factory()
    with open(server.root / "a", "wb") as file:
        file.truncate(size)
    environment = {**os.environ, "PYREMOTEDATA_PASSWORD": server.password}
    environment["PYREMOTEDATA_BANDWIDTH"] = str(1 << 20)
    command = [*CLI, "get", server.url("a"), str(tmp_path / "a")]
    process = subprocess.Popen(command, env=environment)

    def moves() -> bool:
        return any(os.stat(part).st_size for part in temporaries(tmp_path))

    wait_until(moves)
    below = descendants(process.pid)
    assert below
    process.kill()
    process.wait()
    wait_until(lambda: not alive(below))


def test_an_upload_that_never_ends_well_leaves_the_old_file(ftp_factory, tmp_path):
    server = ftp_factory()
    server.make("a", b"old")
    (tmp_path / "a").write_bytes(os.urandom(4 << 20))
    server.faults(drop_after=1 << 20, drops=1000)
    with reach(server, timeout_s=2.0) as remote, remote.engine, pytest.raises(TransferError):
        remote.put(tmp_path / "a", "a")
    assert (server.root / "a").read_bytes() == b"old"


def test_a_listing_without_end_ends(ftp_factory, monkeypatch):
    monkeypatch.setattr("pyremotedata_core.transports.lftp_ftp_site.LISTING_BYTES", 10 << 20)
    server = ftp_factory()
    server.make("a", b"content")
    server.faults(endless=True)
    with TransferEngine(server.settings(), in_process=True) as engine:
        with pytest.raises(ServerRefused, match="has no end: more than 10485760 bytes"):
            engine.scandir(server.url()).result(WAIT_S)
        server.faults(endless=False)
        assert [entry.name for entry in engine.scandir(server.url()).result(WAIT_S)] == ["a"]
