"""A process that has imported Snakemake, and becomes a run of it by ``fork``.

Nearly all the time of a small run goes into imports. A request on the standard input (a line of
JSON: what `become` takes) makes a child, which is ``python -m snakemake`` from its command line to
the end of its interpreter. Two lines answer: the child's process id, and its exit status once it
has ended.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
END_TIMEOUT_S = 20.0


class Template:
    """The process, seen by the tests; started by the first run."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, timeout_s: float, **request: object) -> int | None:
        """Run Snakemake and return its exit status; kill it when it takes too long (None)."""
        self._process = self._process or start()
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        child = int(self._process.stdout.readline())
        in_time = select.select([self._process.stdout], [], [], timeout_s)[0]
        if not in_time:
            os.killpg(child, signal.SIGKILL)
        status = int(self._process.stdout.readline())
        return status if in_time else None

    def close(self) -> None:
        """End the process."""
        if self._process:
            self._process.communicate(timeout=END_TIMEOUT_S)
            self._process = None


def start() -> subprocess.Popen[bytes]:
    """Start the process."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-m", __name__]
    return subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, bufsize=0)


def serve() -> None:
    """Fork and wait for each request, and end with the input; return in a child, ready to run."""
    for line in sys.stdin:
        request = json.loads(line)
        if not (child := os.fork()):
            return become(**request)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    sys.exit()


def become(arguments: list[str], directory: str, env: dict[str, str], output: str) -> None:
    """Be the process that ``subprocess`` would have started."""
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    said = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for source, target in ((nothing, 0), (said, 1), (said, 2)):
        os.dup2(source, target)
    os.close(nothing)
    os.close(said)
    os.chdir(directory)
    sys.path[0] = directory
    os.environ.clear()
    os.environ.update(env)
    sys.argv = ["snakemake", *arguments]


if __name__ == "__main__":
    import smart_open  # noqa: F401 - which Snakemake imports to read a Snakefile
    from snakemake.cli import get_argument_parser, main

    get_argument_parser()  # imports the plugins
    serve()
    main()
