"""What Snakemake offers beyond inputs and outputs, each in a real run with remote files."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import time
from pathlib import Path

import pytest

pytest.importorskip("snakemake")

from snakemake_storage_plugin_pyremotedata.sidecar import find_checksum

from .sites import needs_lftp
from .snakemake_workflow import Workflow, kill_group, temporaries
from .waiting import wait_until


def test_a_checkpoint_decides_over_remote_files_and_groups_of_jobs_make_them(workflow):
    for name in ("a", "b"):
        workflow.make_remote(f"in/{name}", name.encode() * 1000)
    workflow.write(
        """
        rule all:
            input: storage("@URL@/joined")
        checkpoint split:
            input: storage(expand("@URL@/in/{n}", n=["a", "b"]))
            output: storage("@URL@/parts")
            shell: "mkdir {output}; for f in {input}; do cp $f {output}/$(basename $f).part; done"
        def doubled(wildcards):
            checkpoints.split.get()
            names = glob_wildcards(storage("@URL@/parts/{n,[^/]+}.part")).n
            return [storage(f"@URL@/doubled/{n}") for n in sorted(names)]
        rule double:
            input: storage("@URL@/in/{n}")
            output: temp("{n}.double")
            group: "pair"
            shell: "cat {input} {input} > {output}"
        rule publish:
            input: "{n}.double"
            output: storage("@URL@/doubled/{n}")
            group: "pair"
            shell: "cp {input} {output}"
        rule join:
            input: doubled
            output: storage("@URL@/joined")
            shell: "cat {input} > {output}"
        """
    )
    workflow.submit().succeeded()
    assert workflow.remote_path("joined").read_bytes() == b"a" * 2000 + b"b" * 2000
    assert workflow.remote_path("parts/a.part").read_bytes() == b"a" * 1000
    assert "Nothing to be done" in workflow.run().succeeded().text


def test_files_that_stay_and_files_that_never_come(workflow):
    workflow.make_remote("in", b"kept\n")
    workflow.make_remote("far", b"never fetched\n")
    workflow.write(
        """
        rule all:
            input: "out", "query"
        rule keep:
            input: storage("@URL@/in", keep_local=True)
            output: "out"
            shell: "cp {input} {output}"
        rule name:
            input: storage("@URL@/far", retrieve=False)
            output: "query"
            shell: "echo {input} > {output}"
        """
    )
    workflow.run().succeeded()
    assert workflow.local_copy("in").read_bytes() == b"kept\n"
    assert not workflow.local_copy("far").exists()
    assert workflow.path("query").read_text().strip() == workflow.server.url(
        f"{workflow.remote}/far"
    )


def test_a_new_remote_file_is_noticed_where_the_copy_of_the_old_one_stays(workflow):
    workflow.make_remote("in", b"old\n", mtime=1_700_000_000)
    workflow.write_copy('storage("@URL@/in", keep_local=True)', '"out"')
    workflow.run().succeeded()
    os.utime(workflow.path("out"), (1_700_000_001, 1_700_000_001))
    assert "Nothing to be done" in workflow.run().succeeded().text
    workflow.make_remote("in", b"new\n", mtime=1_700_000_002)
    workflow.run().succeeded()
    assert workflow.path("out").read_bytes() == b"new\n"
    assert workflow.local_copy("in").read_bytes() == b"new\n"


# A copy, a link into the cache.
@pytest.mark.parametrize("cache", [pytest.param("no", marks=pytest.mark.full), "yes"])
def test_a_remote_file_of_an_earlier_time_is_noticed_where_the_copy_of_another_stays(
    workflow, cache
):
    workflow.make_remote("in", b"old\n", mtime=1_700_000_002)
    through = ("--storage-pyremotedata-node-cache", cache)
    workflow.write_copy('access.sequential(storage("@URL@/in", keep_local=True))', '"out"')
    workflow.run(*through).succeeded()
    workflow.make_remote("in", b"new\n", mtime=1_700_000_001)
    workflow.run(*through, "--forceall").succeeded()
    assert workflow.path("out").read_bytes() == b"new\n"
    assert workflow.local_copy("in").read_bytes() == b"new\n"


def test_a_report_holds_remote_files(workflow):
    workflow.make_remote("in", b"figure of merit\n")
    workflow.write_copy('storage("@URL@/in")', 'report(storage("@URL@/out.txt"))')
    workflow.run().succeeded()
    workflow.run("--report", "report.zip").succeeded()
    assert workflow.path("report.zip").stat().st_size > 0


PICTURE = """
    storage:
        provider="pyremotedata",
        report="seen/report.jsonl",
    rule all:
        input: [storage(f"@URL@/out/{n}") for n in range(2)]
    rule one:
        input: storage("@URL@/in/{n}")
        output: storage("@URL@/out/{n}")
        shell: "cp {input} {output}"
