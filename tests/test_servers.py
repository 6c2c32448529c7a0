"""What no other test would see of the servers that they stand on, by OpenSSH's own client."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess

import pytest

from workflows.embedded_sshd import EmbeddedSshd, ServerUnavailable, descendants, program

from .servers import Sshd


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
    with open_session(server):
        pass


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
