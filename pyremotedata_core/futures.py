"""Futures: waiting for one, and how one has ended."""

from __future__ import annotations

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
