"""Waiting for what other threads and processes do."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

PATIENCE_S = 60.0


def wait_until(
    true: Callable[[], object], what: str = "it happened", within_s: float = PATIENCE_S
) -> None:
    """Wait until something is true; fail when it takes too long."""
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.02)


def wait_until_stalled(relay) -> None:
    """Wait until the stall of a relay has struck."""
    wait_until(lambda: relay.status()["faults"], "the transfer has got as far as the stall")


# For what is promised to happen at once: generous, for a loaded machine.
soon = partial(wait_until, within_s=5.0)
