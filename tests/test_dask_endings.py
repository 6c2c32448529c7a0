"""How tasks and workers end: files go back, errors reach who asked, the dead are replaced."""

from __future__ import annotations

import gc
import hashlib
import os
import pickle
import resource
import signal
import time
import urllib.request
from concurrent.futures import CancelledError
from pathlib import Path

import dask
import pytest

from dask_plugin import RemoteFile, StagingPlugin, stats
from dask_plugin.staging import WorkerStaging
from pyremotedata_core import (
    AuthenticationFailed,
    RemoteFileNotFound,
    RemotePermissionDenied,
    RemoteURL,
    Stager,
    TransferEngine,
)

from .dask_cluster import files_in, in_use, len_of, read
from .logins import changed
from .waiting import PATIENCE_S, soon, wait_until, wait_until_stalled

distributed = pytest.importorskip("distributed")
psutil = pytest.importorskip("psutil")  # comes with distributed

CANARY = "canary-5b0c"


# --- the end of a task --------------------------------------------------------------------------


def test_files_go_back_when_tasks_end_however_they_end(served, remote_file, cache_dir):
    client = served(cache_bytes=40_000, ahead_bytes=10_000, timeout_s=10)

    def use(file, fails):
        data = Path(file).read_bytes()
        if fails:
            raise ValueError(len(data))
        return len(data)

    for round_ in range(3):
        handles = [remote_file(f"{round_}{n}", bytes(10_000)) for n in range(5)]
        tasks = client.map(use, handles, [n % 2 for n in range(5)])
        distributed.wait(tasks, timeout=PATIENCE_S)
        assert [task.status for task in tasks] == ["finished", "error"] * 2 + ["finished"]
        assert len(files_in(cache_dir)) <= 4


def test_an_actor_keeps_no_files_of_its_calls(served, remote_file):
    client = served(cache_bytes=40_000, ahead_bytes=1, timeout_s=5)

    class Reader:
        def length(self, file):
            return len_of(file)

    reader = client.submit(Reader, actor=True).result()
    for n in range(6):
        assert reader.length(remote_file(f"{n}", bytes(10_000))).result(PATIENCE_S) == 10_000


def test_an_actor_that_is_gone_keeps_no_file(served, remote_file, cache_dir):
    client = served()

    class Reader:
        def __init__(self, file):
            self.file = file

        def length(self):
            return len_of(self.file)

    reader = client.submit(Reader, remote_file("kept", bytes(10)), actor=True).result()
    assert reader.length().result(PATIENCE_S) == 10
    assert in_use(cache_dir)
    del reader
    gc.collect()  # dask's proxy is part of a circle
    soon(lambda: not in_use(cache_dir), "the file went back")


def test_a_task_may_open_one_of_more_files_than_the_cache_holds(served, remote_file):
    client = served(cache_bytes=40_000, timeout_s=5)
    handles = [remote_file(f"{n}", bytes(10_000)) for n in range(12)]
    tasks = [client.submit(lambda files, n: len_of(files[n]), handles, n) for n in (11, 0, 5)]
    assert client.gather(tasks) == [10_000] * 3


def test_a_task_may_open_more_files_than_a_process_usually_may(
    start_cluster, register, sshd, remote_file
):
    client = start_cluster(n_workers=1, threads_per_worker=1)
    most = 150
    (used,) = client.run(lambda: len(os.listdir("/dev/fd"))).values()

    def limit():
        soft_and_hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + most, soft_and_hard[1]))

    client.run(limit)
    register(client, sshd)
    files = [remote_file(f"{n}", b"x") for n in range(2 * most)]
    assert client.submit(lambda: sum(map(len_of, files))).result(PATIENCE_S) == len(files)


def test_a_file_that_a_task_has_made_is_there_when_it_opens_it(client, remote_file):
    handle = remote_file("first")
    made = RemoteFile(f"{handle.url}-made")
    path = RemoteURL.parse(made.url).path

    def use(first, second):
        read(first)  # asks for the other one, too
        time.sleep(1)
        Path(path).write_text("made")
        return read(second)

    assert client.submit(use, handle, made).result(PATIENCE_S) == "made"


def test_a_cancelled_task_keeps_its_file_while_its_thread_runs(served, remote_file, tmp_path):
    client = served(threads=2, cache_bytes=40_000, ahead_bytes=1, timeout_s=10)
    opened, go_on, verdict = (tmp_path / name for name in ("opened", "go_on", "verdict"))

    def use(file):
        path = Path(file)
        opened.touch()
        wait_until(go_on.exists, "the task may go on")
        verdict.write_text(str(path.exists()))

    task = client.submit(use, remote_file("kept", bytes(10_000)))
    wait_until(opened.exists, "the task has its file")
    task.cancel()
    wait_until(
        lambda: "cancelled" in states(client).values(), "the worker knows that it was cancelled"
    )
    for n in range(6):
        assert client.submit(len_of, remote_file(f"other{n}", bytes(10_000))).result() == 10_000
    go_on.touch()
    wait_until(lambda: verdict.exists() and verdict.read_text(), "the verdict is written")
    assert verdict.read_text() == "True"


