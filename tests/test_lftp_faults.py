"""The lftp session when things go wrong: sources that change, failed logins, sudden ends."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import threading
import time

import pytest

from pyremotedata_core import (
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
)
from pyremotedata_core.names import is_temporary
from pyremotedata_core.transports.lftp import LftpSession
from pyremotedata_core.transports.lftp_process import find_lftp
from workflows.embedded_sshd import descendants

from .lftp_sessions import (
    children,
    connected,
    fetch,
    in_background,
    relayed,
    store,
    through,
)
from .logins import changed
from .page import told
from .processes import alive, commands
from .servers import ScriptedSshd
from .sites import needs_lftp
from .waiting import wait_until

pytestmark = [needs_lftp, pytest.mark.usefixtures("ending")]


# --- sources that change ------------------------------------------------------------------------


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
    (tmp_path / "out").write_bytes(os.urandom(24 << 20))
    relay = relay_factory(sshd.port, rate=12 << 20)
    session = relayed(sshd, relay)
    relay.drop_after(3 << 20, direction="up")
    moved: list[int] = []
    with pytest.raises(ConnectionLost):
        store(session, tmp_path / "out", there / "f", on_bytes=moved.append)
    assert sum(moved) < 24 << 20  # the rest is not sent in vain
    assert not (there / "f").exists()
    assert not session.alive or os.listdir(there) == []


def test_an_upload_that_is_given_up_as_its_connection_breaks_ends_its_lftp(
    sshd, relay_factory, there, tmp_path
):
    (tmp_path / "out").write_bytes(os.urandom(24 << 20))
    relay = relay_factory(sshd.port, rate=12 << 20)
    session = relayed(sshd, relay)
    moved: list[int] = []
    struck: list[bool] = []

    def given_up() -> bool:
        if moved and not struck:
            relay.reset()
            time.sleep(0.2)  # for lftp to notice
            struck.append(True)
            return False
        return bool(struck)

    session.stop_when(given_up)
    with pytest.raises(ConnectionLost, match="cancelled"):
        store(session, tmp_path / "out", there / "f", on_bytes=moved.append)
    assert not session.alive
    wait_until(lambda: children() == [])


def test_a_file_keeps_its_bytes_when_the_connection_breaks_as_its_time_is_set(
    sshd, relay_factory, there
):
    (there / "f").write_bytes(data := os.urandom(1 << 20))
    relay = relay_factory(sshd.port)
    session = relayed(sshd, relay)
    run = session._site.run

    def broken(command: str, *paths: str, **more):
        if "put -c" in command:
            relay.refuse()
            relay.reset()
            threading.Timer(0.5, relay.accept).start()
        return run(command, *paths, **more)

    session._site.run = broken
    with pytest.raises(ConnectionLost):
        session.touch(f"{there}/f", 1000)
    assert (there / "f").read_bytes() == data


# --- servers that lie ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lie", ["garbage", "huge", "half", "cut", "lying length", "nothing", "too much", "early end"]
)
def test_a_server_that_breaks_the_protocol_ends_the_transfer(lie, tmp_path):
    with ScriptedSshd("lie", lie) as server:
        url = RemoteURL.parse(server.url())
        settings = server.settings(timeout_s=1.0).for_url(url)
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


# --- logins that fail ---------------------------------------------------------------------------


def test_an_unknown_host_key_is_refused_with_its_fingerprint(sshd, tmp_path):
    hosts = tmp_path / "hosts"
    hosts.touch()
    ask = ("StrictHostKeyChecking yes", "StrictHostKeyChecking ask")
    config = changed(sshd, tmp_path / "config", (str(sshd.known_hosts), str(hosts)), ask)
    with pytest.raises(HostKeyRejected, match="SHA256:"):
        connected(sshd, ssh_config=config)
    assert hosts.read_text() == ""


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
    with pytest.raises(TransferError, match="hostname"):
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


def test_a_cancelled_upload_ends_soon_leaves_nothing_and_keeps_the_login(uploading, sshd, there):
    session, relay, end = uploading
    cancelled = threading.Event()
    session.stop_when(cancelled.is_set)
    cancelled.set()
    relay.set(rate=0)
    wait_until(lambda: end)
    assert isinstance(end[0], ConnectionLost)
    assert not end[0].retryable
    assert os.listdir(there) == []
    before = sshd.logins()
    session.stop_when(lambda: False)
    assert session.stat(str(there)).kind == "directory"
    assert sshd.logins() == before


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
