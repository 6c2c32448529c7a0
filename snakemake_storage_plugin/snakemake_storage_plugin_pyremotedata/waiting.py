"""Two ways to wait for the engine, for procedures that are written once.

A procedure is a coroutine function that takes `on_loop` or `blocking` and awaits everything
through it. With `blocking` it never suspends, so `run_now` can run it without an event loop,
also where one is running already.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from pyremotedata_core.futures import wait_for

T = TypeVar("T")
Wait = Callable[[Future[Any]], Awaitable[Any]]


async def on_loop(future: Future[T]) -> T:
    """Wait without blocking the running loop; cancelling the waiter cancels the future."""
    return await asyncio.wrap_future(future)


async def blocking(future: Future[T]) -> T:
    """Wait in the calling thread; an interrupt cancels the future."""
    return wait_for(future)


def run_now(procedure: Coroutine[Any, Any, T]) -> T:
    """Run a procedure that waits with `blocking` to its end, in the calling thread."""
    try:
        procedure.send(None)
    except StopIteration as end:
        return end.value
    procedure.close()
    raise RuntimeError("a procedure that should block has suspended")


def in_thread(work: Callable[..., T], *arguments: Any) -> Future[T]:
    """Do what only reads in a thread of its own; nobody waits for it when it is cancelled."""
    future: Future[T] = Future()

    def run() -> None:
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(work(*arguments))
            except BaseException as error:
                future.set_exception(error)

    threading.Thread(target=run, name="pyremotedata-files", daemon=True).start()
    return future
