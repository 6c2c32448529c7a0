"""What tasks read through the fsspec file system comes through the node's cache, ahead of them."""

from __future__ import annotations

import dask
import fsspec
import pytest

from dask_plugin import stats
from dask_plugin.walk import handles_in

from .dask_cluster import files_in
from .waiting import PATIENCE_S

pytest.importorskip("distributed")
pandas = pytest.importorskip("pandas")

ROWS = 3000


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


def read_csv(files, options):
    dataframe = pytest.importorskip("dask.dataframe")
    table = dataframe.read_csv(files, blocksize=10_000, storage_options=options)
    assert table.npartitions > 6
    return table.optimize(), table.n.sum()


def read_parquet(files, options):
    dataframe = pytest.importorskip("dask.dataframe")
    table = dataframe.read_parquet(files, storage_options=options)
    return table.optimize(fuse=False), table.n.sum()


def read_text(files, options):
    bag = pytest.importorskip("dask.bag")
    lines = bag.read_text(files, storage_options=options)
    return lines, lines.count()


@pytest.mark.parametrize(
    ("read", "suffix", "result"),
    [
        (read_csv, "csv", sum(range(3 * ROWS))),
        (read_parquet, "parquet", sum(range(3 * ROWS))),
        (read_text, "csv", 3 * (ROWS + 1)),
    ],
)
def test_what_dask_reads_goes_through_the_cache_and_its_graph_shows_the_files(
    client, folder, options, cache_dir, read, suffix, result
):
    names = {f"t{number}.{suffix}" for number in range(3)}
    graph, computed = read(f"{folder}/*.{suffix}", options)
    assert names_in(graph) == names
    assert computed.compute() == result
    assert stats(client).total["files"] == 3
    assert files_in(cache_dir) == names


@pytest.mark.parametrize("how", [{}, {"cache_type": "blockcache"}])  # the other one: xarray's
def test_an_open_file_that_goes_to_a_worker_is_a_file_of_its_cache(
    client, folder, options, cache_dir, how
):
    def opened() -> int:
        events = [event for _, event in client.get_events("pyremotedata")]
        return sum(one["action"] == "opened" and one["url"].endswith("t1.csv") for one in events)

    before = opened()
    fs, path = fsspec.url_to_fs(f"{folder}/t1.csv", **options)
    with fs.open(path, **how) as file:
        assert [handle.name for handle in handles_in([file])] == ["t1.csv"]
        head = file.read(10)
        tail = client.submit(lambda file: file.read(), file).result()
    assert (head + tail).startswith(b"n,text\n3000,some\n")
    assert files_in(cache_dir) == {"t1.csv"}
    assert opened() == before + 1


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
    assert files_in(cache_dir) == {"t2.csv"}


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


@pytest.mark.parametrize("why", [{"cache_bytes": 1000}, {"filesystem": False}], ids=str)
def test_a_file_that_does_not_fit_or_is_not_to_be_staged_is_read_from_the_server(
    two_workers, register, sshd, folder, options, cache_dir, why
):
    def read(file):
        with file as stream:
            return stream.read()

    register(two_workers, sshd, **why)
    (file,) = fsspec.open_files(f"{folder}/t0.csv", **options)
    assert dask.delayed(read)(file).compute().count(b"\n") == ROWS + 1
    assert not files_in(cache_dir)
