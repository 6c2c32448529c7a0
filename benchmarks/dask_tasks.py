"""Dask tasks with remote inputs, side by side: the plugin and its peers, in one run.

``python -m benchmarks.dask_tasks`` starts an sshd of its own, makes the data, and lets the ways to
read a remote file take turns, each time on a fresh cluster of worker processes with Dask's and its
own default settings. A figure is the wall time from the first listing to the last result, login
and registration of the plugin included. Each task returns a checksum of what it read, which is
compared. Quoted are median and spread.

"local files" is the floor: the same tasks on local files. A task sleeps, or counts in pure Python
for as many rounds as take that long on the idle machine. Below each table stands what the plugin is
held to, from the floor and from a transfer of the same files without Dask. ``all`` runs all cases;
``--out`` writes tables, the raw figures, and a picture.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import dask
from distributed import Client, Nanny, Scheduler, SpecCluster

from benchmarks import outcome
from benchmarks.dask_limits import (
    BEST_PEER_SHARE,
    HANDLES,
    Limits,
    handle_cost_s,
    measure_limits,
    median_limits,
    submit_s,
)
from benchmarks.dask_ways import FLOOR, OURS, WAYS, Site, Way
from benchmarks.peers import Place
from benchmarks.transfer import MIB, place_at
from workflows.embedded_sshd import EmbeddedSshd

START_TIMEOUT_S = 60
WATCH_S = 0.02
SETTLE_S = 0.5
LAG_SHARE = 0.999
COMPUTES = ("sleep", "busy")
_READ = re.compile(r'close "(.*)" bytes read (\d+)')


@dataclass(frozen=True)
class Case:
    """Tasks that read files; with one file, all tasks read that one."""

    files: int
    file_bytes: int
    tasks: int
    compute_s: float
    workers: int
    caches: int = 1
    apart: bool = False  # the workers do not know that they are on one host


CASES = {
    "100x100KB": Case(100, 100_000, 100, 0.1, 2),
    "20x5MB": Case(20, 5_000_000, 20, 0.1, 2),
    "200x20MB": Case(200, 20_000_000, 200, 0.5, 2),
    "1x200MB": Case(1, 200_000_000, 20, 0.1, 4, caches=4),
    "1x200MB-apart": Case(1, 200_000_000, 20, 0.1, 4, caches=4, apart=True),
}
_APART = """\
import os
from dask_plugin import chunks
from pyremotedata_core import sharing
chunks.boot = lambda: str(os.getpid())
sharing.place_for = lambda settings: ""
"""
DEFAULT_CASES = ["100x100KB", "20x5MB"]


@dataclass
class Cell(outcome.Cell):
    """One way on one case."""

    archive_bytes: list[int] = field(default_factory=list)
    grown_bytes: list[int] = field(default_factory=list)
    lag_s: list[float] = field(default_factory=list)


# --- a task, and what is watched beside it ------------------------------------------------------


def work(
    open_file: Callable[[Any], AbstractContextManager[BinaryIO]],
    given: Any,
    number: int,
    rounds: int,
    sleep_s: float,
) -> str:
    """Read a file, compute, and return the checksum of what was read."""
    digest = hashlib.sha256()
    with open_file(given) as file:
        while block := file.read(MIB):  # so that the memory is not that of a whole file
            digest.update(block)
    time.sleep(sleep_s)
    count_up(rounds)
    return f"{number} {digest.hexdigest()}"


def count_up(rounds: int) -> int:
    """Compute in pure Python."""
    number = 0
    for _ in range(rounds):
        number += 1
    return number


def rounds_for(seconds: float) -> int:
    """Return how many rounds take that long here."""
    tries = []
    for _ in range(5):
        began = time.thread_time()
        count_up(1_000_000)
        tries.append(time.thread_time() - began)
    return int(1_000_000 * seconds / min(tries))


def watch(dask_worker: Any) -> None:
    """Begin to note a worker's memory and the lag of its event loop."""
    import psutil

    process = psutil.Process()
    dask_worker.watched_before = dask_worker.watched_peak = process.memory_info().rss
    dask_worker.watched_ticks = []
    digest = dask_worker.digest_metric

    def noting(name: Any, value: float) -> None:
        if name == "tick-duration":
            dask_worker.watched_ticks.append(value)
        digest(name, value)

    def look() -> None:
        while True:
            rss = process.memory_info().rss
            dask_worker.watched_peak = max(dask_worker.watched_peak, rss)
            time.sleep(WATCH_S)

    dask_worker.digest_metric = noting
    # Not the tick in which this program's modules were imported.
    dask_worker.loop.call_later(SETTLE_S / 2, dask_worker.watched_ticks.clear)
    threading.Thread(target=look, daemon=True).start()


