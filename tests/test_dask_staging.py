"""StagingPlugin on clusters of real worker processes, against real servers."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import dask
import pytest

from dask_plugin import RemoteFile, StagingPlugin, local, stats

from .dask_cluster import files_in, in_use, len_of, read, read_after, read_all
from .waiting import wait_until

distributed = pytest.importorskip("distributed")


# --- where a handle may stand -------------------------------------------------------------------


@dataclass
class Sample:
    name: str
    file: RemoteFile


def read_sample(sample):
    return read(sample.file)


def test_delayed_opens_handles_in_containers_and_keywords(client, remote_file):
    nested = {"first": remote_file("a"), "rest": [remote_file("b"), remote_file("c")]}
    task = dask.delayed(read_all)(nested, more=(remote_file("d"),))
    assert task.compute() == "abcd"
    assert dask.delayed(read_after)(remote_file("e"), task).compute() == "e"


def test_handles_in_closures_partials_and_dataclasses_are_opened(client, remote_file):
    a = remote_file("a")

    def enclosed():
        return read(a)

    assert client.submit(enclosed, pure=False).result() == "a"
    assert client.submit(partial(read, remote_file("b"))).result() == "b"
    assert client.submit(read_sample, Sample("s", remote_file("c"))).result() == "c"


def test_bags_of_handles_are_opened(client, remote_file):
    bag = pytest.importorskip("dask.bag")
    handles = [remote_file(name) for name in "abcd"]
    assert bag.from_sequence(handles, npartitions=2).map(read).compute() == list("abcd")


def test_handles_that_tasks_return_are_opened_by_the_next(client, remote_file):
    first = client.submit(lambda f: [f], remote_file("a"))
    assert client.submit(lambda files: read(files[0]), first).result() == "a"
    assert client.submit(read, client.scatter(remote_file("b"))).result() == "b"


def test_a_memory_map_takes_a_handle(client, remote_file):
    numpy = pytest.importorskip("numpy")

    def first(file):
        mapped = numpy.memmap(file, mode="r")
        file.hold(mapped)
        return chr(mapped[0]), mapped.filename.name

    assert client.submit(first, remote_file("mapped")).result() == ("m", "mapped")


def test_no_file_stays_in_use_when_its_tasks_have_ended(client, remote_file, cache_dir):
    files = [remote_file(str(number), bytes(number)) for number in range(20)]
    # Many short tasks: some have ended before the worker looks for those to which files belong.
    futures = client.map(lambda file, _: len_of(file), files * 40, range(800))
    assert client.gather(futures) == [*range(20)] * 40
    wait_until(lambda: not in_use(cache_dir), "every file is given back")


def test_a_file_that_nobody_opens_is_fetched_ahead_and_not_kept(client, remote_file, cache_dir):
    file = remote_file("loose")
    client.run(lambda: file.name)  # no task
    client.submit(str).result()
    wait_until(lambda: "loose" in files_in(cache_dir), "it is fetched ahead")
    wait_until(lambda: not in_use(cache_dir), "it is given back")


def test_a_coroutine_task_gets_its_file_without_blocking_the_loop(client, remote_file):
    @local
    async def good(path):
        return Path(path).read_text()

    async def bad(file):
        return os.fspath(file)

    assert client.submit(good, remote_file("a")).result() == "a"
    with pytest.raises(RuntimeError, match=r"dask_plugin\.local"):
        client.submit(bad, remote_file("b")).result()


def test_without_the_plugin_handles_work(start_cluster, sshd, remote_file, monkeypatch, cache_dir):
    monkeypatch.setenv("PYREMOTEDATA_SSH_CONFIG", str(sshd.ssh_config))
    monkeypatch.setenv("PYREMOTEDATA_CACHE_DIR", str(cache_dir))
    client = start_cluster(n_workers=1, threads_per_worker=1)
    assert client.submit(read, remote_file("a")).result() == "a"
    assert stats(client) == {}


def test_a_cluster_of_threads_is_served(start_cluster, register, sshd, remote_file):
    client = register(start_cluster(n_workers=2, threads_per_worker=2, processes=False), sshd)
    names = "abcdefgh"
    assert client.gather(client.map(read, [remote_file(name) for name in names])) == list(names)
    assert stats(client).total["files"] == len(names)


def test_a_cluster_of_threads_leaves_no_process_when_it_ends(tmp_path, sshd, remote_file):
    psutil = pytest.importorskip("psutil")
    before = psutil.Process().children(recursive=True)

    def ours():
        return [one for one in psutil.Process().children(recursive=True) if one not in before]

    with distributed.Client(processes=False, n_workers=2, dashboard_address=":0") as client:
        # Settings that no other test has, whose workers would share their helper.
        settings = {"ssh_config": str(sshd.ssh_config), "cache_dir": str(tmp_path), "timeout_s": 31}
        client.register_plugin(StagingPlugin(**settings))
        assert client.submit(read, remote_file("a")).result() == "a"
        assert ours()
    wait_until(lambda: not ours(), "the helper and its sessions have gone")


# --- once per node, ahead of time ---------------------------------------------------------------


def test_each_file_comes_to_the_node_once(sshd_factory, two_workers, register):
    server = sshd_factory(log_requests=True)
    data = {f"{n:02}": os.urandom(50_000) for n in range(12)}
    for name, content in data.items():
        server.make(f"many/{name}", content)
    client = register(two_workers, server)

    def digest(file, number):
        return number, Path(file).name, Path(file).read_bytes()

    handles = [RemoteFile(server.url(f"many/{name}")) for name in data] * 3
    results = client.gather(client.map(digest, handles, range(len(handles))))
    assert all(data[name] == content for _, name, content in results)
    assert server.requests("open") == len(data)
    report = stats(client)
    assert report.total["files"] == len(data)
    assert report.total["archive_bytes"] == 50_000 * len(data)
    # More when a task moves to the other worker after its file was fetched ahead.
    assert 2 * len(data) <= report.total["cache_files"] <= 3 * len(data)
    assert len(report) == 2
    assert "archive_bytes" in str(report)


def test_the_next_tasks_file_comes_while_a_task_computes(served, remote_file):
    client = served()
    handles = [remote_file("first"), remote_file("second")]

    def compute_until_the_other_is_here(file, other):
        # Ends only when the file of the task that waits behind this one is on the node.
        mine = Path(file)
        if other:
            wait_until(lambda: any(mine.parents[1].glob(f"*/{other}")), "it is fetched ahead")
        return mine.name

    tasks = [
        client.submit(compute_until_the_other_is_here, handles[0], "second", priority=1),
        client.submit(compute_until_the_other_is_here, handles[1], None),
    ]
    assert client.gather(tasks) == ["first", "second"]
    total = stats(client).total
    assert total["files"] == 2
    assert total["hidden_s"] > 0


def test_a_handle_that_only_its_pickle_shows_is_fetched_ahead(served, remote_file, cache_dir):
    client = served()
    file = remote_file("hidden")

    class Opaque:
        def __init__(self, file):
            self.file = file

    def compute_until_here():
        wait_until(lambda: any(cache_dir.glob("*/files/*/hidden")), "it is fetched ahead")

    first = client.submit(compute_until_here, priority=1, pure=False)
    second = client.submit(lambda one: read(one.file), Opaque(file), pure=False)
    assert client.gather([first, second]) == [None, "hidden"]


def test_what_is_fetched_ahead_is_bounded(start_cluster, register, sshd, remote_file, cache_dir):
    with dask.config.set({"distributed.scheduler.worker-saturation": 20.0}):
        client = start_cluster(n_workers=1, threads_per_worker=1)
    register(client, sshd, ahead_files=3)

    def compute(file, cache_dir, wanted):
        mine = Path(file).name
        if wanted:
            wait_until(lambda: len(files_in(cache_dir)) >= wanted, "as many as may be are there")
            time.sleep(0.5)  # time for more to come, if it were not bounded
        return mine, len(files_in(cache_dir))

    tasks = [
        client.submit(compute, remote_file(f"{n:02}"), cache_dir, 4 if n == 0 else 0, priority=-n)
        for n in range(10)
    ]
    assert tasks[0].result() == ("00", 4)
    client.gather(tasks)


# --- what can be seen ---------------------------------------------------------------------------


def test_fetches_are_bars_of_their_tasks_and_openings_are_events(far, served):
    server, relay = far
    server.make("a", b"x" * 100_000)
    relay.set(one_way_ms=20)
    client = served(server)
    with distributed.get_task_stream(client) as stream:
        assert client.submit(len_of, RemoteFile(far.url("a")), key="reader").result() == 100_000
        assert client.submit(len_of, RemoteFile(far.url("a")), key="again").result() == 100_000
    bars = {entry["key"]: [bar["action"] for bar in entry["startstops"]] for entry in stream.data}
    assert sorted(bars["reader"]) == ["compute", "transfer"]
    wait_until(lambda: len(client.get_events("pyremotedata")) == 4, "all events are there")
    both = [event for _, event in client.get_events("pyremotedata")]
    computed = [event["key"] for event in both if event["action"] == "computed"]
    assert computed == ["reader", "again"]
    events = [event for event in both if event["action"] == "opened"]
    assert [(event["key"], event["source"]) for event in events] == [
        ("reader", "archive"),
        ("again", "node"),
    ]
    assert events[0]["bytes"] == 100_000
    assert events[0]["start"] < events[0]["stop"]


def test_the_dashboards_task_stream_takes_the_bars(client, remote_file):
    from distributed.diagnostics.task_stream import rectangles

    with distributed.get_task_stream(client) as stream:
        futures = client.map(read, [remote_file(f"{number:02}") for number in range(30)])
        client.gather(futures)
    assert len(rectangles(stream.data)["start"]) >= 30
    events = [event for _, event in client.get_events("pyremotedata")]
    fetched = {event["key"] for event in events if event.get("source") == "archive"}
    shown = {
        entry["key"]
        for entry in stream.data
        if any(bar["action"] == "transfer" for bar in entry["startstops"])
    }
    assert fetched.intersection(future.key for future in futures) <= shown
