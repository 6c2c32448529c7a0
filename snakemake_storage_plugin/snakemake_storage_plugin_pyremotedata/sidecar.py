"""Checksums that stand beside a file: ``reads.bam.sha256``, ``reads.bam.md5``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pyremotedata_core.model import Stat
from pyremotedata_core.url import RemoteURL

from .lookup import Lookup
from .waiting import Wait

if TYPE_CHECKING:
    from pyremotedata_core.engine import TransferEngine

# Algorithm, also the suffix: digits of the checksum.
ALGORITHMS = {"sha256": 64, "md5": 32}
MAX_BYTES = 65536
# "HEX", "HEX  name", "HEX *name" (sha256sum, md5sum) and "SHA256 (name) = HEX" (BSD).
_LINE = re.compile(
    r"(?:(?P<hex>[0-9a-f]+)(?:\s+\*?(?P<name>.+))?"
    r"|\w+ ?\((?P<bsd_name>.+)\) ?= ?(?P<bsd>[0-9a-f]+))",
    re.I,
)


async def checksum(
    engine: TransferEngine, lookup: Lookup, url: RemoteURL, stat: Stat, wait: Wait
) -> str | None:
    """Return ``algorithm:checksum`` of a file, None if nothing that holds stands beside it.

    A checksum that is older than its file says nothing of it.

    Raises
    ------
    TransferError
    """
    for algorithm in ALGORITHMS:
        beside = url.parent.join(f"{url.name}.{algorithm}")
        there = await lookup.stat(beside, wait)
        if there is None or there.kind != "file" or there.mtime < stat.mtime:
            continue
        if 0 < there.size <= MAX_BYTES:
            content = await wait(engine.read(beside, 0, there.size, there))
            found = find_checksum(content.decode("utf-8", "replace"), url.name, algorithm)
            if found:
                return f"{algorithm}:{found}"
    return None


def find_checksum(text: str, name: str, algorithm: str) -> str | None:
    """Return the checksum of a file from what such programs as sha256sum write."""
    for line in text.splitlines():
        match = _LINE.fullmatch(line.strip())
        if match is None:
            continue
        found = (match["hex"] or match["bsd"]).lower()
        of = match["name"] or match["bsd_name"] or name
        if len(found) == ALGORITHMS[algorithm] and of.rpartition("/")[2] == name:
            return found
    return None
