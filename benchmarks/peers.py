"""The tools that the transfer benchmark sets side by side, each at the best of its settings found.

A command is made from a place, a name below the server's root, and a directory that receives it.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

GCM = "aes128-gcm@openssh.com"
PEER_PACKAGES = ("pyremotedata==0.1.13", "asyncssh>=2.14", "paramiko>=3")
_PYTHON_PEERS = Path(__file__).with_name("python_peers.py")


@dataclass(frozen=True)
class Place:
    """The server as a tool sees it: an ssh_config, a host in it, and a directory."""

    config: Path
    host: str
    root: Path

    @property
    def ssh(self) -> str:
        """The ssh command of tools that drive ssh."""
        return f"ssh -F {shlex.quote(str(self.config))}"

    def option(self, name: str) -> str:
        """Return what the ssh_config says of an option."""
        lines = self.config.read_text().splitlines()
        said = (line.split(None, 1)[1] for line in lines if line.strip().startswith(name + " "))
        return next(said).strip('"')


Command = Callable[[Place, str, Path], list[str]]


def ours_get(place: Place, name: str, into: Path) -> list[str]:
    """Download with this project's command."""
    return [_script(), "get", _url(place, name), f"{into}/"]


def ours_put(place: Place, name: str, into: Path) -> list[str]:
    """Upload with this project's command."""
    return [_script(), "put", str(place.root / name), f"sftp://{place.host}{into}/"]


def busy_get(threads: int) -> Command:
    """Download through `Remote`, beside threads that compute in pure Python."""

    def command(place: Place, name: str, into: Path) -> list[str]:
        program = Path(__file__).with_name("busy_get.py")
        return [sys.executable, str(program), str(threads), _url(place, name), f"{into}/"]

    return command


def sftp_get(place: Place, name: str, into: Path) -> list[str]:
    """OpenSSH's sftp with its largest requests, 64 of them, and AES-GCM."""
    options = ["-q", "-r", "-F", str(place.config), "-c", GCM, "-B", "261120", "-R", "64"]
    return ["sftp", *options, f"{place.host}:{place.root / name}", str(into)]


def sftp_put(place: Place, name: str, into: Path) -> list[str]:
    """The same, uploading."""
    options = f"-q -b - -F {place.config} -c {GCM} -B 261120 -R 64"
    script = f"echo 'put -r {place.root / name} {into}/' | sftp {options} {place.host}"
    return ["sh", "-c", script]


def rsync_get(place: Place, name: str, into: Path) -> list[str]:
    """rsync, which needs rsync on the server."""
    return [*_rsync(place), f"{place.host}:{place.root / name}", str(into)]


def rsync_put(place: Place, name: str, into: Path) -> list[str]:
    """The same, uploading."""
    return [*_rsync(place), str(place.root / name), f"{place.host}:{into}"]


def lftp_get(parallel: int) -> Command:
    """lftp: so many files of a tree at once, or four parts of a file."""

    def command(place: Place, name: str, into: Path) -> list[str]:
        source = place.root / name
        if source.is_dir():
            return _lftp(place, f"mirror -P {parallel} {source} {into / name}")
        fast = "set sftp:size-read 131072; set sftp:max-packets-in-flight 64"
        return _lftp(place, f"{fast}; pget -n 4 -O {into} {source}")

    return command


def lftp_put(parallel: int) -> Command:
    """The same, uploading; a single file goes over one connection."""

    def command(place: Place, name: str, into: Path) -> list[str]:
        source = place.root / name
        if source.is_dir():
            return _lftp(place, f"mirror -R -P {parallel} {source} {into / name}")
        return _lftp(place, f"put -O {into} {source}")

    return command


def rclone_get(place: Place, name: str, into: Path) -> list[str]:
    """rclone, 16 files at once, without the checksums that it would run commands for."""
    return _rclone(place, f":sftp:{place.root / name}", _below(place, name, into))


def rclone_put(place: Place, name: str, into: Path) -> list[str]:
    """The same, uploading."""
    return _rclone(place, str(place.root / name), f":sftp:{_below(place, name, into)}")


def python_peer(library: str, verb: str) -> Command:
    """A library of Python, driven as its documentation has it; see ``python_peers.py``."""

    def command(place: Place, name: str, into: Path) -> list[str]:
        python = peer_python("transfer", *PEER_PACKAGES)
        arguments = [library, verb, str(place.config), place.host, str(place.root / name)]
        return [str(python), str(_PYTHON_PEERS), *arguments, str(into)]

    return command


def peer_python(name: str, *packages: str) -> Path:
    """Return the interpreter of a venv that has some packages, made below the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    home = cache / "pyremotedata-benchmarks" / name
    python, installed = home / "bin" / "python", home / "installed"
    if not installed.exists() or installed.read_text() != str(packages):
        print(f"installing {' '.join(packages)} in {home}", file=sys.stderr)
        venv.create(home, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
        installed.write_text(str(packages))
    return python


def is_there(command: Sequence[str]) -> bool:
    """Whether the program of a command is installed."""
    return shutil.which(command[0]) is not None


def _rsync(place: Place) -> list[str]:
    return ["rsync", "-rt", "-e", f"{place.ssh} -c {GCM}"]


def _lftp(place: Place, command: str) -> list[str]:
    connect = f"set sftp:connect-program '{place.ssh} -a -x -c {GCM}'"
    login = f"open -u {place.option('User')}, sftp://{place.host}"
    return ["lftp", "--norc", "-c", f"set cmd:fail-exit yes; {connect}; {login}; {command}; quit"]


def _rclone(place: Place, source: str, target: str) -> list[str]:
    return [
        *("rclone", "copy", "--config", "/dev/null", "--transfers", "16", "--checkers", "16"),
        *("--sftp-disable-hashcheck", "--sftp-concurrency", "64", "--sftp-chunk-size", "255k"),
        *("--sftp-host", place.option("HostName"), "--sftp-port", place.option("Port")),
        *("--sftp-user", place.option("User"), "--sftp-key-file", place.option("IdentityFile")),
        *("--sftp-known-hosts-file", place.option("UserKnownHostsFile"), source, target),
    ]


def _below(place: Place, name: str, into: Path) -> str:
    return str(into / name) if (place.root / name).is_dir() else str(into)


def _script() -> str:
    return str(Path(sys.executable).with_name("pyremotedata"))


def _url(place: Place, name: str) -> str:
    return f"sftp://{place.host}{place.root / name}"
