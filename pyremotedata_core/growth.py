"""How many sessions a server's work is worth: decisions from figures; the pool carries them out."""

from __future__ import annotations

import os
import time

CHANNEL_BYTES = 2 << 20  # OpenSSH's channel window: what one session carries in a round trip
CIPHER_RATE = 1 << 30  # bytes per second: about what one processor encrypts
SAMPLE_S = 0.2


def windows_worth_having(expected_bytes: int, rtt_s: float) -> int:
    """Decide how many sessions the known work is worth, from the round trip alone.

    A session moves at most its channel's window in a round trip, which on a short line is more
    than any connection carries. Opening another on the same one costs some four round trips.
    """
    waited_s = expected_bytes * max(0.0, rtt_s / CHANNEL_BYTES - 1 / CIPHER_RATE)
    return 1 + int(waited_s / (10 * rtt_s + 0.02))


class Processors:
    """What this machine's processors have left."""

    def __init__(self) -> None:
        self._before = (time.monotonic(), _idle_s())
        self._last = 0.0

    def idle(self, worked: bool) -> float | None:
        """Return how many of them have had nothing to do; None where the system does not tell.

        That is the least of the time since the last call and of the time before that, as one may
        have begun before the work did; 0 where there was none to be ``worked`` on before.
        """
        then, idle_then = self._before
        self._before = now, idle_now = time.monotonic(), _idle_s()
        if idle_now is None or idle_then is None or now == then:
            return None
        idle = (idle_now - idle_then) / (now - then)
        before, self._last = self._last, idle if worked else 0.0
        return min(before, idle)


def _idle_s() -> float | None:
    try:
        with open("/proc/stat", "rb") as stat:
            fields = stat.readline().split()
        return (int(fields[4]) + int(fields[5])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None


def more_sessions(
    *,
    sessions: int,
    rate_bytes: float,
    rate_files: float,
    rtt_s: float,
    operations: int,
    left_s: float,
    connect_s: float,
    last_gain: float | None,
    idle_processors: float | None,
) -> int:
    """Decide how many further connections are worth their price.

    Parameters
    ----------
    sessions : int
        Now open and full.
    rate_bytes, rate_files : float
        Measured with them, per second.
    rtt_s : float
        Round trip.
    operations : int
        Operations that one session takes at once.
    left_s : float
        Estimated time for the work that is known, at this rate.
    connect_s : float
        What opening a session has cost.
    last_gain : float or None
        Factor by which the last session opened raised the rate.
    idle_processors : float or None
        How many of this machine's have nothing to do; None where that is not known.
    """
    if left_s < 1.5 * connect_s + SAMPLE_S:
        return 0
    window_bound = rate_bytes * rtt_s > 0.5 * CHANNEL_BYTES * sessions
    handle_bound = rate_files * 2 * rtt_s > 0.5 * operations * sessions
    if window_bound or handle_bound:
        # The link waits for answers: every session adds its own window.
        return sessions if sessions > 1 else 3
    large = rate_bytes > (1 << 20) * rate_files
    room = idle_processors is None or idle_processors > 0.5
    if large and room and (last_gain is None or last_gain > 1.15) and left_s > 10 * connect_s:
        return 1  # try whether another pair of cipher processes helps
    return 0
