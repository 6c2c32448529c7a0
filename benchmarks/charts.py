"""Charts for the benchmarks: bars of medians with their spreads, lines over time.

Takes matplotlib.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def draw_bars(path: Path, charts: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """Draw a chart per title: a bar for each name, as long as the median of its seconds."""
    figure, panels = _panels(charts, width=8)
    for axis, bars in panels:
        medians = [statistics.median(seconds) for seconds in bars.values()]
        low = [median - min(bar) for median, bar in zip(medians, bars.values(), strict=True)]
        high = [max(bar) - median for median, bar in zip(medians, bars.values(), strict=True)]
        axis.barh(list(bars), medians, xerr=[low, high], capsize=3)
        axis.invert_yaxis()
        axis.set_xlabel("seconds (median, spread)")
    figure.savefig(path)


def draw_lines(
    path: Path, charts: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]
) -> None:
    """Draw a chart per title: a line for each name, through points of (minutes, value)."""
    figure, panels = _panels(charts, width=9)
    for axis, lines in panels:
        for name, points in lines.items():
            axis.plot(*zip(*points, strict=True), label=name, linewidth=1)
        axis.set_ylim(bottom=0)
        axis.set_xlabel("minutes")
        axis.legend(loc="lower right")
    figure.savefig(path)


def _panels(charts: Mapping[str, T], width: float) -> tuple[Any, list[tuple[Any, T]]]:
    """Return a figure, and each chart's axis below its title with what is to be drawn there."""
    size = (width, 2.4 * len(charts))
    figure = import_module("matplotlib.figure").Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(charts), 1, squeeze=False)[:, 0]
    for axis, title in zip(axes, charts, strict=True):
        axis.set_title(title)
    return figure, list(zip(axes, charts.values(), strict=True))
