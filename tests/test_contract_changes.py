"""The contract of the engine for small changes, links and permissions, on every server."""

from __future__ import annotations

import os
import time

import pytest

from pyremotedata_core import (
    RemoteFileNotFound,
    RemotePermissionDenied,
    RemoteURL,
    ServerRefused,
    Stat,
    TransferError,
)

from .page import told
from .sites import WAIT_S, Site, tree

MTIME = 1_234_567_890

# --- small changes --------------------------------------------------------------------------


def test_a_file_is_removed(site: Site):
    site.make("a")
    site.engine.remove(site.url("a")).result(WAIT_S)
    assert tree(site.path()) == {}


def test_removing_what_is_missing_is_an_error_unless_that_is_fine(site: Site):
    for recursive in (False, True):
        with pytest.raises(RemoteFileNotFound):
            site.engine.remove(site.url("none"), recursive=recursive).result(WAIT_S)
        options = {"recursive": recursive, "missing_ok": True}
        assert site.engine.remove(site.url("none"), **options).result(WAIT_S) is None


def test_a_directory_is_only_removed_recursively(site: Site):
    site.make("sub/deep/a")
    site.make("sub/b")
    site.make("sub/.pyremotedata-0123abcd-00ff.part")
    site.make_directory("sub/empty/empty")
    site.make("beside")
    with pytest.raises(ServerRefused, match="recursively"):
        site.engine.remove(site.url("sub")).result(WAIT_S)
    assert site.path("sub/deep/a").exists()
    site.engine.remove(site.url("sub"), recursive=True).result(WAIT_S)
    assert tree(site.path()) == {"beside": b""}


def test_directories_are_made_with_their_parents(site: Site):
    site.engine.mkdir(site.url("a/b/c")).result(WAIT_S)
    site.engine.mkdir(site.url("a/b/c")).result(WAIT_S)
    assert tree(site.path()) == {"a": None, "a/b": None, "a/b/c": None}
    with pytest.raises((RemoteFileNotFound, RemotePermissionDenied)):
        site.engine.mkdir(site.url("d/e"), parents=False).result(WAIT_S)
    with pytest.raises(ServerRefused, match="exists"):
        site.engine.mkdir(site.url("a/b"), exist_ok=False).result(WAIT_S)
    site.engine.mkdir(site.url("f"), exist_ok=False).result(WAIT_S)
    assert site.path("f").is_dir()


def test_a_directory_is_not_made_over_or_below_a_file(site: Site):
    site.make("file", b"1")
    with pytest.raises(ServerRefused, match="exists"):
        site.engine.mkdir(site.url("file")).result(WAIT_S)
    with pytest.raises(TransferError):
        site.engine.mkdir(site.url("file/sub")).result(WAIT_S)
    assert tree(site.path()) == {"file": b"1"}


def test_touching_sets_the_mtime_and_nothing_else(site: Site):
    path = site.make("a", b"123", mtime=1)
    if not (site.lftp and site.miglike):
        site.engine.touch(site.url("a"), MTIME).result(WAIT_S)
        assert int(path.stat().st_mtime) == MTIME
        before = int(time.time())
        site.engine.touch(site.url("a")).result(WAIT_S)
        assert before <= int(path.stat().st_mtime) <= time.time() + 1
    assert path.read_bytes() == b"123"
    with pytest.raises(RemoteFileNotFound):
        site.engine.touch(site.url("none")).result(WAIT_S)
    assert tree(site.path()) == {"a": b"123"}


def test_a_rename_replaces_a_file(site: Site):
    site.make("a", b"1", mtime=MTIME)
    site.engine.rename(site.url("a"), site.url("b")).result(WAIT_S)
    assert tree(site.path()) == {"b": b"1"}
    site.make("c", b"2")
    site.engine.rename(site.url("b"), site.url("c")).result(WAIT_S)
    assert tree(site.path()) == {"c": b"1"}
    assert int(site.path("c").stat().st_mtime) == MTIME


def test_a_rename_that_cannot_be_leaves_both(site: Site):
    site.make("a", b"1")
    site.make("sub/x", b"2")
    with pytest.raises(ServerRefused, match="directory"):
        site.engine.rename(site.url("a"), site.url("sub")).result(WAIT_S)
    with pytest.raises(RemoteFileNotFound):
        site.engine.rename(site.url("none"), site.url("a")).result(WAIT_S)
    with pytest.raises(RemoteFileNotFound):
        site.engine.rename(site.url("none"), site.url("other")).result(WAIT_S)
    with pytest.raises((RemoteFileNotFound, RemotePermissionDenied)):
        site.engine.rename(site.url("a"), site.url("none/a")).result(WAIT_S)
    with pytest.raises(ServerRefused, match="is a file; a directory was meant"):
        site.engine.rename(site.url("sub"), site.url("a")).result(WAIT_S)
    assert tree(site.path()) == {"a": b"1", "sub": None, "sub/x": b"2"}


def test_a_file_is_no_directory_to_remove_and_is_not_missing(site: Site):
    site.make("a", b"1")
    with pytest.raises(ServerRefused, match="is a file; a directory was meant"):
        site.engine.rmdir(site.url("a")).result(WAIT_S)
    with pytest.raises(RemoteFileNotFound):
        site.engine.rmdir(site.url("none")).result(WAIT_S)
    assert tree(site.path()) == {"a": b"1"}


