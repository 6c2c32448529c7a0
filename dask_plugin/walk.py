"""Find the handles in a task, and replace them by paths."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from types import FunctionType, MethodType
from typing import Any

from .readers import file_of, pieces_of
from .remotefile import RemoteFile

# A walk runs on the worker's event loop: it gives up after so many objects. Handles that it does
# not reach are found when they are unpickled, or when they are opened.
MOST_OBJECTS = 10_000
_LEAVES = {str, bytes, int, float, bool, type(None), complex, type}


def handles_in(
    thing: Any, most_objects: int = MOST_OBJECTS, *, of_readers: bool = True
) -> list[RemoteFile]:
    """Return the handles in a task or value, each once, in order.

    Looks into dask's task nodes, containers, partial functions, bound methods, closures, defaults
    and dataclasses, not into other objects. Open files of the core's fsspec file system, and
    pieces of Parquet, count as handles, unless those ``of_readers`` are left out.
    """
    found: dict[RemoteFile, None] = {}
    seen: set[int] = set()
    stack: list[Iterator[Any]] = [iter((thing,))]
    while stack:
        for item in stack[-1]:
            most_objects -= 1
            if most_objects < 0:
                return list(found)
            kind = type(item)
            if kind in _LEAVES:
                continue
            if kind is RemoteFile:
                found[item] = None
                continue
            parts = _parts(item, of_readers)
            if parts is not None and id(item) not in seen:
                seen.add(id(item))
                stack.append(iter(parts))
                break
        else:
            stack.pop()
    return list(found)


def replace_handles(thing: Any, path_of: Callable[[RemoteFile], Any]) -> Any:
    """Return a copy of arguments in which handles are replaced, in containers, too."""
    if isinstance(thing, RemoteFile):
        return path_of(thing)
    if isinstance(thing, dict):
        items = {
            replace_handles(key, path_of): replace_handles(value, path_of)
            for key, value in thing.items()
        }
        return items if type(thing) is dict else _alike(thing, items)
    if isinstance(thing, tuple) and hasattr(thing, "_fields"):
        return type(thing)(*(replace_handles(item, path_of) for item in thing))
    if isinstance(thing, list | tuple | set | frozenset):
        return type(thing)([replace_handles(item, path_of) for item in thing])
    return thing


def _alike(original: dict[Any, Any], items: dict[Any, Any]) -> dict[Any, Any]:
    copy = original.copy()
    copy.clear()
    copy.update(items)
    return copy


def _parts(item: Any, of_readers: bool) -> Iterable[Any] | None:
    """Return what an object consists of, None if it is of no kind that is looked into."""
    if isinstance(item, dict):
        return chain(item, item.values())
    if isinstance(item, list | tuple | set | frozenset):
        return item
    if type(item).__module__ == "dask._task_spec":
        parts = [getattr(item, name, None) for name in ("func", "args", "kwargs", "value")]
        return chain(parts, pieces_of(parts[0], parts[1] or ())) if of_readers else parts
    if isinstance(item, partial):
        return (item.func, item.args, item.keywords)
    if isinstance(item, FunctionType):
        return chain(_closure(item), item.__defaults__ or (), (item.__kwdefaults__ or {}).values())
    if isinstance(item, MethodType):
        return (item.__self__, item.__func__)
    if dataclasses.is_dataclass(item) and not isinstance(item, type):
        return [getattr(item, field.name, None) for field in dataclasses.fields(item)]
    file = file_of(item) if of_readers else None
    return None if file is None else [file]


def _closure(function: FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # a name that is not bound yet
            continue
