"""Storage objects of the Snakemake plugin, asked as Snakemake asks them, on a real server."""

from __future__ import annotations

import asyncio
import concurrent.futures
import fcntl
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("snakemake")

from snakemake.io import IOCache
from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_storage_plugins.exceptions import FileOrDirectoryNotFoundError
from snakemake_storage_plugin_pyremotedata import (
    StorageProvider,
    StorageProviderSettings,
    fetching,
    lookup,
    memory,
)
from snakemake_storage_plugin_pyremotedata.memory import NEGATIVE_S
from snakemake_storage_plugin_pyremotedata.notes import Notes
from snakemake_storage_plugin_pyremotedata.prefetch import fits
from snakemake_storage_plugin_pyremotedata.waiting import blocking, run_now
from snakemake_storage_plugin_pyremotedata.workspace import Workspace, sweep

from pyremotedata_core import RemoteURL, Stat, part

from .snakemake_workflow import temporaries
from .waiting import wait_until


class Bench:
    """A provider and the directory of a server that it works on."""

    def __init__(self, server, directory, local, relay=None, **settings):
        self.server, self.directory, self.relay = server, directory, relay
        self.local = local
        self.provider = StorageProvider(
            local_prefix=local,
            logger=logging.getLogger("test"),
            settings=StorageProviderSettings(ssh_config=str(server.ssh_config), **settings),
        )

    def object(self, relative):
        url = self.server.url(f"{self.directory}/{relative}")
        return self.provider.object(self.relay.url(url) if self.relay else url)

    def make(self, relative, data=b"", **options):
        return self.server.make(f"{self.directory}/{relative}", data, **options)

    def path(self, relative):
        return self.server.root / self.directory / relative


@pytest.fixture
def bench(sshd, remote_directory, tmp_path):
    made = Bench(sshd, remote_directory, tmp_path / "local")
    yield made
    made.provider.prefetch.close()
    made.provider.engine().close()


@pytest.fixture
def counted(sshd_factory, tmp_path):
    server = sshd_factory(log_requests=True)
    server.make_directory("d")
    made = Bench(server, "d", tmp_path / "local")
    yield made
    made.provider.prefetch.close()
    made.provider.engine().close()


@pytest.fixture
def relayed(sshd, remote_directory, tmp_path, relay_factory):
    relay = relay_factory(sshd.port)
    made = Bench(sshd, remote_directory, tmp_path / "local", relay, timeout="4")
    yield made
    made.provider.prefetch.close()
    made.provider.engine().close()


def test_a_file_is_asked_for_once_for_exists_mtime_and_size(counted):
    counted.make("a", b"12345", mtime=1_700_000_000)
    for _ in range(3):
        file = counted.object("a")
        assert (file.exists(), file.mtime(), file.size()) == (True, 1_700_000_000, 5)
        assert file.local_footprint() == 5
    assert counted.server.requests("stat") == 1


def test_what_another_process_makes_is_seen_a_little_later(bench):
    file = bench.object("late")
    assert not file.exists()
    bench.make("late", b"x")
    time.sleep(NEGATIVE_S)
    assert file.exists()


def test_what_we_store_and_remove_is_known_at_once(counted):
    file = counted.object("new/a")
    assert not file.exists()
    file.local_path().parent.mkdir(parents=True)
    file.local_path().write_bytes(b"data")
    os.utime(file.local_path(), (1_700_000_000.9, 1_700_000_000.9))
    file.store_object()
    asked = counted.server.requests("stat")
    assert (file.exists(), file.mtime(), file.size()) == (True, 1_700_000_000, 4)
    assert counted.server.requests("stat") == asked
    assert counted.object("new").exists()
    file.remove()
    file.remove()
    assert not file.exists()
    assert not counted.path("new/a").exists()


def test_a_file_that_has_changed_since_it_was_asked_about_is_retrieved_as_it_is(bench):
    bench.make("a", b"old", mtime=1_600_000_000)
    file = bench.object("a")
    assert file.size() == 3
    bench.make("a", b"newer", mtime=1_700_000_000)
    asyncio.run(file.managed_retrieve())
    assert file.local_path().read_bytes() == b"newer"
    assert file.local_path().stat().st_mtime == 1_700_000_000
    assert (file.size(), file.mtime()) == (5, 1_700_000_000)


