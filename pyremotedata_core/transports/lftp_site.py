"""What one login through lftp can be asked, and the small changes it can make.

lftp has no command that asks about one path. A regular file is opened as if to be read, and the
log says its size and mtime; a directory is listed for its own entry; what cannot be read is looked
up in the listing of the directory that holds it.
"""

from __future__ import annotations

import contextlib
import posixpath
import time
from collections.abc import Callable, Iterable

from ..config import ConnectionSettings
from ..errors import (
    ConnectionLost,
    RemoteFileNotFound,
    RemotePermissionDenied,
    ServerRefused,
    TransferError,
    TransferTimeout,
    cancelled,
    ended_at_once,
)
from ..model import Entry, Stat
from ..names import aside_name, is_temporary, temporary_name
from ..url import encode_path
from .base import check_listing
from .lftp_process import LftpProcess, Reply
from .lftp_text import LIST, Log, escape_glob, from_failure, from_lost, parse_listing, parse_one

_FAR = 1 << 43  # an offset that few files reach and every file system can seek to
LFTP_ENTRIES = 1_000_000  # of one directory: lftp holds them all in its memory
_SPECIAL = 4  # a file type of SFTP: neither file nor directory nor link


class LftpSite:
    """A login. Paths are absolute as the server knows them: see `path`.

    One thread calls its methods, except `kill` and `alive`.

    Parameters
    ----------
    server : str
        Its URL, for messages.
    settings : ConnectionSettings
        Already those of the server.

    Attributes
    ----------
    cancelled : callable
        Asked several times a second while a command runs; when it says True the command ends
        with `ConnectionLost`, and the login remains.
    rtt_s : float
        Round trip of a question, measured at login.
    """

    _make_log = Log
    _list_itself = f"{LIST} -d {{}}"  # a directory, too, rather than what is in it

    def __init__(self, server: str, settings: ConnectionSettings) -> None:
        self.cancelled: Callable[[], bool] = lambda: False
        self.rtt_s = 0.0
        self._server = server
        self._settings = settings
        self._home: str | None = None
        self._process = LftpProcess(settings, server, self._make_log)

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self._process.alive

    @property
    def last_heard(self) -> float:
        """Monotonic time of the last sign of life."""
        return self._process.last_heard

    def connect(self) -> None:
        """Start lftp and log in, once.

        Raises
        ------
        ConfigurationError
            If a program is not installed.
        AuthenticationFailed, HostKeyRejected, ConnectionLost, TransferTimeout, ServerRefused
            What is said of a login that failed.
        """
        try:
            self._process.start()
            self._log_in()
        except TransferTimeout as error:
            self.kill()
            if self._home is not None:
                raise
            raise TransferTimeout(self._of_silence(error), error.url) from None
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        """End it at once. Safe from any thread, more than once."""
        self._process.kill()

    # --- commands ----------------------------------------------------------------------------

    def run(
        self,
        command: str,
        *paths: str,
        watch: Callable[[Log], None] | None = None,
        asking: bool = False,
    ) -> Reply:
        """Run a command, ``{}`` standing for each path; a lost connection ends the login.

        ``asking`` is for transfers of which the log does not tell the progress.
        """

        def both(log: Log) -> None:
            if self.cancelled():
                raise cancelled()
            if watch:
                watch(log)

        reply = self._process.run(command, *paths, watch=both, asking=asking)
        error = None if reply.ok else self._lost(reply)
        if error is not None:
            self.kill()
            raise error
        return reply

    def tidy(self, command: str, *paths: str) -> bool:
        """Run a command that puts things in order, cancelled or not, if it still can be run."""
        if not self.alive:
            return False
        try:
            return self._process.run(command, *paths).ok
        except TransferError:
            return False

    def probe(self, at: int, size: int = 1) -> str:
        """Return the command that opens a file to read a little, so that the log tells of it."""
        return f"get1 --source-region={at}-{at + size} {{}} -o {self._process.probe_path}"

    def part(self, offset: int, length: int) -> str:
        """Return the command that reads bytes of a file, for `scratch` to return."""
        region = f"{offset}-{offset + length}"
        return f"get1 --source-region={region} {{}} -o {self._process.scratch_path}"

    def scratch(self, most: int) -> bytes:
        """Return what `part` has read."""
        return self._process.scratch(most)

    def error(self, reply: Reply, path: str) -> TransferError:
        """Return the error of a failed command, about that path."""
        return from_failure(reply.log.failure, reply.paths, self.url(path))

    def path(self, path: str) -> str:
        """Return a path as the server knows it, the login directory resolved.

        Raises
        ------
        ServerRefused
            If the server has not told the login directory.
        """
        if path != "/~" and not path.startswith("/~/"):
            return path
        if self._home is None:
            raise ServerRefused("the server does not tell the login directory", self.url(path))
        return posixpath.normpath(posixpath.join(self._home, path[3:]))

    def url(self, path: str) -> str:
        """Return the URL of a path, for messages."""
        return self._server + encode_path(path)

    # --- questions ---------------------------------------------------------------------------

    def stat(self, path: str) -> Stat:
        """Return what stands at the end of all links. The mode of a file is not known."""
        reply = self._list(path)
        if reply.ok:
            listed = parse_listing(reply.output, reply.log.names, self.url(path))
            own = next((entry.stat for entry in listed if entry.name == "."), None)
            return own or self._listed(path) or Stat("directory", 0, 0)
        if reply.log.file_type == _SPECIAL:
            return Stat("other", 0, 0)
        if reply.log.file_type is not None:
            # Beyond its end there is nothing to read, so nothing is sent; how lftp takes that
            # does not matter.
            reply = self.run(self.probe(_FAR), path)
            if reply.log.infos:
                return Stat("file", *reply.log.infos[-1])
        error = self.error(reply, path)
        if isinstance(error, RemotePermissionDenied):
            # It is there but not for us to open, or we cannot know.
            stat = self._listed(path)
            if stat is not None and stat.kind != "link":
                return stat
        raise error

    def lstat(self, path: str) -> Stat:
        """Return what stands there, which may be a link."""
        if path == "/":
            return self.stat(path)
        reply = self._list_one(path)
        if reply.log.file_type == _SPECIAL:
            return Stat("other", 0, 0)
        stat = parse_one(reply.output, self.url(path)) if reply.ok else None
        return stat or self.stat(path)

    def kind(self, path: str) -> str | None:
        """Return what stands at the end of all links: "directory", "file" for all else, None.

        The cheapest question: one round trip.
        """
        reply = self.run("cd {}", path)
        if reply.ok:
            return "directory"
        if reply.log.file_type is not None:
            return "file"
        error = self.error(reply, path)
        if isinstance(error, RemoteFileNotFound):
            return None
        raise error

    def scandir(self, path: str) -> Iterable[Entry]:
        """List a directory, without special files."""
        reply = self._list(path)
        if not reply.ok:
            if reply.log.file_type is not None:
                raise ServerRefused("is a file; a directory was meant", self.url(path))
            raise self.error(reply, path)
        for entry in parse_listing(reply.output, reply.log.names, self.url(path)):
            if entry.name != ".":
                yield entry

    # --- changes -----------------------------------------------------------------------------

    def mkdir(self, path: str) -> None:
        """Make a directory; an existing one is no error."""
        reply = self.run("mkdir {}", path)
        if reply.ok:
            return
        error = self.error(reply, path)
        if not isinstance(error, RemoteFileNotFound):
            kind = self.kind(path)
            if kind == "directory":
                return
            if kind is not None:
                raise ServerRefused(
                    "cannot make a directory: a file of that name exists", self.url(path)
                )
        raise error

    def remove(self, path: str) -> None:
        """Remove a file or link."""
        reply = self.run("rm {}", path)
        if not reply.ok:
            error = self._really(path, self.error(reply, path))
            if not isinstance(error, RemoteFileNotFound) and self.kind(path) == "directory":
                raise ServerRefused("is a directory; remove it recursively", self.url(path))
            raise error

    def rmdir(self, path: str) -> None:
        """Remove an empty directory."""
        reply = self.run("rmdir {}", path)
        if not reply.ok:
            error = self._really(path, self.error(reply, path))
            there = self._listed(path)
            if there is not None and there.kind != "directory":
                raise ServerRefused("is a file; a directory was meant", self.url(path))
            if type(error) is TransferError:
                error = TransferError(
                    f"cannot remove the directory ({error.message}); is it empty?", error.url
                )
            raise error

    def check_target(self, path: str, overwrite: bool) -> None:
        """Raise `ServerRefused` if no file may be put there."""
        kind = self.kind(path)
        if kind == "directory":
            raise ServerRefused("is a directory; a file was meant", self.url(path))
        if kind is not None and not overwrite:
            raise ServerRefused("exists already", self.url(path))

    def publish(self, temporary: str, path: str, overwrite: bool) -> None:
        """Rename to the final name.

        Some servers let a rename replace a file (MiG). Where it is refused because the name is
        taken (OpenSSH; lftp cannot ask for its posix-rename), the old file is renamed aside, the
        new one renamed in, and the old one removed, or put back if that fails. Between the two
        renames nothing has the final name.
        """
        reply = self._move(temporary, path)
        if reply.ok:
            return
        error = self.error(reply, path)
        if type(error) is not TransferError:
            raise error
        if not overwrite:
            self.check_target(path, overwrite)
            raise error
        if self.kind(temporary) == "directory":
            raise ServerRefused("is a file; a directory was meant", self.url(path))
        part = temporary
        if not is_temporary(posixpath.basename(part)):
            part = posixpath.join(posixpath.dirname(path), temporary_name())
        aside = aside_name(part)
        stepped = self._move(path, aside)
        if not stepped.ok:
            why = self.error(stepped, path)
            raise why if isinstance(why, RemotePermissionDenied) else error
        try:
            reply = self._move(temporary, path)
        except TransferError:
            self._put_back(aside, path)
            raise
        if not reply.ok:
            self._put_back(aside, path)
            raise self.error(reply, path)
        self.tidy("rm {}", aside)

    def clear_orphan(self, temporary: str, final: str) -> None:
        """Remove what a killed upload left; put a file back that stood aside without successor."""
        self.tidy("rm {}", temporary)
        aside = aside_name(temporary)
        if self.kind(aside) is None:
            return
        if self.kind(final) is None:
            self._move(aside, final)
        else:
            self.tidy("rm {}", aside)

    def broken(self, url: str) -> TransferError:
        """Return the error of an upload that is given up as its connection has broken."""
        broke = ConnectionLost("the connection broke during the upload", url)
        return self._process.ssh_error() or broke

    # --- inside ------------------------------------------------------------------------------

    def _log_in(self) -> None:
        self._home = self.run("cd /").log.home
        started = time.monotonic()
        self.run("cd /")
        self.rtt_s = time.monotonic() - started

    def _of_silence(self, _error: TransferTimeout) -> str:
        """Return what to say when no login has come about in time."""
        # lftp waits in silence for the end of a packet that such a text begins.
        return (
            f"no SFTP session began within {self._settings.timeout_s:g} s: check the network,"
            " and whether a login script on the server prints something, which"
            " PYREMOTEDATA_TRANSPORT=sftp would show"
        )

    def _lost(self, reply: Reply) -> TransferError | None:
        """Return the error of a failed command if the login is gone, else None."""
        lost = from_lost(reply.log, reply.paths, self._server)
        if lost is None:
            return None
        in_login = self._home is None
        silent = ended_at_once(self._server) if in_login else lost
        return self._process.ssh_error(in_login=in_login) or silent

    def _listed(self, path: str) -> Stat | None:
        """Return what the listing of its directory says of a path, None where it cannot."""
        if path == "/":
            return None
        reply = self._list_one(path)
        if not reply.ok or reply.log.file_type == _SPECIAL:
            return None
        return parse_one(reply.output, self.url(path))

    def _list(self, path: str) -> Reply:
        began, timeout_s = time.monotonic(), self._settings.timeout_s

        def watch(log: Log) -> None:
            taken_s = time.monotonic() - began
            check_listing(log.names, taken_s, timeout_s, self.url(path), LFTP_ENTRIES)

        return self.run(f"cd {{}} && {LIST}", path, watch=watch)

    def _list_one(self, path: str) -> Reply:
        directory, name = posixpath.split(path)
        # `cls` expands patterns in the last component, and only there.
        pattern = posixpath.join(directory, escape_glob(name))
        return self.run(self._list_itself, pattern)

    def _really(self, path: str, error: TransferError) -> TransferError:
        """Ask again where a server says "permission denied" of what is not there (MiG)."""
        if isinstance(error, RemotePermissionDenied) and self._listed(path) is None:
            with contextlib.suppress(TransferError):
                if self.kind(path) is None:
                    return RemoteFileNotFound("no such file or directory", error.url)
        return error

    def _move(self, old: str, new: str) -> Reply:
        return self.run("mv {} {}", old, new)

    def _put_back(self, aside: str, path: str) -> None:
        if not self.tidy("mv {} {}", aside, path):
            raise TransferError(
                "could not be replaced, nor its old content put back, which now has the name"
                f" {posixpath.basename(aside)}",
                self.url(path),
            )
