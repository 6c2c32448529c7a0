"""What Snakemake stores and removes: never inputs, nothing twice, a job's outputs together."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("snakemake")

from .page import told


@pytest.fixture
def workflow(workflow):
    workflow.make_remote("in.txt", b"precious\n", mtime=1_600_000_000)
    return workflow


READ_ONLY = """
    storage:
        provider="pyremotedata",
        read_only="yes",
    rule all:
        input: storage("@URL@/out.txt")
    rule first:
        input: storage("@URL@/in.txt")
        output: "first.txt"
        shell: "cp {input} {output}"
    rule second:
        input: "first.txt"
        output: storage("@URL@/out.txt")
        shell: "cp {input} {output}"
"""


def test_an_output_in_a_read_only_storage_is_refused_before_the_first_job_runs(workflow):
    workflow.write(READ_ONLY)
    outcome = workflow.run().failed("read-only (setting read_only), but rule second", "/out")
    told(outcome.text, "is read-only")
    assert not workflow.path("first.txt").exists()
    assert not workflow.remote_path("out.txt").exists()


def test_the_benchmark_of_a_job_counts_as_its_output(workflow):
    workflow.write(
        """
        storage:
            provider="pyremotedata",
            read_only="yes",
        rule only:
            input: storage("@URL@/in.txt")
            output: "out.txt"
            benchmark: storage("@URL@/bench.tsv")
            shell: "cp {input} {output}"
        """
    )
    workflow.run().failed("read-only (setting read_only), but rule only", "/bench.tsv")
    assert not workflow.path("out.txt").exists()


@pytest.mark.parametrize("argument", ["--delete-all-output", "--touch"])
def test_nothing_in_a_read_only_storage_is_removed_or_touched(workflow, argument):
    out = workflow.make_remote("out.txt", b"done\n", mtime=1_600_000_001)
    workflow.write(READ_ONLY)
    arguments = [argument, "--forceall"] if argument == "--touch" else [argument]
    workflow.run(*arguments).failed("read-only (setting read_only)", "/out.txt")
    assert out.read_bytes() == b"done\n"
    assert out.stat().st_mtime == 1_600_000_001


def test_what_a_read_only_storage_holds_is_used(workflow):
    workflow.write_copy('storage("@URL@/in.txt")', '"out.txt"')
    workflow.run("--storage-pyremotedata-read-only", "yes").succeeded()
    assert workflow.path("out.txt").read_bytes() == b"precious\n"
    assert workflow.remote_path("in.txt").stat().st_mtime == 1_600_000_000


def test_a_setting_that_is_neither_yes_nor_no_is_refused(workflow):
    workflow.write(READ_ONLY.replace('"yes"', '"perhaps"'))
    workflow.run().failed("read_only is not valid: 'perhaps'; it is yes, no or auto")


COPY = """
    rule all:
        input: storage("@URL@/out/b.txt")
    rule first:
        input: storage("@URL@/in.txt"), storage("@URL@/given")
        output: storage("@URL@/out/a.txt"), storage("@URL@/out/tree")
        shell: "cp {input[0]} {output[0]}; cp -r {input[1]} {output[1]}"
    rule second:
        input: storage("@URL@/out/a.txt"), storage("@URL@/in.txt")
        output: storage("@URL@/out/b.txt")
        shell: "cat {input} > {output}"
"""


def remote_files(workflow):
    root = workflow.remote_path("")
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())


INPUTS = ["given/deep/x", "given/y", "in.txt"]


@pytest.fixture
def copied(workflow):
    workflow.make_remote("given/deep/x", b"x\n")
    workflow.make_remote("given/y", b"y\n")
    workflow.make_remote("out/other.txt", b"not of this workflow\n")
    workflow.write(COPY)
    return workflow


def test_delete_all_output_removes_the_outputs_and_nothing_else(copied):
    copied.run().succeeded()
    assert len(remote_files(copied)) == len(INPUTS) + 1 + 5
    copied.run("--delete-all-output", "--dry-run").succeeded()
    assert len(remote_files(copied)) == len(INPUTS) + 1 + 5
    copied.run("--delete-all-output").succeeded()
    assert remote_files(copied) == [*INPUTS, "out/other.txt"]


@pytest.mark.parametrize(
    "arguments", [pytest.param((), marks=pytest.mark.full), ("--keep-storage-local-copies",)]
)
def test_cleaning_up_local_copies_removes_no_remote_input(copied, arguments):
    copied.run(*arguments).succeeded()
    kept = copied.local_copy("in.txt").exists()
    assert kept is bool(arguments)
    assert set(INPUTS) <= set(remote_files(copied))
    assert copied.remote_path("in.txt").stat().st_mtime == 1_600_000_000
    copied.run(*arguments, "--forceall").succeeded()
    assert set(INPUTS) <= set(remote_files(copied))


def test_a_failed_job_takes_its_own_outputs_away_and_no_input(copied):
    copied.run().succeeded()
    text = copied.path("Snakefile").read_text()
    copied.path("Snakefile").write_text(text.replace("cat {input} >", "false; cat {input} >"))
    copied.run("--forcerun", "second").failed("Error in rule second")
    assert "out/b.txt" not in remote_files(copied)
    assert {*INPUTS, "out/a.txt", "out/other.txt", "out/tree/y"} <= set(remote_files(copied))


GRID = """
    rule all:
        input: storage(expand("@URL@/out/{n}/{k}", n=range(3), k=range(4)))
    rule four:
        output: storage(expand("@URL@/out/{{n}}/{k}", k=range(4)))
        shell: "for f in {output}; do echo {wildcards.n} > $f; done"