def watched(dask_worker: Any) -> tuple[int, list[float]]:
    """Return by how many bytes a worker has grown, and the lags of its event loop."""
    interval_s = dask_worker._tick_interval
    lags = [max(0.0, tick - interval_s) for tick in dask_worker.watched_ticks]
    return dask_worker.watched_peak - dask_worker.watched_before, lags


# --- the runs -----------------------------------------------------------------------------------


def main() -> None:
    """Run the chosen cases and print a table for each."""
    parser = outcome.parser(__doc__, list(CASES), DEFAULT_CASES, [0.0, 20.0])
    parser.add_argument("--compute", nargs="+", choices=COMPUTES, default=list(COMPUTES))
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    options = outcome.parsed(parser, list(CASES))
    ways = [way for way in options.ways if way != "sshfs" or shutil.which("sshfs")]
    about = f"{outcome.machine()}, Dask {dask.__version__}, {options.rounds} alternating rounds"
    measured = outcome.Outcome(options.out, "Dask tasks with remote inputs", about)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        folder = Path(name)
        log = folder / "sftp.log"
        told = f"-e -l INFO 2>>{log}"
        with EmbeddedSshd(external=True, sftp_arguments=told) as server:
            for case in options.cases:
                make_files(server.root / case, CASES[case])
            for round_trip_ms in options.round_trip_ms:
                with place_at(server, round_trip_ms, folder) as place:
                    for case in options.cases:
                        for compute in options.compute:
                            cells, limits = measure(case, compute, place, log, ways, options.rounds)
                            measured.add(
                                tell(case, compute, round_trip_ms, cells, limits),
                                case=f"{case}, {compute}",
                                round_trip_ms=round_trip_ms,
                                cells=[asdict(cell) for cell in cells],
                                limits=limits._asdict(),
                            )
        measured.add(tell_handle_costs(folder, options.rounds))


def tell_handle_costs(folder: Path, rounds: int) -> str:
    """Measure what a handle costs in a graph, and return it in words."""
    costs_s = [handle_cost_s() for _ in range(rounds)]
    with cluster(CASES["100x100KB"], folder) as client:
        submitting_s = submit_s(client)
    return (
        f"A handle costs {1e6 * statistics.median(costs_s):.0f} µs"
        f" ({1e6 * min(costs_s):.0f}-{1e6 * max(costs_s):.0f});"
        f" {HANDLES} tasks with a handle each take {submitting_s:.1f} s."
    )


def measure(
    name: str, compute: str, place: Place, log: Path, ways: list[str], rounds: int
) -> tuple[list[Cell], Limits]:
    """Let the ways take turns."""
    case = CASES[name]
    files = sorted((place.root / name).iterdir())
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    expected = [f"{n} {digests[n % case.files]}" for n in range(case.tasks)]
    sleep_s, count = (case.compute_s, 0) if compute == "sleep" else (0, rounds_for(case.compute_s))
    cells = [Cell(way) for way in ways]
    limits = []
    for number in range(rounds):
        with tempfile.TemporaryDirectory(prefix="benchmark-run-") as folder:
            limits.append(measure_limits(place, place.root / name, Path(folder)))
        for cell in outcome.in_turn(cells, number):
            log.write_text("")
            way = WAYS[cell.tool]
            with tempfile.TemporaryDirectory(prefix="benchmark-run-") as folder:
                site = Site(place, name, Path(folder))
                try:
                    run(case, way, site, partial(work, way.open), (count, sleep_s), cell, expected)
                finally:
                    if cell.tool == "sshfs":
                        subprocess.run(["fusermount", "-u", f"{folder}/mount"], check=False)
            read = sum(int(size) for _, size in _READ.findall(log.read_text()))
            cell.archive_bytes.append(read)
    return cells, median_limits(limits)


