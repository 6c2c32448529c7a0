"""Serving: what the plugin does on one worker, from its registration to its removal."""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import threading
from itertools import chain
from typing import TYPE_CHECKING, Any

from distributed.core import Status
from distributed.protocol.pickle import dumps

from pyremotedata_core import ConnectionSettings
from pyremotedata_core.openfiles import allow_open_files
from pyremotedata_core.stager import Stager, lending, shared_stager

from . import current, metrics
from .broker import JOIN, Broker
from .peers import PeerSource
from .remotefile import RemoteFile
from .staging import WorkerStaging
from .walk import handles_in
from .wishes import Opened

if TYPE_CHECKING:
    from .plugin import StagingPlugin

_log = logging.getLogger(__name__)

# "cancelled" and "resumed" tasks have lost their client, but their thread still runs. A task in
# one of the states in `_ALIVE` runs, or will: it keeps its files.
_COMPUTING = {"executing", "long-running"}
_RUNNING = _COMPUTING | {"cancelled", "resumed"}
_ALIVE = _RUNNING | {"waiting", "ready", "constrained", "flight"}
_WORKING = {Status.running, Status.paused, Status.closing_gracefully, Status.init}
SETTLE_S = 0.01
RETIRE_S = 1.0
JOIN_S = 10.0
# A file that a task uses takes a descriptor until the task ends; the usual limit is 1024.
OPEN_FILES = 65536
SHORTEST_BAR_S = 0.005


