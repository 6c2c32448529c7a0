"""What benchmarks measure in turns, and leave: a page of tables, the raw figures, and a picture."""

from __future__ import annotations

import argparse
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


def parser(
    about: str | None, cases: Sequence[str], usual: Sequence[str], trips_ms: Sequence[float]
) -> argparse.ArgumentParser:
    """Return what all take: cases, how often, how far away, and where the results go.

    Parameters
    ----------
    about : str
        What the help says first.
    cases, usual : sequence of str
        All that there are, and those that are run by default.
    trips_ms : sequence of float
        The round trips by default.
    """
    parser = argparse.ArgumentParser(description=about)
    told = ", ".join(["all", *cases])
    parser.add_argument("cases", nargs="*", default=usual, metavar="CASE", help=told)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--round-trip-ms", type=float, nargs="+", default=trips_ms, metavar="MS")
    parser.add_argument("--out", type=Path, metavar="NAME", help="writes NAME.md, .json and .svg")
    return parser


def parsed(parser: argparse.ArgumentParser, cases: Sequence[str]) -> argparse.Namespace:
    """Return the options that were given; an unknown case ends the program."""
    options = parser.parse_args()
    if options.cases == ["all"]:
        options.cases = cases
    if unknown := set(options.cases) - set(cases):
        parser.error(f"unknown case: {', '.join(sorted(unknown))}")
    return options


class Outcome:
    """All that was measured: printed as it comes, and written each time, as a run may be cut off.

    Parameters
    ----------
    name : Path or None
        ``NAME.md``, ``NAME.json`` and, with matplotlib, ``NAME.svg`` are written.
    title, about : str
        Heading of the page, and what was measured with.
    """

    def __init__(self, name: Path | None, title: str, about: str) -> None:
        self._name, self._title, self._about = name, title, about
        self._tables: list[str] = []
        self._results: list[dict[str, Any]] = []

    def add(self, table: str, **result: Any) -> None:
        """Take in a table (Markdown), and the figures of a chart.

        These are ``case``, ``round_trip_ms`` and ``cells``, each of which has ``tool`` and
        ``seconds``, and whatever else is to be kept.
        """
        print(f"\n{table}", flush=True)
        self._tables.append(table)
        self._results += [result] if result else []
        if self._name is not None:
            self._write(self._name)

    def _write(self, name: Path) -> None:
        name.parent.mkdir(parents=True, exist_ok=True)
        head = [f"# {self._title}", f"{self._about}.", f"![The same, drawn]({name.name}.svg)"]
        name.with_suffix(".md").write_text("\n\n".join([*head, *self._tables]) + "\n")
        raw = {"about": self._about, "results": self._results}
        name.with_suffix(".json").write_text(json.dumps(raw, indent=1) + "\n")
        charts = {
            f"{result['case']}, {result['round_trip_ms']:g} ms": {
                cell["tool"]: cell["seconds"] for cell in result["cells"]
            }
            for result in self._results
        }
        with contextlib.suppress(ImportError):
            draw_bars(name.with_suffix(".svg"), charts)
