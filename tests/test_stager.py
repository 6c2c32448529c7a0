"""The Stager: one copy of a file per node, whoever asks."""

from __future__ import annotations

import errno
import fcntl
import os
import pickle
import secrets
import shutil
import stat
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from pyremotedata_core import (
    ConfigurationError,
    LocalStorageFull,
    RemoteChanged,
    RemoteFileNotFound,
    RemoteURL,
    Stat,
    TransferError,
)
from pyremotedata_core.names import temporary_name
from pyremotedata_core.nodestate import user_number
from pyremotedata_core.stager import Stager, copying, locks, nodecache, shared_stager
from pyremotedata_core.stager.lease import Pins
from pyremotedata_core.stager.locks import Pin
from pyremotedata_core.stager.place import cache_root
from pyremotedata_core.stager.stager import STEP_THREADS

from .page import told
from .stager_nodes import files_in, left_over, make_files, root_of
from .waiting import PATIENCE_S, wait_until, wait_until_stalled

# --- one file -----------------------------------------------------------------------------------


def test_a_staged_file_is_the_remote_file_under_its_own_name(stager, offer):
    data = os.urandom(300_000)
    url = offer("reads é.fastq.gz", data, mtime=1_600_000_000)
    with stager.lease(url) as lease:
        assert lease.path.name == "reads é.fastq.gz"
        assert lease.path.read_bytes() == data
        assert lease.path.stat().st_mtime == 1_600_000_000
        assert lease.stat[:3] == ("file", len(data), 1_600_000_000)
        assert stat.S_IMODE(lease.path.stat().st_mode) == 0o444
        assert not lease.from_cache


def test_a_file_moves_once_and_is_found_from_then_on(stager, cache_dir, sshd, offer):
    url = offer("a", b"12345")
    stager.lease(url).release()
    assert stager.lease(url).from_cache
    with Stager(sshd.settings(cache_dir=str(cache_dir))) as another:
        assert another.lease(url).from_cache
        assert another.counts()[:4] == (0, 0, 1, 5)
    assert stager.counts()[:4] == (1, 5, 1, 5)


def test_a_known_stat_saves_the_question(sshd_factory, cache_dir):
    server = sshd_factory(log_requests=True)
    server.make("a", b"12345", mtime=1_600_000_000)
    known = Stat("file", 5, 1_600_000_000)
    with Stager(server.settings(cache_dir=str(cache_dir))) as stager:
        stager.lease(server.url("a"), expect=known).release()
        assert server.requests("stat") == server.requests("lstat") == 0
        sent = server.requests()
        stager.lease(server.url("a"), expect=known).release()
        assert server.requests() == sent


def test_many_tasks_on_one_file_cost_one_question_and_one_transfer(sshd_factory, cache_dir):
    server = sshd_factory(log_requests=True)
    server.make("a", b"x" * 100_000)
    with Stager(server.settings(cache_dir=str(cache_dir))) as stager:
        leases = [future.result() for future in [stager.stage(server.url("a")) for _ in range(20)]]
        assert [lease.from_cache for lease in leases].count(False) == 1
        stager.lease(server.url("a"))
        assert server.requests("open") == 1
        assert server.requests("stat") + server.requests("lstat") == 1


def test_a_changed_file_is_another_entry(stager, offer, make, monkeypatch):
    monkeypatch.setattr("pyremotedata_core.stager.stager.STAT_LASTS_S", 0.0)
    url = offer("a", b"old", mtime=1_600_000_000)
    old = stager.lease(url)
    make("a", b"new", mtime=1_600_000_001)
    assert stager.lease(url).path.read_bytes() == b"new"
    assert old.path.read_bytes() == b"old"


def test_a_file_that_is_not_what_it_was_known_to_be_is_an_error(stager, offer):
    url = offer("a", b"12345", mtime=1_600_000_000)
    with pytest.raises(RemoteChanged):
        stager.lease(url, expect=Stat("file", 5, 1_500_000_000))
    assert not files_in(Path(stager.settings.cache_dir))


