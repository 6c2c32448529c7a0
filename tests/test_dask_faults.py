"""Faults, on clusters of real worker processes: what dies, is full, changes, is gone."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time

import pytest

from dask_plugin import RemoteFile, glob
from pyremotedata_core import ConnectionLost, LocalStorageFull, RemoteChanged

from .dask_nodes import content
from .miglike import MigLike
from .waiting import PATIENCE_S, wait_until

distributed = pytest.importorskip("distributed")


@pytest.mark.full
def test_jobs_of_a_node_share_what_a_server_takes(start_cluster, register):
    # In the jobs of a batch system workers do not find the helper of others.
    alone = "from pyremotedata_core import sharing\nsharing.place_for = lambda settings: ''\n"
    with MigLike(most_sessions=2) as server:
        wanted = [os.urandom(100_000) for _ in range(40)]
        for number, data in enumerate(wanted):
            server.make(str(number), data)
        cluster = start_cluster(n_workers=4, threads_per_worker=1, preload=[alone])
        client = register(cluster, server, ssh_key=str(server.key))
        files = [RemoteFile(server.url(str(number))) for number in range(40)]
        assert client.gather(client.map(content_later, files)) == wanted
        assert "crowded" in server.log_text()
        assert "locked" not in server.log_text()


def content_later(file):
    time.sleep(0.1)
    return content(file)


def test_an_archive_that_is_gone_is_the_tasks_error_and_other_tasks_go_on(far, served):
    server, relay = far
    server.make("a", b"1")
    client = served(server, timeout_s=3)
    relay.refuse()
    task = client.submit(content, RemoteFile(far.url("a")))
    assert client.submit(sum, [1, 2]).result() == 3
    error = task.exception(timeout=PATIENCE_S)
    assert isinstance(error, ConnectionLost)
    assert "nothing listens" in str(error)


def test_a_file_that_has_changed_since_it_was_listed_is_the_tasks_error(sshd, served):
    sshd.make("changing/a", b"old")
    (file,) = glob(sshd.url("changing/*"), ssh_config=str(sshd.ssh_config))
    sshd.make("changing/a", b"newer")
    error = served().submit(content, file).exception()
    assert isinstance(error, RemoteChanged)
    # A client that has the core alone, without plugin and dask, can unpickle it.
    program = "import pickle, sys; print(type(pickle.load(sys.stdin.buffer)).__name__)"
    done = subprocess.run(
        [sys.executable, "-c", f"{program}; assert 'dask_plugin' not in sys.modules"],
        input=pickle.dumps(error),
        capture_output=True,
    )
    assert done.stdout.decode().strip() == "RemoteChanged", done.stderr


def test_a_full_disk_is_the_tasks_error_and_the_next_task_goes_on(archive, start_nodes, small_disk):
    client = start_nodes(1, cache_dir=str(small_disk), timeout_s=3)
    other = small_disk / "of somebody else"
    other.write_bytes(bytes(6_000_000))
    half, data = archive.make("half", 5_000_000)
    error = client.submit(content, half).exception()
    assert isinstance(error, LocalStorageFull)
    assert "\n" not in str(error)
    for part in (half.url, str(small_disk), "bytes free", "free some space"):
        assert part in str(error)
    wait_until(
        lambda: not any(small_disk.glob("*/incoming/*")), "nothing is left of what did not fit"
    )
    other.unlink()
    assert client.submit(content, half, pure=False).result() == data


@pytest.mark.full
def test_a_new_scheduler_serves_the_files_that_are_on_the_nodes(sshd_factory, tmp_path):
    server = sshd_factory(log_requests=True)
    server.make("a", b"once")
    environment = {
        **os.environ,
        "PYREMOTEDATA_SSH_CONFIG": str(server.ssh_config),
        "PYREMOTEDATA_CACHE_DIR": str(tmp_path / "cache"),
        "DASK_DISTRIBUTED__WORKER__PRELOAD": "dask_plugin.preload",
    }
    places = str(tmp_path / "scheduler.json")
    common = ["--scheduler-file", places, "--no-dashboard"]
    processes = []

    def run(kind: str, *options: str) -> None:
        command = [sys.executable, "-m", f"distributed.cli.dask_{kind}", *common, *options]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        processes.append(subprocess.Popen(command, env=environment, cwd=tmp_path, **quiet))

    try:
        for _ in range(2):
            run("scheduler", "--port", "0")
            run("worker", "--nthreads", "1", "--no-nanny")
            with distributed.Client(scheduler_file=places, timeout=PATIENCE_S) as client:
                client.wait_for_workers(1, timeout=PATIENCE_S)
                file = RemoteFile(server.url("a"))
                assert client.submit(content, file).result() == b"once"
                broker = client.run_on_scheduler(
                    lambda dask_scheduler: "pyremotedata-broker" in dask_scheduler.plugins
                )
                assert broker
                processes[-2].send_signal(signal.SIGKILL)
                processes[-1].wait(PATIENCE_S)  # a worker ends with its scheduler
            os.unlink(places)
        assert server.requests("open") == 1
    finally:
        for process in processes:
            process.kill()
            process.wait()
