"""The OpenSSH client: its command line, its environment, its child process.

OpenSSH decides about configuration, keys, jump hosts and host keys; this module only adds what a
program needs that nobody watches: no prompts on a terminal, secrets through askpass, errors on
one pipe.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import NamedTuple

from . import askpass
from .children import kill_group, plain_environment, reap, wide_socketpair
from .config import ConnectionSettings
from .errors import ConfigurationError, TransferError, from_ssh_stderr

ASKED_S = 3600.0  # no login lasts so long
RESOLVE_S = 10.0  # for ssh to read its configuration
BINDING_S = 60.0  # more than it takes
SOCKET_PATH = 104  # bytes that every system takes, of which ssh wants some for a name of its own
FAST_CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")
_ASKPASS = Path(__file__).with_name("askpass.sh")
_asker = ""  # the socket of an `Asker`
_tickets: dict[str, str] = {}  # of one-time codes


def find_ssh() -> str:
    """Return the path of the ssh program.

    Raises
    ------
    ConfigurationError
        If there is none on PATH.
    """
    path = shutil.which("ssh")
    if path is None:
        raise ConfigurationError(
            "the program ssh is not installed; install OpenSSH's client"
            " (Debian, Ubuntu: apt install openssh-client)"
        )
    return path


@cache
def ssh_version() -> tuple[int, int]:
    """Return the version of the OpenSSH client, (0, 0) where it does not say."""
    try:
        done = subprocess.run([find_ssh(), "-V"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return (0, 0)
    match = re.search(r"OpenSSH[_a-zA-Z]*_(\d+)\.(\d+)", done.stderr + done.stdout)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def ssh_argv(
    settings: ConnectionSettings, control: dict[str, str] | None = None, log_level: str = "INFO"
) -> list[str]:
    """Return the ssh program and its options, without host and command.

    Never holds a secret. User and port are included when they are set.

    Parameters
    ----------
    settings : ConnectionSettings
    control : dict, optional
        Options about sharing a connection. Default: a master of the user's own is used, none
        is started that would outlive this process.
    log_level : str
        How much it says on standard error.
    """
    # Whose connection has died, and not the server, has time left for another login; that is not
    # tried where it may take a person.
    patience_s = settings.timeout_s / (2 if settings.one_time_code or _asker else 6)
    options = {
        "ForwardX11": "no",
        "ForwardAgent": "no",
        "ClearAllForwardings": "yes",
        "PermitLocalCommand": "no",
        "RemoteCommand": "none",
        "RequestTTY": "no",
        **(control or {"ControlMaster": "no"}),
        "LogLevel": log_level,
        "ConnectTimeout": str(max(1, round(settings.timeout_s))),
        "NumberOfPasswordPrompts": "1",
        # A child that outlived its owner in a silent network would wait for ever.
        "ServerAliveInterval": str(max(2, round(patience_s))),
        "ServerAliveCountMax": "2",
    }
    if not (settings.password or settings.one_time_code or _asker):
        # Without an answer, a prompt would send an empty password: a counted, failed login.
        options["PasswordAuthentication"] = "no"
        options["KbdInteractiveAuthentication"] = "no"
    if settings.accept_new:
        options["StrictHostKeyChecking"] = "accept-new"
    argv = [find_ssh()]
    if settings.ssh_config:
        argv += ["-F", settings.ssh_config]
    if settings.ssh_key:
        check_key(settings.ssh_key)
        options["IdentitiesOnly"] = "yes"
        argv += ["-i", settings.ssh_key]
    if settings.username:
        argv += ["-l", settings.username]
    if settings.port:
        argv += ["-p", str(settings.port)]
    ciphers = _resolved(settings).ciphers
    if ciphers:
        argv += ["-c", ciphers]
    for key, value in options.items():
        argv += ["-o", f"{key}={value}"]
    return argv


def check_key(path: str) -> None:
    """Check that there is a key of this name, or the public half of one that an agent holds.

    Without it ssh would go on with other keys, as if none had been named.

    Raises
    ------
    ConfigurationError
    """
    if not (os.path.exists(path) or os.path.exists(f"{path}.pub")):
        raise ConfigurationError(
            f"there is no key {path}; ssh_key (PYREMOTEDATA_SSH_KEY, --ssh-key) names it"
        )


def ssh_environment(settings: ConnectionSettings) -> dict[str, str]:
    """Return the environment of an ssh child: the caller's, with askpass and its answers."""
    environment = plain_environment() | login_environment(settings)
    environment["SSH_ASKPASS"] = askpass_program()
    environment["SSH_ASKPASS_REQUIRE"] = "force"
    environment.setdefault("DISPLAY", ":0")  # OpenSSH before 8.4 asks askpass only with a display
    return environment


