"""The workflow of ``workflows/slurm`` on a real SLURM; skipped where there is none.

The server of the test listens on loopback, so the nodes have to be this machine.
"""

from __future__ import annotations

import getpass
import re
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("snakemake")
pytest.importorskip("snakemake_executor_plugin_slurm")

from workflows import fastq

from .snakemake_workflow import temporaries

WORKFLOWS = Path(__file__).resolve().parent.parent / "workflows"
HERE = {"localhost", "127.0.0.1", socket.gethostname()}
THIN_EVERY = 20

pytestmark = [pytest.mark.full, pytest.mark.timeout(600)]


@pytest.fixture(scope="module", autouse=True)
def _slurm():
    if not (shutil.which("sbatch") and shutil.which("scontrol")):
        pytest.skip("SLURM is not installed")
    command = ["scontrol", "show", "nodes", "--oneliner"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    addresses = set(re.findall(r"\bNodeAddr=(\S+)", told.stdout))
    if not addresses:
        pytest.skip("SLURM does not answer")
    if addresses - HERE:
        pytest.skip("the nodes of this SLURM are other machines")


@pytest.fixture
def workflow(counted):
    counted.timeout_s = 250
    counted.env["USER"] = getpass.getuser()  # which a profile names, and a container may lack
    reads = counted.server.make_directory(f"{counted.remote}/reads")
    counted.known = fastq.make_samples(reads, 3, 500_000)
    return counted


def submit(workflow, profile, *arguments, snakefile=WORKFLOWS / "snakemake" / "Snakefile"):
    """Run the example; SLURM needs no accounting for it."""
    return workflow.run(
        *("--profile", str(WORKFLOWS / "slurm" / profile)),
        *("--snakefile", str(snakefile)),
        *("--config", f"remote={workflow.server.url(workflow.remote)}", f"thin_every={THIN_EVERY}"),
        *("--slurm-no-account", "--slurm-status-command", "squeue"),
        *("--slurm-init-seconds-before-status-checks", "3", "--seconds-between-status-checks", "3"),
        *arguments,
    )


def check(workflow):
    assert fastq.read_table(workflow.remote_path("results/measures.tsv")) == workflow.known
    for sample, known in workflow.known.items():
        thinned = workflow.remote_path(f"results/thinned/{sample}.fastq.gz")
        assert fastq.measure(thinned, sample).reads == -(-known.reads // THIN_EVERY)
    assert not temporaries(workflow.directory) + temporaries(workflow.server.root / workflow.remote)


def test_with_a_shared_file_system_the_jobs_move_nothing_twice(workflow):
    outcome = submit(workflow, "shared").succeeded()
    check(workflow)
    # Three inputs, three thinned samples, one table.
    assert workflow.server.requests("posix-rename") == 4
    assert outcome.text.count("by its job already") == 4


def test_with_local_copies_on_the_nodes_an_input_comes_to_a_node_once(workflow):
    url = workflow.server.url(f"{workflow.remote}/work")
    before = set(Path("/tmp").glob("snakemake-*-*"))
    submit(workflow, "apart", "--default-storage-prefix", url).succeeded()
    check(workflow)
    read = workflow.server.sftp_log.read_text()
    for sample in workflow.known:  # which two rules read
        assert read.count(f'/reads/{sample}.fastq.gz" flags READ') == 1
    assert set(Path("/tmp").glob("snakemake-*-*")) <= before


def test_a_job_leaves_nothing_on_its_node_when_the_server_goes_away(workflow):
    workflow.make_remote("in", b"in")
    workflow.make_remote("tree/file", b"in")
    workflow.write(
        """
        rule copy:
            input: storage("@URL@/in"), storage("@URL@/tree")
            output: storage("@URL@/out"), storage("@URL@/made")
            shell: "cp {input[0]} {output[0]}; cp -r {input[1]} {output[1]}; @END@"
        """,
        END=f"pkill -9 -P {workflow.server.pid}; kill -9 {workflow.server.pid}",
    )
    before = set(Path("/tmp").glob("snakemake-*-*"))
    outcome = submit(
        *(workflow, "apart", "--default-storage-prefix", workflow.server.url(workflow.remote)),
        *("--storage-pyremotedata-timeout", "5"),
        snakefile=workflow.path("Snakefile"),
    )
    assert outcome.status == 1, outcome.text
    log = next(workflow.path(".snakemake/slurm_logs/rule_copy").glob("*.log")).read_text()
    assert "Failed to store output" in log
    assert set(Path("/tmp").glob("snakemake-*-*")) <= before
