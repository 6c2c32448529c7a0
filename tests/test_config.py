"""Settings: where they come from, what is refused, and what never shows."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from pyremotedata_core import (
    ConfigurationError,
    ConnectionSettings,
    Remote,
    RemoteURL,
    Secret,
    TransferEngine,
    remove_config,
    ssh,
)
from pyremotedata_core.config import VARIABLES, config_path, parse_bytes

from .page import told
from .processes import commands
from .waiting import wait_until

CANARY = "canary-7f3a"


@pytest.fixture
def write_config():
    def write(text: str):
        path = config_path()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o600)
        return path

    return write


# --- precedence -----------------------------------------------------------------------------


def test_an_argument_that_is_none_is_not_given(monkeypatch):
    monkeypatch.setenv("PYREMOTEDATA_TIMEOUT", "6")
    assert ConnectionSettings.load(timeout_s=None).timeout_s == 6


def test_an_empty_variable_is_not_set(monkeypatch):
    monkeypatch.setenv("PYREMOTEDATA_TIMEOUT", "")
    assert ConnectionSettings.load().timeout_s == ConnectionSettings().timeout_s


def test_without_anything_the_defaults_hold():
    assert ConnectionSettings.load(cache_dir=None) == ConnectionSettings.load()
    settings = ConnectionSettings()
    assert (settings.connections, settings.transport, settings.accept_new) == (4, "auto", False)


def test_every_variable_sets_its_field(monkeypatch):
    values = {
        "REMOTE_USERNAME": "me",
        "REMOTE_URI": "host",
        "REMOTE_PORT": "2222",
        "REMOTE_DIRECTORY": "/data",
        "LOCAL_DIRECTORY": "/local",
        "PASSWORD": CANARY,
        "KEY_PASSPHRASE": CANARY,
        "ONE_TIME_CODE": CANARY,
        "SSH_CONFIG": "/etc/x",
        "SSH_KEY": "/k",
        "ACCEPT_NEW": "yes",
        "FTPS_MODE": "implicit",
        "CA_FILE": "/ca.pem",
        "TRANSPORT": "lftp",
        "CARRIER": "paramiko",
        "CONNECTIONS": "7",
        "TIMEOUT": "1.5",
        "BANDWIDTH": "3M",
        "FSYNC": "on",
        "PUBLISH": "direct",
        "CACHE_DIR": "/c",
        "CACHE_BYTES": "2GiB",
    }
    for name, value in values.items():
        monkeypatch.setenv(f"PYREMOTEDATA_{name}", value)
    settings = ConnectionSettings.load()
    default = ConnectionSettings()
    for name, field in VARIABLES.items():
        assert name in values, f"PYREMOTEDATA_{name} is not tested"
        assert getattr(settings, field) != getattr(default, field), name
    assert settings.cache_bytes == 2 * 2**30
    assert settings.root() == RemoteURL.parse("sftp://me@host:2222/data")


# --- mistakes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("REMOTE_PORT", "0"),
        ("REMOTE_PORT", "70000"),
        ("REMOTE_PORT", "ssh"),
        ("REMOTE_URI", "-oProxyCommand=x"),
        ("REMOTE_URI", "a b"),
        ("TRANSPORT", "scp"),
        ("CARRIER", "putty"),
        ("PUBLISH", "hope"),
        ("CONNECTIONS", "0"),
        ("CONNECTIONS", "many"),
        ("TIMEOUT", "0"),
        ("TIMEOUT", "-1"),
        ("TIMEOUT", "nan"),
        ("TIMEOUT", "inf"),
        ("FSYNC", "perhaps"),
        ("CACHE_BYTES", "5 parsecs"),
    ],
)
def test_a_wrong_variable_is_named(monkeypatch, name, value):
    monkeypatch.setenv(f"PYREMOTEDATA_{name}", value)
    with pytest.raises(ConfigurationError, match=f"PYREMOTEDATA_{name}") as caught:
        ConnectionSettings.load()
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("secret", [CANARY, f"{CANARY}/x", f"x:{CANARY}", f"{CANARY}@x"])
def test_a_url_in_the_place_of_the_host_is_told_what_is_wanted_and_its_password_not(
    monkeypatch, secret
):
    monkeypatch.setenv("PYREMOTEDATA_REMOTE_URI", f"sftp://me:{secret}@host/")
    with pytest.raises(ConfigurationError, match="a name or address alone") as caught:
        ConnectionSettings.load()
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize("line", ["timeout_s: yes", "connections: 2.5", "port: 0x16"])
def test_a_wrong_value_of_the_file_is_named_as_it_is_written(write_config, line):
    write_config(line)
    key, value = line.split(": ")
    with pytest.raises(ConfigurationError, match=f"{key} is not valid: '{value}'") as caught:
        ConnectionSettings.load()
    told(caught.value, "is not valid")


@pytest.mark.parametrize("secret", ["0123456701", "12_34", "1:30", "2024-01-01", "yes", "1e+3"])
def test_a_password_in_the_file_is_what_is_written_there(write_config, secret):
    write_config(f"password: {secret}\nkey_passphrase: null\n")
    settings = ConnectionSettings.load()
    assert settings.password is not None
    assert settings.password.reveal() == secret
    assert settings.key_passphrase is None


def test_a_wrong_key_of_the_file_is_named_with_the_file(write_config):
    path = write_config("conections: 3\n")
    with pytest.raises(ConfigurationError, match="conections") as caught:
        ConnectionSettings.load()
    assert str(path) in str(caught.value)
    told(caught.value, "unknown setting")


def test_a_wrong_argument_is_named():
    with pytest.raises(ConfigurationError, match="colour"):
        ConnectionSettings.load(colour="red")


def test_a_file_that_is_no_settings_is_told_without_its_content(write_config):
    path = write_config(f"- {CANARY}\n")
    with pytest.raises(ConfigurationError, match=str(path)) as caught:
        ConnectionSettings.load()
    assert CANARY not in str(caught.value)


def test_a_secret_that_others_may_read_is_refused_with_the_remedy(write_config):
    path = write_config(f"password: {CANARY}\n")
    assert ConnectionSettings.load().password == CANARY
    for mode in (0o640, 0o604):
        path.chmod(mode)
        with pytest.raises(ConfigurationError, match=f"chmod 600 {path}") as caught:
            ConnectionSettings.load()
        assert CANARY not in str(caught.value)
        told(caught.value, "holds a secret")
    write_config("host: h\n").chmod(0o644)
    assert ConnectionSettings.load().host == "h"


def test_a_config_file_that_was_named_must_exist(monkeypatch, tmp_path):
    monkeypatch.setenv("PYREMOTEDATA_CONFIG", str(tmp_path / "none.yaml"))
    with pytest.raises(ConfigurationError, match="PYREMOTEDATA_CONFIG"):
        ConnectionSettings.load()


def test_an_empty_file_and_empty_keys_are_no_settings(write_config):
    write_config("")
    assert ConnectionSettings.load(cache_dir="/c") == ConnectionSettings(cache_dir="/c")
    write_config("host:\nport:\n")
    assert ConnectionSettings.load(cache_dir="/c") == ConnectionSettings(cache_dir="/c")


def test_without_a_host_the_error_names_the_variable_and_the_file():
    with pytest.raises(ConfigurationError, match="PYREMOTEDATA_REMOTE_URI") as caught:
        ConnectionSettings.load().root()
    assert str(config_path()) in str(caught.value)
    told(caught.value, "no remote is configured")


def test_removing_the_configuration_says_whether_there_was_one(write_config):
    path = write_config("host: h\n")
    assert remove_config()
    assert not path.exists()
    assert not remove_config()


@pytest.mark.parametrize(
    ("text", "count"),
    [("1000", 1000), (5, 5), ("10M", 10 * 2**20), ("1.5 GiB", 3 * 2**29), ("2kb", 2048)],
)
def test_sizes_are_read_with_their_units(text, count):
    assert parse_bytes(text) == count


@pytest.mark.parametrize(
    ("written", "path"),
    [("data", "/~/data"), ("~/data", "/~/data"), ("~", "/~"), ("/data", "/data"), (".", "/~")],
)
def test_a_relative_remote_directory_is_below_the_login_directory(written, path):
    assert ConnectionSettings.load(host="h", directory=written).root().path == path


def test_relative_local_files_are_those_of_the_caller(monkeypatch, tmp_path):
    """The helper works in another directory than the program that set them."""
    monkeypatch.chdir(tmp_path)
    settings = ConnectionSettings.load(ssh_config="conf", ssh_key="key")
    assert settings.to_plain()["ssh_config"] == str(tmp_path / "conf")
    assert settings.to_plain()["ssh_key"] == str(tmp_path / "key")
    settings = ConnectionSettings(ssh_config="conf")
    assert settings.to_plain()["ssh_config"] == str(tmp_path / "conf")


def test_paths_may_be_objects(tmp_path, sshd):
    settings = ConnectionSettings(cache_dir=tmp_path, ssh_config=Path(sshd.ssh_config))
    with TransferEngine(settings) as engine:
        assert engine.stat(sshd.url()).result().kind == "directory"


# --- secrets --------------------------------------------------------------------------------


def test_a_secret_shows_itself_only_when_asked():
    secret = Secret(CANARY)
    settings = ConnectionSettings(password=secret, key_passphrase=secret)
    for text in (
        repr(secret),
        str(secret),
        f"{secret}",
        f"{secret!r:>20}",
        "%s" % secret,  # noqa: UP031
        "{}".format(secret),  # noqa: UP032
        repr(settings),
        str(settings),
        f"{settings}",
        repr([secret]),
        repr({"password": secret}),
    ):
        assert CANARY not in text
    assert secret.reveal() == CANARY


def test_a_pickle_holds_no_secret():
    settings = ConnectionSettings(host="h", password=Secret(CANARY), key_passphrase=Secret(CANARY))
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        data = pickle.dumps(settings, protocol)
        assert CANARY.encode() not in data
        assert pickle.loads(data) == settings
        assert pickle.loads(data).password is None
        with pytest.raises(TypeError):
            pickle.dumps(Secret(CANARY), protocol)
    assert copy.copy(settings) == settings


@pytest.mark.parametrize("secret", ["password", "one_time_code"])
def test_a_secret_given_with_a_url_is_for_its_host(monkeypatch, secret):
    monkeypatch.setenv("PYREMOTEDATA_REMOTE_URI", "mine")
    monkeypatch.setenv("PYREMOTEDATA_REMOTE_USERNAME", "me")
    with Remote("sftp://other/a", **{secret: CANARY}) as remote:
        there = remote.engine.settings.for_url(remote.url)
        assert (getattr(there, secret), there.username) == (CANARY, None)
        elsewhere = RemoteURL.parse("sftp://third/a")
        assert getattr(remote.engine.settings.for_url(elsewhere), secret) is None


def test_what_ssh_config_runs_for_too_long_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(ssh, "RESOLVE_S", 0.5)
    config = tmp_path / "config"
    config.write_text(f'Match exec "sleep 100; touch {tmp_path}/ran"\n')
    settings = ConnectionSettings(host="host", ssh_config=str(config))
    assert ssh._resolved(settings).control_path == ""
    # The killed die a moment later.
    wait_until(lambda: not any(str(tmp_path) in command for command in commands()))


def test_ssh_config_is_asked_about_the_user_and_port_of_the_settings(tmp_path):
    config = tmp_path / "config"
    config.write_text("Match user me\n Ciphers aes256-ctr\n ControlPath ~/%p\n")
    settings = ConnectionSettings(host="host", ssh_config=str(config), username="me", port=2222)
    assert ssh._resolved(settings) == ("", f"{Path.home()}/2222")
    assert "aes256-ctr" not in ssh.ssh_argv(settings)
    assert ssh._resolved(replace(settings, username="you")).control_path == ""


def test_ssh_config_may_hold_bytes_that_are_no_text_here(sshd, tmp_path):
    config = tmp_path / "config"
    config.write_bytes(sshd.ssh_config.read_bytes() + b"    ControlPath /tmp/cl\xe9-%r\n")
    with TransferEngine(sshd.settings(ssh_config=str(config))) as engine:
        assert engine.stat(sshd.url()).result(60).kind == "directory"


def test_what_ssh_config_runs_when_it_is_read_gets_no_secret(tmp_path, monkeypatch):
    monkeypatch.setenv("PYREMOTEDATA_PASSWORD", CANARY)
    config, seen = tmp_path / "config", tmp_path / "seen"
    config.write_text(f'Match exec "env > {seen}"\n ControlPath /x\n')
    settings = ConnectionSettings.load(host="host", ssh_config=config)
    assert ssh._resolved(settings).control_path == "/x"
    assert "PATH=" in seen.read_text()
    assert CANARY not in seen.read_text()
