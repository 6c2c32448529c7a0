"""The contract of the engine for single files, on every transport and server.

What a server cannot do (the MiG-like one refuses names and links) is told, and harms nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

from pyremotedata_core import (
    RemoteChanged,
    RemoteFileNotFound,
    RemotePermissionDenied,
    ServerRefused,
    TransferError,
)

from .sites import WAIT_S, Site, tree

MTIME = 1_234_567_890
LARGE = 20 * 2**20 + 12_345  # several segments, and a rest

NAMES = [
    "a b", " lead", "trail ", "-dash", "--help", "quote'", 'double"', "back\\slash", "\\", "a;b",
    "bang!", "!touch x", "$(touch x)", "`touch x`", "$HOME", "[ab]", "{a,b}", "star*", "what?",
    "hash#", "pct%41", "100%", "%2F", "amp&", "pipe|x", "gt>x", "~", "~root", ".hidden", "...",
    "a:b", "@", "=x", "æøå", "e\u0301", "日本", "emoji🦊", "\udcff\udcfe", "tab\tx", "cr\rx",
    "new\nline", "new\n!touch x", "esc\x1b[31m", "\x01", "x" * 255,
]  # fmt: skip


def wait_for(names: list[str], ask: Callable[[str], Future[Any]]) -> dict[str, Any]:
    """Ask for all names at once; return the answers."""
    futures = {name: ask(name) for name in names}
    return {name: future.result(WAIT_S) for name, future in futures.items()}


# --- stat -----------------------------------------------------------------------------------


def test_a_file_has_its_kind_size_and_mtime(site: Site):
    site.make("a.bin", b"12345", mtime=MTIME)
    stat = site.stat("a.bin")
    assert (stat.kind, stat.size, stat.mtime) == ("file", 5, MTIME)


def test_a_directory_is_one(site: Site):
    assert site.stat().kind == "directory"
    assert site.engine.stat(site.server.url()).result(WAIT_S).kind == "directory"


@pytest.mark.parametrize("relative", ["none", "none/none"])
def test_what_is_missing_is_not_found(site: Site, relative: str):
    with pytest.raises(RemoteFileNotFound) as caught:
        site.stat(relative)
    assert caught.value.url == site.url(relative)


def test_a_path_below_the_login_directory_is_found(site: Site):
    url = site.url().replace(site.server.remote_path(site.place), "/~")
    assert site.engine.stat(url).result(WAIT_S).kind == "directory"


# --- scandir --------------------------------------------------------------------------------


def test_a_directory_is_listed_with_what_stat_says(site: Site):
    site.make("b.txt", b"123", mtime=MTIME)
    site.make("sub/c.txt")
    site.make(".hidden", mtime=MTIME)
    entries = sorted(site.engine.scandir(site.url()).result(WAIT_S))
    assert [entry.name for entry in entries] == [".hidden", "b.txt", "sub"]
    hidden, b, sub = (entry.stat for entry in entries)
    assert (b.kind, b.size, b.mtime) == ("file", 3, MTIME)
    assert (hidden.kind, hidden.size) == ("file", 0)
    assert sub.kind == "directory"


def test_an_empty_directory_lists_nothing(site: Site):
    assert site.names() == []


def test_our_own_temporary_files_are_not_listed(site: Site):
    ours = site.make(".pyremotedata-0123abcd-00ff.part")
    site.make(".pyremotedata-not.txt")
    assert site.names() == [".pyremotedata-not.txt"]
    ours.unlink()


def test_many_entries_are_all_listed(site: Site):
    names = [f"file {number:05d}.txt" for number in range(1500)]
    for name in names:
        (site.path() / name).touch()
    assert site.names() == names


def test_listing_what_is_missing_is_not_found(site: Site):
    with pytest.raises(RemoteFileNotFound):
        site.names("none")


def test_listing_a_file_says_that_it_is_one(site: Site):
    site.make("a.txt", b"1")
    with pytest.raises(ServerRefused, match=r"directory"):
        site.names("a.txt")


# --- fetch ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 255 * 1024, 300_000, LARGE])
def test_a_fetched_file_has_the_bytes_and_the_mtime(site: Site, tmp_path, size: int):
    data = os.urandom(size)
    site.make("a.bin", data, mtime=MTIME)
    stat = site.fetch("a.bin", tmp_path / "new" / "deep" / "a.bin")
    assert (tmp_path / "new/deep/a.bin").read_bytes() == data
    assert int((tmp_path / "new/deep/a.bin").stat().st_mtime) == MTIME
    assert (stat.kind, stat.size, stat.mtime) == ("file", size, MTIME)


def test_a_fetch_replaces_what_was_there(site: Site, tmp_path):
    site.make("a.bin", b"new")
    (tmp_path / "a.bin").write_bytes(b"old and longer")
    site.fetch("a.bin", tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == b"new"


@pytest.mark.parametrize("relative", ["none", "none/none", ""])
def test_a_fetch_that_fails_leaves_the_old_file(site: Site, tmp_path, relative: str):
    """Missing, or a directory where a file was meant."""
    (tmp_path / "a.bin").write_bytes(b"old")
    with pytest.raises(TransferError) as caught:
        site.fetch(relative, tmp_path / "a.bin")
    assert type(caught.value) is (RemoteFileNotFound if relative else ServerRefused)
    assert caught.value.url == site.url(relative)
    assert (tmp_path / "a.bin").read_bytes() == b"old"
    assert tree(tmp_path) == {"a.bin": b"old"}


def test_a_file_is_not_fetched_over_a_directory(site: Site, tmp_path):
    site.make("a.bin", b"1")
    (tmp_path / "sub").mkdir()
    with pytest.raises(TransferError, match="is a directory"):
        site.fetch("a.bin", tmp_path / "sub")
    assert tree(tmp_path) == {"sub": None}


def test_a_file_is_not_fetched_below_a_file(site: Site, tmp_path):
    site.make("a.bin", b"1")
    (tmp_path / "file").touch()
    with pytest.raises(TransferError, match="file"):
        site.fetch("a.bin", tmp_path / "file" / "a.bin")


def test_a_file_that_is_not_as_expected_is_not_fetched(site: Site, tmp_path):
    site.make("a.bin", b"12345", mtime=MTIME)
    right = site.stat("a.bin")
    for wrong in (right._replace(size=4), right._replace(size=6), right._replace(mtime=1)):
        with pytest.raises(RemoteChanged):
            site.fetch("a.bin", tmp_path / "a.bin", expect=wrong)
        assert tree(tmp_path) == {}
    site.fetch("a.bin", tmp_path / "a.bin", expect=right)
    assert (tmp_path / "a.bin").read_bytes() == b"12345"


def test_progress_adds_up_to_the_size(site: Site, tmp_path):
    site.make("a.bin", bytes(LARGE))
    told: list[int] = []
    site.fetch("a.bin", tmp_path / "a.bin", on_progress=lambda moved, _: told.append(moved))
    assert sum(told) == LARGE
    told.clear()
    site.store(tmp_path / "a.bin", "b.bin", on_progress=lambda moved, _: told.append(moved))
    assert sum(told) == LARGE


def test_many_files_are_fetched_at_once(site: Site, tmp_path):
    wanted = {f"file {n}": os.urandom(n * 37) for n in range(60)}
    for name, data in wanted.items():
        site.make(name, data)
    futures = [site.engine.fetch(site.url(name), tmp_path / name) for name in wanted]
    for future in futures:
        future.result(WAIT_S)
    assert tree(tmp_path) == wanted


def test_of_a_list_of_files_those_that_can_be_are_fetched(site: Site, tmp_path):
    site.make("a", b"1")
    site.make("b", b"22")
    pairs = [(site.url(name), tmp_path / name) for name in ("a", "none", "b")]
    result = site.engine.fetch_many(pairs).result(WAIT_S)
    assert tree(tmp_path) == {"a": b"1", "b": b"22"}
    assert (result.files, result.bytes) == (2, 3)
    assert [failed["class"] for failed in result.failed] == ["RemoteFileNotFound"]
    assert result.failed[0]["url"] == site.url("none")


# --- store ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 255 * 1024, 300_000, LARGE])
def test_a_stored_file_has_the_bytes_and_the_mtime(site: Site, tmp_path, size: int):
    data = os.urandom(size)
    (tmp_path / "a.bin").write_bytes(data)
    os.utime(tmp_path / "a.bin", (MTIME, MTIME))
    stat = site.store(tmp_path / "a.bin", "new/deep/a.bin")
    assert site.path("new/deep/a.bin").read_bytes() == data
    assert (stat.kind, stat.size) == ("file", size)
    if not (site.lftp and site.miglike):  # lftp sends size and time at once, which MiG forgets
        assert int(site.path("new/deep/a.bin").stat().st_mtime) == MTIME
        assert stat.mtime == MTIME


def test_a_store_replaces_what_was_there(site: Site, tmp_path):
    site.make("a.bin", b"old and longer")
    (tmp_path / "a.bin").write_bytes(b"new")
    site.store(tmp_path / "a.bin", "a.bin")
    assert tree(site.path()) == {"a.bin": b"new"}


@pytest.mark.parametrize("size", [3, LARGE])
def test_a_store_that_may_not_overwrite_leaves_what_is_there(site: Site, tmp_path, size: int):
    site.make("a.bin", b"old")
    (tmp_path / "a.bin").write_bytes(bytes(size))
    with pytest.raises(ServerRefused, match="exists"):
        site.store(tmp_path / "a.bin", "a.bin", overwrite=False)
    assert tree(site.path()) == {"a.bin": b"old"}
    site.store(tmp_path / "a.bin", "b.bin", overwrite=False)
    assert site.path("b.bin").read_bytes() == bytes(size)


@pytest.mark.parametrize("size", [3, LARGE])
def test_a_file_is_not_stored_over_a_directory(site: Site, tmp_path, size: int):
    site.make("sub/x", b"1")
    (tmp_path / "a.bin").write_bytes(bytes(size))
    with pytest.raises(ServerRefused, match="directory"):
        site.store(tmp_path / "a.bin", "sub")
    assert tree(site.path()) == {"sub": None, "sub/x": b"1"}


@pytest.mark.parametrize("size", [3, LARGE])
def test_missing_directories_are_made_only_when_wanted(site: Site, tmp_path, size: int):
    (tmp_path / "a.bin").write_bytes(bytes(size))
    with pytest.raises((RemoteFileNotFound, RemotePermissionDenied)):
        site.store(tmp_path / "a.bin", "new/a.bin", parents=False)
    assert tree(site.path()) == {}


def test_a_file_is_not_stored_below_a_file(site: Site, tmp_path):
    site.make("file", b"1")
    (tmp_path / "a.bin").write_bytes(b"2")
    with pytest.raises(TransferError):
        site.store(tmp_path / "a.bin", "file/a.bin")
    assert tree(site.path()) == {"file": b"1"}


def test_modes_go_along_when_asked_for_and_times_still_do(site: Site, tmp_path):
    local = tmp_path / "program"
    local.write_bytes(b"#!/bin/sh\n")
    local.chmod(0o751)
    os.utime(local, (MTIME, MTIME))
    site.engine.store(local, site.url("program"), modes=True).result(WAIT_S)
    site.engine.fetch(site.url("program"), tmp_path / "back", modes=True).result(WAIT_S)
    if not site.miglike:  # which ignores them
        assert os.stat(site.path("program")).st_mode & 0o777 == 0o751
        if not site.lftp:  # which does not tell the mode of a single file
            assert (tmp_path / "back").stat().st_mode & 0o777 == 0o751
    if not (site.lftp and site.miglike):
        assert int((tmp_path / "back").stat().st_mtime) == MTIME


def test_what_is_verified_arrives_as_it_was(site: Site, tmp_path):
    for name, size in {"empty": 0, "small": 1000, "large": LARGE}.items():
        (tmp_path / name).write_bytes(os.urandom(size))
        site.engine.store(tmp_path / name, site.url(name), verify=True).result(WAIT_S)
        site.engine.fetch(site.url(name), tmp_path / "back", verify=True).result(WAIT_S)
        assert (tmp_path / "back").read_bytes() == (tmp_path / name).read_bytes()


def test_a_local_file_that_cannot_be_read_is_named(site: Site, tmp_path):
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(TransferError) as caught:
            site.store(path, "a.bin")
        assert str(path) in str(caught.value)
        assert not caught.value.retryable
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(TransferError, match="not a regular file"):
        site.store(tmp_path / "fifo", "a.bin")
    assert tree(site.path()) == {}


# --- names ----------------------------------------------------------------------------------


def test_files_of_any_name_go_and_come_back_or_are_refused(site: Site, tmp_path):
    """No name makes lftp or a shell run something, or comes out as another one."""
    content = {name: name.encode("utf-8", "surrogateescape") for name in NAMES}
    for number, name in enumerate(NAMES):
        (tmp_path / str(number)).write_bytes(content[name])
    stores = {
        name: site.engine.store(tmp_path / str(number), site.url(name))
        for number, name in enumerate(NAMES)
    }
    stored = {name: future.exception(WAIT_S) for name, future in stores.items()}
    assert all(isinstance(e, TransferError) for e in stored.values() if e)
    taken = [name for name, error in stored.items() if error is None]
    assert taken == [name for name in NAMES if site.takes(name)], stored
    wanted = {name: content[name] for name in taken}
    assert tree(site.path()) == wanted
    assert site.names() == sorted(taken)

    stats = wait_for(taken, lambda name: site.engine.stat(site.url(name)))
    assert {name: stat.size for name, stat in stats.items()} == {
        name: len(data) for name, data in wanted.items()
    }
    back = tmp_path / "back"
    wait_for(taken, lambda name: site.engine.fetch(site.url(name), back / name))
    assert tree(back) == wanted

    wait_for(taken, lambda name: site.engine.rename(site.url(name), site.url(f"{name[:200]}'2")))
    assert tree(site.path()) == {f"{name[:200]}'2": data for name, data in wanted.items()}
    wait_for(taken, lambda name: site.engine.rename(site.url(f"{name[:200]}'2"), site.url(name)))
    wait_for(taken, lambda name: site.engine.remove(site.url(name)))
    assert tree(site.path()) == {}


def test_directories_of_any_name_are_made_filled_listed_and_removed(site: Site, tmp_path):
    (tmp_path / "x").write_bytes(b"1")
    taken = [name for name in NAMES if site.takes(name)]
    wait_for(taken, lambda name: site.engine.mkdir(site.url(name)))
    wait_for(taken, lambda name: site.engine.store(tmp_path / "x", site.url(f"{name}/x")))
    assert tree(site.path()) == dict.fromkeys(taken) | {f"{n}/x": b"1" for n in taken}
    listed = wait_for(taken, lambda name: site.engine.scandir(site.url(name)))
    assert [[entry.name for entry in listed[name]] for name in taken] == [["x"]] * len(taken)
    wait_for(taken, lambda name: site.engine.remove(site.url(name), recursive=True))
    assert tree(site.path()) == {}


def test_a_local_file_of_any_name_goes_into_a_directory_that_is_not_there_yet(site: Site, tmp_path):
    local = tmp_path / "\udcff b'\"*"
    local.write_bytes(b"content")
    site.store(local, "new/sub/x")
    assert tree(site.path()) == {"new": None, "new/sub": None, "new/sub/x": b"content"}


# --- large ----------------------------------------------------------------------------------


@pytest.mark.full
@pytest.mark.timeout(2000)  # a server in Python, on a busy machine
def test_offsets_beyond_four_gibibytes_are_right(site: Site, tmp_path):
    if site.kind in ("ftps", "ftplist"):
        pytest.skip("as with plain FTP, and slow")
    size = 2**32 + 10 * 2**20 + 1
    path = site.make("sparse")
    marks = {0: b"first", 2**32 - 3: b"across", size - 4: b"last"}
    with path.open("r+b") as file:
        file.truncate(size)
        for offset, mark in marks.items():
            os.pwrite(file.fileno(), mark, offset)
    stat = site.engine.fetch(site.url("sparse"), tmp_path / "sparse").result(900)
    assert stat.size == size
    path.unlink()
    site.engine.store(tmp_path / "sparse", site.url("again")).result(900)
    for local in (tmp_path / "sparse", site.path("again")):
        assert local.stat().st_size == size
        with local.open("rb") as file:
            for offset, mark in marks.items():
                assert os.pread(file.fileno(), len(mark), offset) == mark
            assert os.pread(file.fileno(), 100, 2**31) == bytes(100)
        local.unlink()
