"""What a user of Snakemake sees when something is wrong: one line with the remedy, exit 1."""

from __future__ import annotations

import os
import signal

import pytest

pytest.importorskip("snakemake")

from .logins import changed, new_key
from .processes import processes_with
from .servers import free_port
from .snakemake_workflow import kill_group, temporaries
from .waiting import wait_until, wait_until_stalled

SECRET = "canary-7d0e"
NO_PASSWORD = "a password does not belong in a URL"
OUR_PAGE = "/storage/pyremotedata.html"


@pytest.fixture
def workflow(workflow):
    workflow.make_remote("in.txt", b"hello\n")
    workflow.env |= {"PYREMOTEDATA_TIMEOUT": "10", "PLACE": str(workflow.directory)}
    return workflow


def copy(workflow, url="@URL@/in.txt", *arguments, storage="storage"):
    """Run a copy of one remote file."""
    workflow.write_copy(f'{storage}("{url}")', f'{storage}("@URL@/out.txt")')
    return workflow.run(*arguments)


def test_a_missing_input_is_named_with_its_rule(workflow):
    outcome = copy(workflow, "@URL@/nothing.txt")
    outcome.failed("MissingInputException in rule copy")
    assert "nothing.txt" in outcome.text


def test_a_refused_port(workflow):
    port = free_port()
    copy(workflow, f"sftp://127.0.0.1:{port}/a.txt").failed(
        f"sftp://127.0.0.1:{port}/a.txt", "nothing listens", "check host and port"
    )


def test_an_unknown_host_key(workflow, tmp_path):
    server, known = workflow.server, tmp_path / "known_hosts"
    known.touch()
    config = changed(server, tmp_path / "config", (str(server.known_hosts), str(known)))
    workflow.env["PYREMOTEDATA_SSH_CONFIG"] = config
    copy(workflow).failed("in.txt: the server's host key", "not known", "accept it once with")


def test_a_wrong_key(workflow, tmp_path):
    server, key = workflow.server, new_key(tmp_path / "key")
    workflow.env["PYREMOTEDATA_SSH_KEY"] = str(key)
    config = changed(server, tmp_path / "config", (str(server.key), str(key)))
    workflow.env["PYREMOTEDATA_SSH_CONFIG"] = config
    logins = server.log_text().count("Connection from")
    copy(workflow).failed("in.txt: ", "check user name, key")
    assert server.log_text().count("Connection from") == logins + 1


@pytest.mark.parametrize(
    ("storage", "url", "reasons"),
    [
        ("storage.pyremotedata", f"sftp://me:{SECRET}@127.0.0.1/a.txt", (NO_PASSWORD, OUR_PAGE)),
        ("storage.pyremotedata", "ssh://127.0.0.1/a.txt", ("unknown scheme", OUR_PAGE)),
        ("storage", f"sftp://me:{SECRET}@127.0.0.1/a.txt", (NO_PASSWORD,)),
        ("storage", f"pyremotedata+sftp://me:{SECRET}@127.0.0.1/a.txt", (NO_PASSWORD,)),
        ("storage", "ftp://127.0.0.1/", ("it names no file",)),
    ],
)
def test_a_query_that_cannot_be_served_is_refused_with_the_reason(workflow, storage, url, reasons):
    outcome = copy(workflow, url, storage=storage).failed("is invalid", *reasons)
    assert SECRET not in outcome.text


def test_a_wrong_setting(workflow):
    workflow.env["PYREMOTEDATA_CONNECTIONS"] = "many"
    copy(workflow).failed("in.txt: ", "CONNECTIONS is not valid: 'many'")


def test_an_unknown_setting_of_the_snakefile(workflow):
    workflow.write('storage:\n    provider="pyremotedata",\n    user="me"\n')
    workflow.run().failed("has no setting user; see 'snakemake --help'")


def test_a_password_is_nowhere_to_be_seen(chrooted):
    chrooted.make_remote("in.txt", b"hello\n")
    chrooted.env = {
        "PYREMOTEDATA_SSH_CONFIG": str(chrooted.server.password_ssh_config),
        "PYREMOTEDATA_PASSWORD": chrooted.server.password,
    }
    outcome = copy(chrooted).succeeded()
    assert chrooted.remote_path("out.txt").read_bytes() == b"hello\n"
    assert chrooted.server.password not in outcome.text
    for path in chrooted.directory.rglob("*"):
        assert not path.is_file() or chrooted.server.password.encode() not in path.read_bytes()


def test_a_silent_server_ends_within_the_time_limit(workflow, relay_factory):
    relay = relay_factory(workflow.server.port)
    relay.stall()
    workflow.env["PYREMOTEDATA_TIMEOUT"] = "2"
    outcome = copy(workflow, relay.url(workflow.server.url(f"{workflow.remote}/in.txt")))
    outcome.failed("Failed to check existence of sftp://", "check host, port and firewall")
    assert "MissingInput" not in outcome.text


