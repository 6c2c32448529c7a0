"""An SFTP server for one run: OpenSSH's own sshd, started by the calling user on loopback.

Keys, host key and configuration are made for the run and go with it. Needs no root, changes
nothing outside its directory and listens on 127.0.0.1 only. The quickstart and the tests use it.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Self
from urllib.parse import quote

ADDRESS = "127.0.0.1"
START_TIMEOUT_S = 15.0
STOP_TIMEOUT_S = 5.0
_PLACES = "/usr/sbin:/usr/local/sbin:/usr/local/bin:/opt/homebrew/sbin:/sbin"
_SFTP_SERVERS = (
    "/usr/lib/openssh/sftp-server",
    "/usr/libexec/openssh/sftp-server",
    "/usr/libexec/sftp-server",
    "/usr/lib/ssh/sftp-server",
    "/usr/lib/sftp-server",
)


class ServerUnavailable(RuntimeError):
    """The server cannot be started here; the message says what to do."""


def own_directory(kind: str) -> Path:
    """Make a temporary directory; those of processes that were killed go."""
    for path in Path(tempfile.gettempdir()).glob(f"{kind}-*-*"):
        pid = path.name.split("-")[-2]
        with contextlib.suppress(OSError):
            if pid.isdigit() and not _is_alive(int(pid)) and path.stat().st_uid == os.getuid():
                shutil.rmtree(path, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{kind}-{os.getpid()}-")).resolve()


class EmbeddedSshd:
    """A running sshd that lets in the calling user, by a key made for the run.

    Parameters
    ----------
    root : path or None
        The directory that `url` refers to; default a new one. The server shows the whole file
        system of the calling user, so URLs carry absolute paths.
    lines : iterable of str
        Lines for sshd_config; they come first, and the first value of a keyword wins.
        LogLevel below INFO is not served: the log says when the server listens.
    sftp_arguments : str
        Arguments of the SFTP server, for example ``-R`` or ``-P posix-rename``.
    log_requests : bool
        Run OpenSSH's external sftp-server and have it write every request to `sftp_log`.
    external : bool
        Run the external sftp-server rather than the one inside sshd.

    Attributes
    ----------
    directory : Path
        Holds keys, configuration and logs; made with mode 0700, removed by `stop`.
    port : int
    user : str
    ssh_config : Path
        A file for ``ssh -F`` with which the server can be reached, strictly.

    Raises
    ------
    ServerUnavailable
        By `start`, naming what is missing.

    Notes
    -----
    Not thread-safe. A context manager: started on entry, stopped on exit.
    """

    alias = "embedded"

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        *,
        lines: Iterable[str] = (),
        sftp_arguments: str = "",
        log_requests: bool = False,
        external: bool = False,
    ) -> None:
        self.user = _calling_user()
        self.lines = list(lines)
        self.sftp_arguments = sftp_arguments
        self.log_requests = log_requests
        self.external = external or log_requests
        self.port = 0
        self.directory = Path()
        self._root = Path(root) if root is not None else None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """Make what is missing and start; after `halt` the same keys and port serve again."""
        if not self.port:
            self.directory = own_directory("embedded-sshd")
            try:
                self._prepare()
            except BaseException:
                self.stop()
                raise
        for attempts_left in (2, 1, 0):
            if not self.port:
                self.port = free_port()
                self._write_client_files()  # once: clients may read them during a restart
            (self.directory / "sshd_config").write_text("\n".join(self._sshd_config()) + "\n")
            try:
                self._launch()
                return self
            except ServerUnavailable:
                # Another program may have taken the port between our look and sshd's.
                if attempts_left and "already in use" in self.log_text():
                    self.port = 0
                    continue
                self.stop()
                raise
        raise AssertionError

    def halt(self) -> None:
        """End the server and its sessions; keys, port and files stay for the next `start`."""
        if self._process is None:
            return
        sessions = self.session_pids()
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        _kill(sessions)
        self._process = None

    def stop(self) -> None:
        """End the server and its sessions, and remove its directory. May be called twice."""
        self.halt()
        if self.directory != Path():
            shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def root(self) -> Path:
        """The directory that `url` refers to, as the local file system shows it."""
        return self._root if self._root is not None else self.directory / "root"

    @property
    def ssh_config(self) -> Path:
        """A file for ``ssh -F``."""
        return self.directory / "ssh_config"

    @property
    def known_hosts(self) -> Path:
        """The file with the server's host key."""
        return self.directory / "known_hosts"

    @property
    def key(self) -> Path:
        """The private key that the server accepts."""
        return self.directory / "user_key"

    @property
    def log(self) -> Path:
        """Where sshd writes its log."""
        return self.directory / "sshd.log"

    @property
    def sftp_log(self) -> Path:
        """Where the external sftp-server writes its requests, with ``log_requests``."""
        return self.directory / "sftp.log"

    @property
    def pid(self) -> int | None:
        """Process id of the listening sshd, None when it is not running."""
        return self._process.pid if self._process is not None else None

    def remote_path(self, relative: str = "") -> str:
        """Return the server's path of a file below the root."""
        return f"{self.root}/{relative}" if relative else str(self.root)

    def url(self, relative: str = "") -> str:
        """Return the URL of a file below the root."""
        path = quote(os.fsencode(self.remote_path(relative)), safe="/~!$&'()*+,;=:@-._")
        return f"sftp://{quote(self.user)}@{ADDRESS}:{self.port}{path}"

    def environment(self) -> dict[str, str]:
        """Return the variables with which pyremotedata reaches the server, without a prompt."""
        return {"PYREMOTEDATA_SSH_CONFIG": str(self.ssh_config), "PYREMOTEDATA_AUTO": "yes"}

    def log_text(self) -> str:
        """Return what sshd has logged so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def session_pids(self) -> list[int]:
        """Return the processes that serve connections, the parents first."""
        return descendants(self._process.pid) if self._process is not None else []

    def _prepare(self) -> None:
        if self._root is None:
            self.root.mkdir()
        for path in (self.directory / "host_key", self.key):
            run([program("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(path)])
        shutil.copyfile(f"{self.key}.pub", self.directory / "authorized_keys")
        if os.getuid() == 0:
            # sshd started by root wants its privilege separation directory; systemd makes it.
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)

    def _write_client_files(self) -> None:
        host_key = (self.directory / "host_key.pub").read_text()
        self.known_hosts.write_text(f"[{ADDRESS}]:{self.port} {host_key}")
        self.ssh_config.write_text(self._ssh_config(f"IdentityFile {_quoted(self.key)}"))

    def _sshd_config(self) -> list[str]:
        # StrictModes would refuse keys below a shared temporary directory.
        return [
            *self.lines,
            f"Port {self.port}",
            f"ListenAddress {ADDRESS}",
            f'HostKey "{self.directory}/host_key"',
            f"AuthorizedKeysFile {_quoted(self.directory / 'authorized_keys')}",
            "PidFile none",
            "StrictModes no",
            f"UsePAM {'yes' if _locked(self.user) else 'no'}",
            "UseDNS no",
            "PermitRootLogin prohibit-password",
            "PasswordAuthentication no",
            "ChallengeResponseAuthentication no",
            "AllowTcpForwarding no",
            "X11Forwarding no",
            "PrintMotd no",
            "PrintLastLog no",
            "MaxStartups 100",
            "MaxSessions 100",
            "LogLevel VERBOSE",
            # A shell that is not the first of its kind leaves the account's ~/.bashrc alone, which
            # bash would read for each session: it takes time, may print, may wait for a lock that
            # a session killed meanwhile has left.
            "SetEnv SHLVL=1",
            *(["PerSourcePenalties no"] if sshd_version() >= (9, 8) else []),
            f"Subsystem sftp {self._subsystem()}",
        ]

    def _subsystem(self) -> str:
        if not self.external:
            return f"internal-sftp {self.sftp_arguments}".strip()
        command = f"{_sftp_server()} {self.sftp_arguments}"
        if self.log_requests:
            command += f" -e -l DEBUG3 2>>{shlex.quote(str(self.sftp_log))}"
        return command

    def _ssh_config(self, *lines: str) -> str:
        return "\n".join(
            [
                f"Host {self.alias}",
                f"    HostName {ADDRESS}",
                f"    Port {self.port}",
                f"    User {self.user}",
                "Host *",
                f"    UserKnownHostsFile {_quoted(self.known_hosts)}",
                "    GlobalKnownHostsFile /dev/null",
                "    StrictHostKeyChecking yes",
                "    IdentitiesOnly yes",
                "    IdentityAgent none",
                *(f"    {line}" for line in lines),
                "",
            ]
        )

    def _launch(self) -> None:
        seen = len(self.log_text())
        command = [
            program("sshd"),
            "-D",
            "-f",
            str(self.directory / "sshd_config"),
            "-E",
            str(self.log),
        ]
        # Where the platform can, the server ends with the process (thread) that started it.
        setpriv = shutil.which("setpriv")
        self._process = subprocess.Popen(
            [setpriv, "--pdeathsig", "TERM", *command] if setpriv else command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
        )
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if f"Server listening on {ADDRESS} port {self.port}." in self.log_text()[seen:]:
                return
            if self._process.poll() is not None:
                break
            time.sleep(0.01)
        self.halt()
        raise ServerUnavailable(f"sshd did not start:\n{self.log_text()[-2000:]}")


def program(name: str) -> str:
    """Return the absolute path of an OpenSSH program.

    Raises
    ------
    ServerUnavailable
        If it is not installed, with the way to install it.
    """
    path = shutil.which(name) or shutil.which(name, path=_PLACES)
    if path is None:
        raise ServerUnavailable(
            f"OpenSSH's {name} is not installed; install it, for example with:"
            " sudo apt-get install --no-install-recommends openssh-server openssh-client"
        )
    return path


def sshd_version() -> tuple[int, int]:
    """Return the version of the installed sshd, (0, 0) when it does not say."""
    # Older ones do not know -V and print their version with the usage.
    told = subprocess.run([program("sshd"), "-V"], capture_output=True, text=True, check=False)
    found = re.search(r"OpenSSH_(\d+)\.(\d+)", told.stderr + told.stdout)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def free_port() -> int:
    """Return a loopback port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((ADDRESS, 0))
        return int(probe.getsockname()[1])


