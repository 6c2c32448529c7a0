"""Queries: from what a Snakefile says to a URL and to a local path, wildcards included.

The *canonical* form of a query is ``scheme://[user@]host[:port]/path`` with the path decoded,
except for the few characters that Snakemake or a terminal would misread (`_SHIELDED`). What a
wildcard catches in a local path can therefore be put back into the query and means the same.
"""

from __future__ import annotations

import re
from functools import lru_cache
from urllib.parse import unquote_to_bytes

from snakemake_interface_storage_plugins.io import WILDCARD_REGEX, get_constant_prefix

from pyremotedata_core.errors import ConfigurationError, TransferError
from pyremotedata_core.url import PREFIX, SCHEMES, RemoteURL, normalise

# A percent sign is decoded again, braces are wildcards; the rest cannot be printed.
_SHIELDED = re.compile("[%{}\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ue000]")
_MARK = "\ue000"
_FORM = re.compile(r"(?P<server>[^/]*://[^/]*)(?P<path>/.*)?", re.S)
_PASSWORD = re.compile(r"(://[^/:@]*):[^/]*@")
# Constraints that surely match no slash: classes without one, repeated or in alternatives.
_NO_SLASH = re.compile(
    r"(?:(?:\\[wd]|\[\^[^\]\\]*/[^\]\\]*\]|\[(?:\w-\w|[\w.,+=@ ])*-?\]|[\w@=, -]|\\[.+*?|-])"
    r"(?:[*+?]|\{\d*,?\d*\})?|[()|])+"
)


def is_ours(query: str) -> bool:
    """Return whether a query has a scheme that is served here, be the rest right or wrong."""
    return str(query).partition("://")[0].lower().removeprefix(PREFIX) in SCHEMES


def why_invalid(query: str) -> str | None:
    """Return what is wrong with a query, None if nothing is."""
    try:
        _server, path = _split(query)
    except TransferError as error:
        return error.message
    if path in ("/", "/~"):
        return "it names no file; write sftp://[user@]host[:port]/path"
    return None


def canonical(query: str) -> str:
    """Return the canonical form of a query; its wildcards stay as they are.

    Raises
    ------
    ConfigurationError, UnsafeName
        If it is not a URL that the core serves.
    """
    server, path = _split(query)
    return server.server + path


@lru_cache(maxsize=65536)
def local_suffix(query: str) -> str:
    """Return the path of the local copy below the provider's prefix.

    ``[user@]host[+port][+scheme]/path``, with ``+sftp`` left out: different files have different
    paths, as no host holds ``+`` or ``=``, and what comes before the path needs no quotes in a
    shell.
    """
    server, path = _split(query)
    user, at, _host = server.server.partition("://")[2].rpartition("@")
    parts = [user + at + server.host.replace(":", "=")]
    if server.port:
        parts.append(str(server.port))
    if server.scheme != "sftp":
        parts.append(server.scheme)
    return "+".join(parts) + path


@lru_cache(maxsize=65536)
def parent_suffix(query: str) -> str | None:
    """Return the local suffix of the directory that holds a file, None for the topmost one."""
    url = to_url(query)
    return None if url.parent == url else local_suffix(from_url(url.parent))


@lru_cache(maxsize=65536)
def to_url(query: str) -> RemoteURL:
    """Return the URL of a query without wildcards."""
    return RemoteURL.parse(canonical(query))


def from_url(url: RemoteURL) -> str:
    """Return the canonical query of a URL."""
    return url.server + shield(url.path)


def constant_directory(query: str) -> RemoteURL:
    """Return the deepest directory that holds all matches of a query with wildcards."""
    prefix = get_constant_prefix(canonical(query), strip_incomplete_parts=True)
    return RemoteURL.parse(prefix)


def levels_below(query: str) -> int | None:
    """Return how many levels of directories below `constant_directory` matches can lie.

    1 means right in it; None means that a wildcard may match slashes, so any number.
    """
    query = canonical(query)
    for wildcard in WILDCARD_REGEX.finditer(query):
        constraint = wildcard["constraint"]
        if constraint is None or not _NO_SLASH.fullmatch(constraint.strip()):
            return None
    prefix = get_constant_prefix(query, strip_incomplete_parts=True)
    return WILDCARD_REGEX.sub("", query[len(prefix) :]).count("/") + 1


def shield(text: str) -> str:
    """Return a decoded path (or a part of it) as it stands in canonical queries."""
    return _SHIELDED.sub(_escape, text)


def without_password(query: str) -> str:
    """Return a query fit to be printed, whatever was written into it."""
    return _PASSWORD.sub(r"\1:***@", str(query))


@lru_cache(maxsize=65536)
def _split(query: str) -> tuple[RemoteURL, str]:
    """Return the server of a query and its canonical path."""
    form = _FORM.fullmatch(query)
    if form is None:
        raise ConfigurationError("it is not a URL; write sftp://[user@]host[:port]/path")
    if WILDCARD_REGEX.search(form["server"]):
        raise ConfigurationError("wildcards are possible in the path only")
    server = RemoteURL.parse(form["server"])
    path, wildcards = form["path"] or "/", []
    pieces, end = [], 0
    for wildcard in WILDCARD_REGEX.finditer(path):
        pieces += [shield(_decode(path[end : wildcard.start()])), _MARK]
        wildcards.append(wildcard[0])
        end = wildcard.end()
    pieces.append(shield(_decode(path[end:])))
    path = "".join(pieces)
    if "%00" in path:
        raise ConfigurationError("a path cannot hold a NUL character")
    whole = normalise(path).split(_MARK)
    if len(whole) != len(wildcards) + 1:
        raise ConfigurationError("a wildcard stands before '..', which would take it away")
    filled = (part + wildcard for part, wildcard in zip(whole, [*wildcards, ""], strict=True))
    return server, "".join(filled)


def _decode(text: str) -> str:
    try:
        raw = unquote_to_bytes(text.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        raise ConfigurationError("it holds characters that no file name can hold") from None
    return raw.decode("utf-8", "surrogateescape")


def _escape(match: re.Match[str]) -> str:
    raw = match[0].encode("utf-8", "surrogateescape")
    return "".join(f"%{byte:02X}" for byte in raw)
