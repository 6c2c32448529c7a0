"""Real SFTP servers for the tests: sshd of the calling user, and a chrooted sftp-only account."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shlex
import shutil
import signal
import sys
import tempfile
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Self

from pyremotedata_core import ConnectionSettings
from pyremotedata_core.nodestate import state_directory
from workflows.embedded_sshd import ADDRESS, EmbeddedSshd, free_port, run
from workflows.embedded_sshd import _sftp_server as sftp_server

from .child import Child

__all__ = ["ChildServer", "ChrootSshd", "ScriptedSshd", "Sshd", "free_port"]

_REQUEST = re.compile(r"debug\d: request \d+: (?!sent )([\w@.-]+)")
_LOGIN = re.compile(r"Accepted (?:publickey|password|keyboard-interactive/pam) for ")
_ACCOUNT = "prdtest-"
_HOSTILE = str(Path(__file__).with_name("hostile_server.py"))


class Sshd(EmbeddedSshd):
    """OpenSSH's sshd run by the calling user; see `EmbeddedSshd` for its options.

    The whole file system is visible, so tests use `url`, which is below `root`. Its key is known
    at every port, so that `ssh_config` serves behind a relay, too.

    Parameters
    ----------
    subsystem : str
        Name and command of the only subsystem, if not SFTP.
    """

    def __init__(self, *arguments: Any, subsystem: str = "", **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._only_subsystem = subsystem

    def start(self) -> Self:
        """Start; a new server is not the one whose port it has got, and has no killed uploads."""
        new = not self.port
        super().start()
        if new:
            for journals in (state_directory() / "uploads").glob(f"*@{ADDRESS}:{self.port}"):
                shutil.rmtree(journals, ignore_errors=True)
        return self

    def _sshd_config(self) -> list[str]:
        lines = super()._sshd_config()
        if self._only_subsystem:
            lines[-1] = f"Subsystem {self._only_subsystem}"
        return lines

    def _write_client_files(self) -> None:
        super()._write_client_files()
        known = self.known_hosts.read_text()
        self.known_hosts.write_text(known.replace(" ", f",[{ADDRESS}]:* ", 1))

    def settings(self, **more: Any) -> ConnectionSettings:
        """Return settings that reach this server; ``more`` are other fields."""
        return ConnectionSettings(**{"ssh_config": str(self.ssh_config), **more})

    def make(
        self,
        relative: str,
        data: bytes = b"",
        *,
        mtime: int | None = None,
        mode: int | None = None,
    ) -> Path:
        """Write a file (and the directories above it) on the server; return its local path."""
        path = self.root / relative
        self.make_directory(os.path.dirname(relative))
        path.write_bytes(data)
        self._give(path)
        if mode is not None:
            path.chmod(mode)
        if mtime is not None:
            os.utime(path, (mtime, mtime))
        return path

    def make_directory(self, relative: str) -> Path:
        """Make a directory (and those above it) on the server; return its local path."""
        path = self.root
        for part in Path(relative).parts:
            path = path / part
            if not path.is_dir():
                path.mkdir()
                self._give(path)
        return path

    def restart(self) -> None:
        """End the server with its sessions and start it on the same port with the same keys."""
        self.halt()
        self.start()

    def kill_sessions(self) -> int:
        """Kill the processes of every open session; the server goes on. Return how many."""
        pids = self.session_pids()
        _signal(pids, signal.SIGKILL)
        return len(pids)

    def freeze(self) -> None:
        """Stop every open session where it is: it keeps its connection and says nothing more."""
        _signal(self.session_pids(), signal.SIGSTOP)

    def thaw(self) -> None:
        """Let frozen sessions go on."""
        _signal(self.session_pids(), signal.SIGCONT)

    def logins(self) -> int:
        """Return how many logins have succeeded so far."""
        return len(_LOGIN.findall(self.log_text()))

    def requests(self, kind: str | None = None) -> int:
        """Return how many SFTP requests came so far (a server with ``log_requests``).

        Parameters
        ----------
        kind : str, optional
            Only requests of this kind, as sftp-server names them in its log: ``open``,
            ``close``, ``read``, ``write``, ``stat``, ``lstat``, ``fstat``, ``opendir``,
            ``mkdir``, ``posix-rename``, ... Without it all but ``close``: nobody waits for its
            answer, so that it may come late.
        """
        assert self.log_requests, "start the server with log_requests=True"
        counts = self.request_kinds()
        return counts.get(kind, 0) if kind else sum(counts.values()) - counts.get("close", 0)

    def request_kinds(self) -> dict[str, int]:
        """Return the number of requests of each kind."""
        counts: dict[str, int] = {}
        text = self.sftp_log.read_text(errors="replace") if self.sftp_log.exists() else ""
        for kind in _REQUEST.findall(text):
            counts[kind] = counts.get(kind, 0) + 1
        return counts

    def most_open(self, kind: str = "open") -> int:
        """Return how many files (``opendir``: directories) it has had open at the same time."""
        now = most = 0
        close = {"open": "close", "opendir": "closedir"}[kind]
        for line in self.sftp_log.read_text().splitlines():
            now += line.startswith(f'{kind} "') - line.startswith(f'{close} "')
            most = max(most, now)
        return most

    def _give(self, path: Path) -> None:
        """Make the server's account the owner of a file that a test has made."""


