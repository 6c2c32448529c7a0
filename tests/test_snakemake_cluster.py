"""Runs whose jobs are processes of their own, as on a cluster (the cluster-generic executor)."""

from __future__ import annotations

import os
import re

import pytest

pytest.importorskip("snakemake")
pytest.importorskip("snakemake_executor_plugin_cluster_generic")

from .snakemake_workflow import temporaries

STORED_BEFORE = "by its job already"
# Each job has a place of its own for local copies, as on the disk of a node.
APART = (
    *("--shared-fs-usage", "persistence", "sources", "software-deployment", "source-cache"),
    *("--remote-job-local-storage-prefix", "$JOB_COPIES"),
)


def read_files(workflow):
    """Return the names of the files that the server has opened to be read."""
    pattern = r'open "[^"]*/([^"/]+)" flags READ'
    return re.findall(pattern, workflow.server.sftp_log.read_text())


def test_a_job_whose_inputs_are_local_opens_no_connection(counted):
    data = {n: os.urandom(1000) for n in range(3)}
    for n, content in data.items():
        counted.make_remote(f"in/{n}", content)
    counted.make_remote("tree/sub/x", b"x\n")
    counted.write(
        """
        rule all:
            input: expand("out/{n}", n=range(3))
        rule one:
            input: storage("@URL@/in/{n}"), storage("@URL@/tree")
            output: "out/{n}"
            shell: "cat {input[0]} {input[1]}/sub/x > {output}"
        """
    )
    counted.submit().succeeded()
    for n, content in data.items():
        assert counted.path(f"out/{n}").read_bytes() == content + b"x\n"
    assert counted.server.logins() == 1


STORE = """
    rule all:
        input: storage(expand("@URL@/out/{n}.a", n=range(2)))
    rule one:
        input: storage("@URL@/in/{n}")
        output: storage("@URL@/out/{n}.a"), storage("@URL@/out/{n}.b")
        shell: "cp {input} {output[0]}; cat {input} {input} > {output[1]}"
"""


def make_inputs(workflow):
    data = {n: os.urandom(300_000) for n in range(2)}
    for n, content in data.items():
        workflow.make_remote(f"in/{n}", content)
    return data


def check_outputs(workflow, data):
    for n, content in data.items():
        assert workflow.remote_path(f"out/{n}.a").read_bytes() == content
        assert workflow.remote_path(f"out/{n}.b").read_bytes() == content * 2


def test_an_output_that_a_job_has_stored_is_not_stored_again(counted):
    data = make_inputs(counted)
    counted.write(STORE)
    text = counted.submit().succeeded().text
    check_outputs(counted, data)
    assert counted.server.requests("posix-rename") == 4
    assert text.count(STORED_BEFORE) == 4
    # A job and the main process have a login each.
    assert counted.server.logins() <= 3
    notes = counted.path(".snakemake/storage/pyremotedata/.stored")
    assert not list(notes.iterdir())
    assert "Nothing to be done" in counted.submit().succeeded().text
    assert not temporaries(counted.directory)


TREE = """
    rule one:
        input: storage("@URL@/in/0")
        output: storage("@URL@/tree")
        shell: "mkdir -p {output}/sub/empty && cp {input} {output}/sub/x && touch {output}/y"
"""


@pytest.mark.parametrize("spoil", [None, pytest.param("sub/x", marks=pytest.mark.full)])
def test_a_directory_that_a_job_has_stored_is_not_stored_again(counted, spoil):
    data = make_inputs(counted)
    counted.write(TREE)
    spoiling = f"printf new > {counted.remote_path('tree')}/{spoil}" if spoil else ":"
    text = submit_and_spoil(counted, spoiling).succeeded().text
    assert counted.remote_path("tree/sub/x").read_bytes() == data[0]
    assert counted.remote_path("tree/sub/empty").is_dir()
    assert text.count(STORED_BEFORE) == (0 if spoil else 1)
    assert "Nothing to be done" in counted.submit().succeeded().text


def submit_and_spoil(workflow, spoiling):
    """Run jobs, and something between each of them and the main process."""
    spoil = workflow.path("spoil.sh")
    spoil.write_text(spoiling + "\n")
    return workflow.submit(before=f"sed -i 's|--mode .remote.|& \\&\\& sh {spoil}|' \"$1\"")


