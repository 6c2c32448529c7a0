"""What an engine answers: futures, which are waited for, cancelled, and shared by threads."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading

from pyremotedata_core import TransferEngine, helper, link

from .sites import WAIT_S, temporaries, tree
from .waiting import wait_until

LARGE = 24 * 2**20


def test_a_cancelled_transfer_ends_soon_and_leaves_nothing(slow, make, tmp_path):
    engine = slow.engine
    make("a", bytes(4 * LARGE))
    (tmp_path / "a").write_bytes(b"old")
    future = engine.fetch(slow.url("a"), tmp_path / "a")
    wait_until(lambda: temporaries(tmp_path), within_s=20)
    assert future.cancel()
    done, _ = concurrent.futures.wait([future], 5)
    assert done == {future}, "waiting for a cancelled future must end"
    wait_until(lambda: tree(tmp_path) == {"a": b"old"}, within_s=20)
    make("b", b"123")
    engine.fetch(slow.url("b"), tmp_path / "b").result(WAIT_S)


def test_a_listing_may_be_dropped_in_the_midst_of_another_request(
    engine, sshd, relay_factory, monkeypatch
):
    """The garbage collector does so, at whatever moment."""
    relay = relay_factory(sshd.port)
    url = relay.url(sshd.url())
    engine.stat(url).result(WAIT_S)
    relay.stall()
    kept = [engine.iterdir(url)]

    def pack(messages):
        kept.clear()
        return helper.pack(messages)

    monkeypatch.setattr(link, "pack", pack)
    asking = threading.Thread(target=engine.stat, args=(url,), daemon=True)
    asking.start()
    asking.join(WAIT_S)
    assert kept == []
    assert not asking.is_alive()


def test_queued_transfers_that_are_cancelled_never_begin(slow, make, tmp_path):
    engine = slow.engine
    for number in range(6):
        make(str(number), bytes(LARGE))
    urls = [slow.url(str(number)) for number in range(6)]
    futures = [engine.fetch(url, tmp_path / url[-1]) for url in urls]
    for future in futures:
        assert future.cancel()
    done, _ = concurrent.futures.wait(futures, 5)
    assert len(done) == 6
    engine.stat(urls[0]).result(WAIT_S)
    wait_until(lambda: tree(tmp_path) == {}, within_s=20)


def test_asyncio_waits_for_many_and_cancels(engine, sshd, remote_directory, tmp_path):
    for number in range(20):
        sshd.make(f"{remote_directory}/{number}", b"123")

    async def work() -> int:
        futures = [
            asyncio.wrap_future(
                engine.fetch(sshd.url(f"{remote_directory}/{number}"), tmp_path / str(number))
            )
            for number in range(20)
        ]
        sizes = [stat.size for stat in await asyncio.gather(*futures)]
        late = asyncio.wrap_future(engine.stat(sshd.url()))
        late.cancel()
        await asyncio.wait([late], timeout=10)
        assert late.cancelled()
        return sum(sizes)

    assert asyncio.run(work()) == 60


def test_a_callback_that_raises_harms_nobody(engine, sshd, remote_directory, tmp_path):
    sshd.make(f"{remote_directory}/a", bytes(100_000))
    url = sshd.url(f"{remote_directory}/a")

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    future = engine.fetch(url, tmp_path / "a", on_progress=fail)
    assert isinstance(future.exception(10), ZeroDivisionError)
    future = engine.stat(url)
    future.add_done_callback(fail)
    assert future.result(WAIT_S).size == 100_000
    assert engine.stat(url).result(WAIT_S).size == 100_000


def test_the_engine_outlives_the_thread_that_made_it(sshd):
    made: list[TransferEngine] = []

    def make() -> None:
        made.append(TransferEngine(sshd.settings()))
        made[0].stat(sshd.url()).result(WAIT_S)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join(WAIT_S)
    with made[0] as engine:
        assert engine.stat(sshd.url()).result(WAIT_S).kind == "directory"


def test_a_callback_that_waits_for_another_answer_is_told_and_hangs_nothing(engine, sshd):
    said: list[BaseException] = []
    called = threading.Event()

    def ask_again(_: object) -> None:
        try:
            engine.stat(sshd.url()).result(WAIT_S)
        except RuntimeError as error:
            said.append(error)
        called.set()

    engine.scandir(sshd.url()).add_done_callback(ask_again)
    assert called.wait(WAIT_S)
    assert "callback" in str(said)
    assert engine.stat(sshd.url()).result(WAIT_S).kind == "directory"


def test_a_directory_that_many_uploads_need_is_made_once(sshd_factory, tmp_path):
    server = sshd_factory(log_requests=True)
    (tmp_path / "f").write_bytes(b"x")
    with TransferEngine(server.settings()) as engine:
        urls = [server.url(f"new/deep/{number}") for number in range(30)]
        for future in [engine.store(tmp_path / "f", url) for url in urls]:
            future.result(WAIT_S)
    assert len(list((server.root / "new" / "deep").iterdir())) == 30
    assert server.requests("mkdir") == 3  # the lower one twice: at first there is no upper one
