"""The faults: each strikes a running workload, and goes away again after a while."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.processes import command_of
from workflows.embedded_sshd import descendants

from .scene import LINK_BYTES_PER_S, Files, Scene
from .workloads import TIMEOUT_S, Places


class Target(NamedTuple):
    """What a fault strikes."""

    places: Places
    files: Files
    process: subprocess.Popen
    rng: random.Random

    @property
    def scene(self) -> Scene:
        return self.places.scene

    def wait(self, least_s: float, most_s: float) -> None:
        """Wait for a random time, or until the run has ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(self.rng.uniform(least_s, most_s))


Strike = Callable[[Target], bool]


def kill_sessions(target: Target) -> bool:
    return target.scene.server.kill_sessions() > 0


def freeze_sessions(target: Target) -> bool:
    target.scene.server.freeze()
    target.wait(0.5, 2 * TIMEOUT_S)
    target.scene.server.thaw()
    return True


def restart_server(target: Target) -> bool:
    target.scene.server.halt()
    target.wait(0.0, 2.0)
    target.scene.server.start()
    return True


def reset(target: Target) -> bool:
    target.scene.relay.reset()
    return True


def drop(target: Target) -> bool:
    """Break one to three connections, after some bytes more."""
    rng = target.rng
    before = target.scene.relay.status()["faults"]
    target.scene.relay.drop_after(
        rng.randrange(4_000_000),
        direction=rng.choice(["up", "down"]),
        times=rng.randrange(1, 4),
        kind=rng.choice(["reset", "close"]),
    )
    target.wait(3.0, 3.0)
    return target.scene.relay.status()["faults"] > before


def unreachable(target: Target) -> bool:
    target.scene.relay.refuse()
    target.scene.relay.reset()
    target.wait(0.2, 4.0)
    target.scene.relay.accept()
    return True


def stall(target: Target) -> bool:
    target.scene.relay.stall()
    target.wait(0.2, TIMEOUT_S / 2)
    target.scene.relay.resume()
    return True


def black_hole(target: Target) -> bool:
    target.scene.relay.stall()
    target.wait(1.5 * TIMEOUT_S, 3 * TIMEOUT_S)
    target.scene.relay.resume()
    target.scene.relay.reset()
    return True


def throttle(target: Target) -> bool:
    target.scene.relay.set(rate=target.rng.uniform(20e3, 2e6))
    target.wait(1.0, 3.0)
    target.scene.relay.set(rate=LINK_BYTES_PER_S)
    return True


def fill_local_disk(target: Target) -> bool:
    return _fill(target, target.scene.local)


def fill_remote_disk(target: Target) -> bool:
    return _fill(target, target.scene.server.root)


def revoke_permission(target: Target) -> bool:
    """Close a remote directory for a while: to look into, or to write into."""
    rng, remote = target.rng, target.places.remote
    directories = [path for path in sorted(remote.iterdir()) if path.is_dir()]
    path = rng.choice([remote, *directories])
    mode = path.stat().st_mode & 0o777
    path.chmod(rng.choice([0o000, 0o500]))
    target.wait(0.2, 2.0)
    path.chmod(mode)
    return True


def change_source(target: Target) -> bool:
    rng = target.rng
    names = [name for name in target.files.names if (target.files.root / name).stat().st_size > 1]
    how = rng.choice(["truncate", "append", "rewrite", "replace"])
    target.files.change(rng.choice([*names, *names[-2:] * 3]), how, rng)
    return True


def kill_owner(target: Target) -> bool:
    return _kill(target, [target.process.pid])


def kill_helper(target: Target) -> bool:
    helpers = [pid for pid in _below(target) if "pyremotedata_core.helper" in command_of(pid)]
    return _kill(target, helpers[-1:])


def kill_ssh(target: Target) -> bool:
    clients = [
        pid for pid in _below(target) if command_of(pid).startswith(("ssh ", "/usr/bin/ssh "))
    ]
    return _kill(target, target.rng.sample(clients, k=min(1, len(clients))))


def kill_worker(target: Target) -> bool:
    """Kill a Dask worker; its nanny starts another one."""
    workers = [pid for pid in _below(target) if "--multiprocessing-fork" in command_of(pid)]
    return _kill(target, target.rng.sample(workers, k=min(1, len(workers))))


def kill_everything(target: Target) -> bool:
    """Kill all processes of the workload at once, as a scheduler or a power switch does."""
    return _kill(target, [target.process.pid, *_below(target)], signal.SIGKILL)


STRIKES: dict[str, Strike] = {
    "kill the server's sessions": kill_sessions,
    "freeze the server's sessions": freeze_sessions,
    "restart the server": restart_server,
    "reset connections": reset,
    "drop connections after some bytes": drop,
    "server unreachable": unreachable,
    "stall": stall,
    "black hole": black_hole,
    "throttle": throttle,
    "local disk full": fill_local_disk,
    "remote disk full": fill_remote_disk,
    "permission revoked": revoke_permission,
    "source changed": change_source,
    "kill the owner": kill_owner,
    "kill the helper": kill_helper,
    "kill ssh": kill_ssh,
    "kill a worker": kill_worker,
    "kill everything": kill_everything,
}
NEEDS_DISKS = {"local disk full", "remote disk full"}
ENDS_RUN = {"kill the owner", "kill everything"}  # the run cannot tell the user anything


def possible(workload: str, *, disks: bool) -> list[str]:
    """Return the faults that can strike a workload."""
    helpless = {"command"}  # it does its I/O in its own process
    return [
        name
        for name in STRIKES
        if (disks or name not in NEEDS_DISKS)
        and not (name == "kill the helper" and workload in helpless)
        and not (name == "kill a worker" and workload != "dask")
    ]


def _fill(target: Target, disk: Path) -> bool:
    filler = disk / "filler"
    with open(filler, "wb") as file:
        room = os.statvfs(disk)
        with contextlib.suppress(OSError):
            os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize)
    target.wait(0.5, 3.0)
    filler.unlink()
    return True


def _kill(target: Target, pids: list[int], number: signal.Signals | None = None) -> bool:
    number = number or target.rng.choice([signal.SIGKILL, signal.SIGTERM])
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
    return bool(pids)


def _below(target: Target) -> list[int]:
    return descendants(target.process.pid)
