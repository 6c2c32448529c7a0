"""Drafts: local files on their way to the server, and then in the node's cache, too."""

from __future__ import annotations

import os
import secrets
import shutil
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING

from ..errors import ConfigurationError, LocalStorageFull, TransferError, from_oserror
from ..futures import wait_for
from ..local import NOTHING_TOLD, date_after
from ..model import Stat
from ..url import RemoteURL

if TYPE_CHECKING:
    from .stager import Stager


class Draft:
    """A local file to be written, which `deliver` uploads; from `Stager.draft`.

    Attributes
    ----------
    url : RemoteURL
        What it becomes.
    path : Path
        Where to write it; it has the name of the remote file.

    Notes
    -----
    Lies in the cache's directory, but does not count against its budget until it is delivered.
    What a killed process leaves is removed by the next one. Not thread-safe.
    """

    def __init__(self, stager: Stager, url: RemoteURL) -> None:
        if not url.name or url.trailing_slash:
            raise ConfigurationError("the URL names no file; an output is one file", str(url))
        self.url = url
        self._stager = stager
        # A key that no file has: whoever finds its lock free removes the directory.
        key = f"draft.{secrets.token_hex(8)}"
        lock = None
        try:
            self._lock = lock = stager.cache.try_lock(key)
            self._directory = stager.cache.incoming(key)
        except OSError as error:
            if lock is not None:
                lock.release()
            raise from_oserror(error) from None
        self.path = self._directory / url.name

    def deliver(self) -> Stat:
        """Upload the file, whole or not at all, and keep it in the cache if there is room.

        Blocks. The draft is gone afterwards, whatever happens.

        Raises
        ------
        TransferError
            If nothing was written, or the server does not take it.
        """
        try:
            if self.path.is_dir():
                raise TransferError("is one file, not a directory", str(self.url))
            if not self.path.is_file():
                raise TransferError(f"nothing has been written to {self.path}", str(self.url))
            self._set_apart()
            stat = wait_for(self._stager.engine.store(self.path, self.url))
            if os.listdir(self._directory) == [self.path.name] and not self.path.is_symlink():
                source = self._stager.source
                if self._keep(stat) and source is not None:
                    source.ended(self.url, stat, is_here=True)
            return stat
        finally:
            self.discard()

    def discard(self) -> None:
        """Remove it; a second call does nothing."""
        shutil.rmtree(self._directory, ignore_errors=True)
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()

    def _set_apart(self) -> None:
        """Give the file an mtime that tells it from the one which it replaces.

        It is later than that of the file on the server, which other nodes may have. Of one that
        has gone from there the cache may know.
        """
        if self.path.is_symlink():
            return
        with suppress(*NOTHING_TOLD):
            date_after(self.path, wait_for(self._stager.engine.stat(self.url)))
        found = os.stat(self.path)
        for mtime in count(int(found.st_mtime)):
            lease = self._stager.find(self.url, Stat("file", found.st_size, mtime))
            if lease is None:
                return
            lease.release()
            os.utime(self.path, (found.st_atime, mtime + 1))

    def _keep(self, stat: Stat) -> bool:
        """Make the file an entry of the cache if there is room; return whether it is one now."""
        cache, name = self._stager.cache, self.url.name
        key = self._stager.remember(self.url, stat)
        lock = None
        try:
            lock = cache.try_lock(key)
            if lock is None:
                return False
            found = cache.find(key, name, stat)
            if found is not None:
                found.release()
                return True
            pin = cache.reserve(key, name, str(self.url), stat, is_on_disk=True)
            try:
                os.utime(self.path, (stat.mtime, stat.mtime))
                cache.publish(key, self._directory, name)
            except BaseException:
                cache.withdraw(key, pin, None)
                raise
            pin.release()
            return True
        except (OSError, LocalStorageFull):
            return False  # it is on the server; who wants it here fetches it
        finally:
            if lock is not None:
                lock.release()
