"""What a benchmark leaves: a page of tables, the raw figures, and a picture."""

from __future__ import annotations

import contextlib
import json
import os
import platform
from pathlib import Path
from typing import Any

from benchmarks.charts import draw_bars


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
