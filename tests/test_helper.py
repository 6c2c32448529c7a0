"""The life of an engine: its helper process, forks, deaths, cancellations, leaks."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pyremotedata_core import (
    ConnectionLost,
    RemoteFileNotFound,
    TransferEngine,
    shared_engine,
)
from pyremotedata_core.loop import Loop
from workflows.embedded_sshd import descendants

from .forks import in_a_fork
from .sites import WAIT_S, temporaries, tree

LARGE = 24 * 2**20
END_S = 5.0  # generous: a loaded machine


def wait_until(condition: Callable[[], object], seconds: float = END_S) -> bool:
    """Poll; return whether it came true."""
    deadline = time.monotonic() + seconds
    while not (done := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(done)


def alive(pids: list[int]) -> list[int]:
    """Return which of these processes run (zombies do not)."""
    return [pid for pid in pids if state(pid) not in ("", "Z")]


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def helpers() -> list[int]:
    """Return the helper processes of this process."""
    return [p for p in descendants(os.getpid()) if "pyremotedata_core.helper" in command(p)]


@pytest.fixture
def engine(sshd):
    with TransferEngine(sshd.settings(timeout_s=30.0)) as engine:
        yield engine


@pytest.fixture
def slow(sshd, relay_factory):
    """An engine at the far end of a link of 8 MB/s, and the relay."""
    relay = relay_factory(sshd.port, rate=8e6)
    with TransferEngine(sshd.settings(timeout_s=30.0)) as engine:
        yield engine, relay


# --- start and end --------------------------------------------------------------------------


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, pyremotedata_core\n"
        "from pyremotedata_core import Remote, TransferEngine\n"
        "heavy = 'snakemake', 'dask', 'distributed', 'paramiko', 'asyncio', 'tqdm', 'lftp'\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_helper_starts_with_the_first_request_and_ends_with_close(sshd):
    before = helpers()
    engine = TransferEngine(sshd.settings())
    assert helpers() == before
    engine.stat(sshd.url()).result(WAIT_S)
    new = sorted(set(helpers()) - set(before))
    assert len(new) == 1
    children = descendants(new[0])
    assert any("ssh" in command(pid) for pid in children)
    engine.close()
    assert wait_until(lambda: not alive(new + children))
    assert state(new[0]) == "", "a zombie"


def test_a_helper_that_is_started_early_connects_to_nothing_and_serves_the_first_request(sshd):
    before = helpers()
    with TransferEngine(sshd.settings()) as engine:
        engine.start()
        assert wait_until(lambda: len(helpers()) > len(before))
        (early,) = set(helpers()) - set(before)
        assert not descendants(early)
        engine.stat(sshd.url("")).result(WAIT_S)
        assert set(helpers()) - set(before) == {early}
        assert any("ssh" in command(pid) for pid in descendants(early))
    assert wait_until(lambda: not alive([early]))


def test_a_closed_engine_says_so(sshd):
    engine = TransferEngine(sshd.settings())
    engine.close()
    engine.close()
    with pytest.raises(ConnectionLost, match="closed"):
        engine.stat(sshd.url())
    with TransferEngine(sshd.settings()) as engine:
        engine.stat(sshd.url()).result(WAIT_S)
    engine.close()
    with pytest.raises(ConnectionLost, match="closed"):
        engine.stat(sshd.url())


def test_an_engine_that_nobody_holds_ends_its_helper_after_what_is_under_way(
    sshd, remote_directory, tmp_path
):
    sshd.make(f"{remote_directory}/a", b"a" * LARGE)
    before = helpers()
    engine = TransferEngine(sshd.settings())
    fetched = engine.fetch(sshd.url(f"{remote_directory}/a"), tmp_path / "a")
    # Its command line tells it from other children once it has begun.
    assert wait_until(lambda: set(helpers()) - set(before))
    mine = set(helpers()) - set(before)
    del engine
    assert fetched.result(WAIT_S).size == LARGE
    assert len(mine) == 1
    assert wait_until(lambda: not alive([*mine]))


def test_closing_ends_what_is_under_way_and_leaves_nothing(slow, sshd, remote_directory, tmp_path):
    engine, _ = slow
    sshd.make(f"{remote_directory}/a", bytes(6 * LARGE))
    future = engine.fetch(sshd_url(slow, sshd, remote_directory, "a"), tmp_path / "a")
    assert wait_until(lambda: temporaries(tmp_path), 20)
    engine.close()
    assert isinstance(future.exception(WAIT_S), ConnectionLost)
    assert wait_until(lambda: tree(tmp_path) == {})


def sshd_url(slow, sshd, directory: str, name: str) -> str:
    _, relay = slow
    return relay.url(sshd.url(f"{directory}/{name}"))


def test_an_engine_in_process_needs_no_helper(sshd, remote_directory, tmp_path):
    before = helpers()
    sshd.make(f"{remote_directory}/a", b"123")
    with TransferEngine(sshd.settings(), in_process=True) as engine:
        engine.fetch(sshd.url(f"{remote_directory}/a"), tmp_path / "a").result(WAIT_S)
        assert helpers() == before
    assert (tmp_path / "a").read_bytes() == b"123"
    names = lambda: [thread.name for thread in threading.enumerate()]  # noqa: E731
    assert wait_until(lambda: "pyremotedata-io" not in names())


# --- the parent's death ---------------------------------------------------------------------

OWNER = """\
import os, sys, time
from pyremotedata_core import TransferEngine
engine = TransferEngine()
engine.stat(sys.argv[1]).result(30)
future = engine.fetch(sys.argv[1], sys.argv[2])
while not any(name.endswith(".part") for name in os.listdir(os.path.dirname(sys.argv[2]))):
    time.sleep(0.01)
{before}
print("ready", flush=True)
{then}
"""


@pytest.mark.parametrize(
    ("before", "then"),
    [
        ("", "time.sleep(100)"),  # killed
        ("if os.fork() == 0: os.execvp('sleep', ['sleep', '3'])", "time.sleep(100)"),
        ("if os.fork() == 0: time.sleep(3); os._exit(0)", "time.sleep(100)"),
        ("", "sys.exit(0)"),
        ("", "os._exit(0)"),
        ("", "raise ValueError"),
        ("import signal", "os.kill(os.getpid(), signal.SIGTERM)"),
        ("import signal", "os.kill(os.getpid(), signal.SIGABRT)"),
    ],
    ids=["killed", "with an heir", "with a fork", "exit", "_exit", "exception", "term", "abort"],
)
def test_helper_and_ssh_end_with_the_parent(
    sshd, remote_directory, relay_factory, tmp_path, before, then
):
    relay = relay_factory(sshd.port, rate=4e6)
    sshd.make(f"{remote_directory}/a", bytes(4 * LARGE))
    url = relay.url(sshd.url(f"{remote_directory}/a"))
    environment = {**os.environ, **sshd.environment()}
    code = textwrap.dedent(OWNER).format(before=before, then=then)
    owner = subprocess.Popen(
        [sys.executable, "-c", code, url, str(tmp_path / "a")],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert owner.stdout is not None
    assert owner.stdout.readline() == b"ready\n"
    started = [pid for pid in descendants(owner.pid) if "sleep" not in command(pid)]
    ours = [pid for pid in started if "pyremotedata_core" in command(pid) or "ssh" in command(pid)]
    if "time.sleep" in then:
        # An ssh that is being started bears the helper's name until it is.
        assert wait_until(lambda: sum("helper" in command(pid) for pid in ours) == 1)
        assert any("ssh" in command(pid).split()[0] for pid in ours)
        owner.kill()
    owner.wait(20)
    owner.stdout.close()
    assert wait_until(
        lambda: not alive([p for p in ours if "-c" not in command(p) or "helper" in command(p)])
    )
    assert wait_until(lambda: tree(tmp_path) == {}), "the helper clears its temporary file away"


# --- the helper's death ---------------------------------------------------------------------


def test_a_killed_helper_fails_what_is_under_way_and_another_takes_over(
    slow, sshd, remote_directory, tmp_path
):
    engine, _ = slow
    sshd.make(f"{remote_directory}/a", bytes(2 * LARGE))
    sshd.make(f"{remote_directory}/b", b"123")
    a, b = (sshd_url(slow, sshd, remote_directory, name) for name in "ab")
    for _ in range(3):
        future = engine.fetch(a, tmp_path / "a")
        assert wait_until(lambda: temporaries(tmp_path), 20)
        (helper,) = helpers()
        os.kill(helper, signal.SIGKILL)
        error = future.exception(WAIT_S)
        assert isinstance(error, ConnectionLost)
        assert error.retryable
        assert str(error) == f"{a}: the helper process was killed by signal 9"
        assert engine.fetch(b, tmp_path / "b").result(WAIT_S).size == 3
        assert tree(tmp_path) == {"b": b"123"}, "the next run clears what was left away"
        (tmp_path / "b").unlink()


def test_a_helper_that_dies_idle_is_replaced_unnoticed(engine, sshd):
    for pause_s in (0.0, 0.0, 0.0, 0.3):
        engine.stat(sshd.url()).result(WAIT_S)
        (helper,) = helpers()
        os.kill(helper, signal.SIGKILL)
        wait_until(lambda pid=helper: not alive([pid]))
        time.sleep(pause_s)
        assert engine.stat(sshd.url()).result(WAIT_S).kind == "directory"


def test_a_helper_that_hangs_is_killed_by_close(sshd):
    engine = TransferEngine(sshd.settings())
    engine.stat(sshd.url()).result(WAIT_S)
    (helper,) = helpers()
    os.kill(helper, signal.SIGSTOP)
    future = engine.stat(sshd.url())
    engine.close()
    assert state(helper) == ""
    assert isinstance(future.exception(WAIT_S), ConnectionLost)


def test_a_killed_ssh_is_replaced(engine, sshd, remote_directory):
    for _ in range(3):
        engine.stat(sshd.url()).result(WAIT_S)
        (helper,) = helpers()
        for pid in descendants(helper):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert engine.stat(sshd.url(remote_directory)).result(WAIT_S).kind == "directory"
        assert wait_until(lambda pid=helper: not [p for p in descendants(pid) if state(p) == "Z"])


def test_ctrl_c_is_the_callers_business(engine, sshd):
    """The terminal sends it to the whole group; the helper ends when the caller decides so."""
    engine.stat(sshd.url()).result(WAIT_S)
    (helper,) = helpers()
    assert os.getpgid(helper) != os.getpgid(0)
    for number in (signal.SIGINT, signal.SIGHUP):
        os.kill(helper, number)
    engine.stat(sshd.url()).result(WAIT_S)
    assert helpers() == [helper]


# --- forks ----------------------------------------------------------------------------------


def test_a_forked_child_has_an_engine_of_its_own(engine, sshd, remote_directory, tmp_path):
    sshd.make(f"{remote_directory}/a", b"123")
    url = sshd.url(f"{remote_directory}/a")
    engine.stat(url).result(WAIT_S)
    parents = helpers()

    def work() -> None:
        assert engine.fetch(url, tmp_path / "child").result(WAIT_S).size == 3
        assert helpers()
        assert helpers() != parents
        engine.close()

    assert in_a_fork(work) == ""
    assert (tmp_path / "child").read_bytes() == b"123"
    assert engine.fetch(url, tmp_path / "parent").result(WAIT_S).size == 3
    assert helpers() == parents


def test_a_fork_in_mid_transfer_ends_neither(slow, sshd, remote_directory, tmp_path):
    engine, _ = slow
    data = os.urandom(LARGE)
    sshd.make(f"{remote_directory}/a", data)
    sshd.make(f"{remote_directory}/b", b"123")
    a, b = (sshd_url(slow, sshd, remote_directory, name) for name in "ab")
    future = engine.fetch(a, tmp_path / "a")

    def work() -> None:
        assert isinstance(future.exception(WAIT_S), ConnectionLost)
        assert engine.fetch(b, tmp_path / "b").result(WAIT_S).size == 3

    assert in_a_fork(work) == ""
    assert future.result(WAIT_S).size == LARGE
    assert tree(tmp_path) == {"a": data, "b": b"123"}


def test_forks_in_a_row_from_several_threads_work(engine, sshd):
    engine.stat(sshd.url()).result(WAIT_S)
    said: list[str] = []

    def ask() -> None:
        engine.stat(sshd.url()).result(WAIT_S)

    threads = [threading.Thread(target=lambda: said.append(in_a_fork(ask))) for _ in range(4)]
    for thread in threads:
        thread.start()
        ask()
    for thread in threads:
        thread.join(WAIT_S)
    assert said == [""] * 4


def _read_in_child(url: str, path: str) -> int:
    return shared_engine().fetch(url, path).result(WAIT_S).size


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_of_multiprocessing_work(sshd, remote_directory, tmp_path, monkeypatch, method):
    monkeypatch.setenv("PYREMOTEDATA_SSH_CONFIG", str(sshd.ssh_config))
    sshd.make(f"{remote_directory}/a", b"123")
    url = sshd.url(f"{remote_directory}/a")
    shared_engine().stat(url).result(WAIT_S)
    context = multiprocessing.get_context(method)
    with context.Pool(3) as pool:
        jobs = [(url, str(tmp_path / f"{number}")) for number in range(6)]
        assert pool.starmap_async(_read_in_child, jobs).get(WAIT_S) == [3] * 6
    assert shared_engine().stat(url).result(WAIT_S).size == 3


def test_equal_settings_share_an_engine_until_it_is_closed(sshd):
    engine = shared_engine(sshd.settings())
    assert shared_engine(sshd.settings()) is engine
    assert shared_engine(sshd.settings(timeout_s=7.0)) is not engine
    engine.close()
    assert shared_engine(sshd.settings()) is not engine


# --- futures --------------------------------------------------------------------------------


def test_a_cancelled_transfer_ends_soon_and_leaves_nothing(slow, sshd, remote_directory, tmp_path):
    engine, _ = slow
    sshd.make(f"{remote_directory}/a", bytes(4 * LARGE))
    (tmp_path / "a").write_bytes(b"old")
    future = engine.fetch(sshd_url(slow, sshd, remote_directory, "a"), tmp_path / "a")
    assert wait_until(lambda: temporaries(tmp_path), 20)
    assert future.cancel()
    done, _ = concurrent.futures.wait([future], 5)
    assert done == {future}, "waiting for a cancelled future must end"
    assert wait_until(lambda: tree(tmp_path) == {"a": b"old"}, 20)
    sshd.make(f"{remote_directory}/b", b"123")
    engine.fetch(sshd_url(slow, sshd, remote_directory, "b"), tmp_path / "b").result(WAIT_S)


def test_a_cancelled_upload_leaves_nothing(slow, sshd, remote_directory, tmp_path):
    engine, _ = slow
    (tmp_path / "a").write_bytes(bytes(4 * LARGE))
    there = sshd.root / remote_directory
    future = engine.store(tmp_path / "a", sshd_url(slow, sshd, remote_directory, "a"))
    assert wait_until(lambda: temporaries(there), 20)
    assert future.cancel()
    assert wait_until(lambda: tree(there) == {}, 20)


def test_queued_transfers_that_are_cancelled_never_begin(slow, sshd, remote_directory, tmp_path):
    engine, _ = slow
    for number in range(6):
        sshd.make(f"{remote_directory}/{number}", bytes(LARGE))
    urls = [sshd_url(slow, sshd, remote_directory, str(number)) for number in range(6)]
    futures = [engine.fetch(url, tmp_path / url[-1]) for url in urls]
    for future in futures:
        assert future.cancel()
    done, _ = concurrent.futures.wait(futures, 5)
    assert len(done) == 6
    engine.stat(urls[0]).result(WAIT_S)
    assert wait_until(lambda: tree(tmp_path) == {}, 20)


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


def test_twenty_threads_share_an_engine(engine, sshd, remote_directory, tmp_path):
    wanted = {f"{n}-{m}": os.urandom(n * m * 50) for n in range(20) for m in range(5)}
    for name, data in wanted.items():
        sshd.make(f"{remote_directory}/{name}", data)

    def work(number: int) -> None:
        for m in range(5):
            name = f"{number}-{m}"
            engine.fetch(sshd.url(f"{remote_directory}/{name}"), tmp_path / name).result(WAIT_S)
            engine.store(tmp_path / name, sshd.url(f"{remote_directory}/up/{name}")).result(WAIT_S)
            with pytest.raises(RemoteFileNotFound):
                engine.stat(sshd.url(f"{remote_directory}/none")).result(WAIT_S)

    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        list(pool.map(work, range(20)))
    assert tree(tmp_path) == wanted
    assert tree(sshd.root / remote_directory / "up") == wanted


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


# --- leaks ----------------------------------------------------------------------------------


def test_two_hundred_transfers_leave_no_descriptor(engine, sshd, remote_directory, tmp_path):
    data = os.urandom(10_000)
    sshd.make(f"{remote_directory}/a", data)
    a, none = (sshd.url(f"{remote_directory}/{name}") for name in ("a", "none"))
    up = sshd.url(f"{remote_directory}/up")

    def some() -> None:
        for number in range(5):
            engine.fetch(a, tmp_path / "a").result(WAIT_S)
            engine.store(tmp_path / "a", up + str(number)).result(WAIT_S)
            engine.scandir(sshd.url(remote_directory)).result(WAIT_S)
            assert engine.fetch(none, tmp_path / "none").exception(WAIT_S)
            assert engine.store(tmp_path / "none", up).exception(WAIT_S)
            engine.fetch(a, tmp_path / "a").cancel()

    def descriptors() -> dict[int, int]:
        processes = [os.getpid(), *helpers(), *descendants(helpers()[0])]
        return {pid: len(os.listdir(f"/proc/{pid}/fd")) for pid in processes}

    some()
    engine.stat(a).result(WAIT_S)
    before = descriptors()
    for _ in range(20):
        some()
    assert wait_until(lambda: descriptors() == before), (before, descriptors())


def test_engines_that_come_and_go_leave_no_descriptor_thread_or_zombie(sshd):
    def once(in_process: bool) -> None:
        with TransferEngine(sshd.settings(), in_process=in_process) as engine:
            engine.stat(sshd.url()).result(WAIT_S)

    def count() -> tuple[int, int, int]:
        zombies = [pid for pid in descendants(os.getpid()) if state(pid) == "Z"]
        return len(os.listdir("/proc/self/fd")), threading.active_count(), len(zombies)

    def is_left() -> bool:  # less than before is what an earlier test had left
        return any(now > then for now, then in zip(count(), before, strict=True))

    once(False)
    once(True)
    before = (*count()[:2], 0)  # the server's own children are zombies for a moment
    for number in range(6):
        once(bool(number % 2))
    assert wait_until(lambda: not is_left()), (before, count())


# --- secrets --------------------------------------------------------------------------------


def test_a_password_stands_in_no_command_line(miglike):
    """Neither of the helper nor of ssh nor of what ssh asks."""
    seen: set[str] = set()
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            seen.update(command(pid) for pid in descendants(os.getpid()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with TransferEngine(miglike.password_settings()) as engine:
            assert engine.stat(miglike.url()).result(WAIT_S).kind == "directory"
            assert miglike.password not in repr(engine)
    finally:
        stop.set()
        watcher.join()
    assert any("ssh" in text and "sftp" in text for text in seen)
    assert not [text for text in seen if miglike.password in text]


def test_a_directory_that_many_uploads_need_is_made_once(sshd_factory, tmp_path):
    server = sshd_factory(log_requests=True)
    (tmp_path / "f").write_bytes(b"x")
    with TransferEngine(server.settings()) as engine:
        urls = [server.url(f"new/deep/{number}") for number in range(30)]
        for future in [engine.store(tmp_path / "f", url) for url in urls]:
            future.result(WAIT_S)
    assert len(list((server.root / "new" / "deep").iterdir())) == 30
    assert server.requests("mkdir") == 3  # the lower one twice: at first there is no upper one


def test_a_call_to_a_loop_that_has_ended_writes_into_no_other_file(tmp_path):
    loop = Loop()
    wakes = loop._wake_out
    loop.call_soon_threadsafe(loop.stop)
    loop.run()
    with open(tmp_path / "other", "wb") as other:
        os.dup2(other.fileno(), wakes)  # as the next file that is opened gets its number
        loop.call_soon_threadsafe(loop.stop)
        os.close(wakes)
    assert (tmp_path / "other").read_bytes() == b""


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
