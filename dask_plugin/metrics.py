"""What staging costs, as counters on the worker's Prometheus endpoint."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from typing import Any

from .wishes import Counts

SOURCES = {  # the fields of `Counts` for files and bytes, by what the label says
    "archive": ("files", "archive_bytes"),
    "peer": ("peer_files", "peer_bytes"),
    "node": ("cache_files", "cache_bytes"),
    "stored": ("stored_files", "stored_bytes"),
}
LABELLED = {
    "files": "Files that came to tasks, by where from, and files stored",
    "bytes": "Bytes that came to tasks, by where from, and bytes stored",
}
SECONDS = {
    "waited_seconds": ("Time that tasks waited for their files", "waited_s"),
    "hidden_seconds": ("Time of fetching while tasks did not wait", "hidden_s"),
}


class Collector:
    """Counters of all workers in this process, for `prometheus_client`."""

    def __init__(self, counts: Callable[[], Iterable[Counts]]) -> None:
        self._counts = counts  # returns those of each worker

    def collect(self) -> Iterator[Any]:
        """Yield the metrics; called when the endpoint is asked."""
        family_of = import_module("prometheus_client.core").CounterMetricFamily
        total = sum_of(self._counts())
        for index, (name, text) in enumerate(LABELLED.items()):
            family = family_of(f"pyremotedata_{name}", text, labels=["source"])
            for source, fields in SOURCES.items():
                family.add_metric([source], getattr(total, fields[index]))
            yield family
        for name, (text, field) in SECONDS.items():
            yield family_of(f"pyremotedata_{name}", text, value=getattr(total, field))


def sum_of(counts: Iterable[Counts]) -> Counts:
    """Return the sum of counts, field by field."""
    return Counts(*map(sum, zip(Counts(), *counts, strict=True)))


_collector: Collector | None = None


def expose(counts: Callable[[], Iterable[Counts]]) -> None:
    """Show counters on this process's endpoint, if it has one. More than once is no harm."""
    global _collector
    client: Any = sys.modules.get("prometheus_client")  # loaded by the worker that has one
    if _collector is None and client is not None:
        _collector = Collector(counts)
        client.REGISTRY.register(_collector)


def conceal() -> None:
    """Undo `expose`."""
    global _collector
    collector, _collector = _collector, None
    if collector is not None:
        sys.modules["prometheus_client"].REGISTRY.unregister(collector)
