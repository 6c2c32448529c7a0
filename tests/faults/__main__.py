"""The long form: drills for some minutes, and a table.

``python -m tests.faults --minutes 60 --seed 1``; ``--only 17`` repeats one drill.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections import Counter

from .drill import Drill, Outcome
from .scene import Scene
from .strikes import STRIKES

ENDS = ("survived", "retried", "clean error", "lost")
SHOWN_LINES = 60


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first drill")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of the drills to run")
    parser.add_argument("--verbose", action="store_true", help="show what each run printed")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the scene is taken down
    end = time.monotonic() + options.minutes * 60
    outcomes = []
    with Scene() as scene:
        number = options.first
        numbers = list(options.only or [])
        while time.monotonic() < end and (options.only is None or numbers):
            if options.only is not None:
                number = numbers.pop(0)
            began = time.monotonic()
            outcome = Drill(scene, options.seed, number).run()
            print(f"{outcome} ({time.monotonic() - began:.1f} s)", flush=True)
            for objection in outcome.objections:
                print(f"    {objection}", flush=True)
            if outcome.objections or options.verbose:
                last = outcome.text.splitlines()[-SHOWN_LINES:]
                last += ["--- where it hung", *outcome.hung.splitlines()] if outcome.hung else []
                print("".join(f"        {line}\n" for line in last), end="", flush=True)
            outcomes.append(outcome)
            number += 1
    print(table(outcomes))
    return int(any(outcome.objections for outcome in outcomes))


def table(outcomes: list[Outcome]) -> str:
    """Return one line for each fault: how often it struck, and how those runs ended."""
    counts = Counter((fault, each.end) for each in outcomes for fault in each.strikes)
    lines = [f"{'fault':36} {'times':>6}" + "".join(f"{end:>13}" for end in ENDS)]
    rows = {fault: [counts[fault, end] for end in ENDS] for fault in STRIKES}
    rows["all"] = [sum(column) for column in zip(*rows.values(), strict=True)]
    for fault, row in rows.items():
        lines.append(f"{fault:36} {sum(row):6}" + "".join(f"{count:13}" for count in row))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
