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
    from .locks import TransferLock
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
        self._locks: dict[str, TransferLock] = {}
        try:
            self._try_lock(key)
            self._directory = stager.cache.incoming(key)
        except OSError as error:
            self._unlock()
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
        self._unlock()

    def _set_apart(self) -> None:
        """Give the file an mtime that tells it from the one which it replaces.

        It is later than that of the file on the server, which other nodes may have. Of one that
        has gone from there the cache may know, and another draft of this node may be on its way
        with the same mtime.
        """
        if self.path.is_symlink():
            return
        with suppress(*NOTHING_TOLD):
            date_after(self.path, wait_for(self._stager.engine.stat(self.url)))
        found = os.stat(self.path)
        first = int(found.st_mtime)
        mtime = next(n for n in count(first) if self._claim(Stat("file", found.st_size, n)))
        if mtime > first:
            os.utime(self.path, (found.st_atime, mtime))

    def _claim(self, stat: Stat) -> bool:
        """Lock the entry that the file would be; False if it is there, or another brings it."""
        key = self._stager.key(self.url, stat)
        try:
            if not self._try_lock(key):
                return False
        except OSError:
            return True  # nothing can be an entry then
        lease = self._stager.find(self.url, stat)
        if lease is None:
            return True
        lease.release()
        self._locks.pop(key).release()
        return False

    def _keep(self, stat: Stat) -> bool:
        """Make the file an entry of the cache if there is room; return whether it is one now."""
        cache, name = self._stager.cache, self.url.name
        key = self._stager.remember(self.url, stat)
        try:
            if not self._try_lock(key):
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

    def _try_lock(self, key: str) -> bool:
        """Hold a lock of the cache until the draft is gone; False while another holds it."""
        if key not in self._locks:
            lock = self._stager.cache.try_lock(key)
            if lock is not None:
                self._locks[key] = lock
        return key in self._locks

    def _unlock(self) -> None:
        while self._locks:
            self._locks.popitem()[1].release()
