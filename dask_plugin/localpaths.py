"""Paths for functions that insist on ``str``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager, suppress
from functools import wraps
from inspect import isasyncgenfunction, iscoroutinefunction, isgeneratorfunction
from typing import Any, TypeVar

from pyremotedata_core import Lease

from . import current
from .remotefile import RemoteFile
from .walk import handles_in, replace_handles

Function = TypeVar("Function", bound=Callable[..., Any])


def local(function: Function) -> Function:
    """Give a function local paths, as ``str``, in place of the handles among its arguments.

    For libraries that insist on ``str``. Handles are found in lists, tuples, sets, dictionaries
    and keyword arguments; their files are fetched all at once and stay until the call ends.
    Serves coroutine functions, too, without blocking their event loop, and generator functions of
    both kinds, whose files are fetched with the first item and stay until the last.
    """
    if iscoroutinefunction(function):

        @wraps(function)
        async def with_paths_async(*args: Any, **kwargs: Any) -> Any:
            with _paths(await asyncio.to_thread(_hold, (args, kwargs))) as path_of:
                args, kwargs = replace_handles((args, kwargs), path_of)
                return await function(*args, **kwargs)

        return with_paths_async  # type: ignore[return-value]

    if isasyncgenfunction(function):

        @wraps(function)
        async def with_paths_yielding_async(*args: Any, **kwargs: Any) -> Any:
            with _paths(await asyncio.to_thread(_hold, (args, kwargs))) as path_of:
                args, kwargs = replace_handles((args, kwargs), path_of)
                async with aclosing(function(*args, **kwargs)) as items:
                    # What `yield from` is to plain generators.
                    step = items.asend(None)
                    with suppress(StopAsyncIteration):
                        while True:
                            item = await step
                            try:
                                step = items.asend((yield item))
                            except GeneratorExit:
                                raise
                            except BaseException as error:
                                step = items.athrow(error)

        return with_paths_yielding_async  # type: ignore[return-value]

    if isgeneratorfunction(function):

        @wraps(function)
        def with_paths_yielding(*args: Any, **kwargs: Any) -> Any:
            with _paths(_hold((args, kwargs))) as path_of:
                args, kwargs = replace_handles((args, kwargs), path_of)
                return (yield from function(*args, **kwargs))

        return with_paths_yielding  # type: ignore[return-value]

    @wraps(function)
    def with_paths(*args: Any, **kwargs: Any) -> Any:
        with _paths(_hold((args, kwargs))) as path_of:
            args, kwargs = replace_handles((args, kwargs), path_of)
            return function(*args, **kwargs)

    return with_paths  # type: ignore[return-value]


def _hold(arguments: Any) -> dict[RemoteFile, Lease]:
    handles = handles_in(arguments)
    return dict(zip(handles, current.hold_here(handles), strict=True))


@contextmanager
def _paths(leases: dict[RemoteFile, Lease]) -> Iterator[Callable[[RemoteFile], str]]:
    try:
        yield lambda handle: str(leases[handle].path)
    finally:
        for lease in leases.values():
            lease.release()