def test_a_file_that_has_gone_since_it_was_asked_about_is_missing(bench):
    path = bench.make("a", b"x")
    file = bench.object("a")
    assert file.exists()
    path.unlink()
    with pytest.raises(FileOrDirectoryNotFoundError, match="not found in storage"):
        asyncio.run(file.managed_retrieve())
    assert not file.exists()
    assert not file.local_path().exists()


def test_a_failed_retrieval_leaves_no_outdated_copy(bench):
    file = bench.object("gone")
    file.local_path().parent.mkdir(parents=True)
    file.local_path().write_bytes(b"outdated")
    with pytest.raises(WorkflowError):
        asyncio.run(file.managed_retrieve())
    assert not file.local_path().exists()


def test_missing_files_are_told_by_size_and_mtime(bench):
    file = bench.object("gone")
    for ask in (file.managed_size, file.managed_mtime):
        with pytest.raises(FileOrDirectoryNotFoundError) as told:
            asyncio.run(ask())
        assert told.value.local_path == file.local_path()
        assert "\n" not in str(told.value)


def test_links_count_as_what_they_lead_to(bench):
    bench.make("real/file", b"12345")
    bench.path("link").symlink_to(bench.path("real/file"))
    bench.path("tree").symlink_to(bench.path("real"))
    bench.path("broken").symlink_to("nowhere")
    cache = IOCache(10)
    for name in ("link", "tree", "broken"):
        asyncio.run(bench.object(name).inventory(cache))
    link, tree = bench.object("link"), bench.object("tree")
    assert (link.exists(), link.size()) == (True, 5)
    assert (tree.exists(), tree.size(), tree.local_footprint()) == (True, 0, 5)
    assert not bench.object("broken").exists()
    assert cache.exists_in_storage.get(bench.object("broken").cache_key()) is not True
    link.retrieve_object()
    assert link.local_path().read_bytes() == b"12345"


def test_the_inventory_holds_the_whole_directory_from_its_second_file_on(counted):
    for n in range(100):
        counted.make(f"{n} %41", b"x" * n, mtime=1_700_000_000 + n)
    counted.server.make_directory("d/sub")
    cache = IOCache(10)
    asyncio.run(counted.object("0 %41").inventory(cache))
    assert not counted.server.requests("opendir")
    assert counted.object("0 %41").get_inventory_parent() not in (
        cache.exists_in_storage.has_inventory
    )
    asyncio.run(counted.object("1 %41").inventory(cache))
    asked = ("stat", "lstat", "opendir")  # the listing's handle may be closed later
    requests = [counted.server.requests(kind) for kind in asked]
    for n in range(100):
        key = counted.object(f"{n} %41").cache_key()
        assert cache.exists_in_storage[key]
        assert cache.size[key] == n
        assert cache.mtime[key].storage() == 1_700_000_000 + n
    sub = counted.object("sub")
    assert cache.exists_in_storage[sub.cache_key()]
    # Its time is that of the stamp in it, which the listing does not show.
    assert sub.cache_key() not in cache.mtime
    assert sub.get_inventory_parent() in cache.exists_in_storage.has_inventory
    assert [counted.server.requests(kind) for kind in asked] == requests


def test_outputs_whose_directories_are_missing_cost_few_questions(counted, monkeypatch):
    objects = [counted.object(f"out/{n}/{k}") for n in range(40) for k in "ab"]
    monkeypatch.setattr(memory, "NEGATIVE_S", 60.0)  # on a slow machine, too
    assert not any(each.exists() for each in objects)
    kinds = counted.server.request_kinds()
    assert kinds["opendir"] <= 3, kinds
    assert kinds["stat"] <= 1, kinds
    # All that is missing may be there by now: one question tells that it is not.
    monkeypatch.setattr(memory, "NEGATIVE_S", 0.0)
    assert not objects[0].exists()
    assert counted.server.requests() == sum(kinds.values()) + 1
    for n in range(40):
        counted.make(f"out/{n}/a", b"x" * n)
    assert [each.exists() for each in objects] == [True, False] * 40


