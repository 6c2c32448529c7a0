"""What the paths of a command line mean: which remote, and which files where one is a pattern."""

from __future__ import annotations

from collections.abc import Sequence

from ..engine import TransferEngine
from ..errors import RemoteFileNotFound, RemotePermissionDenied
from ..finding import find, has_magic, locate_pattern
from ..futures import wait_for
from ..model import Stat
from ..remote import Remote
from ..url import RemoteURL, looks_like_url


def chosen_remote(engine: TransferEngine, paths: Sequence[str]) -> Remote:
    """Return the configured remote, or where the URL among the paths is."""
    if all(looks_like_url(path) for path in paths) and paths:
        return Remote(RemoteURL.parse(paths[0]), engine=engine)
    return Remote(engine=engine)


def meant(remote: Remote, path: str) -> list[tuple[RemoteURL, Stat | None]]:
    """Return what a path means: itself, or all that matches it, which is known from listings.

    A file whose very name is that of the pattern is meant rather than what matches.

    Raises
    ------
    RemoteFileNotFound
        If nothing matches.
    """
    url = remote.locate(path)
    if not has_magic(path):
        return [(url, None)]
    try:
        wait_for(remote.engine.stat(url, follow=False))
        return [(url, None)]
    except (RemoteFileNotFound, RemotePermissionDenied):
        pass  # the latter of MiG, which takes no such name
    found = sorted(
        find(remote.engine, locate_pattern(remote.url, path)), key=lambda one: one[0].path
    )
    if not found:
        raise RemoteFileNotFound("nothing matches the pattern", str(url))
    return [*found]
