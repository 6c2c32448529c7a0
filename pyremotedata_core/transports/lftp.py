"""The lftp session: one operation at a time, each made of a few lftp commands.

`lftp_process.py` drives the process, `lftp_site.py` asks and makes small changes,
`lftp_text.py` reads and writes lftp's language. What lftp cannot do, or does in its own way:

- It ends with success after a file that shrank, and splices when it resumes. So what the server
  says of the open file is compared with what is expected at every opening: the first, those after
  a lost connection, every segment's, and one more after the last byte.
- It cannot rename over a file where the server refuses that: see `LftpSite.publish`.
- It sets an mtime only at the end of an upload, and together with the size: see `touch`.
- Special files do not appear in its listings, and names with a line break cannot be said to it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
from collections.abc import Callable, Iterator

from ..config import ConnectionSettings
from ..errors import (
    ConnectionLost,
    RemoteChanged,
    RemoteFileNotFound,
    RemotePermissionDenied,
    ServerRefused,
    TransferError,
    naming,
)
from ..model import Entry, Stat
from ..names import PGET_STATUS
from ..nodestate import SessionSlots
from ..url import RemoteURL
from .base import Sink, Source
from .lftp_site import LftpSite
from .lftp_text import Log

SEGMENTED_BYTES = 64 << 20  # a file of this size pays for the logins of further connections
SEGMENTS = 4  # of a large download, each a connection and a session slot
OVERLAP_BYTES = 4 << 20  # that the segments of a download may read twice
MAX_BREAKS = 4  # of connections during one download
BATCH_ENTRIES = 1000
# A server answers a longer read with what it is ready to send, and lftp then hangs. So reads have
# the size that every server must serve until it is seen that this one serves more.
SAFE_READ_BYTES = 32 << 10
READ_BYTES = 128 << 10
# In flight. ssh carries 2 MiB in a round trip: 3 MiB of reads fill that as well as 8 do, and are
# sooner over when a download is given up. Writes have 32 KiB each; lftp fails above 64 requests.
READ_WINDOW_BYTES = 3 << 20
REQUESTS_AHEAD = 64
_AHEAD = "sftp:max-packets-in-flight"
_CONNECT = "sftp:connect-program/server"  # before the one for any server
OnBytes = Callable[[int], None]


class LftpSession:
    """One lftp process with one login; it does one thing at a time, in the calling thread.

    One thread calls its methods, except `kill` and `alive`. Each raises `TransferError`, and
    returns within the session's time limit of the last sign of life. Paths are decoded, absolute,
    ``/~`` for the login directory. What is not there is `RemoteFileNotFound`, what may not be
    touched `RemotePermissionDenied`.

    Parameters
    ----------
    url : RemoteURL
        Of the server; its path does not matter.
    settings : ConnectionSettings
        Already those of the server.
    """

    _make_site: type[LftpSite] = LftpSite

    def __init__(self, url: RemoteURL, settings: ConnectionSettings) -> None:
        self._server = url.server
        self._settings = settings
        self._site = self._make_site(url.server, settings)
        self._read_bytes = 0  # that the server is known to serve at once, 0 for not known

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self._site.alive

    @property
    def last_heard(self) -> float:
        """Monotonic time of the last sign of life."""
        return self._site.last_heard

    @property
    def rtt_s(self) -> float:
        """Round trip of a question, measured at login."""
        return self._site.rtt_s

    def stop_when(self, cancelled: Callable[[], bool]) -> None:
        """Ask this several times a second while an operation waits.

        When it says True the operation ends with `ConnectionLost`, and the session remains.
        """
        self._site.cancelled = cancelled

    def connect(self) -> None:
        """Start lftp and log in, once; see `LftpSite.connect`."""
        self._site.connect()

    def stat(self, path: str, follow: bool = True) -> Stat:
        """Return what the server says of a path.

        The mode of a regular file is not known (None) when links are followed.
        """
        path = self._site.path(path)
        return self._site.stat(path) if follow else self._site.lstat(path)

    def scandir(self, path: str) -> Iterator[list[Entry]]:
        """Yield the entries of a directory in batches, without ``.``, ``..`` and special files.

        A name with a line break makes the listing `UnsafeName`.
        """
        entries = iter(self._site.scandir(self._site.path(path)))
        while batch := list(itertools.islice(entries, BATCH_ENTRIES)):
            yield batch

    def read(
        self,
        path: str,
        sink: Sink,
        offset: int,
        length: int,
        expect: Stat,
        on_bytes: OnBytes = lambda _: None,
    ) -> None:
        """Write a whole file into a sink that is an empty file, or a part of one into memory.

        A large file comes over several connections, as many as this node's slots of the server
        allow.

        Raises
        ------
        RemoteChanged
            If the file is not, or does not remain, what ``expect`` says.
        ServerRefused
            If what is not a regular file is asked for.
        LocalStorageFull
        """
        site, path = self._site, self._site.path(path)
        url = site.url(path)
        if expect.kind != "file":
            raise ServerRefused("lftp reads regular files only", url)
        progress = Progress(length, on_bytes)
        if sink.is_file:
            with naming(sink.final):
                fd = sink.fd
            self._read_whole(path, os.path.abspath(sink.path), expect, progress)
            came = os.fstat(fd).st_size
        else:
            data = self._read_part(path, offset, length, expect, progress)
            sink.write(memoryview(data), offset)
            came = len(data)
        if came != length:
            raise RemoteChanged("the file changed while it was read", url)
        progress.at(length)

    def write(
        self,
        path: str,
        source: Source,
        overwrite: bool,
        temporary: str,
        on_bytes: OnBytes = lambda _: None,
    ) -> Stat:
        """Upload the source and publish it under ``path``, whole or not at all, mtime set.

        Until then it has the temporary path, in the same directory and ours alone; nothing
        remains of it. Where the server does not keep the mtime that lftp sends together with the
        size (MiG), the result has the one that it set itself.

        Raises
        ------
        RemoteFileNotFound
            If the directory does not exist.
        ServerRefused
            If a directory stands there, a file stands there and may not be overwritten, or the
            server cannot keep the file.
        """
        site, path = self._site, self._site.path(path)
        url = site.url(path)
        temporary = site.path(temporary)
        site.check_target(path, overwrite)
        local = os.path.abspath(source.path)
        with naming(source.path):
            before = os.fstat(source.fd)
        progress = Progress(source.size, on_bytes)

        def watch(log: Log) -> None:
            # A file that grows leaves lftp waiting for ever.
            if _changed_since(before, local, source):
                raise TransferError(f"{source.path}: changed while it was uploaded", retryable=True)
            if log.breaks:
                # lftp goes on where the server's file ends. Whether the bytes that had arrived
                # end there too is not for us to guess.
                raise site.broken(url)
            progress.at(log.sent)

        try:
            stat = self._upload(local, temporary, source.size, url, watch)
            if stat.size != source.size:
                raise ServerRefused(f"the server kept {stat.size} of {source.size} bytes", url)
            if source.mode is not None:
                site.tidy(f"chmod {source.mode:o} {{}}", temporary)
            if temporary != path:
                site.publish(temporary, path, overwrite)
        except BaseException:
            site.tidy("rm {}", temporary)
            raise
        progress.at(source.size)
        return stat

    def mkdir(self, path: str) -> None:
        """Make one directory; an existing directory is no error."""
        self._site.mkdir(self._site.path(path))

    def remove(self, path: str) -> None:
        """Remove a file or link."""
        self._site.remove(self._site.path(path))

    def rmdir(self, path: str) -> None:
        """Remove an empty directory."""
        self._site.rmdir(self._site.path(path))

    def rename(self, old: str, new: str) -> None:
        """Rename within the server, replacing a file as safely as the server allows.

        Where a rename does not replace a file, nothing has the new name for a moment: see
        `LftpSite.publish`.
        """
        site = self._site
        old, new = site.path(old), site.path(new)
        site.check_target(new, overwrite=True)
        try:
            site.publish(old, new, overwrite=True)
        except RemoteFileNotFound as error:
            raise RemoteFileNotFound(error.message, site.url(old)) from None

    def touch(self, path: str, mtime: int) -> None:
        """Set the mtime of an existing regular file, in seconds.

        lftp sets a time only at the end of an upload. So a local file of the same size and with
        that mtime, all of it a hole, is "continued" to the remote one, of which nothing is then
        left to send. Nothing but the time changes, unless somebody else cuts the file short in
        the two round trips between the look at its size and the end: then zeros are sent in place
        of what was cut off. That is noticed, and reported as `RemoteChanged`. lftp would send
        zeros for the whole file, too, if its connection broke and the next one were refused, as it
        then knows of no size. So it gets no other connection.
        """
        site, path = self._site, self._site.path(path)
        url = site.url(path)
        stat = site.stat(path)
        if stat.kind != "file":
            raise ServerRefused("lftp sets the times of regular files only", url)
        with tempfile.NamedTemporaryFile(prefix="pyremotedata-touch-") as hole:
            try:
                with naming(hole.name):
                    hole.truncate(stat.size)
                    os.utime(hole.name, (mtime, mtime))
            except OverflowError:
                raise ServerRefused(f"a file cannot have {stat.size} bytes", url) from None
            try:
                reply = site.run(f"set {_CONNECT} false && put -c {{}} -o {{}}", hole.name, path)
            finally:
                site.tidy(f"set {_CONNECT}")
        if reply.log.sent:
            raise RemoteChanged(
                "was cut short by somebody else while its time was set; zeros may now stand in"
                " place of what was cut off",
                url,
                retryable=False,
            )
        if not reply.ok:
            raise site.error(reply, path)
        if site.stat(path).mtime != mtime:
            raise ServerRefused("the server did not keep the time", url)

    def clear_orphan(self, temporary: str, final: str) -> None:
        """Remove what a killed upload left; put a file back that stood aside without successor."""
        self._site.clear_orphan(self._site.path(temporary), self._site.path(final))

    def realpath(self, path: str) -> str:
        """Return the path with the login directory resolved; links are not."""
        return self._site.path(path)

    def kill(self) -> None:
        """End the session at once; safe to call from another thread, more than once."""
        self._site.kill()

    # --- inside ------------------------------------------------------------------------------

    def _read_whole(self, path: str, local: str, expect: Stat, progress: Progress) -> None:
        site, url = self._site, self._site.url(path)
        if expect.size >= READ_BYTES and not self._read_bytes:
            self._learn_read_bytes(path)
        with self._segments(expect.size, local) as segments:
            get = _read_in(self._read_bytes or SAFE_READ_BYTES) + "&& "
            get += f"pget -n {segments}" if segments > 1 else "get"
            # One more opening, and the last byte, show whether it is still what it was.
            again = site.probe(max(0, expect.size - 1))
            command = f"{get} {{}} -o {{}} && {again}"
            watch = _guard(url, expect, expect.size, progress)
            reply = site.run(command, path, local, path, watch=watch)
        if not reply.ok:
            raise site.error(reply, path)
        if len(reply.log.infos) < 2:
            raise RemoteChanged("the file changed while it was read", url)

    def _read_part(
        self, path: str, offset: int, length: int, expect: Stat, progress: Progress
    ) -> bytes:
        site, url = self._site, self._site.url(path)
        get, paths = site.probe(max(0, expect.size - 1)), [path]
        if length:
            set_up = _read_in(self._read_bytes or SAFE_READ_BYTES)
            get, paths = f"{set_up}&& {site.part(offset, length)} && {get}", [path, path]
        reply = site.run(get, *paths, watch=_guard(url, expect, length, progress))
        if not reply.ok:
            raise site.error(reply, path)
        data = site.scratch(length) if length else b""
        if len(reply.log.infos) < len(paths):
            raise RemoteChanged("the file changed while it was read", url)
        return data

    @contextlib.contextmanager
    def _segments(self, size: int, local: str) -> Iterator[int]:
        """Take slots for further connections if a file is large; yield how many it may use."""
        slots: list[int] = []
        if size >= SEGMENTED_BYTES:
            shared = SessionSlots(self._server, self._settings.connections)
            while len(slots) < SEGMENTS - 1 and (slot := shared.acquire()) is not None:
                slots.append(slot)
        try:
            yield 1 + len(slots)
        finally:
            if slots:
                # lftp keeps idle connections, and closes all of them or none: the next command
                # logs in again, which a file of this size can afford.
                self._site.tidy("close")
                with contextlib.suppress(OSError):
                    os.unlink(local + PGET_STATUS)  # which lftp makes though told not to
            for slot in slots:
                os.close(slot)

    def _learn_read_bytes(self, path: str) -> None:
        """See how much of a large file the server sends at once."""
        command = f"{_read_in(READ_BYTES, 1)}&& {self._site.probe(0, READ_BYTES)}"
        log = self._site.run(command, path).log
        if log.infos and log.infos[-1][0] >= READ_BYTES:
            self._read_bytes = min(log.largest, READ_BYTES)

    def _upload(
        self, local: str, temporary: str, size: int, url: str, watch: Callable[[Log], None]
    ) -> Stat:
        site = self._site
        command = f"set {_AHEAD} {REQUESTS_AHEAD} && put {{}} -o {{}}"
        command += f" && {site.probe(max(0, size - 1))}"
        reply = site.run(command, local, temporary, temporary, watch=watch)
        if reply.ok and reply.log.infos:
            return Stat("file", *reply.log.infos[-1])
        failure = reply.log.failure
        if failure is not None and failure.command == "get1":
            return site.lstat(temporary)  # a directory to drop files into, not to read them
        error = site.error(reply, temporary)
        if isinstance(error, RemoteFileNotFound):
            raise RemoteFileNotFound("the directory does not exist", url)
        if isinstance(error, RemotePermissionDenied):
            raise RemotePermissionDenied(
                "the server does not let you write into that directory", url
            )
        if type(error) is TransferError:
            raise ServerRefused(
                f"the server cannot write ({error.message}); is its disk or your quota full?", url
            )
        raise error


class Progress:
    """Tells how many bytes have moved since it told last."""

    def __init__(self, size: int, on_bytes: OnBytes) -> None:
        self._size = size
        self._told = 0
        self._on_bytes = on_bytes

    def at(self, count: int) -> None:
        """So many bytes have moved; lftp asks for some of them twice."""
        count = min(count, self._size)
        if count > self._told:
            new, self._told = count - self._told, count
            self._on_bytes(new)


def _guard(url: str, expect: Stat, length: int, progress: Progress) -> Callable[[Log], None]:
    """Return what watches over a download of so many bytes."""

    def watch(log: Log) -> None:
        if any(info != (expect.size, expect.mtime) for info in log.infos):
            raise RemoteChanged("the file changed while it was read", url)
        if log.received > length + OVERLAP_BYTES:
            raise ServerRefused("the server sends more than was asked for", url)
        if log.breaks > MAX_BREAKS:
            raise ConnectionLost("the connection breaks again and again", url)
        progress.at(log.received)

    return watch


def _read_in(size: int, ahead: int | None = None) -> str:
    """Return the commands that set the size of reads in bytes, and how many are in flight."""
    ahead = ahead or min(REQUESTS_AHEAD, READ_WINDOW_BYTES // size)
    return f"set sftp:size-read {size} && set {_AHEAD} {ahead} "


def _changed_since(before: os.stat_result, local: str, source: Source) -> bool:
    """Whether the path no longer leads to the source as it was."""
    try:
        now = os.stat(local)
    except OSError:
        return True
    same_file = (now.st_dev, now.st_ino) == (before.st_dev, before.st_ino)
    same = (now.st_size, now.st_mtime_ns) == (source.size, source.mtime_ns)
    return not (same_file and same)
