"""The set-up by questions, through a pseudo-terminal; the command ``config``; a bandwidth limit."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import time
from pathlib import Path

import pytest

from pyremotedata_core import ConnectionSettings, Remote
from pyremotedata_core.config import ENV

from .command import CLI
from .terminal import talk


@pytest.fixture
def home(tmp_path, sshd):
    """Variables of a user who has configured nothing."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(ENV)}
    reach = {"PYREMOTEDATA_SSH_CONFIG": str(sshd.ssh_config)}
    return {**clean, **reach, "XDG_CONFIG_HOME": str(tmp_path / "config")}


@pytest.fixture
def run(run, home):
    run.environment = home
    return run


def config_of(home: dict[str, str]) -> Path:
    return Path(home["XDG_CONFIG_HOME"]) / "pyremotedata/config.yaml"


def test_a_terminal_without_configuration_is_asked_and_the_answers_serve(sshd, run, home):
    sshd.make("setup/file.txt", b"hello")
    answers = [
        ("Server", sshd.alias),
        ("User name", ""),
        ("Port", ""),
        ("Remote directory", sshd.remote_path("setup")),
    ]
    said = talk([*CLI, "ls"], home, answers)
    assert "file.txt" in said
    assert said.endswith("exit 0")
    path = config_of(home)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = run("ls")
    assert (again.stdout, again.stderr) == ("file.txt\n", "")


def test_a_second_set_up_keeps_what_it_does_not_ask_about(sshd, home, monkeypatch):
    path = config_of(home)
    path.parent.mkdir(parents=True)
    path.write_text(f"host: {sshd.alias}\ntimeout_s: 7\npassword: 0123\n")
    path.chmod(0o600)
    questions = ("Server", "User name", "Port", "Remote directory")
    said = talk([*CLI, "config", "--setup"], home, [(question, "") for question in questions])
    assert said.endswith("exit 0")
    assert "No remote" not in said
    monkeypatch.setenv("XDG_CONFIG_HOME", home["XDG_CONFIG_HOME"])
    settings = ConnectionSettings.load()
    assert (settings.host, settings.timeout_s) == (sshd.alias, 7)
    assert settings.password is not None
    assert settings.password.reveal() == "0123"


def test_a_wrong_answer_is_told_and_nothing_is_written_when_given_up(home):
    answers = [
        ("Server", "no-such-host.invalid"),
        ("User name", ""),
        ("Port", ""),
        ("Remote directory", ""),
        ("Try again?", "n"),
    ]
    said = talk([*CLI, "ls"], home, answers)
    assert "unknown host" in said
    assert said.endswith("exit 2")
    assert not config_of(home).exists()


def test_an_end_of_input_in_place_of_a_password_gives_up_in_one_line(sshd, home):
    answers = [
        ("Server", sshd.alias),
        ("User name", "no-such-user"),
        ("Port", ""),
        ("Remote directory", ""),
        ("Password", "\x04"),
    ]
    said = talk([*CLI, "config", "--setup"], home, answers)
    assert "the set-up was broken off" in said
    assert "Traceback" not in said
    assert said.endswith("exit 2")


def test_nobody_is_asked_with_auto_or_without_a_terminal(run, home):
    said = talk([*CLI, "ls"], {**home, "PYREMOTEDATA_AUTO": "yes"}, [])
    assert "PYREMOTEDATA_REMOTE_URI" in said
    assert said.endswith("exit 2")
    assert "PYREMOTEDATA_REMOTE_URI" in run.failure("ls", status=2, stdin=subprocess.DEVNULL)


def test_config_shows_settings_without_secrets_and_handles_the_file(run, home):
    def config(*arguments: str) -> str:
        return run("config", *arguments).stdout

    home["PYREMOTEDATA_PASSWORD"] = "canary-7731"
    shown = json.loads(config("--json"))
    assert shown["password"] == "***"
    assert shown["exists"] is False
    assert "canary" not in config()
    del home["PYREMOTEDATA_PASSWORD"]
    assert config("--template").strip() == str(config_of(home))
    template = config_of(home).read_text()
    assert "# timeout_s:" in template
    assert stat.S_IMODE(config_of(home).stat().st_mode) == 0o600
    config_of(home).write_text(template.replace("# timeout_s:", "timeout_s: 7"))
    assert "timeout_s: 7.0" in config()
    assert config("--remove").startswith("removed")
    assert not config_of(home).exists()


def test_a_config_file_that_cannot_be_written_is_named(run, home):
    said = run.within('ulimit -f 0; exec "$@"').failure("config", "--template")
    assert f"cannot write {config_of(home)}: File too large" in said
    assert list(config_of(home).parent.iterdir()) == []


def test_a_bandwidth_limit_holds_for_all_sessions_together(sshd, tmp_path):
    data = os.urandom(3 << 20)
    for number in range(4):
        sshd.make(f"slow/{number}.bin", data)
    names = [f"slow/{number}.bin" for number in range(4)]
    with Remote(sshd.url(), ssh_config=str(sshd.ssh_config), bandwidth="4M") as remote:
        remote.stat("slow")
        started = time.monotonic()
        paths = remote.get_many(names, tmp_path)
        # 12 MiB at 4 MiB/s take 3 s, less what the bucket held: a bound that holds on any machine.
        assert time.monotonic() - started > 2.0
        started = time.monotonic()
        remote.put(paths[0], "slow/up/")
        assert time.monotonic() - started > 0.4
    assert all(path.read_bytes() == data for path in paths)
    assert (sshd.root / "slow/up/0.bin").read_bytes() == data
