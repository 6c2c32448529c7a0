"""Files that are fetched in the background, and then somebody waits for one of them."""

from __future__ import annotations

import concurrent.futures
import os
import threading
from pathlib import Path

import pytest

from pyremotedata_core import RemoteURL, Stat, TransferEngine
from pyremotedata_core.stager import Stager
from pyremotedata_core.stager.bringing import TRANSFERS_AT_ONCE

from .waiting import PATIENCE_S

SIZE = 600_000
FILES = 100  # 60 MB, of which a session takes 24 at a time


@pytest.fixture
def many(sshd, remote_directory, relay_factory, tmp_path):
    """Return the settings, URLs and content of many files behind a slow link, and the link."""
    data = os.urandom(SIZE)
    stat = Stat("file", SIZE, 1_600_000_000)
    relay = relay_factory(sshd.port, rate=10e6)
    names = [f"{remote_directory}/{number}" for number in range(FILES)]
    for name in names:
        sshd.make(name, data, mtime=stat.mtime)
    settings = sshd.settings(connections=1, cache_dir=str(tmp_path / "cache"))
    return settings, [relay.url(sshd.url(name)) for name in names], stat, data, relay


def ended(futures: list[concurrent.futures.Future]) -> list[int]:
    """Wait for all; return their numbers in the order in which they ended."""
    order = []
    for number, future in enumerate(futures):
        future.add_done_callback(lambda _, number=number: order.append(number))
    concurrent.futures.wait(futures, PATIENCE_S)
    assert not any(future.exception() for future in futures)
    return order


def test_a_promoted_fetch_overtakes_the_background(many, tmp_path):
    settings, urls, stat, data, relay = many
    with TransferEngine(settings) as engine:
        fetches = [
            engine.fetch(url, tmp_path / f"{number}", expect=stat, background=True)
            for number, url in enumerate(urls)
        ]
        engine.stat(urls[0]).result(PATIENCE_S)  # by now they wait in the queue
        engine.promote(fetches[-1])
        engine.promote(fetches[-1])
        fetches[-1].add_done_callback(lambda _: relay.set(rate=0))
        assert ended(fetches).index(FILES - 1) < FILES * 3 // 4
        engine.promote(fetches[-1])
        assert (tmp_path / f"{FILES - 1}").read_bytes() == data


def test_who_waits_for_a_file_that_is_staged_in_the_background_is_served_first(many):
    settings, urls, stat, data, relay = many
    with TransferEngine(settings) as engine, Stager(settings, engine=engine) as stager:
        ahead = [stager.stage(url, expect=stat, background=True) for url in urls]
        engine.stat(urls[0]).result(PATIENCE_S)  # by now the engine has all the orders
        wanted = stager.stage(urls[-1], expect=stat)
        wanted.add_done_callback(lambda _: relay.set(rate=0))
        assert ended([*ahead[:-1], wanted]).index(FILES - 1) < FILES * 3 // 4
        with wanted.result() as lease:
            assert lease.path.read_bytes() == data
        for future in ahead:
            future.result().release()


def test_a_file_that_somebody_waits_for_needs_no_place_among_the_background(sshd, tmp_path):
    class Silent:
        def __init__(self) -> None:
            self.orders: dict[str, concurrent.futures.Future[Stat]] = {}

        def fetch(self, url, path, *, expect, background):
            order = self.orders[url.name] = concurrent.futures.Future()
            if len(self.orders) == TRANSFERS_AT_ONCE:
                full.set()
            if not background:
                Path(path).write_bytes(b"1")
                order.set_result(expect)
            return order

        def ended(self, url: RemoteURL, stat: Stat, *, is_here: bool) -> None:
            pass

    full = threading.Event()
    with Stager(sshd.settings(cache_dir=str(tmp_path / "cache"))) as stager:
        stager.source = source = Silent()
        stat = Stat("file", 1, 1)
        for number in range(TRANSFERS_AT_ONCE + 1):
            stager.stage(f"sftp://nowhere.invalid/{number}", expect=stat, background=True)
        assert full.wait(PATIENCE_S)
        wanted = stager.stage("sftp://nowhere.invalid/wanted", expect=stat)
        wanted.result(PATIENCE_S).release()
        assert len(source.orders) == TRANSFERS_AT_ONCE + 1


def test_a_source_learns_that_somebody_waits(sshd, tmp_path):
    class Slow:
        def __init__(self) -> None:
            self.orders: list[concurrent.futures.Future[Stat]] = []
            self.promoted: list[concurrent.futures.Future[Stat]] = []

        def fetch(self, url, path, *, expect, background):
            assert background
            self.orders.append(concurrent.futures.Future())
            began.set_result(None)
            return self.orders[-1]

        def promote(self, future):
            self.promoted.append(future)
            future.cancel()

        def ended(self, url: RemoteURL, stat: Stat, *, is_here: bool) -> None:
            pass

    began: concurrent.futures.Future[None] = concurrent.futures.Future()
    with Stager(sshd.settings(cache_dir=str(tmp_path / "cache"))) as stager:
        stager.source = source = Slow()
        stat = Stat("file", 1, 1)
        stager.stage("sftp://nowhere.invalid/a", expect=stat, background=True)
        began.result(PATIENCE_S)
        wanted = stager.stage("sftp://nowhere.invalid/a", expect=stat)
        assert wanted.exception(PATIENCE_S) is not None
        assert source.promoted == source.orders