def login_environment(settings: ConnectionSettings) -> dict[str, str]:
    """Return what one login needs for `askpass.find_answer`, secrets included."""
    environment = {
        "PYREMOTEDATA_PYTHON": sys.executable or "python3",
        "PYREMOTEDATA_ASKPASS": str(Path(askpass.__file__).absolute()),
        "PYREMOTEDATA_LOGIN": str(_asked_directory() / os.urandom(8).hex()),
    }
    if settings.password:
        environment["PYREMOTEDATA_ANSWER_PASSWORD"] = settings.password.reveal()
    if settings.key_passphrase:
        environment["PYREMOTEDATA_ANSWER_PASSPHRASE"] = settings.key_passphrase.reveal()
    if settings.one_time_code:
        environment["PYREMOTEDATA_ANSWER_CODE"] = settings.one_time_code.reveal()
        environment["PYREMOTEDATA_CODE_TICKET"] = code_ticket(settings.one_time_code.reveal())
    if _asker:
        environment["PYREMOTEDATA_ASKER"] = _asker
    return environment


def use_owner(asker: str, ticket: str, settings: ConnectionSettings) -> None:
    """Take what the process that owns this one's engine has: its asker, the ticket of its code."""
    global _asker
    _asker = asker
    if settings.one_time_code:
        _tickets[settings.one_time_code.reveal()] = ticket


def took_code(login: str) -> bool:
    """Whether a login, by its ``PYREMOTEDATA_LOGIN``, took a one-time code."""
    return os.path.exists(f"{login}.code")


def code_ticket(code: str) -> str:
    """Return a file that is there until the code has been sent, by whichever engine."""
    if code not in _tickets:
        path = _asked_directory() / f"ticket-{os.urandom(8).hex()}"
        path.touch(mode=0o600)
        _tickets[code] = str(path)
    return _tickets[code]


def _asked_directory() -> Path:
    """Return where the answers that were given (not what they were) are noted."""
    from .nodestate import private_directory, state_directory

    directory = private_directory(state_directory() / "asked")
    for path in directory.iterdir():
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > ASKED_S:
                path.unlink()
    return directory


@cache
def askpass_program() -> str:
    """Return the path of an executable askpass program."""
    if os.access(_ASKPASS, os.X_OK):
        return str(_ASKPASS)
    import tempfile

    # Some installers drop the executable bit: keep a private copy of our own.
    from .nodestate import state_directory

    copy = state_directory() / f"askpass-{_ASKPASS.stat().st_mtime_ns:x}.sh"
    if not os.access(copy, os.X_OK):
        fd, name = tempfile.mkstemp(dir=copy.parent)
        with os.fdopen(fd, "wb") as file:
            file.write(_ASKPASS.read_bytes())
        os.chmod(name, stat.S_IRWXU)
        os.replace(name, copy)
    return str(copy)


class _Resolved(NamedTuple):
    """What ssh_config says: ciphers to ask for ("" leaves the choice alone), a ControlPath."""

    ciphers: str
    control_path: str


def _resolved(settings: ConnectionSettings) -> _Resolved:
    options = ["-F", settings.ssh_config] if settings.ssh_config else []
    options += ["-l", settings.username] if settings.username else []  # for a "Match user"
    options += ["-p", str(settings.port)] if settings.port else []
    return _resolve(settings.host or "", *options)


@cache
def _resolve(host: str, *options: str) -> _Resolved:
    # Side by side: the login waits for them.
    asked = [_ask(["-F", os.devnull], "default"), _ask(list(options), host)]
    default, chosen = [_answer(process) for process in asked]
    ciphers = ""
    if _has_aes() and default.get("ciphers", "") == chosen.get("ciphers"):
        # ssh_config did not choose: AES-GCM first is worth 1.3x to 1.7x.
        names = chosen["ciphers"].split(",")
        first = [name for name in FAST_CIPHERS if name in names]
        ciphers = ",".join(first + [name for name in names if name not in first]) if first else ""
    control_path = chosen.get("controlpath", "none")
    return _Resolved(ciphers, "" if control_path == "none" else control_path)


