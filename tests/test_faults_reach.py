"""Servers that are not there, and servers that let in few: told, or waited for."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from pyremotedata_core import (
    ConfigurationError,
    ConnectionLost,
    RemoteURL,
    ServerRefused,
    TransferEngine,
    TransferTimeout,
)
from pyremotedata_core.nodestate import SessionSlots
from pyremotedata_core.stager.place import cache_root

from .command import Command
from .crowd import move_at_once
from .logins import attempt, changed
from .page import told
from .servers import ScriptedSshd, Sshd, free_port
from .sites import WAIT_S, needs_lftp, tree
from .waiting import wait_until

FOLDERS = "/tmp", "/var/tmp"
LONG = "t" * 90

# --- nobody there ---------------------------------------------------------------------------


@pytest.fixture
def listener():
    """A port that takes connections and does with them what ``serve`` does."""
    sockets: list[socket.socket] = []

    def make(serve) -> int:
        server = socket.create_server(("127.0.0.1", 0))
        sockets.append(server)

        def accept() -> None:
            while True:
                try:
                    sockets.append(server.accept()[0])
                except OSError:
                    return
                serve(sockets[-1])

        threading.Thread(target=accept, daemon=True).start()
        return server.getsockname()[1]

    yield make
    for each in sockets:
        each.close()


def test_nobody_at_the_port(carrier, sshd):
    error = attempt(f"sftp://127.0.0.1:{free_port()}/", sshd.settings(carrier=carrier))
    assert type(error) is ConnectionLost
    told(error, "nothing listens")


def test_no_such_host(carrier, sshd):
    error = attempt("sftp://no-such-host.invalid/", sshd.settings(carrier=carrier))
    assert type(error) is ConnectionLost
    told(error, "and your ssh_config")


@pytest.mark.parametrize(
    "said", [b"\x15\x03\x01\0\x02\x02\x46", b"x" * 70_000, b"HTTP/1.1 400 Bad\r\n" * 4000]
)
def test_another_program_at_the_port(sshd, listener, said):
    port = listener(lambda client: client.sendall(said))
    error = attempt(f"sftp://127.0.0.1:{port}/", sshd.settings(timeout_s=20.0))
    assert type(error) is ConnectionLost
    told(error, "no SSH server answers there")


def test_another_program_at_the_port_of_which_paramiko_tells(sshd, listener):
    port = listener(lambda client: client.sendall(b"HTTP/1.1 400 Bad\r\n" * 4000))
    settings = sshd.settings(carrier="paramiko", timeout_s=20.0)
    told(attempt(f"sftp://127.0.0.1:{port}/", settings), "no SSH server answers there")


@pytest.mark.parametrize("serve", [lambda _: None, lambda c: c.sendall(b"SSH-2.0-x\r\n")])
def test_a_server_that_never_answers_the_login(carrier, sshd, listener, serve):
    port = listener(serve)
    error = attempt(f"sftp://127.0.0.1:{port}/", sshd.settings(carrier=carrier, timeout_s=1.0))
    assert type(error) is TransferTimeout
    assert str(port) in str(error)
    if "did not" in str(error):  # ssh may be the first to give up
        told(error, "did not answer within")


def test_a_jump_host_that_never_answers(sshd, listener, tmp_path):
    jump = f"Host jump\n HostName 127.0.0.1\n Port {listener(lambda _: None)}\n ConnectTimeout 1\n"
    config = tmp_path / "config"
    config.write_text(f"{jump}Host embedded\n ProxyJump jump\n{sshd.ssh_config.read_text()}")
    error = attempt(f"sftp://embedded{sshd.root}", sshd.settings(ssh_config=str(config)))
    assert type(error) is TransferTimeout
    told(error, "the server does not answer")


def test_a_jump_host_that_leads_nowhere_is_tried_once(carrier, sshd_factory, tmp_path):
    """What it says is what a server says that takes no further session."""
    jump = sshd_factory(lines=["AllowTcpForwarding no"])
    where = f"Host jump\n HostName 127.0.0.1\n Port {jump.port}\n"
    config = tmp_path / "config"
    config.write_text(f"{where}Host inner\n ProxyJump jump\n{jump.ssh_config.read_text()}")
    with TransferEngine(jump.settings(carrier=carrier, ssh_config=str(config))) as engine:
        error = engine.stat("sftp://inner/").exception(WAIT_S)
    assert type(error) is ConnectionLost
    told(error, "the jump host does not connect")
    assert jump.logins() == 1


@pytest.mark.parametrize("scheme", ["sftp", pytest.param("ftp", marks=needs_lftp)])
def test_a_machine_without_a_way_out(alone, run, scheme):
    run.argv = [*alone, *run.argv]
    told(run.failure("ls", f"{scheme}://192.0.2.1/"), "the network does not reach")


@pytest.fixture
def nameless(run) -> Command:
    """The command, run by a user who has a number only, as in some containers."""
    user = (1 << 20) + os.getpid()
    argv = ["unshare", "--user", f"--map-user={user}"]
    if not shutil.which("unshare") or subprocess.run([*argv, "true"], check=False).returncode:
        pytest.skip("no such user can be made here")
    run.argv = [*argv, *run.argv]
    return run


def test_a_user_whom_the_machine_does_not_know(carrier, nameless, url, make):
    make("a")
    nameless.environment["PYREMOTEDATA_CARRIER"] = carrier
    if carrier == "paramiko":
        assert nameless("ls", url()).stdout == "a\n"
    else:
        told(nameless.failure("ls", url(), status=2), "ssh serves nobody")
        assert "BAD ssh: " in nameless("doctor", url(), status=1).stdout


def test_a_user_without_a_home(nameless, url):
    del nameless.environment["HOME"]
    nameless.environment.pop("XDG_CONFIG_HOME", None)
    assert "set HOME, or PYREMOTEDATA_CONFIG" in nameless.failure("ls", url(), status=2)


def test_who_is_somebody_else_in_a_container_has_the_files_of_the_node(nameless):
    del nameless.environment["PYREMOTEDATA_CACHE_DIR"]
    assert str(cache_root(None)) in nameless("cache").stdout


@pytest.fixture
def read_only(run, tmp_path) -> Command:
    """The command on a machine whose temporary folders are read-only, but for `tmp_path`."""
    steps = [f"mount --rbind {one} {one} && mount -o remount,bind,ro {one}" for one in FOLDERS]
    steps += [f"mount -t tmpfs tmpfs {tmp_path}", f"mkdir {run.directory} {tmp_path / LONG}"]
    argv = ["unshare", "--mount", *([] if os.getuid() == 0 else ["--map-root-user"])]
    argv += ["sh", "-c", " && ".join([*steps, 'exec "$0" "$@"'])]
    if not shutil.which("unshare") or subprocess.run([*argv, "true"], check=False).returncode:
        pytest.skip("no such folders can be made here")
    run.argv = [*argv, *run.argv]
    return run


def test_where_the_systems_folders_are_read_only_the_users_serves(read_only, tmp_path, url, make):
    make("a", b"content")
    read_only.environment.pop("TMPDIR", None)
    told(read_only.failure("cat", url("a"), status=2), "neither /tmp")
    # There ssh has no room for the socket of a shared connection.
    read_only.environment["TMPDIR"] = str(tmp_path / LONG)
    assert read_only("cat", url("a")).stdout == "content"
    del read_only.environment["PYREMOTEDATA_CACHE_DIR"]
    assert str(tmp_path) in read_only("cache").stdout


def test_a_server_that_hangs_up(carrier, sshd, listener):
    def hang_up(client):
        client.recv(1000)  # before that ssh may meet the end while it sends, and say less
        client.close()

    port = listener(hang_up)
    error = attempt(f"sftp://127.0.0.1:{port}/", sshd.settings(carrier=carrier, timeout_s=2.0))
    assert type(error) is ConnectionLost
    told(error, "the server closed the connection")


def test_a_server_without_sftp(carrier, sshd_factory):
    server = sshd_factory(subsystem="none /bin/false")
    error = attempt(server.url(), server.settings(carrier=carrier), times=5)
    assert type(error) is ServerRefused
    told(error, "the server offers no SFTP")
    assert server.logins() <= 2


def test_what_a_server_offers_may_be_allowed_in_ssh_config(sshd_factory, tmp_path):
    server = sshd_factory(lines=["Ciphers aes256-ctr"])
    change = "Host *\n", "Host *\n Ciphers aes128-ctr\n"
    config = changed(server, tmp_path / "config", change)
    error = attempt(server.url(), server.settings(ssh_config=config))
    assert type(error) is ConnectionLost
    told(error, "no protocol or algorithm in common")
    offer = str(error).partition("Their offer: ")[2]
    config = changed(server, tmp_path / "config", (change[0], f"Host *\n Ciphers +{offer}\n"))
    with TransferEngine(server.settings(ssh_config=config)) as engine:
        assert engine.stat(server.url()).result(WAIT_S).kind == "directory"


@pytest.mark.parametrize("greeting", [False, True])
def test_a_server_that_ends_the_session_at_once(carrier, sshd_factory, tmp_path, greeting):
    (tmp_path / "greeting").write_text("Idle sessions end by Timeout.\n")
    banner = [f"Banner {tmp_path}/greeting"] if greeting else []
    server = sshd_factory(lines=["ForceCommand exit 3", *banner])
    error = attempt(server.url(), server.settings(carrier=carrier), times=5)
    assert type(error) is ServerRefused
    assert not error.retryable
    told(error, "the server ended the session at once")
    assert "(exit status 3)" in str(error)
    assert server.logins() <= 2


def test_a_greeting_is_not_why_a_session_breaks(sshd_factory, tmp_path):
    (tmp_path / "greeting").write_text("Idle sessions end by Timeout.\n")
    server = sshd_factory(lines=[f"Banner {tmp_path}/greeting"])
    server.make("large", bytes(60 * 2**20))
    with TransferEngine(server.settings(bandwidth=2**20, timeout_s=5.0)) as engine:
        engine.stat(server.url("large")).result(WAIT_S)
        fetch = engine.fetch(server.url("large"), tmp_path / "large")
        server.halt()
        assert "Timeout" not in str(fetch.exception(WAIT_S))


def test_an_ssh_config_that_ssh_does_not_take(sshd, tmp_path):
    config = tmp_path / "config"
    config.write_text("NoSuchOption yes\n")
    error = attempt(sshd.url(), sshd.settings(ssh_config=str(config)))
    assert type(error) is ConfigurationError
    assert str(config) in str(error)
    told(error, "OpenSSH does not accept")
    error = attempt(sshd.url(), sshd.settings(ssh_config=str(tmp_path / "none")))
    assert type(error) is ConfigurationError
    told(error, "OpenSSH does not accept")


def test_where_there_is_no_ssh_paramiko_connects(sshd, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    sshd.make("no-ssh/a", b"1")
    with TransferEngine(sshd.settings()) as engine:
        assert engine.stat(sshd.url("no-ssh/a")).result(WAIT_S).size == 1
    error = attempt(sshd.url(), sshd.settings(carrier="openssh"))
    assert type(error) is ConfigurationError
    told(error, "the program ssh is not installed")


# --- few are let in -------------------------------------------------------------------------


def test_a_server_that_takes_no_session_is_asked_for_a_while(sshd_factory):
    server = sshd_factory(lines=["MaxSessions 0"])
    with TransferEngine(server.settings(timeout_s=4.0)) as engine:
        error = engine.stat(server.url()).exception(WAIT_S)
    assert type(error) is ServerRefused
    told(error, "the server takes no further session now")
    assert server.log_text().count("Connection from") > 1


def test_sessions_that_other_processes_keep_are_given_up_in_the_end(sshd_factory, monkeypatch):
    """Whoever no longer waits for one lets them keep it."""
    monkeypatch.setattr("pyremotedata_core.pool.TAKEN_S", 1.0)
    server = sshd_factory()
    others = SessionSlots(RemoteURL.parse(server.url()).server, 1)
    taken = others.acquire()
    with TransferEngine(server.settings(timeout_s=0.1, connections=1), in_process=True) as engine:
        error = engine.stat(server.url()).exception(WAIT_S)
        assert type(error) is TransferTimeout
        told(error, "stayed taken by other processes")
        assert not others.others_wait()
        future = engine.stat(server.url())
        wait_until(others.others_wait)
        future.cancel()
        wait_until(lambda: not others.others_wait())
    with TransferEngine(server.settings(connections=2)) as engine:
        assert engine.stat(server.url()).result(WAIT_S).kind == "directory"
    os.close(taken)


def most_sessions(server: Sshd) -> int:
    """Return how many SFTP sessions the server had at a time, at the most, by its log."""
    now = most = 0
    for line in server.log_text().splitlines():
        if line.startswith("Starting session: subsystem"):
            now += 1
        elif line.startswith("Close session:"):
            now -= 1
        most = max(most, now)
    return most


def test_twenty_threads_at_a_server_that_takes_few(carrier, sshd_factory, tmp_path):
    server = sshd_factory(lines=["MaxStartups 3:100:3", "MaxSessions 1"])
    wanted = {str(number): os.urandom(number * 20_000) for number in range(20)}
    for name, data in wanted.items():
        server.make(name, data)

    def work(number: int) -> None:
        # Five engines: more logins at once than the server takes.
        engine = engines[number % 5]
        engine.fetch(server.url(str(number)), tmp_path / str(number)).result(WAIT_S)
        engine.store(tmp_path / str(number), server.url(f"up/{number}")).result(WAIT_S)

    engines = [TransferEngine(server.settings(carrier=carrier, timeout_s=30.0)) for _ in range(5)]
    try:
        with ThreadPoolExecutor(20) as pool:
            list(pool.map(work, range(20)))
    finally:
        for engine in engines:
            engine.close()
    assert tree(tmp_path) == wanted
    assert tree(server.root / "up") == wanted


def test_one_engine_gets_all_done_in_one_session(carrier, sshd_factory, relay_factory, tmp_path):
    """A large file over a slow link would have more, if the server took them."""
    server = sshd_factory(lines=["MaxSessions 1"])
    relay = relay_factory(server.port, one_way_ms=20)
    data = os.urandom(30 * 2**20)
    server.make("large", data)
    settings = server.settings(carrier=carrier, timeout_s=30.0)
    with TransferEngine(settings) as engine:
        engine.fetch(relay.url(server.url("large")), tmp_path / "large").result(WAIT_S)
        engine.store(tmp_path / "large", relay.url(server.url("up"))).result(WAIT_S)
    assert (tmp_path / "large").read_bytes() == data
    assert (server.root / "up").read_bytes() == data


def test_who_moves_much_in_small_portions_gets_more_windows_on_the_same_login(
    carrier, sshd_factory, relay_factory, tmp_path
):
    server = sshd_factory(log_requests=True)
    relay = relay_factory(server.port, one_way_ms=50)
    (tmp_path / "a").write_bytes(data := os.urandom(8 * 2**20))
    with TransferEngine(server.settings(carrier=carrier, timeout_s=30.0)) as engine:
        for number in range(4):
            engine.store(tmp_path / "a", relay.url(server.url(f"up/{number}"))).result(WAIT_S)
    assert tree(server.root / "up") == {str(number): data for number in range(4)}
    assert server.requests("limits") > 1  # each session asks once
    assert server.logins() == 1


def test_each_session_has_a_login_at_a_server_that_may_stall_with_several_on_one(
    relay_factory, tmp_path
):
    (tmp_path / "a").write_bytes(data := os.urandom(30 * 2**20))
    with ScriptedSshd("relay", {"versions": True}) as server:
        relay = relay_factory(server.port, one_way_ms=20)
        with TransferEngine(server.settings(timeout_s=30.0)) as engine:
            engine.store(tmp_path / "a", relay.url(server.url("a"))).result(WAIT_S)
        assert (server.root / "a").read_bytes() == data
        assert server.log_text().count("subsystem 'sftp'") == server.logins()


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("processes", "sessions"), [(12, 2), pytest.param(40, 4, marks=pytest.mark.full)]
)
def test_many_processes_share_the_sessions_of_a_node(
    sshd_factory, tmp_path, monkeypatch, processes, sessions
):
    server = sshd_factory(lines=["MaxStartups 10:100:10"])
    server.make("a", os.urandom(100_000))
    monkeypatch.setenv("PYREMOTEDATA_SSH_CONFIG", str(server.ssh_config))
    monkeypatch.setenv("PYREMOTEDATA_CONNECTIONS", str(sessions))
    move_at_once(server, tmp_path, processes)
    assert most_sessions(server) <= sessions
