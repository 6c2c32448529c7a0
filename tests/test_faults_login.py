"""Logins that are refused: told clearly, and not tried again in vain."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pyremotedata_core import (
    AuthenticationFailed,
    ConnectionLost,
    ConnectionSettings,
    HostKeyRejected,
    Secret,
    TransferEngine,
)
from workflows.embedded_sshd import program

from .command import CLI
from .logins import attempt, changed, fingerprint, new_key
from .miglike import MigLike
from .miglike_server import WRONG_SECRETS
from .page import told
from .sites import WAIT_S, needs_lftp

THROUGH = pytest.mark.parametrize(
    "through",
    [
        {"carrier": "openssh"},
        {"carrier": "paramiko"},
        pytest.param({"transport": "lftp"}, marks=needs_lftp),
    ],
    ids=str,
)
LISTING = "import sys; from pyremotedata_core import Remote; print(*Remote(sys.argv[2]).ls())"

# --- the wrong key, the wrong password ----------------------------------------------------------


@THROUGH
def test_a_wrong_key_is_tried_once(through, sshd_factory, tmp_path):
    server = sshd_factory()
    new_key(tmp_path / "key")
    config = changed(server, tmp_path / "config", (str(server.key), str(tmp_path / "key")))
    error = attempt(server.url(), server.settings(ssh_config=config, **through), times=10)
    assert type(error) is AuthenticationFailed
    assert not error.retryable
    told(error, "check user name, key")
    assert server.log_text().count("Connection from") == 1


@pytest.mark.parametrize("transport", ["sftp", pytest.param("lftp", marks=needs_lftp)])
@pytest.mark.parametrize("shared", [True, False])
def test_a_key_that_ssh_passes_over_is_named(shared, transport, sshd_factory, tmp_path):
    server = sshd_factory()
    key = Path(shutil.copy(server.key, tmp_path / "key"))
    if shared:
        key.chmod(0o644)
    else:
        key.write_text("no key")
    config = changed(server, tmp_path / "config", (str(server.key), str(key)))
    settings = server.settings(transport=transport, ssh_config=config)
    error = attempt(server.url(), settings)
    assert type(error) is AuthenticationFailed
    told(error, "was not used")
    assert f"the key {key} was not used: " in str(error)
    assert (f"others may read it: chmod 600 {key};" in str(error)) == shared


def test_a_wrong_password_is_tried_once(carrier, miglike):
    before = miglike.log_text()
    settings = miglike.password_settings("canary-wrong", carrier=carrier)
    error = attempt(miglike.url(), settings, times=10)
    assert type(error) is AuthenticationFailed
    assert "canary" not in str(error)
    said = miglike.log_text()[len(before) :].splitlines()
    assert said == [f"login {miglike.user} password refused"]


@THROUGH
def test_a_server_that_locks_us_out_is_left_alone(through):
    with MigLike() as server:
        for number in range(WRONG_SECRETS):
            settings = server.password_settings(f"wrong-{number}", **through)
            assert type(attempt(server.url(), settings)) is AuthenticationFailed
        error = attempt(server.url(), server.password_settings(**through), times=10)
        if through == {"carrier": "paramiko"}:  # which knows what was cut off
            assert type(error) is AuthenticationFailed
            assert "the server ended the login" in str(error)
        else:
            assert type(error) is ConnectionLost
            told(error, "the server broke off the login")
        assert server.log_text().count("locked") <= 6  # by two rounds


@pytest.mark.parametrize("lines", [[], ["KbdInteractiveAuthentication yes", "UsePAM yes"]])
def test_a_wrong_password_is_sent_once_to_openssh(carrier, chroot_factory, lines):
    """Even where the server takes passwords in two ways."""
    server = chroot_factory(lines=lines)
    error = attempt(
        server.url(), server.password_settings(carrier=carrier, password=Secret("wrong")), times=10
    )
    assert type(error) is AuthenticationFailed
    failed = re.findall(r"^Failed (?!none)\S+ for", server.log_text(), re.MULTILINE)
    assert len(failed) == 1, server.log_text()


@pytest.mark.parametrize("lines", [[], ["KbdInteractiveAuthentication yes", "UsePAM yes"]])
def test_the_right_password_lets_in(carrier, chroot_factory, lines):
    server = chroot_factory(lines=lines)
    server.make("a", b"1")
    with TransferEngine(server.password_settings(carrier=carrier)) as engine:
        assert engine.stat(server.url("a")).result(WAIT_S).size == 1
    assert server.logins() == 1


def test_a_share_link_is_its_own_password(miglike):
    miglike.make("shared/a", b"1")
    with TransferEngine(miglike.password_settings(miglike.share)) as engine:
        assert engine.stat(miglike.url("shared/a", miglike.share)).result(WAIT_S).size == 1


def test_without_a_secret_no_password_is_tried(carrier, miglike):
    before = miglike.log_text()
    error = attempt(
        miglike.url(), ConnectionSettings(carrier=carrier, ssh_config=str(miglike.ssh_config))
    )
    assert type(error) is AuthenticationFailed
    assert "password" not in miglike.log_text()[len(before) :]


def test_a_key_with_a_passphrase_opens_with_it_and_only_with_it(carrier, sshd_factory, tmp_path):
    server = sshd_factory()
    key = new_key(tmp_path / "key", "open $'\" sesame")
    with (server.directory / "authorized_keys").open("a") as file:
        file.write((tmp_path / "key.pub").read_text())
    config = changed(server, tmp_path / "config", (str(server.key), str(key)))
    right = Secret("open $'\" sesame")
    with TransferEngine(
        server.settings(carrier=carrier, ssh_config=config, key_passphrase=right)
    ) as engine:
        assert engine.stat(server.url()).result(WAIT_S).kind == "directory"
    for wrong in (Secret("canary"), None):
        settings = server.settings(carrier=carrier, ssh_config=config, key_passphrase=wrong)
        error = attempt(server.url(), settings)
        assert type(error) is AuthenticationFailed
        assert "canary" not in str(error)


# --- host keys ------------------------------------------------------------------------------


def test_an_unknown_host_key_comes_with_fingerprint_and_command(carrier, sshd_factory, tmp_path):
    server = sshd_factory()
    known = tmp_path / "known_hosts"
    ask = ("StrictHostKeyChecking yes", "StrictHostKeyChecking ask")
    config = changed(server, tmp_path / "config", (str(server.known_hosts), str(known)), ask)
    error = attempt(server.url(), server.settings(carrier=carrier, ssh_config=config), times=5)
    assert type(error) is HostKeyRejected
    told(error, "is not known; compare it")
    assert fingerprint(server) in str(error)
    assert f"sftp -F {config} -P {server.port} {server.user}@127.0.0.1" in str(error)
    assert not known.exists()
    assert server.logins() == 0


def test_accept_new_accepts_an_unknown_key_and_no_changed_one(carrier, sshd_factory, tmp_path):
    server = sshd_factory()
    known = tmp_path / "known_hosts"
    config = changed(
        server,
        tmp_path / "config",
        (str(server.known_hosts), str(known)),
        ("    StrictHostKeyChecking yes\n", ""),
    )
    settings = server.settings(carrier=carrier, ssh_config=config, accept_new=True)
    with TransferEngine(settings) as engine:
        assert engine.stat(server.url()).result(WAIT_S).kind == "directory"
    assert known.exists()
    other = new_key(tmp_path / "other").with_suffix(".pub").read_text()
    known.write_text(f"[127.0.0.1]:{server.port} {other}")
    logins = server.logins()
    error = attempt(server.url(), settings)
    assert type(error) is HostKeyRejected
    told(error, "is not the one known")
    assert fingerprint(server) in str(error)
    assert f"{known}:1" in str(error)
    assert server.logins() == logins


def test_a_changed_host_key_is_refused_when_strict(carrier, sshd_factory, tmp_path):
    server = sshd_factory()
    other = new_key(tmp_path / "other").with_suffix(".pub").read_text()
    server.known_hosts.write_text(f"[127.0.0.1]:{server.port} {other}")
    assert type(attempt(server.url(), server.settings(carrier=carrier))) is HostKeyRejected
    assert server.logins() == 0


def test_a_revoked_host_key_is_refused_as_such(carrier, sshd_factory):
    server = sshd_factory()
    line = server.known_hosts.read_text()
    server.known_hosts.write_text(f"{line}@revoked * {line.split(None, 1)[1]}")
    error = attempt(server.url(), server.settings(carrier=carrier, accept_new=True))
    assert type(error) is HostKeyRejected
    told(error, "marked as revoked")
    assert server.logins() == 0


def test_without_any_ssh_config_its_host_key_is_not_known(carrier, sshd_factory):
    """``ssh -F none`` reads none, be there a file of that name or not."""
    server = sshd_factory()
    key = str(server.directory / "user_key")
    error = attempt(server.url(), server.settings(carrier=carrier, ssh_config="none", ssh_key=key))
    assert type(error) is HostKeyRejected
    assert "sftp -F none" in str(error)


@pytest.mark.parametrize("user", [CLI, [sys.executable, "-c", LISTING]])
def test_without_the_setting_ssh_config_is_the_usual_one(user, carrier, sshd, machine_wide):
    """In the process that logs in as in the helper."""
    sshd.make("usual/a")
    environment = {**os.environ, "PYREMOTEDATA_CARRIER": carrier}
    command = [
        *machine_wide(sshd.ssh_config, "/etc/ssh/ssh_config"),
        *user,
        "ls",
        sshd.url("usual"),
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=WAIT_S)
    assert (done.stdout, done.stderr) == ("a\n", "")


@pytest.mark.parametrize("listed", [True, False])
def test_a_host_key_of_the_list_of_revoked_ones_is_refused(carrier, listed, sshd_factory, tmp_path):
    """Known or not; and a list that cannot be read speaks against every key."""
    server = sshd_factory()
    revoked = tmp_path / "revoked"
    if listed:
        key = (server.directory / "host_key.pub").read_text()
        revoked.write_text(
            f"# lost\n{new_key(tmp_path / 'k').with_suffix('.pub').read_text()}{key}"
        )
    config = changed(
        server, tmp_path / "config", ("Host *\n", f"Host *\n RevokedHostKeys {revoked}\n")
    )
    error = attempt(server.url(), server.settings(carrier=carrier, ssh_config=config))
    assert type(error) is HostKeyRejected
    told(error, "marked as revoked")
    assert str(revoked) in str(error)
    assert server.logins() == 0


@pytest.mark.parametrize("block", ["Host other\n Include {careless}", "Match Host other\n{text}"])
def test_carelessness_about_another_host_is_not_extended_to_this_one(
    carrier, block, sshd_factory, tmp_path
):
    server = sshd_factory()
    server.known_hosts.write_text("")
    careless = tmp_path / "careless"
    text = (
        "Host *\n StrictHostKeyChecking no\n"
        if "Include" in block
        else " StrictHostKeyChecking no\n"
    )
    careless.write_text(text)
    config = tmp_path / "config"
    rest = server.ssh_config.read_text().replace("    StrictHostKeyChecking yes\n", "")
    config.write_text(f"{block.format(careless=careless, text=text)}\n{rest}")
    error = attempt(server.url(), server.settings(carrier=carrier, ssh_config=str(config)))
    assert type(error) is HostKeyRejected
    assert server.logins() == 0


def test_the_command_to_accept_a_key_accepts_it(carrier, sshd_factory):
    """Also where another ssh_config is read, and ssh is told not to ask."""
    server = sshd_factory()
    server.known_hosts.write_text("")
    error = attempt(server.url(), server.settings(carrier=carrier))
    assert type(error) is HostKeyRejected
    command = f"exec {str(error).partition('once with: ')[2]} </dev/null"
    answers = {
        **os.environ,
        "SSH_ASKPASS_REQUIRE": "force",
        "SSH_ASKPASS": str(server.directory / "yes"),
    }
    (server.directory / "yes").write_text("#!/bin/sh\necho yes\n")
    (server.directory / "yes").chmod(0o755)
    subprocess.run(["sh", "-c", command], env=answers, timeout=60, check=True)
    with TransferEngine(server.settings(carrier=carrier)) as engine:
        assert engine.stat(server.url()).result(WAIT_S).kind == "directory"


# --- ways of the user's own -----------------------------------------------------------------


def test_a_control_master_of_the_users_own_is_used_and_outlives_us(sshd_factory, tmp_path):
    server = sshd_factory()
    path = tmp_path / "master"
    config = changed(server, tmp_path / "config", ("Host *\n", f"Host *\n ControlPath {path}\n"))
    url = f"sftp://{server.alias}{server.remote_path()}"
    command = [program("ssh"), "-F", config, "-M", "-N", "-f", server.alias]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    check = [program("ssh"), "-F", config, "-O", "check", server.alias]
    try:
        with TransferEngine(server.settings(ssh_config=config)) as engine:
            assert engine.stat(url).result(WAIT_S).kind == "directory"
        assert server.logins() == 1
        assert subprocess.run(check, check=False, stderr=subprocess.DEVNULL).returncode == 0
    finally:
        leave = [program("ssh"), "-F", config, "-O", "exit", server.alias]
        subprocess.run(leave, check=False, stderr=subprocess.DEVNULL)


def test_a_jump_host_of_ssh_config_is_used(carrier, sshd_factory, tmp_path):
    inner = sshd_factory()
    outer = sshd_factory(lines=["AllowTcpForwarding yes"])
    config = tmp_path / "config"
    config.write_text(
        f"Host outer\n HostName 127.0.0.1\n Port {outer.port}\n IdentityFile {outer.key}\n"
        f" UserKnownHostsFile {outer.known_hosts}\n"
        f"Host inner\n HostName 127.0.0.1\n Port {inner.port}\n IdentityFile {inner.key}\n"
        f" UserKnownHostsFile {inner.known_hosts}\n ProxyJump outer\n"
        "Host *\n IdentitiesOnly yes\n IdentityAgent none\n StrictHostKeyChecking yes\n"
    )
    settings = ConnectionSettings(carrier=carrier, ssh_config=str(config))
    with TransferEngine(settings) as engine:
        url = f"sftp://inner{inner.remote_path()}"
        assert engine.stat(url).result(WAIT_S).kind == "directory"
    assert (outer.logins(), inner.logins()) == (1, 1)


def test_a_password_is_not_given_to_a_jump_host(carrier, chroot_factory, sshd_factory, tmp_path):
    """It asks with the same words as the server that the password is for."""
    jump = chroot_factory(lines=["AllowTcpForwarding yes"])
    inner = sshd_factory()
    config = tmp_path / "config"
    config.write_text(
        f"Host jump\n HostName 127.0.0.1\n Port {jump.port}\n User {jump.user}\n"
        f" UserKnownHostsFile {jump.known_hosts}\n PubkeyAuthentication no\n"
        f"Host inner\n HostName localhost\n Port {inner.port}\n"
        f" UserKnownHostsFile {inner.known_hosts}\n ProxyJump jump\n"
        "Host *\n IdentityAgent none\n StrictHostKeyChecking yes\n"
    )
    settings = ConnectionSettings(
        carrier=carrier, ssh_config=str(config), password=Secret("for inner only")
    )
    error = attempt("sftp://inner/", settings)
    assert type(error) is AuthenticationFailed
    assert f"{jump.user}@127.0.0.1" in str(error)
    assert "Failed password" not in jump.log_text()
