"""The contract of the engine for whole trees, on every transport and server."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyremotedata_core import RemoteFileNotFound, TransferError, TreeResult
from pyremotedata_core.errors import from_plain

from .sites import WAIT_S, Site, tree

MTIME = 1_234_567_890
TREE: dict[str, bytes | None] = {
    "a.txt": b"a" * 1000,
    "empty file": b"",
    "sub": None,
    "sub/b.txt": b"b" * 300_000,
    "sub/deep": None,
    "sub/deep/deeper": None,
    "sub/deep/deeper/c d;e!$(f)&'g.txt": b"c",
    "empty": None,
    "empty/empty": None,
    ".hidden": None,
    ".hidden/-x": b"x",
}


# All but the first two are to be left out of a copy.
LINKS = {
    "to file": "a",
    "sub/up": "../a",
    "to directory": "sub",
    "out": "../outside/secret",
    "out of it": "../outside",
    "nowhere": "none",
    "loop": "loop",
    "sub/back": "..",
    "self": ".",
}


def make_tree(root: Path, content: dict[str, bytes | None] = TREE) -> None:
    """Make it, every file with the same mtime."""
    root.mkdir(exist_ok=True)
    for relative, data in content.items():
        path = root / relative
        if data is None:
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            os.utime(path, (MTIME, MTIME))


def make_remote_tree(site: Site, relative: str, content: dict[str, bytes | None] = TREE) -> None:
    site.make_directory(relative)
    for name, data in content.items():
        if data is None:
            site.make_directory(f"{relative}/{name}")
        else:
            site.make(f"{relative}/{name}", data, mtime=MTIME)


def get(site: Site, relative: str, directory: Path, **options) -> TreeResult:
    return site.engine.fetch_tree(site.url(relative), directory, **options).result(WAIT_S)


def put(site: Site, directory: Path, relative: str, **options) -> TreeResult:
    return site.engine.store_tree(directory, site.url(relative), **options).result(WAIT_S)


def files(content: dict[str, bytes | None]) -> list[bytes]:
    return [data for data in content.values() if data is not None]


# --- there and back -------------------------------------------------------------------------


def test_a_tree_is_fetched_whole_with_its_times(site: Site, tmp_path):
    make_remote_tree(site, "t")
    told: list[tuple[int, int]] = []
    result = get(site, "t", tmp_path / "new" / "t", on_progress=lambda *moved: told.append(moved))
    assert tree(tmp_path / "new/t") == TREE
    assert int((tmp_path / "new/t/sub/b.txt").stat().st_mtime) == MTIME
    size = sum(map(len, files(TREE)))
    assert result == TreeResult(len(files(TREE)), size, 0, 0, [], [])
    assert tuple(map(sum, zip(*told, strict=True))) == (size, len(files(TREE)))


def test_a_tree_is_stored_whole_with_its_times(site: Site, tmp_path):
    make_tree(tmp_path / "t")
    told: list[tuple[int, int]] = []
    result = put(site, tmp_path / "t", "new/t", on_progress=lambda *moved: told.append(moved))
    assert tree(site.path("new/t")) == TREE
    if not (site.lftp and site.miglike):
        assert int(site.path("new/t/sub/b.txt").stat().st_mtime) == MTIME
    size = sum(map(len, files(TREE)))
    assert result == TreeResult(len(files(TREE)), size, 0, 0, [], [])
    assert tuple(map(sum, zip(*told, strict=True))) == (size, len(files(TREE)))


def test_an_empty_tree_is_an_empty_directory(site: Site, tmp_path):
    site.make_directory("t")
    get(site, "t", tmp_path / "t")
    put(site, tmp_path / "t", "u")
    assert tree(tmp_path) == {"t": None}
    assert tree(site.path()) == {"t": None, "u": None}


def test_a_missing_tree_is_not_found(site: Site, tmp_path):
    with pytest.raises(RemoteFileNotFound):
        get(site, "none", tmp_path / "t")
    with pytest.raises(TransferError, match="none"):
        put(site, tmp_path / "none", "t")
    assert tree(tmp_path) == {}
    assert tree(site.path()) == {}


def test_a_file_is_no_tree(site: Site, tmp_path):
    site.make("a", b"1")
    (tmp_path / "a").write_bytes(b"1")
    with pytest.raises(TransferError, match="directory"):
        get(site, "a", tmp_path / "t")
    with pytest.raises(TransferError, match="a"):
        put(site, tmp_path / "a", "t")


def test_a_tree_is_laid_over_what_is_there(site: Site, tmp_path):
    make_remote_tree(site, "t")
    make_tree(tmp_path / "t", {"a.txt": b"old", "mine": b"1", "sub/mine": b"2"})
    get(site, "t", tmp_path / "t")
    assert tree(tmp_path / "t") == {**TREE, "mine": b"1", "sub/mine": b"2"}
    make_remote_tree(site, "u", {"a.txt": b"old", "theirs": b"1"})
    put(site, tmp_path / "t", "u")
    assert tree(site.path("u")) == {**TREE, "mine": b"1", "sub/mine": b"2", "theirs": b"1"}


# --- sync -----------------------------------------------------------------------------------


def test_a_second_sync_down_moves_only_what_changed(site: Site, tmp_path):
    make_remote_tree(site, "t")
    get(site, "t", tmp_path / "t", compare=True)
    again = get(site, "t", tmp_path / "t", compare=True)
    assert (again.files, again.bytes, again.unchanged) == (0, 0, len(files(TREE)))
    site.make("t/a.txt", b"a" * 999, mtime=MTIME)  # another size
    site.make("t/sub/b.txt", b"B" * 300_000, mtime=MTIME + 1)  # another time
    site.make("t/new", b"1")
    (tmp_path / "t" / ".hidden" / "-x").unlink()
    again = get(site, "t", tmp_path / "t", compare=True)
    assert (again.files, again.unchanged) == (4, len(files(TREE)) - 3)
    assert tree(tmp_path / "t") == tree(site.path("t"))


def test_a_second_sync_up_moves_only_what_changed(site: Site, tmp_path):
    if site.lftp and site.miglike:
        pytest.skip("the times of uploads are not kept")
    make_tree(tmp_path / "t")
    put(site, tmp_path / "t", "t", compare=True)
    again = put(site, tmp_path / "t", "t", compare=True)
    assert (again.files, again.bytes, again.unchanged) == (0, 0, len(files(TREE)))
    make_tree(tmp_path / "t", {"a.txt": b"a" * 999, "new": b"1"})
    (tmp_path / "t/sub/b.txt").write_bytes(b"B" * 300_000)
    site.path("t/.hidden/-x").unlink()
    again = put(site, tmp_path / "t", "t", compare=True)
    assert (again.files, again.unchanged) == (4, len(files(TREE)) - 3)
    assert tree(site.path("t")) == tree(tmp_path / "t")


def test_a_sync_down_that_deletes_leaves_what_the_source_has(site: Site, tmp_path):
    make_remote_tree(site, "t")
    mine = {"mine": b"1", "sub/mine": b"2", "gone/deep/x": b"3", "a.txt": b"old"}
    make_tree(tmp_path / "t", mine)
    (tmp_path / "outside").write_bytes(b"4")
    (tmp_path / "t/gone/link").symlink_to(tmp_path)
    result = get(site, "t", tmp_path / "t", compare=True, delete=True)
    assert tree(tmp_path / "t") == TREE
    assert result.deleted == 3
    assert (tmp_path / "outside").read_bytes() == b"4"


def test_a_sync_up_that_deletes_leaves_what_the_source_has(site: Site, tmp_path):
    make_tree(tmp_path / "t")
    theirs = {"theirs": b"1", "sub/theirs": b"2", "gone/deep/x": b"3", "a.txt": b"old"}
    make_remote_tree(site, "t", theirs)
    site.make("outside", b"4")
    result = put(site, tmp_path / "t", "t", compare=True, delete=True)
    assert tree(site.path("t")) == TREE
    assert result.deleted == 3
    assert site.path("outside").read_bytes() == b"4"


def test_without_delete_nothing_is_deleted(site: Site, tmp_path):
    make_remote_tree(site, "t", {"theirs": b"1"})
    make_tree(tmp_path / "t", {"mine": b"2"})
    get(site, "t", tmp_path / "t", compare=True)
    assert tree(tmp_path / "t") == {"theirs": b"1", "mine": b"2"}
    site.path("t/theirs").unlink()
    put(site, tmp_path / "t", "t", compare=True)
    assert tree(site.path("t")) == {"theirs": b"1", "mine": b"2"}


def test_a_sync_that_deletes_turns_files_into_directories_and_back(site: Site, tmp_path):
    one = {"x": None, "x/y": b"1", "z": b"2"}
    other = {"x": b"3", "z": None, "z/w": b"4"}
    make_remote_tree(site, "t", one)
    make_tree(tmp_path / "t", other)
    planned = get(site, "t", tmp_path / "t", compare=True, delete=True, dry_run=True)
    done = get(site, "t", tmp_path / "t", compare=True, delete=True)
    assert tree(tmp_path / "t") == one
    assert planned[:6] == done[:6]
    make_tree(tmp_path / "u", other)
    planned = put(site, tmp_path / "u", "t", compare=True, delete=True, dry_run=True)
    done = put(site, tmp_path / "u", "t", compare=True, delete=True)
    assert tree(site.path("t")) == other
    assert planned[:6] == done[:6]


def test_a_file_in_the_way_of_a_directory_fails_alone(site: Site, tmp_path):
    make_remote_tree(site, "t", {"x/y": b"1", "z": b"2"})
    make_tree(tmp_path / "t", {"x": b"mine"})
    result = get(site, "t", tmp_path / "t")
    assert tree(tmp_path / "t") == {"x": b"mine", "z": b"2"}
    assert len(result.failed) == 1
    make_tree(tmp_path / "u", {"x/y": b"1", "z": b"3"})
    make_remote_tree(site, "u", {"x": b"theirs"})
    result = put(site, tmp_path / "u", "u")
    assert tree(site.path("u")) == {"x": b"theirs", "z": b"3"}
    assert len(result.failed) == 1


def test_a_pipe_of_the_server_is_not_replaced_by_a_file_unless_it_may_be_deleted(
    site: Site, tmp_path
):
    if site.lftp:
        pytest.skip("lftp does not list special files")
    make_tree(tmp_path / "t", {"a": b"1", "pipe": b"2"})
    site.make_directory("t")
    os.mkfifo(site.path("t/pipe"))
    result = put(site, tmp_path / "t", "t", compare=True)
    assert [one["url"] for one in result.failed] == [site.url("t/pipe")]
    assert "pipe" in result.failed[0]["message"]
    assert site.path("t/pipe").is_fifo()
    assert site.path("t/a").read_bytes() == b"1"
    put(site, tmp_path / "t", "t", compare=True, delete=True)
    assert site.path("t/pipe").read_bytes() == b"2"


def test_a_local_pipe_is_not_replaced_by_a_file_unless_it_may_be_deleted(site: Site, tmp_path):
    make_remote_tree(site, "t", {"a": b"1", "pipe": b"2", "null": b"3"})
    here = tmp_path / "t"
    here.mkdir()
    os.mkfifo(here / "pipe")
    (here / "null").symlink_to(os.devnull)
    result = get(site, "t", here, compare=True)
    assert len(result.failed) == 2
    assert all("move it away" in failure["message"] for failure in result.failed)
    assert (here / "pipe").is_fifo()
    assert (here / "null").is_symlink()
    assert (here / "a").read_bytes() == b"1"
    get(site, "t", here, compare=True, delete=True)
    assert tree(here) == {"a": b"1", "pipe": b"2", "null": b"3"}


# --- links ----------------------------------------------------------------------------------


def test_links_within_a_local_tree_are_stored_as_files_and_others_are_named(site: Site, tmp_path):
    make_tree(tmp_path / "outside", {"secret": b"s"})
    make_tree(tmp_path / "t", {"a": b"123", "sub/b": b"4"})
    for name, target in LINKS.items():
        (tmp_path / "t" / name).symlink_to(target)
    os.mkfifo(tmp_path / "t" / "fifo")
    result = put(site, tmp_path / "t", "t")
    assert tree(site.path("t")) == {
        "a": b"123",
        "sub": None,
        "sub/b": b"4",
        "to file": b"123",
        "sub/up": b"123",
    }
    skipped = {Path(path).name: why for path, why in result.skipped}
    assert set(skipped) == {
        "to directory", "out", "out of it", "nowhere", "loop", "back", "fifo", "self",
    }  # fmt: skip
    assert {name for name, why in skipped.items() if "out of the tree" in why} == {
        "out", "out of it",
    }  # fmt: skip
    assert result.failed == []


def test_links_within_a_remote_tree_are_fetched_as_files_and_others_are_named(site: Site, tmp_path):
    if site.miglike:
        pytest.skip("such a server follows every link")
    make_remote_tree(site, "outside", {"secret": b"s"})
    make_remote_tree(site, "t", {"a": b"123", "sub/b": b"4"})
    for name, target in LINKS.items():
        site.path(f"t/{name}").symlink_to(target)
    result = get(site, "t", tmp_path / "t")
    followed = {} if site.lftp else {"to file": b"123", "sub/up": b"123"}
    assert tree(tmp_path / "t") == {"a": b"123", "sub": None, "sub/b": b"4", **followed}
    skipped = {path.rpartition("/")[2]: why for path, why in result.skipped}
    # lftp cannot tell where a link leads, and so follows none.
    assert skipped.keys() - {"to%20file", "up"} == {
        "to%20directory", "out", "out%20of%20it", "nowhere", "loop", "back", "self",
    }  # fmt: skip
    if not site.lftp:
        assert skipped.keys().isdisjoint({"to%20file", "up"})
        leads_out = {name for name, why in skipped.items() if "out of the tree" in why}
        assert leads_out == {"out", "out%20of%20it"}
    assert result.failed == []


def test_special_files_of_the_server_are_not_opened(site: Site, tmp_path):
    """Reading a pipe would wait for ever."""
    if site.ftp:
        pytest.skip("such a server takes a pipe for a file, opens it, and serves nobody any more")
    site.make("t/a", b"1")
    os.mkfifo(site.path("t/pipe"))
    result = get(site, "t", tmp_path / "t")
    assert tree(tmp_path / "t") == {"a": b"1"}
    assert result.failed == []
    with pytest.raises(TransferError):
        site.fetch("t/pipe", tmp_path / "pipe")


def test_a_sync_that_deletes_does_not_follow_a_local_link_out_of_the_tree(site: Site, tmp_path):
    make_remote_tree(site, "t", {"sub/a": b"1"})
    make_tree(tmp_path / "precious", {"mine": b"2"})
    (tmp_path / "t").mkdir()
    (tmp_path / "t/sub").symlink_to(tmp_path / "precious")
    get(site, "t", tmp_path / "t", compare=True, delete=True)
    assert tree(tmp_path / "precious") == {"mine": b"2"}
    assert (tmp_path / "t/sub/a").read_bytes() == b"1"


def test_the_directory_that_is_synced_may_itself_be_a_link(site: Site, tmp_path):
    make_remote_tree(site, "t")
    (tmp_path / "real").mkdir()
    (tmp_path / "real/mine").touch()
    (tmp_path / "t").symlink_to("real")
    get(site, "t", tmp_path / "t", compare=True, delete=True)
    assert (tmp_path / "t").is_symlink()
    assert tree(tmp_path / "real") == TREE


def test_a_file_is_not_deleted_to_make_room_for_a_tree(site: Site, tmp_path):
    make_remote_tree(site, "t", {"a": b"1"})
    (tmp_path / "t").write_bytes(b"precious")
    result = get(site, "t", tmp_path / "t", compare=True, delete=True)
    assert str(tmp_path / "t") in result.failed[0]["message"]
    assert (tmp_path / "t").read_bytes() == b"precious"


def test_a_sync_that_deletes_removes_remote_links_and_not_what_they_lead_to(site: Site, tmp_path):
    if site.miglike:
        pytest.skip("such a server follows every link")
    make_remote_tree(site, "precious", {"theirs": b"2"})
    make_remote_tree(site, "t", {"a": b"1"})
    site.path("t/link").symlink_to("../precious")
    site.path("t/sub").symlink_to("../precious")
    make_tree(tmp_path / "t", {"a": b"1", "sub/b": b"3"})
    put(site, tmp_path / "t", "t", compare=True, delete=True)
    assert tree(site.path("precious")) == {"theirs": b"2"}
    assert tree(site.path("t")) == {"a": b"1", "sub": None, "sub/b": b"3"}


def test_a_sync_with_patterns_deletes_nothing_behind_a_remote_link(site: Site, tmp_path):
    if site.miglike:
        pytest.skip("such a server follows every link")
    make_remote_tree(site, "precious", {"theirs": b"2"})
    site.make_directory("t")
    site.path("t/sub").symlink_to("../precious")
    make_tree(tmp_path / "t", {"sub/b": b"3"})
    put(site, tmp_path / "t", "t", compare=True, delete=True, include=["sub/*"])
    assert tree(site.path("precious")) == {"theirs": b"2"}
    assert tree(site.path("t")) == {"sub": None, "sub/b": b"3"}


# --- what fails alone -----------------------------------------------------------------------


def test_a_file_that_may_not_be_read_does_not_stop_the_others(site: Site, barred, tmp_path):
    make_remote_tree(site, "t", {"a": b"1", "sub/b": b"2", "shut/c": b"3", "z": b"4"})
    barred("t/a")
    barred("t/shut")
    result = get(site, "t", tmp_path / "t", compare=True, delete=True)
    here = tree(tmp_path / "t")
    here.pop("shut", None)
    assert here == {"sub": None, "sub/b": b"2", "z": b"4"}
    assert result.files == 2
    assert {from_plain(e).url for e in result.failed} == {site.url("t/a"), site.url("t/shut")}
    assert {e["class"] for e in result.failed} == {"RemotePermissionDenied"}


def test_a_directory_where_one_may_not_write_does_not_stop_the_others(site: Site, barred, tmp_path):
    make_remote_tree(site, "t", {"shut/old": b"0"})
    make_tree(tmp_path / "t", {"a": b"1", "shut/b": b"2", "shut/old": b"3", "z/c": b"4"})
    barred("t/shut", 0o555)
    result = put(site, tmp_path / "t", "t")
    assert tree(site.path("t")) == {
        "shut": None, "shut/old": b"0", "a": b"1", "z": None, "z/c": b"4",
    }  # fmt: skip
    assert {e["class"] for e in result.failed} == {"RemotePermissionDenied"}
    assert len(result.failed) == 2


def test_a_name_that_the_server_refuses_does_not_stop_the_others(site: Site, tmp_path):
    if not site.miglike:
        pytest.skip("the server takes every name")
    make_tree(tmp_path / "t", {"a": b"1", "what?": b"2", "sub[1]/b": b"3", "z": b"4"})
    result = put(site, tmp_path / "t", "t")
    assert tree(site.path("t")) == {"a": b"1", "z": b"4"}
    failed = {from_plain(error).url for error in result.failed}
    assert failed == {site.url("t/what?"), site.url("t/sub[1]")}


def test_cancelling_a_tree_ends_it(site: Site, tmp_path):
    for number in range(50):
        site.make(f"t/{number}", bytes(200_000))
    future = site.engine.fetch_tree(site.url("t"), tmp_path / "t")
    assert future.cancel()
    site.stat("t")  # the engine goes on
    site.fetch("t/1", tmp_path / "one")
    assert (tmp_path / "one").stat().st_size == 200_000
