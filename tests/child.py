"""Servers of the tests in processes of their own, which share no interpreter lock with them."""

from __future__ import annotations

import json
import select
import subprocess
from typing import Any

ANSWER_TIMEOUT_S = 20.0


class Child:
    """A process that answers each line of JSON that it is told with another one.

    It ends with `kill`, and with this process however that ends: then its input does.
    """

    def __init__(self, *command: str) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/"
        )

    def ask(self, message: Any) -> Any:
        """Tell it something; return its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message).encode() + b"\n")
        self._process.stdin.flush()
        return self.answer()

    def answer(self) -> Any:
        """Return what it says next."""
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], ANSWER_TIMEOUT_S)
        line = self._process.stdout.readline() if ready else b""
        assert line, f"{self._process.args} does not answer"
        return json.loads(line)

    def kill(self) -> None:
        """Kill it with its connections."""
        self._process.kill()
        self._process.communicate()
