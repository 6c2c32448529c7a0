"""Outputs of tasks on clusters of real worker processes."""

from __future__ import annotations

import os
import signal

import pytest

from dask_plugin import stage_out, stats
from pyremotedata_core import TransferError

from .dask_cluster import read
from .dask_nodes import content, on_each, workers_of
from .waiting import wait_until

distributed = pytest.importorskip("distributed")


def summarise(url, fails=False):
    with stage_out(url) as out:
        with open(out, "w") as text:
            text.write("result")
        if fails:
            raise ValueError("half-way")
    return out.file


def test_an_output_is_uploaded_and_the_next_task_has_it_at_once(sshd_factory, served):
    server = sshd_factory(log_requests=True)
    client = served(server)
    first = client.submit(summarise, server.url("out/summary.txt"))
    file = first.result()
    assert (server.root / "out/summary.txt").read_text() == "result"
    assert (file.size, file.name) == (6, "summary.txt")
    opened = server.requests("open")
    assert client.submit(read, first).result() == "result"
    assert server.requests("open") == opened
    assert stats(client).total["stored_bytes"] == 6


def test_an_output_of_a_task_that_fails_is_not_uploaded(client, sshd, remote_directory, cache_dir):
    with pytest.raises(ValueError, match="half-way"):
        client.submit(summarise, sshd.url(f"{remote_directory}/out"), fails=True).result()
    assert os.listdir(sshd.root / remote_directory) == []
    assert not any(cache_dir.glob("*/incoming/*"))


def test_an_upload_that_fails_is_the_tasks_error_and_may_be_tried_again(
    client, sshd, remote_directory, cache_dir
):
    # A file stands where the output's directory is to be, until the first attempt has failed.
    blocked = sshd.make(f"{remote_directory}/blocked", b"")

    def attempt(url, unblock):
        try:
            return summarise(url)
        except TransferError:
            if unblock:
                blocked.unlink()
            raise

    url = sshd.url(f"{remote_directory}/blocked/out")
    with pytest.raises(TransferError):
        client.submit(attempt, url, False).result()
    wait_until(lambda: not any(cache_dir.glob("*/incoming/*")), "nothing is left of it")
    assert client.submit(attempt, url, True, retries=1).result().size == 6
    assert (blocked / "out").read_text() == "result"


def test_an_output_of_a_killed_worker_is_written_by_another_attempt(far, served, cache_dir):
    server, relay = far
    server.make_directory("out")
    client = served(server)

    def write(url):
        with stage_out(url) as out:
            out.path.write_bytes(b"x" * 3_000_000)
        return out.file

    relay.stall(after_bytes=1_000_000, direction="up")
    task = client.submit(write, far.url("out/large"))
    wait_until(lambda: relay.status()["up"] >= 1_000_000, "the upload has begun")
    (pid,) = client.run(os.getpid).values()
    os.kill(pid, signal.SIGKILL)
    relay.resume()
    assert task.result().size == 3_000_000
    assert (server.root / "out/large").read_bytes() == b"x" * 3_000_000
    wait_until(
        lambda: not any(cache_dir.glob("*/incoming/*")), "the draft of the killed one is gone"
    )


def test_an_output_that_replaces_another_nodes_is_read_everywhere(archive, start_nodes):
    client = start_nodes(2)
    nodes = workers_of(client)

    def write(url, data):
        with stage_out(url) as out:
            out.path.write_bytes(data)
            os.utime(out, (12345, 12345))
        return out.file

    url = archive.server.url("state")
    for node, data in zip(nodes, (b"old", b"new"), strict=True):
        file = client.submit(write, url, data, workers=[node]).result()
    assert client.gather(on_each(client, content, file)) == [b"new", b"new"]


def test_an_output_outside_of_tasks_works(sshd, remote_directory, monkeypatch):
    monkeypatch.setenv("PYREMOTEDATA_SSH_CONFIG", str(sshd.ssh_config))
    output = stage_out(sshd.url(f"{remote_directory}/out"))
    with pytest.raises(RuntimeError, match="with block"):
        os.fspath(output)
    with output as out:
        out.path.write_text("here")
        with pytest.raises(RuntimeError, match="not uploaded"):
            _ = out.file
    assert read(output.file) == "here"