@pytest.mark.parametrize(
    "spoil", ["content", "remote", pytest.param("note", marks=pytest.mark.full)]
)
def test_in_doubt_an_output_is_stored_again(counted, spoil):
    """What one line of the submit script does between the job and the main process."""
    data = make_inputs(counted)
    counted.write(STORE.replace("range(2)", "range(1)"))
    local = counted.local_copy("out/0.a")
    remote = counted.remote_path("out/0.a")
    spoiling = {
        # Same size, same time.
        "content": f"cp {local} {local}.x; tr '\\000' '\\001' < {local}.x > {local}; rm {local}.x",
        "remote": f"head -c 300000 /dev/zero > {remote}; touch -d @1600000000 {remote}",
        "note": "for f in .snakemake/storage/pyremotedata/.stored/*; do echo > $f; done",
    }[spoil]
    text = submit_and_spoil(counted, spoiling).succeeded().text
    wanted = data[0].replace(b"\0", b"\1") if spoil == "content" else data[0]
    assert remote.read_bytes() == wanted
    assert text.count(STORED_BEFORE) == (0 if spoil == "note" else 1)
    assert counted.remote_path("out/0.b").read_bytes() == data[0] * 2


SHARED = """
    rule all:
        input: storage(expand("@URL@/out/{n}", n=range(3)))
    rule one:
        input: storage("@URL@/reference"), storage("@URL@/in/{n}")
        output: storage("@URL@/out/{n}")
        shell: "test -w {input[0]} && cat {input} > {output} && echo spoilt >> {input[0]}"
"""


def submit_apart(workflow, *arguments, jobs):
    """Run with local copies that are not shared, in a new directory for each job."""
    before = f"export JOB_COPIES=$(mktemp -d {workflow.directory}/copies.XXXX)"
    return workflow.submit(
        *APART, *workflow.default_storage(), *arguments, jobs=jobs, before=before
    )


@pytest.fixture
def shared(counted):
    """Three jobs with one input in common, which each of them spoils for itself."""
    reference = os.urandom(1_000_000)
    counted.make_remote("reference", reference)
    for n in range(3):
        counted.make_remote(f"in/{n}", b"%d" % n)
    counted.write(SHARED)

    def check():
        for n in range(3):
            assert counted.remote_path(f"out/{n}").read_bytes() == reference + b"%d" % n
        assert counted.remote_path("reference").read_bytes() == reference
        assert not temporaries(counted.directory)

    return counted, check


@pytest.mark.parametrize("jobs", [pytest.param(1, marks=pytest.mark.full), 3])
def test_jobs_of_a_node_move_a_common_input_once(shared, jobs):
    workflow, check = shared
    submit_apart(workflow, jobs=jobs).succeeded()
    check()
    assert read_files(workflow).count("reference") == 1
    assert sorted(read_files(workflow)) == ["0", "1", "2", "reference"]


@pytest.mark.full
def test_jobs_move_a_common_input_each_where_the_cache_is_switched_off(shared):
    workflow, check = shared
    submit_apart(workflow, "--storage-pyremotedata-node-cache", "no", jobs=1).succeeded()
    check()
    assert read_files(workflow).count("reference") == 3


@pytest.mark.full
def test_an_input_that_does_not_fit_into_the_cache_is_fetched_past_it(shared):
    workflow, check = shared
    workflow.env["PYREMOTEDATA_CACHE_BYTES"] = "1000"
    submit_apart(workflow, jobs=1).succeeded()
    check()
    assert read_files(workflow).count("reference") == 3


def test_a_limit_of_requests_for_one_storage_reaches_the_jobs(counted):
    counted.make_remote("in", b"x")
    counted.write(
        """
        storage far:
            provider="pyremotedata"
        rule copy:
            input: storage.far("@URL@/in")
            output: storage.far("@URL@/out")
            shell: "cp {input} {output}"
        """
    )
    counted.submit("--storage-pyremotedata-max-requests-per-second", "far::100").succeeded()
    assert counted.remote_path("out").read_bytes() == b"x"


