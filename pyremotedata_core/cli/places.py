"""Which remote the paths of a command line mean."""

from __future__ import annotations

from collections.abc import Sequence

from ..engine import TransferEngine
from ..remote import Remote
from ..url import RemoteURL, looks_like_url


def chosen_remote(engine: TransferEngine, paths: Sequence[str]) -> Remote:
    """Return the configured remote, or where the URL among the paths is."""
    if all(looks_like_url(path) for path in paths) and paths:
        return Remote(RemoteURL.parse(paths[0]), engine=engine)
    return Remote(engine=engine)
