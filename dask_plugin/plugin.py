"""StagingPlugin: the worker plugin that has the files of tasks fetched ahead."""

from __future__ import annotations

import asyncio
import logging
import os
import platform
from dataclasses import fields
from itertools import chain
from typing import Any

from distributed.core import Status
from distributed.diagnostics.plugin import WorkerPlugin
from distributed.protocol.pickle import dumps

from pyremotedata_core import ConfigurationError, ConnectionSettings
from pyremotedata_core.config import parse_bytes
from pyremotedata_core.stager import Stager, shared_stager

from . import current, metrics
from .broker import JOIN, Broker
from .peers import PeerSource
from .remotefile import RemoteFile
from .staging import Opened, WorkerStaging
from .walk import handles_in

_log = logging.getLogger(__name__)

_SECRETS = ("password", "key_passphrase")
# A task in these states runs, or will: it keeps its files. "cancelled" and "resumed" tasks have
# lost their client, but their thread still runs.
_ALIVE = {
    "waiting",
    "ready",
    "constrained",
    "executing",
    "long-running",
    "cancelled",
    "resumed",
    "flight",
}
_WORKING = {Status.running, Status.paused, Status.closing_gracefully, Status.init}
_COMPUTING = {"executing", "long-running"}
_RUNNING = _COMPUTING | {"cancelled", "resumed"}
# At the most this share of the cache's budget is for files that no task has opened yet.
_AHEAD_SHARE = 4
SETTLE_S = 0.01
RETIRE_S = 1.0
JOIN_S = 10.0
SHORTEST_BAR_S = 0.005
TOPIC = "pyremotedata"


