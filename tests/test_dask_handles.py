"""RemoteFile, glob, local and the walk: what needs no cluster."""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import pickle
import re
import subprocess
from collections import namedtuple
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from dask_plugin import RemoteFile, StagingPlugin, glob, local
from dask_plugin.walk import handles_in
from pyremotedata_core import (
    ConfigurationError,
    RemoteChanged,
    RemoteFileNotFound,
)
from pyremotedata_core.stager import shared_stager

from .page import told

CANARY = "canary-7d1f"


@pytest.fixture
def remote(sshd, remote_directory, monkeypatch, tmp_path):
    """Make a file on the server and return its handle; the process's settings reach the server."""
    monkeypatch.setenv("PYREMOTEDATA_SSH_CONFIG", str(sshd.ssh_config))
    monkeypatch.setenv("PYREMOTEDATA_CACHE_DIR", str(tmp_path / "cache"))

    def make(name: str, data: bytes = b"data\n", **known) -> RemoteFile:
        sshd.make(f"{remote_directory}/{name}", data)
        return RemoteFile(sshd.url(f"{remote_directory}/{name}"), **known)

    return make


def staged(tmp_path: Path) -> set[str]:
    return {path.name for path in tmp_path.glob("cache/*/files/*/*")}


# --- the handle ---------------------------------------------------------------------------------


def test_handles_are_values():
    f = RemoteFile("sftp://u@h:22/a//b.gz", size=3, mtime=4)
    assert f == RemoteFile("sftp://u@h:22/a/b.gz", 3, 4) != RemoteFile("sftp://u@h:22/a/b.gz", 3, 5)
    assert len({f, RemoteFile("sftp://u@h:22/a/b.gz", 3, 4)}) == 1
    assert pickle.loads(pickle.dumps(f)) == f
    assert len(pickle.dumps(f)) < 200
    assert (f.name, f.suffix, str(f)) == ("b.gz", ".gz", "sftp://u@h:22/a/b.gz")
    assert eval(repr(f)) == f
    assert isinstance(f, os.PathLike)
    with pytest.raises(AttributeError, match="immutable"):
        f.size = 5
    with pytest.raises(AttributeError, match="immutable"):
        del f.size


def test_equal_handles_have_equal_tokens():
    from dask.tokenize import tokenize

    f = RemoteFile("sftp://h/a", 1, 2)
    assert tokenize(f, ensure_deterministic=True) == tokenize(RemoteFile("sftp://h/a", 1, 2))
    assert tokenize(f) != tokenize(RemoteFile("sftp://h/a", 1, 3))


@pytest.mark.parametrize("url", ["sftp://u:secret@h/a", "http://h/a", "a", "sftp://h/"])
def test_what_cannot_be_opened_cannot_be_made(url):
    with pytest.raises(ConfigurationError) as caught:
        RemoteFile(url)
    assert "secret" not in str(caught.value)


def test_size_and_mtime_are_whole_numbers_of_any_kind():
    numpy = pytest.importorskip("numpy")
    f = RemoteFile("sftp://h/a", numpy.int64(3), numpy.int32(4))
    assert f == RemoteFile("sftp://h/a", 3, 4)
    assert (type(f.size), type(f.mtime)) == (int, int)
    for number in ("3", 4.5):
        with pytest.raises(ConfigurationError, match="mtime is a whole number"):
            RemoteFile("sftp://h/a", 3, number)


