"""A picture of what staging has done: bytes arriving against tasks computing, over time."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any

from .current import TOPIC

STEPS = 400
SOURCES = {"archive": "from the archive", "peer": "from other nodes"}
_MIB = 2**20


def plot(client: Any, path: str | os.PathLike[str]) -> Any:
    """Draw transfers against computing over time, from the events of all workers so far.

    Parameters
    ----------
    client : distributed.Client
    path : path
        Where the picture goes; its suffix says of what kind: ``.png``, ``.svg``, ``.pdf``.

    Returns
    -------
    None
        With an asynchronous client, an awaitable of it.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    ValueError
        If there is nothing to draw: no task has opened a file, or the scheduler has forgotten it
        (it keeps as many events as ``distributed.admin.low-level-log-length`` says).
    """
    if client.asynchronous:
        return _plot(client, path)
    return draw(client.get_events(TOPIC), path)


async def _plot(client: Any, path: str | os.PathLike[str]) -> None:
    draw(await client.get_events(TOPIC), path)


def draw(events: Iterable[tuple[Any, Any]], path: str | os.PathLike[str]) -> None:
    """Draw events to a file; see `plot`."""
    known = [event for _, event in events if isinstance(event, dict)]
    opened = [event for event in known if event.get("action") == "opened"]
    computed = [event for event in known if event.get("action") == "computed"]
    if not opened and not computed:
        raise ValueError("there are no events: no task has opened a file yet")
    first = min(event["start"] for event in [*opened, *computed])
    step_s = (max(event["stop"] for event in [*opened, *computed]) - first) / STEPS or 1e-3
    times = [number * step_s for number in range(STEPS)]

    # Without pyplot: no window system, no state that the caller shares.
    figure = import_module("matplotlib.figure").Figure(figsize=(10, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    rates = [
        spread(
            [
                (event["start"] - first, event["stop"] - first, event["bytes"] / _MIB)
                for event in opened
                if event["source"] == source
            ],
            step_s,
        )
        for source in SOURCES
    ]
    above.stackplot(times, *rates, labels=list(SOURCES.values()), step="post")
    above.set_ylabel("MiB/s arriving")
    above.legend(loc="upper right")
    busy = spread(
        [
            (event["start"] - first, event["stop"] - first, event["stop"] - event["start"])
            for event in computed
        ],
        step_s,
    )
    below.stackplot(times, busy, step="post", colors=["tab:green"])
    below.set_ylabel("tasks computing")
    below.set_xlabel("seconds")
    figure.savefig(path)


def spread(spans: Sequence[tuple[float, float, float]], step_s: float) -> list[float]:
    """Return the rate, per second, in each of `STEPS` steps.

    Each span (start, stop, amount) has brought its amount evenly over its time.
    """
    amounts = [0.0] * STEPS
    for start, stop, amount in spans:
        first = min(max(int(start / step_s), 0), STEPS - 1)
        last = min(max(int(stop / step_s), first), STEPS - 1)
        for step in range(first, last + 1):
            begin, end = max(start, step * step_s), min(stop, (step + 1) * step_s)
            share = (end - begin) / (stop - start) if stop > start and last > first else 1.0
            amounts[step] += amount * max(0.0, share)
    return [amount / step_s for amount in amounts]
