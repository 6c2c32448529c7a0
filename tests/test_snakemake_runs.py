"""Real runs of ``snakemake`` with remote inputs and outputs, against a real server."""

from __future__ import annotations

import os
import re
from urllib.parse import quote

import pytest

pytest.importorskip("snakemake")

from .snakemake_workflow import temporaries

WILDCARDS = """
    rule all:
        input: "total.txt", storage("@URL@/out/b.up")
    rule upper:
        input: storage("@URL@/in/{sample}.txt")
        output: storage("@URL@/out/{sample}.up")
        shell: "tr a-z A-Z < {input:q} > {output:q}"
    rule total:
        input: storage(expand("@URL@/out/{s}.up", s=["a", "b", "c"]))
        output: "total.txt"
        shell: "cat {input:q} > {output}"
"""


def test_wildcards_lead_from_remote_inputs_to_remote_outputs(workflow):
    for sample in "abc":
        workflow.make_remote(f"in/{sample}.txt", f"sample {sample}\n".encode() * 1000)
    workflow.write(WILDCARDS)
    workflow.run().succeeded()
    expected = {s: f"SAMPLE {s.upper()}\n".encode() * 1000 for s in "abc"}
    for sample in "abc":
        assert workflow.remote_path(f"out/{sample}.up").read_bytes() == expected[sample]
    assert workflow.path("total.txt").read_bytes() == b"".join(expected.values())
    assert "Nothing to be done" in workflow.run().succeeded().text
    workflow.make_remote("in/b.txt", b"new b\n")
    again = workflow.run().succeeded()
    assert workflow.remote_path("out/b.up").read_bytes() == b"NEW B\n"
    assert workflow.remote_path("out/a.up").read_bytes() == expected["a"]
    assert re.search(r"^upper\s+1$", again.text, re.M), again.text


def test_names_that_need_care_reach_the_job_and_the_server(workflow):
    names = ["a b", "100%41", "a#b?c", "é {x}", "it's; $(touch x) &"]
    data = {name: os.urandom(1000) for name in names}
    for name, content in data.items():
        workflow.make_remote(f"in/{name}.bin", content)
    out = workflow.server.url(f"{workflow.remote}/out")
    workflow.write(
        """
        rule all:
            input: [storage(url) for url in @OUT@]
        rule copy:
            input: storage("@URL@/in/{name}.bin")
            output: storage("@URL@/out/{name}.bin")
            shell: "cp {input:q} {output:q}"
        """,
        OUT=repr([f"{out}/{quote(name)}.bin" for name in names]),
    )
    workflow.run().succeeded()
    for name, content in data.items():
        assert workflow.remote_path(f"out/{name}.bin").read_bytes() == content
    assert not workflow.path("x").exists()


def test_remote_directories_are_outputs_and_inputs(workflow):
    workflow.write(
        """
        rule all:
            input: "list.txt", "copy.done"
        rule make:
            output: storage("@URL@/tree")
            shell: "mkdir -p {output}/deep/er {output}/empty && echo 1 > {output}/1 && "
                   "touch {output}/deep/none && head -c 3000000 /dev/zero > {output}/deep/er/0"
        rule list:
            input: storage("@URL@/tree")
            output: "list.txt"
            shell: "cd {input} && find . -mindepth 1 ! -name .snakemake_timestamp "
                   "-printf '%y %P %s\\n' | grep -v '^d.* [0-9]*$' | sort > $OLDPWD/{output}; "
                   "find . -type d | sort >> $OLDPWD/{output}"
        rule copy:
            input: storage("@URL@/given")
            output: touch("copy.done")
            shell: "cmp {input}/sub/x @X@"
        """,
        X=workflow.make_remote("given/sub/x", os.urandom(10_000)),
    )
    workflow.run().succeeded()
    tree = workflow.remote_path("tree")
    assert (tree / "1").read_bytes() == b"1\n"
    assert (tree / "deep/er/0").read_bytes() == bytes(3_000_000)
    assert (tree / "deep/none").read_bytes() == b""
    assert (tree / "empty").is_dir()
    assert workflow.path("list.txt").read_text().splitlines() == [
        *("f 1 2", "f deep/er/0 3000000", "f deep/none 0"),
        *(".", "./deep", "./deep/er", "./empty"),
    ]
    assert "Nothing to be done" in workflow.run().succeeded().text
    assert not temporaries(workflow.directory) + temporaries(workflow.server.root / workflow.remote)


