"""Storage objects of the Snakemake plugin, asked as Snakemake asks them, on a real server."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
import time

import pytest

pytest.importorskip("snakemake")

from snakemake.io import IOCache
from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_storage_plugins.exceptions import FileOrDirectoryNotFoundError
from snakemake_storage_plugin_pyremotedata import lookup, memory
from snakemake_storage_plugin_pyremotedata.memory import NEGATIVE_S

from .snakemake_workflow import temporaries
from .waiting import wait_until


@pytest.fixture
def relayed(bench_with, sshd, relay_factory):
    return bench_with(relay_factory(sshd.port), timeout="4")


def test_a_file_is_asked_for_once_for_exists_mtime_and_size(counting):
    counting.make("a", b"12345", mtime=1_700_000_000)
    for _ in range(3):
        file = counting.object("a")
        assert (file.exists(), file.mtime(), file.size()) == (True, 1_700_000_000, 5)
        assert file.local_footprint() == 5
    assert counting.server.requests("stat") == 1


def test_what_another_process_makes_is_seen_a_little_later(bench):
    file = bench.object("late")
    assert not file.exists()
    bench.make("late", b"x")
    time.sleep(NEGATIVE_S)
    assert file.exists()


def test_what_we_store_and_remove_is_known_at_once(counting):
    file = counting.object("new/a")
    assert not file.exists()
    file.local_path().parent.mkdir(parents=True)
    file.local_path().write_bytes(b"data")
    os.utime(file.local_path(), (1_700_000_000.9, 1_700_000_000.9))
    file.store_object()
    asked = counting.server.requests("stat")
    assert (file.exists(), file.mtime(), file.size()) == (True, 1_700_000_000, 4)
    assert counting.server.requests("stat") == asked
    assert counting.object("new").exists()
    file.remove()
    file.remove()
    assert not file.exists()
    assert not counting.path("new/a").exists()


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


def test_the_inventory_holds_the_whole_directory_from_its_second_file_on(counting):
    for n in range(100):
        counting.make(f"{n} %41", b"x" * n, mtime=1_700_000_000 + n)
    counting.server.make_directory("d/sub")
    cache = IOCache(10)
    asyncio.run(counting.object("0 %41").inventory(cache))
    assert not counting.server.requests("opendir")
    assert counting.object("0 %41").get_inventory_parent() not in (
        cache.exists_in_storage.has_inventory
    )
    asyncio.run(counting.object("1 %41").inventory(cache))
    asked = ("stat", "lstat", "opendir")  # the listing's handle may be closed later
    requests = [counting.server.requests(kind) for kind in asked]
    for n in range(100):
        key = counting.object(f"{n} %41").cache_key()
        assert cache.exists_in_storage[key]
        assert cache.size[key] == n
        assert cache.mtime[key].storage() == 1_700_000_000 + n
    sub = counting.object("sub")
    assert cache.exists_in_storage[sub.cache_key()]
    # Its time is that of the stamp in it, which the listing does not show.
    assert sub.cache_key() not in cache.mtime
    assert sub.get_inventory_parent() in cache.exists_in_storage.has_inventory
    assert [counting.server.requests(kind) for kind in asked] == requests


def test_outputs_whose_directories_are_missing_cost_few_questions(counting, monkeypatch):
    objects = [counting.object(f"out/{n}/{k}") for n in range(40) for k in "ab"]
    monkeypatch.setattr(memory, "NEGATIVE_S", 60.0)  # on a slow machine, too
    assert not any(each.exists() for each in objects)
    kinds = counting.server.request_kinds()
    assert kinds["opendir"] <= 3, kinds
    assert kinds["stat"] <= 1, kinds
    # All that is missing may be there by now: one question tells that it is not.
    before = counting.server.requests()
    monkeypatch.setattr(memory, "NEGATIVE_S", 0.0)
    assert not objects[0].exists()
    assert counting.server.requests() == before + 1
    for n in range(40):
        counting.make(f"out/{n}/a", b"x" * n)
    assert [each.exists() for each in objects] == [True, False] * 40


def test_directories_that_nobody_wants_are_seldom_asked_about_ahead(counting):
    objects = [[counting.object(f"in/{n}/{k}") for k in "ab"] for n in range(200)]
    for n in range(200):
        counting.make(f"in/{n}/a", b"x")
    for n in (150, 170, 190):
        assert objects[n][0].exists()
    assert counting.server.requests("opendir") <= 3 + 3 * lookup.AHEAD_FOR_EACH
    for n in range(100, 200):
        assert objects[n][0].exists()
    assert counting.server.requests("opendir") <= 100 + lookup.AHEAD


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


def test_a_limit_of_requests_holds_for_questions_that_reach_the_server(bench_with):
    entered = []

    class Limiter:
        async def __aenter__(self):
            entered.append(1)

        async def __aexit__(self, *_):
            pass

    limited = bench_with(max_requests_per_second=1000)
    limited.make("a", b"x")
    key = limited.provider.rate_limiter_key(limited.object("a").query, None)
    limited.provider.rate_limiter(limited.object("a").query, None)
    limited.provider._rate_limiters[key] = Limiter()
    for _ in range(3):
        assert asyncio.run(limited.object("a").managed_exists())
    assert len(entered) == 1
    asyncio.run(limited.object("a").managed_retrieve())
    assert len(entered) == 2


def test_a_checksum_beside_a_file_is_told_where_the_user_wants_it(bench_with):
    bench = bench_with(checksums="yes")
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
    assert bench_with().object("x.bin").checksum() is None