def test_a_failed_input_stops_the_others_and_leaves_nothing_half_done(chrooted):
    data = os.urandom(2_000_000)
    for n in range(20):
        chrooted.make_remote(f"in/{n}", data)
    os.chown(chrooted.make_remote("in/closed", b"x", mode=0o600), 0, 0)
    chrooted.write(
        """
        rule join:
            input: storage(expand("@URL@/in/{n}", n=[*range(20), "closed"]))
            output: "joined"
            shell: "cat {input} > {output}"
        """
    )
    chrooted.run().failed("Failed to retrieve sftp://", "/in/closed: permission denied")
    assert not chrooted.path("joined").exists()
    for n in range(20):
        copied = chrooted.local_copy(f"in/{n}")
        assert not copied.exists() or copied.read_bytes() == data
    assert not chrooted.local_copy("in/closed").exists()
    assert not temporaries(chrooted.directory)


def stalled(workflow, relay_factory, data):
    """Write a workflow whose inputs stop coming halfway."""
    workflow.make_remote("tree/a", data)
    workflow.make_remote("tree/sub/b", data)
    workflow.make_remote("file", data)
    relay = relay_factory(workflow.server.port)
    workflow.write(
        """
        storage:
            provider="pyremotedata",
            keep_local=True,
        rule join:
            input: storage("@R@/tree"), storage("@R@/file")
            output: "joined"
            shell: "cat {input[0]}/a {input[0]}/sub/b {input[1]} > {output}"
        """,
        R=relay.url(workflow.server.url(workflow.remote)),
    )
    relay.stall(after_bytes=6_000_000)
    return relay


def test_a_run_killed_while_retrieving_leaves_nothing_half_done_and_can_be_repeated(
    workflow, relay_factory
):
    data = os.urandom(4_000_000)
    relay = stalled(workflow, relay_factory, data)
    with workflow.start() as process:
        wait_until_stalled(relay)
        assert processes(workflow)
        kill_group(process)
    wait_until(lambda: not processes(workflow))
    storage = workflow.directory / ".snakemake/storage"
    assert temporaries(storage), "it was killed too late"
    trees = [path for path in storage.rglob("tree") if not path.parent.name.startswith(".")]
    assert not trees
    assert all(path.read_bytes() == data for path in storage.rglob("file"))
    relay.reset()
    relay.resume()
    workflow.run("--unlock").succeeded()
    workflow.run().succeeded()
    assert workflow.path("joined").read_bytes() == data * 3
    assert not temporaries(workflow.directory)


def test_a_run_interrupted_while_retrieving_ends_and_leaves_nothing(workflow, relay_factory):
    data = os.urandom(4_000_000)
    relay = stalled(workflow, relay_factory, data)
    with workflow.start() as process:
        wait_until_stalled(relay)
        os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
        text, _ = process.communicate(timeout=60)
    assert process.returncode, text
    wait_until(lambda: not processes(workflow))
    storage = workflow.directory / ".snakemake/storage"
    assert not temporaries(storage)
    assert not [path for path in storage.rglob("*") if path.is_file() and path.name != "file"]
    assert all(path.read_bytes() == data for path in storage.rglob("file"))
    relay.reset()
    relay.resume()
    workflow.run().succeeded()
    assert workflow.path("joined").read_bytes() == data * 3


def test_a_run_killed_while_storing_leaves_nothing_half_done_and_can_be_repeated(
    workflow, relay_factory
):
    relay = relay_factory(workflow.server.port)
    workflow.write(
        """
        rule make:
            output: storage("@R@/tree"), storage("@R@/file")
            shell: "mkdir -p {output[0]}/sub; for f in {output[0]}/a {output[0]}/sub/b {output[1]};"
                   " do head -c 4000000 /dev/zero > $f; done"
        """,
        R=relay.url(workflow.server.url(workflow.remote)),
    )
    relay.stall(after_bytes=6_000_000, direction="up")
    with workflow.start() as process:
        wait_until_stalled(relay)
        assert processes(workflow)
        kill_group(process)
    wait_until(lambda: not processes(workflow))
    for path in workflow.server.root.joinpath(workflow.remote).rglob("*"):
        if path.is_file() and path.name in ("a", "b", "file"):
            assert path.stat().st_size == 4_000_000, path
    relay.reset()
    relay.resume()
    workflow.run("--unlock").succeeded()
    workflow.run("--rerun-incomplete").succeeded()
    for name in ("tree/a", "tree/sub/b", "file"):
        assert workflow.remote_path(name).read_bytes() == bytes(4_000_000)


def processes(workflow):
    """Return the processes of runs in this workflow's directory."""
    return processes_with(f"PLACE={workflow.directory}")


def test_a_full_disk_here(workflow, small_disk):
    workflow.make_remote("in.txt", os.urandom(10_000_000))
    prefix = ("--local-storage-prefix", str(small_disk / "copies"))
    copy(workflow, "@URL@/in.txt", *prefix).failed(
        "Cannot store", "in.txt", "--wait-for-free-local-storage"
    )
    assert not [path for path in small_disk.rglob("*") if path.is_file()]


def test_a_disk_here_that_has_room_for_a_file_but_not_for_one_in_the_cache_as_well(
    workflow, small_disk
):
    data = os.urandom(5_000_000)
    workflow.make_remote("in.txt", data)
    workflow.env["PYREMOTEDATA_CACHE_DIR"] = str(small_disk / "cache")
    workflow.write_copy('storage("@URL@/in.txt")', '"out.txt"')
    prefix = ("--local-storage-prefix", str(small_disk / "copies"))
    text = workflow.run(*prefix, "--storage-pyremotedata-node-cache", "yes").succeeded().text
    assert workflow.path("out.txt").read_bytes() == data
    assert text.count("Not through the node's cache") == 1
