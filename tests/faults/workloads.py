"""What is run in a drill: programs as users write them, each a command line.

A workload takes the files of ``data`` to a second place, and can be run again.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.command import CLI

from . import stacks
from .scene import Scene

TIMEOUT_S = 4.0  # the setting: nothing moves for so long

REMOTE = """\
import sys
from pyremotedata_core import Remote, TransferError
url, local, direction = sys.argv[1:]
try:
    with Remote(url) as remote:
        remote.sync(".", local, direction=direction)
except TransferError as error:
    sys.exit(f"failed: {error}")
"""

SNAKEFILE = """\
storage:
    provider="pyremotedata",

rule all:
    input:
        [storage("@URL@/results/" + name) for name in @NAMES@],

rule copy:
    input:
        storage("@URL@/data/{name}"),
    output:
        storage("@URL@/results/{name}"),
    shell:
        "cp {input} {output}"
"""

DASK = """\
import shutil
import sys
from dask.distributed import Client, LocalCluster
from dask_plugin import RemoteFile, StagingPlugin, stage_out

def copy(file, url):
    with stage_out(url) as out:
        shutil.copyfile(file, out)

if __name__ == "__main__":
    url, *names = sys.argv[1:]
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        client.register_plugin(StagingPlugin())
        tasks = [
            client.submit(copy, RemoteFile(f"{url}/data/{name}"), f"{url}/results/{name}")
            for name in names
        ]
        errors = [task.exception() for task in tasks]
    for error in filter(None, errors):
        print("failed:", error)
    sys.exit(int(any(errors)))
"""


class Work(NamedTuple):
    """A workload in its place.

    Attributes
    ----------
    command : list of str
    names : list of str
        The files that it takes.
    target : Path
        The directory where they arrive, under the same names.
    span_s : float
        About how long it is busy after its first connection, undisturbed.
    exactly : bool
        Whether a second run brings what has changed since; Snakemake goes by its own rules.
    """

    command: list[str]
    names: list[str]
    target: Path
    span_s: float
    exactly: bool = True


class Places(NamedTuple):
    """The places of one drill: where it is on both sides, and a directory for odds and ends."""

    scene: Scene
    place: str
    work: Path

    @property
    def url(self) -> str:
        return self.scene.relay.url(self.scene.server.url(self.place))

    @property
    def local(self) -> Path:
        return self.scene.local / self.place

    @property
    def remote(self) -> Path:
        return self.scene.server.root / self.place

    def environment(self) -> dict[str, str]:
        """Return the environment of the workload."""
        kept = {n: v for n, v in os.environ.items() if not n.startswith("PYREMOTEDATA_")}
        temporary = self.work / "tmp"
        temporary.mkdir(parents=True, exist_ok=True)
        return {
            **kept,
            "PYREMOTEDATA_SSH_CONFIG": str(self.scene.server.ssh_config),
            "PYREMOTEDATA_TIMEOUT": str(TIMEOUT_S),
            "PYREMOTEDATA_CACHE_DIR": str(self.local / "cache"),
            "XDG_CONFIG_HOME": str(self.work / "xdg"),
            "PYREMOTEDATA_AUTO": "yes",
            "TMPDIR": str(temporary),
            "DASK_TEMPORARY_DIRECTORY": str(self.work / "dask"),
            "XDG_CACHE_HOME": str(self.work / "xdg"),
        }


def command_down(places: Places, names: list[str]) -> Work:
    target = places.local / "copy"
    command = [*CLI, "sync", f"{places.url}/data", str(target)]
    return Work(command, names, target, 2.0)


def command_up(places: Places, names: list[str]) -> Work:
    command = [*CLI, "sync", str(places.local / "data"), f"{places.url}/copy"]
    return Work(command, names, places.remote / "copy", 2.0)


def remote_down(places: Places, names: list[str]) -> Work:
    target = places.local / "copy"
    command = [sys.executable, "-c", REMOTE, f"{places.url}/data", str(target), "down"]
    return Work(command, names, target, 2.0)


def remote_up(places: Places, names: list[str]) -> Work:
    command = [sys.executable, "-c", REMOTE, f"{places.url}/copy", str(places.local / "data"), "up"]
    return Work(command, names, places.remote / "copy", 2.0)


def snakemake(places: Places, names: list[str]) -> Work:
    names = names[3::2]
    snakefile = places.work / "Snakefile"
    text = SNAKEFILE.replace("@URL@", places.url).replace("@NAMES@", repr(names))
    snakefile.write_text(text)
    command = [sys.executable, "-c", stacks.SNAKEMAKE, "--cores", "2", "--nocolor", "--nolock"]
    command += ["--rerun-incomplete", "--snakefile", str(snakefile)]
    command += ["--local-storage-prefix", str(places.local / "storage")]
    return Work(command, names, places.remote / "results", 5.0, exactly=False)


def dask(places: Places, names: list[str]) -> Work:
    names = names[3::2]
    script = places.work / "script.py"
    script.write_text(DASK)
    command = [sys.executable, str(script), places.url, *names]
    return Work(command, names, places.remote / "results", 2.0)


Workload = Callable[[Places, list[str]], Work]
UPWARDS: list[Workload] = [command_up, remote_up]
WORKLOADS: dict[str, list[Workload]] = {
    "command": [command_down, command_up],
    "remote": [remote_down, remote_up],
    "snakemake": [snakemake],
    "dask": [dask],
}
