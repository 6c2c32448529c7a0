"""Doctor: what stands between this machine and a server, and what to do about it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from typing import NamedTuple

from .carriers import takes_paramiko
from .config import config_path
from .engine import TransferEngine
from .errors import RemoteFileNotFound, RemotePermissionDenied, TransferError
from .model import Stat
from .ssh import find_ssh, ssh_version
from .url import RemoteURL

MEASURED_BYTES = 64 << 20
OLDEST_SSH = (8, 0)
_WHO_IT_IS = {
    "sftp": "host key known",
    "ftps": "certificate trusted",
    "ftp": "reached",
}


class Finding(NamedTuple):
    """One checked thing: its name, whether it is well (None: not needed), and a sentence."""

    what: str
    well: bool | None
    said: str


def examine(engine: TransferEngine, url: RemoteURL) -> Iterator[Finding]:
    """Check one thing after the other; stop at the first that makes the next ones pointless.

    Parameters
    ----------
    engine : TransferEngine
    url : RemoteURL
        A directory or file of the server. A file is read, up to 64 MiB, to measure the rate.
    """
    yield from _programs(engine, url)
    path = config_path()
    there = path.exists()
    yield Finding("config file", there or None, f"{path}{'' if there else ' (not there)'}")
    started = time.monotonic()
    stat: Stat | TransferError
    try:
        stat = engine.stat(url).result()
    except (RemoteFileNotFound, RemotePermissionDenied) as error:
        stat = error  # the login went well
    except TransferError as error:
        yield Finding("connection", False, str(error))
        return
    said = _WHO_IT_IS[url.scheme]
    within = f"logged in within {time.monotonic() - started:.2f} s"
    yield Finding("connection", True, f"{said}, {within}")
    if isinstance(stat, TransferError):
        yield Finding("path", False, str(stat))
        return
    if url.scheme == "ftp":
        unsafe = (
            "not encrypted, the password neither; use ftps:// or sftp:// where they are offered"
        )
        yield Finding("encryption", None, unsafe)
    yield Finding("path", True, f"{url} is a {stat.kind}")
    if url.scheme == "sftp" and engine.settings.transport != "lftp":
        try:
            yield from _server(engine, url)
        except TransferError as error:
            yield Finding("server", False, str(error))
            return
    yield from _throughput(engine, url, stat)


def _programs(engine: TransferEngine, url: RemoteURL) -> Iterator[Finding]:
    through_lftp = engine.settings.transport_for(url) == "lftp"
    if url.scheme == "sftp":
        with_paramiko = takes_paramiko(engine.settings) and not through_lftp
        yield _paramiko() if with_paramiko else _ssh()
    yield _lftp(needed=through_lftp)


def _ssh() -> Finding:
    try:
        path = find_ssh()
    except TransferError as error:
        return Finding("ssh", False, str(error))
    found = ssh_version()
    if found == (0, 0):
        return Finding("ssh", False, f"{path} does not run; see what ssh -V says")
    said = f"{path}, OpenSSH {found[0]}.{found[1]}"
    if found < OLDEST_SSH:
        return Finding("ssh", False, f"{said}; install OpenSSH 8.0 or newer")
    return Finding("ssh", True, said)


def _paramiko() -> Finding:
    why = "as the settings want" if shutil.which("ssh") else "as there is no program ssh"
    return Finding("paramiko", True, f"{version('paramiko')}, {why}")


def _lftp(*, needed: bool) -> Finding:
    lftp = shutil.which("lftp")
    if lftp is None:
        return Finding(
            "lftp",
            False if needed else None,
            f"not installed{'' if needed else '; needed for ftp:// and ftps:// only'}"
            " (Debian, Ubuntu: apt install lftp)",
        )
    try:
        done = subprocess.run([lftp, "--version"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("lftp", False, f"{lftp} does not answer: {error}")
    words = done.stdout.split()
    found = words[words.index("Version") + 1] if "Version" in words else "?"
    return Finding("lftp", True, f"{lftp}, {found}")


def _server(engine: TransferEngine, url: RemoteURL) -> Iterator[Finding]:
    info = engine.info(url).result()
    trips = []
    for _ in range(5):
        started = time.monotonic()
        engine.realpath(url).result()
        trips.append(time.monotonic() - started)
    yield Finding("round trip", True, f"{min(trips) * 1000:.1f} ms")
    extensions = info["extensions"]
    yield Finding("extensions", True, ", ".join(extensions) if extensions else "none")
    how = "by the server's plain rename; where it refuses, the old file is renamed aside first"
    if "posix-rename@openssh.com" in extensions:
        how = "in one atomic step"
    yield Finding("replacing a file", True, how)
    if info["free_bytes"] is not None:
        yield Finding("free space", True, f"{info['free_bytes'] / 2**30:.1f} GiB")
    yield Finding(
        "limits",
        True,
        f"reads of {info['read_bytes']} bytes, writes of {info['write_bytes']},"
        f" {info['operations']} files at once",
    )


def _throughput(engine: TransferEngine, url: RemoteURL, stat: Stat) -> Iterator[Finding]:
    if stat.kind != "file":
        yield Finding("throughput", None, "give the URL of a file to measure it")
        return
    if stat.size > MEASURED_BYTES:
        yield Finding("throughput", None, "give the URL of a file of at most 64 MiB to measure it")
        return
    with tempfile.TemporaryDirectory(prefix="pyremotedata-doctor-") as folder:
        started = time.monotonic()
        try:
            engine.fetch(url, os.path.join(folder, "probe"), expect=stat).result()
        except TransferError as error:
            yield Finding("throughput", False, str(error))
            return
        seconds = time.monotonic() - started
    rate = stat.size / seconds / 2**20
    yield Finding("throughput", True, f"{rate:.1f} MiB/s ({stat.size} bytes in {seconds:.2f} s)")
