"""Progress of long work: a bar on a terminal, nothing elsewhere, or a caller's function."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Never

if TYPE_CHECKING:
    from tqdm import tqdm

Progress = Callable[[int, int], None]


@contextlib.contextmanager
def shown(progress: bool | Progress | None, what: str) -> Iterator[Progress | None]:
    """Give a function that takes (bytes, files) moved since its last call.

    Parameters
    ----------
    progress : bool or callable or None
        True draws a bar on standard error if that is a terminal; a function is used as it is.
    what : str
        The bar's label.
    """
    if callable(progress):
        yield progress
        return
    if not progress or not sys.stderr.isatty():
        yield None
        return
    from tqdm import tqdm

    with tqdm(desc=what, unit="B", unit_scale=True, unit_divisor=1024) as bar:
        yield _Bar(bar)


def expect(tell: Progress | None, total_bytes: int) -> None:
    """Say how many bytes are to come, where it is known: a bar then has an end."""
    if isinstance(tell, _Bar):
        tell.bar.total = total_bytes


class _Bar:
    """A bar as a function."""

    def __init__(self, bar: tqdm[Never]) -> None:
        self.bar = bar
        self._files = 0

    def __call__(self, moved: int, more_files: int) -> None:
        self._files += more_files
        if more_files:
            self.bar.set_postfix_str(f"{self._files} files", refresh=False)
        self.bar.update(moved)
