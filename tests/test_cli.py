"""The command pyremotedata, run as a user runs it: exit status, lines, files."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pyremotedata_core import __version__
from pyremotedata_core.cli.output import json_list

from .logins import changed
from .page import told
from .servers import free_port
from .sites import tree

MTIME = 1_234_567_890

# --- looking --------------------------------------------------------------------------------


def test_version_and_help_need_no_remote(run):
    assert run("--version").stdout.strip().endswith(__version__)
    assert "put" in run("--help").stdout
    for verb in ("ls", "stat", "get", "put", "sync", "mkdir", "rm", "doctor"):
        assert verb in run(verb, "--help").stdout


def test_the_command_is_installed():
    script = Path(sys.executable).with_name("pyremotedata")
    assert script.exists()
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith(__version__)


def test_ls_prints_a_name_a_line(run, url, make):
    make("b")
    make("a b", b"123", mtime=MTIME)
    make("sub/c")
    assert run("ls", url()).stdout == "a b\nb\nsub\n"
    assert run("ls", url("a b")).stdout == f"{url('a b')}\n"
    long = run("ls", "-l", url()).stdout.splitlines()
    assert "3 2009-02-1" in long[0]
    assert long[2].startswith("d ")
    assert run("ls", url("sub"), url("b")).stdout == f"{url('sub')}:\nc\n{url('b')}\n"


def test_names_are_printed_in_any_locale(run, url, make):
    make("größe/ü")
    run.environment.update(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert run("ls", url("größe")).stdout == "ü\n"
    assert run("stat", url("größe/ü")).stdout.endswith(f"{url('größe/ü')}\n")


def test_a_name_that_the_locale_cannot_write_fails_alone(run, url, make, here):
    make("t/a", b"1")
    make("t/ü", b"2")
    make("t/größe/b", b"3")
    run.environment.update(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    lines = run("get", url("t"), f"{here}/", status=1).stderr.splitlines()
    assert len(lines) == 2
    assert all("encoding of file names" in line and "PYTHONUTF8=1" in line for line in lines)
    assert {url("t/ü"), url("t/größe")} == {line.split()[1].rstrip(":") for line in lines}
    assert tree(here / "t") == {"a": b"1"}
    assert "PYTHONUTF8=1" in run.failure("get", url("t/ü"), f"{here}/")
    run.environment["PYTHONUTF8"] = "1"
    run("get", url("t"), f"{here}/")
    assert (here / "t/größe/b").read_bytes() == b"3"


def test_ls_for_machines_is_json(run, url, make):
    make("a b", b"123", mtime=MTIME)
    (entry,) = json.loads(run("ls", "--json", url()).stdout)
    assert entry["url"] == url("a b")
    assert (entry["name"], entry["kind"], entry["size"]) == ("a b", "file", 3)
    assert entry["mtime"] == MTIME


def test_a_list_for_machines_is_closed_before_a_path_that_is_none(run, url, make):
    make("a")
    done = run("ls", "--json", url(), "sftp://host:99999/", status=2)
    assert [entry["name"] for entry in json.loads(done.stdout)] == ["a"]
    assert run("ls", "--json", "sftp://host:99999/", url(), status=2).stdout == ""


@pytest.mark.parametrize("values", [[], [{"name": "a\nb", "size": 1}], [1, [2, 3], {}]])
def test_a_list_for_machines_is_printed_as_it_comes(capsys, values):
    with json_list() as add:
        for value in values:
            add(value)
    assert json.loads(capsys.readouterr().out) == values


def test_a_name_cannot_forge_lines(run, url, make):
    make("a\nb")
    make("c\x1b[2J")
    make("\udcff")
    lines = run("ls", url()).stdout.splitlines()
    assert len(lines) == 3
    assert "\\n" in lines[0]
    # What a shell makes of put * where somebody has left a file of such a name.
    assert r"arguments: --\x1b[2J" in run("put", "--\x1b[2J", url(), ".", status=2).stderr


def test_stat_prints_size_and_time(run, url, make):
    make("a", b"123", mtime=MTIME)
    line = run("stat", url("a")).stdout
    assert line.startswith("- 0")
    assert " 3 2009-02-1" in line
    (entry,) = json.loads(run("stat", "--json", url("a")).stdout)
    assert (entry["url"], entry["size"]) == (url("a"), 3)
    assert run("stat", url("a"), url("none"), status=1).stdout == line


def test_a_path_is_below_the_configured_remote(run, sshd, make, remote_directory):
    make("a", b"1")
    run.environment.update(
        PYREMOTEDATA_REMOTE_URI="127.0.0.1",
        PYREMOTEDATA_REMOTE_PORT=str(sshd.port),
        PYREMOTEDATA_REMOTE_USERNAME=sshd.user,
        PYREMOTEDATA_REMOTE_DIRECTORY=sshd.remote_path(remote_directory),
    )
    assert run("ls").stdout == "a\n"
    run("get", "a", "b")
    assert (run.directory / "b").read_bytes() == b"1"
    run("put", "b", "c")
    assert (sshd.root / remote_directory / "c").read_bytes() == b"1"


# --- mistakes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["ls"], "PYREMOTEDATA_REMOTE_URI"),
        (["ls", "http://host/"], "unknown scheme"),
        (["ls", "sftp://me:canary@host/"], "PYREMOTEDATA_PASSWORD"),
        (["ls", "sftp:///x"], "names no host"),
        (["ls", "sftp://host:x/"], "not a port"),
        (["get", "sftp://-oProxyCommand=touch x/a", "b"], "not a host name"),
        (["get", "sftp://h/a", "sftp://h/b"], "a local path was meant"),
        (["put", "sftp://h/a", "sftp://h/b"], "a local path was meant"),
        (["sync", "a", "b"], "must be a URL"),
        (["cache", "trim", "--to", "much"], "--to"),
        (["sync", "sftp://h/a", "sftp://h/b"], "must be a URL"),
        (["ls", "--timeout", "soon", "sftp://h/"], "a number of seconds"),
        (["ls", "--timeout", "0", "sftp://h/"], "a number of seconds"),
        (["ls", "--connections", "0", "sftp://h/"], "at least 1"),
        (["ls", "--ssh-key", "no-key", "sftp://h/"], "there is no key"),
        (["ls", "--transport", "scp", "sftp://h/"], "transport"),
        (["get", "sftp://h/a%00b", "c"], "NUL"),
    ],
)
def test_a_mistake_of_the_user_is_one_line_and_status_2(run, here, arguments, says):
    status = 1 if "NUL" in says else 2
    line = run.failure(*arguments, status=status)
    assert says in line
    assert "canary" not in line
    if "--ssh-key" in arguments:
        told(line, "there is no key")
    assert tree(here) == {}


def test_a_name_that_is_too_long_for_the_server_is_told_with_its_length(run, here, there, url):
    (here / "a").write_bytes(b"1")
    for name in ("é" * 128, "é/" * 1400):
        told(run.failure("put", "a", url(name)), "is longer than the server can hold")
    run("put", "a", url("é" * 127))
    assert tree(there) == {"é" * 127: b"1"}


def test_a_working_directory_that_is_gone_is_named(run, url, make):
    make("a")
    said = run.within('rmdir "$PWD"; exec "$@"').failure("get", url("a"), "b")
    assert said == "pyremotedata: the current directory: No such file or directory"


@pytest.mark.parametrize("arguments", [[], ["fly"], ["get", "x"], ["ls", "--no-such-option"]])
def test_wrong_usage_is_explained(run, arguments):
    assert "usage: pyremotedata" in run(*arguments, status=2).stderr


def test_an_option_has_an_unknown_host_key_accepted(run, sshd, url, tmp_path, make):
    make("a")
    known = tmp_path / "known_hosts"
    elsewhere = (str(sshd.known_hosts), str(known))
    config = changed(sshd, tmp_path / "config", elsewhere, ("StrictHostKeyChecking yes", ""))
    assert run("ls", "--accept-new", "--ssh-config", config, url()).stdout == "a\n"
    assert known.exists()


def test_the_output_may_be_cut_off(run, url, make):
    """As by ``| head``."""
    for number in range(2000):
        make(f"{number:050}")
    done = run.within('"$@" | head -n 1; echo ${PIPESTATUS[0]}')("ls", url())
    assert (done.stdout, done.stderr) == (f"{0:050}\n141\n", "")


# --- output that nobody takes -----------------------------------------------------------------


def test_output_that_cannot_be_written_is_no_traceback(run, url, make):
    make("a", b"content")
    for verb, redirection in itertools.product(("ls", "cat"), ("> /dev/full", ">&-")):
        assert "standard output" in run.within(f'"$@" {redirection}').failure(verb, url("a"))


def test_a_closed_output_matters_to_no_command_that_says_nothing(run, url, make, here):
    make("a", b"content")
    run.within('"$@" >&- 2>&-')("get", url("a"), ".")
    assert (here / "a").read_bytes() == b"content"


def test_a_failure_that_cannot_be_told_stops_nothing(run, url, make):
    make("a", b"content")
    done = run.within('"$@" 2> /dev/full')("ls", url("none"), url("a"), status=1)
    assert done.stdout == f"{url('a')}\n"


# --- doctor ---------------------------------------------------------------------------------


def test_the_doctor_finds_a_healthy_server_healthy(run, url, make):
    make("a", bytes(100_000))
    said = run("doctor", url("a")).stdout
    assert "BAD" not in said
    for word in ("OpenSSH", "round trip", "posix-rename", "throughput", "host key known"):
        assert word in said
    findings = json.loads(run("doctor", "--json", url()).stdout)
    assert all(finding["well"] is not False for finding in findings)


def test_the_doctor_does_without_ssh(run, url):
    run.environment["PYREMOTEDATA_CARRIER"] = "paramiko"
    said = run("doctor", url()).stdout
    assert "paramiko" in said
    assert "OpenSSH" not in said
    assert "BAD" not in said


def test_the_doctor_names_what_is_wrong(run, url):
    said = run("doctor", f"sftp://127.0.0.1:{free_port()}/", status=1).stdout
    assert "BAD connection: " in said
    assert "check host and port" in said
    said = run("doctor", url("none"), status=1).stdout
    assert "ok  connection: " in said
    assert f"BAD path: {url('none')}: no such file" in said


def test_the_doctor_says_what_the_chosen_transport_lacks(run, url, tmp_path):
    (tmp_path / "ssh").symlink_to(shutil.which("ssh"))
    run.environment["PATH"] = str(tmp_path)
    assert "-   lftp: not installed; needed for ftp" in run("doctor", url()).stdout
    said = run("doctor", "--transport", "lftp", url(), status=1).stdout
    assert "ok  ssh: " in said
    assert "BAD lftp: not installed (" in said


def test_the_doctor_says_that_a_program_does_not_run(run, url, tmp_path):
    (tmp_path / "lftp").write_bytes(b"\x7fELF of another machine")
    (tmp_path / "lftp").chmod(0o755)
    run.environment["PATH"] = f"{tmp_path}:{run.environment['PATH']}"
    said = run("doctor", url(), status=1).stdout
    assert f"BAD lftp: {tmp_path}/lftp does not answer: " in said
    assert "throughput" in said  # and goes on


# --- the login that is begun while the program loads -----------------------------------------


def test_a_command_takes_one_login_and_one_slot(run, url, make, here, sshd):
    make("a", b"abc")
    before = sshd.logins()
    run("get", "--connections", "1", url("a"), "b")
    assert (here / "b").read_bytes() == b"abc"
    assert sshd.logins() == before + 1


def test_a_login_that_nothing_wants_ends_with_the_command(run, url, sshd):
    message = run.failure("get", url("a"), url("b/a"), "d/", status=2)
    assert "would become 'a'" in message
    everything = subprocess.run(["ps", "-ww", "-eo", "args"], capture_output=True, text=True)
    assert not [line for line in everything.stdout.splitlines() if str(sshd.ssh_config) in line]
