"""The lftp session when things go wrong: sources that change, failed logins, sudden ends."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from pyremotedata_core import (
    AuthenticationFailed,
    ConfigurationError,
    ConnectionLost,
    ConnectionSettings,
    HostKeyRejected,
    RemoteChanged,
    RemoteURL,
    ServerRefused,
    Stat,
    TransferError,
    TransferTimeout,
    UnsafeName,
)
from pyremotedata_core.names import is_temporary
from pyremotedata_core.transports.lftp import LftpSession
from pyremotedata_core.transports.lftp_process import find_lftp
from workflows.embedded_sshd import descendants

from .lftp_sessions import (
    children,
    connected,
    end_sessions,
    fetch,
    in_background,
    listed,
    relayed,
    store,
    through,
)
from .logins import changed, new_key
from .page import told
from .processes import alive, commands
from .servers import ScriptedSshd, free_port
from .sites import needs_lftp
from .waiting import wait_until

pytestmark = needs_lftp


@pytest.fixture(autouse=True)
def _sessions_end_with_their_test() -> Iterator[None]:
    yield
    end_sessions()


@pytest.fixture
def session(sshd) -> LftpSession:
    return connected(sshd)


# --- sources that change ------------------------------------------------------------------------


@pytest.mark.parametrize("expect", [Stat("file", 3, 8), Stat("file", 4, 9), Stat("file", 2, 9)])
def test_a_file_that_is_not_what_was_expected_is_refused(session, there, tmp_path, expect):
    (there / "f").write_bytes(b"abc")
    os.utime(there / "f", (9, 9))
    with pytest.raises(RemoteChanged):
        fetch(session, there / "f", tmp_path / "in", expect)
    assert os.listdir(tmp_path) == []
    fetch(session, there / "f", tmp_path / "in", Stat("file", 3, 9))


@pytest.mark.parametrize("change", ["replaced", "truncated", "grown", "rewritten"])
def test_a_file_that_changes_while_it_is_read_is_not_kept(
    sshd, relay_factory, there, tmp_path, change
):
    size = 4 << 20
    (there / "f").write_bytes(os.urandom(size))
    os.utime(there / "f", (1000, 1000))
    relay = relay_factory(sshd.port, rate=4 << 20)
    session = relayed(sshd, relay)
    changed = []

    def alter(_count: int) -> None:
        if changed:
            return
        changed.append(True)
        if change == "replaced":
            (there / "new").write_bytes(os.urandom(size))
            (there / "new").rename(there / "f")
        elif change == "truncated":
            os.truncate(there / "f", size // 2)
        elif change == "grown":
            with (there / "f").open("ab") as file:
                file.write(b"more")
        else:
            with (there / "f").open("r+b") as file:
                file.write(os.urandom(size))

    with pytest.raises(RemoteChanged):
        fetch(session, there / "f", tmp_path / "in", on_bytes=alter)
    assert os.listdir(tmp_path) == []
    assert session.alive
    fetch(session, there / "f", tmp_path / "in")
    assert (tmp_path / "in").read_bytes() == (there / "f").read_bytes()


def test_a_download_goes_on_after_a_broken_connection(sshd, relay_factory, there, tmp_path):
    data = os.urandom(8 << 20)
    (there / "f").write_bytes(data)
    relay = relay_factory(sshd.port)
    session = relayed(sshd, relay)
    relay.drop_after(3 << 20)
    fetch(session, there / "f", tmp_path / "in")
    assert (tmp_path / "in").read_bytes() == data
    assert relay.status()["faults"] == 1


def test_a_download_does_not_go_on_with_another_file(sshd, relay_factory, there, tmp_path):
    size = 8 << 20
    (there / "f").write_bytes(os.urandom(size))
    os.utime(there / "f", (1000, 1000))
    (there / "new").write_bytes(os.urandom(size))
    relay = relay_factory(sshd.port, rate=8 << 20)
    session = relayed(sshd, relay)
    done = []

    def replace(_count: int) -> None:
        if not done:
            done.append(True)
            (there / "new").rename(there / "f")
            relay.reset()

    with pytest.raises(RemoteChanged):
        fetch(session, there / "f", tmp_path / "in", on_bytes=replace)
    assert os.listdir(tmp_path) == []


def test_an_upload_whose_connection_broke_is_not_published(sshd, relay_factory, there, tmp_path):
    (tmp_path / "out").write_bytes(os.urandom(8 << 20))
    relay = relay_factory(sshd.port)
    session = relayed(sshd, relay)
    relay.drop_after(3 << 20, direction="up")
    with pytest.raises(ConnectionLost):
        store(session, tmp_path / "out", there / "f")
    assert not (there / "f").exists()
    assert not session.alive or os.listdir(there) == []


# --- servers that lie ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lie", ["garbage", "huge", "half", "cut", "lying length", "nothing", "too much", "early end"]
)
def test_a_server_that_breaks_the_protocol_ends_the_transfer(lie, tmp_path):
    with ScriptedSshd("lie", lie) as server:
        url = RemoteURL.parse(server.url())
        settings = server.settings(timeout_s=2.0).for_url(url)
        session = LftpSession(url, settings)
        expect = Stat("file", 102_400, 1_500_000_000)

        def login_and_fetch() -> None:
            session.connect()
            fetch(session, "/lies/file.bin", tmp_path / "in", expect)

        with pytest.raises(TransferError):
            login_and_fetch()
        session.kill()
    assert os.listdir(tmp_path) == []
    wait_until(lambda: children() == [])


@pytest.mark.parametrize("name", ["../x", "a/b", "/etc/passwd", "..", ".", "", "a\nb"])
def test_a_listed_name_never_leaves_its_directory(name):
    with ScriptedSshd("lie", "names", [name, "good"]) as server:
        session = connected(server)
        try:
            names = set(listed(session, "/lies"))
        except UnsafeName:
            names = {"good"}
        assert names == {"good"}


# --- logins that fail ---------------------------------------------------------------------------


def test_a_wrong_key_is_refused_after_one_attempt(sshd_factory, tmp_path):
    server = sshd_factory()
    key = new_key(tmp_path / "key")
    config = changed(server, tmp_path / "config", (str(server.key), str(key)))
    with pytest.raises(AuthenticationFailed):
        connected(server, ssh_config=config)
    assert server.log_text().count("Connection from") == 1
    assert children() == []


def test_an_unknown_host_key_is_refused_with_its_fingerprint(sshd, tmp_path):
    hosts = tmp_path / "hosts"
    hosts.touch()
    ask = ("StrictHostKeyChecking yes", "StrictHostKeyChecking ask")
    config = changed(sshd, tmp_path / "config", (str(sshd.known_hosts), str(hosts)), ask)
    with pytest.raises(HostKeyRejected, match="SHA256:"):
        connected(sshd, ssh_config=config)
    assert hosts.read_text() == ""


def test_a_refused_port_and_an_unknown_host_are_named(sshd):
    with pytest.raises(ConnectionLost, match="refused"):
        through(sshd, free_port()).connect()
    url = RemoteURL.parse("sftp://no-such-host.invalid/")
    with pytest.raises(ConnectionLost, match="unknown host"):
        LftpSession(url, ConnectionSettings().for_url(url)).connect()
    assert children() == []


def test_a_server_that_serves_no_sftp_ends_the_login(sshd_factory):
    server = sshd_factory(lines=["ForceCommand /bin/false"])
    with pytest.raises(ServerRefused, match="ended the session at once"):
        connected(server)
    assert children() == []


def test_a_login_script_that_prints_is_named_as_a_cause():
    with (
        ScriptedSshd("lie", "banner") as server,
        pytest.raises(TransferTimeout, match="login script"),
    ):
        connected(server, timeout_s=2.0)


def test_a_missing_lftp_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigurationError) as caught:
        find_lftp()
    told(caught.value, "the program lftp is not installed")


def test_a_host_that_looks_like_an_option_is_a_host(tmp_path):
    url = RemoteURL("sftp", f"-oProxyCommand=touch {tmp_path}/ran", "/")
    with pytest.raises(TransferError):
        LftpSession(url, ConnectionSettings(timeout_s=10).for_url(url)).connect()
    assert os.listdir(tmp_path) == []


def test_a_password_is_used_and_seen_nowhere(chroot_sshd):
    name = f"secret-{secrets.token_hex(4)}"
    chroot_sshd.make(name, b"abc")
    session = connected(chroot_sshd, **vars(chroot_sshd.password_settings()) | {"timeout_s": 20.0})
    assert session.stat(chroot_sshd.remote_path(name)).size == 3
    assert len(children()) == 2
    everything = "\n".join(commands())
    assert "lftp" in everything
    assert chroot_sshd.password not in everything
    error = None
    try:
        session.stat("/none")
    except TransferError as caught:
        error = caught
    assert chroot_sshd.password not in f"{error!r}{session!r}{vars(session)!r}"


# --- ends ---------------------------------------------------------------------------------------


def test_a_silent_server_ends_in_a_timeout_and_leaves_no_process(
    sshd, relay_factory, there, tmp_path
):
    (there / "f").write_bytes(os.urandom(8 << 20))
    relay = relay_factory(sshd.port)
    session = relayed(sshd, relay, timeout_s=2.0)
    expect = session.stat(f"{there}/f")
    relay.stall(after_bytes=1 << 20)
    with pytest.raises(TransferTimeout):
        fetch(session, there / "f", tmp_path / "in", expect)
    assert not session.alive
    assert os.listdir(tmp_path) == []
    with pytest.raises(TransferTimeout):
        through(sshd, relay.port, timeout_s=2.0).connect()
    wait_until(lambda: children() == [])


@pytest.fixture
def uploading(sshd, relay_factory, there, tmp_path):
    """An upload that is under way over a slow line: session, relay, and what comes of it."""
    (tmp_path / "out").write_bytes(os.urandom(16 << 20))
    relay = relay_factory(sshd.port, rate=1 << 20)
    session = relayed(sshd, relay, timeout_s=3600.0)
    moved: list[int] = []
    with in_background(store, session, tmp_path / "out", f"{there}/f", True, moved.append) as end:
        wait_until(lambda: moved)
        yield session, relay, end


def test_a_killed_lftp_is_noticed_at_once(uploading, there):
    session, _, end = uploading
    (pid,) = children("lftp")
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: end)
    assert isinstance(end[0], ConnectionLost)
    assert not session.alive
    assert all(is_temporary(name) for name in os.listdir(there))
    wait_until(lambda: children() == [])


def test_an_lftp_that_hangs_is_killed(sshd, there):
    (there / "f").write_bytes(b"abc")
    session = connected(sshd, timeout_s=1.0)
    (pid,) = children("lftp")
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(TransferTimeout):
        session.stat(f"{there}/f")
    assert not session.alive
    wait_until(lambda: children() == [])


def test_a_killed_ssh_is_noticed_at_once(uploading, there):
    session, relay, end = uploading
    for pid in children("ssh"):
        os.kill(pid, signal.SIGKILL)
    relay.set(rate=0)
    wait_until(lambda: end)
    assert isinstance(end[0], ConnectionLost)
    assert not (there / "f").exists()
    session.kill()


def test_kill_from_another_thread_ends_a_transfer(uploading, there):
    session, _, end = uploading
    session.kill()
    session.kill()
    wait_until(lambda: end)
    assert isinstance(end[0], ConnectionLost)
    assert not (there / "f").exists()
    wait_until(lambda: children() == [])


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_cancelled_transfer_ends_soon_leaves_nothing_and_keeps_the_login(
    sshd, relay_factory, there, tmp_path, direction
):
    (tmp_path / "out").write_bytes(os.urandom(16 << 20))
    (there / "in").write_bytes(os.urandom(16 << 20))
    relay = relay_factory(sshd.port, rate=1 << 20)
    session = relayed(sshd, relay, timeout_s=3600.0)
    cancelled = threading.Event()
    session.stop_when(cancelled.is_set)
    moved: list[int] = []
    if direction == "up":
        call = (store, session, tmp_path / "out", f"{there}/f", True, moved.append)
    else:
        call = (fetch, session, there / "in", tmp_path / "f", None, moved.append)
    with in_background(*call) as end:
        wait_until(lambda: moved)
        cancelled.set()
        relay.set(rate=0)
        wait_until(lambda: end)
    assert isinstance(end[0], ConnectionLost)
    assert not end[0].retryable
    assert os.listdir(there) == ["in"]
    assert os.listdir(tmp_path) == ["out"]
    cancelled.clear()
    before = sshd.logins()
    assert session.stat(f"{there}/in").size == 16 << 20
    assert sshd.logins() == before


def test_a_server_that_dies_ends_the_session(sshd_factory):
    server = sshd_factory()
    server.make("f", b"abc")
    session = connected(server)
    server.halt()
    with pytest.raises(ConnectionLost):
        session.stat(f"{server.root}/f")
    assert not session.alive
    wait_until(lambda: children() == [])


def test_lftp_ends_when_its_parent_is_killed_in_mid_transfer(sshd, relay_factory, there, tmp_path):
    (there / "f").write_bytes(os.urandom(16 << 20))
    relay = relay_factory(sshd.port, rate=1 << 20)
    session = through(sshd, relay.port)
    script = f"""
import sys
from pyremotedata_core import ConnectionSettings, RemoteURL
from pyremotedata_core.part import Part
from pyremotedata_core.transports.lftp import LftpSession
url = RemoteURL.parse({f"sftp://{sshd.user}@127.0.0.1:{relay.port}/"!r})
settings = ConnectionSettings(ssh_config={session._settings.ssh_config!r}).for_url(url)
session = LftpSession(url, settings)
session.connect()
path = {str(there / "f")!r}
expect = session.stat(path)
print(session._site._process._process.pid, flush=True)
session.read(path, Part({str(tmp_path / "in")!r}), 0, expect.size, expect,
             lambda n: print("moved", flush=True))
"""
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    pid = int(child.stdout.readline())
    assert child.stdout.readline() == "moved\n"
    below = [pid, *descendants(pid)]
    assert len(below) >= 2
    child.kill()
    child.wait()
    child.stdout.close()
    wait_until(lambda: not alive(below))
    assert all(is_temporary(name) for name in os.listdir(tmp_path))
