"""The servers and the relay that the other tests stand on, seen by OpenSSH's own clients."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys

import pytest

from workflows.embedded_sshd import EmbeddedSshd, ServerUnavailable, descendants, program

from .relay import Relay
from .servers import Sshd, free_port, sftp_client


def test_a_file_of_the_server_reaches_the_sftp_client(sshd, remote_directory, tmp_path):
    data = os.urandom(300_000)
    path = sshd.make(f"{remote_directory}/sub/a b.bin", data)
    done = sftp_client(sshd, f'get "{path}" "{tmp_path}/a b.bin"\n')
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a b.bin").read_bytes() == data


def test_urls_are_percent_encoded_and_absolute(sshd):
    assert sshd.url("a b/%é.txt") == (
        f"sftp://{sshd.user}@127.0.0.1:{sshd.port}{sshd.root}/a%20b/%25%C3%A9.txt"
    )


def test_the_server_is_known_by_its_host_key_only(sshd, tmp_path):
    (tmp_path / "none").touch()
    command = [program("ssh"), "-F", str(sshd.ssh_config), "-o", "BatchMode=yes", sshd.alias]
    assert subprocess.run([*command, "true"], timeout=30, check=False).returncode == 0
    unknown = [*command[:3], "-o", f"UserKnownHostsFile={tmp_path}/none", *command[3:], "true"]
    done = subprocess.run(unknown, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 255
    assert "Host key verification failed" in done.stderr


def test_denied_requests_are_denied(sshd_factory):
    server = sshd_factory(sftp_arguments="-P posix-rename,rename")
    server.make("a", b"1")
    done = sftp_client(server, f"rename {server.root}/a {server.root}/b\n")
    assert done.returncode != 0
    assert (server.root / "a").exists()


def test_requests_are_counted(sshd_factory, tmp_path):
    server = sshd_factory(log_requests=True)
    server.make("a", b"1" * 1000)
    assert server.requests() == 0
    sftp_client(server, f"get {server.root}/a {tmp_path}/a\n")
    assert server.requests("open") == 1
    assert server.requests("read") >= 1
    assert server.requests() > 3
    assert server.logins() == 1


def test_lines_of_the_caller_win_over_the_servers_own(sshd_factory):
    server = sshd_factory(lines=["PubkeyAuthentication no"])
    done = sftp_client(server, "pwd\n")
    assert done.returncode == 255
    assert server.logins() == 0


def test_a_restarted_server_has_the_same_port_and_key(sshd_factory):
    server = sshd_factory()
    port = server.port
    server.restart()
    assert server.port == port
    assert sftp_client(server, "pwd\n").returncode == 0


@contextlib.contextmanager
def open_session(server):
    """A client that has begun an SFTP session and waits."""
    command = [program("ssh"), "-F", str(server.ssh_config), "-s", server.alias, "sftp"]
    with subprocess.Popen(
        command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as client:
        client.stdin.write(b"\0\0\0\5\1\0\0\0\3")
        client.stdin.flush()
        assert client.stdout.read(5)[4] == 2  # SSH_FXP_VERSION
        yield client
        client.kill()


def test_killed_sessions_end_the_client_and_not_the_server(sshd_factory):
    server = sshd_factory()
    with open_session(server) as client:
        assert server.kill_sessions() > 0
        assert client.wait(10) == 255
    assert sftp_client(server, "pwd\n").returncode == 0


def test_frozen_sessions_say_nothing_until_they_are_thawed(sshd_factory):
    server = sshd_factory()
    with open_session(server) as client:
        while select.select([client.stdout], [], [], 0.5)[0]:
            os.read(client.stdout.fileno(), 2**16)  # the rest of the greeting
        server.freeze()
        client.stdin.write(b"\0\0\0\x0a\x10\0\0\0\1\0\0\0\1.")  # SSH_FXP_REALPATH
        client.stdin.flush()
        assert not select.select([client.stdout], [], [], 0.5)[0]
        server.thaw()
        assert select.select([client.stdout], [], [], 10)[0]


def test_a_stopped_server_leaves_no_process_and_no_file():
    server = Sshd().start()
    with open_session(server) as client:
        pids = [server.pid, *server.session_pids()]
        assert len(pids) > 1
        server.stop()
        server.stop()
        client.wait(10)
    assert not [pid for pid in pids if pid in descendants(os.getpid())]
    assert not server.directory.exists()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port), timeout=5)


def test_a_configuration_that_sshd_refuses_is_told():
    server = EmbeddedSshd(lines=["NoSuchKeyword yes"])
    with pytest.raises(ServerUnavailable, match="NoSuchKeyword"):
        server.start()
    assert not server.directory.exists()


def test_the_chrooted_account_sees_its_home_only(chroot_sshd, tmp_path):
    path = chroot_sshd.make("in/a.txt", b"hello")
    assert path.stat().st_uid != 0
    done = sftp_client(
        chroot_sshd,
        f"get /upload/in/a.txt {tmp_path}/a\nput {tmp_path}/a /upload/in/b.txt\nls -1 /\n",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "/upload"
    assert (chroot_sshd.root / "in/b.txt").read_bytes() == b"hello"
    assert chroot_sshd.url("in/a.txt").endswith("/upload/in/a.txt")


def test_the_chrooted_account_runs_no_commands(chroot_sshd):
    done = subprocess.run(
        [program("ssh"), "-F", str(chroot_sshd.ssh_config), chroot_sshd.alias, "echo", "hello"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert "hello" not in done.stdout


def test_the_chrooted_account_takes_its_password(chroot_sshd, tmp_path):
    askpass = tmp_path / "askpass"
    askpass.write_text('#!/bin/sh\nprintf "%s\\n" "$TEST_PASSWORD"\n')
    askpass.chmod(0o700)
    for password, status in ((chroot_sshd.password, 0), ("wrong", 255)):
        done = subprocess.run(
            [program("sftp"), "-F", str(chroot_sshd.password_ssh_config), chroot_sshd.alias],
            input="pwd\n",
            env={
                **os.environ,
                "SSH_ASKPASS": str(askpass),
                "SSH_ASKPASS_REQUIRE": "force",
                "TEST_PASSWORD": password,
            },
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == status, done.stderr


def test_settings_leave_the_password_out_of_their_text(chroot_sshd):
    assert chroot_sshd.password not in repr(chroot_sshd.password_settings())


@pytest.fixture
def echo():
    """A loopback server that sends back what it gets."""
    program_text = (
        "import socket, threading, sys\n"
        "s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True)\n"
        "def serve(c):\n"
        "    try:\n"
        "        while d := c.recv(65536): c.sendall(d)\n"
        "        c.close()\n"
        "    except OSError: pass\n"
        "while True: threading.Thread(target=serve, args=(s.accept()[0],), daemon=True).start()\n"
    )
    with subprocess.Popen([sys.executable, "-c", program_text], stdout=subprocess.PIPE) as server:
        yield int(server.stdout.readline())
        server.kill()


def connect(relay: Relay) -> socket.socket:
    return socket.create_connection(("127.0.0.1", relay.port), timeout=10)


def exchange(client: socket.socket, data: bytes) -> bytes:
    client.sendall(data)
    answer = b""
    while len(answer) < len(data) and (more := client.recv(65536)):
        answer += more
    return answer


@pytest.mark.parametrize("one_way_ms", [0, 5])
def test_the_relay_carries_bytes_both_ways_and_their_end(relay_factory, echo, one_way_ms):
    relay = relay_factory(echo, one_way_ms=one_way_ms)
    data = os.urandom(100_000)
    with connect(relay) as client:
        assert exchange(client, data) == data
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
    status = relay.status()
    assert (status["up"], status["down"], status["total"]) == (len(data), len(data), 1)


def test_a_stalled_relay_delivers_when_it_is_resumed(relay_factory, echo):
    relay = relay_factory(echo)
    with connect(relay) as client:
        assert exchange(client, b"one") == b"one"
        relay.stall()
        client.sendall(b"two")
        client.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.recv(10)
        client.settimeout(10)
        relay.resume()
        assert client.recv(10) == b"two"


def test_a_relay_stalls_after_so_many_bytes(relay_factory, echo):
    relay = relay_factory(echo)
    relay.stall(after_bytes=1000)
    with connect(relay) as client:
        assert exchange(client, b"x" * 900) == b"x" * 900
        client.sendall(b"y" * 200)
        client.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.recv(10)
        relay.resume()
        client.settimeout(10)
        assert exchange(client, b"z" * 10)[:10] == b"y" * 10


def test_a_reset_relay_breaks_every_connection(relay_factory, echo):
    relay = relay_factory(echo)
    with connect(relay) as client:
        assert exchange(client, b"one") == b"one"
        relay.reset()
        with pytest.raises(ConnectionResetError):
            client.recv(10)
    with connect(relay) as client:
        assert exchange(client, b"two") == b"two"


def test_a_relay_drops_after_so_many_bytes(relay_factory, echo):
    relay = relay_factory(echo)
    relay.drop_after(1000, kind="close", times=2)
    for _ in range(2):
        with connect(relay) as client:
            assert exchange(client, b"x" * 5000) == b"x" * 1000
    with connect(relay) as client:
        assert exchange(client, b"x" * 5000) == b"x" * 5000
    assert relay.status()["faults"] == 2


def test_a_refusing_relay_takes_connections_again(relay_factory, echo):
    relay = relay_factory(echo)
    relay.refuse()
    with pytest.raises(ConnectionRefusedError):
        connect(relay)
    relay.accept()
    with connect(relay) as client:
        assert exchange(client, b"one") == b"one"


def test_a_relay_to_nowhere_breaks_the_connection(relay_factory):
    relay = relay_factory(free_port())
    with pytest.raises(ConnectionResetError), connect(relay) as client:
        client.recv(1)


def test_urls_through_a_relay_name_its_port(relay_factory, sshd):
    relay = relay_factory(sshd.port)
    assert relay.url(sshd.url("a")) == sshd.url("a").replace(str(sshd.port), str(relay.port), 1)
