"""Temporary directories beside the local copies: locked while in use, swept if orphaned."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from pathlib import Path

from pyremotedata_core.names import host_tag, is_temporary, temporary_host, temporary_name


class Workspace:
    """A new temporary directory; `close` removes it.

    The kernel frees its lock when its process dies, however it dies, so that the next one made
    in the same place can remove what a killed process has left.

    Parameters
    ----------
    parent : Path
        Where it stands; made if missing.

    Raises
    ------
    OSError
    """

    def __init__(self, parent: Path) -> None:
        parent.mkdir(parents=True, exist_ok=True)
        sweep(parent)
        self.path = parent / temporary_name()
        unlocked = self.path.with_suffix(".new")  # a name that no other process sweeps
        unlocked.mkdir()
        self._owner = os.getpid()
        self._lock = os.open(unlocked, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        with contextlib.suppress(OSError):
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        unlocked.rename(self.path)

    def close(self) -> None:
        """Remove it with all that is in it; more than once, or in a forked child, is nothing."""
        if self._lock >= 0 and os.getpid() == self._owner:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1


def sweep(parent: Path) -> None:
    """Remove the workspaces of dead processes of this node."""
    for name in os.listdir(parent):
        if not is_temporary(name) or temporary_host(name) != host_tag():
            continue
        with contextlib.suppress(OSError):
            lock = os.open(parent / name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(parent / name, ignore_errors=True)
            finally:
                os.close(lock)
