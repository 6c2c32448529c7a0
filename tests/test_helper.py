"""The life of an engine: its helper process, forks, deaths, leaks."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from pyremotedata_core import ConnectionLost, Secret, TransferEngine, shared_engine
from pyremotedata_core.loop import Loop
from workflows.embedded_sshd import descendants

from .command import python
from .forks import in_a_fork
from .processes import alive, below, command_of, state_of
from .servers import ScriptedSshd
from .sites import WAIT_S, temporaries, tree
from .waiting import soon, wait_until

LARGE = 24 * 2**20


def helpers() -> list[int]:
    """Return the helper processes of this process."""
    return below("pyremotedata_core.helper")


# --- start and end --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        (
            "from pyremotedata_core import Remote, Stager, TransferEngine, shared_engine",
            {"snakemake", "dask", "distributed", "fsspec", "paramiko", "asyncio", "tqdm"},
        ),
        (
            "import pickle; from dask_plugin import RemoteFile;"
            "pickle.loads(pickle.dumps(RemoteFile('sftp://h/a')))",
            {"dask", "distributed", "pandas", "numpy", "paramiko"},
        ),
        ("import dask_plugin.plotting, dask_plugin.plugin", {"matplotlib"}),
    ],
)
def test_importing_the_packages_loads_nothing_heavy(code, heavy):
    if "plotting" in code:
        pytest.importorskip("distributed")
    loaded = python(f"{code}\nimport sys; print(*sys.modules)").stdout.split()
    assert not heavy & set(loaded)


def test_the_helper_starts_with_the_first_request_and_ends_with_close(sshd):
    before = helpers()
    engine = TransferEngine(sshd.settings())
    assert helpers() == before
    engine.stat(sshd.url()).result(WAIT_S)
    new = sorted(set(helpers()) - set(before))
    assert len(new) == 1
    children = descendants(new[0])
    assert any("ssh" in command_of(pid) for pid in children)
    engine.close()
    soon(lambda: not alive(new + children))
    assert state_of(new[0]) == "", "a zombie"


def test_a_helper_that_is_started_early_connects_to_nothing_and_serves_the_first_request(sshd):
    before = helpers()
    with TransferEngine(sshd.settings()) as engine:
        engine.start()
        soon(lambda: len(helpers()) > len(before))
        (early,) = set(helpers()) - set(before)
        assert not descendants(early)
        engine.stat(sshd.url("")).result(WAIT_S)
        assert set(helpers()) - set(before) == {early}
        assert any("ssh" in command_of(pid) for pid in descendants(early))
    soon(lambda: not alive([early]))


def test_a_helper_that_cannot_be_started_is_an_error_that_says_so(sshd, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with (
        TransferEngine(sshd.settings()) as engine,
        pytest.raises(ConnectionLost, match=r"cannot start the helper process: .*No such file"),
    ):
        engine.stat(sshd.url())


def test_a_program_that_is_not_python_is_named(sshd, monkeypatch):
    """As in a server that embeds Python."""
    program = shutil.which("false")
    monkeypatch.setattr(sys, "executable", program)
    with TransferEngine(sshd.settings()) as engine, pytest.raises(ConnectionLost, match=program):
        engine.stat(sshd.url()).result(WAIT_S)


def test_a_frozen_program_does_not_start_itself(sshd, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "program"))
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with TransferEngine(sshd.settings()) as engine:
        assert engine.stat(sshd.url()).result(WAIT_S).kind == "directory"


def test_a_process_without_standard_streams_has_a_helper(sshd, tmp_path):
    """As a daemon may be."""
    script = """
import os, sys
from pyremotedata_core import Remote
os.closerange(0, 3)
with Remote(sys.argv[1], ssh_config=sys.argv[2]) as remote:
    remote.get(sys.argv[3], sys.argv[4])
"""
    sshd.make("streams/a", b"abc")
    python(script, sshd.url(), sshd.ssh_config, "streams/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"abc"


def test_a_process_that_may_have_no_further_thread_is_told_so(sshd):
    """By limits of the machine, as those of memory."""
    script = """
