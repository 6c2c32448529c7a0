"""What tasks read through the fsspec file system comes through the node's cache, ahead of them."""

from __future__ import annotations

import dask
import fsspec
import pytest

from dask_plugin import StagingPlugin, stats
from dask_plugin.walk import handles_in

from .waiting import PATIENCE_S, wait_until

distributed = pytest.importorskip("distributed")
pandas = pytest.importorskip("pandas")

ROWS = 3000


@pytest.fixture(scope="module")
def cluster():
    """A worker process with one thread."""
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.fixture
def client(cluster, sshd, cache_dir):
    cluster.register_plugin(
        StagingPlugin(ssh_config=str(sshd.ssh_config), cache_dir=str(cache_dir))
    )
    yield cluster
    cluster.unregister_worker_plugin(StagingPlugin.name)


@pytest.fixture
def options(sshd) -> dict[str, str]:
    return {"ssh_config": str(sshd.ssh_config)}


@pytest.fixture
def folder(sshd, remote_directory) -> str:
    """Three tables on the server, as CSV and as Parquet; the URL of their directory."""
    root = sshd.root / remote_directory
    for number in range(3):
        table = pandas.DataFrame({"n": range(number * ROWS, (number + 1) * ROWS), "text": "some"})
        table.to_csv(root / f"t{number}.csv", index=False)
        table.to_parquet(root / f"t{number}.parquet")
    return "pyremotedata+" + sshd.url(remote_directory)


def names_in(collection) -> set[str]:
    graph = dict(collection.__dask_graph__())
    return {file.name for task in graph.values() for file in handles_in(task)}


def test_read_csv_goes_through_the_cache_and_its_graph_shows_the_files(
    client, folder, options, cache_dir
):
    dataframe = pytest.importorskip("dask.dataframe")
    table = dataframe.read_csv(f"{folder}/*.csv", blocksize=10_000, storage_options=options)
    assert table.npartitions > 6
    assert names_in(table.optimize()) == {"t0.csv", "t1.csv", "t2.csv"}
    assert table.n.sum().compute() == sum(range(3 * ROWS))
    total = stats(client).total
    assert total["files"] == 3
    assert total["files"] + total["cache_files"] >= table.npartitions / 2
    assert {path.name for path in cache_dir.glob("*/files/*/*")} == {"t0.csv", "t1.csv", "t2.csv"}


def test_read_parquet_goes_through_the_cache_and_its_graph_shows_the_files(
    client, folder, options, cache_dir
):
    dataframe = pytest.importorskip("dask.dataframe")
    table = dataframe.read_parquet(f"{folder}/*.parquet", storage_options=options)
    assert names_in(table.optimize(fuse=False)) == {"t0.parquet", "t1.parquet", "t2.parquet"}
    assert table.n.sum().compute() == sum(range(3 * ROWS))
    assert len(list(cache_dir.glob("*/files/*/*.parquet"))) == 3


def test_read_text_goes_through_the_cache_and_its_graph_shows_the_files(
    client, folder, options, cache_dir
):
    bag = pytest.importorskip("dask.bag")
    lines = bag.read_text(f"{folder}/*.csv", storage_options=options)
    assert names_in(lines) == {"t0.csv", "t1.csv", "t2.csv"}
    assert lines.count().compute() == 3 * (ROWS + 1)
    assert len(list(cache_dir.glob("*/files/*/*.csv"))) == 3


def opened(client, name):
    events = [event for _, event in client.get_events("pyremotedata")]
    return sum(one["action"] == "opened" and one["url"].endswith(name) for one in events)


def test_an_open_file_that_goes_to_a_worker_is_a_file_of_its_cache(
    client, folder, options, cache_dir
):
    before = opened(client, "t1.csv")
    with fsspec.open(f"{folder}/t1.csv", "rb", **options) as file:
        assert [handle.name for handle in handles_in([file])] == ["t1.csv"]
        head = file.read(10)
        tail = client.submit(lambda file: file.read(), file).result()
    assert (head + tail).startswith(b"n,text\n3000,some\n")
    assert len(list(cache_dir.glob("*/files/*/t1.csv"))) == 1
    assert opened(client, "t1.csv") == before + 1


