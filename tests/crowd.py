"""Many processes at once that move files to and from one server."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from .sites import tree

ROUNDS = 3
TIMEOUT_S = 200
_PROGRAM = """\
import sys, time
from pyremotedata_core import TransferEngine
url, local, rounds, pause_s = sys.argv[1:]
with TransferEngine() as engine:
    for number in range(int(rounds)):
        engine.fetch(f"{url}/a", f"{local}.{number}").result(100)
        up = f"{url}/up{local.rpartition('/')[2]}.{number}"
        engine.store(f"{local}.{number}", up).result(100)
        time.sleep(float(pause_s))
"""


def move_at_once(server, folder: Path, processes: int, pause_s: float = 0.0) -> None:
    """Have processes fetch the file "a" several times, and store it; check all that they moved."""
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, server.url(), *map(str, (path, ROUNDS, pause_s))],
            stderr=subprocess.PIPE,
        )
        for path in (folder / str(number) for number in range(processes))
    ]
    said = [worker.communicate(timeout=TIMEOUT_S)[1].decode() for worker in workers]
    assert said == [""] * processes
    data = (server.root / "a").read_bytes()
    assert list(tree(folder).values()) == [data] * ROUNDS * processes
    up = [content for name, content in tree(server.root).items() if "up" in name]
    assert up == [data] * ROUNDS * processes
