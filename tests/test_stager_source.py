"""Files that something other than the engine brings to the Stager."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from pathlib import Path

import pytest

from pyremotedata_core import RemoteURL, Stat, TransferError
from pyremotedata_core.stager import Stager

from .forks import in_a_fork
from .waiting import PATIENCE_S, wait_until

FILE = "sftp://nowhere.invalid/data/a.bin"
STAT = Stat("file", 10, 1_600_000_000)


class Gift:
    """A source that writes some bytes, or only when it is told to."""

    def __init__(self, data: bytes, *, at_once: bool = True) -> None:
        self.data = data
        self.at_once = at_once
        self.orders: list[tuple[Future[Stat], Path]] = []
        self.told: list[tuple[str, bool]] = []

    def fetch(self, url, path, *, expect, background):
        order: Future[Stat] = Future()
        self.orders.append((order, Path(path)))
        if self.at_once:
            Path(path).write_bytes(self.data)
            order.set_result(expect)
        return order

    def ended(self, url: RemoteURL, stat: Stat, *, is_here: bool) -> None:
        self.told.append((str(url), is_here))


def test_a_source_brings_the_file_and_is_told(stager):
    stager.source = gift = Gift(b"0123456789")
    with stager.lease(FILE, expect=STAT) as lease:
        assert lease.path.read_bytes() == b"0123456789"
        assert int(lease.path.stat().st_mtime) == STAT.mtime
        assert not lease.from_cache
    wait_until(lambda: gift.told)
    assert gift.told == [(FILE, True)]
    with stager.lease(FILE, expect=STAT) as lease:
        assert lease.from_cache
    assert len(gift.orders) == 1


def test_what_a_source_delivers_short_is_not_published(stager, tmp_path):
    stager.source = gift = Gift(b"012345678")
    with pytest.raises(TransferError, match="9 bytes came instead of 10"):
        stager.lease(FILE, expect=STAT)
    assert gift.told == [(FILE, False)]
    assert not any(tmp_path.glob("cache/*/files/*"))
    wait_until(lambda: not any(tmp_path.glob("cache/*/incoming/*")))


def test_a_request_that_is_cancelled_stops_the_source(stager, tmp_path):
    stager.source = gift = Gift(b"", at_once=False)
    request = stager.stage(FILE, expect=STAT)
    wait_until(lambda: gift.orders)
    order, _ = gift.orders[0]
    request.cancel()
    assert order.cancelled()
    wait_until(lambda: gift.told)
    assert gift.told == [(FILE, False)]
    wait_until(lambda: not any(tmp_path.glob("cache/*/incoming/*")))


def test_a_forked_child_does_without_its_parents_source(stager, offer):
    url = offer("a", b"12345")
    stager.source = gift = Gift(b"", at_once=False)

    def work() -> None:
        lease = stager.stage(url).result(PATIENCE_S)
        assert lease.path.read_bytes() == b"12345"

    assert in_a_fork(work) == ""
    assert not gift.orders


def test_closing_does_not_wait_for_a_file_that_another_brings(stager, monkeypatch):
    monkeypatch.setattr("pyremotedata_core.stager.bringing._CLOSE_S", 10 * PATIENCE_S)
    stager.source = gift = Gift(b"", at_once=False)
    stager.stage(FILE, expect=STAT)
    wait_until(lambda: gift.orders)
    other = Stager(stager.settings)
    request = other.stage(FILE, expect=STAT)
    wait_until(lambda: "pyremotedata-await" in [one.name for one in threading.enumerate()])
    closing = threading.Thread(target=other.close, daemon=True)
    closing.start()
    closing.join(PATIENCE_S)
    assert not closing.is_alive()
    with pytest.raises(TransferError, match="closed"):
        request.result(0)


def test_only_what_is_in_the_cache_is_found(stager):
    stager.source = gift = Gift(b"0123456789")
    assert stager.find(FILE, STAT) is None
    stager.lease(FILE, expect=STAT).release()
    with stager.find(FILE, STAT) as lease:
        assert lease.path.read_bytes() == b"0123456789"
    assert stager.find(FILE, STAT._replace(mtime=1)) is None
    assert len(gift.orders) == 1
