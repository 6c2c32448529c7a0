"""Sources: where a `Stager` gets its files from, if not from its engine."""

from __future__ import annotations

import os
from concurrent.futures import Future
from pathlib import Path
from typing import Protocol

from ..errors import TransferError
from ..model import Stat
from ..url import RemoteURL


class Source(Protocol):
    """What brings files to a `Stager` in place of its engine: from a neighbour, for example.

    Set it as `Stager.source`. The Stager decides what is to come, and when; it has the file's
    lock and its room, checks what has come, and publishes it. Called on any thread.
    """

    def fetch(
        self, url: RemoteURL, path: str | os.PathLike[str], *, expect: Stat, background: bool
    ) -> Future[Stat]:
        """Begin to write a file to a local path, as `TransferEngine.fetch` does.

        The future must end within a deadline of the source's own. When it is cancelled, or its
        ``cancel`` is called, the source stops soon, and then nothing may be written any more.
        """

    def promote(self, future: Future[Stat]) -> None:
        """Learn that somebody waits for a file that was ordered in the background."""

    def ended(self, url: RemoteURL, stat: Stat, *, is_here: bool) -> None:
        """Learn whether a file now is in the cache: after each future's end, and of one stored.

        Must not block.
        """


def check_delivered(path: Path, stat: Stat, url: str) -> None:
    """Check that a source has delivered a whole file, and give it its mtime.

    Raises
    ------
    TransferError
        If the size is not that of ``stat``.
    """
    size = os.stat(path).st_size
    if size != stat.size:
        raise TransferError(f"{size} bytes came instead of {stat.size}", url, retryable=True)
    os.utime(path, (stat.mtime, stat.mtime))
