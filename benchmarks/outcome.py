"""What a benchmark leaves: tables as Markdown, all figures as JSON, and a picture."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from importlib import import_module
from pathlib import Path
from typing import Any


def write(directory: Path, name: str, tables: str, about: dict[str, Any], results: Any) -> None:
    """Write ``NAME.md``, ``NAME.json`` and, with matplotlib, ``NAME.png``.

    Parameters
    ----------
    tables : str
        Markdown.
    about : dict
        What was measured with, beyond the machine.
    results : list of dict
        One for each case and network: ``case``, ``round_trip_ms`` and ``cells``, each of which has
        ``tool`` and ``seconds``.
    """
    directory.mkdir(parents=True, exist_ok=True)
    about = {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpus": os.cpu_count(),
        "load": os.getloadavg()[0],
        **about,
    }
    head = ", ".join(f"{key} {value}" for key, value in about.items())
    (directory / f"{name}.md").write_text(f"{head}\n{tables}")
    (directory / f"{name}.json").write_text(json.dumps({**about, "results": results}, indent=1))
    try:
        draw(results, directory / f"{name}.png")
    except ImportError:
        print("matplotlib is not installed: no picture", file=sys.stderr)


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Draw the median of each tool and case; the line on a bar reaches from best to worst.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    """
    networks = sorted({result["round_trip_ms"] for result in results})
    tools = list(dict.fromkeys(c["tool"] for result in results for c in result["cells"]))
    size = (10, 1 + 3.5 * len(networks))
    figure = import_module("matplotlib.figure").Figure(figsize=size, layout="constrained")
    all_axes = figure.subplots(len(networks), squeeze=False)[:, 0]
    for axes, network in zip(all_axes, networks, strict=True):
        here = [result for result in results if result["round_trip_ms"] == network]
        for number, tool in enumerate(tools):
            bars = [
                (place, cell["seconds"])
                for place, result in enumerate(here)
                for cell in result["cells"]
                if cell["tool"] == tool
            ]
            medians = [statistics.median(seconds) for _place, seconds in bars]
            axes.bar(
                [place + number * 0.8 / len(tools) for place, _seconds in bars],
                medians,
                width=0.8 / len(tools),
                align="edge",
                label=tool,
                yerr=[
                    [m - min(s) for m, (_place, s) in zip(medians, bars, strict=True)],
                    [max(s) - m for m, (_place, s) in zip(medians, bars, strict=True)],
                ],
            )
        names = [result["case"] for result in here]
        axes.set_xticks([place + 0.4 for place in range(len(names))], names, rotation=20)
        axes.set_ylabel("seconds")
        axes.set_yscale("log")
        axes.set_title(f"round trip {network:g} ms")
        axes.legend()
    figure.savefig(path)
