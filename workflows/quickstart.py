"""Serve sample reads over SFTP here, run both workflows on them, check and sum up.

Started by quickstart.sh, which makes the environment. Everything happens below one temporary
directory, which goes in the end together with all processes.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from workflows import fastq, figures
from workflows.embedded_sshd import EmbeddedSshd, ServerUnavailable

HERE = Path(__file__).resolve().parent
THIN_EVERY = 20
STOP_TIMEOUT_S = 10
RUN_TIMEOUT_S = 1800
MIB = 2**20


class QuickstartFailed(RuntimeError):
    """Something did not end as it should; the message says what."""


@dataclass(frozen=True)
class Run:
    """The place of one quickstart: server, directory, and the truth about its samples."""

    server: EmbeddedSshd
    directory: Path
    cores: int
    known: dict[str, fastq.Measures]

    @property
    def remote(self) -> str:
        return self.server.url()

    def environment(self) -> dict[str, str]:
        own = {name: v for name, v in os.environ.items() if not name.startswith("PYREMOTEDATA_")}
        return {
            **own,
            **self.server.environment(),
            # Nothing of the user's own is read or filled, and nothing is left anywhere.
            "TMPDIR": str(self.directory / "tmp"),
            "PYREMOTEDATA_CACHE_DIR": str(self.directory / "cache"),
            "XDG_CONFIG_HOME": str(self.directory / "config"),
            "XDG_CACHE_HOME": str(self.directory / "xdg-cache"),
        }


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="quickstart.sh", description=__doc__.partition("\n")[0])
    parser.add_argument("--samples", type=int, default=8, help="how many samples (8)")
    parser.add_argument("--sample-mib", type=float, default=18, help="size of each (18)")
    parser.add_argument("--cores", type=int, default=2, help="jobs and workers at once (2)")
    chosen = parser.parse_args(arguments)
    if min(chosen.samples, chosen.sample_mib, chosen.cores) <= 0:
        parser.error("samples, their size and cores are numbers above 0")
    # A polite end of this process ends what it started, too.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _frame: sys.exit(128 + number))
    try:
        with prepared(chosen.samples, int(chosen.sample_mib * MIB), chosen.cores) as run:
            done = [run_snakemake(run), run_dask(run)]
    except (QuickstartFailed, ServerUnavailable) as error:
        print(f"quickstart: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print("\n" + figures.table(done))
    return 0


@contextlib.contextmanager
def prepared(samples: int, sample_bytes: int, cores: int) -> Iterator[Run]:
    """Make the sample data and start the server; end and remove both in the end."""
    with tempfile.TemporaryDirectory(prefix="pyremotedata-quickstart-") as name:
        directory = Path(name).resolve()
        needed = 4 * samples * sample_bytes
        if shutil.disk_usage(directory).free < needed:
            raise QuickstartFailed(
                f"{directory.parent} has less than {needed // MIB} MiB free; name another place"
                " in TMPDIR, or ask for less: --samples 2 --sample-mib 4"
            )
        archive = directory / "archive"
        (archive / "reads").mkdir(parents=True)
        (directory / "tmp").mkdir()
        started = time.monotonic()
        known = fastq.make_samples(archive / "reads", samples, sample_bytes)
        made = sum(path.stat().st_size for path in (archive / "reads").iterdir())
        say("data", f"{samples} samples, {made / MIB:.0f} MiB in", started)
        with EmbeddedSshd(archive) as server:
            say("server", f"sshd on 127.0.0.1:{server.port}, a key of its own")
            yield Run(server, directory, cores, known)


def run_snakemake(run: Run) -> figures.Figures:
    """Run the workflow with the real command and check what it has left on the server."""
    started = time.monotonic()
    place = run.directory / "snakemake"
    place.mkdir()
    lines = execute(
        run,
        [
            str(Path(sys.executable).parent / "snakemake"),
            *("--snakefile", str(HERE / "snakemake" / "Snakefile")),
            *("--directory", str(place)),
            *("--cores", str(run.cores)),
            *("--config", f"remote={run.remote}", f"thin_every={THIN_EVERY}"),
        ],
    )
    seconds = time.monotonic() - started
    results = run.server.root / "results"
    expect_measures(run, results / "measures.tsv")
    expect_thinned(run, results / "thinned")
    say("snakemake", f"{len(run.known)} samples measured and thinned, results right,", started)
    return figures.from_snakemake(lines, seconds)


def run_dask(run: Run) -> figures.Figures:
    """Run the tasks on a cluster of processes and check their table."""
    started = time.monotonic()
    table, report = run.directory / "dask.tsv", run.directory / "dask.json"
    execute(
        run,
        [
            sys.executable,
            str(HERE / "dask" / "measure_reads.py"),
            *(f"{run.remote}/reads", str(table)),
            *("--report", str(report)),
            *("--workers", str(run.cores)),
        ],
    )
    seconds = time.monotonic() - started
    expect_measures(run, table)
    say("dask", f"{len(run.known)} samples measured, results right,", started)
    return figures.from_dask(json.loads(report.read_text()), seconds)


def execute(run: Run, command: list[str]) -> list[tuple[float, str]]:
    """Run a program to its end; return its output, each line with the time at which it came."""
    lines: list[tuple[float, str]] = []
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=run.environment(),
        cwd=run.directory,
        start_new_session=True,
    )
    overdue = threading.Timer(RUN_TIMEOUT_S, end_group, [process])
    overdue.start()
    try:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append((time.monotonic(), line.decode(errors="replace").rstrip("\n")))
        status = process.wait()
    finally:
        overdue.cancel()
        end_group(process)
    if status:
        text = "\n".join(line for _time, line in lines[-40:])
        raise QuickstartFailed(f"{Path(command[0]).name} ended with status {status}:\n{text}")
    return lines


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a program that leads a process group, first kindly, with whatever it has started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT_S)


def expect_measures(run: Run, table: Path) -> None:
    """Compare a table with what the maker of the samples knows."""
    if not table.exists():
        raise QuickstartFailed(f"there is no {table}")
    found = fastq.read_table(table)
    if found != run.known:
        wrong = sorted(n for n in {*found, *run.known} if found.get(n) != run.known.get(n))
        raise QuickstartFailed(f"{table}: wrong measures of {', '.join(wrong)}")


def expect_thinned(run: Run, directory: Path) -> None:
    """Look whether each thinned sample has the reads that it should."""
    for name, measures in run.known.items():
        path = directory / f"{name}.fastq.gz"
        with gzip.open(path) as file:
            reads = sum(1 for _line in file) / 4
        if reads != -(-measures.reads // THIN_EVERY):
            raise QuickstartFailed(f"{path} has {reads} reads of {measures.reads}")


def say(step: str, text: str, started: float | None = None) -> None:
    took = f" {time.monotonic() - started:.1f} s" if started is not None else ""
    print(f"{step:<12} {text}{took}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
