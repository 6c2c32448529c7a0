"""Whether hours of work leave memory, threads, descriptors and rate as they were.

``python -m benchmarks.endurance`` moves 200,000 small files and 50 GB of large ones through
`Remote.sync`, `Remote.stream` and the `Stager` under a budget of 2 GB, from an sshd of its own,
each in one long-lived process. ``--scale 0.01`` does a hundredth. Large files are sparse at the
server, and what has arrived is checked and removed, so some gigabytes of disk suffice. Twice
a second the process tree is sampled. Compared are the means of the first and the last quarter.

``--out docs/performance/endurance`` writes ``endurance.md``, ``.json`` and ``.svg`` there. Some
file systems are slow to give out again what has just been removed: ``--local /dev/shm`` leaves
them out.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from benchmarks.charts import draw_lines
from benchmarks.outcome import machine
from pyremotedata_core import ConnectionSettings, Remote
from pyremotedata_core.stager import Lease, Stager
from workflows.embedded_sshd import EmbeddedSshd, descendants

SMALL_FILES, SMALL_BYTES = 200_000, 1_000
LARGE_BYTES, LARGE_FILE_BYTES = 50 * 10**9, 250 * 10**6
FILES_PER_DIRECTORY = 1_000
BUDGET_BYTES = 2 * 10**9
AHEAD_FILES = 64
SAMPLE_S = 0.5
# The last quarter may exceed the first by so much and still be called flat.
ALLOWED = {"RSS MiB": 20.0, "threads": 2.0, "descriptors": 4.0}
ENOUGH_SAMPLES = 20
RATE_SAMPLES = 10  # that a rate is the mean of
KEPT_POINTS = 200  # of a line that is drawn
Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Sample:
    """One look at a process tree: what it has, and how far it is."""

    seconds: float
    rss_bytes: int
    threads: int
    descriptors: int
    files: int
    moved_bytes: int


class Progress:
    """Checks and counts what has arrived, and tells it on standard output."""

    def __init__(self) -> None:
        self.files = self.moved_bytes = 0
        self._told = 0.0

    def check(self, local: Path, name: str) -> None:
        """Check one file: its size, and the name it begins with."""
        size = os.stat(local).st_size
        with open(local, "rb") as file:
            if size not in (SMALL_BYTES, LARGE_FILE_BYTES) or file.readline() != stamp(name):
                raise ValueError(f"{local} is not {name}")
        self.files += 1
        self.moved_bytes += size
        if time.monotonic() > self._told + SAMPLE_S / 2:
            self._told = time.monotonic()
            print(self.files, self.moved_bytes, flush=True)


def sync(url: str, names: list[str], local: Path, progress: Progress) -> None:
    """Mirror one directory after the other."""
    with Remote(url) as remote:
        for directory in dict.fromkeys(os.path.dirname(name) for name in names):
            target = local / directory
            remote.sync(directory, target)
            for name in os.listdir(target):
                progress.check(target / name, f"{directory}/{name}")
            shutil.rmtree(target)


def stream(url: str, names: list[str], local: Path, progress: Progress) -> None:
    """Take one file after the other."""
    with Remote(url) as remote:
        paths = remote.stream(names, ahead_files=AHEAD_FILES, clear=True, directory=local)
        for (path, _), name in zip(paths, names, strict=True):
            progress.check(path, name)


def stage(url: str, names: list[str], local: Path, progress: Progress) -> None:
    """Lease one file after the other, some ahead."""
    settings = ConnectionSettings.load(cache_dir=str(local), cache_bytes=BUDGET_BYTES)
    with Stager(settings) as stager:
        waiting: deque[tuple[str, Future[Lease]]] = deque()

        def take() -> None:
            name, future = waiting.popleft()
            with future.result() as lease:
                progress.check(lease.path, name)

        ahead_bytes = 0
        for name in names:
            size = LARGE_FILE_BYTES if name.startswith("large") else SMALL_BYTES
            while waiting and ahead_bytes + size > BUDGET_BYTES // 2:
                ahead_bytes -= size
                take()
            waiting.append((name, stager.stage(f"{url}/{name}")))
            ahead_bytes += size
            if len(waiting) > AHEAD_FILES:
                ahead_bytes -= size
                take()
        while waiting:
            take()


WAYS: dict[str, Callable[[str, list[str], Path, Progress], None]] = {
    "sync": sync,
    "stream": stream,
    "stage": stage,
}


def stamp(name: str) -> bytes:
    """Return the line that a file begins with."""
    return f"{name}\n".encode()


def make_files(root: Path, scale: float) -> list[str]:
    """Make the files; return their names, the small ones first."""
    small, large = round(SMALL_FILES * scale), round(LARGE_BYTES * scale / LARGE_FILE_BYTES)
    names = [f"small/{n // FILES_PER_DIRECTORY:03}/{n:06}" for n in range(small)]
    names += [f"large/{n // 4:03}/{n:06}" for n in range(max(1, large))]
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            file.write(stamp(name))
            file.truncate(LARGE_FILE_BYTES if name.startswith("large") else SMALL_BYTES)
    return names


def measure(
    way: str, url: str, names: Path, server: EmbeddedSshd, place: Path | None
) -> list[Sample]:
    """Run one way in a process of its own; return what was seen of it."""
    reached = [0, 0]
    with tempfile.TemporaryDirectory(prefix="endurance-", dir=place) as local:
        command = [sys.executable, "-m", "benchmarks.endurance", "--way", way]
        process = subprocess.Popen(
            [*command, url, str(names), local],
            env={**os.environ, **server.environment()},
            stdout=subprocess.PIPE,
            text=True,
        )

        def read() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                reached[:] = map(int, line.split())

        reader = threading.Thread(target=read)
        reader.start()
        samples, began = [], time.monotonic()
        while True:
            try:
                process.wait(SAMPLE_S)
                break
            except subprocess.TimeoutExpired:
                samples.append(look(process.pid, time.monotonic() - began, *reached))
        reader.join()
    if process.returncode:
        sys.exit(f"{way} ended with status {process.returncode}")
    return samples


def look(pid: int, seconds: float, files: int, moved_bytes: int) -> Sample:
    """Sample a process and all below it (Linux)."""
    rss = threads = descriptors = 0
    for each in (pid, *descendants(pid)):
        try:
            status = dict(
                line.split(":\t", 1)
                for line in Path(f"/proc/{each}/status").read_text().splitlines()
                if ":\t" in line
            )
            descriptors += len(os.listdir(f"/proc/{each}/fd"))
        except OSError:
            continue  # it has just ended
        rss += int(status.get("VmRSS", "0 kB").split()[0]) * 1024
        threads += int(status["Threads"])
    return Sample(seconds, rss, threads, descriptors, files, moved_bytes)


def figures(samples: list[Sample]) -> dict[str, Points]:
    """Return what is drawn and compared: points of (minutes, value)."""
    values: dict[str, Points] = {
        "RSS MiB": [(s.seconds / 60, s.rss_bytes / 2**20) for s in samples],
        "threads": [(s.seconds / 60, s.threads) for s in samples],
        "descriptors": [(s.seconds / 60, s.descriptors) for s in samples],
        "files/s": [],
        "MB/s": [],
    }
    # Large files arrive whole: second by second their rate would be nothing, or leap.
    for before, after in zip(samples, samples[RATE_SAMPLES:], strict=False):
        took_s, minutes = after.seconds - before.seconds, after.seconds / 60
        values["files/s"].append((minutes, (after.files - before.files) / took_s))
        moved = after.moved_bytes - before.moved_bytes
        values["MB/s"].append((minutes, moved / took_s / 1e6))
    return values


def compare(values: dict[str, Points]) -> Iterator[tuple[str, float, float, str]]:
    """Yield name, mean of the first and of the last quarter, and a verdict.

    The first tenth is left out: connections and caches are filled then. A run with too few
    samples to tell yields nothing.
    """
    for name, points in values.items():
        steady = [value for _, value in points[len(points) // 10 :]]
        quarter = len(steady) // 4
        if quarter < ENOUGH_SAMPLES // 4:
            continue
        early, late = steady[:quarter], steady[-quarter:]
        first, last = statistics.mean(early), statistics.mean(late)
        if name in ALLOWED:
            # Open files come and go by the hundred: two means are that far apart by chance.
            noise = statistics.variance(early) + statistics.variance(late)
            chance = 2 * math.sqrt(noise / quarter)
            verdict = "flat" if last <= first + ALLOWED[name] + chance else "GROWS"
        else:
            verdict = "flat" if last >= 0.8 * first else "FALLS"
        yield name, first, last, verdict


def thinned(points: Points) -> Points:
    """Return a line with fewer points, each the mean of some."""
    step = len(points) // KEPT_POINTS + 1
    groups = [points[start : start + step] for start in range(0, len(points), step)]
    return [
        (round(statistics.mean(minutes), 3), round(statistics.mean(values), 2))
        for minutes, values in (zip(*group, strict=True) for group in groups)
    ]


class Outcome:
    """All that was measured: printed as it comes, and written."""

    def __init__(self, scale: float) -> None:
        self.about = (
            f"{machine()};"
            f" {SMALL_FILES * scale:,.0f} files of {SMALL_BYTES} bytes,"
            f" {LARGE_BYTES * scale / 1e9:g} GB in files of {LARGE_FILE_BYTES // 10**6} MB;"
            f" the cache may keep {BUDGET_BYTES // 10**9} GB"
        )
        self.rows: list[str] = []
        self.charts: dict[str, dict[str, Points]] = {}
        self.bad = 0

    def add(self, way: str, kind: str, samples: list[Sample]) -> None:
        """Take in one run."""
        values = figures(samples)
        values.pop("MB/s" if kind == "small" else "files/s")
        print(f"\n{way}, {kind} files: {samples[-1].seconds if samples else 0:.0f} s", flush=True)
        for name, first, last, verdict in compare(values):
            self.bad += verdict.isupper()
            print(f"  {name:12} {first:10.1f} -> {last:10.1f}  {verdict}", flush=True)
            run = f"{way} | {kind} | {samples[-1].seconds / 60:.1f}"
            self.rows.append(f"| {run} | {name} | {first:.1f} | {last:.1f} | {verdict} |")
        for name, points in values.items():
            if points:
                lines = self.charts.setdefault(f"{name} ({kind} files)", {})
                lines[way] = thinned(points)

    def write(self, name: Path) -> None:
        """Write the table, the lines as figures, and drawn if matplotlib is there."""
        name.parent.mkdir(parents=True, exist_ok=True)
        text = f"""# Endurance