import resource, sys, threading
from pyremotedata_core import ConnectionLost, TransferEngine
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, resource.RLIM_INFINITY))
threading.stack_size(1 << 30)
with TransferEngine(in_process=True) as engine:
    try:
        engine.stat(sys.argv[1])
    except ConnectionLost as error:
        print(error)
"""
    said = python(script, sshd.url()).stdout
    assert said.startswith("cannot start the helper process: can't start new thread")


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
    soon(lambda: set(helpers()) - set(before))
    mine = set(helpers()) - set(before)
    del engine
    assert fetched.result(WAIT_S).size == LARGE
    assert len(mine) == 1
    soon(lambda: not alive([*mine]))


def test_closing_ends_what_is_under_way_and_leaves_nothing(slow, make, tmp_path):
    engine = slow.engine
    make("a", bytes(6 * LARGE))
    future = engine.fetch(slow.url("a"), tmp_path / "a")
    wait_until(lambda: temporaries(tmp_path), within_s=20)
    engine.close()
    assert isinstance(future.exception(WAIT_S), ConnectionLost)
    soon(lambda: tree(tmp_path) == {})


def test_an_engine_in_process_needs_no_helper(sshd, remote_directory, tmp_path):
    before = helpers()
    sshd.make(f"{remote_directory}/a", b"123")
    with TransferEngine(sshd.settings(), in_process=True) as engine:
        engine.fetch(sshd.url(f"{remote_directory}/a"), tmp_path / "a").result(WAIT_S)
        assert helpers() == before
    assert (tmp_path / "a").read_bytes() == b"123"
    names = lambda: [thread.name for thread in threading.enumerate()]  # noqa: E731
    soon(lambda: "pyremotedata-io" not in names())


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
    started = [pid for pid in descendants(owner.pid) if "sleep" not in command_of(pid)]
    ours = [
        pid for pid in started if "pyremotedata_core" in command_of(pid) or "ssh" in command_of(pid)
    ]
    if "time.sleep" in then:
        # An ssh that is being started bears the helper's name until it is.
        soon(lambda: sum("helper" in command_of(pid) for pid in ours) == 1)
        assert any("ssh" in command_of(pid).split()[0] for pid in ours)
        owner.kill()
    owner.wait(20)
    owner.stdout.close()
    soon(
        lambda: (
            not alive([p for p in ours if "-c" not in command_of(p) or "helper" in command_of(p)])
        )
    )
    soon(lambda: tree(tmp_path) == {}, "the helper clears its temporary file away")


# --- the helper's death ---------------------------------------------------------------------


def test_what_a_killed_helper_was_moving_another_one_moves_once(slow, make, tmp_path):
    engine = slow.engine
    data = os.urandom(LARGE)
    make("a", data)
    fetch = engine.fetch(slow.url("a"), tmp_path / "a")
    kill_in_mid_fetch(tmp_path)
    assert fetch.result(WAIT_S).size == len(data)
    make("b", bytes(2 * LARGE))
    fetch = engine.fetch(slow.url("b"), tmp_path / "b")
    for _ in range(2):
        kill_in_mid_fetch(tmp_path)
    error = fetch.exception(WAIT_S)
    assert isinstance(error, ConnectionLost)
    assert error.retryable
    assert str(error) == f"{slow.url('b')}: the helper process was killed by signal 9"
    make("c", b"123")
    assert engine.fetch(slow.url("c"), tmp_path / "c").result(WAIT_S).size == 3
    assert tree(tmp_path) == {"a": data, "c": b"123"}, "the next run clears what was left away"


def test_a_new_file_is_not_stored_twice(tmp_path):
    """By the second helper the first one's would be taken for somebody else's."""
    (tmp_path / "a").write_bytes(b"123")
    options = {"hold": "rename", "mark": str(tmp_path / "mark"), "extensions": False}
    with ScriptedSshd("relay", options) as server:
        place = server.make_directory("t")
        with TransferEngine(server.settings()) as engine:
            store = engine.store(tmp_path / "a", server.url("t/a"), overwrite=False)
            wait_until((tmp_path / "mark0").exists, "it is to get its name")
            (helper,) = helpers()
            os.kill(helper, signal.SIGSTOP)
            (tmp_path / "mark0").write_bytes(b"")
            wait_until((tmp_path / "mark0.done").exists, "it has its name")
            os.kill(helper, signal.SIGKILL)
            assert isinstance(store.exception(WAIT_S), ConnectionLost)
        assert tree(place) == {"a": b"123"}


def kill_in_mid_fetch(directory):
    """Kill the helper once it has connected and something has arrived; wait for its end."""
    wait_until(lambda: temporaries(directory) and any(map(descendants, helpers())), within_s=20)
    (helper,) = helpers()
    os.kill(helper, signal.SIGKILL)
    soon(lambda: helper not in helpers())


def test_a_helper_that_dies_idle_is_replaced_unnoticed(engine, sshd):
    for pause_s in (0.0, 0.0, 0.0, 0.3):
        engine.stat(sshd.url()).result(WAIT_S)
        (helper,) = helpers()
        os.kill(helper, signal.SIGKILL)
        soon(lambda pid=helper: not alive([pid]))
        time.sleep(pause_s)
        assert engine.stat(sshd.url()).result(WAIT_S).kind == "directory"


def test_a_helper_that_hangs_is_killed_by_close(sshd):
    engine = TransferEngine(sshd.settings())
    engine.stat(sshd.url()).result(WAIT_S)
    (helper,) = helpers()
    os.kill(helper, signal.SIGSTOP)
    future = engine.stat(sshd.url())
    engine.close()
    assert state_of(helper) == ""
    assert isinstance(future.exception(WAIT_S), ConnectionLost)


def test_a_killed_ssh_is_replaced(engine, sshd, remote_directory):
    for _ in range(3):
        engine.stat(sshd.url()).result(WAIT_S)
        (helper,) = helpers()
        for pid in descendants(helper):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert engine.stat(sshd.url(remote_directory)).result(WAIT_S).kind == "directory"
        soon(lambda pid=helper: not [p for p in descendants(pid) if state_of(p) == "Z"])


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


def test_a_fork_in_mid_transfer_ends_neither(slow, make, tmp_path):
    engine = slow.engine
    data = os.urandom(LARGE)
    make("a", data)
    make("b", b"123")
    a, b = (slow.url(name) for name in "ab")
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
    assert shared_engine(sshd.settings(password=Secret("one"))) is not engine
    engine.close()
    assert shared_engine(sshd.settings()) is not engine


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
    soon(lambda: descriptors() == before, "no other descriptors are open")


def test_engines_that_come_and_go_leave_no_descriptor_thread_or_zombie(sshd):
    def once(in_process: bool) -> None:
        with TransferEngine(sshd.settings(), in_process=in_process) as engine:
            engine.stat(sshd.url()).result(WAIT_S)

    def count() -> tuple[int, int, int]:
        zombies = [pid for pid in descendants(os.getpid()) if state_of(pid) == "Z"]
        return len(os.listdir("/proc/self/fd")), threading.active_count(), len(zombies)

    def is_left() -> bool:  # less than before is what an earlier test had left
        return any(now > then for now, then in zip(count(), before, strict=True))

    once(False)
    once(True)
    before = (*count()[:2], 0)  # the server's own children are zombies for a moment
    for number in range(6):
        once(bool(number % 2))
    soon(lambda: not is_left(), "nothing is left")


# --- secrets --------------------------------------------------------------------------------


def test_a_password_stands_in_no_command_line(miglike):
    """Neither of the helper nor of ssh nor of what ssh asks."""
    seen: set[str] = set()
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            seen.update(command_of(pid) for pid in descendants(os.getpid()))

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


# --- its parts -----------------------------------------------------------------------------


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
