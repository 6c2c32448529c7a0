"""The kept cases of each harness, in one file each, and which cases are worth keeping."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from .script import pack, unpack

HARNESSES = ("sftp", "wire", "lftp")
CORPUS = Path(__file__).parent / "corpus"
PACKAGE = "pyremotedata_core"
MOST_BYTES = 80_000  # of one corpus


def harness(name: str) -> Callable[[bytes], None]:
    """Return the function that plays a case."""
    return importlib.import_module(f"{__package__}.{name}").run


def words_of(name: str) -> tuple[str, ...]:
    """Return what is worth trying anywhere in a case of this harness."""
    return getattr(importlib.import_module(f"{__package__}.{name}"), "DICTIONARY", ())


def cases_of(name: str) -> list[bytes]:
    """Return the kept cases."""
    path = CORPUS / f"{name}.bin"
    return unpack(path.read_bytes()) if path.exists() else []


def keep(name: str, cases: list[bytes]) -> int:
    """Write the cases that reach what no smaller one reaches; return how many they are."""
    kept, total, reached = [], 0, set()
    for case in sorted(set(cases), key=lambda case: (len(case), case)):
        new = reach(harness(name), case) - reached
        if new and total + len(case) <= MOST_BYTES:
            kept.append(case)
            total += len(case) + 4
            reached |= new
    CORPUS.mkdir(exist_ok=True)
    (CORPUS / f"{name}.bin").write_bytes(pack(kept))
    return len(kept)


def reach(run: Callable[[bytes], None], case: bytes) -> set[tuple[str, int, int]]:
    """Return the steps from line to line of the package that playing a case takes."""
    steps: set[tuple[str, int, int]] = set()
    lines: dict[FrameType, int] = {}

    def trace(frame: FrameType, event: str, _argument: Any) -> Any:
        if PACKAGE not in frame.f_code.co_filename:
            return None
        if event == "return":
            lines.pop(frame, None)
        else:
            steps.add((frame.f_code.co_filename, lines.get(frame, 0), frame.f_lineno))
            lines[frame] = frame.f_lineno
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        run(case)
    finally:
        sys.settrace(before)
    return steps
