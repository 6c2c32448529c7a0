"""The quickstart in small form: its own data, both workflows, the check of their results."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from workflows import fastq
from workflows.embedded_sshd import ServerUnavailable, program
from workflows.figures import behind, from_dask, from_snakemake

from .processes import processes_with

QUICKSTART = Path(__file__).resolve().parent.parent / "workflows" / "quickstart.py"
SMALL = ("--samples", "3", "--sample-mib", "1")


@pytest.fixture
def start(tmp_path):
    """Start the quickstart in an empty temporary directory; return process and mark."""
    place, mark = tmp_path / "tmp", f"QUICKSTART_TEST={tmp_path}"
    place.mkdir()
    running = []

    def run(*arguments, **environment):
        process = subprocess.Popen(
            [sys.executable, str(QUICKSTART), *SMALL, *arguments],
            cwd=tmp_path,
            env={**os.environ, "TMPDIR": str(place), **dict([mark.split("=", 1)]), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        return process

    yield run
    for process in running:
        process.kill()
        process.communicate()
    left = processes_with(mark)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, "the quickstart has left processes running"
    assert not list(place.iterdir()), "the quickstart has left files"


def test_the_quickstart_runs_both_workflows_and_sums_up(start):
    process = start()
    out, err = process.communicate(timeout=110)
    assert process.returncode == 0, out + err
    snakemake, dask = (
        line.split() for line in out.splitlines() if line.startswith(("Snakemake", "Dask"))
    )
    # Both rules read each sample, which comes once or twice; three thinned samples and the table
    # go back.
    assert int(snakemake[1]) in range(3 + 4, 6 + 4 + 1)
    assert int(dask[1]) == 3


def test_the_quickstart_leaves_nothing_when_it_is_ended_half_way(start):
    process = start("--sample-mib", "8")
    for line in process.stdout:
        if line.startswith("server"):
            break
    time.sleep(3)  # anywhere in the work
    process.terminate()
    assert process.wait(30) == 128 + signal.SIGTERM


def test_a_missing_program_is_named_with_the_way_to_install_it():
    with pytest.raises(ServerUnavailable, match=r"no-such-sshd .* apt-get install"):
        program("no-such-sshd")


def test_samples_are_the_same_each_time_and_measure_as_known(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        known = fastq.make_samples(tmp_path / name, 2, 2**20)
    path = tmp_path / "one" / "sample01.fastq.gz"
    assert path.read_bytes() == (tmp_path / "two" / "sample01.fastq.gz").read_bytes()
    assert path.stat().st_size >= 2**20
    assert fastq.measure(path, "sample01") == known["sample01"]
    assert known["sample01"] != known["sample02"]


def test_tables_read_back_as_written(tmp_path):
    measures = fastq.Measures("a", 1, 2, 3, 4, 5)
    fastq.write_table([measures], tmp_path / "t.tsv")
    assert fastq.read_table(tmp_path / "t.tsv") == {"a": measures}


def test_thinning_keeps_the_first_of_every_so_many(tmp_path):
    known = fastq.make_samples(tmp_path, 1, 1)["sample01"]
    kept = fastq.thin(tmp_path / "sample01.fastq.gz", 3, tmp_path / "thin.fastq.gz")
    assert kept == -(-known.reads // 3)
    assert fastq.measure(tmp_path / "thin.fastq.gz", "x").reads == kept


@pytest.mark.parametrize(
    ("transfers", "computing", "expected"),
    [
        ([], [(0, 1)], (0, 0)),
        ([(0, 2)], [], (2, 0)),
        ([(0, 2), (1, 3)], [(2, 5)], (3, 1)),
        ([(0, 1), (2, 3)], [(0, 0.5), (0.25, 1), (2, 2.5)], (2, 1.5)),
    ],
)
def test_seconds_that_overlap_count_once(transfers, computing, expected):
    assert behind(transfers, computing) == pytest.approx(expected)


def test_figures_are_read_from_the_plugins_lines_and_the_tools():
    lines = [
        (10.0, "Retrieved sftp://u@h:1/a: 10.0 MiB in 1.0 s (10.0 MiB/s)"),
        (10.0, "measure took 0.5 s"),
        (12.0, "Stored sftp://u@h:1/b: 512 bytes in 0.1 s (5.0 KiB/s)"),
        (13.0, "Retrieved sftp://u@h:1/c d: 20.0 MiB fetched ahead"),
        (13.0, "Finished jobid: 1"),
    ]
    figures = from_snakemake(lines, 20.0)
    assert (figures.files, figures.moved_bytes) == (3, 30 * 2**20 + 512)
    assert figures.transfer_s == pytest.approx(3.3, rel=1e-3)
    assert figures.hidden == pytest.approx(2.7 / 3.3, rel=1e-3)


def test_figures_are_read_from_the_workers_counts():
    total = {"files": 2, "archive_bytes": 10, "waited_s": 1.0, "hidden_s": 3.0}
    figures = from_dask(total, 20.0)
    assert (figures.files, figures.moved_bytes) == (2, 10)
    assert (figures.transfer_s, figures.hidden) == (4.0, 0.75)
