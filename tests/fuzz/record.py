"""Records dialogues with a real sftp-server, and of lftp with real servers, as scripts."""

from __future__ import annotations

import contextlib
import json
import os
import re
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyremotedata_core.errors import TransferError
from pyremotedata_core.transports import wire
from pyremotedata_core.transports.lftp import LftpSession
from pyremotedata_core.transports.lftp_ftp import FtpSession
from pyremotedata_core.transports.lftp_process import LftpProcess, Reply
from pyremotedata_core.url import RemoteURL
from tests import hostile_server
from tests.ftp import FtpServer
from tests.servers import Sshd, sftp_server

from . import lftp, sftp
from .script import piece

SAYS_LIMITS = 201
READ = 2  # of the operations
SHORT_READS = [
    *(sys.executable, "-IS", hostile_server.__file__, "relay", sftp_server()),
    json.dumps({"read_bytes": 10_000, "extensions": False}),
]
_PROGRAM = re.compile(rb"---- Running connect program .*\n")


def recorded(name: str) -> list[bytes]:
    """Return scripts for a harness."""
    if name == "lftp":
        return list(_lftp_dialogues())
    with tempfile.TemporaryDirectory(prefix="recorded-") as place:
        numbers = range(len(sftp.OPERATIONS))
        dialogues = [_sftp_dialogue(place, number, [sftp_server()]) for number in numbers]
        dialogues.append(_sftp_dialogue(place, READ, SHORT_READS))
    if name == "sftp":
        return [dialogue.script for dialogue in dialogues]
    return [bytes([reader]) + body for dialogue in dialogues for reader, body in dialogue.bodies]


# --- SFTP -----------------------------------------------------------------------------------


class Dialogue(sftp.Theatre):
    """A session that talks to a real server, and a script of what that answers."""

    def __init__(self, root: str, server: list[str]) -> None:
        self.server = subprocess.Popen(server, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.script = b"\xff"
        self.bodies: list[tuple[int, bytes]] = []
        self._rest = b""
        super().__init__(1 << 20, root)

    def ask(self, number: int) -> None:
        self.script += bytes([sftp.ASK, number])
        super().ask(number)
        for _ in range(30):
            self.turn()

    def close(self) -> None:
        self.server.terminate()
        self.server.communicate()
        super().close()

    def _hear(self) -> None:
        """Hand requests to the server, and its answers to the session."""
        try:
            self._rest += self.carrier.server.recv(1 << 22)
        except OSError:
            return
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        while len(self._rest) >= 4:
            (length,) = struct.unpack(">I", self._rest[:4])
            if len(self._rest) < 4 + length:
                return
            self.server.stdin.write(self._rest[: 4 + length])
            self.server.stdin.flush()
            self._rest = self._rest[4 + length :]
            head = self.server.stdout.read(9)
            length, kind, _ = wire.head.unpack(head)
            body = self.server.stdout.read(length - 5)
            self._note(kind, body)
            self.carrier.server.setblocking(True)
            self.carrier.server.sendall(head + body)
            self.carrier.server.setblocking(False)

    def _note(self, kind: int, body: bytes) -> None:
        readers = {wire.NAME: 0, wire.ATTRS: 1, wire.STATUS: 2, wire.VERSION: 3, SAYS_LIMITS: 4}
        if kind in readers:
            self.bodies.append((readers[kind], body))
        if kind == wire.DATA:
            zeros = len(body) // 1024
            step = bytes([sftp.LONG, sftp.TYPES.index(kind), 0]) + piece(body[: -1024 * zeros])
            self.script += step + bytes([zeros])
        else:
            self.script += bytes([sftp.ANSWER, sftp.TYPES.index(kind), 0]) + piece(body)


def _sftp_dialogue(place: str, number: int, server: list[str]) -> Dialogue:
    root = Path(tempfile.mkdtemp(dir=place))
    for name, size in {"a": sftp.SIZE, "b": 5, "c": 5, "d": 5}.items():
        (root / name).write_bytes(bytes(size))
        os.utime(root / name, (sftp.KEPT.mtime, sftp.KEPT.mtime))
    dialogue = Dialogue(str(root), server)
    try:
        dialogue.ask(number)
        dialogue.ask(number)
        dialogue.end()
    finally:
        dialogue.close()
    return dialogue


# --- lftp -----------------------------------------------------------------------------------


class Noted(LftpProcess):
    """An `LftpProcess` of which a script is made."""

    script = b""
    root = b""

    def run(self, command: str, *paths: str, **options: Any) -> Reply:
        reply = super().run(command, *paths, **options)
        raw = reply.log.raw  # type: ignore[attr-defined]
        flags = lftp.OK if reply.ok else 0
        content = b""
        if self.scratch_path in command:
            flags, content = flags | lftp.CONTENT, piece(bytes(lftp.KEPT.size))
        raw = _PROGRAM.sub(b"", raw)  # whose place and name are those of one machine
        said = [piece(text.replace(self.root, b"/d")) for text in (reply.output, raw)]
        self.script += bytes([flags]) + b"".join(said) + content
        return reply


def _noting(log: type) -> type:
    class Noting(log):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.raw = b""

        def feed(self, data: bytes) -> None:
            self.raw += data
            super().feed(data)

    return Noting


def _lftp_dialogues() -> Iterator[bytes]:
    with Sshd() as sshd, FtpServer() as ftp, FtpServer(tls="explicit") as ftps:
        for form, server in enumerate((sshd, ftp, ftps)):
            for number, operation in enumerate(lftp.OPERATIONS):
                for present in (True, False):
                    root = f"{form}-{number}-{present:d}"
                    server.make_directory(root)
                    if present:
                        server.make(f"{root}/a", bytes(lftp.KEPT.size), mtime=lftp.KEPT.mtime)
                        server.make(f"{root}/c/ø", b"content")
                    yield bytes([form, number]) + _lftp_dialogue(server, root, operation)


def _lftp_dialogue(server: Any, root: str, operation: Any) -> bytes:
    url = RemoteURL.parse(server.url(root))
    settings = server.settings().for_url(url)
    session = (LftpSession if url.scheme == "sftp" else FtpSession)(url, settings)
    site = session._site
    site._make_log = _noting(type(site)._make_log)  # type: ignore[assignment]
    process = site._process = Noted(settings, url.server, site._make_log)
    process.root = url.path.encode()
    with contextlib.suppress(TransferError):
        session.connect()
        operation(session, url.path)
    session.kill()
    return process.script
