"""Commands and helpers of Snakemake that meet remote files, each in a real run."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("snakemake")

from .snakemake_workflow import temporaries


@pytest.fixture
def workflow(workflow):
    for name in ("a", "b", "c"):
        workflow.make_remote(f"in/{name}", f"{name}\n".encode(), mtime=1_600_000_000)
    return workflow


def test_functions_expansions_and_unpacked_dictionaries_name_remote_files(workflow):
    workflow.write(
        """
        def chosen(wildcards):
            return [storage(f"@URL@/in/{n}") for n in wildcards.names]
        def named(wildcards):
            return {"first": storage("@URL@/in/a"), "others": storage(["@URL@/in/b", "@URL@/in/c"])}
        rule all:
            input: storage("@URL@/out/cab"), storage("@URL@/out/named"), "out/each"
        rule chosen:
            input: chosen
            output: storage("@URL@/out/{names,[abc]+}")
            shell: "cat {input} > {output}"
        rule named:
            input: unpack(named)
            output: storage("@URL@/out/named")
            shell: "cat {input.others} {input.first} > {output}"
        rule each:
            input: storage(expand("@URL@/{where}/{n}", where=["in"], n=["b", "a"]))
            output: "out/each"
            run:
                with open(output[0], "w") as out:
                    for path in input:
                        out.write(open(path).read())
        """
    )
    workflow.run().succeeded()
    assert workflow.remote_path("out/cab").read_text() == "c\na\nb\n"
    assert workflow.remote_path("out/named").read_text() == "b\nc\na\n"
    assert workflow.path("out/each").read_text() == "b\na\n"


STEPS = """
    rule all:
        input: "out/last"
    rule first:
        input: "in/a"
        output: temp("out/passing"), protected("out/guarded")
        shell: "cp {input} {output[0]}; cp {input} {output[1]}"
    rule last:
        input: "out/passing", "out/guarded"
        output: "out/last"
        shell: "@SPOIL@; cat {input} > {output}"
"""


def run(workflow, *arguments):
    """Run Snakemake with all files on the server, but for those that are marked as local."""
    return workflow.run(*workflow.default_storage(), *arguments)


def test_temporary_and_protected_outputs_and_what_is_forced(workflow):
    workflow.write(STEPS, SPOIL="true")
    assert re.search("out/last.*missing", run(workflow, "--summary").succeeded().text)
    assert not workflow.remote_path("out").exists()
    run(workflow).succeeded()
    assert workflow.remote_path("out/last").read_text() == "a\na\n"
    assert workflow.remote_path("out/guarded").read_text() == "a\n"
    assert not workflow.remote_path("out/passing").exists()
    assert "Nothing to be done" in run(workflow).succeeded().text
    assert re.search("out/last.*ok", run(workflow, "--summary").succeeded().text)
    workflow.make_remote("in/a", b"new\n")
    workflow.remote_path("out/last").write_text("spoiled")
    run(workflow, "--forcerun", "first").succeeded()
    assert workflow.remote_path("out/last").read_text() == "new\nnew\n"
    assert not workflow.remote_path("out/passing").exists()
    assert workflow.remote_path("in/a").read_text() == "new\n"


def test_flags_within_storage_hold_for_the_remote_file(workflow):
    workflow.make_remote("in/a", b"a\n")
    workflow.write(
        """
        rule last:
            input: storage("@URL@/passing"), storage("@URL@/tree")
            output: storage("@URL@/last")
            shell: "cat {input[0]} {input[1]}/x > {output}"
        rule first:
            input: storage("@URL@/in/a")
            output: storage(temp("@URL@/passing")), storage(temp(directory("@URL@/tree")))
            shell: "cp {input} {output[0]}; mkdir {output[1]}; cp {input} {output[1]}/x"
        rule empty:
            output: storage(ensure("@URL@/empty", non_empty=True))
            shell: "touch {output}"
        """
    )
    workflow.run().succeeded()
    assert workflow.remote_path("last").read_text() == "a\na\n"
    assert not workflow.remote_path("passing").exists()
    assert not workflow.remote_path("tree").exists()
    assert workflow.run("empty").status == 1
    assert not workflow.remote_path("empty").exists()


def test_what_a_killed_run_has_begun_is_run_again(workflow):
    workflow.write(STEPS, SPOIL="touch begun; kill -9 $PPID")
    assert run(workflow).status not in (0, 1)
    assert workflow.path("begun").exists()
    workflow.write(STEPS, SPOIL="true")
    run(workflow, "--unlock").succeeded()
    run(workflow, "--rerun-incomplete").succeeded()
    assert workflow.remote_path("out/last").read_text() == "a\na\n"
    assert not temporaries(workflow.directory) + temporaries(workflow.remote_path(""))
