"""Reading a remote file without downloading it, and streams of files."""

from __future__ import annotations

import os
import random

import pytest

from pyremotedata_core import (
    ConfigurationError,
    ConnectionLost,
    Remote,
    RemoteChanged,
    RemoteFileNotFound,
    TransferEngine,
)
from pyremotedata_core.stream import BLOCK_BYTES

from .command import python
from .forks import in_a_fork
from .sites import TRANSPORTS


@pytest.fixture
def remote(sshd):
    with Remote(sshd.url(), ssh_config=str(sshd.ssh_config)) as remote:
        yield remote


@pytest.fixture(params=TRANSPORTS)
def reading(sshd, request):
    """A remote by each transport."""
    settings = sshd.settings(transport=request.param)
    with TransferEngine(settings) as engine:
        yield Remote(sshd.url(), engine=engine)


def test_sequential_reading_gives_the_bytes(sshd, reading):
    data = os.urandom(5 * BLOCK_BYTES + 17)
    sshd.make("stream/seq.bin", data)
    with reading.open("stream/seq.bin") as file:
        pieces = list(iter(lambda: file.read(100_001), b""))
    assert b"".join(pieces) == data


def test_any_seek_and_read_gives_what_a_local_file_gives(sshd, reading):
    path = sshd.make("stream/seek.bin", os.urandom(40 * BLOCK_BYTES + 3))
    chance = random.Random(7)
    with reading.open("stream/seek.bin") as file, path.open("rb") as local:
        for _ in range(60):
            whence = chance.choice((os.SEEK_SET, os.SEEK_END))
            offset = chance.randrange(41 * BLOCK_BYTES) * (-1 if whence == os.SEEK_END else 1)
            offset = max(offset, -(40 * BLOCK_BYTES))
            size = chance.choice((0, 1, 4096, BLOCK_BYTES, 3 * BLOCK_BYTES))
            assert file.seek(offset, whence) == local.seek(offset, whence)
            assert file.read(size) == local.read(size)
            assert file.tell() == local.tell()


def test_reads_here_and_there_ask_for_no_more_than_is_read(sshd_factory):
    server = sshd_factory(log_requests=True)
    data = os.urandom(60 * BLOCK_BYTES)
    server.make("large.bin", data)
    with Remote(server.url(), ssh_config=str(server.ssh_config)) as remote:
        with remote.open("large.bin") as file:
            for place in range(54 * BLOCK_BYTES, 0, -6 * BLOCK_BYTES):
                file.seek(place)
                assert file.read(3 * BLOCK_BYTES) == data[place : place + 3 * BLOCK_BYTES]
        some = server.requests("read")
        with remote.open("large.bin") as file:
            assert file.read() == data
        assert some <= (server.requests("read") - some) / 2, "27 of 60 blocks"


def test_readinto_and_text_read_as_files_do(sshd, remote):
    sshd.make("stream/text.csv", "ø,å\n1,2\n".encode())
    with remote.open("stream/text.csv", "r") as file:
        assert list(file) == ["ø,å\n", "1,2\n"]
    buffer = bytearray(4)
    with remote.open("stream/text.csv") as file:
        assert file.readinto(buffer) == 4
    assert bytes(buffer) == "ø,å\n".encode()[:4]


def test_a_forked_child_reads_on_and_so_does_its_parent(sshd, remote):
    data = os.urandom(6 * BLOCK_BYTES)
    sshd.make("stream/forked.bin", data)

    def read() -> None:
        assert file.read() == data[BLOCK_BYTES:]

    with remote.open("stream/forked.bin") as file:
        assert file.read(BLOCK_BYTES) == data[:BLOCK_BYTES]
        assert in_a_fork(read) == ""
        read()


@pytest.mark.parametrize("clear", [False, True])
def test_a_forked_child_leaves_a_stream_to_its_parent(sshd, remote, clear):
    names, sources = make_many(sshd, 20)
    stream = remote.stream(names, ahead_files=8, clear=clear)
    locals_ = [next(stream).local]

    def go_on() -> None:
        assert locals_[0].read_bytes() == sources[0].read_bytes()
        with pytest.raises(ConnectionLost):
            next(stream)

    for work in (go_on, stream.close):
        assert in_a_fork(work) == ""
        assert locals_[0].read_bytes() == sources[0].read_bytes()
    read = [local.read_bytes() for local, _ in stream]
    assert read == [source.read_bytes() for source in sources[1:]]


def test_a_file_that_changes_while_it_is_open_is_an_error(sshd, reading):
    path = sshd.make("stream/changing.bin", os.urandom(30 * BLOCK_BYTES), mtime=1_000_000)
    with reading.open("stream/changing.bin") as file:
        assert len(file.read(10)) == 10
        path.write_bytes(os.urandom(30 * BLOCK_BYTES))
        file.seek(25 * BLOCK_BYTES)
        with pytest.raises(RemoteChanged):
            file.read(10)


