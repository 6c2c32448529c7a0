"""How many sessions a server's work is worth: pure decisions, which the pool carries out."""

from __future__ import annotations

CHANNEL_BYTES = 2 << 20  # OpenSSH's channel window: what one session carries in a round trip
SAMPLE_S = 0.2


def windows_worth_having(expected_bytes: int, rtt_s: float) -> int:
    """Decide how many sessions the known work is worth, from the round trip alone.

    A session moves at most its channel's window in a round trip, and opening another on the same
    connection costs some four round trips.
    """
    alone_s = expected_bytes * rtt_s / CHANNEL_BYTES
    return 1 + int(alone_s / (10 * rtt_s + 0.02))


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
    """
    if left_s < 1.5 * connect_s + SAMPLE_S:
        return 0
    window_bound = rate_bytes * rtt_s > 0.5 * CHANNEL_BYTES * sessions
    handle_bound = rate_files * 2 * rtt_s > 0.5 * operations * sessions
    if window_bound or handle_bound:
        # The link waits for answers: every session adds its own window.
        return sessions if sessions > 1 else 3
    large = rate_bytes > (1 << 20) * rate_files
    if large and (last_gain is None or last_gain > 1.15) and left_s > 10 * connect_s:
        return 1  # try whether another pair of cipher processes helps
    return 0
