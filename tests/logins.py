"""What tests of logins share: attempts that must fail, keys, and changes of ssh_config."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyremotedata_core import ConnectionSettings, TransferEngine, TransferError
from workflows.embedded_sshd import program, run

from .sites import WAIT_S


def attempt(url: str, settings: ConnectionSettings, times: int = 1) -> TransferError:
    """Log in, which must fail, with several requests at once; return the error."""
    with TransferEngine(settings) as engine:
        futures = [engine.stat(url) for _ in range(times)]
        errors = [future.exception(WAIT_S) for future in futures]
        again = engine.stat(url).exception(WAIT_S)
    assert all(isinstance(error, TransferError) for error in [*errors, again])
    assert len({str(error) for error in errors}) == 1
    assert isinstance(errors[0], TransferError)
    return errors[0]


@pytest.fixture(params=["openssh", "paramiko"])
def carrier(request) -> str:
    """What carries the sessions: whatever a login meets, it is to be told alike."""
    return request.param


def changed(server, path: Path, *replacements: tuple[str, str]) -> str:
    """Write the server's ssh_config with some words changed; return its path."""
    text = server.ssh_config.read_text()
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    return str(path)


def new_key(path: Path, passphrase: str = "", kind: str = "ed25519") -> Path:
    """Make a key, and its public half beside it."""
    run([program("ssh-keygen"), "-q", "-t", kind, "-N", passphrase, "-f", str(path)])
    return path


def fingerprint(server) -> str:
    """Return that of the server's host key."""
    key = server.directory / "host_key.pub"
    return run([program("ssh-keygen"), "-l", "-f", str(key)]).split()[1]
