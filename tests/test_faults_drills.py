"""The short form of the fault drills: one after the other, planned by a fixed seed."""

from __future__ import annotations

import pytest

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
