"""StagingPlugin on clusters of real worker processes, against real servers."""

from __future__ import annotations

import os
import pickle
import signal
import time
import urllib.request
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import dask
import pytest

from dask_plugin import RemoteFile, StagingPlugin, glob, local, stage_out, stats
from pyremotedata_core import (
    AuthenticationFailed,
    RemoteFileNotFound,
    RemotePermissionDenied,
    TransferError,
)

distributed = pytest.importorskip("distributed")

PATIENCE_S = 60.0
CANARY = "canary-5b0c"


@pytest.fixture(scope="module")
def two_workers():
    """A cluster of two worker processes with one thread each, for tests that leave it whole."""
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.fixture
def start_cluster():
    """Start clusters; they end with the test."""
    started = []

    def start(**options):
        options = {"processes": True, "dashboard_address": ":0", **options}
        cluster = distributed.LocalCluster(**options)
        started.append(cluster)
        client = distributed.Client(cluster)
        started.append(client)
        return client

    yield start
    for one in reversed(started):
        one.close()


@pytest.fixture
def place(tmp_path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def register(place):
    """Register the plugin for a server, with a cache of the test's own."""

    def register(client, server, **options):
        settings = {"ssh_config": str(server.ssh_config), "cache_dir": str(place)}
        client.register_plugin(StagingPlugin(**{**settings, **options}))
        return client

    return register


@pytest.fixture
def client(two_workers, register, sshd):
    return register(two_workers, sshd)


@pytest.fixture
def make(sshd, remote_directory):
    """Make a file on the server and return its handle."""

    def make(name: str, data: bytes | None = None) -> RemoteFile:
        sshd.make(f"{remote_directory}/{name}", name.encode() if data is None else data)
        return RemoteFile(sshd.url(f"{remote_directory}/{name}"))

    return make


def files_in(place: Path) -> set[str]:
    return {path.name for path in place.glob("*/files/*/*")}


def read(file, *_):
    with open(file) as text:
        return text.read()


def read_after(file, _before):
    return read(file)


def read_all(nested, *, more=()):
    return read(nested["first"]) + "".join(map(read, nested["rest"])) + "".join(map(read, more))


def wait_for(path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not path.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{path} never came")
        time.sleep(0.02)


def wait_until(true, what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.02)


# --- where a handle may stand -------------------------------------------------------------------


@dataclass
class Sample:
    name: str
    file: RemoteFile


def read_sample(sample):
    return read(sample.file)


def test_a_task_opens_its_argument(client, make):
    assert client.submit(read, make("a")).result() == "a"


def test_map_opens_each_argument(client, make):
    assert client.gather(client.map(read, [make(name) for name in "abcde"])) == list("abcde")


def test_delayed_opens_handles_in_containers_and_keywords(client, make):
    nested = {"first": make("a"), "rest": [make("b"), make("c")]}
    task = dask.delayed(read_all)(nested, more=(make("d"),))
    assert task.compute() == "abcd"
    assert dask.delayed(read_after)(make("e"), task).compute() == "e"


def test_handles_in_closures_partials_and_dataclasses_are_opened(client, make):
    a = make("a")

    def enclosed():
        return read(a)

    assert client.submit(enclosed, pure=False).result() == "a"
    assert client.submit(partial(read, make("b"))).result() == "b"
    assert client.submit(read_sample, Sample("s", make("c"))).result() == "c"


def test_bags_of_handles_are_opened(client, make):
    bag = pytest.importorskip("dask.bag")
    handles = [make(name) for name in "abcd"]
    assert bag.from_sequence(handles, npartitions=2).map(read).compute() == list("abcd")


def test_handles_that_tasks_return_are_opened_by_the_next(client, make):
    first = client.submit(lambda f: [f], make("a"))
    assert client.submit(lambda files: read(files[0]), first).result() == "a"
    assert client.submit(read, client.scatter(make("b"))).result() == "b"


def test_local_gives_tasks_strings(client, make):
    @local
    def kind(path):
        return type(path).__name__ + Path(path).read_text()

    assert client.submit(kind, make("a")).result() == "stra"


def test_a_coroutine_task_gets_its_file_without_blocking_the_loop(client, make):
    @local
    async def good(path):
        return Path(path).read_text()

    async def bad(file):
        return os.fspath(file)

    assert client.submit(good, make("a")).result() == "a"
    with pytest.raises(RuntimeError, match=r"dask_plugin\.local"):
        client.submit(bad, make("b")).result()


def test_glob_to_map_is_a_line(client, sshd, remote_directory, make, monkeypatch):
    monkeypatch.setenv("PYREMOTEDATA_SSH_CONFIG", str(sshd.ssh_config))
    for name in ("a.txt", "b.txt", "c.csv"):
        make(name)
    files = glob(sshd.url(remote_directory) + "/*.txt")
    assert client.gather(client.map(read, files)) == ["a.txt", "b.txt"]


def test_without_the_plugin_handles_work(start_cluster, sshd, make, monkeypatch, place):
    monkeypatch.setenv("PYREMOTEDATA_SSH_CONFIG", str(sshd.ssh_config))
    monkeypatch.setenv("PYREMOTEDATA_CACHE_DIR", str(place))
    client = start_cluster(n_workers=1, threads_per_worker=1)
    assert client.submit(read, make("a")).result() == "a"
    assert stats(client) == {}


def test_a_cluster_of_threads_is_served(start_cluster, register, sshd, make):
    client = register(start_cluster(n_workers=2, threads_per_worker=2, processes=False), sshd)
    names = "abcdefgh"
    assert client.gather(client.map(read, [make(name) for name in names])) == list(names)
    assert stats(client).total["files"] == len(names)


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


def test_the_next_tasks_file_comes_while_a_task_computes(start_cluster, register, sshd, make):
    client = register(start_cluster(n_workers=1, threads_per_worker=1), sshd)
    handles = [make("first"), make("second")]

    def compute_until_the_other_is_here(file, names):
        # Ends only when the file of the task that waits behind this one is on the node.
        mine = Path(file)
        for name in names:
            others = mine.parent.parent
            deadline = time.monotonic() + PATIENCE_S
            while not any(others.glob(f"*/{name}")):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{name} was not fetched ahead")
                time.sleep(0.02)
        return mine.name

    tasks = [
        client.submit(compute_until_the_other_is_here, handles[0], ["second"], priority=1),
        client.submit(compute_until_the_other_is_here, handles[1], []),
    ]
    assert client.gather(tasks) == ["first", "second"]
    total = stats(client).total
    assert total["files"] == 2
    assert total["hidden_s"] > 0


def test_a_handle_that_only_its_pickle_shows_is_fetched_ahead(
    start_cluster, register, sshd, make, place
):
    client = register(start_cluster(n_workers=1, threads_per_worker=1), sshd)
    file = make("hidden")

    class Opaque:
        def __init__(self, file):
            self.file = file

    def compute_until_here():
        wait_for_any(place, "hidden")

    def wait_for_any(place, name):
        deadline = time.monotonic() + PATIENCE_S
        while not any(place.glob(f"*/files/*/{name}")):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{name} was not fetched ahead")
            time.sleep(0.02)

    first = client.submit(compute_until_here, priority=1, pure=False)
    second = client.submit(lambda one: read(one.file), Opaque(file), pure=False)
    assert client.gather([first, second]) == [None, "hidden"]


def test_what_is_fetched_ahead_is_bounded(start_cluster, register, sshd, make, place):
    with dask.config.set({"distributed.scheduler.worker-saturation": 20.0}):
        client = start_cluster(n_workers=1, threads_per_worker=1)
    register(client, sshd, ahead_files=3)

    def compute(file, gate, place, wanted):
        mine = Path(file).name
        deadline = time.monotonic() + PATIENCE_S
        while len({path.name for path in place.glob("*/files/*/*")}) < wanted:
            if time.monotonic() > deadline:
                raise TimeoutError
            time.sleep(0.02)
        time.sleep(0.5)  # time for more to come, if it were not bounded
        return mine, len({path.name for path in place.glob("*/files/*/*")})

    tasks = [
        client.submit(compute, make(f"{n:02}"), None, place, 4 if n == 0 else 0, priority=-n)
        for n in range(10)
    ]
    assert tasks[0].result() == ("00", 4)
    client.gather(tasks)


def test_a_waiting_task_does_not_hold_up_its_worker(
    sshd_factory, relay_factory, start_cluster, register
):
    server = sshd_factory()
    server.make("a", b"x" * 2_000_000)
    relay = relayed(server, relay_factory)
    client = register(start_cluster(n_workers=1, threads_per_worker=1), server)
    relay.stall(after_bytes=500_000)
    task = client.submit(lambda file: len(Path(file).read_bytes()), handle(server, relay, "a"))
    wait_until(lambda: list(client.processing().values()) != [()], "the task has begun")
    assert list(client.run(os.getpid).values())  # answered by the worker's event loop
    assert not task.done()
    relay.resume()
    assert task.result() == 2_000_000


# --- the end of a task --------------------------------------------------------------------------


def test_files_go_back_when_tasks_end_however_they_end(start_cluster, register, sshd, make, place):
    client = register(
        start_cluster(n_workers=1, threads_per_worker=1),
        sshd,
        cache_bytes=40_000,
        ahead_bytes=10_000,
        timeout_s=10,
    )

    def use(file, fails):
        data = Path(file).read_bytes()
        if fails:
            raise ValueError(len(data))
        return len(data)

    for round_ in range(3):
        handles = [make(f"{round_}{n}", bytes(10_000)) for n in range(5)]
        tasks = client.map(use, handles, [n % 2 for n in range(5)])
        distributed.wait(tasks, timeout=PATIENCE_S)
        assert [task.status for task in tasks] == ["finished", "error"] * 2 + ["finished"]
        assert len(files_in(place)) <= 4


def test_a_cancelled_task_keeps_its_file_while_its_thread_runs(
    start_cluster, register, sshd, make, tmp_path
):
    client = register(
        start_cluster(n_workers=1, threads_per_worker=2),
        sshd,
        cache_bytes=40_000,
        ahead_bytes=1,
        timeout_s=10,
    )
    opened, go_on, verdict = (tmp_path / name for name in ("opened", "go_on", "verdict"))

    def use(file):
        path = Path(file)
        opened.touch()
        wait_for(go_on)
        verdict.write_text(str(path.exists()))

    task = client.submit(use, make("kept", bytes(10_000)))
    wait_for(opened)
    task.cancel()
    wait_until(
        lambda: "cancelled" in states(client).values(), "the worker knows that it was cancelled"
    )
    for n in range(6):
        assert client.submit(len_of, make(f"other{n}", bytes(10_000))).result() == 10_000
    go_on.touch()
    wait_for(verdict)
    wait_until(verdict.read_text, "the verdict is written")
    assert verdict.read_text() == "True"


def len_of(file):
    return len(Path(file).read_bytes())


def states(client) -> dict:
    (found,) = client.run(
        lambda dask_worker: {str(k): t.state for k, t in dask_worker.state.tasks.items()}
    ).values()
    return found


def test_a_file_can_be_held_beyond_its_task(start_cluster, register, sshd, make):
    client = register(
        start_cluster(n_workers=1, threads_per_worker=1),
        sshd,
        cache_bytes=40_000,
        ahead_bytes=1,
        timeout_s=10,
    )

    def hold(file):
        import builtins

        builtins.held = file.hold()
        return str(builtins.held.path)

    path = Path(client.submit(hold, make("held", bytes(10_000))).result())
    for n in range(6):
        client.submit(len_of, make(f"{n}", bytes(10_000))).result()
    assert path.exists()
    client.run(lambda: __import__("builtins").held.release())
    for n in range(6, 12):
        client.submit(len_of, make(f"{n}", bytes(10_000))).result()
    assert not path.exists()


def test_registering_anew_leaves_running_tasks_their_files(
    start_cluster, register, sshd, make, tmp_path, place
):
    client = start_cluster(n_workers=1, threads_per_worker=2)
    options = {"cache_bytes": 40_000, "ahead_bytes": 1, "timeout_s": 10}
    register(client, sshd, **options)
    opened, go_on = tmp_path / "opened", tmp_path / "go_on"

    def use(file):
        path = Path(file)
        opened.touch()
        wait_for(go_on)
        return path.exists()

    task = client.submit(use, make("kept", bytes(10_000)))
    wait_for(opened)
    register(client, sshd, **options)
    for n in range(6):
        assert client.submit(len_of, make(f"other{n}", bytes(10_000))).result() == 10_000
    go_on.touch()
    assert task.result()
    client.unregister_worker_plugin(StagingPlugin.name)
    assert stats(client) == {}


# --- outputs ------------------------------------------------------------------------------------


def summarise(url, fails=False):
    with stage_out(url) as out:
        with open(out, "w") as text:
            text.write("result")
        if fails:
            raise ValueError("half-way")
    return out.file


def test_an_output_is_uploaded_and_the_next_task_has_it_at_once(
    sshd_factory, start_cluster, register
):
    server = sshd_factory(log_requests=True)
    client = register(start_cluster(n_workers=1, threads_per_worker=1), server)
    first = client.submit(summarise, server.url("out/summary.txt"))
    file = first.result()
    assert (server.root / "out/summary.txt").read_text() == "result"
    assert (file.size, file.name) == (6, "summary.txt")
    opened = server.requests("open")
    assert client.submit(read, first).result() == "result"
    assert server.requests("open") == opened
    assert stats(client).total["stored_bytes"] == 6


def test_an_output_of_a_task_that_fails_is_not_uploaded(client, sshd, remote_directory, place):
    with pytest.raises(ValueError, match="half-way"):
        client.submit(summarise, sshd.url(f"{remote_directory}/out"), fails=True).result()
    assert os.listdir(sshd.root / remote_directory) == []
    assert not any(place.glob("*/incoming/*"))


def test_an_upload_that_fails_is_the_tasks_error_and_may_be_tried_again(
    client, sshd, remote_directory
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
    assert client.submit(attempt, url, True, retries=1).result().size == 6
    assert (blocked / "out").read_text() == "result"


def test_an_output_of_a_killed_worker_is_written_by_another_attempt(
    sshd_factory, relay_factory, start_cluster, register, place
):
    server = sshd_factory()
    server.make_directory("out")
    relay = relayed(server, relay_factory)
    client = register(start_cluster(n_workers=1, threads_per_worker=1), server)

    def write(url):
        with stage_out(url) as out:
            out.path.write_bytes(b"x" * 3_000_000)
        return out.file

    relay.stall(after_bytes=1_000_000, direction="up")
    task = client.submit(write, relay.url(server.url("out/large")))
    wait_until(lambda: relay.status()["up"] >= 1_000_000, "the upload has begun")
    (pid,) = client.run(os.getpid).values()
    os.kill(pid, signal.SIGKILL)
    relay.resume()
    assert task.result().size == 3_000_000
    assert (server.root / "out/large").read_bytes() == b"x" * 3_000_000
    wait_until(lambda: not any(place.glob("*/incoming/*")), "the draft of the killed one is gone")


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


# --- what can be seen ---------------------------------------------------------------------------


def test_fetches_are_bars_of_their_tasks_and_openings_are_events(
    sshd_factory, relay_factory, start_cluster, register, tmp_path
):
    server = sshd_factory()
    server.make("a", b"x" * 100_000)
    relay = relayed(server, relay_factory)
    relay.set(one_way_ms=20)
    client = register(start_cluster(n_workers=1, threads_per_worker=1), server)
    with distributed.get_task_stream(client) as stream:
        assert client.submit(len_of, handle(server, relay, "a"), key="reader").result() == 100_000
        assert client.submit(len_of, handle(server, relay, "a"), key="again").result() == 100_000
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


def test_the_dashboards_task_stream_takes_the_bars(client, make):
    from distributed.diagnostics.task_stream import rectangles

    with distributed.get_task_stream(client) as stream:
        client.gather(client.map(read, [make(name) for name in "abcdef"]))
    assert len(rectangles(stream.data)["start"]) >= 6


# --- errors and deaths --------------------------------------------------------------------------


def test_a_missing_file_is_its_tasks_error_and_no_other_tasks(client, make):
    good = make("good")
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


def test_a_wrong_key_is_the_tasks_error(two_workers, register, sshd, make, tmp_path):
    (tmp_path / "key").write_text("no key\n")
    (tmp_path / "key").chmod(0o600)
    config = tmp_path / "ssh_config"
    config.write_text(sshd.ssh_config.read_text().replace(str(sshd.key), str(tmp_path / "key")))
    register(two_workers, sshd, ssh_config=str(config))
    with pytest.raises(AuthenticationFailed):
        two_workers.submit(read, make("a")).result()


def test_wrong_settings_are_the_tasks_error_and_do_not_break_the_worker(
    two_workers, register, sshd, make
):
    register(two_workers, sshd, transport="pigeon")
    with pytest.raises(ValueError, match="transport"):
        two_workers.submit(read, make("a")).result()
    assert two_workers.submit(sum, [1, 2]).result() == 3
    register(two_workers, sshd)
    assert two_workers.submit(read, make("b")).result() == "b"


def test_a_failed_attempt_is_tried_anew(client, sshd, remote_directory, make):
    late = make("late")
    path = sshd.root / remote_directory / "late"
    path.unlink()

    def use(file):
        try:
            return read(file)
        except FileNotFoundError:
            path.write_text("late")
            raise

    assert client.submit(use, late, retries=1).result() == "late"


def test_a_task_may_try_again_itself(client, sshd, remote_directory, make):
    late = make("late")
    path = sshd.root / remote_directory / "late"
    path.unlink()

    def use(file):
        try:
            return read(file)
        except FileNotFoundError:
            path.write_text("late")
        return read(file)

    assert client.submit(use, late).result() == "late"


def test_a_worker_killed_while_it_fetches_is_replaced(
    sshd_factory, relay_factory, start_cluster, register, place
):
    server = sshd_factory()
    data = os.urandom(3_000_000)
    server.make("a", data)
    relay = relayed(server, relay_factory)
    client = register(start_cluster(n_workers=1, threads_per_worker=1), server)
    relay.stall(after_bytes=500_000)
    task = client.submit(lambda file: Path(file).read_bytes(), handle(server, relay, "a"))
    wait_until(lambda: relay.status()["faults"], "the transfer has got as far as the stall")
    (pid,) = client.run(os.getpid).values()
    os.kill(pid, signal.SIGKILL)
    relay.resume()
    assert task.result() == data
    wait_until(lambda: not any(place.glob("*/incoming/*")), "nothing is left")


def test_the_plugin_can_be_preloaded_without_client_code(
    start_cluster, sshd, make, monkeypatch, place
):
    monkeypatch.setenv("PYREMOTEDATA_SSH_CONFIG", str(sshd.ssh_config))
    monkeypatch.setenv("PYREMOTEDATA_CACHE_DIR", str(place))
    monkeypatch.setenv("DASK_DISTRIBUTED__WORKER__PRELOAD", "dask_plugin.preload")
    with dask.config.set({"distributed.worker.preload": ["dask_plugin.preload"]}):
        client = start_cluster(n_workers=1, threads_per_worker=1)
    assert client.submit(read, make("a")).result() == "a"
    assert stats(client).total["files"] == 1
    client.register_plugin(StagingPlugin(ssh_config=str(sshd.ssh_config), cache_dir=str(place)))
    assert stats(client).total["files"] == 0
    assert client.submit(read, make("b")).result() == "b"


def test_workers_that_come_later_are_served(start_cluster, register, sshd, make):
    client = register(start_cluster(n_workers=1, threads_per_worker=1), sshd)
    client.cluster.scale(2)
    client.wait_for_workers(2, timeout=PATIENCE_S)
    assert len(stats(client)) == 2
    assert client.gather(client.map(read, [make(name) for name in "abcd"])) == list("abcd")


def test_a_restarted_cluster_is_served(start_cluster, register, sshd, make):
    client = register(start_cluster(n_workers=1, threads_per_worker=1), sshd)
    assert client.submit(read, make("a")).result() == "a"
    client.restart()
    assert client.submit(read, make("b")).result() == "b"


def test_a_secret_of_the_workers_stays_there(
    start_cluster, register, sshd, make, monkeypatch, tmp_path
):
    monkeypatch.setenv("PYREMOTEDATA_PASSWORD", CANARY)
    client = register(start_cluster(n_workers=1, threads_per_worker=1), sshd)
    file = make("a")
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


def relayed(server, relay_factory):
    relay = relay_factory(server.port)
    host, key = server.known_hosts.read_text().splitlines()[0].split(" ", 1)
    with open(server.known_hosts, "a") as known:
        known.write(f"{host.rpartition(':')[0]}:{relay.port} {key}\n")
    return relay


def handle(server, relay, name: str) -> RemoteFile:
    return RemoteFile(relay.url(server.url(name)))
