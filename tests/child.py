"""Processes of their own, which share no interpreter lock with the tests, and obey them."""

from __future__ import annotations

import contextlib
import json
import select
import subprocess
from typing import Any

ANSWER_TIMEOUT_S = 60.0
END_TIMEOUT_S = 60.0


class Child:
    """A process that hears lines of JSON, and says lines of JSON.

    It ends with `kill`, and with this process however that ends: then its input does.
    """

    def __init__(self, *command: str, env: dict[str, str] | None = None) -> None:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command, bufsize=0, stdin=pipe, stdout=pipe, cwd="/", env=env
        )
        self.pid = self._process.pid

    def tell(self, message: Any) -> None:
        """Tell it something."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message).encode() + b"\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        """Return what it says next."""
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], ANSWER_TIMEOUT_S)
        line = self._process.stdout.readline() if ready else b""
        assert line, f"{self._process.args!r} does not answer"
        return json.loads(line)

    def ask(self, message: Any) -> Any:
        """Tell it something; return its answer."""
        self.tell(message)
        return self.answer()

    def end(self) -> None:
        """End its input, and wait until it has ended. May be called twice."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait(END_TIMEOUT_S)
        self._process.stdout.close()

    def kill(self) -> None:
        """Kill it with its connections. May be called twice."""
        self._process.kill()
        self.end()
