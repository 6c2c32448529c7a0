"""Futures: waiting for one, how one has ended, and what a forked child makes of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

T = TypeVar("T")


def wait_for(future: Future[T]) -> T:
    """Return a future's result; if the wait is broken off (Ctrl-C), give up what is under way."""
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


def error_of(future: Future[Any]) -> BaseException | None:
    """Return how a finished future failed, if it did."""
    return CancelledError() if future.cancelled() else future.exception()


def pass_on(done: Future[T], to: Future[T]) -> None:
    """End a future as another one has ended, unless it was cancelled."""
    if not to.set_running_or_notify_cancel():
        return
    error = error_of(done)
    if error is not None:
        to.set_exception(error)
    else:
        to.set_result(done.result())


def unless_forked(call: Callable[[Future[T]], object]) -> Callable[[Future[T]], None]:
    """Return a callback that is not called in a forked child, where an engine ends its futures."""
    owner = os.getpid()

    def called(future: Future[T]) -> None:
        if os.getpid() == owner:
            call(future)

    return called
