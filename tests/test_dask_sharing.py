"""Nodes pull a large file from the one that is still reading it from the archive."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from dask_plugin import RemoteFile, stats
from pyremotedata_core import RemoteChanged

from .dask_nodes import content, through, workers_of
from .waiting import wait_until

pytest.importorskip("distributed")

SIZE = 60_000_000
SLOW = 15_000_000  # bytes a second


@pytest.fixture
def half_way(archive, relay, start_nodes, tmp_path):
    """Two tasks on one file: the reader hangs in the midst of it, the other has pulled a part."""

    def begin(**options):
        made, data = archive.make("large", SIZE)
        client = start_nodes(2, **options)
        reader, puller = workers_of(client)
        relay.set(rate=SLOW)
        file = through(relay, made)
        first = client.submit(content, file, workers=[reader], pure=False, allow_other_workers=True)
        wait_until(lambda: arriving(tmp_path), "the reader has begun")
        second = client.submit(content, file, workers=[puller], pure=False)
        wait_until(lambda: pulled(tmp_path), "a part has been pulled")
        relay.stall()
        relay.set(rate=0)
        assert arriving(tmp_path), "the reader has only a part"
        return client, data, first, second

    return begin


def arriving(folder: Path) -> list[Path]:
    """Return the parts that come from the archive."""
    return list(folder.glob("node*/*/incoming/*/.*.done"))


def pulled(folder: Path) -> bool:
    """Whether a file that is pulled has come in part."""
    return any(path.stat().st_size for path in folder.glob("node*/*/incoming/*/large"))


def left(folder: Path) -> list[Path]:
    return list(folder.glob("node*/*/incoming/*"))


@pytest.mark.parametrize("one_host", [False, pytest.param(True, marks=pytest.mark.full)])
def test_a_node_pulls_what_the_reader_has_already(archive, relay, half_way, one_host):
    client, data, first, second = half_way(one_host=one_host)
    assert not first.done()
    relay.resume()
    assert second.result() == data
    assert first.result() == data
    total = stats(client).total
    assert (total["files"], total["peer_files"]) == (1, 1)
    wait_until(lambda: archive.bytes_read("large") >= SIZE, "the server has closed the file")
    assert archive.bytes_read("large") == SIZE


@pytest.mark.parametrize("one_host", [pytest.param(False, marks=pytest.mark.full), True])
def test_when_the_reader_dies_another_one_reads(relay, half_way, tmp_path, one_host):
    """The puller as a rule, or the dead one's successor, should that be there first."""
    client, data, first, second = half_way(one_host=one_host)
    reader = workers_of(client)[0]
    os.kill(client.run(os.getpid, workers=[reader])[reader], signal.SIGKILL)
    relay.resume()
    assert second.result() == data
    assert first.result() == data
    assert stats(client).total["files"] == 1
    wait_until(lambda: not left(tmp_path / "node1"), "nothing is left")


@pytest.mark.full
def test_a_reader_that_shows_no_life_is_done_without(relay, half_way):
    client, data, _, second = half_way(timeout_s=3)
    reader, puller = workers_of(client)
    pid = client.run(os.getpid, workers=[reader])[reader]
    os.kill(pid, signal.SIGSTOP)
    try:
        relay.resume()
        assert second.result() == data
    finally:
        os.kill(pid, signal.SIGCONT)
    assert stats(client, workers=[puller]).total["files"] == 1


def test_a_file_that_is_replaced_meanwhile_is_nobodys(archive, relay, half_way, tmp_path):
    client, _, first, second = half_way()
    new = os.urandom(SIZE + 1)
    beside = archive.server.make("beside", new)
    os.replace(beside, archive.server.root / "large")
    relay.reset()
    relay.resume()
    for task in (first, second):
        assert isinstance(task.exception(), RemoteChanged)
    url = through(relay, archive.handle("large")).url
    again = [
        client.submit(content, RemoteFile(url), workers=[worker], pure=False)
        for worker in workers_of(client)
    ]
    assert all(task.result() == new for task in again)
    wait_until(lambda: not left(tmp_path), "nothing is left")