class ReadOnArrival:
    """Reads its file while it is unpickled, as xarray does with a netCDF file."""

    def __init__(self, file):
        self.file = file

    def __setstate__(self, state):
        self.file = state["file"]
        self.file.seek(0)
        self.content = self.file.read()


def test_a_file_that_is_read_while_its_task_is_unpickled_does_not_hang_the_worker(
    archive, start_nodes
):
    client = start_nodes(2)
    _, data = archive.make("early.bin", 100_000)
    url = "pyremotedata+" + archive.server.url("early.bin")
    with fsspec.open(url, ssh_config=str(archive.server.ssh_config)) as file:
        task = client.submit(lambda early: early.content, ReadOnArrival(file))
        assert task.result(PATIENCE_S) == data


def test_bytes_that_are_asked_for_by_range_come_from_the_cache(client, folder, options, cache_dir):
    fs, path = fsspec.url_to_fs(f"{folder}/t2.csv", **options)
    assert client.submit(fs.cat_file, path, 2, 6).result() == b"text"
    assert stats(client).total["files"] == 1
    assert len(list(cache_dir.glob("*/files/*/t2.csv"))) == 1


def read_and_write(url, options, contents):
    found = []
    for content in contents:
        with fsspec.open(url, "wb", **options) as file:
            file.write(content)
        with fsspec.open(url, "rb", **options) as file:
            found.append(file.read())
    return found


def test_a_task_reads_what_it_has_written(client, folder, options):
    contents = [b"%d" % number for number in range(12)]
    task = client.submit(read_and_write, f"{folder}/state", options, contents)
    assert task.result() == contents


def test_a_task_reads_what_another_one_has_written(client, folder, options, sshd, remote_directory):
    url = f"{folder}/state"
    fs, path = fsspec.url_to_fs(url, **options)
    for content in (b"old", b"newer"):
        client.submit(fs.pipe_file, path, content, pure=False).result()
        with fsspec.open(url, **options) as file:
            assert client.submit(file.read, pure=False).result() == content

        def read_by_name(url=url):
            with fsspec.open(url, **options) as file:
                return file.read()

        assert client.submit(read_by_name, pure=False).result() == content


def test_the_next_partition_comes_while_one_is_computed(client, folder, options, cache_dir):
    first, second = (fsspec.open(f"{folder}/t{n}.csv", **options) for n in range(2))

    def compute_until_here(file, cache_dir, name):
        with file as stream:
            data = stream.read()
        if name:
            wait_until(lambda: any(cache_dir.glob(f"*/files/*/{name}")), f"{name} is fetched ahead")
        return len(data)

    tasks = [
        client.submit(compute_until_here, first, cache_dir, "t1.csv", priority=1),
        client.submit(compute_until_here, second, cache_dir, None),
    ]
    assert all(size > ROWS for size in client.gather(tasks))


def test_a_file_that_does_not_fit_the_cache_is_read_from_the_server(
    cluster, sshd, folder, options, cache_dir
):
    settings = {"ssh_config": str(sshd.ssh_config), "cache_dir": str(cache_dir)}
    cluster.register_plugin(StagingPlugin(**settings, cache_bytes=1000))

    def read(file):
        with file as stream:
            return len(stream.read())

    try:
        (file,) = fsspec.open_files(f"{folder}/t0.csv", **options)
        assert cluster.submit(read, file).result() > ROWS
        assert not any(cache_dir.glob("*/files/*/*"))
    finally:
        cluster.unregister_worker_plugin(StagingPlugin.name)


def test_staging_of_whole_files_may_be_turned_off(cluster, sshd, folder, options, cache_dir):
    settings = {"ssh_config": str(sshd.ssh_config), "cache_dir": str(cache_dir)}
    cluster.register_plugin(StagingPlugin(**settings, filesystem=False))

    def read(opened):
        with opened as stream:
            return stream.read(6)

    try:
        (file,) = fsspec.open_files(f"{folder}/t0.csv", **options)
        task = dask.delayed(read)(file)
        assert task.compute() == b"n,text"
        assert not any(cache_dir.glob("*/files/*/*"))
    finally:
        cluster.unregister_worker_plugin(StagingPlugin.name)
