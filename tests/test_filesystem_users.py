"""The libraries that read and write through the fsspec file system, in all their processes."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import pickle
import random
import sys
import zipfile

import cloudpickle
import fsspec
import pytest

from pyremotedata_core import RemoteChanged, RemoteFileNotFound
from pyremotedata_core.filesystem import RemoteFileSystem
from pyremotedata_core.stager import lending
from pyremotedata_core.stream import BLOCK_BYTES

from .forks import in_a_fork
from .sites import WAIT_S
from .test_readme import archive, block, run  # noqa: F401

CANARY = "canary-5a1f"


@pytest.fixture
def url(sshd, remote_directory) -> str:
    return "pyremotedata+" + sshd.url(remote_directory)


def table(rows: int, first: int = 0) -> bytes:
    lines = (f"{n},{n * n % 977},name {n}\n" for n in range(first, first + rows))
    return b"n,square,name\n" + "".join(lines).encode()


# --- processes ----------------------------------------------------------------------------------


def test_a_forked_child_reads_and_writes_with_the_same_objects(fs, there):
    data = os.urandom(20 * BLOCK_BYTES)
    (there / "a").write_bytes(data)
    file = fs.open(f"{there}/a")
    assert file.read(5 * BLOCK_BYTES) == data[: 5 * BLOCK_BYTES]  # more is on its way
    unfinished = fs.open(f"{there}/parents", "wb")
    unfinished.write(b"1")
    unfinished.flush()

    def work():
        assert fs.ls(str(there), detail=False) == [f"{there}/a"]
        assert file.read() == data[5 * BLOCK_BYTES :]
        fs.pipe(f"{there}/childs", b"2")
        unfinished.close()
        assert not (there / "parents").exists(), "the file is the parent's"
        fs.engine.close()

    assert in_a_fork(work) == ""
    assert file.read() == data[5 * BLOCK_BYTES :]
    unfinished.close()
    assert (there / "parents").read_bytes() == b"1"
    assert fs.cat(f"{there}/childs") == b"2"


def read_all(fs, file) -> tuple[bytes, bytes]:
    read = fs.cat(file.path), file.read()
    fs.engine.close()
    return read


def test_another_process_reads_with_a_pickle_of_them(fs, there):
    (there / "a").write_bytes(b"0123456789")
    file = fs.open(f"{there}/a")
    file.seek(4)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        read = pool.apply_async(read_all, (fs, file)).get(WAIT_S)
    assert read == (b"0123456789", b"456789")


@pytest.mark.parametrize("how", [{}, {"cache_type": "blockcache", "block_size": 3}])
def test_a_pickled_open_file_knows_what_it_was(fs, there, how):
    (there / "a").write_bytes(b"0123456789")
    with fs.open(f"{there}/a", **how) as file:
        file.seek(4)
        pickled = pickle.dumps(file)
    with pickle.loads(pickled) as file:
        assert file.read() == b"456789"
    (there / "a").write_bytes(b"012345")
    with pytest.raises(RemoteChanged):
        pickle.loads(pickled).read()


def test_file_systems_are_equal_by_their_options(sshd, fs, options):
    again = fsspec.filesystem("pyremotedata", host=sshd.alias, **options)
    other = fsspec.filesystem("pyremotedata", host=sshd.alias, timeout_s=7, **options)
    assert again is fs
    assert pickle.loads(pickle.dumps(fs)) == fs
    assert hash(fs) == hash(again)
    assert other != fs
    assert RemoteFileSystem.from_json(fs.to_json()) == fs


@pytest.mark.parametrize("given", ["argument", "environment", "fsspec's configuration"])
def test_a_secret_is_in_nothing_that_leaves_the_process(sshd, options, there, monkeypatch, given):
    (there / "a").write_bytes(b"1")
    if given == "argument":
        options = {**options, "password": CANARY, "key_passphrase": CANARY}
    elif given == "environment":
        monkeypatch.setenv("PYREMOTEDATA_PASSWORD", CANARY)
        monkeypatch.setenv("PYREMOTEDATA_KEY_PASSPHRASE", CANARY)
        options = {**options, "timeout_s": 61}  # an instance of its own
    else:
        monkeypatch.setitem(fsspec.config.conf, "pyremotedata", {"password": CANARY})
        options = {**options, "timeout_s": 65}
    fs = fsspec.filesystem("pyremotedata", host=sshd.alias, **options)
    assert fs.cat(f"{there}/a") == b"1"
    assert fs.engine.settings.password.reveal() == CANARY
    things = [fs, fs.open(f"{there}/a"), fsspec.core.OpenFile(fs, f"{there}/a"), fs.get_mapper("")]
    shown = [repr(vars(fs)), fs.to_json(), json.dumps(fs.to_dict()), fs._fs_token, fs.fsid]
    shown += [repr(thing) for thing in things]
    shown += [str(vars(fs.engine)), fs.unstrip_protocol("/x")]
    assert not any(CANARY in text for text in shown)
    for dumps in (pickle.dumps, cloudpickle.dumps):
        assert not any(CANARY.encode() in dumps(thing) for thing in things)


def test_the_configured_password_goes_to_no_other_host(sshd, options, monkeypatch):
    monkeypatch.setenv("PYREMOTEDATA_REMOTE_URI", "elsewhere")
    monkeypatch.setenv("PYREMOTEDATA_PASSWORD", CANARY)
    fs = fsspec.filesystem("pyremotedata", host=sshd.alias, timeout_s=62, **options)
    assert fs.engine.settings.for_url(fs.url("/x")).password is None
    fs = fsspec.filesystem("pyremotedata", host=sshd.alias, password="other", **options)
    assert fs.engine.settings.for_url(fs.url("/x")).password.reveal() == "other"


def test_unpickling_needs_no_configuration(monkeypatch, tmp_path):
    monkeypatch.setenv("PYREMOTEDATA_CONFIG", str(tmp_path / "none.yaml"))
    fs = fsspec.filesystem("pyremotedata", host="archive", timeout_s=64)
    RemoteFileSystem.clear_instance_cache()
    assert pickle.loads(pickle.dumps(fs)) == fs, "as on Dask's scheduler"


# --- fsspec's own ---------------------------------------------------------------------------


def test_a_local_cache_can_be_put_in_front(options, there, url, tmp_path):
    (there / "a").write_bytes(table(1000))
    chained = {"pyremotedata+sftp": options, "filecache": {"cache_storage": str(tmp_path)}}
    with fsspec.open(f"filecache::{url}/a", **chained) as file:
        assert file.read() == table(1000)
    assert len(list(tmp_path.iterdir())) == 2, "the file and the cache's own notes"


def test_a_cache_of_fsspecs_keeps_the_parts_that_were_read(options, fs, there, url, tmp_path):
    data = os.urandom(20 * BLOCK_BYTES)
    (there / "a").write_bytes(data)
    chained = {"pyremotedata+sftp": options, "blockcache": {"cache_storage": str(tmp_path)}}
    for _ in range(2):
        with fsspec.open(f"blockcache::{url}/a", **chained) as file:
            file.seek(7 * BLOCK_BYTES - 1)
            assert file.read(5) == data[7 * BLOCK_BYTES - 1 : 7 * BLOCK_BYTES + 4]
    sizes = [path.stat().st_blocks * 512 for path in tmp_path.iterdir()]
    assert sum(sizes) < len(data)
    with fs.open(f"{there}/a", cache_type="readahead", block_size=1000) as file:
        file.seek(-1234, 2)
        assert file.read() == data[-1234:]
        (there / "a").write_bytes(b"another")
        file.seek(0)
        with pytest.raises(RemoteChanged):
            file.read(10)


def test_a_forked_child_reads_a_staged_file_beside_its_parent(fs, there, stager, monkeypatch):
    monkeypatch.setattr(lending, "lend", lambda _settings, url, _stat: stager.stage(url))
    data = os.urandom(3 * BLOCK_BYTES)
    (there / "a").write_bytes(data)
    with fs.open(f"{there}/a") as file:
        (there / "a").unlink()  # it is staged
        assert file.read(100) == data[:100]

        def work():
            assert file.read(BLOCK_BYTES) == data[100 : BLOCK_BYTES + 100]
            assert file.seek(-5, os.SEEK_END) == len(data) - 5

        assert in_a_fork(work) == ""
        assert file.read() == data[100:]
        assert file.seek(-5, os.SEEK_CUR) == file.tell() == len(data) - 5
        assert file.read(100) == data[-5:]


@pytest.mark.parametrize("mode", ["w", "wb"])
def test_what_a_child_closes_its_parent_writes_once(fs, there, mode):
    def text(words):
        return words if mode == "w" else words.encode()

    with fs.open(f"{there}/a", mode) as file:
        file.write(text("before, "))
        assert in_a_fork(file.close) == ""
        file.write(text("after"))
    assert (there / "a").read_bytes() == b"before, after"


def test_a_cache_may_read_ahead_in_a_thread_of_its_own(fs, there):
    data = os.urandom(4 * 2**20)
    (there / "a").write_bytes(data)
    places = random.Random(1)
    with fs.open(f"{there}/a", cache_type="background", block_size=100_000) as file:
        for _ in range(200):
            start = places.randrange(len(data))
            file.seek(start)
            assert file.read(100_000) == data[start : start + 100_000]


def test_a_member_of_a_remote_archive_is_read_by_a_chain_of_urls(options, there, url):
    with zipfile.ZipFile(there / "a.zip", "w") as packed:
        packed.writestr("in/a.csv", table(1000))
    with fsspec.open(f"zip://in/a.csv::{url}/a.zip", **{"pyremotedata+sftp": options}) as file:
        assert file.read() == table(1000)


def test_a_mapping_reads_and_writes_keys(fs, there):
    mapping = fs.get_mapper(str(there))
    mapping["a/b"] = b"1"
    mapping.setitems({"c": b"2", "d": b"3"})
    assert sorted(mapping) == ["a/b", "c", "d"]
    assert mapping.getitems(["a/b", "d"]) == {"a/b": b"1", "d": b"3"}
    del mapping["c"]
    with pytest.raises(KeyError):
        mapping["c"]
    assert "c" not in mapping


# --- pandas, Dask ---------------------------------------------------------------------------------


def test_pandas_reads_and_writes_tables(options, there, url):
    import pandas

    (there / "a.csv").write_bytes(table(50_000))
    frame = pandas.read_csv(f"{url}/a.csv", storage_options=options)
    assert frame.equals(pandas.read_csv(io.BytesIO(table(50_000))))
    for name in ("b.csv", "b.csv.gz"):
        frame.to_csv(f"{url}/{name}", index=False, storage_options=options)
        assert pandas.read_csv(there / name).equals(frame)
        assert pandas.read_csv(f"{url}/{name}", storage_options=options).equals(frame)
    assert (there / "b.csv").read_bytes() == table(50_000)
    with pytest.raises(RemoteFileNotFound):
        pandas.read_csv(f"{url}/none.csv", storage_options=options)


def test_pandas_reads_and_writes_parquet(options, there, url):
    import pandas

    frame = pandas.read_csv(io.BytesIO(table(50_000)))
    frame.to_parquet(f"{url}/a.parquet", storage_options=options)
    assert pandas.read_parquet(there / "a.parquet").equals(frame)
    part = pandas.read_parquet(f"{url}/a.parquet", columns=["square"], storage_options=options)
    assert part.equals(frame[["square"]])


def test_the_readmes_example_moves_a_table(archive):  # noqa: F811
    (archive / "project/table.csv").write_bytes(table(1000))
    run([sys.executable, "-c", block("python", "pyremotedata+sftp")])
    assert (archive / "results/table.csv").read_bytes() == table(1000)


@pytest.fixture
def dataframe(two_workers):
    import dask.dataframe

    return dask.dataframe


def test_dask_reads_tables_in_its_workers(dataframe, options, there, url):
    import pandas

    for part in range(5):
        (there / f"{part}.csv").write_bytes(table(20_000, part * 20_000))
    frame = dataframe.read_csv(f"{url}/*.csv", blocksize=100_000, storage_options=options)
    assert frame.npartitions > 10
    expected = pandas.concat(
        [pandas.read_csv(there / f"{part}.csv") for part in range(5)], ignore_index=True
    )
    pandas.testing.assert_frame_equal(
        frame.compute().reset_index(drop=True), expected, check_dtype=False
    )


def test_dask_writes_tables_that_are_seen_at_once(dataframe, options, there, url):
    import pandas

    frame = pandas.read_csv(io.BytesIO(table(10_000)))
    parts = dataframe.from_pandas(frame, npartitions=4)
    parts.to_csv(f"{url}/t/*.csv", index=False, storage_options=options)
    joined = b"".join(
        (there / f"t/{n}.csv").read_bytes().removeprefix(b"n,square,name\n") for n in range(4)
    )
    assert b"n,square,name\n" + joined == table(10_000)
    parts.to_parquet(f"{url}/p", storage_options=options)
    back = dataframe.read_parquet(f"{url}/p", storage_options=options).compute()
    pandas.testing.assert_frame_equal(back, frame, check_dtype=False)
    parts.to_parquet(f"{url}/p", overwrite=True, storage_options=options)
    assert len(dataframe.read_parquet(f"{url}/p", storage_options=options)) == 10_000


def test_the_graph_holds_no_secret(dataframe, options, there, url, monkeypatch):
    from dask.base import collections_to_expr

    monkeypatch.setenv("PYREMOTEDATA_PASSWORD", CANARY)
    (there / "a.csv").write_bytes(table(100))
    frame = dataframe.read_csv(f"{url}/*.csv", storage_options={**options, "timeout_s": 63})
    assert CANARY.encode() not in cloudpickle.dumps(frame)
    assert CANARY.encode() not in cloudpickle.dumps(dict(frame.__dask_graph__()))
    assert CANARY not in repr(dict(collections_to_expr(frame).__dask_graph__()))


# --- arrays ---------------------------------------------------------------------------------------


def test_hdf5_reads_and_writes_open_files(fs, there):
    import h5py
    import numpy

    values = numpy.random.default_rng(1).random((200, 3000))
    with fs.open(f"{there}/a.h5", "wb") as file, h5py.File(file, "w") as written:
        written.create_dataset("values", data=values, chunks=(50, 500))
    with h5py.File(there / "a.h5") as local:
        assert (local["values"][:] == values).all()
    with fs.open(f"{there}/a.h5") as file, h5py.File(file) as read:
        assert (read["values"][60:70, ::7] == values[60:70, ::7]).all()


def test_zarr_reads_and_writes_through_it(options, there, url):
    import numpy
    import zarr

    values = numpy.random.default_rng(2).random((300, 300))
    array = zarr.create_array(f"{url}/a.zarr", data=values, chunks=(50, 50),
                              storage_options=options)  # fmt: skip
    assert (zarr.open_array(there / "a.zarr", mode="r")[:] == values).all()
    array[10:20] = 0
    again = zarr.open_array(f"{url}/a.zarr", mode="r", storage_options=options)[:]
    assert (again[10:20] == 0).all()
    assert (again[20:] == values[20:]).all()