def test_a_file_that_changed_since_the_last_look_is_looked_at_anew(stager, offer, make):
    url = offer("a", b"12345", mtime=1_600_000_000)
    assert stager.stat(url).result().size == 5
    make("a", b"123456", mtime=1_600_000_001)
    assert stager.lease(url).path.read_bytes() == b"123456"


def test_an_answer_that_is_late_does_not_hide_what_was_stored_meanwhile(far, cache_dir):
    server, relay = far
    server.make("a", b"old")
    url = far.url("a")
    with Stager(server.settings(cache_dir=str(cache_dir))) as stager:
        stager.lease(url).release()
        stager.stat(url, anew=True).result()  # answers to what came before are here, too
        relay.stall(after_bytes=1)
        late = stager.stat(url, anew=True)
        wait_until_stalled(relay)
        info = server.make("a", b"newer").stat()
        stager.remember(RemoteURL.parse(url), Stat("file", 5, int(info.st_mtime)))
        relay.resume()
        assert late.result().size == 3
        assert stager.lease(url).path.read_bytes() == b"newer"


def test_a_missing_file_is_not_remembered_as_missing(stager, url, offer):
    with pytest.raises(RemoteFileNotFound, match="late"):
        stager.lease(url("late"))
    assert stager.lease(offer("late", b"here")).path.read_bytes() == b"here"


def test_a_directory_is_refused(stager, url):
    with pytest.raises(TransferError, match="is a directory"):
        stager.lease(url())


def test_a_failed_transfer_leaves_nothing_and_is_not_remembered(far, cache_dir):
    server, relay = far
    server.make("a", b"x" * 3_000_000)
    url = far.url("a")
    with Stager(server.settings(cache_dir=str(cache_dir), timeout_s=2.0)) as stager:
        relay.stall(after_bytes=500_000)
        with pytest.raises(TransferError):
            stager.lease(url)
        relay.resume()
        assert stager.lease(url).path.stat().st_size == 3_000_000
    assert not left_over(cache_dir)


@pytest.mark.parametrize("leased", [False, True])
@pytest.mark.parametrize("written", [b"cut", b"ours!!"])
def test_a_cached_file_that_somebody_has_written_to_is_fetched_anew(stager, offer, written, leased):
    url = offer("a", b"theirs", mtime=1_600_000_000)
    lease = stager.lease(url)
    if not leased:
        lease.release()
    lease.path.chmod(0o644)
    lease.path.write_bytes(written)
    again = stager.lease(url)
    assert not again.from_cache
    assert again.path.read_bytes() == b"theirs"


def test_a_file_that_is_called_like_one_of_our_temporary_files_is_staged(stager, offer):
    url = offer(temporary_name(), b"left by an upload")
    assert stager.lease(url).path.read_bytes() == b"left by an upload"


def test_files_of_two_accounts_are_two_entries(sshd, offer, cache_dir):
    url = offer("a", b"12345").replace(f"{sshd.user}@", "")
    mine = sshd.settings(cache_dir=str(cache_dir), username=sshd.user)
    known = Stat("file", 5, 1)
    with Stager(mine) as stager:
        other = Stager(replace(mine, username="somebody"))
        parsed = RemoteURL.parse(url)
        assert stager.key(parsed, known) != other.key(parsed, known)


# --- leases -------------------------------------------------------------------------------------


def test_a_lease_never_crosses_a_process_border_by_pickle(stager, offer):
    url = offer("a", b"1")
    with pytest.raises(TypeError, match="belongs to its process"):
        pickle.dumps(stager.lease(url))


def test_copies_are_writable_and_leave_the_cache_alone(stager, offer, tmp_path):
    url = offer("a", b"12345", mtime=1_600_000_000)
    target = tmp_path / "mine"
    target.write_bytes(b"old")
    with stager.lease(url) as lease:
        assert stager.copy_out(lease, target) == target
        assert target.stat().st_mtime == 1_600_000_000
        with open(target, "ab") as copy:
            copy.write(b"6")
        assert target.read_bytes() == b"123456"
        assert lease.path.read_bytes() == b"12345"


