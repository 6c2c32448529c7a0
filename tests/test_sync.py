"""Sync with patterns and as a dry run, both ways."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from pyremotedata_core import (
    ConfigurationError,
    Remote,
    TransferEngine,
    TransferError,
    TreeResult,
    spool,
)
from pyremotedata_core.filters import Filter, tree_options
from pyremotedata_core.trees.many import FILES_UNDER_WAY

from .servers import ScriptedSshd

TREE = ["a.csv", "b.txt", "raw/c.csv", "raw/d.txt", "raw/old/e.csv", "tmp/f.csv", "[x].csv"]


@pytest.mark.parametrize(
    ("include", "exclude", "meant"),
    [
        ([], [], TREE),
        (["*.csv"], [], ["a.csv", "raw/c.csv", "raw/old/e.csv", "tmp/f.csv", "[x].csv"]),
        (["raw/*.csv"], [], ["raw/c.csv"]),
        (["raw/**/*.csv"], [], ["raw/c.csv", "raw/old/e.csv"]),
        (["raw/**"], ["*.txt"], ["raw/c.csv", "raw/old/e.csv"]),
        ([], ["tmp", "old", "b.???"], ["a.csv", "raw/c.csv", "raw/d.txt", "[x].csv"]),
        (["[[]x[]].csv"], [], ["[x].csv"]),
        (["[!b-z].*"], [], ["a.csv"]),
        (["raw[!x]c.csv"], [], []),  # no character of a pattern stands for a slash
        ("*.txt", "raw", ["b.txt"]),
        ([], ["*/", "b.txt/"], ["a.csv", "b.txt", "[x].csv"]),  # directories, and no files
        (["old/", "tmp/"], [], ["raw/old/e.csv", "tmp/f.csv"]),
    ],
)
def test_patterns_choose_files(include, exclude, meant):
    chosen = Filter(include, exclude)

    def wanted(path: str) -> bool:
        parents = [str(p) for p in Path(path).parents if str(p) != "."]
        return chosen.wants_file(path) and all(map(chosen.wants_directory, parents))

    assert [path for path in TREE if wanted(path)] == meant


def test_a_pattern_that_means_nothing_is_an_error():
    for pattern in ("", "/"):
        with pytest.raises(ConfigurationError):
            Filter([pattern])


def test_an_option_that_there_is_not_is_refused():
    with pytest.raises(TypeError, match="exlude"):
        tree_options({"exlude": ["*"]})


def make_tree(top: Path, mtime: int) -> None:
    for name in TREE:
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(os.urandom(50))
        os.utime(top / name, (mtime, mtime))


def files(top: Path) -> dict[str, bytes]:
    return {str(p.relative_to(top)): p.read_bytes() for p in top.rglob("*") if p.is_file()}


class Sides:
    """A remote directory and a local one, with the same files plus one or two each."""

    def __init__(self, server, local: Path, direction: str) -> None:
        self.direction, self.remote, self.local = direction, server.root / "tree", local
        ends = self.remote, self.local
        self.source, self.target = ends if direction == "down" else ends[::-1]
        make_tree(self.remote, 1_000_000_000)
        make_tree(local, 1_100_000_000)
        (self.remote / "raw/remote.csv").write_bytes(b"r")
        (local / "raw/local.csv").write_bytes(b"l")
        (local / "raw/local.txt").write_bytes(b"l")
        self.there = Remote(server.url("tree"), ssh_config=str(server.ssh_config))

    def sync(self, **options) -> TreeResult:
        return self.there.sync("", self.local, direction=self.direction, **options)


@pytest.fixture(params=["down", "up"])
def sides(sshd_factory, tmp_path, request):
    made = Sides(sshd_factory(), tmp_path / "tree", request.param)
    with made.there:
        yield made


up_only = pytest.mark.parametrize("sides", ["up"], indirect=True)


def test_sync_moves_and_deletes_only_what_the_patterns_mean(sides):
    source, target = sides.source, sides.target
    before = files(target)
    (target / "raw/extra.csv").write_bytes(b"x")
    (target / "raw/extra.txt").write_bytes(b"x")
    sides.sync(include="*.csv", exclude="tmp", delete=True)
    after = files(target)
    for name, content in files(source).items():
        if name.endswith(".csv") and not name.startswith("tmp/"):
            assert after[name] == content
    for name in ("b.txt", "raw/d.txt", "tmp/f.csv"):
        assert after[name] == before[name], "not meant, not touched"
    assert "raw/extra.csv" not in after
    assert after["raw/extra.txt"] == b"x"


def test_a_dry_run_changes_nothing_and_tells_what_the_run_then_does(sides):
    before = files(sides.source), files(sides.target)
    planned = sides.sync(delete=True, dry_run=True)
    assert (files(sides.source), files(sides.target)) == before
    done = sides.sync(delete=True)
    assert done[:4] == planned[:4]
    assert done.planned == ()
    action = "fetch" if sides.direction == "down" else "store"
    assert (action, "raw/old/e.csv") in planned.planned
    gone = "raw/local.csv" if sides.direction == "down" else "raw/remote.csv"
    assert ("delete", gone) in planned.planned
    assert files(sides.source) == files(sides.target)


def test_what_is_in_the_way_and_may_not_go_is_told_by_the_dry_run_too(sides):
    source, target = sides.source, sides.target
    (source / "x").write_bytes(b"file")
    (target / "x").mkdir()
    (target / "x/kept").write_bytes(b"kept")
    (source / "y").mkdir()
    (target / "y").write_bytes(b"kept")
    for options in ({}, {"delete": True, "include": ["x", "*.csv"], "exclude": ["kept"]}):
        for dry_run in (True, False):
            with pytest.raises(TransferError, match="move it away") as caught:
                sides.sync(dry_run=dry_run, **options)
            assert "and 1 more" in str(caught.value)
            assert (target / "x/kept").read_bytes() == b"kept"
            assert (target / "y").read_bytes() == b"kept"
    sides.sync(delete=True)
    assert (target / "x").read_bytes() == b"file"
    assert (target / "y").is_dir()


def test_what_a_link_that_is_not_followed_once_was_is_not_deleted(sides, tmp_path):
    source, target = sides.source, sides.target
    (tmp_path / "moved").mkdir()
    (source / "results").symlink_to(tmp_path / "moved")
    (target / "results").mkdir()
    (target / "results/only.csv").write_bytes(b"only")
    result = sides.sync(delete=True)
    assert [why for path, why in result.skipped if path.endswith("results")]
    assert (target / "results/only.csv").read_bytes() == b"only"


def test_a_dry_run_does_not_look_behind_a_link_that_a_directory_would_replace(sides, tmp_path):
    source, target = sides.source, sides.target
    shutil.copytree(source, tmp_path / "behind", dirs_exist_ok=True)
    (tmp_path / "behind/raw/old/more.csv").touch()
    shutil.rmtree(target / "raw")
    (target / "raw").symlink_to(tmp_path / "behind/raw")
    planned = sides.sync(delete=True, dry_run=True)
    done = sides.sync(delete=True)
    assert planned[:6] == done[:6]
    assert [path for action, path in planned.planned if action == "delete"] == ["raw"]
    assert files(target) == files(source)
    assert (tmp_path / "behind/raw/old/more.csv").exists()


@up_only
def test_a_dry_run_tells_of_remote_links_that_lead_to_no_directory(sides):
    shutil.rmtree(sides.remote / "tmp")
    (sides.remote / "tmp").symlink_to("nowhere")
    shutil.rmtree(sides.remote / "raw")
    (sides.remote / "raw").symlink_to("a.csv")
    for dry_run in (True, False):
        with pytest.raises(TransferError, match="and 1 more"):
            sides.sync(dry_run=dry_run)


def test_what_a_server_knows_by_another_name_is_there_after_a_sync_that_deletes(tmp_path):
    here = tmp_path / "here"
    here.mkdir()
    for number in range(300):
        (here / f"A{number}.csv").write_bytes(b"%d" % number)
    wanted = {name.lower(): content for name, content in files(here).items()}
    with ScriptedSshd("relay", {"fold": True}) as server:
        there = server.make_directory("t")
        with Remote(server.url("t"), ssh_config=str(server.ssh_config)) as r:
            for _ in range(2):
                r.sync("", here, direction="up", delete=True)
                assert files(there) == wanted


@up_only
def test_a_dry_run_into_nowhere_makes_no_directory(sides, tmp_path):
    there = sides.there
    assert there.sync("", tmp_path / "none", dry_run=True).files == len(files(sides.remote))
    assert not (tmp_path / "none").exists()
    assert there.sync("none", sides.local, direction="up", dry_run=True).files > 0
    assert not there.exists("none")


@pytest.mark.parametrize("direction", ["down", "up"])
def test_so_many_files_that_they_wait_on_disk_are_moved_verified_and_removed(
    sshd, monkeypatch, tmp_path, direction
):
    monkeypatch.setattr(spool, "KEPT_ITEMS", 8)
    monkeypatch.setattr(spool, "CHUNK_ITEMS", 4)
    count = FILES_UNDER_WAY + 100
    there = sshd.make_directory(f"sync/waiting-{direction}")
    source, target = (there, tmp_path / "t") if direction == "down" else (tmp_path / "t", there)
    source.mkdir(exist_ok=True)
    for number in range(count):
        (source / f"{number}").write_bytes(b"%d" % number)
    with TransferEngine(sshd.settings(), in_process=True) as engine:
        remote = Remote(sshd.url(f"sync/waiting-{direction}"), engine=engine)

        def sync(**options):
            result = remote.sync("", tmp_path / "t", direction=direction, delete=True, **options)
            assert files(source) == files(target)
            return result

        assert sync().files == count
        time_ns = (target / "7").stat().st_mtime_ns
        (target / "7").write_bytes(b"x")
        os.utime(target / "7", ns=(time_ns, time_ns))
        assert sync(verify=True)[:3] == (1, 1, count - 1)
        for number in range(300):
            (source / f"{number}").unlink()
        (source / "300").unlink()
        (source / "300").mkdir()
        (source / "300/x").write_bytes(b"")
        result = sync()
        assert (result.files, result.deleted, result.unchanged) == (1, 301, count - 301)


def test_what_cannot_be_removed_here_stops_nothing_else(sshd, small_disk):
    there = sshd.make_directory("sync/mounted")
    (there / "a").write_bytes(b"a")
    (there / "link").symlink_to("a")
    local = small_disk.parent / "here"
    local.mkdir()
    for name in ("link", "other"):  # one is to be a file, the other to go
        (local / name).mkdir()
        subprocess.run(["mount", "--bind", small_disk, local / name], check=True)
    (local / "old").touch()
    try:
        with TransferEngine(sshd.settings()) as engine:
            result = engine.fetch_tree(sshd.url("sync/mounted"), local, delete=True).result(60)
    finally:
        for name in ("link", "other"):
            subprocess.run(["umount", "-l", local / name], check=True)
    assert (result.files, result.deleted, len(result.failed)) == (1, 1, 2)
    assert (local / "a").read_bytes() == b"a"
    assert not (local / "old").exists()


def test_what_the_server_does_not_let_go_is_not_counted_as_deleted(sshd_factory, tmp_path):
    server = sshd_factory(sftp_arguments="-P remove")
    there = server.make_directory("t")
    (there / "old").touch()
    with TransferEngine(server.settings()) as engine:
        result = engine.store_tree(tmp_path, server.url("t"), delete=True).result(60)
    assert (result.deleted, len(result.failed)) == (0, 1)


@pytest.mark.parametrize("mtime", [-1_000_000_000, 5_000_000_000])
def test_what_has_a_time_that_sftp_cannot_tell_goes_once(sshd, remote_directory, tmp_path, mtime):
    for name, size in (("small", 3), ("large", 300_000)):
        (tmp_path / name).write_bytes(bytes(size))
        os.utime(tmp_path / name, (mtime, mtime))
    with Remote(sshd.url(remote_directory), ssh_config=str(sshd.ssh_config)) as remote:
        assert remote.sync("t", tmp_path, direction="up").files == 2
        result = remote.sync("t", tmp_path, direction="up")
    assert (result.files, result.unchanged) == (0, 2)


def test_where_a_server_keeps_its_own_times_equal_sizes_can_do(sshd_factory, tmp_path):
    server = sshd_factory(sftp_arguments="-P setstat,fsetstat")
    there, here = server.make_directory("t"), tmp_path / "t"
    here.mkdir()
    make_tree(here, 1_234_567_890)
    (here / "large").write_bytes(os.urandom(300_000))  # which goes alone
    os.utime(here / "large", (1, 1))
    everything = len(TREE) + 1
    with Remote(server.url(), ssh_config=str(server.ssh_config)) as remote:

        def sync(**options) -> tuple[int, int]:
            result = remote.sync("t", here, **options)
            return result.files, result.unchanged

        assert sync(direction="up") == (everything, 0)
        assert sync(direction="up") == (everything, 0)
        assert sync(direction="up", size_only=True) == (0, everything)
        (here / "large").write_bytes(b"shorter")
        assert sync(direction="up", size_only=True, dry_run=True) == (1, everything - 1)
        assert sync(direction="up", size_only=True) == (1, everything - 1)
        assert (there / "large").read_bytes() == b"shorter"
        os.utime(there / "a.csv", (1, 1))
        assert sync(size_only=True, verify=True) == (0, everything)
        (there / "b.txt").write_bytes(bytes(50))
        assert sync(size_only=True) == (0, everything)
        assert sync(size_only=True, verify=True) == (1, everything - 1)
        assert (here / "b.txt").read_bytes() == bytes(50)