def test_a_server_copies_a_file_whole_or_says_that_it_cannot(site: Site):
    site.make("a", b"123", mtime=MTIME)
    site.make("b", b"old")
    stat = site.engine.copy(site.url("a"), site.url("b")).result(WAIT_S)
    # Only the pipelined session knows what a server offers.
    offers = site.engine.settings.transport_for(RemoteURL.parse(site.url("a"))) == "sftp" and (
        "copy-data" in site.engine.info(site.url("a")).result(WAIT_S)["extensions"]
    )
    assert (stat is not None) == offers
    assert tree(site.path()) == {"a": b"123", "b": b"123" if offers else b"old"}
    if stat is None:
        return
    assert stat.same_content(Stat("file", 3, MTIME))
    assert int(site.path("b").stat().st_mtime) == MTIME
    with pytest.raises(ServerRefused, match="exists"):
        site.engine.copy(site.url("a"), site.url("b"), overwrite=False).result(WAIT_S)
    site.make("sub/x", b"2")
    with pytest.raises(ServerRefused, match="directory"):
        site.engine.copy(site.url("sub"), site.url("c")).result(WAIT_S)
    os.mkfifo(site.path("pipe"))
    with pytest.raises(ServerRefused, match="not a regular file"):
        site.engine.copy(site.url("pipe"), site.url("c")).result(WAIT_S)
    site.path("pipe").unlink()
    for old, new in (("none", "c"), ("a", "none/c")):
        with pytest.raises(RemoteFileNotFound):
            site.engine.copy(site.url(old), site.url(new)).result(WAIT_S)
    assert tree(site.path()) == {"a": b"123", "b": b"123", "sub": None, "sub/x": b"2"}


# --- links ----------------------------------------------------------------------------------


def test_links_are_followed_when_one_asks_for_what_they_lead_to(site: Site, tmp_path):
    site.make("a", b"123")
    site.make("sub/b", b"4")
    for name, target in (("file", "a"), ("dir", "sub"), ("nowhere", "none"), ("loop", "loop")):
        site.path(name).symlink_to(target)
    assert site.stat("file") == site.stat("a")
    assert site.stat("dir").kind == "directory"
    site.fetch("file", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"123"
    assert site.names("dir") == ["b"]
    for name in ("nowhere", "loop"):
        with pytest.raises(TransferError):
            site.fetch(name, tmp_path / name)
    assert tree(tmp_path) == {"file": b"123"}


def test_a_link_is_told_from_what_it_leads_to(site: Site):
    if site.miglike:
        pytest.skip("such a server follows every link")
    site.make("sub/b", b"4")
    site.path("link").symlink_to("sub")
    assert site.stat("link", follow=False).kind == "link"
    kinds = {e.name: e.stat.kind for e in site.engine.scandir(site.url()).result(WAIT_S)}
    assert kinds == {"sub": "directory", "link": "link"}
    site.engine.remove(site.url("link"), recursive=True).result(WAIT_S)
    assert tree(site.path()) == {"sub": None, "sub/b": b"4"}


# --- permission -----------------------------------------------------------------------------


def test_what_may_not_be_read_is_permission_denied(site: Site, barred, tmp_path):
    site.make("a", b"1")
    site.make("sub/b", b"1")
    barred("a")
    barred("sub")
    for relative in ("a", "sub/b"):
        with pytest.raises(RemotePermissionDenied) as caught:
            site.fetch(relative, tmp_path / "x")
        assert caught.value.url == site.url(relative)
        assert isinstance(caught.value, PermissionError)
        if not site.ftp:  # there a server has words of its own
            told(caught.value, "permission denied by the server")
    with pytest.raises(RemotePermissionDenied):
        site.names("sub")
    with pytest.raises(RemotePermissionDenied):
        site.stat("sub/b")
    assert tree(tmp_path) == {}


def test_where_one_may_not_write_is_permission_denied(site: Site, barred, tmp_path):
    site.make("sub/b", b"1")
    barred("sub", 0o555)
    (tmp_path / "x").write_bytes(b"2")
    for relative in ("sub/x", "sub/b", "sub/new/x"):
        with pytest.raises(RemotePermissionDenied) as caught:
            site.store(tmp_path / "x", relative)
        assert caught.value.url.startswith(site.url("sub"))
        if not site.ftp and relative != "sub/new/x":
            told(caught.value, "the server does not let you write")
    for future in (
        site.engine.remove(site.url("sub/b")),
        site.engine.mkdir(site.url("sub/new")),
        site.engine.rename(site.url("sub/b"), site.url("sub/c")),
    ):
        with pytest.raises(RemotePermissionDenied):
            future.result(WAIT_S)
    assert tree(site.path()) == {"sub": None, "sub/b": b"1"}


def test_a_file_that_may_not_be_replaced_stays_and_is_permission_denied(site: Site, tmp_path):
    if os.getuid() != 0 or site.kind != "chrooted":
        pytest.skip("only root can make a file that the server's account may not replace")
    site.make_directory("shared")
    path = site.path("shared")
    os.chown(path, 0, 0)
    path.chmod(0o1777)
    (path / "theirs").write_bytes(b"old")
    (tmp_path / "x").write_bytes(b"new")
    with pytest.raises(RemotePermissionDenied):
        site.store(tmp_path / "x", "shared/theirs")
    assert tree(site.path()) == {"shared": None, "shared/theirs": b"old"}
