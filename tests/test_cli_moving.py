"""What the command moves, as a user sees it: where it goes, what fails, what a signal leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from .command import CLI
from .page import told
from .sites import needs_lftp, temporaries, tree
from .waiting import wait_until

MTIME = 1_234_567_890

# --- moving ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sources", "destination", "made"),
    [
        (["a"], "new", {"new": b"1"}),
        (["a", "sub/b"], "new/", {"new": None, "new/a": b"1", "new/b": b"2"}),
        (["a", "sub"], ".", {"a": b"1", "sub": None, "sub/b": b"2"}),
    ],
)
def test_get_and_put_place_files_as_cp_does(
    run, url, make, here, there, tmp_path, sources, destination, made
):
    make("a", b"1", mtime=MTIME)
    make("sub/b", b"2", mtime=MTIME)
    run("get", *map(url, sources), destination)
    assert tree(here) == made

    (tmp_path / "sub").mkdir()
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "sub/b").write_bytes(b"2")
    (there / "up").mkdir()
    final = f"{url('up')}/{destination}" if destination != "." else url("up")
    assert run("put", *(f"{tmp_path}/{source}" for source in sources), final).stdout == ""
    assert tree(there / "up") == made


def test_a_file_where_a_directory_is_needed_is_named(run, url, make, here):
    make("a", b"1")
    make("tree/sub/b", b"2")
    (here / "file").write_bytes(b"old")
    (here / "link").symlink_to("nowhere")
    for source, target, what in (
        ("a", "file/x", "file: is not a directory"),
        ("a", "file/x/y/", "file: is not a directory"),
        ("tree", "file/x", "file: is not a directory"),
        ("a", "link/x", "link: is a link that leads nowhere"),
    ):
        said = run.failure("get", url(source), target)
        assert f"{here}/{what}, but one is needed there" in said
        told(said, "but one is needed there")
    assert tree(here) == {"file": b"old"}


def test_a_device_or_pipe_is_not_replaced_by_a_file(run, url, make, here, there):
    make("a", b"1")
    (here / "a").write_bytes(b"1")
    os.mkfifo(here / "pipe")
    os.mkfifo(there / "pipe")
    (here / "link").symlink_to("pipe")
    assert "pipe: is a device or pipe" in run.failure("get", url("a"), "pipe")
    assert "link: is a device or pipe" in run.failure("get", url("a"), "link")
    assert "/dev/none: is a device or pipe" in run.failure("get", url("a"), "/dev/none")
    assert "pipe: is a device or pipe" in run.failure("put", "a", url("pipe"))
    assert (here / "pipe").is_fifo()
    assert (there / "pipe").is_fifo()


@pytest.mark.parametrize("verb", ["get", "put"])
def test_several_sources_need_a_directory(run, url, make, here, there, verb):
    for name in "ab":
        make(name)
        (here / name).touch()
    sources = [url(n) if verb == "get" else n for n in "ab"]
    destination = "none" if verb == "get" else url("none")
    assert "end it with /" in run.failure(verb, *sources, destination, status=2)
    assert "none" not in tree(here) | tree(there)


@pytest.mark.parametrize("verb", ["get", "put"])
def test_two_sources_of_one_name_are_refused(run, url, make, here, there, verb):
    for name in ("one/a", "two/a"):
        make(name)
        (here / name).parent.mkdir()
        (here / name).touch()
    before = tree(here), tree(there)
    sources = [url(n) if verb == "get" else n for n in ("one/a", "two/a")]
    destination = "d/" if verb == "get" else url("d") + "/"
    assert "'a'" in run.failure(verb, *sources, destination, status=2)
    assert (tree(here), tree(there)) == before


def test_what_can_be_moved_is_moved_and_each_failure_is_a_line(run, url, make, here):
    make("a", b"1")
    make("sub/b", b"2")
    done = run("get", url("none"), url("a"), url("nothing"), url("sub"), "d/", status=1)
    assert tree(here) == {"d": None, "d/a": b"1", "d/sub": None, "d/sub/b": b"2"}
    lines = done.stderr.splitlines()
    assert len(lines) == 2
    assert url("none") in lines[0]
    assert url("nothing") in lines[1]
    for line in lines:
        told(line, "no such file or directory")


def test_put_names_the_local_file_that_is_missing(run, url, here, there):
    (here / "a").write_bytes(b"1")
    lines = run("put", "none", "a", url("d") + "/", status=1).stderr.splitlines()
    assert len(lines) == 1
    assert f"{here}/none" in lines[0]
    assert tree(there) == {"d": None, "d/a": b"1"}


def test_the_outcome_for_machines_is_json(run, url, make, here):
    make("t/a", b"123")
    make("t/sub/b", b"45")
    outcome = json.loads(run("get", "--json", url("t"), "t").stdout)
    assert (outcome["files"], outcome["bytes"], outcome["failed"]) == (2, 5, [])
    outcome = json.loads(run("put", "--json", "t", url("u")).stdout)
    assert (outcome["files"], outcome["bytes"], outcome["failed"]) == (2, 5, [])
    outcome = json.loads(run("sync", "--json", url("t"), "t").stdout)
    assert (outcome["files"], outcome["unchanged"]) == (0, 2)
    outcome = json.loads(run("get", "--json", url("none"), url("t/a"), ".", status=1).stdout)
    assert outcome["files"] == 1
    assert [e["class"] for e in outcome["failed"]] == ["RemoteFileNotFound"]
    assert outcome["failed"][0]["url"] == url("none")
    (here / "file").touch()
    for arguments in (["sync", url("none"), "x"], ["get", url("t"), "file/"], ["put", "no", url()]):
        failed = json.loads(run(*arguments, "--json", status=1).stdout)["failed"]
        assert len(failed) == 1


@pytest.mark.parametrize("transport", ["sftp", pytest.param("lftp", marks=needs_lftp)])
def test_a_file_larger_than_any_may_be_is_told_from_a_full_disk(run, url, make, here, transport):
    make("a", bytes(1 << 20))
    run.environment["PYREMOTEDATA_TRANSPORT"] = transport
    told(run.within('ulimit -f 99; exec "$@"').failure("get", url("a"), "."), "ulimit -f")
    assert tree(here) == {}


@pytest.fixture
def folding(mount_disk, tmp_path) -> Path:
    """A directory that does not tell upper from lower case."""
    place = mount_disk(tmp_path / "disk", "1m,casefold") / "folding"
    place.mkdir()
    subprocess.run(["chattr", "+F", place], check=True)
    return place


def test_names_that_differ_in_case_only_do_not_replace_each_other(folding, run, url, make, there):
    for name, content in {"READ": b"1", "read": b"2", "Sub/a": b"3", "sub/a": b"4"}.items():
        make(f"t/{name}", content)
    run("sync", url("t"), folding / "t", status=1)
    for dry in (["--dry-run"], []):
        said = run("sync", *dry, url("t"), folding / "t", status=1).stderr.splitlines()
        assert len(said) == 2
        told(said[0], "upper and lower case")
        arrived = {k: v for k, v in tree(folding / "t").items() if v}
        assert len(arrived) == 2
        assert arrived.items() <= tree(there / "t").items()


def test_a_dry_run_writes_nothing_to_learn_whether_names_could_stand_side_by_side(
    run, url, make, here
):
    make("t/READ")
    make("t/read")
    (here / "t").mkdir()
    before = (here / "t").stat().st_mtime_ns
    run("sync", "--dry-run", url("t"), "t")
    assert (here / "t").stat().st_mtime_ns == before
    (here / "T").symlink_to("t")  # as where the one name is the other
    told(run("sync", "--dry-run", url("t"), "t", status=1).stderr, "upper and lower case")


@pytest.mark.parametrize("verb", ["sync", "get"])
def test_the_outcome_of_a_full_disk_counts_what_had_arrived(run, url, make, small_disk, verb):
    for number in range(20):
        make(f"t/{number:02}", bytes(2**20))
    done = run(verb, "--json", url("t"), small_disk / "t", status=1)
    outcome = json.loads(done.stdout)
    assert [one["class"] for one in outcome["failed"]] == ["LocalStorageFull"]
    arrived = tree(small_disk / "t")
    assert len(arrived) > 0
    assert (outcome["files"], outcome["bytes"]) == (len(arrived), len(arrived) * 2**20)


def test_sync_makes_the_second_equal_the_first(run, url, make, here, there):
    make("t/a", b"1", mtime=MTIME)
    make("t/sub/b", b"2", mtime=MTIME)
    run("sync", url("t"), "t")
    assert tree(here / "t") == tree(there / "t")
    (here / "t/a").unlink()
    (here / "t/c").write_bytes(b"3")
    run("sync", "t", url("t"))
    assert tree(there / "t") == {"a": b"1", "sub": None, "sub/b": b"2", "c": b"3"}
    run("sync", "--delete", "t", url("t"))
    assert tree(there / "t") == tree(here / "t")


def test_a_local_path_goes_up_from_where_a_link_leads(run, url, make, here, there):
    """As in the shell, and to the kernel."""
    make("t/a", b"1")
    (here / "real/in").mkdir(parents=True)
    (here / "link").symlink_to("real/in")
    for name in ("up", "real/up"):
        (here / name).mkdir()
        (here / name / "mine").write_bytes(name.encode())
    run("sync", "--delete", url("t"), "link/../up")
    assert tree(here / "up") == {"mine": b"up"}
    assert tree(here / "real") == {"in": None, "up": None, "up/a": b"1"}
    run("put", "link/../up/a", "link/..", url("b") + "/")
    assert tree(there / "b") == {"a": b"1", "real": None, "real/in": None, "real/up": None,
                                 "real/up/a": b"1"}  # fmt: skip


def test_what_is_in_the_way_of_a_sync_is_told_and_goes_when_asked_for(run, url, here, there):
    (here / "t/dir").mkdir(parents=True)
    (here / "t/file").write_bytes(b"1")
    (there / "t/file").mkdir(parents=True)
    (there / "t/dir").write_bytes(b"2")
    lines = sorted(run("sync", "t", url("t"), status=1).stderr.splitlines())
    assert len(lines) == 2
    told(lines[0], "is a file, but a directory")
    told(lines[1], "is a directory, but a file")
    run("sync", "--delete", "t", url("t"))
    assert tree(there / "t") == tree(here / "t")


def test_links_that_are_left_out_are_named(run, url, make, here, there):
    make("t/a", b"1")
    (there / "t/out").symlink_to("/etc/passwd")
    done = run("get", url("t"), "t")
    assert tree(here) == {"t": None, "t/a": b"1"}
    assert done.stderr.startswith(f"pyremotedata: skipped {url('t/out')}: ")


def test_directories_are_made_and_removed(run, url, there):
    run("mkdir", url("a/b"), url("c"))
    assert tree(there) == {"a": None, "a/b": None, "c": None}
    assert "recursive" in run.failure("rm", url("a"))
    run("rm", "-r", url("a"), url("c"))
    assert tree(there) == {}
    assert url("a") in run.failure("rm", url("a"))


# --- broken off -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "number", "status"),
    [("get", signal.SIGINT, 130), ("put", signal.SIGINT, 130), ("get", signal.SIGTERM, 143)],
)
def test_a_signal_ends_it_quietly_and_leaves_nothing(
    run, sshd, url, make, here, there, relay_factory, verb, number, status
):
    relay = relay_factory(sshd.port, rate=8e6)
    (make("a") if verb == "get" else here / "a").write_bytes(bytes(40 * 2**20))
    target = here if verb == "get" else there
    ends = [relay.url(url("a")), "b"] if verb == "get" else ["a", relay.url(url("b"))]
    process = subprocess.Popen(
        [*CLI, verb, *ends],
        cwd=here,
        env=run.environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: temporaries(target))
    process.send_signal(number)
    _, said = process.communicate(timeout=20)
    assert process.returncode == status
    assert "Traceback" not in said
    assert "b" not in tree(target)
    if verb == "put":
        # The next login clears away what the connection was too slow for.
        run("ls", relay.url(url()))
    wait_until(lambda: not temporaries(target))
