"""Files that questions are to be expected about: those of which Snakemake has made objects."""

from __future__ import annotations

import threading
from itertools import islice

from pyremotedata_core.url import RemoteURL

MAX_NAMES = 1_000_000


class Expected:
    """Names by directory. Thread-safe; holds at most `MAX_NAMES` names."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._names: dict[RemoteURL, set[str]] = {}
        self._below: dict[RemoteURL, dict[RemoteURL, None]] = {}
        self._count = 0

    def note(self, url: RemoteURL) -> None:
        """Note that a file may be asked about."""
        directory = url.parent
        with self._lock:
            if self._count >= MAX_NAMES:
                return
            names = self._names.get(directory)
            if names is None:
                names = self._names[directory] = set()
                self._below.setdefault(directory.parent, {})[directory] = None
            self._count += url.name not in names
            names.add(url.name)

    def count(self, directory: RemoteURL) -> int:
        """Return how many names of a directory were noted."""
        with self._lock:
            return len(self._names.get(directory, ()))

    def count_below(self, above: RemoteURL) -> int:
        """Return how many directories right below ``above`` hold names that were not taken."""
        with self._lock:
            return len(self._below.get(above, ()))

    def take(self, above: RemoteURL, at_most: int) -> list[tuple[RemoteURL, list[str]]]:
        """Return directories right below ``above`` and their names, each directory only once."""
        with self._lock:
            below = self._below.get(above, {})
            taken = list(islice(below, max(0, at_most)))
            for directory in taken:
                del below[directory]
            return [(directory, list(self._names[directory])) for directory in taken]
