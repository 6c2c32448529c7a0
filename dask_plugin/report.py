"""What staging has done on the workers."""

from __future__ import annotations

from typing import Any

from . import current
from .wishes import Counts


class Report(dict[str, dict[str, float]]):
    """Counts per worker, printed as a table; the fields are those of `wishes.Counts`."""

    @property
    def total(self) -> dict[str, float]:
        """The sum over all workers."""
        return {name: sum(counts[name] for counts in self.values()) for name in Counts._fields}

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("worker", *Counts._fields)]
        for worker, counts in [*self.items(), ("total", self.total)]:
            rows.append((worker, *(_shown(counts[name]) for name in Counts._fields)))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(
                cell.rjust(width) if index else cell.ljust(width)
                for index, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        )


def stats(client: Any, workers: list[str] | None = None) -> Any:
    """Return what staging has done so far, per worker address: ``print(stats(client))``.

    Parameters
    ----------
    client : distributed.Client
    workers : list of str, optional
        Addresses; default all.

    Returns
    -------
    Report
        A dictionary from addresses to files and bytes that the worker fetched from the archive,
        that it pulled from other nodes, and that its tasks found on their node; seconds that
        tasks waited, and seconds of fetching that were hidden behind computing. Workers without
        the plugin, or that are just dying, are left out. With an asynchronous client, an
        awaitable of it.
    """
    if client.asynchronous:
        return _stats(client, workers)
    return _report(client.run(worker_counts, workers=workers, on_error="ignore"))


async def _stats(client: Any, workers: list[str] | None) -> Report:
    return _report(await client.run(worker_counts, workers=workers, on_error="ignore"))


def worker_counts(dask_worker: Any) -> dict[str, float] | None:
    """Return the counts of the worker on which this runs."""
    staging = current.staging_of(dask_worker)
    return staging.counts()._asdict() if staging is not None else None


def _report(counts: dict[str, dict[str, float] | None]) -> Report:
    return Report({worker: found for worker, found in counts.items() if found is not None})


def _shown(number: float) -> str:
    return f"{number:.2f}" if isinstance(number, float) else str(number)