class Serving:
    """Follows the tasks of a worker, and has their files fetched. On the worker's event loop.

    Parameters
    ----------
    worker : distributed.Worker
    options : StagingPlugin
    """

    def __init__(self, worker: Any, options: StagingPlugin) -> None:
        self._worker = worker
        self._options = options
        self._staging = WorkerStaging(
            self._make_stager, options.ahead_files, options.ahead_bytes, self._tell
        )
        self._peers: PeerSource | None = None
        self._settling = False
        self._ended = False

    async def begin(self) -> None:
        """Take up work: on the tasks that are there, and on those that come."""
        current.enlist(self._worker, self._staging)
        metrics.expose(current.counts)
        allow_open_files(OPEN_FILES)
        if self._options.filesystem:
            lending.lend = current.lend_here
        for task in self._worker.state.tasks.values():
            if task.state in ("waiting", "ready", "constrained"):
                handles = chain(self._handles_in(task.run_spec), self._handles_before(task))
                self._want(task, list(handles))
        await self._join()

    def end(self) -> None:
        """Give everything back; tasks that run keep their files until they end."""
        self._ended = True
        if self._peers is not None:
            self._peers.close()
        current.dismiss(self._worker)
        if not current.counts():
            metrics.conceal()
            lending.lend = None
        self._retire()

    def follow(self, key: Any, start: str, finish: str) -> None:
        """Follow a task from one state to another."""
        staging = self._staging
        try:
            task = self._worker.state.tasks.get(key)
            if start in _COMPUTING and finish == "memory":
                self._tell_computed(task)
            if task is None or task.state not in _ALIVE:
                staging.end(key)
            elif finish == "waiting":
                self._want(task, self._handles_in(task.run_spec))
            elif finish in ("ready", "constrained") and task.dependencies:
                self._want(task, self._handles_before(task))
            if staging.has_arrivals and not self._settling:
                self._settling = True
                self._worker.loop.call_later(SETTLE_S, self._settle)
        except Exception:  # dask would swallow it
            _log.exception("cannot follow the task %r", key)

    def _want(self, task: Any, handles: list[RemoteFile]) -> None:
        if handles:
            self._staging.want(task.key, task.priority, handles)

    def _handles_in(self, thing: Any) -> list[RemoteFile]:
        return handles_in(thing, of_readers=self._options.filesystem)

    def _handles_before(self, task: Any) -> list[RemoteFile]:
        """Return the handles in the results that a task depends on, as far as in memory."""
        memory = getattr(self._worker.data, "fast", self._worker.data)
        values = [memory[one.key] for one in task.dependencies if one.key in memory]
        return self._handles_in(values)

    def _settle(self) -> None:
        from distributed.scheduler import Scheduler

        self._settling = False
        if not Scheduler._instances:  # where there is one, whole graphs are unpickled
            self._staging.settle()

    def _tell_computed(self, task: Any) -> None:
        """Note, in an event, when a task that has files has computed."""
        if task is None or not self._staging.has_files(task.key):
            return
        for bar in task.startstops:
            if bar["action"] == "compute":
                event = {"action": "computed", "key": str(task.key)}
                times = {"start": bar["start"], "stop": bar["stop"]}
                self._worker.log_event(current.TOPIC, {**event, **times})

    def _tell(self, opened: Opened) -> None:
        """Show a file as a bar of its task in the dashboard, and as an event."""
        try:
            self._show(opened)
        except Exception:  # the task has its file, and that is what counts
            _log.exception("cannot show how %s was fetched", opened.url)

    def _show(self, opened: Opened) -> None:
        worker = self._worker
        start, stop = (moment + worker.scheduler_delay for moment in (opened.start, opened.stop))
        task = worker.state.tasks.get(opened.key)
        is_seen = opened.source != "node" or stop - start > SHORTEST_BAR_S
        if task is not None and is_seen:
            bar = {"action": "transfer", "start": start, "stop": stop, "source": opened.source}
            task.startstops.append(bar)
        event = {"action": "opened", **opened._asdict(), "key": str(opened.key)}
        worker.log_event(current.TOPIC, {**event, "start": start, "stop": stop})

    def _retire(self) -> None:
        """Let tasks that run keep their files until they end."""
        tasks = self._worker.state.tasks

        def runs(key: Any) -> bool:
            return key in tasks and tasks[key].state in _RUNNING

        closing = self._worker.status not in _WORKING
        keep = (lambda _: False) if closing else runs
        if not self._staging.close(keep, at_once=closing):
            self._worker.loop.call_later(RETIRE_S, self._retire)
        elif not closing:
            self._worker.loop.call_later(RETIRE_S, self._rest)
        elif self._worker.nanny is None:  # else the process ends; of a cluster of threads it stays
            self._rest()

    def _rest(self) -> None:
        """End the helper process, unless the plugin has been registered anew."""
        if not current.is_shared(self._staging):
            # Not in the loop's executor, which a worker that closes may have shut down.
            rest = self._staging.rest
            threading.Thread(target=rest, name="pyremotedata-rest", daemon=True).start()

    async def _join(self) -> None:
        """Have the broker say where files come from; without one they come from the archive."""
        worker, options = self._worker, self._options
        try:
            async with asyncio.timeout(JOIN_S):
                stager, node = await asyncio.to_thread(self._open_stager)
                if stager.source is not None or self._ended:
                    return  # another worker of this process has joined
                # Listens before it joins: a word that nobody hears would end the worker's stream.
                self._peers = peers = PeerSource(worker, stager)
                broker = Broker(options.archive_reads, options.locality)
                await worker.scheduler.register_scheduler_plugin(
                    plugin=dumps(broker), name=broker.name, idempotent=True
                )
                join = getattr(worker.scheduler, JOIN)
                peers.joined(
                    await join(
                        worker=worker.address,
                        node=node,
                        archive_reads=options.archive_reads,
                        locality=options.locality,
                    )
                )
                self._staging.origin_of = peers.origin_of
        except Exception as error:
            _log.info("each node reads from the archive: there is no broker: %s", error)

    def _open_stager(self) -> tuple[Stager, str]:
        """Return the stager, and what names its node: a cache directory on a host."""
        stager = self._staging.stager
        found = os.stat(stager.cache.root)
        return stager, f"{platform.node()}:{found.st_dev}:{found.st_ino}"

    def _make_stager(self) -> Stager:
        return shared_stager(ConnectionSettings.load(**self._options.settings), share=True)