def test_directories_that_nobody_wants_are_seldom_asked_about_ahead(counted):
    objects = [[counted.object(f"in/{n}/{k}") for k in "ab"] for n in range(200)]
    for n in range(200):
        counted.make(f"in/{n}/a", b"x")
    for n in (150, 170, 190):
        assert objects[n][0].exists()
    assert counted.server.requests("opendir") <= 3 + 3 * lookup.AHEAD_FOR_EACH
    for n in range(100, 200):
        assert objects[n][0].exists()
    assert counted.server.requests("opendir") <= 100 + lookup.AHEAD


def test_the_time_of_a_directory_is_that_of_its_stamp(bench):
    bench.make("d/.snakemake_timestamp", mtime=1_600_000_000)
    bench.make("plain/x")
    os.utime(bench.path("plain"), (1_500_000_000, 1_500_000_000))
    assert bench.object("d").mtime() == 1_600_000_000
    assert bench.object("plain").mtime() == 1_500_000_000
    bench.object("d").touch()
    assert bench.object("d").mtime() > 1_700_000_000
    bench.object("d").retrieve_object()
    stamp = bench.object("d").local_path() / ".snakemake_timestamp"
    assert stamp.stat().st_mtime == bench.object("d").mtime()


def test_a_stored_directory_has_the_time_of_the_local_one(bench):
    tree = bench.object("tree")
    (tree.local_path() / "sub").mkdir(parents=True)
    (tree.local_path() / "sub/x").write_bytes(b"x")
    os.utime(tree.local_path(), (1_600_000_000, 1_600_000_000))
    tree.store_object()
    assert tree.mtime() == 1_600_000_000
    assert tree.local_path().stat().st_mtime == 1_600_000_000


def test_a_directory_replaces_what_stood_under_its_name(bench):
    bench.make("d/new", b"new")
    local = bench.object("d").local_path()
    local.mkdir(parents=True)
    (local / "old").touch()
    asyncio.run(bench.object("d").managed_retrieve())
    assert os.listdir(local) == ["new"]
    assert os.listdir(local.parent) == ["d"]


