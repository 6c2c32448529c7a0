"""Broker: the scheduler plugin that lets one node read a file from the archive for all."""

from __future__ import annotations

import logging
import weakref
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

from distributed.diagnostics.plugin import SchedulerPlugin

from .current import TOPIC
from .ledger import REMEMBERED, Ledger, Word
from .remotefile import RemoteFile
from .walk import handles_in

_log = logging.getLogger(__name__)

JOIN = "pyremotedata_join"  # a worker's question to the scheduler
ASK = "pyremotedata-ask"  # in the stream from a worker
TELL = "pyremotedata-tell"  # in the stream to a worker
# So many workers of a node connect before they have something to fetch.
EARLY_PER_NODE = 2


class Broker(SchedulerPlugin):
    """Hears what files the workers want, and tells each where to get them.

    The workers' plugin installs it. Without it they read from the archive, each node for itself.

    Parameters
    ----------
    archive_reads : int
        How many files the whole cluster reads from the archive at a time.
    locality : bool
        Prefer the nodes that hold a task's files. A preference only: where those workers cannot
        take the task, or have too much to do, others do.
    """

    name = "pyremotedata-broker"

    def __init__(self, archive_reads: int, locality: bool) -> None:
        self.ledger = Ledger(archive_reads)
        self._locality = locality
        self._files: OrderedDict[str, Hashable] = OrderedDict()  # by URL: what it was last
        self._led: weakref.WeakSet[Any] = weakref.WeakSet()  # tasks that prefer some workers
        self._scheduler: Any = None
        self._told_nodes = 0

    async def start(self, scheduler: Any) -> None:
        """Listen to the workers of a scheduler."""
        self._scheduler = scheduler
        # They stay when the plugin goes: an unknown word would end a worker's stream.
        scheduler.handlers[JOIN] = self.join
        scheduler.stream_handlers[ASK] = self.ask

    async def close(self) -> None:
        """Forget the workers: a scheduler that closes has none."""
        self.ledger = Ledger(self.ledger.archive_reads)
        self._files.clear()

    async def join(self, worker: str, node: str, archive_reads: int, locality: bool) -> int:
        """Take in a worker, and its plugin's settings; return how many nodes there are."""
        self.ledger.join(worker, node)
        self.ledger.archive_reads, self._locality = archive_reads, locality
        self._tell_nodes()
        return self.ledger.nodes

    def ask(self, worker: str, what: str, file: Hashable, **more: Any) -> None:
        """Hear a worker, in its stream; whatever is wrong with it must not end the stream."""
        try:
            if what == "want":
                words = self.ledger.want(worker, _hashable(file), **more)
            elif what == "shares":
                words = self.ledger.shares(worker, _hashable(file))
            else:
                words = self.ledger.ended(worker, _hashable(file), **more)
                self._remember(_hashable(file))
            self._tell(words)
        except Exception:
            _log.exception("cannot serve %s, which asks for %s", worker, file)

    def log_event(self, topic: str, msg: Any) -> None:
        """Have some workers of each node connect to a server of which a client lists files."""
        if topic != TOPIC or not isinstance(msg, dict) or msg.get("action") != "listing":
            return
        early = self.ledger.some_of_each_node(EARLY_PER_NODE)
        for worker in early[: self.ledger.archive_reads]:
            self._send(worker, {"what": "connect", "file": msg.get("url")})

    def add_worker(self, scheduler: Any, worker: str) -> None:  # noqa: ARG002
        """Tell a worker that joined before it had a stream how many nodes there are."""
        if worker in self.ledger.workers:
            self._send(worker, {"what": "nodes", "nodes": self.ledger.nodes})

    def transition(self, key: Any, start: str, finish: str, *_: Any, **__: Any) -> None:  # noqa: ARG002
        """Let a task that no worker can take now run on any that comes.

        Dask would have it wait for those that it prefers.
        """
        if finish != "no-worker":
            return
        task = self._scheduler.tasks.get(key)
        if task in self._led and task.loose_restrictions:
            self._led.discard(task)
            task.worker_restrictions, task.loose_restrictions = None, False

    def remove_worker(self, scheduler: Any, worker: str, **_: Any) -> None:  # noqa: ARG002
        """Let others bring what a worker was bringing that has gone."""
        words = self.ledger.leave(worker)
        self._tell_nodes()
        self._tell(words)

    def update_graph(self, scheduler: Any, *, tasks: list[Any], **_: Any) -> None:
        """Have new tasks prefer the nodes that hold their files, if that is wanted."""
        if not self._locality or self.ledger.nodes < 2:
            return
        for key in tasks:
            task = scheduler.tasks.get(key)
            if task is None or task.state != "released" or _is_restricted(task):
                continue
            near = self._near(handles_in(task.run_spec))
            if near:
                task.worker_restrictions = near
                task.loose_restrictions = True
                self._led.add(task)

    def _near(self, handles: list[RemoteFile]) -> set[str]:
        """Return the workers on nodes that hold the most of some files; none if all do."""
        files = [self._files[handle.url] for handle in handles if handle.url in self._files]
        near = self.ledger.nearest((file, file[1]) for file in files if isinstance(file, tuple))
        return near if len(near) < len(self.ledger.workers) else set()

    def _remember(self, file: Hashable) -> None:
        assert isinstance(file, tuple)
        self._files[file[0]] = file
        self._files.move_to_end(file[0])
        if len(self._files) > REMEMBERED:
            self._files.popitem(last=False)

    def _tell(self, words: list[Word]) -> None:
        for worker, (what, file, source) in words:
            self._send(worker, {"what": what, "file": file, "source": source})

    def _tell_nodes(self) -> None:
        if self.ledger.nodes != self._told_nodes:
            self._told_nodes = self.ledger.nodes
            for worker in self.ledger.workers:
                self._send(worker, {"what": "nodes", "nodes": self._told_nodes})

    def _send(self, worker: str, message: dict[str, Any]) -> None:
        if worker in self._scheduler.stream_comms:
            self._scheduler.worker_send(worker, {"op": TELL, **message})


def _is_restricted(task: Any) -> bool:
    """Whether somebody has said where a task is to run."""
    return bool(task.worker_restrictions or task.host_restrictions or task.resource_restrictions)


def _hashable(file: Any) -> Hashable:
    return tuple(file) if isinstance(file, list) else file
