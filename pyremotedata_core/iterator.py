"""RemotePathIterator: pyRemoteData's stream of many files, on top of `Remote.stream`."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator
from copy import copy
from itertools import pairwise
from pathlib import Path
from typing import Any

from .handler import IOHandler
from .local import remove_local
from .stream import stream_files


class RemotePathIterator:
    """Yields (local path, remote path) of many files, fetched ahead of their use.

    Parameters
    ----------
    io_handler : IOHandler
        Started; its current directories are used.
    batch_size, max_queued_batches : int
        Their product is how many files are fetched ahead.
    n_local_files : int
        So many files stay after they were used; older ones go, with ``clear_local``.
    clear_local : bool
        Delete files that were used.
    **index
        Arguments of `IOHandler.get_file_index`.
    """

    def __init__(
        self,
        io_handler: IOHandler,
        batch_size: int = 64,
        batch_parallel: int = 10,
        max_queued_batches: int = 3,
        n_local_files: int = 2 * 3 * 64,
        clear_local: bool = True,
        retry_base_delay: float = 0.5,  # noqa: ARG002 - the engine tries again by itself
        retry_max_delay: float = 30.0,  # noqa: ARG002
        retry_timeout: float = 120.0,  # noqa: ARG002
        **index: Any,
    ) -> None:
        self.io_handler = io_handler
        self.batch_size = batch_size
        self.batch_parallel = batch_parallel
        self.max_queued_batches = max_queued_batches
        self.n_local_files = n_local_files
        self.clear_local = clear_local
        known = io_handler.cache.get(io_handler.pwd())
        self.remote_paths = list(known if known is not None else io_handler.get_file_index(**index))
        self._iterating = False

    def __len__(self) -> int:
        return len(self.remote_paths)

    def shuffle(self) -> None:
        """Shuffle the files, in place."""
        self._not_while_iterating()
        random.shuffle(self.remote_paths)

    def subset(self, indices: list[int] | int | slice) -> None:
        """Keep the files at these places only."""
        self._not_while_iterating()
        if isinstance(indices, int):
            indices = [indices]
        if isinstance(indices, slice):
            self.remote_paths = self.remote_paths[indices]
        elif isinstance(indices, list):
            self.remote_paths = [self.remote_paths[i] for i in indices]
        else:
            raise TypeError(f"indices is an int, a list or a slice, not {type(indices).__name__}")

    def split(
        self,
        proportion: list[float] | None = None,
        indices: list[list[int]] | None = None,
    ) -> list[RemotePathIterator]:
        """Split the files at random in these proportions, or by explicit lists of places.

        The iterators that result are independent of each other and of this one.
        """
        self._not_while_iterating()
        if (proportion is None) == (indices is None):
            raise ValueError("give either proportion or indices")
        if proportion is not None:
            indices = _allocate(len(self), proportion)
        assert indices is not None
        for place in (place for part in indices for place in part):
            if not 0 <= place < len(self):
                raise ValueError(f"there is no file at place {place} of {len(self)}")
        return [self._part(part) for part in indices]

    def __iter__(self) -> Iterator[tuple[str, str]]:
        handler = self.io_handler
        self._iterating = True
        owner = os.getpid()
        place = Path(tempfile.mkdtemp(prefix="stream-", dir=handler.lpwd()))
        stream = stream_files(
            handler._remote.engine,
            (handler._url(path) for path in self.remote_paths),
            place,
            ahead_files=max(1, self.batch_size * self.max_queued_batches),
            clear=self.clear_local,
            keep_files=self.n_local_files,
        )
        try:
            for (local, _), path in zip(stream, list(self.remote_paths), strict=True):
                yield str(local), path
        finally:
            stream.close()
            if self.clear_local and os.getpid() == owner:
                remove_local(place)
            self._iterating = False

    def _part(self, places: list[int]) -> RemotePathIterator:
        part = copy(self)
        part.remote_paths = [self.remote_paths[place] for place in places]
        return part

    def _not_while_iterating(self) -> None:
        if self._iterating:
            raise RuntimeError("not while iterating")


def _allocate(count: int, proportion: list[float]) -> list[list[int]]:
    """Deal places out at random; each part's share is its proportion, as near as can be."""
    total = float(sum(proportion))
    if total <= 0 or any(share < 0 for share in proportion):
        raise ValueError("proportions are positive numbers")
    places = random.sample(range(count), count)
    bounds, reached = [0], 0.0
    for share in proportion:
        reached += share / total
        bounds.append(round(reached * count))
    return [sorted(places[a:b]) for a, b in pairwise(bounds)]
