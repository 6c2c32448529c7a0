"""How many sessions a server's work is worth: decisions from figures; the pool carries them out."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from .queues import Queues
from .transports.base import PoolSession

CHANNEL_BYTES = 2 << 20  # OpenSSH's channel window: what one session carries in a round trip
CIPHER_RATE = 1 << 30  # bytes per second: about what one processor encrypts
SAMPLE_S = 0.2
FILE_BYTES = 32 << 10  # that move while one more file is opened and closed


def windows_worth_having(expected_bytes: int, rtt_s: float) -> int:
    """Decide how many sessions the expected work is worth, from the round trip alone.

    A session moves at most its channel's window in a round trip, which on a short line is more
    than any connection carries. Opening another on the same one costs some four round trips.
    """
    waited_s = expected_bytes * max(0.0, rtt_s / CHANNEL_BYTES - 1 / CIPHER_RATE)
    return 1 + int(waited_s / (4 * rtt_s + 0.02))


class Growth:
    """The work of one server: what is to come, how fast it goes, what another session did for it.

    Belongs to the loop's thread.

    Attributes
    ----------
    waiting_bytes, expected_bytes : int
        To come of files that have not been begun, and of those that move in segments.
    expected_files : int
        Both kinds together.
    done_bytes, done_files : int
        What has moved so far.
    connect_s : float
        What the last login took.
    """

    def __init__(self) -> None:
        self.waiting_bytes = self.expected_bytes = self.expected_files = 0
        self.done_bytes = self.done_files = 0
        self.connect_s = 0.0
        self._moving = 0
        self._moving_s = self._moving_since = 0.0
        self._sample = (0.0, 0, 0)
        self._rate_bytes = self._rate_files = 0.0
        self._before: tuple[float, int] | None = None  # rate and sessions, when others were added
        self._last_gain: float | None = None
        self._processors = Processors()
        self._idle: float | None = None

    def known_bytes(self, queued_bytes: int) -> int:
        """Return how much is to move, with what waits in the queue."""
        # The segments in the queue are among those that are expected.
        return self.waiting_bytes + max(self.expected_bytes, queued_bytes)

    def begin_move(self) -> None:
        """Note that an operation that moves bytes is asked for."""
        if not self._moving:
            self._moving_since = time.monotonic()
        self._moving += 1

    def end_move(self) -> None:
        """Note that one has ended."""
        self._moving -= 1
        if not self._moving:
            self._moving_s += time.monotonic() - self._moving_since

    def past_bytes(self, rtt_s: float, sessions: int) -> int:
        """Return how much has moved, if that took long for want of windows and not of a line.

        Who has asked for much so far, a few files at a time, will ask for as much again.
        """
        now_s = time.monotonic() - self._moving_since if self._moving else 0.0
        took_s = self._moving_s + now_s
        window_bound = self.done_bytes * rtt_s > 0.25 * CHANNEL_BYTES * sessions * took_s
        return self.done_bytes if window_bound else 0

    def begin_sample(self) -> None:
        """Measure from now on."""
        self._sample = (time.monotonic(), self.done_bytes, self.done_files)

    def end_sample(self) -> None:
        """Measure what has moved since `begin_sample`."""
        since, bytes_then, files_then = self._sample
        seconds = time.monotonic() - since
        self._rate_bytes = (self.done_bytes - bytes_then) / seconds
        self._rate_files = (self.done_files - files_then) / seconds
        self._idle = self._processors.idle(worked=bool(self._rate))

    def compare(self, sessions: int) -> bool:
        """See what the sessions opened last have done; return whether any were."""
        if self._before is None:
            return False
        rate, sessions_then = self._before
        if sessions > sessions_then:
            self._last_gain = self._rate / rate if rate else 1.0
        self._before = None
        return True

    def remember(self, sessions: int) -> None:
        """Note that others join so many sessions, for the next `compare`."""
        self._before = (self._rate, sessions)

    def forget_last(self) -> None:
        """Note that the server has refused one: there is nothing to compare."""
        self._before = None

    def wanted(self, opened: Sequence[PoolSession], queues: Queues) -> int:
        """Return how many further sessions are worth it, when these are full."""
        if not self._rate:
            return 0
        bytes_s, files_s = self._rate_bytes, self._rate_files
        left_bytes = self.known_bytes(queues.load_bytes)
        left_s = max(
            left_bytes / bytes_s if bytes_s else 0.0,
            max(self.expected_files, len(queues)) / files_s if files_s else 0.0,
        )
        return more_sessions(
            sessions=len(opened),
            rate_bytes=bytes_s,
            rate_files=files_s,
            rtt_s=min((s.rtt_s for s in opened if s.rtt_s), default=0.0),
            operations=opened[0].max_operations,
            left_s=left_s,
            connect_s=self.connect_s,
            last_gain=self._last_gain,
            idle_processors=self._idle,
        )

    @property
    def _rate(self) -> float:
        """One figure for both; a file takes as long as so many bytes."""
        return self._rate_bytes + self._rate_files * FILE_BYTES


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
