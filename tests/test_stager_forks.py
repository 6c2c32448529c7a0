"""The Stager in forked children."""

from __future__ import annotations

import fcntl
import os
import signal
import threading

import pytest

from pyremotedata_core import (
    ConnectionLost,
)
from pyremotedata_core.stager import Stager, daemons

from .forks import in_a_fork
from .stager_nodes import files_in, root_of
from .waiting import PATIENCE_S, wait_until, wait_until_stalled


def test_a_forked_child_stages_with_a_stager_of_its_own(stager, offer_all):
    a, b = offer_all("ab")
    stager.lease(a).release()

    def work() -> None:
        assert stager.lease(a).from_cache
        assert not stager.lease(b).from_cache

    assert in_a_fork(work) == ""
    assert stager.lease(b).from_cache


def test_a_forked_child_does_not_hold_the_locks_of_a_parent_that_is_killed(
    far, cache_dir, processes
):
    server, relay = far
    server.make("a", b"x" * 2_000_000)
    url = far.url("a")
    parent = processes(server)
    relay.stall(after_bytes=500_000)
    parent.tell(f"begin {url}")
    wait_until_stalled(relay)
    child = parent.ask("fork")["pid"]
    try:
        parent.kill()
        relay.resume()
        with Stager(server.settings(cache_dir=str(cache_dir), timeout_s=5.0)) as stager:
            assert not stager.lease(url).from_cache
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.fixture
def half_way(far, cache_dir):
    """A stager, a file that has come half-way to it, and the relay that holds the rest."""
    server, relay = far
    server.make("a", b"x" * 2_000_000)
    with Stager(server.settings(cache_dir=str(cache_dir))) as stager:
        relay.stall(after_bytes=500_000)
        coming = stager.stage(far.url("a"))
        wait_until_stalled(relay)
        yield stager, coming, relay


def test_a_forked_child_leaves_alone_what_its_parent_brings(far, cache_dir, monkeypatch):
    server, relay = far
    data = os.urandom(2_000_000)
    server.make("a", data)
    monkeypatch.setattr(daemons, "_IDLE_S", 0.01)  # a transfer takes longer
    others = set(threading.enumerate())  # those of earlier tests idle for longer
    with Stager(server.settings(cache_dir=str(cache_dir))) as stager:
        relay.stall(after_bytes=500_000)
        coming = stager.stage(far.url("a"))
        wait_until_stalled(relay)
        asked = stager.stat(far.url("b"))
        wait_until(lambda: not steps_run(others))

        def work() -> None:
            for future in (coming, asked):
                with pytest.raises(ConnectionLost, match="forked"):
                    future.result(PATIENCE_S)
            wait_until(lambda: not steps_run(others))

        assert in_a_fork(work) == ""
        assert len(list((root_of(cache_dir) / "locks").iterdir())) == 1
        relay.resume()
        assert coming.result(PATIENCE_S).path.read_bytes() == data


def steps_run(others: set[threading.Thread]) -> bool:
    new = set(threading.enumerate()) - others
    return any(thread.name == "pyremotedata-stage" for thread in new)


def test_a_child_begins_that_is_forked_in_the_midst_of_a_step(half_way):
    stager, coming, relay = half_way
    held, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with stager._mutex, stager._steps._changed, stager._bringing._mutex:
            held.set()
            go_on.wait(PATIENCE_S)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(PATIENCE_S)
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    try:
        wait_until(lambda: os.waitpid(pid, os.WNOHANG)[0], "the child has begun and ended")
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        raise
    finally:
        go_on.set()
        thread.join(PATIENCE_S)
    relay.resume()
    assert coming.result(PATIENCE_S).path.stat().st_size == 2_000_000


def test_a_forked_child_does_not_keep_what_was_on_its_way(half_way):
    stager, coming, relay = half_way
    here, there = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(120)
        os.write(there, b"!")  # all that it does not keep is closed
        signal.pause()
    try:
        os.read(here, 1)
        relay.resume()
        coming.result(PATIENCE_S).release()
        assert len(stager.cache.trim(0)) == 1
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(here)
        os.close(there)


def test_a_child_that_is_forked_while_the_cache_looks_around_blocks_nobody(
    small, offer_all, monkeypatch
):
    (url,) = offer_all("a")
    small.lease(url).release()
    ((_, key),) = small.cache.keys_by_use()
    children = []
    flock = fcntl.flock

    def lock_and_fork(fd: int, how: int) -> None:
        flock(fd, how)
        if "/pins/" in os.readlink(f"/proc/self/fd/{fd}") and not children:
            children.append(os.fork())
            if children == [0]:
                signal.alarm(120)
                signal.pause()

    monkeypatch.setattr(fcntl, "flock", lock_and_fork)
    assert not small.cache.is_in_use(key)
    try:
        assert small.lease(url).from_cache
    finally:
        os.kill(children[0], signal.SIGKILL)
        os.waitpid(children[0], 0)


def test_a_forked_child_keeps_the_files_that_its_parent_leased(small, offer_all, cache_dir):
    a, b, c, d = offer_all("abcd")
    lease = small.lease(a)
    go_on, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(tell)
        os.read(go_on, 1)
        os._exit(0)
    lease.release()
    for url in (b, c, d):
        small.lease(url).release()
    assert "a" in files_in(cache_dir)
    os.close(tell)
    os.waitpid(pid, 0)
    for url in (b, c, d, b):
        small.lease(url).release()
    assert "a" not in files_in(cache_dir)