{self.about}.
Sampled twice a second; compared are the means of the first and the last quarter of each run.
RSS, threads and descriptors are those of the process and all that it has started.

![The same, drawn]({name.name}.svg)

| way | files | minutes | | first quarter | last quarter | verdict |
|---|---|---|---|---|---|---|
"""
        name.with_suffix(".md").write_text(text + "\n".join(self.rows) + "\n")
        raw = {"about": self.about, "minutes_and_values": self.charts}
        name.with_suffix(".json").write_text(json.dumps(raw) + "\n")
        try:
            draw_lines(name.with_suffix(".svg"), self.charts)
        except ImportError:
            print("no plot: matplotlib is not installed", file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.endurance", description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--local", type=Path, help="where arrives what is moved")
    parser.add_argument("--out", type=Path, metavar="NAME", help="writes NAME.md, .json and .svg")
    options = parser.parse_args()
    outcome = Outcome(options.scale)
    with EmbeddedSshd() as server:
        names = make_files(server.root, options.scale)
        for kind in ("small", "large"):
            listed = server.directory / f"{kind}.json"
            listed.write_text(json.dumps([name for name in names if name.startswith(kind)]))
            for way in options.ways:
                outcome.add(way, kind, measure(way, server.url(), listed, server, options.local))
                if options.out:
                    outcome.write(options.out)
    return int(outcome.bad > 0)


def work(way: str, url: str, names: str, local: str) -> None:
    """Be the process that is measured."""
    WAYS[way](url, json.loads(Path(names).read_text()), Path(local), Progress())


if __name__ == "__main__":
    if sys.argv[1:2] == ["--way"]:
        work(*sys.argv[2:])
    else:
        sys.exit(main())
