"""Finding: remote files and directories by pattern, with few listings, as they are found.

A pattern is a path with ``*`` and ``?`` (within a name), ``[...]`` (one character) or ``**`` (any
number of directories). In a URL what is percent-encoded stands for itself; elsewhere ``[*]``
stands for a real ``*``, as `glob.escape` writes it.
"""

from __future__ import annotations

import fnmatch
import re
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from glob import escape
from typing import TYPE_CHECKING, Any

from .errors import RemoteFileNotFound, ServerRefused
from .model import Entry, Stat
from .spool import LISTINGS_AT_ONCE
from .url import RemoteURL, looks_like_url

if TYPE_CHECKING:
    from .engine import TransferEngine

_Numbers = frozenset[int]
_MAGIC = re.compile(r"[*?\[]")
_ENCODED = re.compile(r"%(2A|3F|5B)", re.IGNORECASE)
_ALONE = re.compile(r"\[([^]!])\]")  # a class of one character is that character


def has_magic(path: str) -> bool:
    """Whether a path or URL is a pattern."""
    if looks_like_url(path):
        path = path.partition("://")[2].partition("/")[2]
    return _MAGIC.search(path) is not None


def parse_pattern(text: str) -> RemoteURL:
    """Read a URL that is a pattern; characters that are percent-encoded lose their meaning."""
    return RemoteURL.parse(_ENCODED.sub(lambda code: f"[%{code[1]}]", text))


def locate_pattern(base: RemoteURL, pattern: str) -> RemoteURL:
    """Return a pattern that is relative to a directory, or a URL, for `find`."""
    if looks_like_url(pattern):
        return parse_pattern(pattern)
    return replace(base, path=escape(base.path)).join(pattern)


def find(engine: TransferEngine, pattern: RemoteURL) -> Iterator[tuple[RemoteURL, Stat]]:
    """Yield (url, stat) of what matches a pattern; nothing if nothing does.

    Each directory is listed once, and only if the pattern can match below it; several are listed
    at once. The names of a directory come in order. Links count as what they point to, but ``**``
    does not descend into them. A name that begins with a dot matches only a pattern that does. A
    pattern that ends in ``/`` matches directories only.

    Raises
    ------
    TransferError
        If the server cannot be asked, or refuses.
    """
    return _Search(engine, pattern).run()


class _Search:
    """One search. Every place to look at has the numbers of the pattern's parts to match there."""

    def __init__(self, engine: TransferEngine, pattern: RemoteURL) -> None:
        self._engine = engine
        path = pattern.path
        self._root = "/~" if path == "/~" or path.startswith("/~/") else "/"
        self._parts = [part for part in path.removeprefix(self._root).split("/") if part]
        if self._parts[-1:] == ["**"]:
            self._parts.append("*")
        self._base = pattern.join(self._root)
        self._directories_only = pattern.trailing_slash
        self._places: deque[tuple[RemoteURL, _Numbers]] = deque()

    def run(self) -> Iterator[tuple[RemoteURL, Stat]]:
        self._enter(self._base, frozenset([0]))
        asked: deque[tuple[RemoteURL, _Numbers, Future[Any]]] = deque()
        while self._places or asked:
            while self._places and len(asked) < LISTINGS_AT_ONCE:
                url, numbers = self._places.popleft()
                ask = self._engine.scandir if numbers else self._engine.stat
                asked.append((url, numbers, ask(url)))
            url, numbers, answer = asked.popleft()
            if numbers:
                yield from self._search(url, numbers, _listed(answer))
            else:
                yield from self._found(url, _stat_of(answer))

    def _enter(self, url: RemoteURL, numbers: _Numbers) -> None:
        """Go on in a directory; where one name only is meant, there is nothing to list."""
        while len(numbers) == 1:
            (number,) = numbers
            name = _literal(self._parts[number]) if number < len(self._parts) else None
            if name is None:
                break
            url, numbers = url.below(name), frozenset([number + 1])
        if numbers == {len(self._parts)}:
            self._places.append((url, frozenset()))
            return
        closed = set(numbers)
        for number in numbers:
            while self._parts[number] == "**":  # it may stand for no directory at all
                number += 1
                closed.add(number)
        self._places.append((url, frozenset(closed)))

    def _search(
        self, directory: RemoteURL, numbers: _Numbers, entries: list[Entry]
    ) -> Iterator[tuple[RemoteURL, Stat]]:
        """Match what a directory holds; all links that matter are asked for at once."""
        matches: list[tuple[RemoteURL, bool, _Numbers, Stat | Future[Stat]]] = []
        for entry in sorted(entries):
            url = directory.below(entry.name)
            wanted, further = self._match(entry, numbers)
            if wanted or further:
                is_link = entry.stat.kind == "link"
                known = self._engine.stat(url) if is_link else entry.stat
                matches.append((url, wanted, further, known))
        for url, wanted, further, told in matches:
            stat = told if isinstance(told, Stat) else _stat_of(told)
            if wanted:
                yield from self._found(url, stat)
            if further and stat is not None and stat.kind == "directory":
                self._enter(url, further)

    def _match(self, entry: Entry, numbers: _Numbers) -> tuple[bool, _Numbers]:
        """Return whether an entry is meant, and which parts go on in it."""
        fitting = {number for number in numbers if _fits(entry.name, self._parts[number])}
        further = {number + 1 for number in fitting if self._parts[number] != "**"}
        if entry.stat.kind == "directory":
            further |= {number for number in fitting if self._parts[number] == "**"}
        last = len(self._parts)
        return last in further, frozenset(further - {last})

    def _found(self, url: RemoteURL, stat: Stat | None) -> Iterator[tuple[RemoteURL, Stat]]:
        if stat is not None and (stat.kind == "directory" or not self._directories_only):
            yield url, stat


def _listed(listing: Future[list[Entry]]) -> list[Entry]:
    try:
        return listing.result()
    except RemoteFileNotFound:
        return []
    except ServerRefused as error:
        if "is a file" in error.message:
            return []
        raise


def _stat_of(answer: Future[Stat]) -> Stat | None:
    try:
        return answer.result()
    except RemoteFileNotFound:
        return None


def _literal(part: str) -> str | None:
    """Return the one name that a part matches, None if there may be others."""
    return None if _MAGIC.search(_ALONE.sub("", part)) else _ALONE.sub(r"\1", part)


def _fits(name: str, part: str) -> bool:
    if name.startswith(".") and not part.startswith("."):
        return False
    return fnmatch.fnmatchcase(name, part)
