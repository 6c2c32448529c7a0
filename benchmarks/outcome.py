"""What benchmarks measure in turns, and leave: a page of tables, the raw figures, and a picture."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.charts import draw_bars

T = TypeVar("T")


@dataclass
class Cell:
    """One tool on one case."""

    tool: str
    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> str:
        return f"{min(self.seconds):.2f}-{max(self.seconds):.2f}"


def in_turn(tools: Sequence[T], number: int) -> Sequence[T]:
    """Return who comes when in a round: a machine that drifts is to favour nobody."""
    return tools if number % 2 else tools[::-1]


def machine() -> str:
    """Return what it was measured on, in a few words."""
    return (
        f"{platform.machine()}, {os.cpu_count()} cores shared by client and server,"
        f" Python {platform.python_version()}"
    )


def write(
    name: Path, title: str, about: str, tables: list[str], results: list[dict[str, Any]]
) -> None:
    """Write ``NAME.md``, ``NAME.json`` and, with matplotlib, ``NAME.svg``.

    Parameters
    ----------
    title, about : str
        Heading of the page, and what was measured with.
    tables : list of str
        Markdown.
    results : list of dict
        One for each chart: ``case``, ``round_trip_ms`` and ``cells``, each of which has ``tool``
        and ``seconds``.
    """
    name.parent.mkdir(parents=True, exist_ok=True)
    head = [f"# {title}", f"{about}.", f"![The same, drawn]({name.name}.svg)"]
    name.with_suffix(".md").write_text("\n\n".join([*head, *tables]) + "\n")
    raw = {"about": about, "results": results}
    name.with_suffix(".json").write_text(json.dumps(raw, indent=1) + "\n")
    charts = {
        f"{result['case']}, {result['round_trip_ms']:g} ms": {
            cell["tool"]: cell["seconds"] for cell in result["cells"]
        }
        for result in results
    }
    with contextlib.suppress(ImportError):
        draw_bars(name.with_suffix(".svg"), charts)
