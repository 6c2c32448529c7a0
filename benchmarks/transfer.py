"""Transfers, side by side: pyremotedata and its peers, through their own commands, in one run.

``python -m benchmarks.transfer`` starts an sshd of its own, makes the data, and lets the tools
take turns. Every figure is the wall time of a whole process with default settings: start, login,
listing, moving, publishing. Bytes are compared after each run. Quoted are median and spread.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.relay import Relay
from workflows.embedded_sshd import EmbeddedSshd

MIB = 1 << 20
OURS = "pyremotedata"
TIMEOUT_S = 300


@dataclass(frozen=True)
class Place:
    """The server as a tool sees it: an ssh_config, a host in it, and a directory."""

    config: Path
    host: str
    root: Path

    @property
    def ssh(self) -> str:
        """The ssh command of tools that drive ssh."""
        return f"ssh -F {shlex.quote(str(self.config))}"


@dataclass
class Cell:
    """One tool on one case."""

    tool: str
    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


Command = Callable[[Place, str, Path], list[str]]


def ours_get(place: Place, name: str, into: Path) -> list[str]:
    """Download with this project's command."""
    return [_script(), "get", _url(place, name), f"{into}/"]


def ours_put(place: Place, name: str, into: Path) -> list[str]:
    """Upload with this project's command."""
    return [_script(), "put", str(place.root / name), f"sftp://{place.host}{into}/"]


def busy_get(threads: int) -> Command:
    """Download through `Remote`, beside threads that compute in pure Python."""

    def command(place: Place, name: str, into: Path) -> list[str]:
        program = Path(__file__).with_name("busy_get.py")
        return [sys.executable, str(program), str(threads), _url(place, name), f"{into}/"]

    return command


def sftp_get(place: Place, name: str, into: Path) -> list[str]:
    """OpenSSH's sftp with its largest requests."""
    options = ["-q", "-r", "-F", str(place.config), "-B", "261120", "-R", "64"]
    return ["sftp", *options, f"{place.host}:{place.root / name}", str(into)]


def sftp_gcm_get(place: Place, name: str, into: Path) -> list[str]:
    """OpenSSH's sftp with its largest requests and AES-GCM."""
    return [*sftp_get(place, name, into)[:1], "-c", GCM, *sftp_get(place, name, into)[1:]]


def lftp_mirror(place: Place, name: str, into: Path) -> list[str]:
    """lftp, eight files at once."""
    return _lftp(place, f"mirror -P 8 {place.root / name} {into / name}")


def lftp_pget(place: Place, name: str, into: Path) -> list[str]:
    """lftp, four parts of a file at once, with the settings that served it best."""
    fast = f"set sftp:size-read 131072; set sftp:max-packets-in-flight 64; {_connect(place, GCM)}"
    return _lftp(place, f"{fast} pget -n 4 -O {into} {place.root / name}")


def rsync_get(place: Place, name: str, into: Path) -> list[str]:
    """rsync, which needs rsync on the server."""
    return [
        "rsync",
        "-rt",
        "-e",
        f"{place.ssh} -c {GCM}",
        f"{place.host}:{place.root / name}",
        str(into),
    ]


def rsync_put(place: Place, name: str, into: Path) -> list[str]:
    """rsync, which needs rsync on the server."""
    return [
        "rsync",
        "-rt",
        "-e",
        f"{place.ssh} -c {GCM}",
        str(place.root / name),
        f"{place.host}:{into}",
    ]


def sftp_put(place: Place, name: str, into: Path) -> list[str]:
    """OpenSSH's sftp with its largest requests and AES-GCM."""
    options = f"-q -b - -F {place.config} -c {GCM} -B 261120"
    script = f"echo 'put -r {place.root / name} {into}/' | sftp {options} {place.host}"
    return ["sh", "-c", script]


def lftp_put(place: Place, name: str, into: Path) -> list[str]:
    """lftp, eight files at once."""
    source = place.root / name
    if source.is_dir():
        return _lftp(place, f"mirror -R -P 8 {source} {into / name}")
    return _lftp(place, f"put -O {into} {source}")


GCM = "aes128-gcm@openssh.com"

# Case: the data, the direction, ours, its peers.
CASES: dict[str, tuple[str, str, dict[str, Command]]] = {
    "get-large": (
        "large.bin",
        "down",
        {OURS: ours_get, "sftp": sftp_get, "sftp gcm": sftp_gcm_get, "lftp pget": lftp_pget},
    ),
    "get-1000": (
        "thousand",
        "down",
        {OURS: ours_get, "rsync": rsync_get, "lftp mirror": lftp_mirror, "sftp": sftp_get},
    ),
    "get-20000": (
        "many",
        "down",
        {OURS: ours_get, "rsync": rsync_get, "lftp mirror": lftp_mirror},
    ),
    "put-large": (
        "large.bin",
        "up",
        {OURS: ours_put, "sftp gcm": sftp_put, "rsync": rsync_put, "lftp": lftp_put},
    ),
    "put-1000": (
        "thousand",
        "up",
        {OURS: ours_put, "rsync": rsync_put, "lftp mirror": lftp_put},
    ),
    "busy-large": ("large.bin", "down", {"2 busy threads": busy_get(2), "none": busy_get(0)}),
    "busy-1000": ("thousand", "down", {"2 busy threads": busy_get(2), "none": busy_get(0)}),
}
DEFAULT_CASES = ["get-1000", "get-large", "busy-1000", "busy-large"]