def states(client) -> dict:
    (found,) = client.run(
        lambda dask_worker: {str(k): t.state for k, t in dask_worker.state.tasks.items()}
    ).values()
    return found


def test_a_file_can_be_held_beyond_its_task(served, remote_file):
    client = served(cache_bytes=40_000, ahead_bytes=1, timeout_s=10)

    def hold(file):
        import builtins

        builtins.held = file.hold()
        return str(builtins.held.path)

    path = Path(client.submit(hold, remote_file("held", bytes(10_000))).result())
    for n in range(6):
        client.submit(len_of, remote_file(f"{n}", bytes(10_000))).result()
    assert path.exists()
    client.run(lambda: __import__("builtins").held.release())
    for n in range(6, 12):
        client.submit(len_of, remote_file(f"{n}", bytes(10_000))).result()
    assert not path.exists()


def test_registering_anew_leaves_running_tasks_their_files(
    start_cluster, register, sshd, remote_file, tmp_path
):
    client = start_cluster(n_workers=1, threads_per_worker=2)
    options = {"cache_bytes": 40_000, "ahead_bytes": 1, "timeout_s": 10}
    register(client, sshd, **options)
    opened, go_on = tmp_path / "opened", tmp_path / "go_on"

    def use(file):
        path = Path(file)
        opened.touch()
        wait_until(go_on.exists, "the task may go on")
        return path.exists()

    task = client.submit(use, remote_file("kept", bytes(10_000)))
    wait_until(opened.exists, "the task has its file")
    register(client, sshd, **options)
    for n in range(6):
        assert client.submit(len_of, remote_file(f"other{n}", bytes(10_000))).result() == 10_000
    go_on.touch()
    assert task.result()
    assert any(client.run(children).values())
    client.unregister_worker_plugin(StagingPlugin.name)
    assert stats(client) == {}
    wait_until(lambda: not any(client.run(children).values()), "the worker has no process of ours")


def children():
    return [child.name() for child in psutil.Process().children(recursive=True)]


# --- errors and deaths --------------------------------------------------------------------------


def test_a_missing_file_is_its_tasks_error_and_no_other_tasks(client, remote_file):
    good = remote_file("good")
    missing = RemoteFile(good.url + "-missing")
    tasks = client.map(read, [missing, good])
    with pytest.raises(RemoteFileNotFound, match="good-missing"):
        tasks[0].result()
    assert tasks[1].result() == "good"


def test_a_file_without_permission_is_its_tasks_error(two_workers, register, request):
    # Root reads everything, and so does a server that runs as root.
    server = request.getfixturevalue("chroot_sshd" if os.getuid() == 0 else "sshd")
    server.make("closed-task.bin", b"1", mode=0)
    register(two_workers, server)
    with pytest.raises(RemotePermissionDenied):
        two_workers.submit(read, RemoteFile(server.url("closed-task.bin"))).result()


def test_a_wrong_key_is_the_tasks_error(two_workers, register, sshd, remote_file, tmp_path):
    (tmp_path / "key").write_text("no key\n")
    (tmp_path / "key").chmod(0o600)
    config = changed(sshd, tmp_path / "config", (str(sshd.key), str(tmp_path / "key")))
    register(two_workers, sshd, ssh_config=config)
    with pytest.raises(AuthenticationFailed):
        two_workers.submit(read, remote_file("a")).result()


def test_wrong_settings_are_the_tasks_error_and_do_not_break_the_worker(
    two_workers, register, sshd, remote_file
):
    register(two_workers, sshd, cache_dir="/proc/none")
    with pytest.raises(ValueError, match="cannot make the cache in /proc/none"):
        two_workers.submit(read, remote_file("a")).result()
    assert two_workers.submit(sum, [1, 2]).result() == 3
    register(two_workers, sshd)
    assert two_workers.submit(read, remote_file("b")).result() == "b"


@pytest.fixture
def late(sshd, remote_directory, remote_file):
    """A handle of a file that is missing, and where it will be."""
    file = remote_file("late")
    path = sshd.root / remote_directory / "late"
    path.unlink()
    return file, path


@pytest.mark.parametrize("retries", [0, 1])
def test_a_file_that_was_missing_is_asked_for_anew_by_its_task_or_the_next_attempt(
    client, late, retries
):
    file, path = late

    def use(file):
        try:
            return read(file)
        except FileNotFoundError:
            path.write_text("late")
            if retries:
                raise
        return read(file)

    assert client.submit(use, file, retries=retries).result() == "late"