SIXTY = """
    rule join:
        input: storage(expand("@URL@/in/{n}", n=range(60)))
        output: "joined"
        shell: "cat {input:q} > {output}"
"""


def test_the_inputs_of_a_job_are_retrieved_at_the_same_time(counted):
    data = [os.urandom(20_000) for _ in range(60)]
    for n, content in enumerate(data):
        counted.make_remote(f"in/{n}", content)
    counted.write(SIXTY)
    counted.run().succeeded()
    assert counted.path("joined").read_bytes() == b"".join(data)
    assert counted.server.most_open() >= 5


def test_a_dry_run_asks_little_of_the_server(counted):
    for n in range(60):
        counted.make_remote(f"in/{n}", b"x")
    counted.write(SIXTY)
    counted.run("-n").succeeded()
    kinds = counted.server.request_kinds()
    assert kinds.get("stat", 0) + kinds.get("lstat", 0) <= 4, kinds
    assert kinds.get("opendir", 0) <= 2, kinds
    assert counted.server.logins() <= 2


def test_neighbouring_directories_are_listed_at_the_same_time(counted):
    for n in range(60):
        counted.make_remote(f"in/{n % 12}/{n}", b"x")
    urls = '[f"@URL@/in/{n % 12}/{n}" for n in range(60)]'
    counted.write(SIXTY.replace('expand("@URL@/in/{n}", n=range(60))', urls))
    counted.run("-n").succeeded()
    kinds = counted.server.request_kinds()
    assert kinds.get("stat", 0) + kinds.get("lstat", 0) <= 2, kinds
    assert kinds["opendir"] == 12, kinds
    assert counted.server.most_open("opendir") >= 5


def test_files_with_directories_of_their_own_are_asked_for_once_each(counted):
    for n in range(20):
        counted.make_remote(f"in/{n}/x", b"x")
    counted.write(SIXTY.replace("in/{n}", "in/{n}/x").replace("60", "20"))
    counted.run("-n").succeeded()
    kinds = counted.server.request_kinds()
    assert kinds.get("stat", 0) + kinds.get("lstat", 0) + kinds.get("opendir", 0) <= 22, kinds


def test_questions_do_not_grow_with_the_rounds_of_scheduling(counted):
    for n in range(30):
        counted.make_remote(f"in/{n}", b"x" * n)
    counted.write(
        """
        rule all:
            input: expand("out/{n}", n=range(30))
        rule one:
            input: storage("@URL@/in/{n}")
            output: "out/{n}"
            shell: "cp {input} {output}"
        """
    )
    counted.run(cores=1).succeeded()
    for n in range(30):
        assert counted.path(f"out/{n}").read_bytes() == b"x" * n
    kinds = counted.server.request_kinds()
    assert kinds.get("stat", 0) + kinds.get("lstat", 0) <= 10, kinds
    assert kinds.get("opendir", 0) <= 3, kinds


AHEAD = """
    storage:
        provider="pyremotedata",
        keep_local=False,
        prefetch="@PREFETCH@",
    rule all:
        input: expand("out/{n}", n=range(24))
    rule one:
        input: storage("@URL@/in/{n}")
        output: "out/{n}"
        shell: "sleep 0.3; cp {input} {output}"
"""


def make_inputs_for_ahead(counted):
    data = {f"{n}": os.urandom(100_000) for n in range(24)}
    for name, content in data.items():
        counted.make_remote(f"in/{name}", content)
    return data