def test_a_handle_is_a_path_to_python_and_to_programs(remote):
    f = remote("some reads.txt", b"one\ntwo\n")
    with open(f) as text:
        assert text.read() == "one\ntwo\n"
    assert Path(f).name == "some reads.txt"
    done = subprocess.run(["wc", "-l", f], capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == "2"


def test_pandas_reads_a_compressed_file_by_its_suffix(remote):
    import gzip

    pandas = pytest.importorskip("pandas")
    f = remote("table.csv.gz", gzip.compress(b"a,b\n1,2\n3,4\n"))
    assert pandas.read_csv(f)["b"].sum() == 6


def test_a_missing_file_is_a_file_not_found(remote):
    f = remote("a")
    missing = RemoteFile(f.url + "-missing")
    with pytest.raises(FileNotFoundError):
        open(missing).close()
    with pytest.raises(RemoteFileNotFound, match="a-missing"):
        os.fspath(missing)


@pytest.mark.parametrize("known", [{"size": 4}, {"mtime": 12345}, {"size": 5, "mtime": 12345}])
def test_a_file_that_is_not_what_the_handle_says_is_an_error(remote, known):
    with pytest.raises(RemoteChanged, match=r"the handle (says|names)"):
        os.fspath(remote("a", b"12345", **known))


def test_outside_of_tasks_a_file_stays_as_long_as_its_handle(remote, monkeypatch, tmp_path):
    monkeypatch.setenv("PYREMOTEDATA_CACHE_BYTES", "30000")
    monkeypatch.setenv("PYREMOTEDATA_TIMEOUT", "3")
    kept, lost = remote("kept", bytes(10_000)), remote("lost", bytes(10_000))
    os.fspath(kept), os.fspath(lost)
    del lost
    gc.collect()
    for name in "abcd":
        assert Path(remote(name, bytes(10_000))).exists()
    assert "kept" in staged(tmp_path)
    assert "lost" not in staged(tmp_path)
    assert Path(kept).exists()


def test_a_held_file_stays_as_long_as_its_owner(remote, monkeypatch):
    class Reader:
        pass

    monkeypatch.setenv("PYREMOTEDATA_CACHE_BYTES", "30000")
    owner = Reader()
    path = remote("held", bytes(10_000)).hold(owner).path
    for name in "abcd":
        with remote(name, bytes(10_000)).hold() as lease:
            assert lease.path.exists()
    assert path.exists()
    del owner
    for name in "efg":
        remote(name, bytes(10_000)).hold().release()
    assert not path.exists()


def test_what_cannot_be_watched_cannot_own_a_file(remote, monkeypatch):
    monkeypatch.setenv("PYREMOTEDATA_CACHE_BYTES", "30000")
    for name in "abcdef":
        with pytest.raises(TypeError, match="a dict cannot own a file"):
            remote(name, bytes(10_000)).hold({})


# --- local --------------------------------------------------------------------------------------


def test_local_turns_handles_into_strings_wherever_they_are(remote):
    a, b, c = (remote(name, name.encode()) for name in "abc")
    Pair = namedtuple("Pair", "left right")

    @local
    def read(number, files, *, by_name, pair):
        assert number == 1
        assert isinstance(pair, Pair)
        paths = [*files, by_name["c"], *pair]
        assert all(type(path) is str for path in paths)
        return "".join(Path(path).read_text() for path in paths)

    assert read(1, [a, (b)], by_name={"c": c}, pair=Pair(a, "/dev/null")) == "abca"
    assert read.__name__ == "read"


def test_local_leaves_other_arguments_alone():
    @local
    def same(*args):
        return args

    class Text(str):
        __slots__ = ()

    text = Text("x")
    assert same(text, {"a": 1}, None)[0] is text


def test_local_serves_coroutines(remote):
    @local
    async def read(path):
        assert type(path) is str
        return Path(path).read_text()

    assert asyncio.run(read(remote("a", b"text"))) == "text"


def test_local_keeps_the_files_of_a_generator_until_it_ends(remote):
    @local
    def lines(path):
        with open(path) as text:
            yield from text

    cache = shared_stager().cache
    reading = lines(remote("a", b"one\ntwo\n"))
    cache.trim(0)
    assert next(reading) == "one\n"
    assert not cache.trim(0)
    assert list(reading) == ["two\n"]
    assert len(cache.trim(0)) == 1


def test_local_keeps_the_files_of_an_asynchronous_generator_until_it_ends(remote):
    @local
    async def lines(path):
        with open(path) as text:
            for line in text:
                yield line

    async def trimmed():
        reading = lines(remote("a", b"one\ntwo\n"))
        assert await anext(reading) == "one\n"
        kept = not cache.trim(0)
        await reading.aclose()
        return kept, len(cache.trim(0))

    cache = shared_stager().cache
    assert asyncio.run(trimmed()) == (True, 1)
    assert inspect.isasyncgenfunction(lines)


def test_local_passes_on_what_is_sent_or_thrown_into_an_asynchronous_generator(remote):
    @local
    async def echo(path):
        got = [Path(path).read_text()]
        while len(got) < 4:
            try:
                got.append((yield got[-1]))
            except ValueError as error:
                got.append(str(error))

    async def talk():
        echoes = echo(remote("a", b"one"))
        said = [await anext(echoes), await echoes.asend("two")]
        said.append(await echoes.athrow(ValueError("3")))
        with pytest.raises(StopAsyncIteration):
            await echoes.asend("four")
        return said

    assert asyncio.run(talk()) == ["one", "two", "3"]


def test_an_error_of_local_names_the_file_and_releases_the_others(remote):
    a = remote("a")
    with pytest.raises(RemoteFileNotFound, match="missing"):
        local(print)(a, RemoteFile(a.url + "-missing"))


# --- glob ---------------------------------------------------------------------------------------


def test_glob_makes_handles_that_know_size_and_mtime(sshd, remote_directory, remote):
    for name in ("b.gz", "a.gz", "c.txt", ".hidden.gz"):
        remote(name, name.encode())
    sshd.make_directory(f"{remote_directory}/d.gz")
    os.symlink(sshd.root / remote_directory / "c.txt", sshd.root / remote_directory / "e.gz")
    os.symlink("nowhere", sshd.root / remote_directory / "f.gz")
    found = glob(sshd.url(remote_directory) + "/*.gz")
    assert [f.name for f in found] == ["a.gz", "b.gz", "e.gz"]
    assert [f.size for f in found] == [4, 4, 5]
    assert found[0].mtime == int((sshd.root / remote_directory / "a.gz").stat().st_mtime)
    assert [Path(f).read_text() for f in found] == ["a.gz", "b.gz", "c.txt"]


def test_glob_finds_nothing_where_nothing_is(sshd, remote_directory, remote):
    assert glob(sshd.url(remote_directory) + "/no-such-directory/*") == []
    assert glob(sshd.url(remote_directory) + "/no-such-file") == []


def test_glob_lists_once_and_its_handles_ask_nothing(sshd_factory, tmp_path, monkeypatch):
    server = sshd_factory(log_requests=True)
    for name in "abc":
        server.make(f"many/{name}", b"1")
    monkeypatch.setenv("PYREMOTEDATA_SSH_CONFIG", str(server.ssh_config))
    monkeypatch.setenv("PYREMOTEDATA_CACHE_DIR", str(tmp_path / "cache"))
    for f in glob(server.url("many") + "/*"):
        assert Path(f).read_bytes() == b"1"
    assert server.requests("opendir") == 1
    assert server.requests("stat") == server.requests("lstat") == 0
    assert server.requests("open") == 3


# --- the walk -----------------------------------------------------------------------------------

A, B, C = (RemoteFile(f"sftp://h/{name}") for name in "abc")


@dataclass
class Sample:
    name: str
    file: RemoteFile


Pair = namedtuple("Pair", "left right")


def default(f=A, *, g=B):
    return f, g


@pytest.mark.parametrize(
    ("thing", "expected"),
    [
        (A, [A]),
        ([A, "x", (B, 1)], [A, B]),
        ({"k": A, B: 1}, [B, A]),
        ({A}, [A]),
        (Pair(A, [B]), [A, B]),
        (partial(print, A, key=B), [A, B]),
        (Sample("s", A), [A]),
        ([Sample("s", A), Sample], [A]),
        (default, [A, B]),
        ([A, A, B, A], [A, B]),
        ("sftp://h/a", []),
        (None, []),
        (object(), []),
    ],
    ids=lambda thing: re.sub(r" at 0x\w+", "", repr(thing)),  # the same in every process
)
def test_the_walk_finds_handles(thing, expected):
    assert handles_in(thing) == expected


def test_the_walk_finds_what_a_function_encloses():
    f = A

    def task():
        return f

    assert handles_in(task) == [A]


def test_the_walk_finds_handles_in_tasks_of_dask():
    from dask._task_spec import Alias, DataNode, Dict, List, Task, TaskRef

    task = Task("k", print, A, List([B, TaskRef("x")]), key=Dict({"c": C, "d": TaskRef("y")}))
    assert handles_in(task) == [A, B, C]
    assert handles_in(Task("k", local(print), List(List(A, TaskRef("z"))))) == [A]
    assert handles_in(DataNode("k", [A])) == [A]
    assert handles_in(Alias("k", "l")) == []


def test_the_walk_ends_in_circles_and_gives_up_in_deserts():
    circle: list = [A]
    circle.append(circle)
    assert handles_in(circle) == [A]
    assert handles_in([list(range(1_000_000)), A], most_objects=1000) == []


# --- the plugin's settings ----------------------------------------------------------------------


def test_the_plugin_refuses_secrets_and_typing_errors():
    with pytest.raises(ConfigurationError, match="PYREMOTEDATA_PASSWORD") as caught:
        StagingPlugin(password=CANARY)
    told(caught.value, "must not pass through the scheduler")
    assert CANARY not in str(caught.value)
    with pytest.raises(ConfigurationError, match="cache_bites"):
        StagingPlugin(cache_bites=1)
    with pytest.raises(ConfigurationError, match="cache_bytes is not valid: '1X'"):
        StagingPlugin(cache_bytes="1X", cache_dir=None)
    for wrong in ("many", -1):
        with pytest.raises(ConfigurationError, match="ahead_bytes"):
            StagingPlugin(ahead_bytes=wrong)
    with pytest.raises(ConfigurationError, match="ahead_files"):
        StagingPlugin(ahead_files="many")
    with pytest.raises(ConfigurationError, match="archive_reads"):
        StagingPlugin(archive_reads="many")
    for key in ("locality", "filesystem"):
        with pytest.raises(ConfigurationError, match=f"{key} is not valid: 'no'"):
            StagingPlugin(**{key: "no"})


def test_no_pickle_holds_a_secret_of_the_environment(remote, monkeypatch):
    monkeypatch.setenv("PYREMOTEDATA_PASSWORD", CANARY)
    f = remote("a")
    os.fspath(f)
    assert CANARY.encode() not in pickle.dumps(f) + pickle.dumps(StagingPlugin(timeout_s=5))
    assert CANARY not in repr(f)