def _ask(options: list[str], host: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [find_ssh(), "-G", *options, "--", host],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=plain_environment(),
        encoding=sys.getfilesystemencoding(),
        errors="surrogateescape",  # paths in whatever encoding
        start_new_session=True,
    )


def _answer(process: subprocess.Popen[str]) -> dict[str, str]:
    try:
        text, _ = process.communicate(timeout=RESOLVE_S)
    except subprocess.TimeoutExpired:  # a Match exec of the user's that hangs
        kill_group(process)
        text, _ = process.communicate()
    pairs = (line.partition(" ") for line in text.splitlines())
    return {key.lower(): value.strip() for key, _, value in pairs}


@cache
def _has_aes() -> bool:
    try:
        with open("/proc/cpuinfo") as file:
            head = file.read(1 << 14)
    except OSError:
        return True  # macOS: every supported processor has them
    return re.search(r"^(flags|Features)\s*:.*\baes\b", head, re.MULTILINE) is not None


class SshChild:
    """An ``ssh -s HOST sftp`` process whose standard input and output are one socket.

    Attributes
    ----------
    socket : socket.socket
        This side of it, non-blocking.
    stderr_fd : int
        Reading end of what it says, non-blocking.

    Parameters
    ----------
    settings : ConnectionSettings
    shared : SshChild, optional
        Use the connection of this child, which saves the login; a login of its own where that
        is not to be had.
    """

    def __init__(self, settings: ConnectionSettings, shared: SshChild | None = None) -> None:
        if not settings.host:
            raise ConfigurationError("no host to connect to")
        self._control: Path | None = None
        control = None
        if shared is not None and shared.can_share:
            control = {"ControlMaster": "no", "ControlPath": str(shared._control)}
        elif shared is None and not _resolved(settings).control_path:
            # A master that lives as long as this child, at a path that only we know.
            self._control = _control_path()
        if self._control is not None:
            control = {
                "ControlMaster": "yes",
                "ControlPath": str(self._control),
                "ControlPersist": "no",
            }
        # Else ssh says the same of a busy server, which ends before it greets, and of one that
        # breaks a login off.
        options = ssh_argv(settings, control, "VERBOSE")
        argv = [*options, "-s", "--", settings.host, "sftp"]
        self.socket, theirs = wide_socketpair()
        try:
            # A session of its own: no terminal to prompt on, no Ctrl-C in mid-transfer, and one
            # process group with the proxy commands that it starts.
            environment = ssh_environment(settings)
            self._login = environment["PYREMOTEDATA_LOGIN"]
            self._ssh_config = settings.ssh_config
            self._process = subprocess.Popen(
                argv,
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=subprocess.PIPE,
                env=environment,
                start_new_session=True,
            )
        except BaseException:
            self.socket.close()
            raise
        finally:
            theirs.close()
        assert self._process.stderr is not None
        self.stderr_fd = self._process.stderr.fileno()
        os.set_blocking(self.stderr_fd, False)
        self.socket.setblocking(False)

    @property
    def can_share(self) -> bool:
        """Whether further children may use this one's connection."""
        return self._control is not None and self._control.exists()

    @property
    def took_code(self) -> bool:
        """Whether its login took a one-time code."""
        return took_code(self._login)

    def explain(self, said: str, url: str, status: int | None = None) -> TransferError:
        """Return why it ended, from what it said on standard error."""
        return from_ssh_stderr(said, url, status, ssh_config=self._ssh_config)

    def kill(self) -> int | None:
        """End the process and its group, close both pipes; return its exit status if it had one."""
        status = self._process.poll()
        kill_group(self._process)
        if self._control is not None:
            self._control.unlink(missing_ok=True)
        self.socket.close()
        assert self._process.stderr is not None
        self._process.stderr.close()
        reap(self._process)
        ended = self._process.returncode
        # It may have been about to end by itself, its pipes closed already.
        return status if ended == -signal.SIGKILL else ended


def _control_path() -> Path | None:
    """Return a new path for the socket of a shared connection, None where it would be too long."""
    from .nodestate import private_directory, state_directory

    directory = private_directory(state_directory() / "mux")
    for path in directory.iterdir():
        # Left by a process that was killed: nobody answers there.
        with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
            if "." in path.name and time.time() - path.stat().st_mtime < BINDING_S:
                continue  # ssh binds it before it listens, and then gives it its name
            probe.settimeout(1.0)
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink(missing_ok=True)
    path = directory / os.urandom(6).hex()
    return path if len(os.fsencode(path)) + 20 < SOCKET_PATH else None
