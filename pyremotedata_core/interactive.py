"""The set-up by questions: asks on a terminal, tests the login, writes the config file."""

from __future__ import annotations

import getpass
import os
import sys
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import Any

from .config import ConnectionSettings, Secret, config_path, read_config
from .engine import TransferEngine
from .errors import (
    AuthenticationFailed,
    ConfigurationError,
    HostKeyRejected,
    TransferError,
    from_oserror,
)

_ABOUT = {
    "host": "the server, or a name from your ssh_config",
    "username": "your account there",
    "port": "22 unless the server says otherwise (ERDA: 2222)",
    "directory": "where remote paths begin; without a leading / below the login directory",
    "local_directory": "where relative local paths of IOHandler begin",
    "ssh_key": "the only private key to offer; default: what ssh itself would use",
    "ssh_config": "a file for ssh -F",
    "password": "better a key and ssh-agent; this file must then be yours alone (chmod 600)",
    "key_passphrase": "of the private key",
    "one_time_code": "never kept in this file; PYREMOTEDATA_ONE_TIME_CODE, or asked for",
    "accept_new": "yes: accept the host key of a server never seen",
    "ftps_mode": "for ftps://: explicit, implicit, or auto (implicit at port 990)",
    "ca_file": "for ftps://: certificates of the authorities to trust; default: the system's",
    "transport": "auto, sftp or lftp",
    "carrier": "auto, openssh or paramiko: what carries SFTP; paramiko where there is no ssh",
    "connections": "sessions per server and machine at the most",
    "timeout_s": "give up when nothing has moved for so many seconds",
    "bandwidth": "bytes per second at the most, as 10M",
    "fsync": "yes: flush each file to disk before it is published",
    "publish": "direct: write under the final name, where an archive lets nobody rename",
    "cache_dir": "place of the node's cache of staged files",
    "cache_bytes": "its size at the most, as 50G",
}


def set_up() -> ConnectionSettings:
    """Ask for the remote, test the login, write the config file; return the settings.

    Questions go to standard error. An empty answer keeps what stands in brackets.

    Raises
    ------
    ConfigurationError
        If the person gives up.
    """
    known = ConnectionSettings.load()
    if not known.host:
        _say("No remote is configured yet.")
    _say("Four questions; an empty answer keeps what is in [].")
    try:
        settings, answers = _ask_until_it_works(known)
    except (EOFError, KeyboardInterrupt):
        raise ConfigurationError("the set-up was broken off; nothing was written") from None
    path = write_config(answers)
    _say(f"It works. Written to {path}")
    return settings


def write_config(values: dict[str, Any]) -> Path:
    """Write the config file, readable by its owner only, in one step; return its path.

    Settings that are not given stand in it as comments.

    Raises
    ------
    TransferError
        If it cannot be written.
    """
    path = config_path()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=".config-")
        try:
            with os.fdopen(fd, "w", encoding="utf-8") as file:
                file.write(_document(values))
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise from_oserror(error, path) from None
    return path


def _document(values: dict[str, Any]) -> str:
    import yaml

    lines = ["# Settings of pyremotedata. Environment variables and arguments win over them.", ""]
    for field in fields(ConnectionSettings):
        lines.append(f"# {_ABOUT[field.name]}")
        if field.name == "one_time_code":
            continue
        value = values.get(field.name)
        if value is None:
            lines.append(f"# {field.name}:")
        else:
            shown = value.reveal() if isinstance(value, Secret) else value
            plain = str(shown).isprintable()  # what is not, would not be read as it was written
            lines.append(yaml.safe_dump({field.name: shown}, allow_unicode=plain).strip())
    return "\n".join(lines) + "\n"


def _ask_until_it_works(known: ConnectionSettings) -> tuple[ConnectionSettings, dict[str, Any]]:
    """Return settings with which a login succeeded, and what the config file is to hold of them.

    Raises
    ------
    EOFError
        If the person gives up.
    """
    answers = read_config()  # what is not asked about stays
    while True:
        try:
            answers = _ask_all(known, answers)
            settings = ConnectionSettings.load(**answers)
            _say(f"Logging in to {settings.root()} ...")
            # What a password cannot answer, a one-time code, is asked for when the server asks.
            with TransferEngine(settings, ask="password" in answers) as engine:
                engine.stat(settings.root()).result()
            return settings, answers
        except TransferError as error:
            _say(f"That did not work. {error}")
            if isinstance(error, AuthenticationFailed) and "password" not in answers:
                secret = getpass.getpass("Password (empty: none): ", stream=sys.stderr)
                if secret:
                    answers["password"] = secret
            if isinstance(error, HostKeyRejected):
                _say("Accept the key first, in another terminal.")
            if not _prompt("Try again? (y/n) ").lower().startswith("y"):
                raise EOFError from None


def _ask_all(known: ConnectionSettings, before: dict[str, Any]) -> dict[str, Any]:
    answers = dict(before)
    for key, question in (
        ("host", "Server (as ssh knows it)"),
        ("username", "User name"),
        ("port", "Port"),
        ("directory", "Remote directory"),
    ):
        default = answers.get(key) or getattr(known, key)
        answer = _prompt(f"{question} [{default or ''}]: ")
        if answer or default:
            answers[key] = answer or default
    if str(answers.get("port")).isdecimal():
        answers["port"] = int(answers["port"])
    if before.get("host") not in (None, answers.get("host")):
        answers.pop("password", None)  # is no business of another server
    return answers


def _prompt(text: str) -> str:
    sys.stderr.write(text)
    sys.stderr.flush()
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.strip()


def _say(text: str) -> None:
    print(text, file=sys.stderr)