"""


def test_transfers_and_jobs_are_written_down_and_drawn(workflow):
    pytest.importorskip("matplotlib")
    for n in range(2):
        workflow.make_remote(f"in/{n}", b"x" * 1000)
    workflow.write(PICTURE)
    for _ in range(2):  # each run begins anew
        workflow.run("--forceall").succeeded()
        report = workflow.path("seen/report.jsonl").read_text()
        lines = [json.loads(line) for line in report.splitlines()]
        kinds = sorted(line["kind"] for line in lines)
        assert kinds.count("job") == 3
        assert kinds.count("stored") == 2
        assert kinds.count("retrieved") + kinds.count("ahead") == 2
        moved = [line for line in lines if line["kind"] != "job"]
        assert {line["bytes"] for line in moved} == {1000}
        assert all(line["start"] <= line["stop"] for line in lines)
    assert workflow.path("seen/report.png").read_bytes().startswith(b"\x89PNG")


# Not 20001 in 10000 s.
@pytest.mark.parametrize("limit", ["2.0001", pytest.param("2", marks=pytest.mark.full)])
def test_transfers_begin_no_faster_than_the_user_wants_them(workflow, limit):
    for n in range(5):
        workflow.make_remote(f"in/{n}", b"x")
    workflow.write(
        """
        rule all:
            input: expand("out/{n}", n=range(5))
        rule copy:
            input: storage("@URL@/in/{n}")
            output: "out/{n}"
            shell: "cp {input} {output}"
        """
    )
    more = ("--storage-pyremotedata-report", "report.jsonl")
    limited = ("--storage-pyremotedata-max-requests-per-second", limit)
    workflow.run(*more, *limited, cores=5).succeeded()
    lines = [json.loads(line) for line in workflow.path("report.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines if line["kind"] != "job"] == ["retrieved"] * 5
    begun = sorted(line["start"] for line in lines if line["kind"] == "retrieved")
    assert begun[-1] - begun[0] > 1.7  # four times half a second, and some for clocks


def test_a_report_that_cannot_be_written_stops_no_run(workflow):
    for n in range(2):
        workflow.make_remote(f"in/{n}", b"x")
    workflow.write(PICTURE.replace("seen/report.jsonl", "/proc/none/report.jsonl"))
    text = workflow.run().succeeded().text
    assert text.count("The report cannot be written") == 1


def test_a_picture_that_cannot_be_drawn_stops_no_run(workflow):
    for n in range(2):
        workflow.make_remote(f"in/{n}", b"x")
    workflow.write(PICTURE)
    workflow.path("matplotlib").mkdir()
    workflow.path("matplotlib/__init__.py").write_text("raise AttributeError('made for another')")
    assert "report.jsonl: made for another" in workflow.run().succeeded().text


def test_what_is_read_once_from_begin_to_end_is_a_link_into_the_cache(workflow):
    data = os.urandom(100_000)
    for name in ("once", "random"):
        workflow.make_remote(name, data)
    workflow.write(
        """
        rule all:
            input: "seen.once", "seen.random"
        rule read:
            input: lambda w: getattr(access, KINDS[w.n])(storage(f"@URL@/{w.n}"))
            output: "seen.{n}"
            shell: "cat {input} > {output}; stat -c %F {input} >> {output}"
        KINDS = {"once": "sequential", "random": "random"}
        """
    )
    workflow.run("--storage-pyremotedata-node-cache", "yes").succeeded()
    assert workflow.path("seen.once").read_bytes() == data + b"symbolic link\n"
    assert workflow.path("seen.random").read_bytes() == data + b"regular file\n"
    assert workflow.remote_path("once").read_bytes() == data
    assert not os.path.lexists(workflow.local_copy("once"))
    assert not temporaries(workflow.directory)


def test_a_job_that_has_ended_makes_room_in_the_cache_for_the_next(workflow):
    for name in ("a", "b"):
        workflow.make_remote(name, name.encode() * 100_000)
    workflow.env |= {"PYREMOTEDATA_CACHE_BYTES": "150000", "PYREMOTEDATA_TIMEOUT": "10"}
    workflow.write(
        """
        rule all:
            input: "seen.a", "seen.b"
        rule read:
            input: access.sequential(storage("@URL@/{n}"))
            output: "seen.{n}"
            shell: "cat {input} > {output}"
        """
    )
    text = workflow.run("--storage-pyremotedata-node-cache", "yes", cores=1).succeeded().text
    assert "Not through the node's cache" not in text
    assert workflow.path("seen.b").read_bytes() == b"b" * 100_000


@pytest.mark.full
def test_a_link_that_a_killed_run_has_left_leads_to_its_file_all_through_the_next(workflow):
    for name in ("a", "b"):
        workflow.make_remote(name, name.encode() * 100_000)
    workflow.env |= {"PYREMOTEDATA_CACHE_BYTES": "150000", "PYREMOTEDATA_TIMEOUT": "5"}
    workflow.write(
        """
        rule all:
            input: "seen", "filled"
        rule look:
            input: access.sequential(storage("@URL@/a"))
            output: "seen"
            shell: "touch begun; for i in $(seq 300); do test -e filled && break; sleep 0.1; done;"
                   " cat {input} > {output}"
        rule fill:
            input: access.sequential(storage("@URL@/b"))
            output: "filled"
            shell: "test -s {input} && touch {output}"
        """
    )
    cache = ("--storage-pyremotedata-node-cache", "yes")
    with workflow.start("seen", *cache) as process:
        wait_until(workflow.path("begun").exists)
        kill_group(process)
    workflow.run("--unlock").succeeded()
    workflow.run("--rerun-incomplete", *cache).succeeded()
    assert workflow.path("seen").read_bytes() == b"a" * 100_000


@pytest.mark.parametrize(
    "text",
    ["@", "@  x.bin\n", f"{'0' * 64} *other\n@ *./x.bin\n", "SHA256 (x.bin) = @\n", "\n@ x.bin"],
)
def test_a_checksum_is_found_however_it_was_written(text):
    wanted = "ab" * 32
    assert find_checksum(text.replace("@", wanted), "x.bin", "sha256") == wanted
    assert find_checksum(text.replace("@", wanted), "x.bin", "md5") is None
    assert find_checksum(text.replace("@", "not one"), "x.bin", "sha256") is None


def test_the_page_for_users_of_erda_leads_from_a_share_link_to_a_run(miglike, tmp_path):
    page = (Path(__file__).parents[1] / "docs" / "erda.md").read_text()
    config, account = re.findall(r"```\n(Host erda\n.*?)```", page, re.DOTALL)
    assert "IdentitiesOnly yes" in account
    workflow = Workflow(tmp_path / "work", miglike, "reads")
    (link,) = re.findall(r"printf 'password: (\w+)", page)
    config = config.replace("io.erda.au.dk", "127.0.0.1").replace("2222", str(miglike.port))
    config = config.replace(link, miglike.user)
    workflow.path("ssh_config").write_text(config + miglike.ssh_config.read_text())
    workflow.path("config.yaml").write_text(f"password: {miglike.password}\n")
    workflow.path("config.yaml").chmod(0o600)
    workflow.env["PYREMOTEDATA_SSH_CONFIG"] = str(workflow.path("ssh_config"))
    workflow.env["PYREMOTEDATA_CONFIG"] = str(workflow.path("config.yaml"))
    workflow.make_remote("a.fastq.gz", gzip.compress(b"1\n2\n"))
    workflow.make_remote("b.fastq.gz", gzip.compress(b"1\n"))
    (snakefile,) = re.findall(r"```python\n(# Snakefile.*?)```", page, re.DOTALL)
    workflow.write(snakefile)
    workflow.run().succeeded()
    assert (miglike.root / "counts/a.txt").read_text().strip() == "2"
    assert (miglike.root / "counts/b.txt").read_text().strip() == "1"


@needs_lftp
@pytest.mark.parametrize("kind", ["ftp", "ftps"])
def test_files_of_an_ftp_server_are_inputs_and_outputs(request, tmp_path, kind):
    server = request.getfixturevalue(kind)
    workflow = Workflow(tmp_path / "work", server, f"d{time.monotonic_ns()}")
    workflow.env["PYREMOTEDATA_PASSWORD"] = server.password
    workflow.make_remote("in/a b.txt", b"hello\n")
    workflow.write(
        """
        rule copy:
            input: storage("@URL@/in/a%20b.txt")
            output: storage("@URL@/out/c.txt")
            shell: "cat {input:q} {input:q} > {output}"
        """
    )
    trust = ("--storage-pyremotedata-ca-file", str(server.certificate)) if kind == "ftps" else ()
    text = workflow.run(*trust).succeeded().text
    assert (server.root / workflow.remote / "out/c.txt").read_bytes() == b"hello\nhello\n"
    assert server.password not in text


@pytest.mark.parametrize(
    ("ensured", "spoil", "said"),
    [
        ("non_empty=True", ":", "unexpected empty output files"),
        (
            f'sha256="{hashlib.sha256(b"made").hexdigest()}"',
            "printf other",
            "checksums that differ from the expected ones",
        ),
    ],
    ids=["non_empty", "checksum"],
)
def test_what_is_ensured_of_a_remote_output_is_looked_for_in_what_the_job_has_made(
    workflow, ensured, spoil, said
):
    text = """
        rule ensured:
            output: ensure(storage("@URL@/out.txt"), @ENSURED@)
            shell: "@MAKE@ > {output}"
    """
    workflow.write(text, ENSURED=ensured, MAKE="printf made")
    workflow.run().succeeded()
    assert workflow.remote_path("out.txt").read_bytes() == b"made"
    workflow.write(text, ENSURED=ensured, MAKE=spoil)
    workflow.run("--forceall").failed(said)
    assert not workflow.remote_path("out.txt").exists()
