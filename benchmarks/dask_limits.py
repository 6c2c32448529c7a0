"""What the Dask plugin is held to: the archive without Dask, and handles without files."""

from __future__ import annotations

import pickle
import statistics
import time
from pathlib import Path
from typing import NamedTuple

from dask.base import tokenize
from distributed import Client

from benchmarks.peers import Place
from dask_plugin import RemoteFile
from dask_plugin.walk import handles_in
from pyremotedata_core import ConnectionSettings, RemoteURL, TransferEngine

HANDLES = 10_000
# Wall time may exceed what is slower, computing or transfer, by this; and the first file's time.
ALLOWANCE = 1.15
BEST_PEER_SHARE = 0.6


class Limits(NamedTuple):
    """Seconds to log in, list and have the first file; and to have all files, once logged in."""

    first_s: float
    transfer_s: float

    def bound_s(self, floor_s: float) -> float:
        """Return what the tasks may take, if computing alone takes ``floor_s``."""
        return ALLOWANCE * max(floor_s, self.transfer_s) + self.first_s


def measure_limits(place: Place, directory: Path, into: Path) -> Limits:
    """Fetch a directory's files with a fresh engine: the first one, then all at once."""
    root = RemoteURL.parse(f"sftp://{place.host}{directory}")
    began = time.perf_counter()
    with TransferEngine(ConnectionSettings.load(ssh_config=str(place.config))) as engine:
        names = [entry.name for entry in engine.scandir(root).result()]
        engine.fetch(root.join(names[0]), into / "first").result()
        first_s = time.perf_counter() - began
        began = time.perf_counter()
        engine.fetch_many([(root.join(name), into / name) for name in names]).result()
        return Limits(first_s, time.perf_counter() - began)


def median_limits(measured: list[Limits]) -> Limits:
    """Return the median of each figure."""
    return Limits(*(statistics.median(figures) for figures in zip(*measured, strict=True)))


def handle_cost_s() -> float:
    """Return what a handle costs on its way: made, tokenized, pickled, unpickled, found."""
    began = time.perf_counter()
    for handle in _handles():
        tokenize(handle)
        handles_in(pickle.loads(pickle.dumps((_ignore, handle))))
    return (time.perf_counter() - began) / HANDLES


def submit_s(client: Client) -> float:
    """Return the seconds of as many tasks, each with a handle that it does not open."""
    handles = _handles()
    began = time.perf_counter()
    client.gather(client.map(_ignore, handles, pure=False))
    return time.perf_counter() - began


def _handles() -> list[RemoteFile]:
    return [RemoteFile(f"sftp://archive/run/{n:05d}.bin", n, n) for n in range(HANDLES)]


def _ignore(_: object) -> None:
    pass