def test_a_copy_that_fails_names_its_path_and_leaves_nothing(stager, offer, tmp_path):
    url = offer("a", b"12345")
    with (
        stager.lease(url) as lease,
        pytest.raises(TransferError, match="no-such-directory"),
    ):
        stager.copy_out(lease, tmp_path / "no-such-directory" / "a")


@pytest.mark.parametrize("cut", [False, True])
def test_a_copy_is_whole_where_the_kernel_copies_nothing(stager, offer, tmp_path, monkeypatch, cut):
    """Some network file systems do that, and call it success."""
    data = os.urandom(3_000_000)
    url = offer("a", data)
    target = tmp_path / "mine"
    target.write_bytes(b"old")
    with stager.lease(url) as lease:

        def copy_nothing(*_):
            if cut:
                os.truncate(lease.path, 2_000_000)
            return 0

        monkeypatch.setattr(copying, "_reflink", lambda *_: False)
        monkeypatch.setattr(os, "copy_file_range", copy_nothing, raising=False)
        if cut:
            lease.path.chmod(0o600)
            with pytest.raises(TransferError, match="cut short"):
                stager.copy_out(lease, target)
            assert target.read_bytes() == b"old"
        else:
            stager.copy_out(lease, target)
            assert target.read_bytes() == data
    assert list(tmp_path.glob(".*")) == []


def test_a_process_has_one_stager_for_the_same_settings(sshd, cache_dir):
    one, other = (sshd.settings(cache_dir=str(cache_dir)) for _ in range(2))
    assert shared_stager(one) is shared_stager(other)
    assert shared_stager(replace(one, password="a secret")) is not shared_stager(one)


# --- budget and eviction ------------------------------------------------------------------------


def test_the_least_recently_used_file_makes_room(small, offer_all, cache_dir):
    a, b, c, d = offer_all("abcd")
    for url in (a, b, c, a, d):
        small.lease(url).release()
    assert files_in(cache_dir) == {"a", "c", "d"}


def test_a_leased_file_is_never_evicted(small, offer_all, cache_dir, processes):
    a, b, c, d, e = offer_all("abcde")
    mine = small.lease(a)
    theirs = processes().ask(f"stage {b}")
    for url in (c, d, e, c, d, e):
        small.lease(url).release()
        assert {"a", "b"} <= files_in(cache_dir)
        assert len(files_in(cache_dir)) <= 3
    assert mine.path.stat().st_size == Path(theirs["path"]).stat().st_size == 10_000


def test_a_killed_process_frees_its_files(small, offer_all, cache_dir, processes):
    a, b, c, d = offer_all("abcd")
    process = processes()
    process.ask(f"stage {a}")
    process.kill()
    for url in (b, c, d):
        small.lease(url).release()
    assert files_in(cache_dir) == {"b", "c", "d"}


def test_a_lease_that_is_dropped_frees_its_file(small, offer_all, cache_dir):
    a, b, c, d = offer_all("abcd")
    lease = small.lease(a)
    del lease
    for url in (b, c, d):
        small.lease(url).release()
    assert files_in(cache_dir) == {"b", "c", "d"}


def test_a_lease_that_is_dropped_in_the_midst_of_another_frees_its_file(tmp_path):
    pins = Pins()
    pins.add("a", Pin(dropped := os.open(tmp_path, os.O_RDONLY), tmp_path, tmp_path))

    class Other(Pin):
        def keeps(self, stat: Stat) -> bool:
            pins.give_back_later("a")  # as the collector may
            return True

    pins.add("b", Other(other := os.open(tmp_path, os.O_RDONLY), tmp_path, tmp_path))
    assert pins.borrow("b", Stat("file", 0, 0)) is not None
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(dropped)
    os.close(other)


def test_the_budget_holds_over_all_processes(offer_all, cache_dir, processes):
    urls = offer_all("abcdefghij")
    crowd = [processes(cache_bytes=40_000) for _ in range(3)]
    for number in range(10):
        for shift, process in enumerate(crowd):
            process.tell(f"stage {urls[(number + 3 * shift) % 10]}")
        assert not [answer for process in crowd if "error" in (answer := process.answer())]
        assert len(files_in(cache_dir)) <= 4
        for process in crowd:
            process.ask("release")
    assert int((root_of(cache_dir) / "usage").read_text()) == 10_000 * len(files_in(cache_dir))