def test_a_directory_that_cannot_be_uploaded_whole_is_an_error(bench, tmp_path):
    tree = bench.object("tree")
    tree.local_path().mkdir(parents=True)
    (tmp_path / "elsewhere").touch()
    (tree.local_path() / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(WorkflowError, match=r"cannot upload all of it: .*link"):
        tree.store_object()


def test_a_directory_is_there_once_it_is_stored_however_short_ago_it_was_missing(
    bench, monkeypatch
):
    monkeypatch.setattr(memory, "NEGATIVE_S", 60.0)
    trees = [bench.object(f"new/deep/{name}") for name in "ab"]
    assert not any(tree.exists() for tree in trees)
    for tree in trees:
        tree.local_path().mkdir(parents=True)
        tree.store_object()
        assert tree.exists()


def test_a_cancelled_retrieval_leaves_nothing_and_the_others_go_on(relayed):
    data = os.urandom(6_000_000)
    relayed.make("big", data)
    relayed.make("tree/big", data)
    relayed.make("small", b"small")

    async def cancel_one():
        assert await relayed.object("big").managed_exists()
        assert await relayed.object("tree").managed_exists()
        relayed.relay.stall(after_bytes=1_000_000)
        tasks = [
            asyncio.create_task(relayed.object(name).managed_retrieve()) for name in ("big", "tree")
        ]
        while not relayed.relay.status()["faults"]:
            await asyncio.sleep(0.02)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert all(task.cancelled() for task in tasks)
        relayed.relay.resume()
        await relayed.object("small").managed_retrieve()

    asyncio.run(cancel_one())
    assert not relayed.object("big").local_path().exists()
    assert not relayed.object("tree").local_path().exists()
    assert relayed.object("small").local_path().read_bytes() == b"small"
    wait_until(lambda: not temporaries(relayed.local))


def test_a_lost_connection_is_never_a_missing_file(relayed):
    relayed.make("a", b"x")
    relayed.make("b", b"x")
    assert relayed.object("a").exists()
    relayed.relay.refuse()
    relayed.relay.reset()
    assert relayed.object("a").exists()
    asked = {
        r"Failed to check existence of .*/b: ": relayed.object("b").exists,
        r"Failed to get size of .*/c: ": relayed.object("c").size,
        "Failed to list matches": lambda: list(relayed.object("{x}").list_candidate_matches()),
    }
    with concurrent.futures.ThreadPoolExecutor() as at_once:
        answers = {said: at_once.submit(question) for said, question in asked.items()}
    for said, answer in answers.items():
        with pytest.raises(WorkflowError, match=said) as told:
            answer.result()
        assert not isinstance(told.value, FileOrDirectoryNotFoundError)


def test_several_loops_and_threads_share_one_engine(bench):
    for n in range(8):
        bench.make(f"{n}", b"x" * n)
    failures = []

    def retrieve(n):
        try:
            asyncio.run(bench.object(f"{n}").managed_retrieve())
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=retrieve, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert [bench.object(f"{n}").local_path().stat().st_size for n in range(8)] == list(range(8))


def test_plain_methods_work_where_a_loop_is_running(bench):
    bench.make("a", b"x")

    async def ask():
        return bench.object("a").exists(), bench.object("b").exists()

    assert asyncio.run(ask()) == (True, False)


def test_a_file_that_does_not_fit_is_refused_before_it_is_retrieved(bench):
    with bench.make("vast").open("wb") as vast:
        vast.truncate(2**43)
    with pytest.raises(WorkflowError, match=r"Cannot store .*no waiting"):
        asyncio.run(bench.object("vast").managed_retrieve())
    assert not temporaries(bench.local)


def test_a_limit_of_requests_holds_for_questions_that_reach_the_server(bench, tmp_path):
    limited = Bench(
        bench.server, bench.directory, tmp_path / "limited", max_requests_per_second=1000
    )
    bench.make("a", b"x")
    entered = []

    class Limiter:
        async def __aenter__(self):
            entered.append(1)

        async def __aexit__(self, *_):
            pass

    key = limited.provider.rate_limiter_key(limited.object("a").query, None)
    limited.provider.rate_limiter(limited.object("a").query, None)
    limited.provider._rate_limiters[key] = Limiter()
    for _ in range(3):
        assert asyncio.run(limited.object("a").managed_exists())
    assert len(entered) == 1
    asyncio.run(limited.object("a").managed_retrieve())
    assert len(entered) == 2
    limited.provider.engine().close()


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


def test_a_checksum_beside_a_file_is_told_where_the_user_wants_it(sshd, remote_directory, tmp_path):
    bench = Bench(sshd, remote_directory, tmp_path / "local", checksums="yes")
    bench.make("x.bin", b"data", mtime=1_600_000_000)
    bench.make("x.bin.sha256", b"ab" * 32 + b"  x.bin\n")
    bench.make("y.bin", b"data", mtime=1_600_000_000)
    bench.make("y.bin.md5", b"cd" * 16)
    bench.make("old.bin", b"data")
    bench.make("old.bin.md5", b"cd" * 16, mtime=1_500_000_000)
    assert asyncio.run(bench.object("x.bin").managed_checksum()) == "sha256:" + "ab" * 32
    assert bench.object("y.bin").checksum() == "md5:" + "cd" * 16
    assert bench.object("old.bin").checksum() is None
    assert bench.object("x.bin.sha256").checksum() is None
    plain = Bench(sshd, remote_directory, tmp_path / "plain")
    assert plain.object("x.bin").checksum() is None


def test_what_was_fetched_ahead_is_retrieved_without_the_server(counted):
    data = os.urandom(100_000)
    counted.make("a", data, mtime=1_700_000_000)
    wait_for_prefetch(ahead_of(counted, "a"))
    file = counted.object("a")
    assert not file.local_path().exists()
    requests = counted.server.requests()
    asyncio.run(file.managed_retrieve())
    assert counted.server.requests() == requests
    assert file.local_path().read_bytes() == data
    assert file.local_path().stat().st_mtime == 1_700_000_000
    # Its place is in the workspace no more, and a second retrieval asks the server.
    asyncio.run(file.managed_retrieve())
    assert counted.server.requests("open") == 3


def test_nothing_is_fetched_ahead_before_something_is_retrieved(counted):
    counted.make("a", b"x")
    asyncio.run(counted.object("a").managed_size())
    assert not counted.provider.prefetch.holds(counted.object("a").url)


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
    sshd, remote_directory, tmp_path, monkeypatch
):
    bench = Bench(sshd, remote_directory, tmp_path / "local", node_cache="yes")
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
    bench.provider.engine().close()


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
