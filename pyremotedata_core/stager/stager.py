"""The face of staging: what is asked of a file, and by whom."""

from __future__ import annotations

import atexit
import hashlib
import os
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from ..config import SECRETS, ConnectionSettings
from ..errors import ConnectionLost, RemoteChanged, TransferError, from_oserror, naming
from ..futures import error_of, pass_on, unless_forked, wait_for
from ..model import Stat
from ..url import RemoteURL
from .bringing import Bringing
from .copying import copy_file
from .daemons import Daemons
from .draft import Draft
from .lease import Lease, Pins
from .locks import Pin
from .nodecache import NodeCache, cache_key
from .place import cache_root
from .source import Source
from .staging import Request

if TYPE_CHECKING:
    from ..engine import TransferEngine

# A stat answers for so long: many tasks on one file cost one question. Missing files and
# failures are never remembered.
STAT_LASTS_S = 2.0
STEP_THREADS = 4
# A file that changes while it is fetched is looked at anew so often.
LOOKS = 2
_REMEMBERED = 4096


class Counts(NamedTuple):
    """What a `Stager` has done so far: files and bytes moved, leases without, seconds waited."""

    files: int = 0
    bytes: int = 0
    cache_hits: int = 0
    cache_bytes: int = 0
    waited_s: float = 0.0


