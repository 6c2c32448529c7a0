"""What the site's pages take from the program itself, so that they cannot differ from it.

A page names a part as ``{{ name }}``: `PARTS` says what stands there in the end. Results of the
benchmarks that lie in ``docs/performance`` get into the navigation by themselves.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "performance"
WIDTH = 76


def on_config(config: Any) -> Any:
    """Add the results to the navigation (mkdocs calls this)."""
    performance = next(entry["Performance"] for entry in config.nav if "Performance" in entry)
    performance += [f"performance/{page.name}" for page in results()]
    return config


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put in the parts that a page names (mkdocs calls this)."""
    return re.sub(r"\{\{ (\w+) \}\}", lambda match: PARTS[match[1]](), markdown)


def results() -> list[Path]:
    """Return the pages that the benchmarks have left."""
    return sorted(page for page in RESULTS.glob("*.md") if page.name != "index.md")


def command_line() -> str:
    """Return the help of the command and of each of its verbs."""
    from pyremotedata_core.cli.parser import make_parser

    parser = make_parser()
    return "\n\n".join(_helps(parser))


def snakemake_settings() -> str:
    """Return a table of the storage plugin's settings."""
    from snakemake_storage_plugin_pyremotedata import StorageProviderSettings

    rows = ["| setting | meaning |", "|---|---|"]
    for setting in fields(StorageProviderSettings):
        if help_text := setting.metadata.get("help"):
            value = setting.metadata.get("metavar", "N")  # the interface's own has none
            rows.append(f"| `{setting.name}` {value} | {help_text} |")
    return "\n".join(rows)


def list_of_results() -> str:
    """Return a list of links to the results, or that there are none."""
    lines = [f"- [{_title(page)}]({page.name})" for page in results()]
    return "\n".join(lines) or "No results are kept with this version; run the benchmarks below."


PARTS: dict[str, Callable[[], str]] = {
    "command_line": command_line,
    "snakemake_settings": snakemake_settings,
    "list_of_results": list_of_results,
}


def _helps(parser: argparse.ArgumentParser) -> Iterator[str]:
    yield _help(parser)
    verbs = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    for name, verb in verbs.choices.items():
        yield f"## {name}\n\n{_help(verb)}"


def _help(parser: argparse.ArgumentParser) -> str:
    # argparse would take the width of whatever terminal builds the site.
    parser.formatter_class = partial(argparse.HelpFormatter, width=WIDTH)  # type: ignore[assignment]
    return f"```text\n{parser.format_help()}```"


def _title(page: Path) -> str:
    heading = re.search(r"^# (.+)", page.read_text(), re.MULTILINE)
    return heading[1] if heading else page.stem
