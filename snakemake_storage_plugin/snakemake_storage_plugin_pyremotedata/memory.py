"""What is known of remote files, and for how long it may be believed.

Snakemake asks about the inputs of every ready job in every scheduling round. What exists is
believed for a minute, what is missing for a second only: another process may be making it right
now, and a stale "missing" fails a run.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from pyremotedata_core.model import Entry, Stat
from pyremotedata_core.url import RemoteURL

POSITIVE_S = 60.0
NEGATIVE_S = 1.0
MAX_NAMES = 1_000_000  # some 200 bytes each
# A listing brings about this many names for the price of one question.
NAMES_PER_QUESTION = 64
# After two such neighbours, a directory is listed at once: a question and a listing cost twice.
NEIGHBOURS = 2
SMALL = 1000
_NEVER = -math.inf


@dataclass(frozen=True, slots=True)
class Known:
    """An answer: the stat of a file, or None for a missing one, as of ``asked_at``."""

    stat: Stat | None
    asked_at: float

    def holds(self, now: float) -> bool:
        """Whether it may still be believed."""
        return now - self.asked_at < (POSITIVE_S if self.stat else NEGATIVE_S)


@dataclass(slots=True)
class _Directory:
    """Answers about the names of one directory.

    ``listed_at`` makes absent names missing, but for those that are ``unsure``: links, which say
    nothing of their targets, and what has come since.
    """

    answers: dict[str, Known] = field(default_factory=dict)
    asked: set[str] = field(default_factory=set)
    unsure: set[str] = field(default_factory=set)
    listed_at: float = _NEVER
    size: int = 0
    listable: bool = True


def listing_pays(asked: int, size: int) -> bool:
    """Whether to list a directory rather than ask about one more of its names.

    Parameters
    ----------
    asked : int
        Different names asked for since the last listing, with the one to be asked now.
    size : int
        Names in the last listing, 0 where there was none.
    """
    return asked >= 2 and asked * NAMES_PER_QUESTION >= size


class Memory:
    """Remembered answers of one provider. Thread-safe; holds at most `MAX_NAMES` names."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._directories: dict[RemoteURL, _Directory] = {}
        self._names = 0
        self._small_below: dict[RemoteURL, int] = {}
        self._found_below: dict[RemoteURL, set[RemoteURL]] = {}

    def recall(self, url: RemoteURL, now: float | None = None) -> Known | None:
        """Return what may be believed of a file, None when it must be asked for.

        Parameters
        ----------
        now : float, optional
            The monotonic time at which it is to be believed, if that is not the present: who has
            just asked may believe the answer, however long a login made it take.
        """
        now = time.monotonic() if now is None else now
        with self._lock:
            known = self._recall(url, now)
            # Nothing is below what is missing.
            while known is None and (parent := url.parent).parent != parent:
                above = self._recall(parent, now)
                if above is not None:
                    return above if above.stat is None else None
                url = parent
            return known

    def was_missing(self, directory_url: RemoteURL) -> bool:
        """Return whether a directory was missing when it was last heard of, long ago or not."""
        known = self.recall(directory_url, -math.inf)
        return known is not None and known.stat is None

    def topmost_missing(self, directory_url: RemoteURL) -> RemoteURL | None:
        """Return the highest of a directory and those above it that was missing, None if none."""
        topmost = None
        while directory_url.parent != directory_url and self.was_missing(directory_url):
            topmost, directory_url = directory_url, directory_url.parent
        return topmost

    def listing(self, directory_url: RemoteURL) -> dict[str, Stat] | None:
        """Return the names that a listing taken just now has found, None if there is none.

        None as well where it holds links, which say nothing of their targets.
        """
        with self._lock:
            directory = self._directories.get(directory_url)
            if directory is None or directory.unsure:
                return None
            if time.monotonic() - directory.listed_at >= NEGATIVE_S:
                return None
            return {name: known.stat for name, known in directory.answers.items() if known.stat}

    def should_list(self, url: RemoteURL, expected: int = 0) -> bool:
        """Note that a file must be asked for; return whether to list its directory instead.

        Parameters
        ----------
        expected : int
            Names of the directory that will probably be asked for, this one among them.
        """
        with self._lock:
            directory = self._directory(url.parent)
            directory.asked.add(url.name)
            asked = len(directory.asked)
            if directory.listed_at == _NEVER and directory.answers.keys() <= {url.name}:
                neighbours = self._small_below.get(url.parent.parent, 0)
                asked += neighbours >= NEIGHBOURS and url.parent.parent != url.parent
            if not directory.size:
                asked = max(asked, expected)
            return directory.listable and listing_pays(asked, directory.size)

    def should_list_above(self, directory_url: RemoteURL) -> bool:
        """Note that a directory had not what was asked for; return whether to list that above."""
        with self._lock:
            directory = self._directories.get(directory_url)
            if directory is not None and directory.size:
                return False  # it is there
        return self.should_list(directory_url)

    def found_below(self, above: RemoteURL) -> bool:
        """Return whether `NEIGHBOURS` directories right below had something."""
        with self._lock:
            return len(self._found_below.get(above, ())) >= NEIGHBOURS

    def has_asked(self, directory_url: RemoteURL) -> bool:
        """Return whether anything of a directory was asked for."""
        with self._lock:
            directory = self._directories.get(directory_url)
            return directory is not None and bool(directory.asked or directory.answers)

    def remember(self, url: RemoteURL, stat: Stat | None, asked_at: float) -> None:
        """Keep an answer; ``asked_at`` is the monotonic time when the question went out."""
        with self._lock:
            directory = self._directory(url.parent)
            known = directory.answers.get(url.name)
            if known is not None and known.asked_at > asked_at:
                return
            self._names += known is None
            directory.answers[url.name] = Known(stat, asked_at)
            if stat is not None:
                self._note_found(url.parent)
                self._distrust_listings_above(url)
            self._shrink()

    def remember_listing(
        self, directory_url: RemoteURL, entries: Iterable[Entry], asked_at: float
    ) -> None:
        """Keep a whole directory; an empty one for a directory that does not exist."""
        answers: dict[str, Known] = {}
        links: set[str] = set()
        for entry in entries:
            if entry.stat.kind == "link":
                links.add(entry.name)
            else:
                answers[entry.name] = Known(entry.stat, asked_at)
        with self._lock:
            directory = self._directory(directory_url)
            if directory.listed_at > asked_at:
                return
            for name, known in directory.answers.items():
                if known.asked_at > asked_at or (name in links and known.holds(asked_at)):
                    answers[name] = known
            if answers:
                self._note_found(directory_url)
            if directory.listed_at == _NEVER and 0 < len(answers) <= SMALL:
                above = directory_url.parent
                self._small_below[above] = self._small_below.get(above, 0) + 1
            self._names += len(answers) - len(directory.answers)
            self._directories[directory_url] = _Directory(
                answers, set(), links, asked_at, len(answers) + len(links)
            )
            self._shrink()

    def never_list(self, directory_url: RemoteURL) -> None:
        """Note that a directory cannot be listed, so that its files are asked for one by one."""
        with self._lock:
            self._directory(directory_url).listable = False

    def forget(self, url: RemoteURL) -> None:
        """Drop everything about a path and what lies below it."""
        below = url.path.rstrip("/") + "/"
        with self._lock:
            directory = self._directories.get(url.parent)
            if directory is not None:
                self._names -= directory.answers.pop(url.name, None) is not None
                directory.listed_at = _NEVER
            for other in [
                u
                for u in self._directories
                if (u.path + "/").startswith(below) and u.server == url.server
            ]:
                self._names -= len(self._directories.pop(other).answers)

    def _recall(self, url: RemoteURL, now: float) -> Known | None:
        directory = self._directories.get(url.parent)
        if directory is None:
            return None
        known = directory.answers.get(url.name)
        if known is not None and known.holds(now):
            return known
        # A name that the last listing did not hold.
        unlisted = Known(None, directory.listed_at)
        older = known is None or known.asked_at < directory.listed_at
        if unlisted.holds(now) and older and url.name not in directory.unsure:
            return unlisted
        return None

    def _directory(self, url: RemoteURL) -> _Directory:
        found = self._directories.get(url)
        if found is None:
            found = self._directories[url] = _Directory()
        return found

    def _note_found(self, directory_url: RemoteURL) -> None:
        found = self._found_below.setdefault(directory_url.parent, set())
        if len(found) < NEIGHBOURS:
            found.add(directory_url)

    def _distrust_listings_above(self, url: RemoteURL) -> None:
        """A file that exists has directories above it, whatever an older answer says."""
        path = [url.parent]  # from the file's directory up
        while (url := path[-1]).parent != url:
            missing_at = self._drop_that_missing(url)
            if missing_at != _NEVER:
                # While it was missing, nothing was in it, nor in what is below.
                for directory_url, entered in zip(path, [None, *path], strict=False):
                    directory = self._directory(directory_url)
                    directory.listed_at = max(directory.listed_at, missing_at)
                    if entered is not None:
                        directory.unsure.add(entered.name)
            path.append(url.parent)

    def _drop_that_missing(self, url: RemoteURL) -> float:
        """Believe no more that a directory is missing; return when that was so."""
        above = self._directories.get(url.parent)
        known = above.answers.get(url.name) if above is not None else None
        if above is None or (known is not None and known.stat is not None):
            return _NEVER
        above.unsure.add(url.name)
        if known is None:
            return above.listed_at
        self._names -= 1
        del above.answers[url.name]
        return known.asked_at

    def _shrink(self) -> None:
        while self._names > MAX_NAMES and len(self._directories) > 1:
            oldest = next(iter(self._directories))
            self._names -= len(self._directories.pop(oldest).answers)