def test_a_task_that_waits_does_not_keep_its_worker_from_closing(far, served, tmp_path):
    server, relay = far
    server.make("a", os.urandom(2_000_000))
    client = served(server)

    def use(file, note):
        try:
            read(file)
        except BaseException as error:
            note.write_text(type(error).__name__)
            raise

    relay.stall(after_bytes=500_000)
    task = client.submit(use, RemoteFile(far.url("a")), tmp_path / "note")
    wait_until_stalled(relay)
    client.cluster.close()
    assert (tmp_path / "note").read_text() == "CancelledError"
    del task


def test_who_begins_to_wait_as_the_worker_closes_is_let_go(far, cache_dir):
    server, relay = far
    server.make("a", os.urandom(2_000_000))
    relay.stall()
    settings = server.settings(cache_dir=str(cache_dir), timeout_s=10)
    with TransferEngine(settings) as engine, Stager(settings, engine=engine) as stager:
        staging = WorkerStaging(lambda: stager, 1, 1, lambda _: None)
        assert staging.close(at_once=True)
        with pytest.raises(CancelledError):
            staging.claim("task", [RemoteFile(far.url("a"))])


def test_what_a_killed_worker_has_fetched_is_not_fetched_again(
    sshd_factory, relay_factory, start_cluster, register, cache_dir
):
    server = sshd_factory()
    data = os.urandom(50_000_000)
    server.make("a", data)
    relay = relay_factory(server.port)
    client = register(start_cluster(n_workers=1, threads_per_worker=1), server)
    relay.set(rate=20e6)
    task = client.submit(digest, RemoteFile(relay.url(server.url("a"))))
    wait_until(lambda: arrived(cache_dir) > 35e6, "most of it has come")
    (pid,) = client.run(os.getpid).values()
    os.kill(pid, signal.SIGKILL)
    relay.set(rate=0)
    assert task.result(PATIENCE_S) == hashlib.sha256(data).hexdigest()
    assert relay.status()["down"] < 80e6
    wait_until(lambda: not any(cache_dir.glob("*/incoming/*")), "nothing is left")


def digest(file) -> str:
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def arrived(place: Path) -> int:
    return sum(512 * os.stat(path).st_blocks for path in place.glob("*/incoming/*/*.part"))


def test_the_plugin_can_be_preloaded_without_client_code(
    start_cluster, sshd, remote_file, monkeypatch, cache_dir
):
    monkeypatch.setenv("PYREMOTEDATA_SSH_CONFIG", str(sshd.ssh_config))
    monkeypatch.setenv("PYREMOTEDATA_CACHE_DIR", str(cache_dir))
    monkeypatch.setenv("DASK_DISTRIBUTED__WORKER__PRELOAD", "dask_plugin.preload")
    with dask.config.set({"distributed.worker.preload": ["dask_plugin.preload"]}):
        client = start_cluster(n_workers=1, threads_per_worker=1)
    assert client.submit(read, remote_file("a")).result() == "a"
    assert stats(client).total["files"] == 1
    client.register_plugin(StagingPlugin(ssh_config=str(sshd.ssh_config), cache_dir=str(cache_dir)))
    assert stats(client).total["files"] == 0
    assert client.submit(read, remote_file("b")).result() == "b"


def test_workers_that_come_later_are_served(served, remote_file):
    client = served()
    client.cluster.scale(2)
    client.wait_for_workers(2, timeout=PATIENCE_S)
    assert len(stats(client)) == 2
    assert client.gather(client.map(read, [remote_file(name) for name in "abcd"])) == list("abcd")


def test_a_restarted_cluster_is_served(served, remote_file):
    client = served()
    assert client.submit(read, remote_file("a")).result() == "a"
    client.restart()
    assert client.submit(read, remote_file("b")).result() == "b"


def test_a_secret_of_the_workers_stays_there(served, remote_file, monkeypatch, tmp_path):
    monkeypatch.setenv("PYREMOTEDATA_PASSWORD", CANARY)
    client = served()
    file = remote_file("a")
    assert client.submit(os.environ.get, "PYREMOTEDATA_PASSWORD").result() == CANARY
    task = client.submit(read, file, key="reader")
    assert task.result() == "a"
    client.dump_cluster_state(str(tmp_path / "dump"), format="yaml")
    (dump,) = tmp_path.glob("dump*")
    text = dump.read_text()
    assert "reader" in text
    seen = [
        pickle.dumps(file),
        client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.worker_plugins),
        client.run_on_scheduler(lambda dask_scheduler: str(dask_scheduler.get_events())),
        client.get_worker_logs(),
        client.get_scheduler_logs(),
        client.run(lambda dask_worker: [repr(vars(p)) for p in dask_worker.plugins.values()]),
    ]
    pages = [page_of(client.dashboard_link.replace("/status", name)) for name in PAGES]
    assert all(pages)
    assert CANARY not in repr([*seen, pages])
    without_own_result = text.replace(f"'{CANARY}'", "")
    assert CANARY not in without_own_result


PAGES = (
    "/info/main/workers.html",
    "/info/main/logs.html",
    "/individual-plots.json",
    "/json/counts.json",
)


def page_of(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=PATIENCE_S) as page:
        return page.read()
