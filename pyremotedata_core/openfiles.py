"""How many files a process may have open."""

from __future__ import annotations

import contextlib
import resource


def allow_open_files(count: int) -> None:
    """Let this process, and what it starts, open so many files if the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
