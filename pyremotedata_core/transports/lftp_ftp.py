"""The FTP session through lftp; the same face as `LftpSession`.

In FTP nothing tells of an open file. So the server is asked about the path before and after a
transfer, and the number of bytes that came is compared. lftp's log does not tell how far a
transfer is: it is asked for that, now and then.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from ..errors import (
    ConnectionLost,
    RemoteChanged,
    RemoteFileNotFound,
    ServerRefused,
)
from ..model import Stat
from .lftp import MAX_BREAKS, LftpSession, Progress
from .lftp_ftp_site import FtpSite
from .lftp_text import Log


class FtpSession(LftpSession):
    """An `LftpSession` at an FTP server."""

    _make_site = FtpSite
    _site: FtpSite

    def touch(self, path: str, mtime: int) -> None:
        """Set the mtime of an existing file, in seconds, by whatever the server offers for it."""
        site, path = self._site, self._site.path(path)
        site.stat(path)
        site.set_time(path, mtime)
        if site.stat(path).mtime != mtime:
            raise ServerRefused("the server did not keep the time", site.url(path))

    # --- inside ------------------------------------------------------------------------------

    def _read_whole(self, path: str, local: str, expect: Stat, progress: Progress) -> None:
        site, url = self._site, self._site.url(path)
        self._compare(path, expect)
        with self._segments(expect.size if site.has_rest else 0, local) as segments:
            get = f"pget -n {segments}" if segments > 1 else "get"
            watch = _guard(url, MAX_BREAKS if site.has_rest else 0, progress)
            reply = site.run(f"{get} {{}} -o {{}}", path, local, watch=watch, asking=True)
        if not reply.ok:
            raise site.error(reply, path)
        self._compare(path, expect)

    def _read_part(
        self, path: str, offset: int, length: int, expect: Stat, _progress: Progress
    ) -> bytes:
        site, url = self._site, self._site.url(path)
        self._compare(path, expect)
        if not length:
            return b""
        if offset and not site.has_rest:
            raise ServerRefused(
                "the server sends files from their beginning only (it offers no REST): download"
                " the whole file (pyremotedata get)",
                url,
            )
        watch = _guard(url, MAX_BREAKS if site.has_rest else 0, None)
        reply = site.run(site.part(offset, length), path, watch=watch, asking=True)
        if not reply.ok:
            raise site.error(reply, path)
        if offset + length < expect.size:
            site.settle()
        data = site.scratch(length)
        self._compare(path, expect)
        return data

    def _compare(self, path: str, expect: Stat) -> None:
        now = self._site.stat(path)
        if (now.kind, now.size, now.mtime) != ("file", expect.size, expect.mtime):
            raise RemoteChanged("the file changed while it was read", self._site.url(path))

    def _upload(
        self, local: str, temporary: str, _size: int, url: str, watch: Callable[[Log], None]
    ) -> Stat:
        site = self._site
        reply = site.run("put {} -o {}", local, temporary, watch=watch, asking=True)
        if reply.ok:
            return self._dated(site.stat(temporary), local, temporary)
        error = site.without_parent(temporary, site.error(reply, temporary))
        if isinstance(error, RemoteFileNotFound):
            raise RemoteFileNotFound("the directory does not exist", url)
        raise type(error)(error.message, url, error.retryable)

    def _dated(self, stat: Stat, local: str, temporary: str) -> Stat:
        """Set the time of an upload where lftp could not; a server may keep its own."""
        wanted = int(os.stat(local).st_mtime)
        if stat.mtime != wanted:
            try:
                self._site.set_time(temporary, wanted)
            except ServerRefused:
                return stat
            stat = self._site.stat(temporary)
        return stat


def _guard(url: str, most_breaks: int, progress: Progress | None) -> Callable[[Log], None]:
    def watch(log: Log) -> None:
        if log.breaks > most_breaks:
            why = "breaks again and again" if most_breaks else "broke"
            raise ConnectionLost(f"the connection {why}", url)
        if progress:
            progress.at(log.received)

    return watch
