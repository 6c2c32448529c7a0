"""The short form of the fault drills: one after the other, planned by a fixed seed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from .faults import stacks
from .faults.__main__ import table
from .faults.drill import Drill, plan
from .faults.scene import Scene

SEED = 1
# The first drills of these workloads, in the order of the plan.
COUNTS = {"command": 2, "remote": 3, "snakemake": 1, "dask": 1}


@pytest.fixture(scope="module")
def scene():
    with Scene() as scene:
        yield scene


@pytest.mark.timeout(300)
@pytest.mark.parametrize("workload", COUNTS)
def test_nothing_is_lost_or_left_whatever_strikes(scene, workload):
    if workload in ("snakemake", "dask"):
        pytest.importorskip(workload)
    numbers = (n for n in range(1000) if plan(SEED, n, disks=scene.disks)[0] == workload)
    outcomes = [Drill(scene, SEED, next(numbers)).run() for _ in range(COUNTS[workload])]
    objections = [(str(each), each.objections, each.text) for each in outcomes if each.objections]
    assert not objections, table(outcomes)


# Two threads that hang; what each was called by, FILE:FUNCTION, are the arguments.
HANGING = """
import faulthandler, sys, threading
def made(each):
    path, name = each.split(":")
    exec(compile(f"def {name}(inner, *more): inner(*more)", path, "exec"), scope := {})
    return scope[name]
main, other = ([*map(made, argument.split())] for argument in sys.argv[1:])
lock = threading.Lock()
lock.acquire()
threading.Thread(target=other[0], args=(*other[1:], lock.acquire), daemon=True).start()
faulthandler.dump_traceback_later(0.5, exit=True)
main[0](*main[1:], lock.acquire)
"""
HANDLER = "/snakemake/scheduling/job_scheduler.py:exit_gracefully"
THEIRS = "/snakemake/dag.py:finish"
OURS = "/pyremotedata_core/link.py:_read"


@pytest.mark.parametrize(
    ("main", "other", "objection"),
    [
        ([THEIRS, HANDLER], [OURS], ""),  # which waits for work
        ([THEIRS, HANDLER], [OURS, OURS], "in another thread"),
        ([THEIRS, HANDLER], [THEIRS, OURS], "in another thread"),
        ([THEIRS, OURS, HANDLER], [THEIRS], "in its main thread"),
        ([THEIRS], [THEIRS], "not in Snakemake's handler"),
    ],
)
def test_a_hang_is_excused_in_snakemakes_own_handler_only(main, other, objection):
    command = [sys.executable, "-c", HANGING, " ".join(main), " ".join(other)]
    said = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60).stderr
    found = stacks.objections(said)
    assert len(found) == bool(objection)
    assert objection in "".join(found)