def run(
    case: Case,
    way: Way,
    site: Site,
    task: Callable[..., str],
    compute: tuple[int, float],
    cell: Cell,
    expected: list[str],
) -> None:
    """Run the tasks on a fresh cluster."""
    with cluster(case, site.folder) as client:
        client.run(watch)
        time.sleep(SETTLE_S)
        began = time.perf_counter()
        inputs = way.inputs(site, client)
        numbers = range(case.tasks)
        given = [inputs[number % case.files] for number in numbers]
        results = client.gather(
            client.map(task, given, numbers, rounds=compute[0], sleep_s=compute[1])
        )
        cell.seconds.append(time.perf_counter() - began)
        if results != expected:
            sys.exit(f"{cell.tool}: the tasks did not read what is on the server")
        grown, lags = zip(*client.run(watched).values(), strict=True)
        cell.grown_bytes.append(max(grown))
        ordered = sorted(lag for one in lags for lag in one)
        cell.lag_s.append(ordered[int(LAG_SHARE * (len(ordered) - 1))] if ordered else 0.0)


@contextmanager
def cluster(case: Case, folder: Path) -> Iterator[Client]:
    """Worker processes with one thread each, as `LocalCluster` has them, and their caches."""
    workers = {
        number: {
            "cls": Nanny,
            "options": {
                "nthreads": 1,
                "preload": [_APART] if case.apart else [],
                "env": {
                    "PYREMOTEDATA_CACHE_DIR": str(folder / f"cache-{number % case.caches}"),
                    "PYREMOTEDATA_AUTO": "yes",
                    "TMPDIR": str(folder),
                },
                "local_directory": str(folder),
                "silence_logs": logging.WARNING,
            },
        }
        for number in range(case.workers)
    }
    scheduler = {"cls": Scheduler, "options": {"host": "127.0.0.1", "dashboard": False}}
    with (
        SpecCluster(workers=workers, scheduler=scheduler, silence_logs=logging.WARNING) as started,
        Client(started, timeout=START_TIMEOUT_S) as client,
    ):
        client.wait_for_workers(case.workers, timeout=START_TIMEOUT_S)
        yield client


def tell(name: str, compute: str, round_trip_ms: float, cells: list[Cell], limits: Limits) -> str:
    """Return a table: median, spread, how the first way compares, and what it cost."""
    case = CASES[name]
    total = case.files * case.file_bytes
    first = cells[0]
    lines = [
        f"## {name}, {compute} {case.compute_s:g} s, round trip {round_trip_ms:g} ms",
        "",
        f"{case.workers} workers",
        "",
        f"| way | median s | spread s | {first.tool} takes | archive | grown MiB | lag ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for cell in cells:
        lines.append(
            f"| {cell.tool} | {cell.median:.2f} | {cell.spread}"
            f" | {first.median / cell.median:.2f}x | {max(cell.archive_bytes) / total:.2f}x"
            f" | {max(cell.grown_bytes) / MIB:.0f} | {1000 * max(cell.lag_s):.0f} |"
        )
    lines += [
        "",
        f"Without Dask: first file {limits.first_s:.2f} s, all {limits.transfer_s:.2f} s.",
    ]
    medians = {cell.tool: cell.median for cell in cells}
    if OURS in medians and FLOOR in medians:
        bound_s = limits.bound_s(medians[FLOOR])
        lines += ["", f"{OURS} takes {medians[OURS]:.2f} s of {bound_s:.2f} s that it may take."]
    peers = medians.keys() - {OURS, FLOOR}
    if OURS in medians and peers:
        best = min(peers, key=medians.__getitem__)
        share = medians[OURS] / medians[best]
        lines += ["", f"{share:.2f}x of {best}, wanted {BEST_PEER_SHARE}x at 20 ms."]
    return "\n".join(lines)


def make_files(directory: Path, case: Case) -> None:
    """Write incompressible files."""
    directory.mkdir()
    for number in range(case.files):
        (directory / f"f{number:04d}.bin").write_bytes(os.urandom(case.file_bytes))


if __name__ == "__main__":
    main()
