"""Snakemake over remote files, side by side: this plugin, its peer, and local files, in one run.

``python -m benchmarks.snakemake --out NAME`` starts an sshd of its own, makes the data,
installs the peer (snakemake-storage-plugin-sftp) in a venv below the user's cache directory, and
lets the tools take turns, on loopback and over 20 ms. Every figure is the wall time of
``snakemake`` in a fresh process with default settings: start-up, listing, jobs, times and
publication included. Results are compared byte by byte after each run. Quoted are median and
spread, and, from one more run of each, the requests and logins that the server saw.
"""

from __future__ import annotations

import importlib.metadata
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.servers import Sshd

from . import outcome, transfer
from .outcome import Cell
from .peers import peer_python

OURS, PEER, FLOOR = "pyremotedata", "sftp plugin", "local files"
PEER_PACKAGES = ("snakemake-storage-plugin-sftp==0.1.3", "paramiko<4")
PEER_ARGUMENTS = ("--storage-sftp-max-requests-per-second", "1000")
MB = 1_000_000


@dataclass(frozen=True)
class Case:
    """A workflow and its data.

    Attributes
    ----------
    files, file_bytes, directories : int
        Inputs on the server, and over how many directories they are spread.
    rules : str
        The Snakefile: ``IN(n)`` is the n-th input and ``OUT(name)`` an output, wherever they are.
    arguments : tuple of str
        Further arguments of ``snakemake``.
    """

    files: int
    file_bytes: int
    rules: str
    arguments: tuple[str, ...] = ()
    directories: int = 1
    local: str = ""  # a shell check of the local results, with $IN for the inputs
    remote: str = ""  # the same for the remote ones


def dry(files: int, directories: int) -> Case:
    """A dry-run over many inputs."""
    rules = f"""
        rule join:
            input: [IN(n) for n in range({files})]
            output: "joined"
            shell: "cat {{input}} > {{output}}"
    """
    return Case(files, 100, rules, ("--dry-run",), directories)


CASES = {
    **{f"dry-{n}-{d}": dry(n, d) for n in (60, 300, 3000) for d in (1, 30)},
    "60-jobs": Case(
        60,
        100_000,
        """
        rule all:
            input: [f"done/{n}" for n in range(60)]
        rule one:
            input: lambda w: IN(int(w.n))
            output: "done/{n}"
            shell: "cp {input} {output}"
        """,
        local="for n in $(seq 0 59); do cmp $IN/0/$n done/$n || exit 1; done",
    ),
    "60-inputs": Case(
        60,
        100_000,
        """
        rule join:
            input: [IN(n) for n in range(60)]
            output: "joined"
            shell: "cat {input} > {output}"
        """,
        local="(for n in $(seq 0 59); do cat $IN/0/$n; done) | cmp - joined",
    ),
    "40-computing": Case(
        40,
        5 * MB,
        """
        rule all:
            input: [f"done/{n}" for n in range(40)]
        rule one:
            input: lambda w: IN(int(w.n))
            output: "done/{n}"
            shell: "sleep 0.3; cp {input} {output}"
        """,
        local="for n in $(seq 0 39); do cmp $IN/0/$n done/$n || exit 1; done",
    ),
    "8-outputs": Case(
        1,
        MB,
        """
        rule all:
            input: [OUT(f"{n}/{k}") for n in range(6) for k in range(8)]
        rule eight:
            input: IN(0)
            output: [OUT("{n}/%d" % k) for k in range(8)]
            shell: "for f in {output}; do cp {input} $f; done"
        """,
        remote="for n in 0 1 2 3 4 5; do for k in 0 1 2 3 4 5 6 7; do"
        " cmp $IN/0/0 $n/$k || exit 1; done; done",
    ),
}
HEADERS = {
    OURS: """
        storage:
            provider="pyremotedata"
        place = lambda path: storage.pyremotedata("sftp://{user}@127.0.0.1:{port}{root}/" + path)
    """,
    PEER: """
        place = lambda path: storage.sftp("sftp://127.0.0.1:{port}{root}/" + path)
    """,
    FLOOR: """
        place = lambda path: "{root}/" + path
    """,
}


@dataclass(frozen=True)
class Place:
    """The server as a tool sees it; the peer finds its key and the server's in ``home``."""

    server: Sshd
    port: int
    config: Path
    home: Path


