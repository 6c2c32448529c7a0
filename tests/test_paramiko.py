"""What ssh does for its carrier and we do for paramiko: ssh_config, host keys, agent, proxies.

What both carriers meet at a login is in `test_faults_login` and `test_faults_reach`, the rest in
the contract suite.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import paramiko
import pytest
from paramiko.common import cMSG_SERVICE_ACCEPT

from pyremotedata_core import (
    ConfigurationError,
    ConnectionLost,
    ConnectionSettings,
    HostKeyRejected,
    TransferEngine,
)
from pyremotedata_core.carriers import open_carrier, takes_paramiko
from pyremotedata_core.pyssh.carrier import ERROR
from pyremotedata_core.pyssh.child import serve
from pyremotedata_core.pyssh.hostkeys import find_entries, judge, matches, name_of, remember
from pyremotedata_core.pyssh.login import Login, OnceAsking, log_in
from pyremotedata_core.pyssh.site import find_site
from workflows.embedded_sshd import descendants, program, run

from .logins import attempt, changed, new_key
from .page import told
from .processes import below
from .sites import WAIT_S
from .waiting import wait_until

# --- the ways in ----------------------------------------------------------------------------


def works(server, **settings) -> bool:
    with TransferEngine(server.settings(carrier="paramiko", **settings)) as engine:
        return engine.stat(server.url()).result(WAIT_S).kind == "directory"


def test_an_agent_opens(sshd_factory, tmp_path, monkeypatch):
    server = sshd_factory()
    socket = tmp_path / "agent"
    with agent(socket, server.key):
        other = new_key(tmp_path / "other")
        lines = [
            ("    IdentityAgent none\n", f"    IdentityAgent {socket}\n"),
            ("    IdentitiesOnly yes\n", ""),
            (str(server.key), "none"),
        ]
        assert works(server, ssh_config=changed(server, tmp_path / "named", *lines))
        monkeypatch.setenv("SSH_AUTH_SOCK", str(socket))
        lines[0] = ("    IdentityAgent none\n", "")
        assert works(server, ssh_config=changed(server, tmp_path / "config", *lines))
        # With IdentitiesOnly, keys of the agent that are not named are not offered.
        lines = [("    IdentityAgent none\n", ""), (str(server.key), str(other))]
        config = changed(server, tmp_path / "only", *lines)
        settings = server.settings(carrier="paramiko", ssh_config=config)
        assert "check user name, key" in str(attempt(server.url(), settings))


@contextlib.contextmanager
def agent(socket: Path, *keys: Path):
    """An ssh-agent that holds these keys, and the certificates beside them."""
    command = [program("ssh-agent"), "-D", "-a", str(socket)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + WAIT_S
            add = [program("ssh-add"), "-q", *map(str, keys)]
            environment = {**os.environ, "SSH_AUTH_SOCK": str(socket)}
            while subprocess.run(add, env=environment, stderr=subprocess.DEVNULL).returncode:
                assert process.poll() is None  # its socket is there before it listens
                assert time.monotonic() < deadline
                time.sleep(0.01)
            yield
        finally:
            process.terminate()


@pytest.mark.full
def test_a_certificate_opens(sshd_factory, tmp_path):
    """Beside the key, named by CertificateFile, or in the agent."""
    authority = new_key(tmp_path / "authority")
    lines = [f"TrustedUserCAKeys {authority}.pub", "AuthorizedKeysFile none"]
    server = sshd_factory(lines=lines)
    for kind in ("ed25519", "ecdsa", "rsa"):
        key = tmp_path / kind
        new_key(key, kind=kind)

        def config(name, *more, key=key):
            return changed(server, tmp_path / name, (str(server.key), str(key)), *more)

        plain = server.settings(carrier="paramiko", ssh_config=config("plain"))
        assert "check user name, key" in str(attempt(server.url(), plain))
        sign = [program("ssh-keygen"), "-q", "-s", str(authority), "-I", "me"]
        subprocess.run([*sign, "-n", server.user, f"{key}.pub"], check=True)
        assert works(server, ssh_config=config("beside"))
        beside, elsewhere = tmp_path / f"{kind}-cert.pub", tmp_path / "elsewhere"
        held = ("    IdentityAgent none\n", f"    IdentityAgent {tmp_path / 'held'}\n")
        with agent(tmp_path / "held", key):
            private = key.rename(tmp_path / "away")
            beside.rename(elsewhere)
            assert works(server, ssh_config=config("agent", held))
        named = ("Host *\n", f"Host *\n CertificateFile {elsewhere}\n")
        with agent(tmp_path / "held", private):  # the key without its certificate
            assert works(server, ssh_config=config("both", held, named))
        private.rename(key)
        assert works(server, ssh_config=config("named", named))


def test_the_service_of_logins_is_asked_for_once():
    """Many a server ends the connection when it is asked again."""

    class Host(paramiko.ServerInterface):
        def get_allowed_auths(self, _user):
            return "password"

        def check_auth_password(self, _user, password):
            return paramiko.AUTH_SUCCESSFUL if password == "right" else paramiko.AUTH_FAILED

    class Server(paramiko.Transport):
        accepted = 0

        def _send_message(self, data):
            self.accepted += data.asbytes()[:1] == cMSG_SERVICE_ACCEPT
            super()._send_message(data)

    ours, theirs = socket.socketpair()
    server, client = Server(theirs), OnceAsking(ours)
    try:
        server.add_server_key(paramiko.ECDSAKey.generate())
        server.start_server(threading.Event(), Host())
        client.start_client(timeout=WAIT_S)
        with pytest.raises(paramiko.BadAuthenticationType):
            client.auth_none("me")
        with pytest.raises(paramiko.AuthenticationException):
            client.auth_password("me", "wrong")
        assert client.auth_password("me", "right") == []
    finally:
        client.close()
        server.close()
    assert server.accepted == 1


@pytest.mark.parametrize(
    ("option", "only", "without"),
    [
        ("Ciphers", "aes256-ctr", "-aes256*"),
        pytest.param("MACs", "hmac-sha2-512", "hmac-sha2-256", marks=pytest.mark.full),
        pytest.param("KexAlgorithms", "ecdh-sha2-nistp256", "-*nistp256", marks=pytest.mark.full),
        ("HostKeyAlgorithms", "ssh-ed25519", "ecdsa-sha2-nistp256"),
    ],
)
def test_algorithms_are_those_of_ssh_config(sshd_factory, tmp_path, option, only, without):
    ciphers = "" if option == "Ciphers" else "Ciphers aes256-ctr"  # others need no MAC
    server = sshd_factory(lines=[ciphers, f"{option} {only}"])

    def config(value):
        return changed(server, tmp_path / "config", ("Host *\n", f"Host *\n {option} {value}\n"))

    for value in (only, f"{only},unheard-of", f"^{only}", f"+{only}"):
        assert works(server, ssh_config=config(value))
    settings = server.settings(carrier="paramiko", ssh_config=config(without))
    told(attempt(server.url(), settings), "no protocol or algorithm in common")
    settings = server.settings(carrier="paramiko", ssh_config=config("unheard-of"))
    said = str(attempt(server.url(), settings))
    assert f"{option.lower()} (unheard-of)" in said
    assert "paramiko knows" in said


def test_a_login_that_may_need_gssapi_says_who_can_do_it(sshd_factory, tmp_path):
    server = sshd_factory()
    other = new_key(tmp_path / "other")
    lines = [
        (str(server.key), str(other)),
        ("Host *\n", "Host *\n GSSAPIAuthentication yes\n"),
    ]
    config = changed(server, tmp_path / "config", *lines)
    error = attempt(server.url(), server.settings(carrier="paramiko", ssh_config=config))
    assert "GSSAPIAuthentication needs the program ssh" in str(error)


def test_without_ssh_and_paramiko_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    settings = ConnectionSettings(host="localhost")
    assert takes_paramiko(settings)
    monkeypatch.setitem(sys.modules, "paramiko", None)
    with pytest.raises(ConfigurationError, match=r"ssh is not installed; .*apt install"):
        open_carrier(settings)


def test_a_proxy_command_is_run_and_ends_with_the_engine(sshd_factory, tmp_path):
    server = sshd_factory()
    relay = tmp_path / "relay.py"
    relay.write_text(
        "import os, socket, sys, threading\n"
        "link = socket.create_connection((sys.argv[1], int(sys.argv[2])))\n"
        "def back():\n"
        "    while data := link.recv(65536):\n"
        "        os.write(1, data)\n"
        "    os._exit(0)\n"
        "threading.Thread(target=back).start()\n"
        "while data := os.read(0, 65536):\n"
        "    link.sendall(data)\n"
    )
    command = f"{sys.executable} {relay} %h %p"
    line = ("Host *\n", f"Host *\n ProxyCommand {command}\n")
    config = changed(server, tmp_path / "config", line)
    assert works(server, ssh_config=config)
    settings = server.settings(carrier="paramiko", ssh_config=config)
    with TransferEngine(settings) as engine:
        engine.stat(server.url()).result(WAIT_S)
        assert below(str(relay))
    assert not below(str(relay))


def test_what_a_proxy_command_has_begun_to_say_does_not_hide_the_error(sshd):
    """It writes to the same pipe, and often no end of the line."""
    child = open_carrier(replace(sshd.settings(carrier="paramiko"), host="127.0.0.1"))
    try:
        plain = json.dumps(HostKeyRejected("its key is not known").to_plain())
        error = child.explain(f"trying ...{ERROR}{plain}\n", "sftp://host")
    finally:
        child.kill()
    assert type(error) is HostKeyRejected
    assert str(error) == "sftp://host: its key is not known"


def test_what_ssh_config_runs_takes_nothing_of_the_session(sshd, tmp_path):
    pytest.importorskip("invoke", reason="paramiko runs Match exec by it")
    config = tmp_path / "config"
    config.write_text(f'Match exec "cat"\n{sshd.ssh_config.read_text()}')
    assert works(sshd, ssh_config=str(config), timeout_s=10.0)


def test_a_killed_child_is_replaced_and_the_transfer_completes(sshd_factory, tmp_path):
    server = sshd_factory()
    data = os.urandom(100 * 2**20)
    server.make("large", data)
    with TransferEngine(server.settings(carrier="paramiko")) as engine:
        engine.stat(server.url()).result(WAIT_S)
        future = engine.fetch(server.url("large"), tmp_path / "large")
        (child,) = below("pyremotedata_core.pyssh.child")
        os.kill(child, signal.SIGKILL)
        future.result(WAIT_S)
    assert (tmp_path / "large").read_bytes() == data
    assert not below("pyremotedata_core.pyssh.child")


# --- host keys ------------------------------------------------------------------------------


def test_a_connection_that_breaks_while_a_session_is_asked_for_is_lost(sshd, relay_factory):
    """A lost connection is tried again."""
    relay = relay_factory(sshd.port)
    place = {"host": "127.0.0.1", "port": relay.port, "username": sshd.user}
    transport = log_in(Login(sshd.settings(**place), {}))
    relay.stall()
    with socket.socketpair()[0] as inside, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(serve, transport, inside)
        wait_until(lambda: len(transport._channels))
        relay.reset()
        assert isinstance(asked.exception(WAIT_S), ConnectionLost)


def test_an_accepted_key_is_written_as_ssh_would_read_it(sshd_factory, tmp_path):
    server = sshd_factory()
    known = tmp_path / "new" / "known_hosts"
    lines = [
        (str(server.known_hosts), str(known)),
        ("    StrictHostKeyChecking yes\n", "    HashKnownHosts yes\n"),
    ]
    config = changed(server, tmp_path / "config", *lines)
    assert works(server, ssh_config=config, accept_new=True)
    assert known.read_text().startswith("|1|")
    command = [program("ssh-keygen"), "-F", f"[127.0.0.1]:{server.port}", "-f", str(known)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    assert works(server, ssh_config=config)


def test_a_key_of_the_known_type_is_asked_for(sshd_factory, tmp_path):
    """A server with several host keys is known by one of them."""
    server = sshd_factory()
    rsa = new_key(tmp_path / "rsa", kind="rsa")
    server.lines.append(f"HostKey {rsa}")
    server.restart()
    server.known_hosts.write_text(
        f"[127.0.0.1]:{server.port} {rsa.with_suffix('.pub').read_text()}"
    )
    assert works(server)


def test_what_ssh_keygen_hashes_is_found(tmp_path):
    known = tmp_path / "known_hosts"
    remember(str(known), "[host]:2222", "ssh-ed25519", b"key", hashed=False)
    subprocess.run([program("ssh-keygen"), "-q", "-H", "-f", str(known)], check=False)
    known.write_text(known.read_text().rstrip("\n"))  # the next line begins on its own
    remember(str(known), "other", "ssh-rsa", b"second", hashed=True)
    (entry,) = find_entries("other", [str(known)])
    assert (entry.kind, entry.blob, entry.where) == ("ssh-rsa", b"second", f"{known}:2")
    assert judge([entry], "ssh-rsa", b"second") == ("known", "")
    assert judge([entry], "ssh-rsa", b"third") == ("changed", f"{known}:2")
    assert judge([entry], "ssh-ed25519", b"third") == ("unknown", "")


@pytest.mark.parametrize(
    ("patterns", "name", "found"),
    [
        ("host,10.0.0.1", "host", True),
        ("host", "HOST", False),  # names are asked for in lower case
        ("*.org,!bad.org", "good.org", True),
        ("*.org,!bad.org", "bad.org", False),
        ("[host]:2222", "[host]:2222", True),
        ("[host]:2222", "host", False),
        ("[*.org]:22??", "[a.org]:2222", True),
        ("|1|broken", "host", False),
    ],
)
def test_names_in_known_hosts_are_patterns(patterns, name, found):
    assert matches(patterns, name) is found
    assert name_of("HOST", 22) == "host"


# --- ssh_config -----------------------------------------------------------------------------


def test_ssh_config_is_read_as_ssh_reads_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh/more.d").mkdir()
    (tmp_path / ".ssh/more").write_text(" User included\n Port 7\nHost other\n Port 8\n")
    (tmp_path / "config").write_text(
        "Host alias\n HostName real.org\n IdentityFile ~/k\n Include more*\n IdentitiesOnly yes\n"
        "Host *\n User everybody\n Port 9\n UserKnownHostsFile ~/one /two\n ProxyJump u@j1:1,j2\n"
        " PubkeyAuthentication no\n"
    )
    site = find_site("alias", config=str(tmp_path / "config"))
    assert (site.host, site.port, site.user) == ("real.org", 7, "included")
    assert (site.keys, site.identities_only) == ((f"{tmp_path}/k",), True)
    assert (site.known_hosts, site.jumps) == ((f"{tmp_path}/one", "/two"), ("u@j1:1", "j2"))
    assert site.methods == ("keyboard-interactive", "password")
    assert site.unknown == "ask"
    given = find_site("alias", user="me", port=3, config=str(tmp_path / "config"), accept_new=True)
    assert (given.user, given.port, given.unknown) == ("me", 3, "accept-new")
    assert find_site("x", config="none", key="/k").keys == ("/k",)


@pytest.mark.parametrize(
    "text",
    [
        "Host other\n Include {more}\nHost *\n User a",
        "Match host other\n Include {more}\nHost *\n User a",
        "Host a*\n Include {more}\n User a",
        "Match Host other\n Port 9\n StrictHostKeyChecking no",
        "Match All\n Port 9",
        'Match !Host other OriginalHost "alias"\n Port 9',
        "Host=alias # mine\n Port = 9 # don't\n User 'a b'\n HostName %h.org",
        "Host alias\n ProxyJump u@j:9\n User x\nHost *\n ProxyCommand nc %h",
        "Host alias\n ProxyCommand none\nHost *\n ProxyJump j",
        'UserKnownHostsFile ~/k/%h-%n-%p-%r-%k "${{HOME}}/b"\nPort 9\nHostKeyAlias Z',
        "User DOM\\me\nIdentityFile ~/#1",
    ],
)
def test_ssh_config_means_what_it_means_to_ssh(text, tmp_path):
    more, config = tmp_path / "more", tmp_path / "config"
    more.write_text("User m\nHost *\n StrictHostKeyChecking no\n Port 7\nHost alias\n User x\n")
    config.write_text(text.format(more=more) + "\n")
    lines = run([program("ssh"), "-G", "-F", str(config), "alias"]).splitlines()
    by_ssh = dict(reversed([line.split(" ", 1) for line in lines if " " in line]))
    site = find_site("alias", config=str(config))
    strict = {"no": "false", "yes": "true"}.get(site.unknown, site.unknown)
    known = by_ssh["userknownhostsfile"].replace("~", str(Path.home()))
    assert (site.host, str(site.port), site.user, strict, " ".join(site.known_hosts)) == (
        *(by_ssh[name] for name in ("hostname", "port", "user", "stricthostkeychecking")),
        known,
    )
    assert site.proxy_command == by_ssh.get("proxycommand", "none").replace("none", "").replace(
        "%h", "alias"
    )
    assert ",".join(site.jumps) == by_ssh.get("proxyjump", "none").replace("none", "")
    assert site.keys[0] == by_ssh["identityfile"].replace("~", str(Path.home()))


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("Match localnetwork 10.0.0.0/8", "cannot judge the 'Match localnetwork'"),
        ('User "me', "quote without end"),
        ("Port ssh", "no number for Port"),
        ("IdentityFile ~/%Z", "a %Z that paramiko cannot fill"),
    ],
)
def test_what_cannot_be_told_from_ssh_config_is_refused(tmp_path, line, why):
    """Guessing might trust a host that ssh would not trust."""
    config = tmp_path / "config"
    config.write_text(f"{line}\n")
    with pytest.raises(ConfigurationError, match=why):
        find_site("alias", config=str(config))


def test_no_secret_is_in_the_command_line_or_shown(miglike):
    settings = miglike.password_settings(carrier="paramiko")
    assert isinstance(settings, ConnectionSettings)
    with TransferEngine(settings) as engine:
        engine.stat(miglike.url()).result(WAIT_S)
        for pid in descendants(os.getpid()):
            for name in ("cmdline", "environ"):
                assert miglike.password.encode() not in Path(f"/proc/{pid}/{name}").read_bytes()
        assert miglike.password not in repr(engine)
