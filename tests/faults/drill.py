"""One drill: run a workload, strike it, audit, run it again, audit."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.processes import processes_with

from . import audit, stacks
from .scene import Files, Scene
from .strikes import ENDS_RUN, STRIKES, Target, possible
from .workloads import UPWARDS, WORKLOADS, Places, Work

RUN_TIMEOUT_S = 90.0
BEGIN_TIMEOUT_S = 40.0
GRACE_S = 60.0
STACKS_S = 1.0  # in which a process writes where its threads are
# How often each is drilled: those that start quickly more often.
SHARES = {"command": 4, "remote": 4, "snakemake": 1, "dask": 2}


@dataclass
class Outcome:
    """How a drill went.

    Attributes
    ----------
    strikes : list of str
        The faults that struck while the workload ran.
    end : {"survived", "retried", "clean error", "lost"}
        Survived: the run went well over the connections it had. Retried: it went well after
        it had connected anew, or the next run put right what a killed one had left. Lost: the
        auditor objects to something.
    objections : list of str
    text : str
        What the runs have printed.
    hung : str
        Where a run hung that SIGTERM did not end.
    """

    number: int
    workload: str
    strikes: list[str] = field(default_factory=list)
    end: str = ""
    objections: list[str] = field(default_factory=list)
    text: str = ""
    hung: str = ""

    def __str__(self) -> str:
        hung = "; needed SIGKILL" if self.hung else ""
        return f"drill {self.number} ({self.workload}: {', '.join(self.strikes)}): {self.end}{hung}"


class Drill:
    """A drill, given by its seed and number: the same ones make the same plan."""

    def __init__(self, scene: Scene, seed: int, number: int) -> None:
        self.rng = random.Random(f"{seed}/{number}")
        self.scene = scene
        workload, fault = plan(seed, number, disks=scene.disks)
        self.outcome = Outcome(number, workload)
        self._faults = [fault]
        if self.rng.random() < 0.3:
            self._faults.insert(0, self.rng.choice(possible(workload, disks=scene.disks)))
        self._mark = f"DRILL={os.getpid()}/{seed}/{number}"
        place = f"drill-{number}"
        self._places = Places(scene, place, scene.logs / place)
        self._places.work.mkdir()
        self._places.local.mkdir()
        scene.server.make_directory(place)
        make = self.rng.choice(WORKLOADS[workload])
        self._files = Files(scene, place, self.rng, remote=make not in UPWARDS)
        self._work: Work = make(self._places, self._files.names)

    def run(self) -> Outcome:
        """Run it to its end; nothing of it is left running then."""
        outcome, places = self.outcome, self._places
        try:
            with self._started("first") as (process, log):
                connections = self._strike(process)
                if self.outcome.workload == "snakemake" and self._killed():
                    outcome.objections += self._kill_after_grace(process, log)
                status = self._ended(process)
            outcome.text = log.read_text(errors="replace")
            self.scene.calm()
            outcome.objections += audit.still_running(self._mark)
            outcome.objections += audit.published(places, self._files, self._work)
            outcome.end = self._end(status, connections)
            outcome.objections += self._again()
        finally:
            self.scene.calm()
            _kill(processes_with(self._mark))
            for path in (places.local, places.remote, places.work):
                shutil.rmtree(path, ignore_errors=True)
        if outcome.objections:
            outcome.end = "lost"
        return outcome

    def _strike(self, process: subprocess.Popen) -> int:
        """Wait for the first connection, and then for random times; return how many there were."""
        relay = self.scene.relay
        before, down = relay.status()["total"], 0
        deadline = time.monotonic() + BEGIN_TIMEOUT_S
        while process.poll() is None and relay.status()["total"] == before:
            if time.monotonic() > deadline:
                self.outcome.objections.append("it does not begin")
                break
            time.sleep(0.01)
        target = Target(self._places, self._files, process, self.rng)
        for fault in self._faults:
            target.wait(0.0, self._work.span_s / len(self._faults))
            down = relay.status()["total"]
            if process.poll() is None and STRIKES[fault](target):
                self.outcome.strikes.append(fault)
        return down

    def _end(self, status: int | None, connections: int) -> str:
        outcome = self.outcome
        if status is None:
            outcome.objections.append(f"it did not end within {RUN_TIMEOUT_S:.0f} s")
        elif status == 0:
            opened = self.scene.relay.status()["total"] - connections
            return "retried" if opened else "survived"
        elif self._killed():
            return "retried"
        elif status != 1:
            outcome.objections.append(f"exit status {status}")
        outcome.objections += audit.told_clearly(outcome.text, self._places, outcome.workload)
        return "clean error"

    def _killed(self) -> bool:
        return bool(ENDS_RUN.intersection(self.outcome.strikes))

    def _again(self) -> list[str]:
        """Run it again, undisturbed; all must have arrived, and nothing be left."""
        with self._started("again") as (process, log):
            status = self._ended(process)
        self.outcome.text += f"--- again\n{log.read_text(errors='replace')}"
        objections = [] if status == 0 else [f"the next run ended with status {status}"]
        return [
            *objections,
            *audit.left_behind(self._places, self._mark),
            *audit.published(self._places, self._files, self._work),
            *audit.arrived(self._files, self._work),
        ]

    @contextlib.contextmanager
    def _started(self, name: str) -> Iterator[tuple[subprocess.Popen, Path]]:
        log = self._places.work / f"{name}.log"
        key, _, value = self._mark.partition("=")
        with (
            open(log, "wb") as output,
            subprocess.Popen(
                self._work.command,
                cwd=self._places.work,
                env={**self._places.environment(), key: value},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            ) as process,
        ):
            try:
                yield process, log
            finally:
                process.poll() is None and process.kill()

    def _kill_after_grace(self, process: subprocess.Popen, log: Path) -> list[str]:
        """Do as clusters do: SIGKILL for what SIGTERM has not ended. Object to a hang of ours."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
            return []
        before = log.stat().st_size
        process.send_signal(signal.SIGUSR1)
        time.sleep(STACKS_S)
        process.kill()
        self.outcome.hung = log.read_bytes()[before:].decode(errors="replace")
        return stacks.objections(self.outcome.hung)

    def _ended(self, process: subprocess.Popen) -> int | None:
        try:
            return process.wait(RUN_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            _kill(processes_with(self._mark))
            return None


def plan(seed: int, number: int, *, disks: bool) -> tuple[str, str]:
    """Return workload and main fault of a drill: all pairs come, in a shuffled order."""
    pairs = [
        (workload, fault)
        for workload, share in SHARES.items()
        for fault in possible(workload, disks=disks)
        for _ in range(share)
    ]
    round_, position = divmod(number, len(pairs))
    random.Random(f"{seed}/round/{round_}").shuffle(pairs)
    return pairs[position]


def _kill(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
