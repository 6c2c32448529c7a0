"""Which files of a tree are meant: patterns to include and to exclude."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple, TypedDict

from .errors import ConfigurationError


class TreeOptions(NamedTuple):
    """How the content of a directory is moved; see `TransferEngine.fetch_tree`."""

    compare: bool = False
    delete: bool = False
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    dry_run: bool = False
    verify: bool = False
    modes: bool = False
    size_only: bool = False


class TreeKeywords(TypedDict, total=False):
    """`TreeOptions` as a caller gives them."""

    compare: bool
    delete: bool
    include: Iterable[str]
    exclude: Iterable[str]
    dry_run: bool
    verify: bool
    modes: bool
    size_only: bool


def tree_options(given: TreeKeywords) -> TreeOptions:
    """Return the options that a caller has given; a wrong pattern is told here and now."""
    chosen = Filter(given.get("include", ()), given.get("exclude", ()))
    patterns = {"include": tuple(chosen.include), "exclude": tuple(chosen.exclude)}
    options: dict[str, Any] = {**given, **patterns}
    return TreeOptions(**options)


class Filter:
    """Decides about the files and directories of a tree by their relative paths.

    Parameters
    ----------
    include : iterable of str
        Only files that match one of these; none means all.
    exclude : iterable of str
        No file or directory that matches one of these, nor what is in such a directory.

    Notes
    -----
    ``*`` and ``?`` match within a name, ``**`` across directories, ``[abc]`` one character. A
    pattern without ``/`` is matched against names at any depth, one with ``/`` against the path
    from the top of the tree. One that ends in ``/`` is of directories, with all that is in them.
    """

    def __init__(self, include: Iterable[str] = (), exclude: Iterable[str] = ()) -> None:
        self.include, self.exclude = _listed(include), _listed(exclude)
        self._include = [_compile(one, "/.*" * one.endswith("/")) for one in self.include]
        self._exclude = [_compile(one) for one in self.exclude]
        self._exclude_files = [_compile(one) for one in self.exclude if not one.endswith("/")]

    def wants_file(self, path: str) -> bool:
        """Whether a file is meant; its directory is taken to be."""
        included = not self._include or any(one.fullmatch(path) for one in self._include)
        return included and not any(one.fullmatch(path) for one in self._exclude_files)

    def wants_directory(self, path: str) -> bool:
        """Whether a directory may hold files that are meant."""
        return not any(pattern.fullmatch(path) for pattern in self._exclude)

    def wants_path(self, path: str) -> bool:
        """Whether a file is meant, and every directory above it."""
        ends = [match.start() for match in re.finditer("/", path)]
        return self.wants_file(path) and all(self.wants_directory(path[:end]) for end in ends)

    def is_meant(self, path: str, is_directory: bool) -> bool:
        """Whether an entry may be deleted: a directory only if all that it may hold is meant."""
        if is_directory:
            return not self._include and not self._exclude
        return self.wants_file(path)


def _listed(patterns: Iterable[str]) -> list[str]:
    return [patterns] if isinstance(patterns, str) else list(patterns)


def _compile(pattern: str, more: str = "") -> re.Pattern[str]:
    body = pattern.rstrip("/").removeprefix("./")
    if not body:
        raise ConfigurationError(f"not a pattern for files: {pattern!r}")
    anchored = "/" in body
    expression = "" if anchored else "(?:.*/)?"
    for piece in re.findall(r"\*\*/|\*\*|\*|\?|\[!?\]?[^\]]*\]|.", body.lstrip("/"), re.DOTALL):
        if piece == "**/":
            expression += "(?:.*/)?"
        elif piece == "**":
            expression += ".*"
        elif piece == "*":
            expression += "[^/]*"
        elif piece == "?":
            expression += "[^/]"
        elif len(piece) > 1:
            inner = re.sub(r"([\[\\&~|])", r"\\\1", piece[1:-1])
            members = "^" + inner[1:] if inner.startswith("!") else inner
            expression += f"(?!/)[{members}]"
        else:
            expression += re.escape(piece)
    try:
        return re.compile(expression + more, re.DOTALL)
    except re.error:
        raise ConfigurationError(f"not a pattern for files: {pattern!r}") from None
