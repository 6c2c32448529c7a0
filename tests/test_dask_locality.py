"""Locality: tasks prefer nodes that hold their files, and are never kept waiting for them."""

from __future__ import annotations

import os
import signal

import pytest

from dask_plugin import RemoteFile, stats

from .dask_nodes import content, workers_of
from .waiting import PATIENCE_S, wait_until

distributed = pytest.importorskip("distributed")


def where(file) -> str:
    content(file)
    return distributed.get_worker().address


def test_tasks_prefer_the_node_that_holds_their_file(archive, start_nodes):
    client = start_nodes(3, locality=True)
    workers = workers_of(client)
    placed = {}
    for number in range(9):
        file, _ = archive.make(f"f{number}", 1000)
        placed[RemoteFile(file.url)] = home = workers[number % 3]
        assert client.submit(where, file, workers=[home]).result() == home
    for file, home in placed.items():
        assert client.submit(where, file, pure=False).result() == home
    assert stats(client).total["files"] == 9
    assert stats(client).total["peer_files"] == 0


def test_tasks_run_elsewhere_when_the_preferred_node_is_gone(archive, start_nodes):
    client = start_nodes(2, locality=True)
    home, other = workers_of(client)
    file, _ = archive.make("a", 1000)
    assert client.submit(where, file, workers=[home]).result() == home
    client.retire_workers([home])
    assert client.submit(where, file, pure=False).result() == other


def test_tasks_run_on_new_workers_when_all_that_there_were_are_gone(archive, start_nodes, tmp_path):
    client = start_nodes(2, locality=True)
    home, other = workers_of(client)
    file, data = archive.make("a", 1000)
    assert client.submit(where, file, workers=[home]).result() == home

    def stay(file):
        (tmp_path / "begun").touch()
        wait_until((tmp_path / "gate").exists, "the task may go on")
        return content(file)

    task = client.submit(stay, file)
    wait_until((tmp_path / "begun").exists, "the task has begun")
    for pid in client.run(os.getpid).values():
        os.kill(pid, signal.SIGKILL)  # their nannies start others
    wait_until(lambda: not {home, other} & {*workers_of(client)}, "both are gone")
    (tmp_path / "gate").touch()
    assert task.result(timeout=PATIENCE_S) == data


def test_tasks_run_on_a_worker_that_goes_on_before_the_preferred_one(archive, start_nodes):
    client = start_nodes(2, locality=True)
    home, other = workers_of(client)
    file, _ = archive.make("a", 1000)
    assert client.submit(where, file, workers=[home]).result() == home
    assert client.submit(where, file, pure=False).result() == home

    client.run(pause)
    wait_until(lambda: not running(client), "both are paused")
    task = client.submit(where, file, pure=False)
    wait_until(lambda: unrunnable(client) == 1, "nobody can take it")
    client.run(go_on, workers=[other])
    assert task.result(timeout=PATIENCE_S) == other


def pause(dask_worker):
    if dask_worker.memory_manager is not None:
        dask_worker.memory_manager.memory_pause_fraction = False  # or it goes on by itself
    dask_worker.status = distributed.Status.paused


def go_on(dask_worker):
    dask_worker.status = distributed.Status.running


def running(client):
    return client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.running))


def unrunnable(client):
    return client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.unrunnable))


def test_tasks_run_elsewhere_when_the_preferred_node_is_busy(archive, start_nodes, tmp_path):
    client = start_nodes(2, locality=True)
    home, other = workers_of(client)
    file, _ = archive.make("a", 1000)
    assert client.submit(where, file, workers=[home]).result() == home
    gate = tmp_path / "gate"

    def use(file, number):
        place = where(file)
        (gate.parent / f"started-{number}").touch()
        wait_until(gate.exists, "the task may go on")
        return place

    tasks = client.map(use, [file] * 8, range(8))
    wait_until(lambda: len(list(tmp_path.glob("started-*"))) == 2, "both workers have begun one")
    gate.touch()
    assert set(client.gather(tasks)) == {home, other}


def test_a_place_that_the_user_has_chosen_is_kept(archive, start_nodes):
    client = start_nodes(2, locality=True)
    home, other = workers_of(client)
    file, _ = archive.make("a", 1000)
    assert client.submit(where, file, workers=[home]).result() == home
    assert client.submit(where, file, workers=[other], pure=False).result() == other