def test_a_missing_file_and_a_wrong_mode_are_errors_at_once(remote):
    with pytest.raises(RemoteFileNotFound):
        remote.open("stream/none.bin")
    with pytest.raises(ConfigurationError):
        remote.open("stream/none.bin", "w")


def test_what_is_no_file_is_not_opened_and_leaves_no_warning(sshd):
    sshd.make_directory("stream")
    script = """
import sys
from pyremotedata_core import Remote, ServerRefused
with Remote(sys.argv[1], ssh_config=sys.argv[2]) as remote:
    try:
        remote.open("stream")
    except ServerRefused as error:
        print(error)
"""
    development = {**os.environ, "PYTHONDEVMODE": "1"}
    done = python(script, sshd.url(), sshd.ssh_config, env=development)
    assert (done.stdout, done.stderr) == (
        f"{sshd.url('stream')}: is a directory; a file was meant\n",
        "",
    )


def test_a_part_that_no_file_can_have_is_refused(sshd, remote):
    sshd.make("stream/part.bin", b"12345")
    stat, url = remote.stat("stream/part.bin"), sshd.url("stream/part.bin")
    for offset, length in ((-1, 1), (0, -1)):
        with pytest.raises(ValueError, match="no part of a file"):
            remote.engine.read(url, offset, length, stat)
    assert remote.engine.read(url, 1, 3, stat).result(30) == b"234"


def make_many(sshd, count):
    names = [f"stream/many/{number}.bin" for number in range(count)]
    return names, [sshd.make(name, os.urandom(2000 + number)) for number, name in enumerate(names)]


def test_a_stream_yields_every_file_in_order(sshd, remote):
    names, sources = make_many(sshd, 150)
    count = 0
    for (local, url), name, source in zip(
        remote.stream(names, ahead_files=20), names, sources, strict=True
    ):
        assert local.read_bytes() == source.read_bytes()
        assert url == remote.locate(name)
        count += 1
    assert count == 150
    assert not local.exists(), "the temporary directory goes with the stream"


def test_a_stream_that_clears_keeps_no_more_than_it_may_hold_ahead(sshd, remote, tmp_path):
    names, _ = make_many(sshd, 60)
    most = 0
    for _ in remote.stream(names, ahead_files=5, clear=True, directory=tmp_path):
        most = max(most, sum(path.is_file() for path in tmp_path.rglob("*.bin")))
    assert most <= 6, "five ahead and the one in use"
    assert not list(tmp_path.iterdir())


def test_a_stream_stops_fetching_when_its_bytes_are_reached(sshd, remote, tmp_path):
    names, _ = make_many(sshd, 30)
    stream = remote.stream(names, ahead_bytes=5000, directory=tmp_path)
    next(stream)
    assert sum(path.is_file() for path in tmp_path.rglob("*")) <= 4
    stream.close()


def test_a_missing_file_fails_in_its_turn(sshd, remote):
    names, sources = make_many(sshd, 3)
    names.insert(2, "stream/many/none.bin")
    stream = remote.stream(names)
    assert next(stream).local.read_bytes() == sources[0].read_bytes()
    assert next(stream).local.read_bytes() == sources[1].read_bytes()
    with pytest.raises(RemoteFileNotFound, match=r"none\.bin"):
        next(stream)


def test_an_endless_list_of_paths_can_be_streamed(sshd, remote):
    names, _ = make_many(sshd, 3)

    def endless():
        while True:
            yield from names

    stream = remote.stream(endless(), ahead_files=4, clear=True)
    assert len([next(stream) for _ in range(20)]) == 20
    stream.close()


def test_files_of_the_same_name_keep_it_and_do_not_meet(sshd, remote, tmp_path):
    """Nor do those that differ in what some file systems do not tell apart."""
    names = [f"stream/same/{number}/{name}" for number in range(20) for name in ("A.x", "a.x")]
    sources = [sshd.make(name, os.urandom(100 + place)) for place, name in enumerate(names)]
    streamed = list(remote.stream(names, ahead_files=7, directory=tmp_path))
    for (local, _), source in zip(streamed, sources, strict=True):
        assert local.name == source.name
        assert local.read_bytes() == source.read_bytes()
    assert not [local for local, _ in streamed if len(list(local.parent.iterdir())) > 1]


def test_a_stream_makes_few_directories_and_uses_them_again(sshd, remote, tmp_path):
    """To make one for each file takes longer than to fetch it."""
    names, _ = make_many(sshd, 60)
    list(remote.stream(names, directory=tmp_path / "all"))
    assert len(list((tmp_path / "all").iterdir())) == 1
    same = [sshd.make(f"stream/room/{n}/x", b"x").relative_to(sshd.root) for n in range(30)]
    directories = set()
    for local, _ in remote.stream(
        map(str, same), ahead_files=3, clear=True, directory=tmp_path / "few"
    ):
        directories.add(local.parent)
    assert len(directories) <= 6
    assert not list((tmp_path / "few").iterdir())