def main() -> None:
    """Run the chosen cases and print a table for each."""
    parser = outcome.parser(__doc__, list(CASES), list(CASES), [0.0, 20.0])
    parser.add_argument("--cores", type=int, default=4)
    parser.add_argument("--without", nargs="*", default=[], metavar="TOOL", help="leave out")
    parser.add_argument(
        "--peer-python", type=Path, help="interpreter of a venv that has the peer already"
    )
    options = outcome.parsed(parser, list(CASES))
    snakemake = importlib.metadata.version("snakemake")
    tools = [tool for tool in HEADERS if tool not in options.without]
    pythons = dict.fromkeys(tools, Path(sys.executable))
    if PEER in tools:
        packages = (f"snakemake=={snakemake}", *PEER_PACKAGES)
        pythons[PEER] = options.peer_python or peer_python("snakemake", *packages)
    about = f"{outcome.machine()}, Snakemake {snakemake}"
    about += f", {options.rounds} alternating rounds after a warm-up"
    measured = outcome.Outcome(options.out, "Snakemake runs", about)
    with (
        tempfile.TemporaryDirectory(prefix="benchmark-") as folder,
        Sshd() as server,
        Sshd(log_requests=True) as counting,
    ):
        for name in options.cases:
            make_data(server.root / name, CASES[name])
            make_data(counting.root / name, CASES[name])
            for round_trip_ms in options.round_trip_ms:
                with place_at(server, round_trip_ms, Path(folder)) as place:
                    bench = Bench(name, place, Path(folder) / "work", pythons, options.cores)
                    cells = bench.measure(options.rounds)
                with place_at(counting, round_trip_ms, Path(folder)) as place:
                    bench = Bench(name, place, Path(folder) / "work", pythons, options.cores)
                    seen = [bench.count(tool) for tool in tools if tool != FLOOR]
                measured.add(
                    tell(name, round_trip_ms, cells, seen),
                    case=name,
                    round_trip_ms=round_trip_ms,
                    cells=[asdict(cell) for cell in cells],
                    seen=seen,
                )
            shutil.rmtree(server.root / name)
            shutil.rmtree(counting.root / name)


@dataclass(frozen=True)
class Bench:
    """One case on one server."""

    name: str
    place: Place
    directory: Path  # where ``snakemake`` runs; removed and made for each run
    pythons: dict[str, Path]  # the interpreter of each tool
    cores: int

    @property
    def case(self) -> Case:
        return CASES[self.name]

    def measure(self, rounds: int) -> list[Cell]:
        """Let the tools take turns; one warm-up round is not counted."""
        cells = [Cell(tool) for tool in self.pythons]
        for number in range(rounds + 1):
            for cell in outcome.in_turn(cells, number):
                seconds = self.run(cell.tool)
                if number:
                    cell.seconds.append(seconds)
        return cells

    def count(self, tool: str) -> dict[str, Any]:
        """Run a tool once; return what the server has seen, and what the tool says itself."""
        server = self.place.server
        logins, before = server.logins(), server.request_kinds()
        log = self.directory.with_suffix(".log")
        self.run(tool, log)
        kinds = {kind: n - before.get(kind, 0) for kind, n in server.request_kinds().items()}
        said = [line for line in log.read_text().splitlines() if line.startswith("Storage ")]
        return {
            "tool": tool,
            "logins": server.logins() - logins,
            "requests": {kind: n for kind, n in sorted(kinds.items()) if n},
            "said": " ".join(said),
        }

    def run(self, tool: str, log: Path | None = None) -> float:
        """Run one tool once; return the wall seconds, of a result that has been compared.

        With ``log``, what it prints goes there.
        """
        root = self.place.server.root / self.name
        shutil.rmtree(self.directory, ignore_errors=True)
        shutil.rmtree(root / "out", ignore_errors=True)
        self.directory.mkdir()
        (self.directory / "Snakefile").write_text(self._snakefile(tool, root))
        argv = [str(self.pythons[tool]), "-m", "snakemake", "--cores", str(self.cores)]
        argv += ["-d", str(self.directory), "-s", str(self.directory / "Snakefile")]
        if tool == PEER:
            argv += [*PEER_ARGUMENTS, "--storage-sftp-username", self.place.server.user]
        argv += self.case.arguments
        if log is not None:
            argv = ["sh", "-c", f"exec {shlex.join(argv)} > {shlex.quote(str(log))} 2>&1"]
        else:
            argv.append("-q")
        seconds, _memory = transfer.timed(
            argv,
            {
                "PYREMOTEDATA_SSH_CONFIG": str(self.place.config),
                "HOME": str(self.place.home),
            },
        )
        self._check(tool, root)
        return seconds

    def _snakefile(self, tool: str, root: Path) -> str:
        header = textwrap.dedent(HEADERS[tool]).format(
            user=self.place.server.user, port=self.place.port, root=root
        )
        names = f"""
            IN = lambda n: place(f"in/{{n % {self.case.directories}}}/{{n}}")
            OUT = lambda name: place("out/" + name)
        """
        return header + textwrap.dedent(names) + textwrap.dedent(self.case.rules)

    def _check(self, tool: str, root: Path) -> None:
        environment = {**os.environ, "IN": str(root / "in")}
        for script, where in (
            (self.case.local, self.directory),
            (self.case.remote, root / "out"),
        ):
            if (
                script
                and subprocess.run(["sh", "-c", script], cwd=where, env=environment).returncode
            ):
                sys.exit(f"{tool}, {self.name}: the result is not what it should be")


