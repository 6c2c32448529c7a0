"""What the command does to many files: patterns, and dry runs that name each file."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
import termios

import pytest

from .command import CLI
from .sites import needs_lftp, tree

# --- patterns -------------------------------------------------------------------------------


def test_a_quoted_pattern_means_all_that_matches(run, url, make, here, there):
    for name in ("a.tif", "b.tif", "c.csv", "sub/d.tif"):
        make(name, name.encode())
    assert run("ls", url() + "/*.tif").stdout == f"{url('a.tif')}\n{url('b.tif')}\n"
    assert run("du", "-h", url() + "/**/*.tif").stdout.split()[::2] == ["5", "5", "9"]
    assert run("cat", url() + "/[ab].tif").stdout == "a.tifb.tif"
    run("get", url() + "/*.tif", url("c.csv"), "d/")
    assert tree(here) == {"d": None, "d/a.tif": b"a.tif", "d/b.tif": b"b.tif", "d/c.csv": b"c.csv"}
    assert "nothing matches" in run.failure("rm", url() + "/*.txt")
    run("rm", url() + "/?.tif")
    assert tree(there) == {"c.csv": b"c.csv", "sub": None, "sub/d.tif": b"sub/d.tif"}


def test_a_file_whose_name_is_the_pattern_is_meant_alone(run, url, make, there):
    make("[1].tif")
    make("1.tif")
    run("rm", url() + "/[1].tif")
    assert tree(there) == {"1.tif": b""}
    assert "no such file" in run.failure("rm", url() + "/%5B1%5D.tif")
    assert tree(there) == {"1.tif": b""}


@pytest.mark.parametrize("transport", ["sftp", pytest.param("lftp", marks=needs_lftp)])
def test_a_server_that_takes_no_name_like_a_pattern_takes_patterns(run, miglike, transport):
    for name in ("a.tif", "b.tif", "c.csv"):
        miglike.make(f"patterns/{name}", name.encode())
    run.environment["PYREMOTEDATA_SSH_CONFIG"] = str(miglike.ssh_config)
    run.environment["PYREMOTEDATA_TRANSPORT"] = transport
    run.environment["PYREMOTEDATA_PASSWORD"] = miglike.password
    assert run("cat", miglike.url("patterns") + "/*.tif").stdout == "a.tifb.tif"
    assert "nothing matches" in run.failure("rm", miglike.url("patterns") + "/*.txt")


def test_ls_lists_all_that_is_below(run, url, make):
    make("b/c/d", bytes(1536))
    make("a")
    assert run("ls", "-R", url()).stdout == "a\nb\nb/c\nb/c/d\n"
    assert "   1.5K " in run("ls", "-lhR", url()).stdout
    assert run("ls", "-R", url("a")).stdout == f"{url('a')}\n"
    urls = [entry["url"] for entry in json.loads(run("ls", "-R", "--json", url("b")).stdout)]
    assert urls == [url("b/c"), url("b/c/d")]


# --- progress -------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["get", "put"])
def test_a_bar_on_a_terminal_shows_how_much_is_to_come(run, url, make, here, verb):
    make("a", bytes(300_000))
    (here / "a").write_bytes(bytes(300_000))
    ends = [url("a"), "b"] if verb == "get" else ["a", url("b")]
    ours, theirs = pty.openpty()  # not its controlling terminal, as under some schedulers
    termios.tcsetwinsize(theirs, (24, 120))
    command = [*CLI, verb, *ends]
    process = subprocess.Popen(
        command, cwd=here, env=run.environment, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    seen = b""
    with contextlib.suppress(OSError):  # the end of a terminal
        while data := os.read(ours, 65536):
            seen += data
    os.close(ours)
    assert process.wait(30) == 0, seen
    assert b"293k/293k" in seen


# --- dry runs -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["get", "-n", "U/t", "U/f", "new/"], ["fetch new/t/a", "fetch new/t/s/b", "fetch new/f"]),
        (
            ["put", "-n", "t", "f", "U/new/"],
            ["store U/new/t/a", "store U/new/t/s/b", "store U/new/f"],
        ),
        (["put", "-n", "f", "U/name"], ["store U/name"]),
        (["sync", "-n", "U/t", "new"], ["fetch a", "fetch s/b"]),
        (["sync", "-n", "--include", "b", "t", "U/new"], ["store s/b"]),
        (["mkdir", "-n", "U/x/y", "U/t"], ["mkdir U/x/y"]),
        (["rm", "-n", "U/f"], ["delete U/f"]),
        (["rm", "-rn", "U/t"], ["delete U/t/a", "delete U/t/s", "delete U/t/s/b", "delete U/t"]),
    ],
)
def test_a_dry_run_names_each_file_and_changes_nothing(
    run, url, make, here, there, arguments, says
):
    for name in ("t/a", "t/s/b", "f"):
        make(name, b"1")
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_bytes(b"2")
    before = tree(here), tree(there)
    arguments = [argument.replace("U", url()) for argument in arguments]
    says = [line.replace("U", url()) for line in says]
    assert run(*arguments).stdout.splitlines() == says
    planned = json.loads(run(arguments[0], "--json", *arguments[1:]).stdout)["planned"]
    assert [" ".join(step) for step in planned] == says
    assert (tree(here), tree(there)) == before


@pytest.mark.full
def test_a_dry_run_tells_the_failures_of_the_run(run, url, make, here, there):
    make("t/a")
    make("f")
    (here / "f").touch()
    (there / "d/f").mkdir(parents=True)
    for arguments in (
        ["get", url("t"), "f"],
        ["get", url("none"), "x"],
        ["get", url("f"), "f/"],
        ["get", url("f"), "f/x/y"],
        ["get", url("t"), "f/x/y"],
        ["put", "none", url("x")],
        ["put", "f", url("f") + "/x/y"],
        ["put", "f", url("f") + "/x/y/"],
        ["put", ".", url("f")],
        ["put", "f", url("f") + "/"],
        ["put", "f", url("d")],
        ["sync", ".", url("f")],
        ["sync", url("t"), "f/x"],
        ["sync", ".", url("f") + "/x"],
        ["mkdir", url("f")],
        ["mkdir", url("f") + "/x/y"],
        ["rm", url("none")],
        ["rm", url("t")],
        ["rm", url() + "/*.none"],
    ):
        before = tree(here), tree(there)
        said = run.failure(*arguments)
        dry = run.failure(arguments[0], "-n", *arguments[1:])
        assert dry == said or ("is a file" in dry and "is a file" in said)
        assert (tree(here), tree(there)) == before


def test_a_dry_run_tells_that_a_pipe_is_no_file(run, url, here, there):
    for place in (here, there):
        os.mkfifo(place / "pipe")
    for arguments in (["get", url("pipe"), "x"], ["put", "pipe", url("x")]):
        said = run.failure(*arguments)
        assert "not a regular file" in said
        assert run.failure(arguments[0], "-n", *arguments[1:]) == said


def test_a_dry_run_of_put_tells_what_is_in_the_way_within_a_tree(run, url, here, there):
    (there / "t/f").mkdir(parents=True)
    (here / "t").mkdir()
    (here / "t/f").touch()
    for options in ([], ["-n"]):
        assert "is a directory" in run.failure("put", *options, "t", url())


def test_removing_all_of_a_server_is_refused(run, sshd, url):
    root = url().partition(str(sshd.root))[0] + "/"
    assert "name it" in run.failure("rm", "-r", root, status=2)
    assert "name it" in run.failure("rm", "-r", root + "~/", status=2)


def test_a_missing_file_may_be_removed_by_force(run, url, make, there):
    make("a")
    run("rm", "-f", url("none"), url() + "/*.none", url("a"))
    assert tree(there) == {}


@pytest.mark.parametrize("path", ["", "a/.."])
def test_rm_of_plain_paths_does_not_take_the_configured_directory(
    run, make, there, sshd, remote_directory, path
):
    run.environment.update(
        PYREMOTEDATA_REMOTE_URI="127.0.0.1",
        PYREMOTEDATA_REMOTE_USERNAME=sshd.user,
        PYREMOTEDATA_REMOTE_PORT=str(sshd.port),
        PYREMOTEDATA_REMOTE_DIRECTORY=sshd.remote_path(remote_directory),
    )
    make("a/b", b"1")
    assert "name it" in run.failure("rm", "-r", path, status=2)
    assert tree(there) == {"a": None, "a/b": b"1"}
    run("rm", "-r", "a")
    run("rm", "-r", sshd.remote_path(remote_directory))
    assert not there.exists()


def test_an_empty_local_path_is_not_the_current_directory(run, url, make, here, there):
    make("a", b"1")
    (here / "mine").write_bytes(b"2")
    for arguments in (
        ["sync", "--delete", url(), ""],
        ["sync", "--delete", "", url()],
        ["get", url("a"), ""],
        ["put", "", url("b/")],
    ):
        assert "the local path is empty" in run.failure(*arguments, status=2)
    assert (tree(here), tree(there)) == ({"mine": b"2"}, {"a": b"1"})


def test_the_config_file_is_not_touched_by_a_dry_run(run, tmp_path):
    path = tmp_path / "config.yaml"
    run.environment["PYREMOTEDATA_CONFIG"] = str(path)
    assert run("config", "--template", "-n").stdout == f"write {path}\n"
    assert not path.exists()
    run("config", "--template")
    assert "is there already" in run.failure("config", "--template", "-n", status=2)
    assert run("config", "--remove", "-n").stdout == f"delete {path}\n"
    assert json.loads(run("config", "--remove", "--json").stdout)["done"] == [["delete", str(path)]]
    assert json.loads(run("config", "--remove", "-n", "--json").stdout)["planned"] == []
