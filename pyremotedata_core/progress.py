"""Progress of long work: a bar on a terminal, nothing elsewhere, or a caller's function."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

Progress = Callable[[int, int], None]


@contextlib.contextmanager
def shown(
    progress: bool | Progress | None, what: str, total_bytes: int | None = None
) -> Iterator[Progress | None]:
    """Give a function that takes (bytes, files) moved since its last call.

    Parameters
    ----------
    progress : bool or callable or None
        True draws a bar on standard error if that is a terminal; a function is used as it is.
    what : str
        The bar's label.
    total_bytes : int, optional
        What is to come, where it is known.
    """
    if callable(progress):
        yield progress
        return
    if not progress or not sys.stderr.isatty():
        yield None
        return
    from tqdm import tqdm

    files = 0
    with tqdm(total=total_bytes, desc=what, unit="B", unit_scale=True, unit_divisor=1024) as bar:

        def update(moved: int, more_files: int) -> None:
            nonlocal files
            files += more_files
            if more_files:
                bar.set_postfix_str(f"{files} files", refresh=False)
            bar.update(moved)

        yield update