def main() -> None:
    """Run the chosen cases and print a table for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "cases", nargs="*", default=DEFAULT_CASES, metavar="CASE", help=", ".join(CASES)
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--round-trip-ms", type=float, nargs="+", default=[0.0])
    parser.add_argument("--large-mib", type=int, default=512)
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    options = parser.parse_args()
    unknown = set(options.cases) - set(CASES)
    if unknown:
        parser.error(f"unknown case: {', '.join(sorted(unknown))}")
    results = []
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder, EmbeddedSshd() as server:
        names = {CASES[case][0] for case in options.cases}
        make_data(server.root, names, options.large_mib)
        for round_trip_ms in options.round_trip_ms:
            with place_at(server, round_trip_ms, Path(folder)) as place:
                for case in options.cases:
                    cells = measure(case, place, Path(folder), options.rounds)
                    report(case, round_trip_ms, place.root / CASES[case][0], cells)
                    results.append(
                        {
                            "case": case,
                            "round_trip_ms": round_trip_ms,
                            "cells": [asdict(cell) for cell in cells],
                        }
                    )
    if options.json:
        machine = {"machine": platform.processor() or platform.machine(), "cpus": os.cpu_count()}
        options.json.write_text(json.dumps({**machine, "results": results}, indent=1))


def measure(case: str, place: Place, folder: Path, rounds: int) -> list[Cell]:
    """Let the tools of a case take turns; one warm-up round is not counted."""
    name, direction, commands = CASES[case]
    cells = [Cell(tool) for tool, command in commands.items() if _there(command, place, name)]
    into = folder / "out"
    for number in range(rounds + 1):
        # Alternate who goes first, so that a drifting machine favours nobody.
        for cell in cells if number % 2 else reversed(cells):
            shutil.rmtree(into, ignore_errors=True)
            into.mkdir()
            argv = commands[cell.tool](place, name, into)
            seconds = timed(argv, {"PYREMOTEDATA_SSH_CONFIG": str(place.config)})
            if not same(place.root / name, into / name):
                sys.exit(f"{cell.tool} {direction}: {name} did not arrive as it was")
            if number:
                cell.seconds.append(seconds)
    shutil.rmtree(into, ignore_errors=True)
    return cells


def timed(argv: list[str], variables: dict[str, str]) -> float:
    """Return the wall seconds of a command that must succeed."""
    started = time.perf_counter()
    done = subprocess.run(
        argv,
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        timeout=TIMEOUT_S,
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"{shlex.join(argv)}: {done.stderr.decode(errors='replace')}")
    return seconds


def report(case: str, round_trip_ms: float, data: Path, cells: list[Cell]) -> None:
    """Print a table: median, spread, rate, and how the first tool compares."""
    files = [path for path in data.rglob("*") if path.is_file()] if data.is_dir() else [data]
    size = sum(path.stat().st_size for path in files)
    print(f"\n{case}, round trip {round_trip_ms:g} ms: {len(files)} files, {size / MIB:.0f} MiB")
    print("\n| tool | median s | spread s | MiB/s | files/s | first is faster by |")
    print("|---|---|---|---|---|---|")
    for cell in cells:
        print(
            f"| {cell.tool} | {cell.median:.2f} | {min(cell.seconds):.2f}-{max(cell.seconds):.2f}"
            f" | {size / MIB / cell.median:.0f} | {len(files) / cell.median:.0f}"
            f" | {cell.median / cells[0].median:.2f}x |",
            flush=True,
        )


def make_data(root: Path, names: set[str], large_mib: int) -> None:
    """Write incompressible data below the server's root."""
    if "large.bin" in names:
        with open(root / "large.bin", "wb") as file:
            for _ in range(large_mib):
                file.write(os.urandom(MIB))
    for name, count, size in (("thousand", 1000, 100_000), ("many", 20_000, 4096)):
        if name in names:
            (root / name).mkdir()
            for number in range(count):
                (root / name / f"f{number:05d}.bin").write_bytes(os.urandom(size))


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


def _there(command: Command, place: Place, name: str) -> bool:
    program = command(place, name, Path("/nowhere"))[0]
    if shutil.which(program):
        return True
    print(f"{program} is not installed: left out", file=sys.stderr)
    return False


def _script() -> str:
    return str(Path(sys.executable).with_name("pyremotedata"))


def _url(place: Place, name: str) -> str:
    return f"sftp://{place.host}{place.root / name}"


def _connect(place: Place, cipher: str) -> str:
    return f"set sftp:connect-program '{place.ssh} -a -x -c {cipher}';"


def _lftp(place: Place, command: str) -> list[str]:
    connect = _connect(place, GCM)
    script = f"set cmd:fail-exit yes; {connect} open -u user, sftp://{place.host}; {command}; quit"
    return ["lftp", "--norc", "-c", script.replace("-u user,", f"-u {_user(place)},")]


def _user(place: Place) -> str:
    lines = place.config.read_text().splitlines()
    return next(line.split()[1] for line in lines if line.strip().startswith("User "))


if __name__ == "__main__":
    main()
