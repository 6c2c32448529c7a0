"""Servers that ask for more than a key: one-time codes, and a person who answers at a terminal."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from pyremotedata_core import AuthenticationFailed, ConfigurationError, Secret, TransferEngine
from pyremotedata_core.askpass import kind_of
from pyremotedata_core.config import ENV, ConnectionSettings, config_path

from .command import CLI
from .logins import attempt, changed, new_key
from .miglike import MigLike
from .page import told
from .sites import WAIT_S
from .terminal import talk


class Careful:
    """A server whose user is asked for a password and a code, each good for one login."""

    def __init__(self, server: MigLike) -> None:
        self.server = server
        self._seen = len(server.log_text())

    def url(self, relative: str = "") -> str:
        return self.server.url(relative, self.server.code_user)

    def settings(self, code: str | None = None, **more) -> ConnectionSettings:
        secret = Secret(code) if code else None
        return self.server.password_settings(one_time_code=secret, **more)

    def code(self) -> str:
        """Return a code that has not been used."""
        return self.server.codes.pop()

    def said(self) -> list[str]:
        """Return what the server has logged since the test began."""
        lines = self.server.log_text()[self._seen :].splitlines()
        return [line.replace(self.server.code_user, "USER") for line in lines]


LOGIN = ["login USER password taken", "login USER code accepted"]


@pytest.fixture
def careful(miglike) -> Careful:
    return Careful(miglike)


@pytest.fixture
def terminal(careful) -> dict[str, str]:
    """Variables of a user at a terminal, who has configured no secret."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(ENV)}
    return {**clean, "PYREMOTEDATA_SSH_CONFIG": str(careful.server.ssh_config)}


# --- from the settings ----------------------------------------------------------------------


def test_a_password_and_a_code_let_in_once(careful, carrier):
    careful.server.make("codes/a", b"1")
    code = careful.code()
    with TransferEngine(careful.settings(code, carrier=carrier)) as engine:
        assert engine.stat(careful.url("codes/a")).result(WAIT_S).size == 1
    assert careful.said()[:2] == LOGIN
    # Another engine of this process has the same code: it is not sent again.
    error = attempt(careful.url(), careful.settings(code, carrier=carrier), times=3)
    assert type(error) is AuthenticationFailed
    assert "PYREMOTEDATA_ONE_TIME_CODE" in str(error)
    assert "Verification code" in str(error)
    assert code not in str(error)
    assert [line for line in careful.said() if " code " in line] == LOGIN[1:]


def test_a_wrong_code_is_sent_once(careful, carrier):
    error = attempt(careful.url(), careful.settings(f"no {carrier}", carrier=carrier), times=5)
    assert type(error) is AuthenticationFailed
    assert [line for line in careful.said() if " code " in line] == ["login USER code refused"]


def test_a_password_is_no_answer_to_the_question_for_a_code(careful, carrier):
    error = attempt(careful.url(), careful.settings(carrier=carrier))
    assert type(error) is AuthenticationFailed
    told(error, "asks for more than is configured")
    assert not [line for line in careful.said() if " code " in line]


def test_further_sessions_share_the_connection_that_took_the_code(
    careful,
    carrier,
    relay_factory,
    tmp_path,
):
    server = careful.server
    relay = relay_factory(server.port, one_way_ms=20)
    data = os.urandom(40 * 2**20)
    server.make("codes/large", data)
    with TransferEngine(careful.settings(careful.code(), carrier=carrier)) as engine:
        url = relay.url(careful.url("codes/large"))
        engine.fetch(url, tmp_path / "large").result(WAIT_S)
    assert (tmp_path / "large").read_bytes() == data
    said = careful.said()
    assert [line for line in said if line.startswith("login")] == LOGIN
    assert said.count("session USER begins") > 1


@pytest.mark.full
def test_a_connection_that_took_a_code_is_not_given_up_to_others(careful):
    """Others of the node wait for their turn; without a person there would be no second login."""
    one = {"connections": 1}
    with TransferEngine(careful.settings(careful.code(), **one)) as engine:
        engine.stat(careful.url()).result(WAIT_S)
        with TransferEngine(careful.settings(careful.code(), **one)) as other:
            waiting = other.stat(careful.url())
            with pytest.raises(TimeoutError):
                waiting.result(4.0)
        assert engine.stat(careful.url()).result(WAIT_S).kind == "directory"
    assert [line for line in careful.said() if line.startswith("login")] == LOGIN