def test_inputs_are_fetched_while_other_jobs_compute(counted):
    data = make_inputs_for_ahead(counted)
    counted.write(AHEAD, PREFETCH="1G")
    text = counted.run().succeeded().text
    for name, content in data.items():
        assert counted.path(f"out/{name}").read_bytes() == content
    # Every round knows what comes next; only the first one finds nothing there.
    assert text.count("fetched ahead") >= 12, text
    assert re.search(r"Storage pyremotedata: 24 files \(2.29 MiB\) retrieved, \d+ of them", text)
    assert counted.server.requests("open") == 24
    assert not temporaries(counted.directory)


@pytest.mark.full
def test_nothing_is_fetched_ahead_when_that_is_switched_off(counted):
    make_inputs_for_ahead(counted)
    counted.write(AHEAD, PREFETCH="0")
    text = counted.run().succeeded().text
    assert "fetched ahead" not in text
    assert "Storage pyremotedata: 24 files (2.29 MiB) retrieved; " in text


def test_targets_that_no_job_reads_are_not_fetched_ahead(counted):
    for n in range(4):
        counted.make_remote(f"in/{n}", b"x", mtime=1_700_000_000)
        if n:
            counted.make_remote(f"out/{n}", b"x", mtime=1_700_000_001)
    counted.write(
        """
        rule all:
            input: storage(expand("@URL@/out/{n}", n=range(4)))
        rule copy:
            input: storage("@URL@/in/{n}")
            output: storage("@URL@/out/{n}")
            shell: "cp {input} {output}"
        """
    )
    counted.run().succeeded()
    assert counted.remote_path("out/0").read_bytes() == b"x"
    # One that is read, and one that is written.
    assert counted.server.requests("open") == 2


def test_a_registered_provider_takes_its_settings_from_the_snakefile(workflow):
    workflow.make_remote("in.txt", b"hello\n")
    workflow.env.clear()
    workflow.write(
        """
        storage near:
            provider="pyremotedata",
            ssh_config="@CONFIG@",
            connections=1,
            timeout=20,
        rule copy:
            input: storage.near("@URL@/in.txt")
            output: storage.near("@URL@/out.txt")
            shell: "cp {input} {output}"
        """,
        CONFIG=workflow.server.ssh_config,
    )
    workflow.run().succeeded()
    assert workflow.remote_path("out.txt").read_bytes() == b"hello\n"


def test_our_own_scheme_names_the_provider(workflow):
    workflow.make_remote("in.txt", b"hello\n")
    workflow.write_copy('storage("pyremotedata+@URL@/in.txt")', '"out.txt"')
    workflow.run().succeeded()
    assert workflow.path("out.txt").read_bytes() == b"hello\n"


def test_wildcards_are_globbed_on_the_server(workflow):
    for name in ("a 1", "b%41", "sub/c", "sub/deep/d", "e.txt"):
        workflow.make_remote(f"in/{name}.bin")
    workflow.write(
        """
        flat, = glob_wildcards(storage("@URL@/in/{name,[^/]+}.bin"))
        every, = glob_wildcards(storage("@URL@/in/{name}.bin"))
        none, = glob_wildcards(storage("@URL@/nowhere/{name}.bin"))
        rule all:
            output: "found"
            params: found=repr([sorted(flat), sorted(every), none])
            shell: "echo {params.found:q} > {output}"
        """
    )
    workflow.run().succeeded()
    flat = ["a 1", "b%2541", "e.txt"]
    every = sorted([*flat, "sub/c", "sub/deep/d"])
    assert workflow.path("found").read_text().strip() == repr([flat, every, []])


def test_touch_renews_remote_outputs(workflow):
    workflow.make_remote("in.txt", b"new\n", mtime=2_000_000)
    old = workflow.make_remote("out.txt", b"kept\n", mtime=1_000_000)
    workflow.write_copy('storage("@URL@/in.txt")', 'storage("@URL@/out.txt")')
    workflow.run("--touch").succeeded()
    assert old.read_bytes() == b"kept\n"
    assert old.stat().st_mtime > 2_000_000
    assert "Nothing to be done" in workflow.run().succeeded().text


