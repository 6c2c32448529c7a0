"""The auditor: what must be true after a run, and after the next one. Returns objections."""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pyremotedata_core.names import is_temporary
from pyremotedata_core.nodestate import state_directory
from tests.processes import command_of, processes_with
from tests.sites import temporaries

from .scene import Files, digest
from .workloads import Places, Work

END_S = 20.0


def published(places: Places, files: Files, work: Work) -> list[str]:
    """Check what stands under final names: each is a version of its source, whole."""
    return [
        f"{path} is no version of its source ({path.stat().st_size} bytes)"
        for path in _published(places, files, work)
        if digest(path.read_bytes()) not in files.versions.get(path.name, ())
    ]


def arrived(files: Files, work: Work) -> list[str]:
    """Check that all files have arrived."""
    objections = []
    for name in work.names:
        path = work.target / name
        if not path.exists():
            objections.append(f"{path} did not arrive")
        elif work.exactly and digest(path.read_bytes()) != files.current[name]:
            objections.append(f"{path} is not what its source is now")
    return objections


def left_behind(places: Places, mark: str) -> list[str]:
    """Check that no process, session, temporary file, lock or lease is left."""
    ours = [path for path in (places.work / "tmp").rglob("*") if _is_ours(path)]
    left = [*temporaries(places.local), *temporaries(places.remote), *ours]
    return [
        *still_running(mark),
        *_sessions(places),
        *(f"{path} was left" for path in left),
        *_cache(places.local / "cache"),
        *_slots(places),
    ]


def still_running(mark: str) -> list[str]:
    """Wait for the processes of a run to end; object to those that do not."""
    if _comes_true(lambda: not processes_with(mark)):
        return []
    return [f"process {pid} was left: {command_of(pid)[:200]}" for pid in processes_with(mark)]


def told_clearly(text: str, places: Places, workload: str) -> list[str]:
    """Check what a failed run told: lines that name a URL or path, and no traceback."""
    if "Traceback (most recent" in text and workload != "dask":  # Dask logs one for each task
        return ["it told a traceback"]
    lines = [line for line in text.splitlines() if line.strip()]
    if workload == "dask":
        lines = [line for line in lines if line.startswith("failed: ")]
    names = re.compile(rf"127\.0\.0\.1:{places.scene.relay.port}|{re.escape(places.place)}/")
    if workload == "snakemake":
        return [] if any(map(names.search, lines)) else ["no line names a URL or path"]
    unclear = (line for line in lines if not names.search(line) or ".pyremotedata-" in line)
    objections = [f"unclear: {line}" for line in unclear]
    return objections or ([] if lines else ["it failed without a word"])


def _published(places: Places, files: Files, work: Work) -> Iterator[Path]:
    # Of local copies only inputs are published by us: a job writes its outputs itself.
    copies = [path for path in (places.local / "storage").rglob("data") if path.is_dir()]
    for root in (work.target, files.root, *copies, *(places.local / "cache").glob("*/files")):
        for folder, _, names in os.walk(root):
            yield from (Path(folder, name) for name in names if not is_temporary(name))


def _sessions(places: Places) -> list[str]:
    server = places.scene.server
    if _comes_true(lambda: not server.session_pids()):
        return []
    return [f"a session was left at the server: {server.session_pids()}"]


def _is_ours(path: Path) -> bool:
    return "pyremotedata" in path.name or path.is_socket()


def _cache(root: Path) -> list[str]:
    objections = []
    for kind in ("locks", "incoming", "trash"):
        objections += [f"{path} was left" for path in root.glob(f"*/{kind}/*")]
    objections += [f"{path} is leased" for path in root.glob("*/pins/*") if _is_locked(path)]
    return objections


def _slots(places: Places) -> list[str]:
    slots = state_directory().glob(f"slots/*:{places.scene.relay.port}*")
    return [f"{path} is held" for path in slots if _is_locked(path)]


def _is_locked(path: Path) -> bool:
    with open(path, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _comes_true(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + END_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
