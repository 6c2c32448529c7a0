"""What the Snakemake plugin makes here: files fetched ahead, copies, workspaces, notes."""

from __future__ import annotations

import asyncio
import concurrent.futures
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("snakemake")

from snakemake_storage_plugin_pyremotedata import fetching
from snakemake_storage_plugin_pyremotedata.notes import Notes
from snakemake_storage_plugin_pyremotedata.prefetch import fits
from snakemake_storage_plugin_pyremotedata.waiting import blocking, run_now
from snakemake_storage_plugin_pyremotedata.workspace import Workspace, sweep

from pyremotedata_core import RemoteURL, Stat, part
from pyremotedata_core.jobs import SEGMENT_BYTES

from .snakemake_workflow import temporaries


def ahead_of(bench, *names):
    """Let a provider learn that it retrieves, and what is wanted next."""

    async def learn():
        await bench.object("first").managed_retrieve()
        for name in names:
            await bench.object(name).managed_size()

    bench.make("first", b"first")
    asyncio.run(learn())
    return bench.provider.prefetch


def wait_for_prefetch(prefetch):
    concurrent.futures.wait([ahead.future for ahead in prefetch._ahead.values()], timeout=30)


def test_what_was_fetched_ahead_is_retrieved_without_the_server(counting):
    data = os.urandom(100_000)
    counting.make("a", data, mtime=1_700_000_000)
    wait_for_prefetch(ahead_of(counting, "a"))
    file = counting.object("a")
    assert not file.local_path().exists()
    requests = counting.server.requests()
    asyncio.run(file.managed_retrieve())
    assert counting.server.requests() == requests
    assert file.local_path().read_bytes() == data
    assert file.local_path().stat().st_mtime == 1_700_000_000
    # Its place is in the workspace no more, and a second retrieval asks the server.
    asyncio.run(file.managed_retrieve())
    assert counting.server.requests("open") == 3


def test_nothing_is_fetched_ahead_before_something_is_retrieved(counting):
    counting.make("a", b"x")
    asyncio.run(counting.object("a").managed_size())
    assert not counting.provider.prefetch.holds(counting.object("a").url)


def test_what_an_earlier_run_has_begun_is_continued_and_not_fetched_ahead(bench):
    data = os.urandom(3 * SEGMENT_BYTES)
    bench.make("a", data, mtime=1_700_000_000)
    file = bench.object("a")
    file.local_path().parent.mkdir(parents=True)
    begun = part.Part(str(file.local_path()))
    begun.resume(str(file.url), Stat("file", len(data), 1_700_000_000), SEGMENT_BYTES)
    begun.write(memoryview(data), 0)
    begun.note(0)
    begun.keep()
    prefetch = ahead_of(bench, "a")
    assert not prefetch.holds(file.url)
    asyncio.run(file.managed_retrieve())
    assert file.local_path().read_bytes() == data
    assert temporaries(file.local_path().parent) == []


def test_a_file_that_changed_after_it_was_fetched_ahead_is_fetched_again(bench):
    bench.make("a", b"old", mtime=1_600_000_000)
    wait_for_prefetch(ahead_of(bench, "a"))
    bench.make("a", b"newer", mtime=1_700_000_000)
    file = bench.object("a")
    bench.provider.lookup.memory.forget(file.url)
    asyncio.run(file.managed_retrieve())
    assert file.local_path().read_bytes() == b"newer"


def test_a_failure_ahead_does_not_fail_the_job_that_can_be_served(bench):
    path = bench.make("a", b"x", mtime=1_700_000_000)
    file = bench.object("a")
    prefetch = ahead_of(bench)
    assert file.size() == 1
    path.rename(path.with_name("away"))
    asyncio.run(file.managed_size())
    wait_for_prefetch(prefetch)
    assert prefetch.holds(file.url)
    path.with_name("away").rename(path)
    asyncio.run(file.managed_retrieve())
    assert file.local_path().read_bytes() == b"x"


def test_files_ahead_make_way_and_leave_nothing(bench):
    bench.make("a", b"x" * 1000)
    prefetch = ahead_of(bench, "a")
    wait_for_prefetch(prefetch)
    assert temporaries(bench.local)
    assert prefetch.give_way()
    assert not prefetch.holds(bench.object("a").url)
    assert [path for path in bench.local.rglob("*") if path.is_file()] == [
        bench.object("first").local_path()
    ]
    prefetch.close()
    assert not temporaries(bench.local)