def tell(name: str, round_trip_ms: float, cells: list[Cell], seen: list[dict[str, Any]]) -> str:
    """Return a table: median, spread, how the others compare with the first, and what was seen.

    Snakemake's own start is in every figure, that of local files included: so the table has also
    what a tool takes beyond local files, and how often the first tool's share goes into that.
    """
    case = CASES[name]
    floor = next((cell.median for cell in cells if cell.tool == FLOOR), None)
    own = cells[0].median - (floor or 0)
    lines = [
        f"## {name}, round trip {round_trip_ms:g} ms",
        "",
        f"{case.files} x {case.file_bytes} bytes in {case.directories} directories",
        "",
        f"| tool | median s | spread s | {cells[0].tool} is faster by | over local files | in s"
        " | this by |",
        "|---|---|---|---|---|---|---|",
    ]
    for cell in cells:
        over = "- | - | -"
        if floor:
            above = cell.median - floor
            by = f"{above / own:.2f}x" if own > 0 and cell.tool != FLOOR else "-"
            over = f"{cell.median / floor:.2f}x | {above:.2f} | {by}"
        lines.append(
            f"| {cell.tool} | {cell.median:.2f} | {cell.spread}"
            f" | {cell.median / cells[0].median:.2f}x | {over} |"
        )
    for one in seen:
        kinds = ", ".join(f"{n} {kind}" for kind, n in one["requests"].items())
        total = sum(one["requests"].values())
        lines += ["", f"{one['tool']}: {one['logins']} logins, {total} requests ({kinds})."]
        if one["said"]:
            lines += ["", f"It says: {one['said']}"]
    return "\n".join(lines)


def make_data(root: Path, case: Case) -> None:
    """Write incompressible inputs below a directory of the server."""
    for number in range(case.files):
        path = root / "in" / str(number % case.directories) / str(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(case.file_bytes))
        # Older than what any run makes of them.
        os.utime(path, (1_700_000_000, 1_700_000_000))


@contextmanager
def place_at(server: Sshd, round_trip_ms: float, folder: Path) -> Iterator[Place]:
    """Give the server, behind a relay that makes the round trip."""
    with transfer.place_at(server, round_trip_ms, folder) as seen:
        known = Path(seen.option("UserKnownHostsFile"))
        home = make_home(folder / f"home-{server.port}", server, known)
        yield Place(server, int(seen.option("Port")), seen.config, home)


def make_home(home: Path, server: Sshd, known_hosts: Path) -> Path:
    """Make a home directory as the peer needs it: it takes no key but ``id_rsa``."""
    ssh = home / ".ssh"
    key = ssh / "id_rsa"
    if not key.exists():
        ssh.mkdir(parents=True, mode=0o700)
        command = ["ssh-keygen", "-q", "-t", "rsa", "-m", "PEM", "-N", "", "-f", str(key)]
        subprocess.run(command, check=True)
        with (server.directory / "authorized_keys").open("a") as authorized:
            authorized.write(key.with_suffix(".pub").read_text())
    shutil.copy(known_hosts, ssh / "known_hosts")
    return home


if __name__ == "__main__":
    main()
