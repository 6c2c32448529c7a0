"""The sessions over lftp, with a program in lftp's place that says anything.

A script begins with a byte for the protocol (SFTP, FTP, FTPS) and one for the operation; then come
the answers to one command after the other, each a byte of flags and three pieces: what lftp prints,
what it logs, and, flagged ``MORE``, what ssh says or what is read of a file. When the script is
over the program ends.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Callable
from typing import Any

from pyremotedata_core.config import ConnectionSettings
from pyremotedata_core.errors import TransferError
from pyremotedata_core.local import LocalSource, Memory
from pyremotedata_core.model import Entry, Stat
from pyremotedata_core.transports.lftp import LftpSession
from pyremotedata_core.transports.lftp_ftp import FtpSession
from pyremotedata_core.transports.lftp_process import LftpProcess
from pyremotedata_core.url import RemoteURL

from .script import Script

OK, END, SSH, CONTENT = 1, 2, 4, 8
MORE = SSH | CONTENT
SCHEMES = ("sftp", "ftp", "ftps")
MOST_BYTES = 30_000  # of one answer: what a pipe holds
KEPT = Stat("file", 10, 1_600_000_000, 0o644)
# What lftp and servers say that is worth trying, anywhere.
DICTIONARY = (
    "---- status code=4(",
    "---- file info: size=9, date=Fri Foo 99 25:61:61 -2010\n",
    "---- data packet: pos=0, size=5\n",
    "---> sending a packet, length=5, type=6(\n",
    "---- got file handle ab (9)\n",
    "---- file name count=2\n",
    "**** got file type 4\n",
    "---- home set to /home\n",
    "---- path on wire is ",
    "---- Disconnecting\n",
    "---- protocol version set to 3\n",
    "cd: Access failed: No such file\n",
    "get1: Access failed: 550 ",
    "put: Login failed: 530 ",
    "cls: Fatal error: max-retries exceeded (",
    "mv: /d/a: No space left on device\n",
    "-rw-r--r-- 10 @1600000000 a\n",
    "drwxr-xr-x @99999999999999999999 .\n",
    "lrwxrwxrwx ./~\n",
    '<--- 257 "/home""" is\n',
    "<--- 230 ",
    "<--- 550-",
    "---- Closing control socket\n",
    "---> PWD\n",
    "---> RETR ",
    "213 ",
    "250-\n type=file;size=10;modify=20200913122640;unix.mode=0644; a\n250 End\n",
    "211-\n MLST\n MDTM\n211 End\n",
    "99999999999999999999999",
    "\u00b2",
)
_MARK = re.compile(rb"echo ([0-9a-f]{32}-\d+:)")


def run(data: bytes) -> None:
    """Play a script."""
    script = Script(data)
    url = RemoteURL.parse(f"{SCHEMES[script.byte() % len(SCHEMES)]}://host/")
    settings = ConnectionSettings(timeout_s=10.0)
    session = (LftpSession if url.scheme == "sftp" else FtpSession)(url, settings)
    site = session._site
    site._process = Played(script, settings, url.server, site._make_log)
    operation = OPERATIONS[script.byte() % len(OPERATIONS)]
    said = ""
    try:
        session.connect()
        operation(session, "/d")
    except TransferError as error:
        said = str(error)
    finally:
        session.kill()
    assert "\n" not in said, "an error of several lines"


