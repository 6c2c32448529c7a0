"""Fuzz on: ``python -m tests.fuzz NAME --minutes N``.

Begins with the kept cases and with dialogues recorded from real servers. What it finds is printed
with the file that holds it (``--replay FILE`` plays it again). ``--keep`` writes the cases that
reach something new back to the corpus of the project.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from .corpus import HARNESSES, cases_of, harness, keep, words_of

HANG_S = 20
MEMORY_MB = 1500
CASE_BYTES = 20_000


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("name", choices=HARNESSES)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--keep", action="store_true", help="write new cases to the corpus")
    parser.add_argument("--record", action="store_true", help="begin with new recordings, too")
    parser.add_argument("--replay", type=Path, nargs="*", help="only play these files")
    parser.add_argument("--findings", type=Path, default=Path(), help="where to put findings")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.replay is not None:
        for path in options.replay:
            harness(options.name)(path.read_bytes())
        return 0
    if options.inside:
        return fuzz(options)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as directory:
        place = Path(directory, "cases")
        place.mkdir()
        cases = cases_of(options.name)
        if options.record:
            from .record import recorded

            cases += recorded(options.name)
        for number, case in enumerate(cases):
            Path(place, f"kept-{number:05}").write_bytes(case)
        status = subprocess.run(
            [sys.executable, "-m", "tests.fuzz", *sys.argv[1:], "--inside", str(place)], check=False
        ).returncode
        found = [path.read_bytes() for path in sorted(Path(place).iterdir())]
        print(f"{len(cases)} cases at the beginning, {len(found)} in the end", flush=True)
        if options.keep:
            print(f"{keep(options.name, found)} cases kept")
    return status


def fuzz(options: argparse.Namespace) -> int:
    """Fuzz in this process; does not return."""
    import atheris

    with atheris.instrument_imports(include=["pyremotedata_core"]):
        run = harness(options.name)
    arguments = [
        sys.argv[0],
        str(options.inside),
        f"-max_total_time={options.minutes * 60:.0f}",
        f"-max_len={CASE_BYTES}",
        f"-timeout={HANG_S}",
        f"-rss_limit_mb={MEMORY_MB}",
        f"-artifact_prefix={options.findings}/",
    ]
    if words := words_of(options.name):
        dictionary = options.inside.parent / "dictionary"
        dictionary.write_text("".join(f'"{_escaped(word)}"\n' for word in words))
        arguments.append(f"-dict={dictionary}")
    atheris.Setup(arguments, run)
    atheris.Fuzz()
    return 0


def _escaped(word: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word.encode())


if __name__ == "__main__":
    sys.exit(main())
