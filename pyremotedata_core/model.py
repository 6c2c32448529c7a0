"""The plain values that cross every border: stat results, directory entries, outcomes.

They are named tuples of builtins, so that a message between processes carries them as they are.
"""

from __future__ import annotations

import stat as _stat
from functools import lru_cache
from typing import Literal, NamedTuple

Kind = Literal["file", "directory", "link", "other"]


def one_line(text: str) -> str:
    """Return text as one printable line; undecodable bytes and controls show as escapes."""
    text = " ".join(text.split()) if ("\n" in text or "\r" in text or "\t" in text) else text
    return printable(text)


def printable(text: str) -> str:
    """Return text with everything escaped that is not printable."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii")
        for c in text
    )


@lru_cache(256)
def kind_of(mode: int | None) -> Kind:
    """Return the kind of a file from its POSIX mode; unknown counts as a file."""
    if mode is None:
        return "file"
    form = _stat.S_IFMT(mode)
    if form == _stat.S_IFREG or form == 0:
        return "file"
    if form == _stat.S_IFDIR:
        return "directory"
    if form == _stat.S_IFLNK:
        return "link"
    return "other"


def sftp_time(seconds: float) -> int:
    """Return a time as SFTP version 3 can tell it: whole seconds, from 1970 to 2106."""
    return min(max(int(seconds), 0), 0xFFFFFFFF)


class Stat(NamedTuple):
    """What a server says of a file.

    Attributes
    ----------
    kind : {"file", "directory", "link", "other"}
    size : int
        Bytes.
    mtime : int
        Seconds since the epoch. SFTP version 3 has whole seconds only.
    mode : int or None
        POSIX permission bits, None where the server does not say.
    """

    kind: Kind
    size: int
    mtime: int
    mode: int | None = None

    def same_content(self, other: Stat) -> bool:
        """Whether size and one-second mtime say that the content is the same."""
        return self.size == other.size and self.mtime == other.mtime


class Entry(NamedTuple):
    """One entry of a remote directory: its name and its `Stat`; links are not followed."""

    name: str
    stat: Stat


class TreeResult(NamedTuple):
    """Outcome of moving a tree.

    Attributes
    ----------
    files, bytes : int
        Moved in this call.
    unchanged : int
        Files left alone because size and mtime already agreed.
    deleted : int
        Entries removed from the destination.
    skipped : list of (str, str)
        Path and reason of entries that were left out (special files, links out of the tree).
    failed : list of dict
        One plain error (`TransferError.to_plain`) for each file that failed.
    planned : tuple of (str, str)
        Of a dry run: what would be done ("fetch", "store", "delete"), and to which path below
        the top. ``files``, ``bytes`` and ``deleted`` then count what would be.
    """

    files: int
    bytes: int
    unchanged: int
    deleted: int
    skipped: list[tuple[str, str]]
    failed: list[dict[str, str]]
    planned: tuple[tuple[str, str], ...] = ()
