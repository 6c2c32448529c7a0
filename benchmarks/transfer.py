"""Transfers, side by side: pyremotedata and its peers, through their own commands, in one run.

``python -m benchmarks.transfer`` starts an sshd of its own, makes the data, and lets the tools
take turns. Every figure is the wall time of a whole process with default settings: start, login,
listing, moving, publishing. Bytes are compared after each run. Quoted are median and spread, and
the largest memory of the process and its children together (the server's are not among them).
``all`` runs all cases; ``--out`` writes a table, the raw figures, and a picture.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import outcome
from benchmarks.peers import (
    Command,
    Place,
    busy_get,
    is_there,
    lftp_get,
    lftp_put,
    ours_get,
    ours_put,
    python_peer,
    rclone_get,
    rclone_put,
    rsync_get,
    rsync_put,
    sftp_get,
    sftp_put,
)
from tests.relay import Relay
from workflows.embedded_sshd import EmbeddedSshd, descendants

MIB = 1 << 20
OURS = "pyremotedata"
TIMEOUT_S = 900
SAMPLE_S = 0.1
# Tools that ask for one file after the other take minutes for thousands of them on a long line.
ONE_BY_ONE = ("sftp", "paramiko")

DATA = ("large", "thousand", "many", "mixed", "folders")
TOOLS: dict[str, tuple[Command, Command]] = {
    OURS: (ours_get, ours_put),
    "rsync": (rsync_get, rsync_put),
    "sftp": (sftp_get, sftp_put),
    "lftp -P8": (lftp_get(8), lftp_put(8)),
    "lftp -P16": (lftp_get(16), lftp_put(16)),
    "rclone": (rclone_get, rclone_put),
    "asyncssh": (python_peer("asyncssh", "get"), python_peer("asyncssh", "put")),
    "paramiko": (python_peer("paramiko", "get"), python_peer("paramiko", "put")),
    "pyremotedata 0.1.13": (python_peer("0.1.13", "get"), python_peer("0.1.13", "put")),
}
DOWN = {tool: get for tool, (get, _) in TOOLS.items()}
UP = {tool: put for tool, (_, put) in TOOLS.items()}
# Case: the data and the tools.
CASES: dict[str, tuple[str, dict[str, Command]]] = {
    **{f"get-{name}": (name, DOWN) for name in DATA},
    **{f"put-{name}": (name, UP) for name in DATA},
    "busy-large": ("large", {"2 busy threads": busy_get(2), "none": busy_get(0)}),
    "busy-thousand": ("thousand", {"2 busy threads": busy_get(2), "none": busy_get(0)}),
}


USUAL = ["get-thousand", "put-thousand", "get-large", "put-large"]


@dataclass
class Cell(outcome.Cell):
    """One tool on one case."""

    memory_bytes: int = 0


def main() -> None:
    """Run the chosen cases and print a table for each."""
    parser = outcome.parser(__doc__, list(CASES), USUAL, [0.0])
    parser.add_argument("--large-mib", type=int, default=1024)
    parser.add_argument("--tools", nargs="+", metavar="TOOL", help="only these, and our own")
    options = outcome.parsed(parser, list(CASES))
    over = ", ".join(f"{trip:g} ms" for trip in sorted(set(options.round_trip_ms)))
    about = f"{outcome.machine()}, {options.rounds} alternating rounds after a warm-up"
    measured = outcome.Outcome(options.out, f"Transfers, round trip {over}", about)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder, EmbeddedSshd() as server:
        make_data(server.root, {CASES[case][0] for case in options.cases}, options.large_mib)
        for round_trip_ms in options.round_trip_ms:
            with place_at(server, round_trip_ms, Path(folder)) as place:
                for case in options.cases:
                    tools = tools_for(case, place, round_trip_ms, options.tools)
                    cells = measure(case, tools, place, Path(folder), options.rounds)
                    tell(measured, case, round_trip_ms, place.root / CASES[case][0], cells)


def tools_for(
    case: str, place: Place, round_trip_ms: float, only: list[str] | None
) -> dict[str, Command]:
    """Return the tools that are there and that end within reason."""
    name, tools = CASES[case]
    single = (place.root / name).is_file()
    found = {}
    for tool, command in tools.items():
        if only and tool not in (OURS, *only):
            continue
        if single and tool == "lftp -P16":
            continue  # a single file has nothing to do with it
        if case == "put-large" and tool == "pyremotedata 0.1.13":
            continue  # it fails where the directory exists
        if round_trip_ms and tool in ONE_BY_ONE and not single:
            continue
        if is_there(command(place, name, Path("/nowhere"))):
            found[tool] = command
        else:
            print(f"{tool} is not installed: left out", file=sys.stderr)
    return found


def measure(
    case: str, tools: dict[str, Command], place: Place, folder: Path, rounds: int
) -> list[Cell]:
    """Let the tools of a case take turns; one warm-up round is not counted."""
    name = CASES[case][0]
    cells = [Cell(tool) for tool in tools]
    for number in range(rounds + 1):
        for cell in outcome.in_turn(cells, number):
            # Trees stay until the end: ext4 avoids inodes that were freed within the last minutes,
            # and looks at each of them whenever a file is made.
            into = Path(tempfile.mkdtemp(prefix=f"{case}-", dir=folder))
            argv = tools[cell.tool](place, name, into)
            seconds, memory = timed(argv, {"PYREMOTEDATA_SSH_CONFIG": str(place.config)})
            if not same(place.root / name, into / name):
                sys.exit(f"{cell.tool}, {case}: {name} did not arrive as it was")
            if (into / name).is_file():
                shutil.rmtree(into)
            if number:
                cell.seconds.append(seconds)
                cell.memory_bytes = max(cell.memory_bytes, memory)
    return cells


def timed(argv: list[str], variables: dict[str, str]) -> tuple[float, int]:
    """Run a command that must succeed; return its wall seconds and its largest memory in bytes."""
    started = time.perf_counter()
    process = subprocess.Popen(
        argv,
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    ended = threading.Event()
    largest = [0]

    def watch() -> None:
        while not ended.wait(SAMPLE_S):
            largest[0] = max(largest[0], memory_of([process.pid, *descendants(process.pid)]))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        _, said = process.communicate(timeout=TIMEOUT_S)
        seconds = time.perf_counter() - started
    finally:
        ended.set()
        watcher.join()
        process.kill()
    if process.returncode:
        sys.exit(f"{shlex.join(argv)}: {said.decode(errors='replace')}")
    return seconds, largest[0]


def memory_of(pids: list[int]) -> int:
    """Return the resident bytes of processes, shared pages in proportion."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
    return total


