"""What a worker's staging keeps of its tasks' files, at moments that a cluster rarely meets."""

from __future__ import annotations

import sys
from threading import Event, Thread, Timer

import pytest

from dask_plugin import current
from dask_plugin.remotefile import RemoteFile
from dask_plugin.staging import QUESTIONS_AT_ONCE, WorkerStaging
from pyremotedata_core import ConfigurationError, Lease
from pyremotedata_core.stager import Stager

from .forks import in_a_fork
from .stager_nodes import files_in
from .waiting import PATIENCE_S, wait_until, wait_until_stalled


@pytest.fixture
def serve():
    """Make the staging of a worker, with a stager or what makes one."""
    served: list[WorkerStaging] = []

    def make(make_stager) -> WorkerStaging:
        served.append(WorkerStaging(make_stager, 64, 2**30, lambda _opened: None))
        return served[-1]

    yield make
    for staging in served:
        staging.close()


class Worker:
    """Where a staging is enlisted."""


def known(stager: Stager, url: str) -> RemoteFile:
    stat = stager.stat(url).result()
    return RemoteFile(url, stat.size, stat.mtime)


def test_a_file_that_a_task_has_open_is_not_staged_again(serve, stager, offer_all):
    a, b = map(RemoteFile, offer_all("ab"))
    staging = serve(lambda: stager)
    (lease,) = staging.claim("task", [a])
    counts = stager.counts()
    assert staging.claim("task", [a]) == [lease]
    assert stager.counts() == counts
    staging.claim("task", [b])
    assert stager.counts().cache_hits == counts.cache_hits


def test_files_are_fetched_ahead_once_settings_are_right_again(serve, stager, offer_all, cache_dir):
    failures = iter(range(QUESTIONS_AT_ONCE))

    def make_stager() -> Stager:
        if next(failures, None) is not None:
            raise ConfigurationError("not yet")
        return stager

    (url,) = offer_all("a")
    staging = serve(make_stager)
    staging.want("failing", (0,), [RemoteFile(f"{url}{n}") for n in range(QUESTIONS_AT_ONCE)])
    staging.want("task", (1,), [RemoteFile(url)])
    wait_until(lambda: staging.counts().files, "the file was fetched ahead")
    assert files_in(cache_dir) == {"a"}


def test_a_file_that_changes_after_it_was_fetched_ahead_is_opened_as_it_is(
    serve, stager, offer_all, make
):
    (url,) = offer_all("a")
    staging = serve(lambda: stager)
    staging.want("task", (0,), [RemoteFile(url)])
    wait_until(lambda: staging.counts().files, "the file was fetched ahead")
    make("a", b"new")
    stager.stat(url, anew=True).result()  # the answer to the prefetch is out of date
    (lease,) = staging.claim("task", [RemoteFile(url)])
    assert lease.path.read_bytes() == b"new"


def test_a_task_opens_anew_what_has_changed_since_it_opened_it(serve, stager, offer_all):
    (url,) = offer_all("a")
    staging = serve(lambda: stager)
    staging.want("task", (0,), [RemoteFile(url)])
    wait_until(lambda: staging.counts().files, "the file was fetched ahead")
    stat = stager.stat(url).result()
    assert staging.handle_on("task", url, stat) == RemoteFile(url)
    staging.claim("task", [RemoteFile(url)])
    counts = staging.counts()
    assert (counts.files, counts.cache_files) == (1, 0)  # as it was fetched ahead
    assert staging.handle_on("task", url, stat) == RemoteFile(url)
    changed = stat._replace(mtime=stat.mtime + 1)
    assert staging.handle_on("task", url, changed).mtime == changed.mtime


def test_nothing_is_fetched_ahead_where_no_file_may_be(stager, offer_all):
    (url,) = offer_all("a")
    for bounds in ((0, 2**30), (64, 0)):
        staging = WorkerStaging(lambda: stager, *bounds, lambda _opened: None)
        staging.want("task", (0,), [known(stager, url)])
        assert not staging.has_files("task")
        assert staging.claim("task", [RemoteFile(url)])
        staging.close()


def test_a_task_that_ends_while_its_file_is_ordered_keeps_nothing(
    serve, sshd, offer_all, cache_dir
):
    (url,) = offer_all("a")

    class Hasty(Stager):
        def stage(self, *args, **options):
            future = super().stage(*args, **options)
            staging.end("task")
            return future

    with Hasty(sshd.settings(cache_dir=str(cache_dir))) as stager:
        staging = serve(lambda: stager)
        staging.want("task", (0,), [known(stager, url)])
        wait_until(lambda: staging.counts().files, "the file was fetched ahead")
        ((_, key),) = stager.cache.keys_by_use()
        wait_until(lambda: not stager.cache.is_in_use(key), "nobody uses the file")


def test_handles_arrive_while_workers_come_and_go(serve):
    staging = serve(lambda: None)
    ended = Event()

    def come_and_go() -> None:
        while not ended.is_set():
            workers = [Worker() for _ in range(20)]
            for worker in workers:
                current.enlist(worker, staging)
            for worker in workers:
                current.dismiss(worker)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    crowd = Thread(target=come_and_go, daemon=True)
    crowd.start()
    try:
        for _ in range(20_000):
            current.announce(RemoteFile("sftp://h/a"))
    finally:
        ended.set()
        crowd.join()
        sys.setswitchinterval(interval)


def test_a_forked_child_waits_for_no_file_that_comes_to_its_parent(serve, far, cache_dir):
    server, relay = far
    server.make("a", b"x" * 2_000_000)
    handle = RemoteFile(far.url("a"))
    with Stager(server.settings(cache_dir=str(cache_dir))) as stager:
        staging = serve(lambda: stager)
        current.enlist(worker := Worker(), staging)
        leases: list[Lease] = []

        def read() -> Thread:
            reader = Thread(
                target=lambda: leases.extend(staging.claim("task", [handle])), daemon=True
            )
            reader.start()
            return reader

        def work() -> None:
            read().join(PATIENCE_S)
            assert leases[0].path.read_bytes() == b"x" * 2_000_000

        relay.stall(after_bytes=500_000)
        reader = read()
        wait_until_stalled(relay)
        resuming = Timer(0.5, relay.resume)
        resuming.start()
        assert in_a_fork(work) == ""
        reader.join()
        resuming.join()
        current.dismiss(worker)