@pytest.mark.parametrize("fails", [pytest.param(False, marks=pytest.mark.full), True])
def test_a_job_leaves_no_log_or_benchmark_on_the_disk_of_its_node(counted, fails):
    counted.make_remote("in", b"x")
    counted.write(
        """
        rule all:
            input: storage("@URL@/out")
        rule copy:
            input: storage("@URL@/in")
            output: storage("@URL@/out")
            log: storage("@URL@/logs/copy.log")
            benchmark: storage("@URL@/logs/copy.tsv")
            shell: "echo did it > {log} && cp {input} {output} && @END@"
        """,
        END="false" if fails else "true",
    )
    outcome = submit_apart(counted, jobs=1)
    assert outcome.status == fails, outcome.text
    assert counted.remote_path("logs/copy.log").read_bytes() == b"did it\n"
    (copies,) = counted.directory.glob("copies.*")
    assert not [path for path in copies.rglob("*") if path.is_file()]


def test_jobs_of_other_nodes_get_no_links_into_the_cache_of_this_one(counted):
    counted.make_remote("in", b"x")
    counted.write(
        """
        rule look:
            input: access.sequential(storage("@URL@/in"))
            output: "out"
            shell: "stat -c %F {input} > {output}"
        """
    )
    counted.submit("--storage-pyremotedata-node-cache", "yes").succeeded()
    assert counted.path("out").read_text() == "regular file\n"


def test_the_cache_serves_a_second_run_where_the_user_wants_it(counted):
    data = os.urandom(100_000)
    counted.make_remote("in", data)
    counted.write_copy('storage("@URL@/in")', '"out"')
    cache = ("--storage-pyremotedata-node-cache", "yes")
    counted.run(*cache).succeeded()
    text = counted.run(*cache, "--forceall").succeeded().text
    assert counted.path("out").read_bytes() == data
    assert read_files(counted) == ["in"]
    assert "from the node's cache" in text
    newer = os.urandom(100_000)
    counted.make_remote("in", newer)
    counted.run(*cache, "--forceall").succeeded()
    assert counted.path("out").read_bytes() == newer


@pytest.mark.full
def test_the_main_process_fetches_nothing_ahead_for_jobs_that_fetch_for_themselves(counted):
    for n in range(3):
        counted.make_remote(f"in/{n}", os.urandom(1000))
    counted.make_remote("own", b"x")
    counted.write(
        """
        localrules: here
        rule all:
            input: storage(expand("@URL@/out/{n}", n=range(3))), local("here")
        rule here:
            input: storage("@URL@/own")
            output: local("here")
            shell: "cp {input} {output}"
        rule there:
            input: storage("@URL@/in/{n}")
            output: storage("@URL@/out/{n}")
            shell: "cp {input} {output}"
        """
    )
    submit_apart(counted, jobs=1).succeeded()
    assert sorted(read_files(counted)) == ["0", "1", "2", "own"]


REMADE = """
    def last(wildcards):
        checkpoints.remake.get()
        return storage("@URL@/last")
    rule all:
        input: last
    checkpoint remake:
        input: storage("@URL@/in")
        output: storage("@URL@/middle")
        shell: "mkdir -p {output}; cp {input} {output}/x"
    rule read:
        input: storage("@URL@/middle")
        output: storage("@URL@/last")
        shell: "cat {input}/x > {output}"
"""


@pytest.mark.parametrize(
    ("kind", "place"),
    [pytest.param("file", "apart", marks=pytest.mark.full), ("directory", "shared")],
)
def test_what_depends_on_a_remade_output_is_remade_after_a_checkpoint(counted, kind, place):
    text = REMADE
    if kind == "file":
        text = REMADE.replace("mkdir -p {output}; ", "").replace("}/x", "}")
        counted.make_remote("middle", b"old", mtime=1_600_000_000)
    else:
        counted.make_remote("middle/x", b"old", mtime=1_600_000_000)
        counted.make_remote("middle/.snakemake_timestamp", mtime=1_600_000_000)
    counted.make_remote("last", b"old", mtime=1_600_000_001)
    counted.make_remote("in", b"new", mtime=1_600_000_002)
    counted.write(text)
    outcome = counted.submit() if place == "shared" else submit_apart(counted, jobs=1)
    outcome.succeeded()
    assert counted.remote_path("last").read_bytes() == b"new"
