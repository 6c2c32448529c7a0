"""What one login at an FTP server can be asked through lftp, and the small changes it can make.

MLST answers a question about one path, where the server offers it. Where it does not (vsftpd),
SIZE and MDTM know regular files, changing into it knows a directory, and the listing of the
directory that holds it knows the rest. The time of a file is one of those that have seconds: MLST,
MLSD or MDTM. Only where the server has none of them it is what LIST says, which is the minute, or
the day for files older than half a year.
"""

from __future__ import annotations

import contextlib
import posixpath
import time
from collections.abc import Iterator
from typing import ClassVar

from ..config import ConnectionSettings
from ..errors import (
    AuthenticationFailed,
    ConnectionLost,
    HostKeyRejected,
    RemoteFileNotFound,
    RemotePermissionDenied,
    ServerRefused,
    TransferError,
    TransferTimeout,
    UnsafeName,
)
from ..model import Entry, Stat
from .base import check_listing
from .lftp_ftp_text import (
    Answer,
    FtpLog,
    from_answer,
    from_failure,
    parse_answers,
    parse_facts,
    parse_size,
    parse_time,
    show_time,
)
from .lftp_login import is_implicit
from .lftp_process import Reply
from .lftp_site import LftpSite
from .lftp_text import LIST, Log, parse_listing

LISTING_BYTES = 128 << 20  # of one directory, over a million entries: lftp holds them in memory
SETTLE_S = 3.0  # a server that takes longer to answer is logged into anew
_NOT_OFFERED = (500, 501, 502, 504)
_MANY = 1 << 30
_BY_MLSD = "set ftp:use-mlsd yes && set cmd:cls-exact-time no"
_BY_LIST = "set ftp:use-mlsd no && set cmd:cls-exact-time no"
_BY_LIST_AND_MDTM = "set ftp:use-mlsd no && set cmd:cls-exact-time yes"
_AT_ONCE = "set ftp:sync-mode no"  # without waiting for each answer
_ONE_BY_ONE = "set ftp:sync-mode yes"


class _LateError(Exception):
    """An answer takes too long to wait for."""