def test_a_code_does_not_belong_in_the_config_file():
    path = config_path()
    path.parent.mkdir(parents=True)
    path.write_text("one_time_code: '123456'\n")
    path.chmod(0o600)
    with pytest.raises(ConfigurationError, match="PYREMOTEDATA_ONE_TIME_CODE") as caught:
        ConnectionSettings.load()
    assert "123456" not in str(caught.value)


# --- from a person --------------------------------------------------------------------------


@pytest.mark.parametrize("environment", [{}, {"PYREMOTEDATA_CARRIER": "paramiko"}])
def test_what_is_not_configured_is_asked_for_once_on_the_terminal(
    careful, terminal, tmp_path, environment
):
    server, code = careful.server, careful.code()
    for name in "ab":
        server.make(f"asked/{name}", name.encode())
    argv = [*CLI, "get", careful.url("asked/a"), careful.url("asked/b"), f"{tmp_path}/"]
    answers = [("Password:", server.password), ("Verification code:", code)]
    said = talk(argv, {**terminal, **environment}, answers)
    assert said.endswith("exit 0"), said
    assert server.password not in said
    assert code not in said
    assert said.count("Password:") == said.count("Verification code:") == 1
    assert [(tmp_path / name).read_text() for name in "ab"] == ["a", "b"]
    assert [line for line in careful.said() if line.startswith("login")] == LOGIN
    assert not config_path().exists()


@pytest.mark.full
@pytest.mark.parametrize("carried", ["openssh", "paramiko"])
def test_a_person_may_take_longer_than_a_server(careful, terminal, carried):
    variables = {"PYREMOTEDATA_TIMEOUT": "3", "PYREMOTEDATA_CARRIER": carried}
    answers = [("Password:", careful.server.password), ("Verification code:", careful.code())]
    argv = [*CLI, "ls", careful.url()]
    said = talk(argv, {**terminal, **variables}, answers, think_s=4.0)
    assert said.endswith("exit 0"), said


def test_a_wrong_answer_is_asked_for_anew(careful, terminal):
    program = (
        "import sys\n"
        "from pyremotedata_core import Remote, TransferError\n"
        "for _ in range(2):\n"
        "    try:\n"
        "        with Remote(sys.argv[1]) as remote:\n"
        "            print('there:', remote.exists('/'))\n"
        "    except TransferError as error:\n"
        "        print(type(error).__name__)\n"
    )
    answers = [
        ("Password:", "wrong"),
        ("Verification code:", careful.code()),
        ("Password:", careful.server.password),
        ("Verification code:", careful.code()),
    ]
    said = talk([sys.executable, "-c", program, careful.url()], terminal, answers)
    assert "AuthenticationFailed" in said
    assert "there: True" in said


def test_nobody_is_asked_with_auto(careful, terminal):
    said = talk([*CLI, "ls", careful.url()], {**terminal, "PYREMOTEDATA_AUTO": "yes"}, [])
    assert "Password:" not in said
    assert said.endswith("exit 1")
    assert not [line for line in careful.said() if line.startswith("login")]


@pytest.mark.parametrize("carried", ["openssh", "paramiko"])
def test_a_passphrase_is_asked_for(sshd_factory, terminal, tmp_path: Path, carried):
    server = sshd_factory()
    server.make("a", b"1")
    key = new_key(tmp_path / "key", "open sesame")
    with (server.directory / "authorized_keys").open("a") as file:
        file.write((tmp_path / "key.pub").read_text())
    config = changed(server, tmp_path / "config", (str(server.key), str(key)))
    variables = {"PYREMOTEDATA_SSH_CONFIG": config, "PYREMOTEDATA_CARRIER": carried}
    argv = [*CLI, "ls", server.url()]
    said = talk(argv, {**terminal, **variables}, [("Enter passphrase for key", "open sesame")])
    assert "\na" in said
    assert said.endswith("exit 0")


# --- what is asked --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("me@host's password: ", "password"),
        ("(me@host) Password: ", "password"),
        ("Passwort: ", "password"),
        ("(me@host) Verification code: ", "code"),
        ("One-time password (OATH) for `me': ", "code"),
        ("Second Factor: ", "code"),
        ("Passcode or option (1-3): ", "code"),
        ("Enter OTP: ", "code"),
        ("Enter passphrase for key '/home/token/id_code': ", "passphrase"),
        ("Enter PIN for ED25519-SK key: ", "pin"),
        ("First Factor: ", "unknown"),
    ],
)
def test_a_question_is_told_by_its_words(question, kind):
    assert kind_of(question) == kind