def test_a_file_larger_than_the_budget_is_refused_with_the_remedy(small, offer_all):
    (url,) = offer_all("a", size=30_001)
    with pytest.raises(LocalStorageFull) as caught:
        small.lease(url)
    told(caught.value, "PYREMOTEDATA_CACHE_BYTES")


def test_a_full_cache_waits_for_a_lease_to_end(small, offer_all, cache_dir):
    a, b, c, d = offer_all("abcd")
    leases = [small.lease(url) for url in (a, b, c)]
    waiting = small.stage(d)
    (e,) = offer_all("e")
    with pytest.raises(LocalStorageFull, match="files in use"):
        small.stage(e, background=True).result(PATIENCE_S)
    assert not waiting.done()
    leases[1].release()
    assert waiting.result(PATIENCE_S).path.stat().st_size == 10_000
    assert files_in(cache_dir) == {"a", "c", "d"}


def test_a_lock_that_cannot_be_taken_anew_closes_no_file_of_others(tmp_path, monkeypatch):
    cache = nodecache.NodeCache(tmp_path, 100)
    opened: list[int] = []

    def open_own(path: Path) -> int:
        if opened:
            opened.append(os.open(os.devnull, os.O_RDONLY))  # by the number that has become free
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        opened.append(locks.open_own(path))
        path.unlink()  # as its holder does
        return opened[0]

    monkeypatch.setattr(nodecache, "open_own", open_own)
    with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
        cache.try_lock("a-1")
    assert opened[0] == opened[1]
    os.close(opened[1])


def test_a_lock_whose_file_was_renamed_is_no_lock(tmp_path):
    """As NFS renames a file that is deleted while somebody has it open."""
    cache = nodecache.NodeCache(tmp_path, 100)
    holder = cache.try_lock("a-1")
    found: list[object] = []
    waiting = threading.Thread(target=lambda: found.append(cache.wait_lock("a-1")))
    waiting.start()
    wait_until(lambda: _waits_for_a_lock(tmp_path / "locks" / "a-1"))
    os.rename(tmp_path / "locks" / "a-1", tmp_path / "locks" / ".nfs0001")
    holder.release()
    waiting.join(PATIENCE_S)
    assert found == [None], "it is to be asked for anew"
    assert not list((tmp_path / "locks").glob("a-*"))


def _waits_for_a_lock(path: Path) -> bool:
    inode = f":{path.stat().st_ino} "
    lines = Path("/proc/locks").read_text().splitlines()
    return any("->" in line and inode in line for line in lines)


def test_the_budget_holds_when_somebody_has_deleted_what_counts_it(small, offer_all, cache_dir):
    a, b, c, d, e = offer_all("abcde")
    for url in (a, b, c):
        small.lease(url).release()
    (root_of(cache_dir) / "usage").unlink()
    for url in (d, e):
        small.lease(url).release()
    assert files_in(cache_dir) == {"c", "d", "e"}


def test_files_go_when_somebody_has_deleted_the_place_for_what_goes(small, offer_all, cache_dir):
    urls = offer_all("abcde")
    (small.cache.root / "trash").rmdir()
    for url in urls:
        small.lease(url).release()
    assert files_in(cache_dir) == {"c", "d", "e"}
    assert not left_over(cache_dir)


@pytest.mark.parametrize("what", ["files", "pins", "incoming"])
def test_a_part_of_the_cache_that_somebody_has_deleted_is_made_anew(
    small, offer_all, there, cache_dir, what
):
    a, b = offer_all("ab")
    small.lease(a).release()
    shutil.rmtree(root_of(cache_dir) / what)
    for url in (a, b):
        with small.lease(url) as lease:
            assert lease.path.read_bytes() == (there / url[-1]).read_bytes()


