"""What the command prints: names, entries, failures, the tally of a transfer."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import ConfigurationError, TransferError, from_plain
from ..model import Entry, TreeResult, one_line, printable


def complain(error: TransferError) -> None:
    print(f"pyremotedata: {error}", file=sys.stderr)


def each(paths: Sequence[str], act: Callable[[str], None]) -> int:
    """Do something for each path; a failure does not stop the others."""
    failed = False
    for path in paths:
        try:
            act(path)
        except ConfigurationError:
            raise
        except TransferError as error:
            complain(error)
            failed = True
    return int(failed)


def shown_name(name: str) -> str:
    # A name must not be able to forge lines or drive the terminal.
    return name if not sys.stdout.isatty() and "\n" not in name else printable(name)


def long_line(entry: Entry) -> str:
    stat = entry.stat
    letter = {"directory": "d", "link": "l", "other": "?"}.get(stat.kind, "-")
    mode = "----" if stat.mode is None else f"{stat.mode:04o}"
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(stat.mtime))
    return f"{letter} {mode} {stat.size:>14} {when} {shown_name(entry.name)}"


def plain_entry(url: str, entry: Entry) -> dict[str, Any]:
    return {"url": url, "name": entry.name, **entry.stat._asdict()}


class Tally:
    """What was moved, and what failed."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._sum = {"files": 0, "bytes": 0, "unchanged": 0, "deleted": 0}
        self._skipped: list[tuple[str, str]] = []
        self._planned: list[tuple[str, str]] = []
        self._errors: list[TransferError] = []

    def add(self, result: TreeResult) -> None:
        for key in self._sum:
            self._sum[key] += getattr(result, key)
        self._skipped += result.skipped
        self._planned += result.planned
        self._errors += [from_plain(plain) for plain in result.failed]

    def fail(self, error: TransferError) -> None:
        self._errors.append(error)

    def attempt(self, move: Callable[[], int]) -> None:
        """Count a file, or its failure."""
        try:
            size = move()
        except ConfigurationError:
            raise
        except TransferError as error:
            self.fail(error)
        else:
            self._sum["files"] += 1
            self._sum["bytes"] += size

    def attempt_tree(self, move: Callable[[], TreeResult]) -> None:
        """Count a tree, or its failure."""
        try:
            self.add(move())
        except ConfigurationError:
            raise
        except TransferError as error:
            self.fail(error)

    def end(self, options: argparse.Namespace) -> int:
        """Print the outcome; return the exit status."""
        for path, why in self._skipped:
            print(f"pyremotedata: skipped {one_line(path)}: {why}", file=sys.stderr)
        for error in self._errors:
            complain(error)
        if not options.json:
            for action, path in self._planned:
                print(f"{action} {shown_name(path)}")
        else:
            outcome = {
                **self._sum,
                "seconds": round(time.monotonic() - self._began, 3),
                "skipped": self._skipped,
                "planned": self._planned,
                "failed": [error.to_plain() for error in self._errors],
            }
            print(json.dumps(outcome, indent=1))
        return int(bool(self._errors))