def test_a_remote_directory_given_for_a_file_output_is_not_deleted(workflow):
    precious = workflow.make_remote("data/precious.txt", b"years of work\n")
    workflow.write(
        """
        rule wrong:
            output: storage("@URL@/data")
            shell: "echo > {output}"
        """
    )
    workflow.run("--forceall").failed("/data: it is a directory", "not made")
    assert precious.read_bytes() == b"years of work\n"


def test_parsing_a_snakefile_opens_no_connection(counted):
    counted.write(
        """
        rule all:
            input: storage("@URL@/in/a.txt"), "out/b.txt"
        rule one:
            input: storage("@URL@/in/{s}.txt")
            output: "out/{s}.txt"
            shell: "cp {input} {output}"
        """
    )
    assert "one" in counted.run("--list-rules").succeeded().text
    assert counted.server.logins() == 0


NESTED = """
    rule all:
        input: storage("@URL@/listing.txt")
    checkpoint split:
        input: storage("@URL@/in.txt")
        output: storage("@URL@/parts")
        shell: "mkdir {output}; for part in a b c; do cp {input} {output}/$part; done"
    rule one:
        input: storage("@URL@/parts/{part}")
        output: storage("@URL@/done/{part}")
        shell: "cp {input} {output}"
    def parts(_wildcards):
        checkpoints.split.get()
        found = glob_wildcards(storage("@URL@/parts/{part,[a-z]}")).part
        return storage(expand("@URL@/done/{part}", part=found))
    rule listing:
        input: storage("@URL@/parts"), parts
        output: storage("@URL@/listing.txt")
        shell: "ls {input[0]} > {output}"
"""


def test_a_directory_is_whole_for_a_job_after_others_have_used_files_in_it(workflow):
    workflow.make_remote("in.txt", b"in\n")
    workflow.write(NESTED)
    workflow.run().succeeded()
    assert workflow.remote_path("listing.txt").read_text() == "a\nb\nc\n"
    workflow.remote_path("listing.txt").unlink()
    workflow.remote_path("done/b").unlink()
    workflow.run().succeeded()
    assert workflow.remote_path("listing.txt").read_text() == "a\nb\nc\n"
    assert not [path for path in workflow.local_copy("").rglob("*") if path.is_file()]


@pytest.mark.parametrize("order", ["directory first", "file first"])
def test_a_remote_directory_and_a_file_in_it_are_inputs_of_one_run(workflow, order):
    for name in "abc":
        workflow.make_remote(f"in/{name}", name.encode())
    workflow.write(
        """
        rule directory:
            input: storage("@URL@/in"), @BEFORE_DIRECTORY@
            output: "listing.txt"
            shell: "ls {input[0]} > {output}"
        rule before:
            input: storage("@URL@/in")
            output: "before.txt"
            shell: "ls {input} > {output}"
        rule one:
            input: storage("@URL@/in/a"), @BEFORE_ONE@
            output: "one.txt"
            shell: "cp {input[0]} {output}"
        """,
        BEFORE_DIRECTORY='"one.txt"',
        BEFORE_ONE='"before.txt"' if order == "directory first" else "[]",
    )
    workflow.run().succeeded()
    assert workflow.path("one.txt").read_text() == "a"
    assert workflow.path("listing.txt").read_text() == "a\nb\nc\n"
    assert not [path for path in workflow.local_copy("").rglob("*") if path.is_file()]


def test_a_directory_of_which_an_earlier_run_has_kept_some_files_is_retrieved(workflow):
    for name in "ab":
        workflow.make_remote(f"in/{name}", name.encode())
    workflow.write(
        """
        rule one:
            input: storage("@URL@/in/a", keep_local=True)
            output: "one.txt"
            shell: "cp {input} {output}"
        rule directory:
            input: storage("@URL@/in")
            output: "listing.txt"
            shell: "ls {input} > {output}"
        """
    )
    workflow.run("one.txt").succeeded()
    assert workflow.local_copy("in/a").exists()
    workflow.run("listing.txt").succeeded()
    assert workflow.path("listing.txt").read_text() == "a\nb\n"
