"""What the contract suite runs on: a transport, a server, and an engine that connects both."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pyremotedata_core import RemoteURL, Stat, TransferEngine
from pyremotedata_core.names import is_temporary

WAIT_S = 60.0

TRANSPORTS = ["sftp"]
if shutil.which("lftp"):
    TRANSPORTS.append("lftp")
SERVERS = ["openssh", "plain", *(["chrooted"] if os.getuid() == 0 else []), "miglike"]
# Where lftp differs little: the rest runs with --full only.
SFTP_MOSTLY = [t if t == "sftp" else pytest.param(t, marks=pytest.mark.full) for t in TRANSPORTS]
needs_lftp = pytest.mark.skipif("lftp" not in TRANSPORTS, reason="lftp is not installed")
_RARELY = {("lftp", "plain"), ("lftp", "chrooted")}  # to lftp they are as any other
_FTP = ["ftp", "ftps", "ftplist"] if "lftp" in TRANSPORTS else []
SITES = [
    pytest.param(
        f"{transport}-{server}",
        marks=[pytest.mark.full] if (transport, server) in _RARELY else [],
    )
    for transport in TRANSPORTS
    for server in SERVERS
]
# Of the SFTP session carried by paramiko, and of FTP, only what differs most runs every time; lftp
# at a MiG-like server with --full only.
SITES += [pytest.param(f"paramiko-{server}") for server in SERVERS]
SITES += [pytest.param(f"lftp-{kind}") for kind in _FTP]
SOMETIMES = re.compile(r"\[(paramiko|lftp-ftp|lftp-miglike)")
SOMETIMES_ALWAYS = re.compile(
    r"(fetched_file_has|stored_file_has|listed_with|many_files|a_rename_replaces|any_name_go"
    r"|tree_is_fetched|tree_is_stored|is_told_from).*\[(paramiko-openssh|lftp-ftp\b)"
)

_MIG_REFUSES = set('"\\*?#[]{}|<>^`')


@dataclass
class Site:
    """One of the combinations. Every test works in ``place``, a new directory of the server."""

    transport: str
    kind: str
    server: Any
    engine: TransferEngine
    place: str = ""

    @property
    def miglike(self) -> bool:
        return self.kind == "miglike"

    @property
    def ftp(self) -> bool:
        return self.kind.startswith("ftp")

    @property
    def lftp(self) -> bool:
        return self.transport == "lftp"

    def url(self, relative: str = "") -> str:
        """Return the URL of a file in the test's place."""
        url = self.server.url(f"{self.place}/{relative}" if relative else self.place)
        return str(RemoteURL.parse(url))

    def path(self, relative: str = "") -> Path:
        """Return where that file really is."""
        return self.server.root / self.place / relative

    def make(self, relative: str, data: bytes = b"", **options: Any) -> Path:
        """Write a file on the server."""
        return self.server.make(f"{self.place}/{relative}", data, **options)

    def make_directory(self, relative: str) -> Path:
        """Make a directory on the server."""
        return self.server.make_directory(f"{self.place}/{relative}")

    def stat(self, relative: str = "", **options: Any) -> Stat:
        return self.engine.stat(self.url(relative), **options).result(WAIT_S)

    def fetch(self, relative: str, path: Path, **options: Any) -> Stat:
        return self.engine.fetch(self.url(relative), path, **options).result(WAIT_S)

    def store(self, path: Path, relative: str, **options: Any) -> Stat:
        return self.engine.store(path, self.url(relative), **options).result(WAIT_S)

    def names(self, relative: str = "") -> list[str]:
        """Return what the engine lists, sorted."""
        entries = self.engine.scandir(self.url(relative)).result(WAIT_S)
        return sorted(entry.name for entry in entries)

    def takes(self, name: str) -> bool:
        """Whether server and transport can carry a file of that name."""
        if (self.lftp and "\n" in name) or (self.ftp and set("\r\udcff") & set(name)):
            return False
        return not self.miglike or all(map(_mig_takes, unicodedata.normalize("NFC", name)))


def tree(root: Path) -> dict[str, bytes | None]:
    """Return all below a directory: content by relative path, None for a directory."""
    found: dict[str, bytes | None] = {}
    for folder, directories, files in os.walk(root):
        for name in directories:
            found[os.path.relpath(os.path.join(folder, name), root)] = None
        for name in files:
            path = os.path.join(folder, name)
            # A temporary file may go at any time.
            with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
                found[os.path.relpath(path, root)] = file.read()
    return found


def temporaries(root: Path) -> list[str]:
    """Return our own temporary files below a directory."""
    return [
        os.path.join(folder, name)
        for folder, _, files in os.walk(root)
        for name in files
        if is_temporary(name)
    ]


def _mig_takes(character: str) -> bool:
    if ord(character) < 32 or "\udc80" <= character <= "\udcff" or character in _MIG_REFUSES:
        return False
    return character.isascii() or unicodedata.category(character) in ("Lu", "Ll", "Lt")
