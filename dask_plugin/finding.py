"""Find remote files by pattern."""

from __future__ import annotations

import fnmatch
import logging
import re
import sys
from concurrent.futures import Future
from typing import Any

from pyremotedata_core import (
    ConfigurationError,
    ConnectionSettings,
    Entry,
    RemoteFileNotFound,
    RemoteURL,
    Stat,
    TransferEngine,
)
from pyremotedata_core.engine import shared_engine

from .current import TOPIC
from .remotefile import RemoteFile

_log = logging.getLogger(__name__)
_MAGIC = re.compile(r"[*?\[]")


def glob(pattern: str, **settings: Any) -> list[RemoteFile]:
    """Return handles on the files that match a URL with ``*``, ``?`` or ``[...]``, sorted.

    Each directory is listed once, and the handles know size and mtime from that listing, so
    that opening them asks the server nothing. Links count as what they point to. Names that
    begin with a dot match only a pattern that does. Where there is a `distributed.Client`, workers
    with the plugin connect to the server meanwhile.

    Parameters
    ----------
    pattern : str
        For example ``sftp://archive/run7/*.fastq.gz``. ``[*]`` stands for a real ``*``.
    **settings
        Fields of `pyremotedata_core.ConnectionSettings`, for this listing; default: environment
        and config file.

    Returns
    -------
    list of RemoteFile
        Empty if nothing matches.

    Raises
    ------
    TransferError
        If the server cannot be asked, or refuses.
    ConfigurationError
        If the pattern is not a URL, or holds ``**``.
    """
    url = RemoteURL.parse(pattern)
    parts = url.path.strip("/").split("/")
    if "**" in parts:
        raise ConfigurationError("** is not served: give one pattern per directory", pattern)
    engine = shared_engine(ConnectionSettings.load(**settings))
    fixed = next((i for i, part in enumerate(parts) if _MAGIC.search(part)), len(parts) - 1)
    directories = [url.join("/" + "/".join(parts[:fixed]))]
    _announce(directories[0])
    for part in parts[fixed:-1]:
        directories = [
            directory.join(name)
            for directory, name, _ in _matches(engine, directories, part, "directory")
        ]
    return [
        RemoteFile(str(directory.join(name)), stat.size, stat.mtime)
        for directory, name, stat in _matches(engine, directories, parts[-1], "file")
    ]


def _announce(url: RemoteURL) -> None:
    """Tell the cluster, if this process is a client of one, that files of a server will come."""
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return
    try:
        client = distributed.default_client()
        if not client.asynchronous:
            client.log_event(TOPIC, {"action": "listing", "url": str(url)})
    except Exception as error:  # no client, or one that has lost its cluster: no loss
        _log.debug("the workers are not told of %s: %s", url, error)


def _matches(
    engine: TransferEngine, directories: list[RemoteURL], pattern: str, kind: str
) -> list[tuple[RemoteURL, str, Stat]]:
    """List directories at once; return (directory, name, stat) of what matches."""
    listings = [engine.scandir(directory) for directory in directories]
    matches: list[tuple[RemoteURL, str, Future[Stat] | Stat]] = []
    for directory, listing in zip(directories, listings, strict=True):
        for entry in _listed(listing):
            if not _fits(entry.name, pattern):
                continue
            if entry.stat.kind == "link":
                matches.append((directory, entry.name, engine.stat(directory.join(entry.name))))
            else:
                matches.append((directory, entry.name, entry.stat))
    followed = [(directory, name, _followed(found)) for directory, name, found in matches]
    wanted = [
        (directory, name, stat)
        for directory, name, stat in followed
        if stat is not None and stat.kind == kind
    ]
    return sorted(wanted, key=lambda match: (match[0].path, match[1]))


def _listed(listing: Future[list[Entry]]) -> list[Entry]:
    try:
        return listing.result()
    except RemoteFileNotFound:
        return []


def _followed(found: Future[Stat] | Stat) -> Stat | None:
    """Return the stat that a link's target has; None for a dangling link."""
    if isinstance(found, Stat):
        return found
    try:
        return found.result()
    except RemoteFileNotFound:
        return None


def _fits(name: str, pattern: str) -> bool:
    if name.startswith(".") and not pattern.startswith("."):
        return False
    return fnmatch.fnmatchcase(name, pattern)
