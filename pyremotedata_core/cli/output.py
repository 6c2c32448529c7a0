"""What the command prints: names, entries, failures, outcomes."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from ..errors import ConfigurationError, TransferError, from_plain
from ..model import Entry, TreeResult, one_line, printable

T = TypeVar("T")


def complain(error: TransferError) -> None:
    """Print a failure, in one line."""
    tell(str(error))


def tell(text: str) -> None:
    """Print a line for people; where that cannot be, what is done is done, and the status tells."""
    with contextlib.suppress(OSError):
        print(f"pyremotedata: {text}", file=sys.stderr)


def attempt(act: Callable[..., None], *args: Any) -> TransferError | None:
    """Do something; a failure is printed and returned, and does not stop what comes after."""
    try:
        act(*args)
    except ConfigurationError:
        raise
    except TransferError as error:
        complain(error)
        return error
    return None


def each(things: Iterable[T], act: Callable[[T], None]) -> int:
    """Attempt something for each; return the exit status."""
    failures = [attempt(act, thing) for thing in things]
    return int(any(failures))


def print_json(value: Any) -> None:
    """Print for machines."""
    print(json.dumps(value, indent=1))


@contextlib.contextmanager
def json_list() -> Iterator[Callable[[Any], None]]:
    """Give a function that prints one more value of a list for machines, however long it gets."""
    between = "["

    def add(value: Any) -> None:
        nonlocal between
        text = json.dumps(value, indent=1).replace("\n", "\n ")
        print(f"{between}\n {text}", end="")
        between = ","

    try:
        yield add
    except ConfigurationError:  # a path that is none, after others were listed
        if between == ",":
            print("\n]")
        raise
    print("[]" if between == "[" else "\n]")


def shown_name(name: str) -> str:
    """Return a name that cannot forge lines or drive the terminal."""
    return name if not sys.stdout.isatty() and "\n" not in name else printable(name)


def size_text(size: int, human: bool) -> str:
    """Return bytes as a number, or for people as 1.5K, 23M."""
    if not human or size < 1024:
        return str(size)
    power = min(6, (size.bit_length() - 1) // 10)
    value = size / 1024**power
    return f"{value:.{1 if value < 9.95 else 0}f}{' KMGTPE'[power]}"


def long_line(entry: Entry, human: bool = False) -> str:
    """Return an entry with its type, mode, size and time."""
    stat = entry.stat
    letter = {"directory": "d", "link": "l", "other": "?"}.get(stat.kind, "-")
    mode = "----" if stat.mode is None else f"{stat.mode:04o}"
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(stat.mtime))
    size = size_text(stat.size, human)
    return f"{letter} {mode} {size:>{6 if human else 14}} {when} {shown_name(entry.name)}"


def plain_entry(url: str, entry: Entry) -> dict[str, Any]:
    """Return an entry for machines."""
    return {"url": url, "name": entry.name, **entry.stat._asdict()}


def print_plan(planned: Iterable[tuple[str, str]]) -> None:
    """Print what would be done."""
    for action, path in planned:
        print(f"{action} {shown_name(path)}")


def end(result: TreeResult, began: float, options: argparse.Namespace) -> int:
    """Print the outcome of a transfer; return the exit status."""
    for path, why in result.skipped:
        tell(f"skipped {one_line(path)}: {why}")
    for plain in result.failed:
        complain(from_plain(plain))
    if options.json:
        seconds = round(time.monotonic() - began, 3)
        print_json({**result._asdict(), "seconds": seconds, "dry_run": options.dry_run})
    else:
        print_plan(result.planned)
    return int(bool(result.failed))


class Changes:
    """Changes of single files and directories: done, or only said."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._said: list[tuple[str, str]] = []
        self._failed: list[TransferError] = []

    def say(self, action: str, path: str) -> None:
        """Note a change that was made, or would be."""
        self._said.append((action, path))
        if self._options.dry_run and not self._options.json:
            print_plan([(action, path)])

    def attempt(self, change: Callable[..., None], *args: Any) -> None:
        """Do something; a failure does not stop the others."""
        if error := attempt(change, *args):
            self._failed.append(error)

    def end(self) -> int:
        """Print the outcome for machines; return the exit status."""
        if self._options.json:
            done, planned = ([], self._said) if self._options.dry_run else (self._said, [])
            failed = [error.to_plain() for error in self._failed]
            print_json({"done": done, "planned": planned, "failed": failed})
        return int(bool(self._failed))
