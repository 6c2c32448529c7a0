"""What is worth another attempt, and when: decisions without I/O, which the pool carries out."""

from __future__ import annotations

import random

from .errors import (
    ENDED_LOGIN,
    IN_LOGIN,
    AuthenticationFailed,
    ConnectionLost,
    HostKeyRejected,
    ServerRefused,
    TransferError,
    TransferTimeout,
)
from .transports.base import Operation

FIRST_REFUSALS_S = 20.0  # patience with a server that has never let us in
MAX_ATTEMPTS = 8  # of one operation, none of which got further than the one before
LOGINS_BROKEN_OFF = 3  # of a server that may refuse us for longer with each
MIN_ATTEMPTS = 3  # before the time limit of operations that get no further counts


def worth_retrying(
    operation: Operation, error: TransferError, *, now: float, heard: float, timeout_s: float
) -> bool:
    """Decide whether a failed operation is to be tried again.

    Parameters
    ----------
    operation : Operation
    error : TransferError
        How it failed.
    now, heard : float
        Monotonic time: the present, and when the server was last heard.
    timeout_s : float
        The limit for silence.
    """
    if not error.retryable:
        return False
    if not isinstance(error, ConnectionLost | TransferTimeout | ServerRefused):
        return False  # the job knows what to do about a changed file
    if operation.moved <= operation.most and (
        operation.attempts >= MAX_ATTEMPTS
        or (operation.attempts >= MIN_ATTEMPTS and now - operation.troubled > timeout_s)
    ):
        return False  # it gets no further
    return now - max(heard, operation.born) < timeout_s * 0.95


def worth_reopening(
    error: TransferError, *, ever_opened: bool, failures: int, troubled_s: float, timeout_s: float
) -> bool:
    """Decide whether a login that failed is to be tried again.

    Parameters
    ----------
    error : TransferError
        How it failed.
    ever_opened : bool
        Whether this server has let us in before.
    failures : int
        How often it has failed so by now.
    troubled_s : float
        Time since it was first tried in vain.
    timeout_s : float
        The limit for silence.
    """
    if not error.retryable or isinstance(error, AuthenticationFailed | HostKeyRejected):
        return False
    if ever_opened:
        return troubled_s < timeout_s * 0.95
    # A typing error looks like a server that is down: say so at once. A server that answers
    # and then closes may only be busy; an ssh that was killed says nothing at all.
    broken = "closed the connection" in error.message or "connection broke" in error.message
    broken_off = error.message.startswith(IN_LOGIN) and failures < LOGINS_BROKEN_OFF
    busy = broken or broken_off or isinstance(error, ServerRefused)
    return busy and troubled_s < min(timeout_s, FIRST_REFUSALS_S)


def may_be_one_too_many(error: TransferError) -> bool:
    """Whether a login may have failed because the server takes no more sessions of this user.

    Many servers do not say so: they hang up.
    """
    if isinstance(error, ServerRefused):
        return error.retryable and "MaxStartups" not in error.message  # which bounds logins
    return error.message.startswith((IN_LOGIN, ENDED_LOGIN))


def pause_s(attempts: int, longest_s: float = 5.0) -> float:
    """Return how long to wait before the next attempt: longer each time, never quite the same."""
    return min(longest_s, 0.1 * 2 ** min(attempts, 6)) * random.uniform(0.5, 1.0)  # noqa: S311
