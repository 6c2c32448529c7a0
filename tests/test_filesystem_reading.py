"""The fsspec file system: reading, in parts and whole, one file and many."""

from __future__ import annotations

import asyncio
import io
import os

import fsspec
import pytest
from fsspec.callbacks import Callback

from pyremotedata_core import (
    AuthenticationFailed,
    ConfigurationError,
    RemoteFileNotFound,
)
from pyremotedata_core.stream import BLOCK_BYTES

from .filesystems import Heard, reach
from .sites import tree
from .waiting import wait_until

MTIME = 1_234_567_890


@pytest.mark.parametrize(
    ("start", "end"),
    [(None, None), (0, 0), (5, None), (None, 5), (-7, None), (None, -7), (-9, -3), (10, 5),
     (BLOCK_BYTES - 1, 2 * BLOCK_BYTES + 1), (0, 10**9), (10**9, None), (-(10**9), 4)],
)  # fmt: skip
def test_a_range_is_a_slice(sshd, fs, start, end):
    path = sshd.root / "range.bin"
    if not path.exists():
        sshd.make("range.bin", os.urandom(3 * BLOCK_BYTES + 17))
    assert fs.cat_file(str(path), start, end) == path.read_bytes()[start:end]


def test_ranges_of_one_file_share_one_look_at_it(sshd_factory):
    server = sshd_factory(log_requests=True)
    fs = reach(server)
    path = server.make("a.bin", os.urandom(100_000))
    starts = list(range(0, 100_000, 1000))
    before = server.requests("stat")
    pieces = fs.cat_ranges([str(path)] * 100, starts, [start + 10 for start in starts])
    assert server.requests("stat") == before + 1
    data = path.read_bytes()
    assert pieces == [data[start : start + 10] for start in starts]


def test_ranges_return_or_raise_what_fails(make, fs):
    path = str(make("a", b"123"))
    good, bad = fs.cat_ranges([path, f"{path}-none"], 0, 2)
    assert good == b"12"
    assert isinstance(bad, RemoteFileNotFound)
    with pytest.raises(RemoteFileNotFound):
        fs.cat_ranges([path, f"{path}-none"], 0, 2, on_error="raise")


def test_many_files_are_read_at_once(sshd, fs, place):
    data = {f"{place}/{n}": os.urandom(1000 + n) for n in range(100)}
    for path, content in data.items():
        sshd.make(os.path.relpath(path, sshd.root), content)
    assert fs.cat(list(data)) == fs.cat(place, recursive=True, on_error="omit") == data


def test_lines_and_text_are_read_as_from_a_local_file(make, fs):
    text = "".join(f"{number},ø\r\n" for number in range(200_000))
    path = make("a.csv", text.encode())
    with fs.open(str(path)) as file, path.open("rb") as local:
        assert all(ours == theirs for ours, theirs in zip(file, local, strict=True))
    assert fs.read_text(str(path), encoding="utf-8", newline="") == text
    assert fs.read_block(str(path), 10, 100, b"\n") in text.encode()
    assert fs.head(str(path), 7) == text.encode()[:7]
    assert fs.tail(str(path), 7) == text.encode()[-7:]


def test_a_directory_is_no_file(fs, place):
    for ask in (fs.open, fs.cat_file):
        with pytest.raises(IsADirectoryError):
            ask(place)
    with pytest.raises(ConfigurationError):
        fs.open(f"{place}/a", "rw")


def test_a_file_and_its_listing_may_be_out_of_step(make, fs, place, tmp_path):
    path = make("a", b"1", mtime=MTIME)
    fs.ls(place)
    path.write_bytes(b"12")
    fs.get_file(str(path), str(tmp_path / "a"))
    assert (tmp_path / "a").read_bytes() == b"12"


def test_a_tree_is_fetched_with_its_times_and_progress(make, there, fs, place, tmp_path):
    files = {f"{n % 7}/{n}.bin": os.urandom(n * 100) for n in range(100)}
    for name, data in files.items():
        make(name, data, mtime=MTIME)
    (there / "empty").mkdir()
    heard = Heard()
    fs.get(place, str(tmp_path / "t"), recursive=True, callback=heard)
    expected = {**files, "empty": None, **{str(n): None for n in range(7)}}
    assert tree(tmp_path / "t") == expected
    assert (tmp_path / "t/1/8.bin").stat().st_mtime == MTIME
    assert heard.value == heard.size == len(expected) + 1
    for name, data in files.items():
        child = heard.children[f"{place}/{name}"]
        assert child.value == child.size == len(data)


def test_files_are_fetched_side_by_side(sshd_factory, tmp_path):
    server = sshd_factory(log_requests=True)
    fs = reach(server)
    for number in range(200):
        server.make(f"many/{number}", os.urandom(20_000))
    fs.get(f"{server.root}/many/*", str(tmp_path) + "/")
    assert tree(tmp_path) == tree(server.root / "many")

    def all_are_closed() -> bool:
        log = server.sftp_log.read_text()
        return log.count('open "') == log.count('close "')

    wait_until(all_are_closed)
    assert server.most_open() > 4


def test_a_file_is_fetched_into_an_open_file(make, fs):
    path = make("a", os.urandom(3 * BLOCK_BYTES + 1))
    into, heard = io.BytesIO(), Callback()
    fs.get_file(str(path), into, callback=heard)
    assert into.getvalue() == path.read_bytes()
    assert heard.value == heard.size == path.stat().st_size


def test_it_works_within_another_event_loop(sshd, make, place):
    make("a", b"1")

    async def look():
        fs = reach(sshd, asynchronous=True)
        return await asyncio.gather(fs._cat_file(f"{place}/a"), fs._ls(place, detail=False))

    assert asyncio.run(look()) == [b"1", [f"{place}/a"]]


def test_a_new_password_reaches_an_instance_that_fsspec_has_kept(chroot_sshd):
    def log_in(password):
        return fsspec.filesystem(
            "pyremotedata",
            host=chroot_sshd.alias,
            ssh_config=str(chroot_sshd.password_ssh_config),
            password=password,
        )

    with pytest.raises(AuthenticationFailed):
        log_in("wrong").ls("/")
    assert log_in(chroot_sshd.password).ls("/")
