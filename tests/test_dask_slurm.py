"""Workers that dask-jobqueue starts as jobs of a real SLURM."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[1] / "workflows/slurm/dask_count_reads.py"
TIMEOUT_S = 240


def has_slurm() -> bool:
    """Whether there is a SLURM that answers."""
    if not all(map(shutil.which, ("sbatch", "sinfo", "scancel"))):
        return False
    try:
        told = subprocess.run(["sinfo", "-h"], capture_output=True, timeout=20)
    except subprocess.TimeoutExpired:
        return False
    return told.returncode == 0 and bool(told.stdout.strip())


@pytest.fixture
def shared_folder():
    """A folder that all nodes see, by SLURM_TEST_SHARED; default below this checkout."""
    place = os.environ.get("SLURM_TEST_SHARED") or str(Path(__file__).parent)
    with tempfile.TemporaryDirectory(prefix="slurm-", dir=place) as folder:
        yield Path(folder)


@pytest.mark.timeout(TIMEOUT_S + 60)
def test_jobs_of_slurm_count_remote_reads_with_a_preloaded_plugin(sshd_factory, shared_folder):
    pytest.importorskip("dask_jobqueue")
    if not has_slurm():
        pytest.skip("there is no SLURM here")
    server = sshd_factory()
    for number in range(6):
        reads = b"@read\nACGT\n+\nFFFF\n" * (100 + number)
        server.make(f"reads/s{number}.fastq.gz", gzip.compress(reads))
    table = shared_folder / "counts.tsv"
    command = [sys.executable, str(EXAMPLE), server.url("reads") + "/*.fastq.gz", str(table)]
    environment = {
        "PYREMOTEDATA_SSH_CONFIG": str(server.ssh_config),
        "PYREMOTEDATA_CACHE_DIR": str(shared_folder / "cache"),
        "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "60s",
    }
    done = subprocess.run(
        [*command, "--jobs", "2", "--memory", "500MB", "--walltime", "00:10:00"],
        env={**os.environ, **environment},
        cwd=shared_folder,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr
    wanted = "".join(f"s{number}.fastq.gz\t{100 + number}\n" for number in range(6))
    assert table.read_text() == wanted
    total = done.stdout.splitlines()[-1].split()
    assert total[:2] == ["total", "6"], "the preloaded plugin has counted each file once"
