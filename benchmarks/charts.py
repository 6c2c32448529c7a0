"""Bars of medians, with their spreads, for the benchmarks. Takes matplotlib."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path


def draw_bars(path: Path, charts: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """Draw a chart per title: a bar for each name, as long as the median of its seconds."""
    figure = import_module("matplotlib.figure").Figure(
        figsize=(8, 2.4 * len(charts)), layout="constrained"
    )
    axes = figure.subplots(len(charts), 1, squeeze=False)[:, 0]
    for axis, (title, bars) in zip(axes, charts.items(), strict=True):
        medians = [statistics.median(seconds) for seconds in bars.values()]
        low = [median - min(bar) for median, bar in zip(medians, bars.values(), strict=True)]
        high = [max(bar) - median for median, bar in zip(medians, bars.values(), strict=True)]
        axis.barh(list(bars), medians, xerr=[low, high], capsize=3)
        axis.invert_yaxis()
        axis.set_title(title)
        axis.set_xlabel("seconds (median, spread)")
    figure.savefig(path)
