"""A blocking session in a thread: one operation at a time, callbacks on the loop's thread."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pyremotedata_core import (
    ConnectionLost,
    Entry,
    RemoteFileNotFound,
    Stat,
    TransferEngine,
    TransferError,
)
from pyremotedata_core.loop import Loop
from pyremotedata_core.part import Part
from pyremotedata_core.transports.base import Operation
from pyremotedata_core.transports.threaded import ThreadedSession

from .lftp_sessions import children, end_sessions, through
from .sites import needs_lftp
from .waiting import wait_until

pytestmark = needs_lftp

WAIT_S = 30.0


class Stage:
    """A loop in a thread with a session on it; every call is made on the loop's thread."""

    def __init__(self, sshd, port: int, **settings: Any) -> None:
        self.loop = Loop()
        self.thread = threading.Thread(target=self.loop.run)
        self.thread.start()
        self.opened = threading.Event()
        self.lost: list[TransferError] = []
        self.strangers: list[str] = []
        blocking = through(sshd, port, **settings)
        self.session = self.call(
            lambda: ThreadedSession(
                blocking, self.loop.call_soon_threadsafe, self._on_open, self._on_lost
            )
        )

    def call(self, function: Callable[[], Any]) -> Any:
        ready = threading.Event()
        result: list[Any] = []

        def run() -> None:
            result.append(function())
            ready.set()

        self.loop.call_soon_threadsafe(run)
        assert ready.wait(WAIT_S)
        return result[0]

    def begin(self, name: str, *args: Any, on_bytes=None, load_bytes: int = 0) -> Outcome:
        outcome = Outcome(self, name, args, on_bytes, load_bytes)
        assert self.call(lambda: self.session.has_room(outcome.operation))
        self.call(lambda: self.session.submit(outcome.operation))
        return outcome

    def close(self) -> None:
        self.call(self.session.close)
        self.call(self.loop.stop)
        self.thread.join(WAIT_S)
        assert self.strangers == []

    def on_the_loop(self, what: str) -> None:
        if threading.current_thread() is not self.thread:
            self.strangers.append(what)

    def _on_open(self) -> None:
        self.on_the_loop("on_open")
        assert self.session.opened
        self.opened.set()

    def _on_lost(self, error: TransferError) -> None:
        self.on_the_loop("on_lost")
        self.lost.append(error)


class Outcome:
    """An operation and what came of it."""

    def __init__(self, stage: Stage, name: str, args: tuple, on_bytes, load_bytes: int) -> None:
        self._stage = stage
        self._ended = threading.Event()
        self._calls: list[tuple[Any, TransferError | None]] = []
        self.moved: list[int] = []
        self._on_bytes = on_bytes
        self.operation = Operation(name, args, self._done, load_bytes, self._count)

    def wait(self) -> Any:
        assert self._ended.wait(WAIT_S)
        ((result, error),) = self._calls
        if error is not None:
            raise error
        return result

    def _done(self, result: Any, error: TransferError | None) -> None:
        self._stage.on_the_loop("done")
        assert self._stage.session.load == 0
        self._calls.append((result, error))
        self._ended.set()

    def _count(self, count: int) -> None:
        self._stage.on_the_loop("on_bytes")
        self.moved.append(count)
        if self._on_bytes:
            self._on_bytes(count)


def kill_lftp() -> None:
    for pid in children("lftp"):
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def relay(sshd, relay_factory):
    return relay_factory(sshd.port)


@pytest.fixture
def stage(sshd, relay) -> Iterator[Stage]:
    stage = Stage(sshd, relay.port, timeout_s=WAIT_S)
    assert stage.opened.wait(WAIT_S)
    yield stage
    stage.close()
    end_sessions()


@pytest.fixture
def reading(stage, sshd, remote_directory, tmp_path, relay) -> Iterator[tuple[Outcome, str, Stat]]:
    """A file that is read slowly: the operation, the path, and what is there."""
    path = str(sshd.make(f"{remote_directory}/f", os.urandom(8 << 20)))
    stat = stage.begin("stat", path, True).wait()
    relay.set(rate=1 << 20)
    part = Part(str(tmp_path / "f"))
    read = stage.begin("read", path, part, 0, stat.size, stat, load_bytes=stat.size)
    yield read, path, stat
    part.discard()


def test_operations_come_back_on_the_loop_one_after_another(
    stage, sshd, remote_directory, tmp_path
):
    data = os.urandom(3_000_000)
    path = str(sshd.make(f"{remote_directory}/f", data, mtime=9))
    stat = stage.begin("stat", path, True).wait()
    assert stat[:3] == ("file", len(data), 9)
    part = Part(str(tmp_path / "f"))
    read = stage.begin("read", path, part, 0, len(data), stat, load_bytes=len(data))
    read.wait()
    part.publish(stat, fsync=False)
    assert (tmp_path / "f").read_bytes() == data
    assert sum(read.moved) == read.operation.moved == len(data)
    entries: list[Entry] = []

    def take(batch: list[Entry]) -> None:
        stage.on_the_loop("take")
        entries.extend(batch)

    stage.begin("scandir", os.path.dirname(path), take).wait()
    assert [entry.name for entry in entries] == ["f"]
    with pytest.raises(RemoteFileNotFound):
        stage.begin("remove", f"{path}.none").wait()
    stage.begin("remove", path).wait()
    assert stage.session.alive
    assert stage.lost == []


def test_there_is_room_for_one_operation(stage, relay, reading):
    read, _, stat = reading
    assert not stage.call(lambda: stage.session.has_room(read.operation))
    assert stage.call(lambda: (stage.session.load, stage.session.load_bytes)) == (1, stat.size)
    relay.set(rate=0)
    read.wait()
    assert stage.call(lambda: stage.session.has_room(read.operation))


def test_what_is_under_way_and_what_comes_meanwhile_fails_with_a_session_that_breaks(
    stage, reading
):
    read, _, _ = reading
    following = Outcome(stage, "stat", ("/", True), None, 0)
    done = read.operation.done

    def hand_over(result: Any, error: TransferError | None) -> None:
        done(result, error)
        assert stage.session.has_room(following.operation)
        stage.session.submit(following.operation)

    read.operation.done = hand_over
    wait_until(lambda: read.moved)
    kill_lftp()
    for outcome in (read, following):
        with pytest.raises(ConnectionLost):
            outcome.wait()
    assert len(stage.lost) == 1
    assert not stage.session.alive
    assert not stage.call(lambda: stage.session.has_room(read.operation))
    wait_until(lambda: children() == [])


def test_a_cancelled_operation_ends_soon_and_the_session_goes_on(stage, relay, reading):
    read, path, stat = reading
    wait_until(lambda: read.moved)
    read.operation.cancelled = True
    relay.set(rate=0)
    with pytest.raises(ConnectionLost, match="cancelled"):
        read.wait()
    assert stage.begin("stat", path, True).wait() == stat
    assert stage.lost == []


def test_the_engine_finishes_its_work_when_an_lftp_is_killed(sshd, remote_directory, tmp_path):
    contents = {f"f{n}": os.urandom(400_000) for n in range(20)}
    for name, data in contents.items():
        sshd.make(f"{remote_directory}/{name}", data)
    settings = sshd.settings(transport="lftp", timeout_s=WAIT_S, connections=2)
    with TransferEngine(settings, in_process=True) as engine:
        futures = [
            engine.fetch(sshd.url(f"{remote_directory}/{name}"), tmp_path / name)
            for name in contents
        ]
        futures[2].result(WAIT_S)
        kill_lftp()
        for future in futures:
            future.result(WAIT_S)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == contents
