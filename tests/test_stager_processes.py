"""The Stager of a node with many processes, whatever dies; drafts."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
import signal
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pyremotedata_core import (
    ConfigurationError,
    RemoteChanged,
    RemoteURL,
    Stat,
    TransferError,
    TransferTimeout,
)
from pyremotedata_core.stager import Draft, Stager
from pyremotedata_core.stager.inventory import list_entries
from pyremotedata_core.stager.nodecache import NodeCache

from .page import told
from .stager_nodes import files_in, left_over, make_files, root_of
from .waiting import PATIENCE_S, wait_until, wait_until_stalled

# --- many processes, and their deaths -----------------------------------------------------------


def test_a_process_killed_while_it_fetches_does_no_harm(far, cache_dir, processes):
    server, relay = far
    data = os.urandom(4_000_000)
    server.make("a", data)
    url = far.url("a")
    first, second = processes(server), processes(server)
    relay.stall(after_bytes=1_000_000)
    first.tell(f"stage {url}")
    wait_until_stalled(relay)
    second.tell(f"stage {url}")
    first.kill()
    relay.resume()
    answer = second.answer()
    assert not answer["from_cache"]
    assert Path(answer["path"]).read_bytes() == data
    with Stager(server.settings(cache_dir=str(cache_dir))) as stager:
        assert stager.lease(url).from_cache
    wait_until(lambda: not left_over(cache_dir), "the next process has removed what was left")


def test_what_a_killed_process_leaves_of_a_large_file_gives_way_to_others(
    sshd_factory, relay_factory, cache_dir, processes
):
    server = sshd_factory()
    for name in "ab":
        server.make(name, os.urandom(20_000_000))
    relay = relay_factory(server.port)
    process = processes(server, cache_bytes=30_000_000)
    relay.set(rate=10e6)
    process.tell(f"stage {relay.url(server.url('a'))}")
    wait_until(lambda: records(cache_dir), "a part of it has come")
    process.kill()
    relay.set(rate=0)
    settings = server.settings(cache_dir=str(cache_dir), cache_bytes=30_000_000)
    with Stager(settings) as stager:
        usage = stager.cache.root / "usage"
        assert records(cache_dir)
        assert int(usage.read_text()) == 20_000_000
        assert not list_entries(stager.cache)
        stager.lease(server.url("b")).release()
        assert not records(cache_dir)
        assert int(usage.read_text()) == 20_000_000
        assert [entry.url for entry in list_entries(stager.cache)] == [server.url("b")]


def records(place: Path) -> list[Path]:
    """What tells which segments of large files have come, of those that tell of any."""
    found = (root_of(place) / "incoming").glob("*/*.done")
    return [path for path in found if path.read_bytes().count(b"\n") > 1]


def test_killed_at_any_moment_a_process_leaves_a_sound_cache(
    sshd, offer_all, there, cache_dir, processes
):
    urls = offer_all("abcdefghijklmnopqrstuvwxyz")
    sizes = {}
    for number in range(12):
        process = processes(cache_bytes=100_000)
        process.tell(f"stage {urls[0]}")
        process.answer()
        for url in urls[number:] + urls[:number]:
            process.tell(f"stage {url}")
        time.sleep(0.003 * number)
        process.kill()
    with Stager(sshd.settings(cache_dir=str(cache_dir), cache_bytes=100_000)) as stager:
        for url in urls:
            with stager.lease(url) as lease:
                sizes[lease.path.name] = lease.path.read_bytes()
                original = there / lease.path.name
                assert lease.path.read_bytes() == original.read_bytes()
    assert not left_over(cache_dir)
    assert len(files_in(cache_dir)) <= 10
    assert int((root_of(cache_dir) / "usage").read_text()) == 10_000 * len(files_in(cache_dir))


@pytest.mark.parametrize("hours", [0, 1])
def test_what_came_just_before_the_machine_was_started_anew_is_fetched_anew(
    sshd, offer_all, cache_dir, hours
):
    """A power cut leaves zeros where the kernel has not written, in a file of the right size."""
    (url,) = offer_all("a")
    settings = sshd.settings(cache_dir=str(cache_dir))
    with Stager(settings) as stager:
        stager.lease(url).release()
        root = stager.cache.root
    (root / "boot").write_text("another one")
    used = time.time() + hours * 3600  # for so long was it used after that
    os.utime(root / "usage", (used, used))
    for _ in range(2):
        with Stager(settings) as stager:
            assert stager.lease(url).from_cache == bool(hours)
        hours = 1  # it is looked at once


def test_a_holder_that_shows_no_life_is_named(far, cache_dir, processes):
    server, relay = far
    server.make("a", b"x" * 3_000_000)
    url = far.url("a")
    holder = processes(server)
    relay.stall(after_bytes=500_000)
    holder.tell(f"stage {url}")
    wait_until_stalled(relay)
    os.kill(holder.pid, signal.SIGSTOP)
    with Stager(server.settings(cache_dir=str(cache_dir), timeout_s=2.0)) as stager:
        with pytest.raises(TransferTimeout, match=f"process {holder.pid} on this node") as caught:
            stager.lease(url, expect=Stat("file", 3_000_000, _mtime(server, "a")))
        told(caught.value, "has shown no life")
        relay.resume()
        os.kill(holder.pid, signal.SIGCONT)
        assert "error" not in holder.answer()
        assert stager.lease(url).from_cache


def test_what_a_stopped_process_keeps_locked_is_an_error_that_names_it(sshd, offer_all, cache_dir):
    urls = offer_all("abcdefgh")
    settings = sshd.settings(cache_dir=str(cache_dir), timeout_s=1.0)
    with Stager(settings) as stager, open(stager.cache.root / "usage", "r+") as usage:
        fcntl.flock(usage, fcntl.LOCK_EX)
        for future in [stager.stage(url) for url in urls]:
            with pytest.raises(TransferTimeout, match=f"process {os.getpid()} on") as caught:
                future.result(PATIENCE_S)
            told(caught.value, "has shown no life")
        with pytest.raises(TransferTimeout, match="no life for 1 s"):
            NodeCache(stager.cache.root, 100, 1.0)
        fcntl.flock(usage, fcntl.LOCK_UN)
        for url in urls:
            stager.lease(url).release()


def exchange(one, other):
    at_cwd, rename_exchange = -100, 2
    libc = ctypes.CDLL(None, use_errno=True)
    assert not libc.renameat2(at_cwd, bytes(one), at_cwd, bytes(other), rename_exchange)


def test_who_waits_for_another_process_hears_of_a_cache_that_is_no_more(
    sshd, offer_all, cache_dir, tmp_path
):
    (url,) = offer_all("a")
    with Stager(sshd.settings(cache_dir=str(cache_dir), timeout_s=2.0)) as stager:
        key = stager.remember(RemoteURL.parse(url), stager.stat(url).result(PATIENCE_S))
        with open(stager.cache.root / "locks" / key, "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            waiting = stager.stage(url)

            # At one stroke, or the stager makes it anew.
            (tmp_path / "file").touch()
            exchange(cache_dir, tmp_path / "file")
            with pytest.raises(ConfigurationError, match="PYREMOTEDATA_CACHE_DIR"):
                waiting.result(PATIENCE_S)


def test_a_holder_that_lives_is_waited_for_longer_than_the_time_limit(far, cache_dir, processes):
    server, relay = far
    server.make("a", b"x" * 3_000_000)
    relay.set(rate=1_000_000)
    url = far.url("a")
    holder = processes(server, timeout_s=2)
    holder.tell(f"stage {url}")
    wait_until(lambda: relay.status()["down"] > 500_000, "the transfer has begun")
    # Less than the transfer takes, more than the holder takes between two signs of life.
    with Stager(server.settings(cache_dir=str(cache_dir), timeout_s=1.5)) as stager:
        known = Stat("file", 3_000_000, _mtime(server, "a"))
        assert stager.lease(url, expect=known).from_cache


def test_a_cancelled_request_stops_the_transfer_unless_others_want_the_file(far, cache_dir):
    server, relay = far
    server.make("a", b"x" * 2_000_000)
    url = far.url("a")
    with Stager(server.settings(cache_dir=str(cache_dir))) as stager:
        relay.stall(after_bytes=500_000)
        one, other = stager.stage(url), stager.stage(url)
        wait_until_stalled(relay)
        assert one.cancel()
        assert not other.done()
        assert other.cancel()
        wait_until(lambda: not left_over(cache_dir), "the transfer was given up")
        relay.resume()
        assert not stager.lease(url).from_cache


def test_closing_ends_what_is_under_way(far, cache_dir):
    server, relay = far
    server.make("a", b"x" * 2_000_000)
    stager = Stager(server.settings(cache_dir=str(cache_dir)))
    relay.stall(after_bytes=500_000)
    future = stager.stage(far.url("a"))
    wait_until_stalled(relay)
    stager.close()
    with pytest.raises(TransferError, match="closed"):
        future.result(PATIENCE_S)
    assert not left_over(cache_dir)


def test_files_that_do_not_fit_on_the_disk_at_once_come_one_after_another(
    sshd, offer, relay_factory, small_disk
):
    relay = relay_factory(sshd.port, one_way_ms=20)
    contents = [os.urandom(5_000_000) for _ in range(3)]
    urls = []
    for number, content in enumerate(contents):
        urls.append(relay.url(offer(f"{number}", content)))

    def read(url):
        with stager.lease(url) as lease:
            return lease.path.read_bytes()

    with (
        Stager(sshd.settings(cache_dir=str(small_disk))) as stager,
        ThreadPoolExecutor(3) as threads,
    ):
        assert list(threads.map(read, urls)) == contents
    assert not left_over(small_disk)


def test_no_file_goes_for_what_a_killed_process_was_yet_to_fetch(far, small_disk, processes):
    server, relay = far
    settings = {"cache_dir": str(small_disk), "cache_bytes": 6_000_000}
    old, new = make_files(server, ".", ["old", "new"], size=900_000)
    server.make("large", bytes(4_000_000))
    with Stager(server.settings(**settings)) as stager:
        stager.lease(old).release()
        process = processes(server, **settings)
        relay.stall(after_bytes=1_000_000)
        process.tell(f"stage {far.url('large')}")
        wait_until_stalled(relay)
        process.kill()
        (small_disk / "another's").write_bytes(bytes(3_500_000))
        stager.lease(new).release()
        assert files_in(small_disk) == {"old", "new"}


# --- drafts -------------------------------------------------------------------------------------


def test_a_draft_becomes_the_remote_file_and_an_entry_of_the_cache(sshd_factory, cache_dir):
    server = sshd_factory(log_requests=True)
    data = os.urandom(100_000)
    with Stager(server.settings(cache_dir=str(cache_dir))) as stager:
        draft = stager.draft(server.url("new/out.csv.gz"))
        assert draft.path.name == "out.csv.gz"
        draft.path.write_bytes(data)
        found = draft.deliver()
        assert (server.root / "new/out.csv.gz").read_bytes() == data
        assert not draft.path.exists()
        opened = server.requests("open")
        lease = stager.lease(server.url("new/out.csv.gz"))
        assert lease.from_cache
        assert lease.stat == found
        assert lease.path.read_bytes() == data
        assert stat.S_IMODE(lease.path.stat().st_mode) == 0o444
        assert int(lease.path.stat().st_mtime) == found.mtime
        assert server.requests("open") == opened
    assert not left_over(cache_dir)
    assert int((root_of(cache_dir) / "usage").read_text()) == 100_000


def test_a_draft_that_replaces_one_of_its_size_and_second_is_another_entry(
    stager, sshd, url, tmp_path
):
    state = url("state")
    stats = []
    for content in (b"one", b"two", b"two", b"six"):
        draft = stager.draft(state)
        draft.path.write_bytes(content)
        os.utime(draft.path, (12345, 12345))
        stats.append(draft.deliver())
        with stager.lease(state, expect=stats[-1]) as lease:
            assert lease.path.read_bytes() == content
    assert [stat.mtime for stat in stats] == [12345, 12346, 12347, 12348]
    # Another node's cache has only what it has read.
    with Stager(sshd.settings(cache_dir=str(tmp_path / "node"))) as elsewhere:
        draft = elsewhere.draft(state)
        draft.path.write_bytes(b"new")
        os.utime(draft.path, (12345, 12345))
        written = draft.deliver()
    with stager.lease(state, expect=written) as lease:
        assert lease.path.read_bytes() == b"new"


def test_drafts_of_one_file_that_are_delivered_at_once_are_entries_of_their_own(
    sshd, url, there, relay_factory, cache_dir
):
    # So far away that each looks for a file there before another one's has arrived.
    relay = relay_factory(sshd.port, one_way_ms=50)
    state = relay.url(url("state"))
    with (
        Stager(sshd.settings(cache_dir=str(cache_dir))) as stager,
        ThreadPoolExecutor(4) as threads,
    ):
        drafts = [stager.draft(state) for _ in range(4)]
        for number, draft in enumerate(drafts):
            draft.path.write_text(f"{number}")
            os.utime(draft.path, (12345, 12345))
        stats = list(threads.map(Draft.deliver, drafts))
        assert {stat.mtime for stat in stats} == {12345, 12346, 12347, 12348}
        for number, stat in enumerate(stats):
            with contextlib.suppress(RemoteChanged), stager.lease(state, expect=stat) as lease:
                assert lease.path.read_text() == f"{number}"
        last = there / "state"
        assert stats[int(last.read_text())].mtime == int(last.stat().st_mtime)
    assert not left_over(cache_dir)


def test_a_draft_in_place_of_one_that_is_gone_is_another_entry(stager, url, there):
    state = url("state")
    for content in (b"one", b"two"):
        draft = stager.draft(state)
        draft.path.write_bytes(content)
        os.utime(draft.path, (12345, 12345))
        with stager.lease(state, expect=draft.deliver()) as lease:
            assert lease.path.read_bytes() == content
        (there / "state").unlink()


def test_a_draft_that_is_discarded_or_empty_handed_leaves_nothing(stager, url, there, cache_dir):
    out = url("out")
    draft = stager.draft(out)
    draft.path.write_bytes(b"half")
    draft.discard()
    with pytest.raises(TransferError, match="nothing has been written"):
        stager.draft(out).deliver()
    draft = stager.draft(out)
    draft.path.mkdir()
    with pytest.raises(TransferError, match="one file, not a directory"):
        draft.deliver()
    with pytest.raises(ConfigurationError, match="names no file"):
        stager.draft(out + "/")
    assert not left_over(cache_dir)
    assert not (there / "out").exists()


def test_a_draft_larger_than_the_cache_is_delivered_all_the_same(small, url, there, cache_dir):
    draft = small.draft(url("large"))
    draft.path.write_bytes(bytes(50_000))
    assert draft.deliver().size == 50_000
    assert (there / "large").stat().st_size == 50_000
    assert not files_in(cache_dir)
    assert not left_over(cache_dir)


def test_a_draft_that_finds_no_place_leaves_nothing(stager, cache_dir):
    incoming = stager.cache.root / "incoming"
    incoming.rmdir()
    incoming.touch()
    with pytest.raises(TransferError, match="Not a directory"):
        stager.draft("sftp://nowhere.invalid/a")
    assert not list((root_of(cache_dir) / "locks").iterdir())


def test_a_draft_is_delivered_though_the_cache_takes_nothing_more(sshd, url, there, cache_dir):
    with Stager(sshd.settings(cache_dir=str(cache_dir))) as stager:
        draft = stager.draft(url("out"))
        draft.path.write_bytes(b"out")
        locks = root_of(cache_dir) / "locks"
        shutil.rmtree(locks)
        locks.touch()
        assert draft.deliver().size == 3
    assert (there / "out").read_bytes() == b"out"


def test_the_draft_of_a_killed_process_goes_and_that_of_a_living_one_stays(
    stager, offer, url, there, processes
):
    draft = stager.draft(url("mine"))
    draft.path.write_bytes(b"mine")
    process = processes()
    theirs = Path(process.ask(f"draft {url('theirs')}")["path"])
    assert theirs.exists()
    process.kill()
    processes().ask(f"stage {offer('other')}")
    assert not theirs.exists()
    draft.deliver()
    assert (there / "mine").read_bytes() == b"mine"


def _mtime(server, name: str) -> int:
    return int((server.root / name).stat().st_mtime)