class StagingPlugin(WorkerPlugin):
    """Have the remote files of tasks fetched to the node while earlier tasks compute.

    Register it once: ``client.register_plugin(StagingPlugin())``. It serves the workers that are
    there and those that come. Without it handles work, too, but nothing is fetched ahead.

    Parameters
    ----------
    ahead_files : int
        How many files a worker fetches, and keeps, for tasks that have not opened them yet.
    ahead_bytes : int or str
        How many bytes that may be, such as ``"2 GiB"``; never more than a quarter of the
        cache's budget.
    archive_reads : int
        How many files the whole cluster reads from the archive at a time.
    locality : bool
        Have new tasks prefer nodes that hold their files already. They run elsewhere, and get
        the files there, when those have too much to do or have gone. Not for clusters that
        resize a lot: such tasks are sent to their workers at once instead of waiting at the
        scheduler.
    **settings
        Fields of `pyremotedata_core.ConnectionSettings` that are to hold on the workers, such
        as ``cache_dir``, ``cache_bytes``, ``connections``, ``ssh_config``. What is not given is
        read on each worker, from its environment and config file. Secrets always are: they
        must not pass through the scheduler.

    Raises
    ------
    ConfigurationError
        If a setting is unknown, or a secret.

    Notes
    -----
    A file is read from the archive once per cluster: the first node that wants it reads it, the
    others pull it from there, over Dask's own connections. A plugin on the scheduler, which this
    one installs, arranges that; it needs this package there. Where that fails, each node reads
    from the archive.

    Each fetch is a red bar of its task in the dashboard's task stream; each file that a task opens
    and each task that computes with files is an event, ``client.get_events("pyremotedata")``,
    which `plot` draws. Counters are on the worker's Prometheus endpoint, and in `stats`.

    A worker is sent about one task more than it has threads, so the look-ahead is one file deep
    or so. ``dask.config.set({"distributed.scheduler.worker-saturation": 2.0})`` before the
    scheduler starts makes it deeper, which helps where tasks are short.
    """

    name = "pyremotedata-staging"

    def __init__(
        self,
        *,
        ahead_files: int = 64,
        ahead_bytes: int | str = "2 GiB",
        archive_reads: int = 64,
        locality: bool = False,
        **settings: Any,
    ) -> None:
        known = {field.name for field in fields(ConnectionSettings)}
        for key in settings:
            if key in _SECRETS:
                raise ConfigurationError(
                    f"{key} must not pass through the scheduler: set"
                    f" PYREMOTEDATA_{key.upper()} or the config file on the workers"
                )
            if key not in known:
                raise ConfigurationError(f"unknown setting {key!r}")
        if archive_reads < 1:
            raise ConfigurationError(f"archive_reads is not valid: {archive_reads!r}")
        self.ahead_files = ahead_files
        self.archive_reads = archive_reads
        self.locality = locality
        try:
            self.ahead_bytes = parse_bytes(ahead_bytes)
        except (ValueError, KeyError):
            raise ConfigurationError(f"ahead_bytes is not valid: {ahead_bytes!r}") from None
        self.settings = settings
        self._worker: Any = None
        self._staging: WorkerStaging | None = None
        self._peers: PeerSource | None = None
        self._settling = False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_worker": None, "_staging": None, "_peers": None}

    async def setup(self, worker: Any) -> None:
        """Take up work on a worker. Wrong settings fail with the first file."""
        self._worker = worker
        self._staging = WorkerStaging(
            self._make_stager, self.ahead_files, self.ahead_bytes, self._tell
        )
        current.enlist(worker, self._staging)
        metrics.expose(current.counts)
        for task in worker.state.tasks.values():
            if task.state in ("waiting", "ready", "constrained"):
                handles = chain(handles_in(task.run_spec), self._handles_before(task))
                self._want(self._staging, task, list(handles))
        await self._join(worker, self._staging)

    def teardown(self, worker: Any) -> None:
        """Give everything back."""
        staging, self._staging = self._staging, None
        peers, self._peers = self._peers, None
        if peers is not None:
            peers.close()
        if staging is not None:
            current.dismiss(worker)
            if not current.counts():
                metrics.conceal()
            self._retire(worker, staging)

    def transition(self, key: Any, start: str, finish: str, **_: Any) -> None:
        """Follow a task; called by the worker on its event loop."""
        staging = self._staging
        if staging is None:
            return
        try:
            task = self._worker.state.tasks.get(key)
            if start in _COMPUTING and finish == "memory":
                self._tell_computed(task)
            if task is None or task.state not in _ALIVE:
                staging.end(key)
            elif finish == "waiting":
                self._want(staging, task, handles_in(task.run_spec))
            elif finish in ("ready", "constrained") and task.dependencies:
                self._want(staging, task, self._handles_before(task))
            if staging.has_arrivals and not self._settling:
                self._settling = True
                self._worker.loop.call_later(SETTLE_S, self._settle, staging)
        except Exception:  # dask would swallow it
            _log.exception("cannot follow the task %r", key)

    def _want(self, staging: WorkerStaging, task: Any, handles: list[RemoteFile]) -> None:
        if handles:
            staging.want(task.key, task.priority, handles)

    def _handles_before(self, task: Any) -> list[RemoteFile]:
        """Return the handles in the results that a task depends on, as far as in memory."""
        memory = getattr(self._worker.data, "fast", self._worker.data)
        values = [memory[one.key] for one in task.dependencies if one.key in memory]
        return handles_in(values)

    def _settle(self, staging: WorkerStaging) -> None:
        from distributed.scheduler import Scheduler

        self._settling = False
        if not Scheduler._instances:  # where there is one, whole graphs are unpickled
            staging.settle()

    def _tell_computed(self, task: Any) -> None:
        """Note, in an event, when a task that has files has computed."""
        staging = self._staging
        if task is None or staging is None or not staging.has_files(task.key):
            return
        for bar in task.startstops:
            if bar["action"] == "compute":
                event = {"action": "computed", "key": str(task.key)}
                times = {"start": bar["start"], "stop": bar["stop"]}
                self._worker.log_event(TOPIC, {**event, **times})

    def _tell(self, opened: Opened) -> None:
        """Show a file as a bar of its task in the dashboard, and as an event."""
        try:
            self._show(self._worker, opened)
        except Exception:  # the task has its file, and that is what counts
            _log.exception("cannot show how %s was fetched", opened.url)

    def _show(self, worker: Any, opened: Opened) -> None:
        start, stop = (moment + worker.scheduler_delay for moment in (opened.start, opened.stop))
        task = worker.state.tasks.get(opened.key)
        if task is not None and stop - start > SHORTEST_BAR_S:
            bar = {"action": "transfer", "start": start, "stop": stop, "source": opened.source}
            task.startstops.append(bar)
        event = {"action": "opened", **opened._asdict(), "key": str(opened.key)}
        worker.log_event(TOPIC, {**event, "start": start, "stop": stop})

    def _retire(self, worker: Any, staging: WorkerStaging) -> None:
        """Let tasks that run keep their files until they end."""
        tasks = worker.state.tasks

        def runs(key: Any) -> bool:
            return key in tasks and tasks[key].state in _RUNNING

        closing = worker.status not in _WORKING
        if not staging.close(keep=(lambda _: False) if closing else runs):
            worker.loop.call_later(RETIRE_S, self._retire, worker, staging)

    async def _join(self, worker: Any, staging: WorkerStaging) -> None:
        """Have the broker say where files come from; without one they come from the archive."""
        try:
            async with asyncio.timeout(JOIN_S):
                stager, node = await asyncio.to_thread(self._open_stager, staging)
                if stager.source is not None or self._staging is not staging:
                    return  # another worker of this process has joined
                # Listens before it joins: a word that nobody hears would end the worker's stream.
                self._peers = peers = PeerSource(worker, stager)
                broker = Broker(self.archive_reads, self.locality)
                await worker.scheduler.register_scheduler_plugin(
                    plugin=dumps(broker), name=broker.name, idempotent=True
                )
                join = getattr(worker.scheduler, JOIN)
                peers.joined(
                    await join(
                        worker=worker.address,
                        node=node,
                        archive_reads=self.archive_reads,
                        locality=self.locality,
                    )
                )
                staging.origin_of = peers.origin_of
        except Exception as error:
            _log.info("each node reads from the archive: there is no broker: %s", error)

    def _open_stager(self, staging: WorkerStaging) -> tuple[Stager, str]:
        """Return the stager, and what names its node: a cache directory on a host."""
        stager = staging.stager
        found = os.stat(stager.cache.root)
        return stager, f"{platform.node()}:{found.st_dev}:{found.st_ino}"

    def _make_stager(self) -> Stager:
        return shared_stager(ConnectionSettings.load(**self.settings))
