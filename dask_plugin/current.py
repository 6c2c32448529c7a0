"""Where a handle is opened: on which worker, for which task, by which stager.

In a task on a worker with the plugin, the worker's `WorkerStaging` has the file and keeps it until
the task ends. Anywhere else the process's own stager brings it, and the handle keeps it.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from pyremotedata_core import ConnectionSettings, Lease, RemoteChanged, RemoteURL, Stager, Stat
from pyremotedata_core.futures import wait_for
from pyremotedata_core.stager import shared_stager

if TYPE_CHECKING:
    from .remotefile import RemoteFile
    from .staging import WorkerStaging
    from .wishes import Counts

_ON_LOOP = (
    "what runs on the worker's event loop (a coroutine task, a function for client.run) must not"
    " wait for a file there: make it a coroutine function decorated with dask_plugin.local, or use"
    " await asyncio.to_thread(...)"
)
TOPIC = "pyremotedata"  # of all events
# One for each worker of this process that has the plugin; more than one in clusters of threads.
_stagings: weakref.WeakKeyDictionary[Any, WorkerStaging] = weakref.WeakKeyDictionary()
_enlisting = threading.Lock()  # workers may come while other threads look through them


def enlist(worker: Any, staging: WorkerStaging) -> None:
    """Have the handles that are opened on a worker served by its staging."""
    with _enlisting:
        _stagings[worker] = staging


def dismiss(worker: Any) -> None:
    """Undo `enlist`."""
    with _enlisting:
        _stagings.pop(worker, None)


def _enlisted() -> list[tuple[Any, WorkerStaging]]:
    with _enlisting:
        return list(_stagings.items())


def _begin_in_child() -> None:
    global _enlisting
    _enlisting = threading.Lock()
    for _, staging in _enlisted():
        staging.begin_in_child()


os.register_at_fork(after_in_child=_begin_in_child)


def staging_of(worker: Any) -> WorkerStaging | None:
    """Return the staging of a worker."""
    return _stagings.get(worker)


def is_shared(staging: WorkerStaging) -> bool:
    """Whether a worker of this process uses the stager of a staging, which may be dismissed."""
    return any(staging.shares_stager(other) for _, other in _enlisted())


def counts() -> list[Counts]:
    """Return what staging has cost on each worker of this process."""
    return [staging.counts() for _, staging in _enlisted()]


def announce(handle: RemoteFile) -> None:
    """Tell the workers of this process that a handle has come out of a pickle."""
    for _, staging in _enlisted():
        staging.arrived(handle)


def open_here(handle: RemoteFile) -> Lease:
    """Return the lease with which the code that runs now uses a file; wait for the file."""
    worker, staging, key = _here()
    if staging is not None and key is not None:
        return staging.claim(key, [handle])[0]
    if handle._lease is None:
        lease = _bring([handle], [handle.expected], worker, staging)[0]
        object.__setattr__(handle, "_lease", lease)
    assert handle._lease is not None
    return handle._lease


def hold_here(handles: Sequence[RemoteFile]) -> list[Lease]:
    """Return leases that no task's end releases; wait for the files, fetched all at once."""
    worker, staging, key = _here()
    expected = [handle.expected for handle in handles]
    if staging is not None and key is not None:  # what was fetched ahead is used, and counted
        expected = [lease.stat for lease in staging.claim(key, handles)]
    return _bring(handles, expected, worker, staging)


def lend_here(
    settings: ConnectionSettings, url: RemoteURL, stat: Stat | None
) -> Future[Lease] | None:
    """Lend the fsspec file system a file of the node's cache; see `pyremotedata_core`'s lending.

    A task's file is used and counted as if a handle had opened it. What is not known of it the
    server is asked now, as a file system's user expects. None where nothing stages files, for what
    is no file, for another account than the plugin's, and on a worker's event loop, which must not
    wait, unless the file is there; xarray opens files while it is unpickled.
    """
    from .remotefile import RemoteFile

    worker, staging, key = _here()
    if not _stagings:
        return None
    stager = _stager(staging)
    if _account(stager.settings, url) != _account(settings, url):
        return None
    if _is_on_loop(worker):
        return _lend_at_once(stager, url, stat)
    found = stat if stat is not None else wait_for(stager.stat(url, anew=True))
    if found.kind != "file":
        return None
    if staging is not None and key is not None:
        if stat is not None:
            handle = RemoteFile(str(url), stat.size, stat.mtime)
        else:
            handle = staging.handle_on(key, str(url), found)
        return stager.stage(url, expect=staging.claim(key, [handle])[0].stat)
    lent = stager.stage(url, expect=stat)
    if (staging := staging or _any_staging()) is not None:
        lent.add_done_callback(staging.note_lent)
    return lent


