"""Broker: the scheduler plugin that lets one node read a file from the archive for all."""

from __future__ import annotations

import logging
from collections.abc import Hashable
from typing import Any

from distributed.diagnostics.plugin import SchedulerPlugin

from .ledger import Ledger, Word

_log = logging.getLogger(__name__)

JOIN = "pyremotedata_join"  # a worker's question to the scheduler
ASK = "pyremotedata-ask"  # in the stream from a worker
TELL = "pyremotedata-tell"  # in the stream to a worker


class Broker(SchedulerPlugin):
    """Hears what files the workers want, and tells each where to get them.

    The workers' plugin installs it. Without it they read from the archive, each node for itself.

    Parameters
    ----------
    archive_reads : int
        How many files the whole cluster reads from the archive at a time.
    """

    name = "pyremotedata-broker"

    def __init__(self, archive_reads: int) -> None:
        self.ledger = Ledger(archive_reads)
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

    async def join(self, worker: str, node: str) -> int:
        """Take in a worker; return how many nodes there are."""
        self.ledger.join(worker, node)
        self._tell_nodes()
        return self.ledger.nodes

    def ask(self, worker: str, what: str, file: Hashable, **more: Any) -> None:
        """Hear a worker, in its stream; whatever is wrong with it must not end the stream."""
        try:
            if what == "want":
                words = self.ledger.want(worker, _hashable(file), **more)
            else:
                words = self.ledger.ended(worker, _hashable(file), **more)
            self._tell(words)
        except Exception:
            _log.exception("cannot serve %s, which asks for %s", worker, file)

    def add_worker(self, scheduler: Any, worker: str) -> None:  # noqa: ARG002
        """Tell a worker that joined before it had a stream how many nodes there are."""
        if worker in self.ledger.workers:
            self._send(worker, {"what": "nodes", "nodes": self.ledger.nodes})

    def remove_worker(self, scheduler: Any, worker: str, **_: Any) -> None:  # noqa: ARG002
        """Let others bring what a worker was bringing that has gone."""
        words = self.ledger.leave(worker)
        self._tell_nodes()
        self._tell(words)

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


def _hashable(file: Any) -> Hashable:
    return tuple(file) if isinstance(file, list) else file
