"""What a run has moved, and how much of that went on behind computing."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

MIB = 2**20
_UNITS = {"byte": 1, "bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_AMOUNT = r"([\d.]+) (bytes?|KiB|MiB|GiB)"
# A line of the storage plugin: "Retrieved sftp://...: 18.0 MiB in 0.1 s (203.4 MiB/s)".
_TRANSFER = re.compile(rf"(?:Retrieved|Stored) .+: {_AMOUNT} in [\d.]+ s \({_AMOUNT}/s\)")
# ... or, of one that was there when its job came: "Retrieved sftp://...: 18.0 MiB fetched ahead".
_AHEAD = re.compile(rf"Retrieved .+: {_AMOUNT} fetched ahead")
# A line of fastq.py: "measure took 0.812 s".
_COMPUTED = re.compile(r"\w+ took ([\d.]+) s$")

_FOOTNOTE = (
    "MiB/s: while a transfer was under way; Dask's seconds of that are summed over its workers."
)

Span = tuple[float, float]


@dataclass(frozen=True)
class Figures:
    """What one run moved.

    Attributes
    ----------
    files, moved_bytes
        Both directions.
    seconds
        From the start of the program to its end.
    transfer_s
        Seconds with a transfer under way.
    hidden
        The share of them behind computing, 0 to 1.
    """

    name: str
    files: int
    moved_bytes: int
    seconds: float
    transfer_s: float
    hidden: float


def from_snakemake(lines: Iterable[tuple[float, str]], seconds: float) -> Figures:
    """Read the output of a run: lines with the times, in seconds, at which they came."""
    files, seen, ahead, transfers, computing = 0, 0.0, 0.0, [], []
    for time_s, line in lines:
        if found := _TRANSFER.search(line):
            amount, rate = _bytes(found[1], found[2]), _bytes(found[3], found[4])
            files, seen = files + 1, seen + amount
            transfers.append((time_s - amount / max(rate, 1.0), time_s))
        elif found := _AHEAD.search(line):
            files, ahead = files + 1, ahead + _bytes(found[1], found[2])
        elif found := _COMPUTED.search(line):
            computing.append((time_s - float(found[1]), time_s))
    busy_s, hidden_s = behind(transfers, computing)
    # When the files fetched ahead moved is not told: they are taken to be as fast as the others.
    ahead_s = ahead * busy_s / seen if seen else 0.0
    hidden = (hidden_s + ahead_s) / (busy_s + ahead_s) if busy_s else 0.0
    return Figures("Snakemake", files, round(seen + ahead), seconds, busy_s + ahead_s, hidden)


def from_dask(total: dict[str, float], seconds: float) -> Figures:
    """Read the sum over all workers of what `dask_plugin.stats` counts."""
    transfer_s = total["waited_s"] + total["hidden_s"]
    hidden = total["hidden_s"] / transfer_s if transfer_s else 0.0
    files, moved = int(total["files"]), int(total["archive_bytes"])
    return Figures("Dask", files, moved, seconds, transfer_s, hidden)


def behind(transfers: list[Span], computing: list[Span]) -> tuple[float, float]:
    """Return the seconds with a transfer under way, and those of them with computing too."""
    busy, working = _union(transfers), _union(computing)
    total = sum(end - start for start, end in busy)
    both = sum(
        max(0.0, min(end, until) - max(start, since))
        for start, end in busy
        for since, until in working
    )
    return total, both


def table(figures: list[Figures]) -> str:
    """Return the summary that the quickstart prints."""
    lines = [f"{'':<12}{'files':>6}{'MiB':>8}{'seconds':>9}{'MiB/s':>8}  behind computing"]
    for one in figures:
        rate = one.moved_bytes / MIB / one.transfer_s if one.transfer_s else 0.0
        lines.append(
            f"{one.name:<12}{one.files:>6}{one.moved_bytes / MIB:>8.0f}{one.seconds:>9.1f}"
            f"{rate:>8.0f}  {one.hidden:.0%} of {one.transfer_s:.1f} s of transfer"
        )
    return "\n".join([*lines, "", _FOOTNOTE])


def _union(spans: Iterable[Span]) -> list[Span]:
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _bytes(number: str, unit: str) -> float:
    return float(number) * _UNITS[unit]
