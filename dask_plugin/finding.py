"""Find remote files by pattern."""

from __future__ import annotations

import logging
import sys
from typing import Any

from pyremotedata_core import ConnectionSettings, RemoteURL
from pyremotedata_core.engine import shared_engine
from pyremotedata_core.finding import find, parse_pattern

from .current import TOPIC
from .remotefile import RemoteFile

_log = logging.getLogger(__name__)


def glob(pattern: str, **settings: Any) -> list[RemoteFile]:
    """Return handles on the files that match a URL with ``*``, ``?``, ``[...]`` or ``**``, sorted.

    Each directory is listed once, and the handles know size and mtime from that listing, so
    that opening them asks the server nothing. Links count as what they point to. Names that
    begin with a dot match only a pattern that does. Where there is a `distributed.Client`, workers
    with the plugin connect to the server meanwhile.

    Parameters
    ----------
    pattern : str
        For example ``sftp://archive/run7/*.fastq.gz``; ``**`` stands for any number of
        directories. ``[*]`` or ``%2A`` stands for a real ``*``.
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
        If the pattern is not a URL.
    """
    url = parse_pattern(pattern)
    engine = shared_engine(ConnectionSettings.load(**settings))
    _announce(url.join("/"))
    found = find(engine, url)
    files = sorted((url.path, str(url), stat) for url, stat in found if stat.kind == "file")
    return [RemoteFile(url, stat.size, stat.mtime) for _, url, stat in files]


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