class Stager:
    """Stages remote files in the node's cache: one copy per node, one transfer at a time.

    Parameters
    ----------
    settings : ConnectionSettings, optional
        Default: from environment and config file. ``cache_dir`` and ``cache_bytes`` say where
        and how much.
    engine : TransferEngine, optional
        What moves the bytes. Default: the process's shared engine for these settings.
    share : bool
        Whether that engine's helper serves other processes of the node, too.

    Attributes
    ----------
    when_full : set of callables
        Called, on any thread, when a file waits for room in the cache: who holds leases that it
        can do without releases them then. Must not block.
    source : Source or None
        What brings files in place of the engine; see `Source`. A forked child has none.

    Notes
    -----
    Thread-safe, fork-safe; starts threads and touches the disk with the first file.
    """

    def __init__(
        self,
        settings: ConnectionSettings | None = None,
        *,
        engine: TransferEngine | None = None,
        share: bool = False,
    ) -> None:
        self.settings = settings if settings is not None else ConnectionSettings.load()
        self.when_full: set[Callable[[], None]] = set()
        self._given_engine = engine
        self._share = share
        self._open_cache: NodeCache | None = None
        self._pins = Pins()
        self._counts: dict[str, Any] = Counts()._asdict()
        self._begin()
        _stagers.add(self)

    def stage(
        self, url: str | RemoteURL, *, expect: Stat | None = None, background: bool = False
    ) -> Future[Lease]:
        """Bring a file to the node unless it is there, and lease it.

        Parameters
        ----------
        url : str or RemoteURL
            A regular file.
        expect : Stat, optional
            What the file is known to be: saves the question.
        background : bool
            Let other transfers go first, and do not wait for room in a full cache.

        Returns
        -------
        Future of Lease
            At once; it ends within the deadlines of the engine. It fails with a
            `TransferError`: `LocalStorageFull` when budget or disk have no room for the file,
            `TransferTimeout` when the process that brings the file shows no life. Cancelling
            it stops the transfer, unless others want the file too.

        Raises
        ------
        ConfigurationError
            If it is not a URL that this project serves.
        """
        request = Request(RemoteURL.parse(url), background, LOOKS if expect is None else 0)
        stat = expect if expect is not None else self._remembered(request.url)
        # What is in the cache is leased on the caller's thread: a few calls on the local disk.
        if stat is not None and self._open_cache and self._serve(request, stat):
            return request.future
        self._awaited.add(request.future)
        if stat is None:
            self._look(request)
        else:
            self._steps.submit(self._join, request, stat)
        return request.future

    def lease(self, url: str | RemoteURL, *, expect: Stat | None = None) -> Lease:
        """Stage a file and wait for it: ``with stager.lease(url) as lease: open(lease.path)``.

        Raises
        ------
        TransferError
            As `stage`.
        """
        began = monotonic()
        try:
            return wait_for(self.stage(url, expect=expect))
        finally:
            self._count(waited_s=monotonic() - began)

    def find(self, url: str | RemoteURL, stat: Stat) -> Lease | None:
        """Lease a file if it is in the cache now; never brings it, waits for nobody.

        Raises
        ------
        TransferError
            If the cache cannot be read.
        """
        url = RemoteURL.parse(url)
        key = self.key(url, stat)
        with naming():
            pin = self._pin(key, url.name, stat)
        return self._lease(key, stat, pin, url, from_cache=True) if pin is not None else None

    def stat(self, url: str | RemoteURL, *, anew: bool = False) -> Future[Stat]:
        """Ask for a file's size and mtime; an answer is remembered for `STAT_LASTS_S` seconds.

        With ``anew`` the server is asked now, whatever is remembered.
        """
        url = RemoteURL.parse(url)
        future: Future[Stat] = Future()
        stat = None if anew else self._remembered(url)
        if stat is not None:
            future.set_result(stat)
        else:
            self._awaited.add(future)
            self._ask(url, anew=anew).add_done_callback(lambda answer: pass_on(answer, future))
        return future

    def draft(self, url: str | RemoteURL) -> Draft:
        """Return a local file to write, which then is uploaded and in the cache, too.

        Raises
        ------
        ConfigurationError
            If the URL names no file.
        """
        return Draft(self, RemoteURL.parse(url))

    def remember(self, url: RemoteURL, stat: Stat) -> str:
        """Take it that the server would answer so now; return the key of the file's entry."""
        with self._mutex:
            self._asked.pop(url, None)  # what it was before
            self._remember(url, stat)
        return self.key(url, stat)

    def key(self, url: RemoteURL, stat: Stat) -> str:
        """Return what names the content: where it is from, by which account, size and mtime."""
        to = self.settings.for_url(url)
        who = (url.scheme, to.username, to.host, to.port, self.settings.ssh_config)
        text = "\0".join(map(str, (*who, url.path, stat.mtime)))
        digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]
        return cache_key(digest, stat.size)

    def copy_out(self, lease: Lease, path: str | os.PathLike[str]) -> Path:
        """Copy a leased file to a path of its own, for a consumer that may change it.

        Shares the blocks where the file system can (reflink), else copies. Whole or absent;
        keeps the mtime, replaces an existing file. Blocks.

        Raises
        ------
        TransferError
            `LocalStorageFull` or another local failure, naming the path.
        """
        return copy_file(lease.path, Path(path), lease.stat)

    def ask_for_room(self) -> None:
        """Have every `when_full` called: a file waits for others to be released."""
        for give in list(self.when_full):
            give()

    def counts(self) -> Counts:
        """Return what this stager has done so far."""
        with self._mutex:
            return Counts(**self._counts)

    def close(self) -> None:
        """End all that is under way with an error. Leases live on."""
        self._bringing.close()

    def __enter__(self) -> Stager:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # --- what is known of the remote file ---------------------------------------------------

    def _remember(self, url: RemoteURL, stat: Stat) -> None:
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        self._known[url] = (stat, monotonic() + STAT_LASTS_S)

    def _remembered(self, url: RemoteURL) -> Stat | None:
        stat, until = self._known.get(url, (None, 0.0))
        return stat if monotonic() < until else None

    def _ask(self, url: RemoteURL, *, anew: bool = False) -> Future[Stat]:
        """Return the answer that is on its way, or ask."""
        with self._mutex:
            answer = self._asked.get(url) if not anew else None
            if answer is not None:
                return answer
            answer = self._asked[url] = Future()
        try:
            self.engine.stat(url).add_done_callback(
                unless_forked(lambda told: self._told(url, told, answer))
            )
        except Exception as error:
            failed: Future[Stat] = Future()
            failed.set_exception(error)
            self._told(url, failed, answer)
        return answer

    def _told(self, url: RemoteURL, told: Future[Stat], answer: Future[Stat]) -> None:
        with self._mutex:
            if self._asked.get(url) is answer:  # else there is a later answer, or will be
                del self._asked[url]
                if error_of(told) is None:
                    self._remember(url, told.result())
        pass_on(told, answer)

    # --- a request is served, or joins those who wait ---------------------------------------

    def _look(self, request: Request) -> None:
        self._ask(request.url).add_done_callback(
            lambda answer: self._steps.submit(self._answered, request, answer)
        )

    def _answered(self, request: Request, answer: Future[Stat]) -> None:
        error = error_of(answer)
        if error is not None:
            request.fail(error)
        else:
            self._join(request, answer.result())

    def _join(self, request: Request, stat: Stat) -> None:
        try:
            if stat.kind != "file":
                what = "a directory" if stat.kind == "directory" else "not a regular file"
                raise TransferError(f"is {what}; a file was meant", str(request.url))
            if not self._serve(request, stat):
                self._bringing.join(self.key(request.url, stat), stat, request)
        except Exception as error:
            request.fail(error)

    def _serve(self, request: Request, stat: Stat) -> bool:
        """Lease the entry if it is in the cache."""
        key = self.key(request.url, stat)
        try:
            pin = self._pin(key, request.url.name, stat)
        except OSError as error:
            request.fail(from_oserror(error))
            return True
        if pin is None:
            return False
        self._lend(request, key, stat, pin, from_cache=True)
        return True

    def _pin(self, key: str, name: str, stat: Stat) -> Pin | None:
        """Return a pin on an entry that is in the cache, counted once."""
        pin = self._pins.borrow(key, stat)
        if pin is None:
            found = self.cache.find(key, name, stat)
            pin = self._pins.add(key, found) if found else None
        return pin

    def _lend(self, request: Request, key: str, stat: Stat, pin: Pin, *, from_cache: bool) -> None:
        """Answer a request with a lease, for which the pin has been counted."""
        lease = self._lease(key, stat, pin, request.url, from_cache=from_cache)
        if from_cache:
            self._count(cache_hits=1, cache_bytes=stat.size)
        else:
            self._count(files=1, bytes=stat.size)
        if not request.succeed(lease):
            lease.release()

    def _lease(self, key: str, stat: Stat, pin: Pin, url: RemoteURL, *, from_cache: bool) -> Lease:
        def give_back(now: bool) -> None:
            if now:
                self._pins.give_back(key)
                self._bringing.wake()  # somebody may wait for the room
            else:
                self._pins.give_back_later(key)

        return Lease(pin.path, stat, url, from_cache, give_back)

    def _deny(self, request: Request, error: BaseException) -> None:
        """Answer a request with an error, unless a fresh look at the file may help."""
        if isinstance(error, RemoteChanged):
            with self._mutex:
                self._known.pop(request.url, None)
            if request.looks_left > 0:
                request.looks_left -= 1
                self._look(request)
                return
        request.fail(error)

    def _count(self, **more: float) -> None:
        with self._mutex:
            for name, number in more.items():
                self._counts[name] += number

    # --- what a process has of its own ------------------------------------------------------

    @property
    def engine(self) -> TransferEngine:
        """The engine that moves the bytes."""
        if self._given_engine is not None:
            return self._given_engine
        from ..engine import shared_engine

        return shared_engine(self.settings, share=self._share)

    @property
    def cache(self) -> NodeCache:
        """The cache on disk, made when first used, and when somebody has deleted its place."""
        cache = self._open_cache
        if cache is None or not cache.root.parent.is_dir():
            with self._opening:
                cache = self._open_cache
                if cache is None or not cache.root.parent.is_dir():
                    root = cache_root(self.settings.cache_dir)
                    budget, timeout_s = self.settings.cache_bytes, self.settings.timeout_s
                    cache = self._open_cache = NodeCache(root, budget, timeout_s)
        return cache

    def _begin(self) -> None:
        """Set up what threads share."""
        self._mutex = threading.Lock()
        self._opening = threading.Lock()
        self.source: Source | None = None
        self._known: dict[RemoteURL, tuple[Stat, float]] = {}
        self._asked: dict[RemoteURL, Future[Stat]] = {}
        self._steps = Daemons("pyremotedata-stage", STEP_THREADS)
        self._awaited: weakref.WeakSet[Future[Any]] = weakref.WeakSet()
        self._pins.begin()
        self._bringing = Bringing(self, self._pins, self._steps, self._lend, self._deny)

    def _begin_in_child(self) -> None:
        """Begin anew: the parent's threads are not here, and what they do is the parent's."""
        awaited = list(self._awaited)
        self._begin()
        for future in awaited:
            # A thread may have held its lock, and who is to be called is there.
            vars(future).update(_condition=threading.Condition(), _done_callbacks=[])
            with suppress(InvalidStateError):
                future.set_exception(
                    ConnectionLost("a forked process does not share its parent's transfers")
                )


def shared_stager(settings: ConnectionSettings | None = None, *, share: bool = False) -> Stager:
    """Return the process's one stager for these settings; closed at exit. Thread-safe.

    With ``share`` the engine's helper serves other processes of the node, too.
    """
    settings = settings if settings is not None else ConnectionSettings.load()
    with _sharing:
        # Secrets take no part in the comparison of settings, but make another login.
        key = (settings, share, *(getattr(settings, name) for name in SECRETS))
        stager = _shared.get(key)
        if stager is None:
            stager = _shared[key] = Stager(settings, share=share)
        return stager


_sharing = threading.Lock()
_shared: dict[tuple[Any, ...], Stager] = {}
_stagers: weakref.WeakSet[Stager] = weakref.WeakSet()


def _close_shared() -> None:
    for stager in list(_shared.values()):
        stager.close()


def _begin_in_child() -> None:
    global _sharing
    _sharing = threading.Lock()
    for stager in list(_stagers):
        stager._begin_in_child()


atexit.register(_close_shared)
os.register_at_fork(after_in_child=_begin_in_child)
