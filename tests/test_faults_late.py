"""A server that hangs, and does what it was asked when somebody else is at work already."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyremotedata_core import ServerRefused, TransferEngine, TransferError
from pyremotedata_core.trees.many import FILES_UNDER_WAY

from .servers import ScriptedSshd
from .sites import WAIT_S, temporaries, tree
from .waiting import wait_until

SIZE = 3 * 2**20
LARGE = 9 * 2**20


class Held:
    """A server that keeps requests of a kind until they are let go."""

    def __init__(self, place: Path, times: int = 1, kind: str = "rename") -> None:
        self._mark = str(place / "held")
        self.server = ScriptedSshd("relay", {"hold": kind, "mark": self._mark, "times": times})

    def wait(self, number: int = 0) -> None:
        """Wait until a request is kept."""
        wait_until(lambda: os.path.exists(f"{self._mark}{number}"))

    def let_go(self, number: int = 0) -> None:
        """Let the server do it, and wait until it has."""
        with open(f"{self._mark}{number}", "w"):
            pass
        wait_until(lambda: os.path.exists(f"{self._mark}{number}.done"))


def sizes(place: Path) -> Iterator[int]:
    for path in temporaries(place):
        with contextlib.suppress(FileNotFoundError):
            yield os.path.getsize(path)


def test_a_late_rename_gives_no_half_file_its_name(tmp_path, relay_factory):
    held = Held(tmp_path)
    (tmp_path / "a").write_bytes(data := os.urandom(SIZE))
    with held.server as server:
        place = server.make("t/a", b"old").parent
        relay = relay_factory(server.port)
        with TransferEngine(server.settings(bandwidth=2**20)) as engine:
            future = engine.store(tmp_path / "a", relay.url(server.url("t/a")))
            held.wait()
            relay.reset()  # another session begins anew
            wait_until(lambda: any(0 < size < SIZE for size in sizes(place)))
            held.let_go()
            assert (place / "a").read_bytes() in (b"old", data)
            future.result(WAIT_S)
        assert tree(place) == {"a": data}


def test_a_late_rename_is_no_failure_of_the_next_attempt(tmp_path, relay_factory):
    held = Held(tmp_path, times=2)
    (tmp_path / "t").mkdir()
    (tmp_path / "t/a").write_bytes(data := os.urandom(LARGE))
    with held.server as server:
        relay = relay_factory(server.port)
        with TransferEngine(server.settings()) as engine:
            future = engine.store_tree(tmp_path / "t", relay.url(server.url("t")))
            held.wait()
            relay.reset()
            held.wait(1)
            for number in range(2):
                held.let_go(number)
            assert future.result(WAIT_S).failed == []
        assert tree(server.root / "t") == {"a": data}


def test_an_upload_that_is_given_up_while_its_server_is_away_leaves_nothing(
    tmp_path, relay_factory
):
    held = Held(tmp_path)
    (tmp_path / "a").write_bytes(bytes(LARGE))
    with held.server as server:
        place = server.make_directory("t")
        relay = relay_factory(server.port)
        with TransferEngine(server.settings()) as engine:
            future = engine.store(tmp_path / "a", relay.url(server.url("t/a")))
            held.wait()
            relay.refuse()
            relay.reset()
            future.cancel()
            relay.accept()
            assert engine.wait_cancelled(WAIT_S)
            held.let_go()
            assert tree(place) == {}


def test_an_upload_whose_temporary_file_another_sync_takes_for_an_old_one_begins_anew(tmp_path):
    """It has the time of its source before it has its name."""
    held = Held(tmp_path)
    (tmp_path / "t").mkdir()
    (tmp_path / "t/a").write_bytes(data := os.urandom(LARGE))
    os.utime(tmp_path / "t/a", (1_000_000_000, 1_000_000_000))
    with (
        held.server as server,
        TransferEngine(server.settings()) as engine,
        TransferEngine(server.settings()) as other,
    ):
        arguments = tmp_path / "t", server.url("t")
        future = engine.store_tree(*arguments)
        held.wait()
        assert other.store_tree(*arguments, compare=True, delete=True).result(WAIT_S).failed == []
        held.let_go()
        assert future.result(WAIT_S).failed == []
        assert tree(server.root / "t") == {"a": data}


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


@pytest.mark.parametrize("what", ["gone", "another disk"])
def test_a_local_directory_that_goes_while_the_server_lists_takes_nothing_along(
    tmp_path, mount_disk, what
):
    held, here = Held(tmp_path, kind="opendir"), tmp_path / "here"
    here.mkdir()
    (here / "a").write_bytes(b"1")
    with held.server as server, TransferEngine(server.settings()) as engine:
        place = server.make("t/a", b"1").parent
        server.make("t/sub/b", b"2")
        moved = engine.store_tree(here, server.url("t"), compare=True, delete=True)
        held.wait()
        here.rename(tmp_path / "away")
        if what == "another disk":
            mount_disk(here, "1m")
        held.let_go()
        with pytest.raises(TransferError, match="here"):
            moved.result(WAIT_S)
        assert tree(place) == {"a": b"1", "sub": None, "sub/b": b"2"}


def test_a_sync_that_is_given_up_deletes_no_more(tmp_path):
    held, here = Held(tmp_path, kind="remove"), tmp_path / "here"
    here.mkdir()
    with held.server as server, TransferEngine(server.settings(connections=1)) as engine:
        for number in range(2000):
            (server.make_directory("t/old") / f"{number}").touch()
        moved = engine.store_tree(here, server.url("t"), delete=True)
        held.wait()
        moved.cancel()
        held.let_go()
        assert engine.wait_cancelled()
        engine.stat(server.url("t")).result(WAIT_S)
        left = len(engine.scandir(server.url("t/old")).result(WAIT_S))
        assert left >= 2000 - FILES_UNDER_WAY
