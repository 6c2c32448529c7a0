"""A server with the manners of MiG (ERDA) in a child process; see `miglike_server`."""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

from pyremotedata_core import ConnectionSettings, Secret
from workflows.embedded_sshd import ADDRESS, own_directory, program, run

from .child import Child
from .servers import ChildServer


class MigLike(ChildServer):
    """A running server.

    It lets in ``me@example.org`` by key or password, and a share link: a user of ten characters
    whose name is the password. Needs no root.

    Parameters
    ----------
    lock_s : float
        How long five different wrong secrets lock a user out.
    most_sessions : int
        Connections that a user may have. The end of one is seen within a second; a login beyond
        them is broken off, and counts as a wrong one.
    """

    user = "me@example.org"
    code_user = "careful@example.org"  # who is asked for a password and a one-time code

    def __init__(self, *, lock_s: float = 300.0, most_sessions: int = 1000) -> None:
        self.directory = own_directory("miglike")
        self.root = self.directory / "root"  # what the user sees as ``/``
        self.password = secrets.token_urlsafe(12) + " $'\"\\"
        self.share = secrets.token_hex(5)
        self.codes = [f"{number:06}" for number in secrets.SystemRandom().sample(range(10**6), 50)]
        self.port = 0
        self._lock_s = lock_s
        self._most_sessions = most_sessions

    def start(self) -> Self:
        """Start the child process; after `halt` on the same port, with the same keys."""
        if not self.port:
            self._prepare()
        self._child = Child(sys.executable, str(Path(__file__).with_name("miglike_server.py")))
        self.port = self._child.ask(self._settings())
        self._write_ssh_config()
        return self

    @property
    def ssh_config(self) -> Path:
        """A file for ``ssh -F``."""
        return self.directory / "ssh_config"

    @property
    def key(self) -> Path:
        """The private key that the server accepts."""
        return self.directory / "user_key"

    def url(self, relative: str = "", user: str | None = None) -> str:
        """Return the URL of a file below the root."""
        path = quote(os.fsencode(self.remote_path(relative)), safe="/~!$&'()*+,;=:@-._")
        return f"sftp://{quote(user or self.user)}@{ADDRESS}:{self.port}{path}"

    def settings(self, **more: Any) -> ConnectionSettings:
        """Return settings that log in with the key."""
        values = {"ssh_config": str(self.ssh_config), "ssh_key": str(self.key)}
        return ConnectionSettings(**{**values, **more})

    def password_settings(self, password: str | None = None, **more: Any) -> ConnectionSettings:
        """Return settings that log in with a password, the user's own by default."""
        secret = Secret(self.password if password is None else password)
        values = {"ssh_config": str(self.ssh_config), "password": secret}
        return ConnectionSettings(**{**values, **more})

    def log_text(self) -> str:
        """Return its log: a line for every login (user, kind, outcome) and session."""
        log = self.directory / "log"
        return log.read_text() if log.exists() else ""

    def _prepare(self) -> None:
        self.root.mkdir()
        for name, kind in (("host_key", "rsa"), ("user_key", "ed25519")):
            path = str(self.directory / name)
            form = ["-m", "PEM"] if kind == "rsa" else []
            run([program("ssh-keygen"), "-q", "-t", kind, *form, "-N", "", "-C", "", "-f", path])

    def _settings(self) -> dict[str, Any]:
        key = (self.directory / "user_key.pub").read_text().split()[1]
        me = {"root": str(self.root), "password": self.password, "keys": [key]}
        careful = {"root": str(self.root), "password": self.password, "codes": self.codes}
        share = {"root": str(self.root), "password": self.share}
        return {
            "port": self.port,
            "host_key": str(self.directory / "host_key"),
            "log": str(self.directory / "log"),
            "lock_s": self._lock_s,
            "most_sessions": self._most_sessions,
            "users": {self.user: me, self.share: share, self.code_user: careful},
        }

    def _write_ssh_config(self) -> None:
        known_hosts = self.directory / "known_hosts"
        host_key = (self.directory / "host_key.pub").read_text()
        known_hosts.write_text(f"[{ADDRESS}]:* {host_key}")  # behind a relay, too
        self.ssh_config.write_text(
            "Host *\n"
            f'    UserKnownHostsFile "{known_hosts}"\n'
            "    GlobalKnownHostsFile /dev/null\n"
            "    StrictHostKeyChecking yes\n"
            "    IdentityAgent none\n"
            "    IdentityFile none\n"
        )
