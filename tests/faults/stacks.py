"""Where a Snakemake hangs that SIGTERM has not ended, and whether that may be our doing.

Snakemake's handler of SIGTERM takes the scheduler's lock, and waits for ever where the code that it
has interrupted holds it. That one hang is not ours; it must not hide one that is. What this cannot
see is a coroutine that waits in vain, which is on no stack: such a run does not end without SIGTERM
either, and other drills object to that.
"""

from __future__ import annotations

import re

# Runs Snakemake as `python -m snakemake` does; upon SIGUSR1 it writes where its threads are.
SNAKEMAKE = """\
import faulthandler, runpy, signal
faulthandler.register(signal.SIGUSR1)
runpy.run_module("snakemake", run_name="__main__", alter_sys=True)
"""

_THREAD = re.compile(r"^(?:Current thread|Thread) 0x.*\n", re.MULTILINE)
_FRAME = re.compile(r'^  File "(.*)", line \d+ in (.*)$', re.MULTILINE)
_OURS = re.compile(r"/(pyremotedata_core|snakemake_storage_plugin_pyremotedata)/")
_STARTS_THREADS = "/threading.py"


def objections(written: str) -> list[str]:
    """Return what speaks against a hang being Snakemake's own.

    Parameters
    ----------
    written : str
        The stacks as faulthandler writes them: innermost frames first, the main thread last.
    """
    *others, main = [_FRAME.findall(each) for each in _THREAD.split(written)[1:]] or [[]]
    if not main:
        return ["it hangs, and does not say where"]
    found = []
    innermost, function = main[0]
    if not innermost.endswith("/job_scheduler.py") or function != "exit_gracefully":
        found.append("it hangs, and not in Snakemake's handler of SIGTERM")
    if any(_OURS.search(path) for path, _ in main):
        found.append("it hangs with our code in its main thread")
    if any(map(_is_busy, others)):
        found.append("it hangs with our code in another thread")
    return found


def _is_busy(frames: list[tuple[str, str]]) -> bool:
    """Whether our code does something in a thread; alone, as what the thread runs, it is idle."""
    paths = [path for path, _ in frames if not path.endswith(_STARTS_THREADS)]
    return any(map(_OURS.search, paths[:-1]))