def _lend_at_once(stager: Stager, url: RemoteURL, stat: Stat | None) -> Future[Lease] | None:
    """Lend a file that is in the cache; have any other one fetched for the next who asks."""
    if stat is None:
        return None
    found = stager.find(url, stat)
    if found is None:
        stager.stage(url, expect=stat, background=True).add_done_callback(release_result)
        return None
    lent: Future[Lease] = Future()
    lent.set_result(found)
    return lent


def _account(settings: ConnectionSettings, url: RemoteURL) -> tuple[object, ...]:
    """Return what decides as whom files of a server are read."""
    to = settings.for_url(url)
    return to.username, to.host, to.port, to.ssh_config, to.ssh_key, to.password


def changed(handle: RemoteFile) -> RemoteChanged:
    """Return the error of a file that is not the one which its handle describes."""
    known = f"of {handle.size} bytes and mtime {handle.mtime} that the handle names"
    return RemoteChanged(f"is not the file {known}: make the handle anew", handle.url)


def check(handle: RemoteFile, stat: Stat) -> None:
    """Compare what a file is with what its handle says.

    Raises
    ------
    RemoteChanged
    """
    for name, known, found in (
        ("size", handle.size, stat.size),
        ("mtime", handle.mtime, stat.mtime),
    ):
        if known is not None and known != found:
            raise RemoteChanged(
                f"its {name} is {found}, not {known} as the handle says", handle.url
            )


def _bring(
    handles: Sequence[RemoteFile],
    expected: Sequence[Stat | None],
    worker: Any,
    staging: WorkerStaging | None,
) -> list[Lease]:
    stager = _stager(staging)
    futures = [
        stager.stage(handle.url, expect=stat)
        for handle, stat in zip(handles, expected, strict=True)
    ]
    try:
        if not all(future.done() for future in futures) and _is_on_loop(worker):
            raise RuntimeError(_ON_LOOP)
        leases = [_lease(handle, future) for handle, future in zip(handles, futures, strict=True)]
        for handle, lease in zip(handles, leases, strict=True):
            check(handle, lease.stat)
        return leases
    except BaseException:
        for future in futures:
            if not future.cancel():
                future.add_done_callback(release_result)
        raise


def _lease(handle: RemoteFile, future: Future[Lease]) -> Lease:
    try:
        return future.result()
    except RemoteChanged:
        if handle.expected is None:
            raise
        raise changed(handle) from None


def release_result(future: Future[Lease]) -> None:
    """Release the lease that a future ends with, if it does."""
    if not future.cancelled() and future.exception() is None:
        future.result().release()


def stager_here() -> tuple[Stager, WorkerStaging | None]:
    """Return the stager that serves the code that runs now, and the worker's staging.

    Raises
    ------
    RuntimeError
        On a worker's event loop, which must not wait.
    """
    worker, staging, _ = _here()
    if _is_on_loop(worker):
        raise RuntimeError(_ON_LOOP)
    return _stager(staging), staging


def _stager(staging: WorkerStaging | None) -> Stager:
    staging = staging or _any_staging()
    return staging.stager if staging is not None else shared_stager()


def _any_staging() -> WorkerStaging | None:
    """Return what serves a thread that a task has started, with the plugin's settings."""
    return next((staging for _, staging in _enlisted()), None)


def _here() -> tuple[Any, WorkerStaging | None, Any]:
    """Return the worker, its staging and the task's key, None for what is not there."""
    module = sys.modules.get("distributed.worker")
    if module is None:
        return None, None, None
    try:
        worker = module.get_worker()
    except ValueError:
        return None, None, None
    state = module.thread_state
    # An actor's method has a name for a key: no task of this name would ever end.
    key = None if getattr(state, "actor", False) else getattr(state, "key", None)
    return worker, _stagings.get(worker), key


def _is_on_loop(worker: Any) -> bool:
    """Whether this thread runs a worker's event loop, if only to unpickle what comes."""
    try:
        running = asyncio.get_running_loop()
    except RuntimeError:  # none runs in this thread
        return False
    workers = [*(enlisted for enlisted, _ in _enlisted()), worker]
    return any(one is not None and one.loop.asyncio_loop is running for one in workers)