class FtpSite(LftpSite):
    """A login at an FTP server; the same face as `LftpSite`.

    Attributes
    ----------
    has_rest : bool
        Whether it sends a file from any place on. From one that does not, lftp waits for ever.
    """

    _make_log = FtpLog
    _slow: ClassVar[set[str]] = set()  # servers that take one question at a time, most likely
    _list_itself = f"{_BY_LIST} && {LftpSite._list_itself}"

    def __init__(self, server: str, settings: ConnectionSettings) -> None:
        super().__init__(server, settings)
        self._has_mlst = False
        self._has_mdtm = False
        self.has_rest = True
        self._settles: bool | None = None  # None until it is known

    def path(self, path: str) -> str:
        """Return a path as the server knows it, the login directory resolved."""
        if "\r" in path or "\udcff" in path:  # the byte 255 begins a command of Telnet
            raise UnsafeName(
                "FTP cannot carry a name with a line break or byte 255", self.url(path)
            )
        return super().path(path)

    def ask(self, command: str) -> Answer:
        """Send one FTP command and return the server's answer."""
        reply = self.run("quote {}", command)
        answers = parse_answers(reply.output)
        if not answers:
            raise ConnectionLost("the server's answer cannot be read", self._server)
        return answers[-1]

    def settle(self) -> None:
        """Make sure of the login after a part of a file was read, before the next command.

        To read a part is to close the data connection early. A server that has no answer to that
        (Pure-FTPd) leaves lftp waiting for one, and is logged into anew each time.
        """
        if self._settles is None:
            began = time.monotonic()

            def hurry(_: Log) -> None:
                if time.monotonic() - began > SETTLE_S:
                    raise _LateError

            try:
                self.run("quote NOOP", watch=hurry)
                self._settles = True
            except _LateError:
                self._settles = False
        if not self._settles:
            self.tidy("close")

    def error(self, reply: Reply, path: str) -> TransferError:
        """Return the error of a failed command, about that path."""
        return from_failure(reply.log.failure, reply.paths, self.url(path))

    # --- questions ---------------------------------------------------------------------------

    def stat(self, path: str) -> Stat:
        """Return what stands at the end of all links."""
        stat = self._by_mlst(path)
        return stat if stat is not None and stat.kind != "link" else self._by_looking(path)

    def lstat(self, path: str) -> Stat:
        """Return what stands there; a link only where LIST tells of it."""
        try:
            stat = self._by_mlst(path) or self._by_looking(path)
        except RemoteFileNotFound:  # or a link that leads nowhere
            if (link := self._link(path)) is None:
                raise
            return link
        return stat if stat.kind == "link" else self._link(path) or stat

    def kind(self, path: str) -> str | None:
        """Return what stands at the end of all links: "directory", "file" for all else, None."""
        try:
            return "directory" if self.stat(path).kind == "directory" else "file"
        except RemoteFileNotFound:
            return None

    def scandir(self, path: str) -> list[Entry]:
        """List a directory."""
        if not self._has_mlst:
            return self._by_list(path)
        try:
            entries = self._entries(_BY_MLSD, path)
        except UnsafeName:  # or MLSD tells no time of an entry, which leaves the field blank
            return self._by_list(path)
        listed = self._also_listed(path)
        links = {entry.name: entry for entry in listed if entry.stat.kind == "link"}
        others = [_without_empty_mode(entry) for entry in entries if entry.name not in links]
        known = links.keys() | {entry.name for entry in others}
        left_out = [entry.name for entry in listed if entry.name not in known]
        return [*others, *links.values(), *self._ask_about(path, left_out)]

    # --- changes -----------------------------------------------------------------------------

    def mkdir(self, path: str) -> None:
        """Make a directory; an existing one is no error."""
        try:
            super().mkdir(path)
        except TransferError as error:
            raise self.without_parent(path, error) from None

    def check_target(self, path: str, overwrite: bool) -> None:
        """Raise `ServerRefused` if no file may be put there; see `LftpSite.check_target`."""
        if overwrite and not self._has_mlst and not self.run("cd {}", path).ok:
            return  # to know that nothing is there takes a listing
        super().check_target(path, overwrite)

    def publish(self, temporary: str, path: str, overwrite: bool) -> None:
        """Rename to the final name; see `LftpSite.publish`."""
        reply = self._move(temporary, path)
        if reply.ok:
            if self.kind(path) is None:
                raise ServerRefused(
                    "the server has given the file another name, as it does not take this one;"
                    " choose one without spaces at its ends and control characters",
                    self.url(path),
                )
            return
        # Before anything steps aside: is the reason that something is missing?
        error = self.without_parent(path, self.error(reply, path))
        if type(error) is TransferError and self.kind(temporary) is None:
            error = RemoteFileNotFound("no such file or directory", self.url(temporary))
        if type(error) is not TransferError:
            raise error
        super().publish(temporary, path, overwrite)

    def set_time(self, path: str, mtime: int) -> None:
        """Set the mtime of a file.

        Raises
        ------
        ServerRefused
            If the server offers no way.
        """
        stamp = show_time(mtime)
        answer = self.ask(f"MFMT {stamp} {path}")
        if answer.code in _NOT_OFFERED:
            answer = self.ask(f"SITE UTIME {stamp} {path}")
        if answer.code in _NOT_OFFERED:
            # vsftpd sets it; to others the stamp is a part of the name that they are asked about.
            if self.ask(f"MDTM {stamp} {path}").ok:
                return
            raise ServerRefused("the server offers no way to set a time", self.url(path))
        if not answer.ok:
            raise from_answer(answer.code, answer.text, self.url(path))

    def without_parent(self, path: str, error: TransferError) -> TransferError:
        """Return what a failure means: many servers do not say that the directory is missing."""
        if type(error) is not TransferError:
            return error
        with contextlib.suppress(TransferError):
            if self.kind(posixpath.dirname(path)) is None:
                return RemoteFileNotFound("the directory does not exist", error.url)
        return error

    # --- inside ------------------------------------------------------------------------------

    def _log_in(self) -> None:
        self._home = self.run("cd .").log.home
        offered = {line.split()[0].upper() for line in self.ask("FEAT").lines if line.strip()}
        self._has_mlst = "MLST" in offered
        self._has_mdtm = "MDTM" in offered
        self.has_rest = "REST" in offered or self.ask("REST 0").code == 350
        started = time.monotonic()
        self.ask("NOOP")
        self.rtt_s = time.monotonic() - started

    def _of_silence(self, error: TransferTimeout) -> str:
        if is_implicit(self._settings):
            return error.message
        return (
            f"{error.message}, and whether the server begins with TLS: ftps:// with"
            " PYREMOTEDATA_FTPS_MODE=implicit"
        )

    def _lost(self, reply: Reply) -> TransferError | None:
        failure = reply.log.failure
        if failure is None or "Access failed: " in failure.text:
            return None
        error = from_failure(failure, reply.paths, self._server)
        gone = (
            ConnectionLost
            | TransferTimeout
            | AuthenticationFailed
            | HostKeyRejected
            | ServerRefused
        )
        return error if isinstance(error, gone) else None

    def _why_no_list(self, path: str, error: TransferError) -> TransferError:
        kind = self.kind(path)
        if kind is None:
            return RemoteFileNotFound("no such file or directory", error.url)
        if kind == "file":
            return ServerRefused("is a file; a directory was meant", error.url)
        if type(error) is TransferError:
            return RemotePermissionDenied(f"cannot be listed: {error.message}", error.url)
        return error

    def _by_mlst(self, path: str) -> Stat | None:
        """Ask the server; None where it cannot be asked, or does not tell enough."""
        if not self._has_mlst:
            return None
        answer = self.ask(f"MLST {path}")
        if answer.code in _NOT_OFFERED:
            return None
        if answer.ok:
            return parse_facts(answer)
        error = from_answer(answer.code, answer.text, self.url(path))
        if type(error) is TransferError:
            return None
        raise error

    def _by_trying(self, path: str) -> Stat | None:
        """Return what a regular file or a directory is; None for all else."""
        answer = self.ask(f"SIZE {path}")
        size = parse_size(answer.text.strip()) if answer.code == 213 else None
        if size is not None:
            mtime = self._time(path)
            if mtime is None:
                return self._listed(path) or Stat("file", size, 0)
            return Stat("file", size, mtime)
        return Stat("directory", 0, 0) if self.run("cd {}", path).ok else None

    def _by_looking(self, path: str) -> Stat:
        stat = self._by_trying(path)
        if stat is not None:
            return stat
        parent, name = posixpath.split(path)
        found: dict[str, Stat] = {}
        if name:
            with contextlib.suppress(RemoteFileNotFound, ServerRefused):
                found = {entry.name: entry.stat for entry in self._entries(_BY_LIST, parent)}
        if name not in found or found[name].kind == "link":
            raise RemoteFileNotFound("no such file or directory", self.url(path))
        return found[name]

    def _link(self, path: str) -> Stat | None:
        with contextlib.suppress(UnsafeName):
            listed = self._listed(path)
            return listed if listed is not None and listed.kind == "link" else None
        return None

    def _by_list(self, path: str) -> list[Entry]:
        """Return what LIST tells of a directory, with the times of files to the second."""
        if not self._has_mdtm:
            return self._entries(_BY_LIST, path)
        if self._server in self._slow:
            return self._entries(_BY_LIST_AND_MDTM, path)
        try:
            return self._entries(f"{_AT_ONCE} && {_BY_LIST_AND_MDTM}", path)
        except (ConnectionLost, TransferTimeout):  # some firewalls end such connections
            self._slow.add(self._server)
            raise
        finally:
            self.tidy(_ONE_BY_ONE)

    def _also_listed(self, path: str) -> list[Entry]:
        """Return what LIST tells of a directory that MLSD has listed.

        Links: many a MLSD shows what they lead to, or nothing, and who removes a tree must not go
        through them. And all entries if MLSD tells no time of any: lftp leaves them out.
        """
        try:
            return self._entries(_BY_LIST, path)
        except (UnsafeName, RemotePermissionDenied, ServerRefused) as error:
            if error.retryable:
                raise
            return []

    def _ask_about(self, directory: str, names: list[str]) -> Iterator[Entry]:
        for name in names:
            path = posixpath.join(directory, name)
            stat = None
            # Servers deny, too, what is not there, as where LIST writes a name in another way.
            with contextlib.suppress(RemoteFileNotFound, RemotePermissionDenied):
                stat = self._by_mlst(path) or self._by_trying(path)
            if stat is not None:
                yield Entry(name, stat)

    def _list_by(self, way: str, path: str) -> Reply:
        began, timeout_s = time.monotonic(), self._settings.timeout_s

        def watch(log: Log) -> None:
            check_listing(0, time.monotonic() - began, timeout_s, self.url(path))
            if log.received > LISTING_BYTES:
                raise ServerRefused(
                    f"the listing has no end: more than {LISTING_BYTES} bytes", self.url(path)
                )

        command = f"{way} && cd {{}} && {LIST}"
        reply = self.run(command, path, watch=watch, asking=True)
        if reply.log.by_name and reply.output:  # no longer empty: another has begun to fill it
            reply = self.run(command, path, watch=watch, asking=True)
        return reply

    def _entries(self, way: str, path: str) -> list[Entry]:
        reply = self._list_by(way, path)
        if not reply.ok:
            raise self._why_no_list(path, self.error(reply, path))
        found = parse_listing(reply.output, _MANY, self.url(path), bare=True)
        return [entry for entry in found if entry.name != "."]

    def _time(self, path: str) -> int | None:
        if not self._has_mdtm:
            return None
        answer = self.ask(f"MDTM {path}")
        return parse_time(answer.text.strip()) if answer.code == 213 else None

    def _really(self, path: str, error: TransferError) -> TransferError:
        if not isinstance(error, RemoteFileNotFound):
            with contextlib.suppress(TransferError):
                if self.kind(path) is None:
                    return RemoteFileNotFound("no such file or directory", error.url)
        return error


def _without_empty_mode(entry: Entry) -> Entry:
    """lftp shows no permissions where the server tells none."""
    return entry if entry.stat.mode else Entry(entry.name, entry.stat._replace(mode=None))
