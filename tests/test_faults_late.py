"""A server that hangs, and does what it was asked when somebody else is at work already."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyremotedata_core import ServerRefused, TransferEngine

from .servers import ScriptedSshd
from .sites import WAIT_S, tree
from .waiting import wait_until

LARGE = 9 * 2**20


class Held:
    """A server that keeps requests to rename until they are let go."""

    def __init__(self, place: Path, times: int = 1) -> None:
        self._mark = str(place / "held")
        self.server = ScriptedSshd("relay", {"hold": "rename", "mark": self._mark, "times": times})

    def wait(self, number: int = 0) -> None:
        """Wait until a request is kept."""
        wait_until(lambda: os.path.exists(f"{self._mark}{number}"))

    def let_go(self, number: int = 0) -> None:
        """Let the server do it, and wait until it has."""
        with open(f"{self._mark}{number}", "w"):
            pass
        wait_until(lambda: os.path.exists(f"{self._mark}{number}.done"))


@pytest.mark.parametrize("size", [3, LARGE])
def test_a_file_that_may_not_be_replaced_is_not_although_it_comes_late(tmp_path, size):
    held = Held(tmp_path)
    (tmp_path / "a").write_bytes(bytes(size))
    with held.server as server, TransferEngine(server.settings()) as engine:
        place = server.make_directory("t")
        future = engine.store(tmp_path / "a", server.url("t/a"), overwrite=False)
        held.wait()
        server.make("t/a", b"of somebody else")
        held.let_go()
        error = future.exception(WAIT_S)
        assert isinstance(error, ServerRefused)
        assert "exists already" in str(error)
        assert tree(place) == {"a": b"of somebody else"}