def tell(
    measured: outcome.Outcome, case: str, round_trip_ms: float, data: Path, cells: list[Cell]
) -> None:
    """Tell in a table: median, spread, rate, memory, and how the first tool compares."""
    files = [path for path in data.rglob("*") if path.is_file()] if data.is_dir() else [data]
    size = sum(path.stat().st_size for path in files)
    lines = [
        f"## {case}, round trip {round_trip_ms:g} ms",
        "",
        f"{len(files)} files, {size / MIB:.0f} MiB",
        "",
        "| tool | median s | spread s | MiB/s | files/s | memory MiB | first is faster by |",
        "|---|---|---|---|---|---|---|",
    ]
    for cell in cells:
        lines.append(
            f"| {cell.tool} | {cell.median:.2f}"
            f" | {cell.spread}"
            f" | {size / MIB / cell.median:.0f} | {len(files) / cell.median:.0f}"
            f" | {cell.memory_bytes / MIB:.0f} | {cell.median / cells[0].median:.2f}x |"
        )
    measured.add(
        "\n".join(lines),
        case=case,
        round_trip_ms=round_trip_ms,
        files=len(files),
        bytes=size,
        cells=[asdict(cell) for cell in cells],
    )


def make_data(root: Path, names: set[str], large_mib: int) -> None:
    """Write incompressible data below the server's root."""
    if "large" in names:
        write(root / "large", large_mib * MIB)
    for name, count, size in (("thousand", 1000, 100_000), ("many", 20_000, 4096)):
        if name in names:
            for number in range(count):
                write(root / name / f"f{number:05d}.bin", size)
    if "mixed" in names:
        for part in range(20):
            for number in range(100):
                size = 200 * 10 ** (number % 4) if number else 10 * MIB
                write(root / "mixed" / f"d{part}" / f"f{number}", size)
    if "folders" in names:
        for number in range(1000):
            folder = root / "folders" / f"d{number // 40}" / f"e{number}"
            for file in range(5):
                write(folder / f"f{file}", 4096)


def write(path: Path, size: int) -> None:
    """Write a file of random bytes."""
    path.parent.mkdir(exist_ok=True, parents=True)
    with path.open("wb") as file:
        while size:
            size -= file.write(os.urandom(min(size, MIB)))


@contextmanager
def place_at(server: EmbeddedSshd, round_trip_ms: float, folder: Path) -> Iterator[Place]:
    """Give the server, behind a relay that makes the round trip."""
    if not round_trip_ms:
        yield Place(server.ssh_config, server.alias, server.root)
        return
    with Relay(server.port, one_way_ms=round_trip_ms / 2) as relay:
        key = " ".join(server.known_hosts.read_text().split()[1:])
        known = folder / "known_hosts"
        known.write_text(f"[127.0.0.1]:{relay.port} {key}\n")
        config = folder / "ssh_config"
        text = server.ssh_config.read_text()
        text = text.replace(str(server.known_hosts), str(known))
        config.write_text(text.replace(f"Port {server.port}", f"Port {relay.port}"))
        yield Place(config, server.alias, server.root)


def same(source: Path, copy: Path) -> bool:
    """Whether two files or directories hold the same bytes under the same names."""
    done = subprocess.run(["diff", "-r", "-q", str(source), str(copy)], capture_output=True)
    return done.returncode == 0


if __name__ == "__main__":
    main()
