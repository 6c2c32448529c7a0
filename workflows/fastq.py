"""Sequencing reads: samples to play with, and the measures that the workflows take of them.

``python fastq.py measure READS.fastq.gz`` prints a sample's measures as JSON,
``python fastq.py thin EVERY READS.fastq.gz OUT.fastq.gz`` keeps one read of every so many,
``python fastq.py table OUT.tsv MEASURES.json...`` makes one table of many samples.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path

READ_BASES = 150
BLOCK_READS = 8000
BLOCKS = 12
_PHRED_ZERO = 33
_QUALITIES = b"F" * 11 + b"::" + b"," * 2 + b"#"  # the binned qualities of present sequencers

Read = tuple[bytes, bytes, bytes, bytes]


@dataclass(frozen=True)
class Measures:
    """What is counted of one sample."""

    sample: str
    reads: int
    bases: int
    gc_bases: int
    quality_sum: int
    poor_reads: int  # mean quality below 30

    def __add__(self, other: Measures) -> Measures:
        numbers = zip(astuple(self)[1:], astuple(other)[1:], strict=True)
        return Measures(self.sample, *(a + b for a, b in numbers))


def make_samples(directory: Path, samples: int, sample_bytes: int) -> dict[str, Measures]:
    """Write ``SAMPLE.fastq.gz`` files of about ``sample_bytes`` each; return their measures.

    The same arguments make the same bytes. A sample is a row of compressed blocks, as bgzip
    makes them, out of a small stock; so a hundred megabytes take about a second.
    """
    stock = [_block(random.Random(number), number) for number in range(BLOCKS)]
    known = {}
    for number in range(1, samples + 1):
        name = f"sample{number:02}"
        dice = random.Random(name)
        total, written = Measures(name, 0, 0, 0, 0, 0), 0
        with open(directory / f"{name}.fastq.gz", "wb") as file:
            while written < sample_bytes:
                data, measures = dice.choice(stock)
                written += file.write(data)
                total += measures
        known[name] = total
    return known


def measure(path: str | os.PathLike[str], sample: str) -> Measures:
    """Count a gzip-compressed FASTQ file."""
    with gzip.open(path) as file:
        return _measure(sample, _reads(file))


def thin(path: str | os.PathLike[str], every: int, target: str | os.PathLike[str]) -> int:
    """Write one read of every ``every``; return how many."""
    kept = 0
    with gzip.open(path) as file, gzip.open(target, "wb", compresslevel=1) as out:
        for number, read in enumerate(_reads(file)):
            if number % every == 0:
                out.writelines(read)
                kept += 1
    return kept


def write_table(measures: list[Measures], target: str | os.PathLike[str]) -> None:
    """Write a tab-separated table, a line for each sample."""
    lines = [[field.name for field in fields(Measures)], *(map(str, astuple(m)) for m in measures)]
    Path(target).write_text("".join("\t".join(line) + "\n" for line in lines))


def read_table(path: str | os.PathLike[str]) -> dict[str, Measures]:
    """Read a table of `write_table`: measures by sample."""
    rows = [line.split("\t") for line in Path(path).read_text().splitlines()[1:]]
    return {name: Measures(name, *map(int, numbers)) for name, *numbers in rows}


def sample_name(path: str | os.PathLike[str]) -> str:
    """Return the sample that a file is about."""
    return os.path.basename(os.fspath(path)).partition(".")[0]


def _block(dice: random.Random, number: int) -> tuple[bytes, Measures]:
    bases = dice.randbytes(BLOCK_READS * READ_BASES).translate(b"ACGT" * 64)
    qualities = dice.randbytes(BLOCK_READS * READ_BASES).translate(_QUALITIES * 16)
    reads = [
        (
            b"@SIM:1:FC%d:%d:%d\n" % (number, index % 96, index),
            bases[start : start + READ_BASES] + b"\n",
            b"+\n",
            qualities[start : start + READ_BASES] + b"\n",
        )
        for index, start in enumerate(range(0, BLOCK_READS * READ_BASES, READ_BASES))
    ]
    text = b"".join(line for read in reads for line in read)
    return gzip.compress(text, compresslevel=1, mtime=0), _measure("", iter(reads))


def _reads(lines: Iterator[bytes]) -> Iterator[Read]:
    return zip(lines, lines, lines, lines, strict=True)


def _measure(sample: str, reads: Iterator[Read]) -> Measures:
    count = bases = gc = quality = poor = 0
    for _name, sequence, _plus, qualities in reads:
        length = len(sequence) - 1
        total = sum(qualities) - qualities[-1] - _PHRED_ZERO * length
        count += 1
        bases += length
        gc += sequence.count(b"G") + sequence.count(b"C")
        quality += total
        poor += total < 30 * length
    return Measures(sample, count, bases, gc, quality, poor)


def main(verb: str, *arguments: str) -> None:
    started = time.monotonic()
    if verb == "measure":
        (path,) = arguments
        print(json.dumps(asdict(measure(path, sample_name(path)))))
    elif verb == "thin":
        every, path, target = arguments
        thin(path, int(every), target)
    elif verb == "table":
        target, *paths = arguments
        write_table([Measures(**json.loads(Path(path).read_text())) for path in paths], target)
    else:
        sys.exit(__doc__)
    print(f"{verb} took {time.monotonic() - started:.3f} s", file=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:])