class ChildServer(ABC):
    """A server in a process of its own; what it has in common with `Sshd` has the same names.

    `start` sets ``_child``.
    """

    directory: Path
    root: Path
    _child: Child | None = None

    @abstractmethod
    def start(self) -> Self:
        """Start it; after `halt` on the same port."""

    def halt(self) -> None:
        """Kill it with its connections."""
        if self._child is not None:
            self._child.kill()
            self._child = None

    def stop(self) -> None:
        """End it for good, and remove its directory. May be called twice."""
        self.halt()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def remote_path(self, relative: str = "") -> str:
        """Return the server's path of a file below the root."""
        return f"/{relative}"

    make = Sshd.make
    make_directory = Sshd.make_directory

    def _give(self, path: Path) -> None:  # noqa: B027 - there is nothing to do
        """Files are its own already."""


class ScriptedSshd(Sshd):
    """An sshd whose SFTP server is `hostile_server`: see there for what it can do.

    ``ScriptedSshd("lie", "garbage")`` breaks the protocol; ``ScriptedSshd("relay",
    {"extensions": False})`` takes something away from OpenSSH's own server.
    """

    def __init__(self, role: str, what: str | dict[str, Any], names: Any = (), **more: Any) -> None:
        super().__init__(external=True, **more)
        if role == "relay":
            self._arguments = [role, sftp_server(), json.dumps(what)]
        else:
            self._arguments = [role, str(what), json.dumps(list(names))]

    def refuse(self, *kinds: str) -> None:
        """Have new sessions of a relay refuse these requests, and those alone."""
        self._arguments[-1] = json.dumps({**json.loads(self._arguments[-1]), "refuse": kinds})
        self._subsystem()

    def _subsystem(self) -> str:
        script = self.directory / "sftp_server.sh"
        command = [sys.executable, "-I", "-S", _HOSTILE, *self._arguments]
        script.write_text(f"#!/bin/sh\nexec {shlex.join(command)}\n")
        script.chmod(0o755)
        return str(script)


class ChrootSshd(Sshd):
    """A chrooted account that has SFTP and nothing else, as many archives give. Needs root.

    The account is made for the run; it logs in with the key of `settings`, or with `password`
    and `password_settings`. It sees its home as ``/`` and may write below ``/upload``.
    """

    alias = "chrooted"

    def __init__(self, **options: Any) -> None:
        _sweep()
        # sshd wants every directory above the chroot owned by root and closed to others.
        self._base = Path(tempfile.mkdtemp(prefix=_ACCOUNT, dir="/srv"))
        super().__init__(self._base / "upload", **options)
        self.user = f"{_ACCOUNT}{os.getpid()}-{secrets.token_hex(2)}"
        self.password = secrets.token_urlsafe(12) + " $'\"\\"
        self._uid = self._gid = 0

    def remote_path(self, relative: str = "") -> str:
        return f"/upload/{relative}" if relative else "/upload"

    def stop(self) -> None:
        super().stop()
        if self._uid:
            self._uid = 0
            _remove_account(self.user, self._base)

    @property
    def password_ssh_config(self) -> Path:
        """A file for ``ssh -F`` that offers no key, so that the password is asked for."""
        return self.directory / "ssh_config_password"

    def password_settings(self, **more: Any) -> ConnectionSettings:
        """Return settings that log in with the password."""
        from pyremotedata_core.config import Secret

        values = {"ssh_config": str(self.password_ssh_config), "password": Secret(self.password)}
        return ConnectionSettings(**{**values, **more})

    def _prepare(self) -> None:
        self._base.chmod(0o755)
        command = ["useradd", "--no-create-home", "--no-user-group"]
        command += ["--home-dir", str(self._base), "--shell", "/usr/sbin/nologin", self.user]
        run(command)
        self._uid, self._gid = _ids(self.user)
        run(["chpasswd"], text_in=f"{self.user}:{self.password}\n")
        self.root.mkdir()
        self._give(self.root)
        super()._prepare()
        # sshd reads the file as the account, which must get there.
        self.directory.chmod(0o711)
        (self.directory / "authorized_keys").chmod(0o644)

    def _write_client_files(self) -> None:
        super()._write_client_files()
        self.password_ssh_config.write_text(
            self._ssh_config("PubkeyAuthentication no", "NumberOfPasswordPrompts 1")
        )

    def _sshd_config(self) -> list[str]:
        return [
            *self.lines,
            f"ChrootDirectory {self._base}",
            f"ForceCommand internal-sftp {self.sftp_arguments}",
            f"AllowUsers {self.user}",
            "PasswordAuthentication yes",
            "PermitTTY no",
            *super()._sshd_config()[len(self.lines) :],
        ]

    def _give(self, path: Path) -> None:
        os.chown(path, self._uid, self._gid)


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _ids(user: str) -> tuple[int, int]:
    import pwd

    entry = pwd.getpwnam(user)
    return entry.pw_uid, entry.pw_gid


def _remove_account(user: str, home: Path) -> None:
    with contextlib.suppress(Exception):
        run(["userdel", user])
    shutil.rmtree(home, ignore_errors=True)


def _sweep() -> None:
    """Remove accounts that a killed run has left."""
    for line in Path("/etc/passwd").read_text().splitlines():
        user, *_, home, _shell = line.split(":")
        pid = user.removeprefix(_ACCOUNT).partition("-")[0]
        if user.startswith(_ACCOUNT) and pid.isdigit() and not Path("/proc", pid).exists():
            _remove_account(user, Path(home))