def test_a_copy_from_the_cache_is_not_swept_by_another_process_before_it_has_its_name(
    bench_with, monkeypatch
):
    bench = bench_with(node_cache="yes")
    bench.make("a", b"data")
    file = bench.object("a")
    in_thread = fetching.in_thread

    def copy_and_sweep(*work):
        copied = in_thread(*work)
        concurrent.futures.wait([copied], timeout=30)
        # As another process does with its first download into the directory.
        part.sweep(str(file.local_path().parent))
        return copied

    monkeypatch.setattr(fetching, "in_thread", copy_and_sweep)
    asyncio.run(file.managed_retrieve())
    assert file.local_path().read_bytes() == b"data"
    assert not temporaries(bench.local)


def test_a_link_that_a_killed_run_has_left_keeps_its_file_from_the_first_question_on(
    bench_with, monkeypatch
):
    monkeypatch.setenv("PYREMOTEDATA_CACHE_BYTES", "150000")
    monkeypatch.setenv("PYREMOTEDATA_TIMEOUT", "1")

    def run(ask, name):
        bench = bench_with(node_cache="yes")
        monkeypatch.setattr(bench.provider.fetching, "_links", lambda: True)
        assert ask(bench)
        file = bench.object(name)
        file.is_ondemand_eligible = True
        asyncio.run(file.managed_retrieve())
        bench.provider.fetching._linked.clear()  # as the process was killed
        return file.local_path()

    bench = bench_with()
    for name in "ab":
        bench.make(name, name.encode() * 100_000)
    for ask in ("exists", "size", "mtime"):
        link = run(lambda _: True, "a")
        assert link.is_symlink()
        run(lambda bench, ask=ask: getattr(bench.object("a"), ask)(), "b")
        assert link.read_bytes() == b"a" * 100_000
        link.unlink()


def test_a_workspace_of_a_killed_process_is_removed_and_of_a_living_one_is_not(bench):
    code = (
        "import sys, os, pathlib\n"
        "from snakemake_storage_plugin_pyremotedata.workspace import Workspace\n"
        "w = Workspace(pathlib.Path(sys.argv[1])); (w.path / 'x').write_text('x')\n"
        "print(w.path, flush=True); sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(bench.local)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        made = Path(other.stdout.readline().strip())
        Workspace(bench.local).close()
        assert (made / "x").exists()
        other.kill()
    Workspace(bench.local).close()
    assert not made.exists()


def test_a_workspace_is_not_swept_by_another_process_before_it_is_locked(tmp_path, monkeypatch):
    lock = fcntl.flock

    def sweep_and_lock(descriptor, how):
        monkeypatch.setattr(fcntl, "flock", lock)
        sweep(tmp_path)
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", sweep_and_lock)
    workspace = Workspace(tmp_path)
    assert workspace.path.is_dir()
    assert fcntl.flock is lock
    workspace.close()
    assert not list(tmp_path.iterdir())


def test_a_note_that_cannot_be_written_leaves_no_temporary_file(tmp_path):
    notes = Notes(tmp_path, None, None)
    url, stored = RemoteURL.parse("sftp://h/a"), Stat("file", 3, 1_700_000_000)
    note = notes._path(url)
    note.mkdir(parents=True)  # in its way
    run_now(notes.write(url, stored, "digest", blocking))
    assert list(tmp_path.rglob("*")) == [note.parent, note]
    note.rmdir()
    run_now(notes.write(url, stored, "digest", blocking))
    assert note.is_file()


@pytest.mark.parametrize(
    ("size", "held", "budget", "free", "answer"),
    [
        (10, 0, 10, 1000, True),
        (10, 1, 10, 1000, False),
        (10, 0, 100, 39, False),
        (10, 0, 100, 40, True),
        (10, 30, 100, 120, False),
    ],
)
def test_files_ahead_keep_within_their_budget_and_leave_space(size, held, budget, free, answer):
    assert fits(size, held, budget, free) is answer