def run(command: list[str], *, text_in: str | None = None, timeout_s: float = 60) -> str:
    """Run a program to its end and return its output; its error text goes into the exception."""
    done = subprocess.run(
        command, input=text_in, capture_output=True, text=True, check=False, timeout=timeout_s
    )
    if done.returncode:
        raise ServerUnavailable(f"{shlex.join(command)}: {done.stderr.strip()}")
    return done.stdout


def descendants(pid: int) -> list[int]:
    """Return the processes below a process, the parents first."""
    children: dict[int, list[int]] = {}
    for child, parent in _parents():
        children.setdefault(parent, []).append(child)
    found = list(children.get(pid, []))
    for child in found:
        found.extend(children.get(child, []))
    return found


def _parents() -> Iterable[tuple[int, int]]:
    if not os.path.isdir("/proc/self"):
        for line in run(["ps", "-A", "-o", "pid=,ppid="]).splitlines():
            child, parent = line.split()
            yield int(child), int(parent)
        return
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                stat = Path("/proc", name, "stat").read_text(errors="replace")
            except OSError:
                continue  # ended meanwhile
            yield int(name), int(stat.rpartition(")")[2].split()[1])


def _quoted(path: Path) -> str:
    """Return a path for a line of OpenSSH's that expands ``%``."""
    return '"' + str(path).replace("%", "%%") + '"'


def _kill(pids: Iterable[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue


def _sftp_server() -> str:
    for path in _SFTP_SERVERS:
        if os.access(path, os.X_OK):
            return path
    raise ServerUnavailable("OpenSSH's sftp-server is not installed (openssh-sftp-server)")


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _calling_user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        raise ServerUnavailable(
            f"user id {os.getuid()} has no name in the password database; sshd needs one"
        ) from None


def _locked(user: str) -> bool:
    # Without PAM sshd refuses accounts whose password field begins with "!", keys or not.
    try:
        lines = Path("/etc/shadow").read_text().splitlines()
    except OSError:
        return False
    return any(line.startswith(f"{user}:!") for line in lines)