def test_each_of_many_files_comes_when_a_part_of_the_cache_has_been_deleted(
    stager, offer_all, there
):
    urls = offer_all([f"{n:02}" for n in range(24)], size=100)
    locks = stager.cache.root / "locks"
    for _ in range(10):
        with open(stager.cache.root / "usage", "rb") as usage:
            # All are about to enter the cache at the same time.
            fcntl.flock(usage, fcntl.LOCK_EX)
            futures = [stager.stage(url) for url in urls]
            wait_until(lambda: len(os.listdir(locks)) >= STEP_THREADS, "they wait for each other")
            shutil.rmtree(stager.cache.root / "pins")
        for url, future in zip(urls, futures, strict=True):
            with future.result(PATIENCE_S) as lease:
                assert lease.path.read_bytes() == (there / url[-2:]).read_bytes()
        stager.cache.trim(0)


def test_who_can_do_without_a_file_is_asked_for_room(small, offer_all, cache_dir):
    a, b, c, d = offer_all("abcd")
    leases = {url: small.lease(url) for url in (a, b, c)}
    small.when_full.add(lambda: leases.pop(b).release() if b in leases else None)
    small.lease(d)
    assert files_in(cache_dir) == {"a", "c", "d"}


def test_a_cache_that_stays_full_is_an_error_with_the_remedy(small, offer_all):
    a, b, c, d = offer_all("abcd")
    leases = [small.lease(url) for url in (a, b, c)]
    with pytest.raises(LocalStorageFull, match="PYREMOTEDATA_CACHE_BYTES"):
        small.lease(d)
    del leases


def test_a_full_disk_is_an_error_with_the_remedy_and_old_files_make_room(
    sshd, offer_all, small_disk
):
    a, b, c = offer_all("abc", size=3_000_000)
    (large,) = offer_all("d", size=10_000_000)
    with Stager(sshd.settings(cache_dir=str(small_disk), timeout_s=2.0)) as stager:
        stager.lease(a).release()
        leases = [stager.lease(url) for url in (b, c)]
        assert files_in(small_disk) == {"b", "c"}
        for lease in leases:
            lease.release()
        with pytest.raises(LocalStorageFull, match="PYREMOTEDATA_CACHE_DIR") as caught:
            stager.lease(large)
        assert caught.type is LocalStorageFull, "nobody can make room: it waits for nobody"
        assert files_in(small_disk) == {"b", "c"}


def test_old_files_make_room_where_the_disk_takes_no_further_file(
    sshd, offer_all, there, mount_disk, tmp_path
):
    disk = mount_disk(tmp_path / "disk", "8m,nr_inodes=32")
    urls = offer_all("abcdefghijklmnop", size=1000)
    with Stager(sshd.settings(cache_dir=str(disk))) as stager:
        for url in urls:
            with stager.lease(url) as lease:
                assert lease.path.read_bytes() == (there / url[-1]).read_bytes()
        assert files_in(disk) < {*"abcdefghijklmnop"}
        # One that is larger than all of them, and needs none of their bytes.
        [large] = offer_all(["large"], size=1_000_000)
        while os.statvfs(disk).f_favail:
            (disk / secrets.token_hex(8)).touch()
        with stager.lease(large) as lease:
            assert lease.path.read_bytes() == (there / "large").read_bytes()
        leases = []
        with pytest.raises(LocalStorageFull):
            leases += [stager.lease(url) for url in urls]
        wait_until(lambda: not left_over(disk), "nothing is left of what did not fit")


def test_half_of_a_disk_that_is_smaller_than_the_budget_is_left_to_others(
    sshd, offer_all, small_disk
):
    urls = offer_all("abcd", size=1_500_000)
    with Stager(sshd.settings(cache_dir=str(small_disk))) as stager:
        for url in urls:
            stager.lease(url).release()
        assert files_in(small_disk) == {"c", "d"}
        leases = [stager.lease(url) for url in urls]
        assert files_in(small_disk) == {*"abcd"}, "more of it, for files that are in use"
        del leases
    with Stager(sshd.settings(cache_dir=str(small_disk), cache_bytes=6_500_000)) as stager:
        stager.lease(*offer_all("e", size=500_000)).release()
        assert files_in(small_disk) == {*"abcde"}, "a budget that the disk has room for is kept"