"""


def test_no_upload_is_begun_in_a_directory_that_is_not_there(counted):
    counted.write(GRID)
    counted.run("--jobs", "1").succeeded()
    for n in range(3):
        for k in range(4):
            assert counted.remote_path(f"out/{n}/{k}").read_text() == f"{n}\n"
    server = counted.server
    # An upload that finds no directory has to be begun once more.
    assert server.requests("open") <= 12 + 4, server.request_kinds()
    assert server.requests("mkdir") <= 6, server.request_kinds()


IMPATIENT = """
    from snakemake_storage_plugin_pyremotedata import memory
    memory.NEGATIVE_S = 0.0
    rule all:
        input: storage(expand("@URL@/out/{n}", n=range(6)))
    rule one:
        output: storage("@URL@/out/{n}")
        shell: "echo {wildcards.n} > {output}"
"""


def test_a_job_does_not_ask_for_what_only_it_can_make(counted):
    """However long the jobs before it have taken."""
    counted.make_remote("out/other")
    counted.write(IMPATIENT)
    counted.run("--dry-run").succeeded()
    building = asked(counted.server)
    counted.run("--jobs", "1").succeeded()
    for n in range(6):
        assert counted.remote_path(f"out/{n}").read_text() == f"{n}\n"
    # Of each once more, when it is stored.
    assert asked(counted.server) <= 2 * building + 6 + 2, counted.server.request_kinds()


LATE_LISTING = """
    import time

    def late(output):
        "As a listing that was asked for before the output was there, and comes in after it."
        memory, url = output.provider.lookup.memory, output.url
        memory.forget(url)
        memory.remember_listing(url.parent, [], time.monotonic() - 2)

    rule one:
        output: storage("@URL@/out/x")
        shell: "echo 1 > {output}"

    onsuccess:
        output = next(f.storage_object for job in workflow.dag.jobs for f in job.output)
        late(output)
        print("there:", output.exists())
"""


def test_what_a_job_has_made_is_there_whatever_a_late_listing_says(workflow):
    workflow.write(LATE_LISTING)
    assert "there: True" in workflow.run().succeeded().text


def test_what_a_job_writes_to_the_server_by_itself_is_seen(workflow):
    workflow.write(
        f"""
        rule one:
            output: storage("@URL@/out/x", retrieve=False)
            shell: "mkdir {workflow.remote_path("out")} && echo 1 > {workflow.remote_path("out/x")}"
        """
    )
    workflow.run().succeeded()
    assert "Nothing to be done" in workflow.run().succeeded().text


def asked(server):
    """Return how often anything was asked about."""
    return server.requests("stat") + server.requests("lstat") + server.requests("opendir")


EIGHT = """
    rule many:
        output: storage(expand("@URL@/out/{n}", n=range(8)))
        log: storage("@URL@/log")
        shell: "for f in {output}; do head -c 200000 /dev/urandom > $f; done; echo done > {log}"
"""


def test_the_outputs_of_a_job_are_stored_at_the_same_time_and_once(counted, relay_factory):
    server = counted.server
    relay = relay_factory(server.port, one_way_ms=10)  # enough for all to be under way
    counted.write(EIGHT.replace("@URL@", relay.url(server.url(counted.remote))))
    counted.run("--keep-storage-local-copies").succeeded()
    for n in range(8):
        (local,) = counted.directory.glob(f".snakemake/storage/*/*/**/out/{n}")
        assert counted.remote_path(f"out/{n}").read_bytes() == local.read_bytes()
    assert counted.remote_path("log").read_bytes() == b"done\n"
    assert server.requests("posix-rename") == 9
    first_renamed = re.search("posix-rename old", server.sftp_log.read_text()).start()
    begun = server.sftp_log.read_text()[:first_renamed]
    assert begun.count("flags WRITE") >= 2


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--keep-storage-local-copies",),
        pytest.param(("--keep-going",), marks=pytest.mark.full),
    ],
)
def test_one_output_that_cannot_be_stored_fails_the_run(chrooted, arguments):
    chrooted.make_remote("out/x")
    closed = chrooted.remote_path("closed")
    closed.mkdir(mode=0o755)  # owned by root, and the account is not
    chrooted.write(
        """
        rule all:
            input: storage("@URL@/out/a")
        rule three:
            output: storage("@URL@/out/a"), storage("@URL@/closed/b"), storage("@URL@/out/c")
            shell: "for f in {output}; do head -c 200000 /dev/urandom > $f; done"
        """
    )
    chrooted.run(*arguments).failed("Failed to store output in sftp://", "/closed/b: the server")
    assert not list(closed.iterdir())
    # What was stored of the failed job has gone again, so that no run takes it for done.
    assert [path.name for path in chrooted.remote_path("out").iterdir()] == ["x"]
    closed.chmod(0o777)
    chrooted.run(*arguments, "--rerun-incomplete").succeeded()
    for name in ("out/a", "closed/b", "out/c"):
        assert chrooted.remote_path(name).stat().st_size == 200_000


def test_without_its_siblings_being_known_every_output_is_stored_in_its_turn(workflow):
    """Where Snakemake is not as we know it: here it has no workflow of that name."""
    workflow.path("sitecustomize.py").write_text(
        "import snakemake_storage_plugin_pyremotedata.host as host\n"
        "host.Host.of_caller = classmethod(lambda cls: cls(object()))\n"
    )
    workflow.env["PYTHONPATH"] = str(workflow.directory)
    workflow.write(EIGHT)
    text = workflow.run("--keep-storage-local-copies").succeeded().text
    assert text.count("\nStored sftp://") == 9
    for n in range(8):
        local = workflow.local_copy(f"out/{n}").read_bytes()
        assert workflow.remote_path(f"out/{n}").read_bytes() == local
