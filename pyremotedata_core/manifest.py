"""Manifest: the checksums of the files of a tree, as ``sha256sum`` and its sisters write them."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .errors import ConfigurationError, RemoteChanged, UnsafeName, from_oserror
from .filters import Filter
from .names import is_temporary
from .url import RemoteURL

_ALGORITHMS = {32: "md5", 40: "sha1", 56: "sha224", 64: "sha256", 96: "sha384", 128: "sha512"}
_LINE = re.compile(r"(\\?)([0-9a-fA-F]+) [ *](.+)")


def read_manifest(text: str, name: str) -> dict[str, str]:
    """Return the checksum of each path.

    Parameters
    ----------
    text : str
        Lines of a checksum, a space, a space or ``*``, and a path.
    name : str
        For messages.

    Raises
    ------
    ConfigurationError
        If a line is none.
    """
    found = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line.rstrip("\r"))
        if match is None or len(match[2]) not in _ALGORITHMS:
            raise ConfigurationError(f"{name}, line {number}: not a checksum and a path")
        path = re.sub(r"\\([\\nr])", _unescaped, match[3]) if match[1] else match[3]
        found[path.removeprefix("./")] = match[2].lower()
    return found


def make_manifest(path: Path, directory: str, chosen: Filter) -> None:
    """Write the SHA-256 of all files below a directory that are meant, a line each.

    Raises
    ------
    TransferError
        If a file cannot be read.
    """
    paths = sorted(_files(directory, chosen))
    try:
        digests = list(_digests(directory, [(path, "sha256") for path in paths]))
        lines = map(_line, digests, paths)
        path.write_bytes(os.fsencode("".join(lines)))
    except OSError as error:
        raise from_oserror(error, error.filename or directory) from None


def check_manifest(manifest: Path, url: RemoteURL, directory: str, chosen: Filter) -> None:
    """Compare the files below a directory that are meant with a manifest.

    Raises
    ------
    RemoteChanged
        Naming a file that is missing or different; or if the manifest lists nothing although there
        are files.
    UnsafeName
        If the manifest leads out of the directory.
    """
    expected = read_manifest(os.fsdecode(manifest.read_bytes()), str(url))
    if not expected and any(path != url.name for path in _files(directory, chosen)):
        raise RemoteChanged("lists no file: was it cut short?", str(url), retryable=False)
    meant = [path for path in expected if chosen.wants_path(path)]
    for path in meant:
        if path.startswith("/") or ".." in path.split("/"):
            raise UnsafeName(f"names a file outside of the directory: {path!r}", str(url))
    wrong = [
        (path, "stands in the manifest, but is not there")
        for path in meant
        if not os.path.isfile(os.path.join(directory, path))
    ]
    missing = dict(wrong)
    there = [(path, _ALGORITHMS[len(expected[path])]) for path in meant if path not in missing]
    try:
        for (path, kind), digest in zip(there, _digests(directory, there), strict=True):
            if digest != expected[path]:
                wrong.append((path, f"its {kind} is {digest}, in the manifest {expected[path]}"))
    except OSError as error:
        raise from_oserror(error, error.filename or directory) from None
    if wrong:
        path, why = wrong[0]
        others = f"; and {len(wrong) - 1} more files" if len(wrong) > 1 else ""
        raise RemoteChanged(f"{why}{others}", str(url.parent.below(path)), retryable=False)


def _files(directory: str, chosen: Filter) -> Iterator[str]:
    """Yield what an upload of the directory sends: see `StoreTree`."""
    root = os.path.join(os.path.realpath(directory), "")
    for folder, _, names in os.walk(directory):
        for name in names:
            local = os.path.join(folder, name)
            path = os.path.relpath(local, directory)
            if chosen.wants_path(path) and not is_temporary(name) and _is_sent(local, root):
                yield path


def _is_sent(local: str, root: str) -> bool:
    """Whether it is a file, or a link to one of the tree; to open a pipe could wait for ever."""
    within = not os.path.islink(local) or os.path.realpath(local).startswith(root)
    return within and os.path.isfile(local)


def _digests(directory: str, files: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Read several at once: the sums are computed outside of the interpreter's lock."""

    def digest(file: tuple[str, str]) -> str:
        path, algorithm = file
        with open(os.path.join(directory, path), "rb") as stream:
            return hashlib.file_digest(stream, algorithm).hexdigest()

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        yield from pool.map(digest, files)


def _line(digest: str, path: str) -> str:
    escaped = path.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    return f"{chr(92) if escaped != path else ''}{digest}  {escaped}\n"


def _unescaped(match: re.Match[str]) -> str:
    return {"n": "\n", "r": "\r"}.get(match[1], "\\")