# --- the place ----------------------------------------------------------------------------------


def test_the_place_is_the_nodes_and_not_the_jobs(monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("SLURM_TMPDIR", str(tmp_path))
    root = cache_root(None)
    assert root.parts[1] in ("tmp", "var", "private")
    assert root.parent.name == f"pyremotedata-{user_number()}"
    assert stat.S_IMODE(root.stat().st_mode) == 0o700


def test_the_place_is_private(stager, offer_all, cache_dir):
    (url,) = offer_all("a")
    lease = stager.lease(url)
    assert stat.S_IMODE(root_of(cache_dir).stat().st_mode) == 0o700
    assert root_of(cache_dir) in lease.path.parents


@pytest.mark.parametrize("kind", ["nfs4", "glusterfs"])
def test_nodes_that_share_a_file_system_have_caches_of_their_own(cache_dir, monkeypatch, kind):
    monkeypatch.setattr("pyremotedata_core.stager.place._filesystem", lambda _: kind)
    monkeypatch.setattr("pyremotedata_core.stager.place.host_tag", lambda: "node1")
    one = cache_root(str(cache_dir))
    monkeypatch.setattr("pyremotedata_core.stager.place.host_tag", lambda: "node2")
    assert cache_root(str(cache_dir)) != one
    assert one.parent == cache_dir


def test_a_link_in_the_place_of_the_cache_is_refused(cache_dir, tmp_path):
    cache_dir.mkdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    root_of(cache_dir).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigurationError, match="not a directory of yours"):
        cache_root(str(cache_dir))


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_somebody_else_is_refused(cache_dir):
    root_of(cache_dir).mkdir(parents=True)
    os.chown(root_of(cache_dir), 12345, 12345)
    with pytest.raises(ConfigurationError) as caught:
        cache_root(str(cache_dir))
    told(caught.value, "is not a directory of yours")


def test_a_place_that_cannot_be_made_is_named_with_the_remedy(sshd, tmp_path):
    (tmp_path / "file").touch()
    with (
        Stager(sshd.settings(cache_dir=str(tmp_path / "file" / "cache"))) as stager,
        pytest.raises(ConfigurationError) as caught,
    ):
        stager.lease(sshd.url("whatever"), expect=Stat("file", 1, 1))
    told(caught.value, "cannot make the cache in")


def test_threads_and_processes_that_all_want_many_files_move_each_once(
    sshd_factory, cache_dir, processes
):
    server = sshd_factory(log_requests=True)
    urls = make_files(server, "many", [f"{n:03}" for n in range(60)], size=2_000)
    crowd = [processes(server) for _ in range(2)]
    for shift, process in enumerate(crowd):
        for url in urls[30 * shift :] + urls[: 30 * shift]:
            process.tell(f"stage {url}")
    with Stager(server.settings(cache_dir=str(cache_dir))) as stager:
        moved: list[bool] = []

        def want_all() -> None:
            for future in [stager.stage(url) for url in urls]:
                with future.result(PATIENCE_S) as lease:
                    moved.append(not lease.from_cache)

        threads = [threading.Thread(target=want_all) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
        counts = [[process.answer() for _ in urls][-1]["counts"] for process in crowd]
        assert sum(count["files"] for count in counts) + sum(moved) == len(urls)
        assert server.requests("open") == len(urls)
    assert not left_over(cache_dir)


@pytest.mark.parametrize("above", [False, True])
def test_a_stager_goes_on_when_somebody_has_deleted_the_cache(stager, offer_all, cache_dir, above):
    a, b = offer_all("ab")
    lease = stager.lease(a)
    shutil.rmtree(cache_dir if above else root_of(cache_dir))
    assert stager.lease(a).path.stat().st_size == 10_000
    assert stager.lease(b).path.stat().st_size == 10_000
    again = stager.lease(a)
    lease.release()
    other = nodecache.NodeCache(root_of(cache_dir), 1_000_000)
    assert len(other.trim(0)) == 1
    assert again.path.stat().st_size == 10_000
    assert stat.S_IMODE(root_of(cache_dir).stat().st_mode) == 0o700