class Played(LftpProcess):
    """An `LftpProcess` whose program is a script."""

    def __init__(self, script: Script, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._script = script

    def _popen(self, program: str, fds: tuple[int, ...]) -> Any:
        scratch = os.dup(fds[2])
        return Program(self._script, os.dup(fds[0]), scratch)


class Program:
    """What stands in the place of a started lftp: the face of `subprocess.Popen` that is used."""

    pid = 2**31 - 1  # none has it

    def __init__(self, script: Script, ssh_fd: int, scratch_fd: int) -> None:
        self._script = script
        out, self._out = os.pipe()
        err, self._err = os.pipe()
        self._ssh, self._scratch = ssh_fd, scratch_fd
        self.stdout, self.stderr = os.fdopen(out, "rb", 0), os.fdopen(err, "rb", 0)
        self.stdin = self
        self.closed = False

    def write(self, text: bytes) -> None:
        """Take commands; answer those that end in a mark."""
        for mark in _MARK.findall(text)[:1]:
            if not self._ended:
                self._answer(mark)

    def poll(self) -> int | None:
        return 0 if self._ended else None

    def wait(self, _timeout_s: float) -> int:
        return 0

    def close(self) -> None:
        self._end()

    @property
    def _ended(self) -> bool:
        return self._out < 0

    def _answer(self, mark: bytes) -> None:
        script = self._script
        flags = script.byte() if script else END
        printed, logged = script.piece(), script.piece()
        more = script.piece() if flags & MORE else b""
        if flags & CONTENT:
            os.pwrite(self._scratch, more, 0)
        elif more:
            os.write(self._ssh, more[:MOST_BYTES])
        os.write(self._err, logged[:MOST_BYTES])
        os.write(self._out, printed[:MOST_BYTES])
        if flags & END:
            self._end()
        else:
            os.write(self._out, mark + (b" ok\n" if flags & OK else b" bad\n"))

    def _end(self) -> None:
        if not self._ended:
            for fd in (self._out, self._err, self._ssh, self._scratch):
                os.close(fd)
            self._out = -1


class _File:
    """A local file of the right size, as lftp would leave it; a `Sink`."""

    is_file = True

    def __init__(self, path: str) -> None:
        self.path = self.final = path
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT)
        os.truncate(self.fd, KEPT.size)

    def write(self, data: memoryview, offset: int) -> None:
        raise AssertionError("lftp writes files itself")


def _stat(session: LftpSession, root: str) -> None:
    _check(session.stat(f"{root}/a"))


def _lstat(session: LftpSession, root: str) -> None:
    _check(session.stat(f"{root}/a", follow=False))


def _scandir(session: LftpSession, root: str) -> None:
    for batch in session.scandir(root):
        for entry in batch:
            _check_entry(entry)


def _read(session: LftpSession, root: str) -> None:
    memory = Memory(0, KEPT.size)
    session.read(f"{root}/a", memory, 0, KEPT.size, KEPT)
    assert len(memory.data) == KEPT.size


def _read_whole(session: LftpSession, root: str) -> None:
    with tempfile.TemporaryDirectory() as place:
        sink = _File(f"{place}/a")
        with contextlib.closing(os.fdopen(sink.fd, "rb")):
            session.read(f"{root}/a", sink, 0, KEPT.size, KEPT)


def _write(session: LftpSession, root: str) -> None:
    source = LocalSource(__file__)
    try:
        stat = session.write(f"{root}/a", source, True, f"{root}/.part")  # type: ignore[arg-type]
        assert stat.size == source.size, "an upload of another size ends well"
    finally:
        source.close()


def _check(stat: Stat) -> None:
    assert 0 <= stat.size < 2**64, "an impossible size"
    assert isinstance(stat.mtime, int)
    assert stat.mode is None or 0 <= stat.mode <= 0o7777, "an impossible mode"


def _check_entry(entry: Entry) -> None:
    _check(entry.stat)
    assert entry.name not in ("", ".", ".."), "a name that leaves its directory"
    assert not {"/", "\0"} & set(entry.name), "a name that leaves its directory"


OPERATIONS: list[Callable[[LftpSession, str], None]] = [
    _stat,
    _lstat,
    _scandir,
    _read,
    _read_whole,
    _write,
    lambda session, root: session.mkdir(f"{root}/new"),
    lambda session, root: session.remove(f"{root}/a"),
    lambda session, root: session.rmdir(root),
    lambda session, root: session.rename(f"{root}/a", f"{root}/b"),
    lambda session, root: session.touch(f"{root}/a", KEPT.mtime),
    lambda session, root: session.clear_orphan(f"{root}/.part", f"{root}/a"),
    lambda session, _: _check(session.stat(session.realpath("/~/x"))),
]
