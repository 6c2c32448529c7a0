"""Which transfers there were, and when: lines of JSON, and a picture of them above the jobs."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from importlib import import_module
from pathlib import Path
from typing import Any

# Each with its colour.
KINDS = {"retrieved": "tab:blue", "ahead": "tab:cyan", "stored": "tab:orange", "job": "tab:gray"}


# The reports of this process, each perhaps of several providers.
_begun: set[Path] = set()
_jobs: dict[Path, Jobs] = {}
_lock = threading.Lock()


class Report:
    """The report of one workflow, to which its main process and its cluster jobs write.

    Thread-safe. Without a path it does nothing, and where it cannot be written it warns once.

    Parameters
    ----------
    path : Path or None
        Gets a JSON object on each line.
    is_main : bool
        Whether this process begins the file anew, and adds jobs and picture in the end.
    logger : Logger
        Snakemake's: tells of jobs, and is told what goes wrong.
    """

    def __init__(self, path: Path | None, is_main: bool, logger: logging.Logger) -> None:
        self._path = path
        self._is_main = is_main
        self._warn = logger.warning
        with _lock:
            if path is not None and is_main and path not in _jobs:
                _jobs[path] = Jobs()
                logger.addHandler(_jobs[path])

    def add(self, kind: str, name: str, moved_bytes: int, seconds: float) -> None:
        """Add a transfer that has just ended; ``kind`` is one of `KINDS`."""
        path, stop = self._path, time.time()
        if path is None:
            return
        line = {"kind": kind, "name": name, "bytes": moved_bytes}
        with _lock:
            try:
                if path not in _begun:
                    _begun.add(path)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    if self._is_main:
                        path.write_text("")
                _append(path, [{**line, "start": stop - seconds, "stop": stop}])
            except OSError as error:
                self._give_up(error)

    def finish(self) -> None:
        """Add the jobs of this run and draw the picture; more than once is nothing.

        The picture stands beside the report, with the suffix ``.png``.
        """
        path, self._path = self._path, None
        if path is None or not self._is_main:
            return
        with _lock:
            if path not in _begun:
                return
            try:
                _append(path, _jobs[path].finished)
                lines = [json.loads(line) for line in path.read_text().splitlines()]
                draw(lines, path.with_suffix(".png"))
            except ImportError:
                self._warn(f"No picture of {path}: matplotlib is missing (pip install matplotlib)")
            except OSError as error:
                self._give_up(error)
            except Exception as error:  # matplotlib's are of any kind, and the run is done
                self._warn(f"No picture of {path}: {error}")

    def _give_up(self, error: Exception) -> None:
        self._warn(f"The report cannot be written: {error}")
        self._path = None


class Jobs(logging.Handler):
    """Learns of the jobs from what Snakemake logs.

    Attributes
    ----------
    finished : list of dict
    """

    def __init__(self) -> None:
        super().__init__()
        self.finished: list[dict[str, Any]] = []
        self._running: dict[Any, tuple[str, float]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Look at a log record."""
        event = str(getattr(record, "event", ""))
        if event.endswith("job_info"):
            self._running[getattr(record, "jobid", None)] = (
                str(getattr(record, "rule_name", "")),
                record.created,
            )
        elif event.endswith("job_finished"):
            name, start = self._running.pop(getattr(record, "job_id", None), ("", 0.0))
            if start:
                self.finished.append(
                    {"kind": "job", "name": name, "start": start, "stop": record.created}
                )


def _append(path: Path, lines: list[dict[str, Any]]) -> None:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    # One write at the end of the file: other processes do the same.
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def draw(lines: list[dict[str, Any]], path: Path) -> None:
    """Draw what was moved, and the jobs below it, over time.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    """
    figure = import_module("matplotlib.figure").Figure(figsize=(10, 5), layout="constrained")
    zero = min(line["start"] for line in lines)
    axes = figure.subplots()
    free_at: dict[str, list[float]] = {"transfer": [], "job": []}
    rows = []
    for line in sorted(lines, key=lambda line: line["start"]):
        group = "job" if line["kind"] == "job" else "transfer"
        rows.append((line, group, _row(free_at[group], line["start"], line["stop"])))
    for line, group, row in rows:
        axes.barh(
            -1 - row if group == "job" else row,
            line["stop"] - line["start"],
            left=line["start"] - zero,
            color=KINDS[line["kind"]],
            label=line["kind"],
        )
    axes.set_yticks([])
    axes.set_xlabel("seconds")
    axes.set_ylabel("jobs      transfers")
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    axes.legend(once.values(), once.keys(), loc="upper right")
    figure.savefig(path)


def _row(free_at: list[float], start: float, stop: float) -> int:
    """Return the first row that is free from ``start`` on, and take it."""
    for row, free in enumerate(free_at):
        if free <= start:
            free_at[row] = stop
            return row
    free_at.append(stop)
    return len(free_at) - 1
