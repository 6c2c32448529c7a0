"""One helper, with its sessions, for all processes of a node that share."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from pyremotedata_core import RemoteURL, TransferEngine, sharing
from pyremotedata_core.helper import Server, pack, plain_url, unpack
from workflows.embedded_sshd import descendants

from .child import Child
from .forks import in_a_fork
from .processes import alive, below, command_of, processes_with
from .sites import WAIT_S, temporaries, tree
from .waiting import soon, wait_until

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="helpers are shared on Linux only"
)

LARGE = 24 * 2**20
PROGRAM = """\
import json, sys
from pyremotedata_core import ConnectionSettings, TransferEngine, TransferError
with TransferEngine(ConnectionSettings.load(), share=True) as engine:
    for line in sys.stdin:
        try:
            answer = engine.fetch(*json.loads(line)).result(60).size
        except TransferError as error:
            answer = f"{type(error).__name__}: {error}"
        print(json.dumps(answer), flush=True)
"""


class Process(Child):
    """A program that fetches what it is told."""

    def begin(self, url: str, path: os.PathLike[str]) -> None:
        self.tell([url, str(path)])

    def fetch(self, url: str, path: os.PathLike[str]) -> Any:
        self.begin(url, path)
        return self.answer()


@pytest.fixture
def mark(request) -> str:
    return f"SHARED_BY={os.getpid()}-{request.node.name}"


@pytest.fixture
def start(sshd, mark):
    """Start programs that share; ``start(PYREMOTEDATA_TIMEOUT="7")`` has other settings."""
    started = []

    def start(**more: str) -> Process:
        name, value = mark.split("=", 1)
        environment = {**os.environ, **sshd.environment(), name: value, **more}
        started.append(Process(sys.executable, "-c", PROGRAM, env=environment))
        return started[-1]

    yield start
    for process in started:
        process.kill()


@pytest.fixture
def helpers(mark):
    """Return what tells the helpers of all of them."""

    def helpers() -> list[int]:
        found = processes_with(mark)
        return alive(pid for pid in found if "pyremotedata_core.helper" in command_of(pid))

    return helpers


@pytest.fixture
def large(sshd, relay_factory, make, url) -> tuple[str, bytes]:
    """The URL of a large file at the far end of a slow link, and its content."""
    data = os.urandom(LARGE)
    make("a", data)
    return relay_factory(sshd.port, rate=16e6).url(url("a")), data


def ssh_of(pid: int) -> list[int]:
    return [child for child in descendants(pid) if command_of(child).split()[0].endswith("ssh")]


def test_processes_of_the_same_settings_share_a_helper_and_its_sessions(
    start, helpers, make, url, tmp_path
):
    processes = [start() for _ in range(6)]
    for number, process in enumerate(processes):
        make(f"f{number}", os.urandom(100_000))
        process.begin(url(f"f{number}"), tmp_path / f"f{number}")
    assert [process.answer() for process in processes] == [100_000] * 6
    (helper,) = helpers()
    assert 1 <= len(ssh_of(helper)) <= 4
    for process in processes[1:]:
        process.end()
    assert processes[0].fetch(url("f0"), tmp_path / "again") == 100_000
    assert helpers() == [helper]
    processes[0].end()
    soon(lambda: not helpers())


def test_other_settings_or_surroundings_have_a_helper_of_their_own(
    start, helpers, make, url, tmp_path
):
    make("a", b"123")
    others = {"PYREMOTEDATA_TIMEOUT": "7"}, {"SSH_AUTH_SOCK": "/nowhere"}, {}
    secrets = {"PYREMOTEDATA_PASSWORD": "one"}, {"PYREMOTEDATA_PASSWORD": "two"}
    for number, more in enumerate((*others, *secrets)):
        assert start(**more).fetch(url("a"), tmp_path / f"a{number}") == 3
        assert len(helpers()) == number + 1


def test_the_helper_outlives_the_process_that_has_started_it(start, helpers, large, url, tmp_path):
    slow, data = large
    owner, guest = start(), start()
    assert owner.fetch(url("a"), tmp_path / "first") == LARGE
    (helper,) = helpers()
    guest.begin(slow, tmp_path / "second")
    wait_until(lambda: temporaries(tmp_path), "the guest's transfer has begun")
    owner.begin(slow, tmp_path / "third")
    wait_until(lambda: len(temporaries(tmp_path)) > 1, "the owner's transfer has begun")
    owner.kill()
    assert guest.answer() == LARGE
    assert (tmp_path / "second").read_bytes() == data
    assert helpers() == [helper]
    assert not (tmp_path / "third").exists()
    guest.end()
    soon(lambda: not helpers())


def test_who_leaves_ends_only_what_is_its_own(start, helpers, large, tmp_path):
    slow, data = large
    owner, guest = start(), start()
    owner.begin(slow, tmp_path / "kept")
    wait_until(lambda: temporaries(tmp_path), "the owner's transfer has begun")
    guest.begin(slow, tmp_path / "left")
    wait_until(lambda: len(temporaries(tmp_path)) > 1, "the guest's transfer has begun")
    assert len(helpers()) == 1
    guest.kill()
    assert owner.answer() == LARGE
    assert (tmp_path / "kept").read_bytes() == data
    assert not (tmp_path / "left").exists()


def test_when_the_helper_is_killed_all_go_on_with_another(start, helpers, large, tmp_path):
    slow, data = large
    processes = [start() for _ in range(3)]
    for number, process in enumerate(processes):
        process.begin(slow, tmp_path / str(number))
        wait_until(lambda n=number: len(temporaries(tmp_path)) > n, "the transfer has begun")
    (helper,) = helpers()
    os.kill(helper, signal.SIGKILL)
    assert [process.answer() for process in processes] == [LARGE] * 3
    assert tree(tmp_path) == {str(number): data for number in range(3)}
    assert len(helpers()) == 1


def test_what_cannot_be_asked_twice_fails_when_the_helper_is_killed(sshd, relay_factory, make, url):
    relay = relay_factory(sshd.port)
    make("a", b"123")
    with TransferEngine(sshd.settings(), share=True) as engine:
        engine.stat(relay.url(url("a"))).result(WAIT_S)
        relay.stall()
        rename = engine.rename(relay.url(url("a")), relay.url(url("b")))
        (helper,) = [pid for pid in descendants(os.getpid()) if "core.helper" in command_of(pid)]
        os.kill(helper, signal.SIGKILL)
        assert str(rename.exception(WAIT_S)).endswith("the helper process was killed by signal 9")


def test_a_forked_child_shares_too(sshd, make, url, tmp_path):
    make("a", b"123")
    with TransferEngine(sshd.settings(), share=True) as engine:
        engine.stat(url("a")).result(WAIT_S)
        before = descendants(os.getpid())

        def work():
            assert engine.fetch(url("a"), tmp_path / "a").result(WAIT_S).size == 3
            assert not descendants(os.getpid())

        assert in_a_fork(work) == ""
        assert [pid for pid in before if "core.helper" in command_of(pid)] != []
        assert engine.stat(url("a")).result(WAIT_S).size == 3


def test_a_forked_child_holds_no_socket_of_its_parents(sshd):
    """Nobody would answer at a place that it holds, nor would its parent's helper seem to end."""

    def sockets() -> set[str]:
        links = set()
        for entry in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(OSError):
                links.add(os.readlink(entry))
        return {link for link in links if link.startswith("socket:")}

    before = sockets()
    listener = sharing.listen(f"\0pyremotedata-test-{os.getpid()}")
    with listener, TransferEngine(sshd.settings(), share=True) as engine:
        engine.start()
        ours = sockets() - before
        assert len(ours) == 2

        def work():
            assert not ours & sockets()

        assert in_a_fork(work) == ""
        assert ours <= sockets()


IMPOSTOR = """\
import os, socket, sys
sock = socket.socket(socket.AF_UNIX)
os.setuid(65534)
sock.bind("\\0" + sys.argv[1])
sock.listen()
print("ready", flush=True)
guest, _ = sock.accept()
guest.settimeout(20)
print(len(guest.recv(1)), flush=True)
"""


def test_another_user_who_answers_there_learns_nothing(sshd, make, url):
    if os.getuid() != 0:
        pytest.skip("only root can be another user")
    make("a", b"123")
    settings = sshd.settings()
    place = sharing.place_for(settings.to_plain())
    argv = [sys.executable, "-c", IMPOSTOR, place[1:]]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as impostor:
        assert impostor.stdout.readline() == "ready\n"
        with TransferEngine(settings, share=True) as engine:
            assert engine.stat(url("a")).result(WAIT_S).size == 3
        assert impostor.stdout.readline() == "0\n"


STRANGER = """\
import os, socket, sys
os.setuid(65534)
sock = socket.socket(socket.AF_UNIX)
sock.settimeout(20)
sock.connect("\\0" + sys.argv[1])
try:
    sock.sendall(sys.stdin.buffer.read())
    print(len(sock.recv(1)))
except ConnectionError:
    print(0)
"""


def test_another_user_who_knows_all_is_not_served(sshd, make, url):
    if os.getuid() != 0:
        pytest.skip("only root can be another user")
    make("a", b"123")
    plain = sshd.settings().to_plain()
    stat = (plain_url(RemoteURL.parse(url("a"))), True)
    argv = [sys.executable, "-c", STRANGER, sharing.place_for(plain)[1:]]
    with TransferEngine(sshd.settings(), share=True) as engine:
        engine.stat(url("a")).result(WAIT_S)
        asks = pack([(1, "join", (plain,)), (2, "stat", stat)])
        done = subprocess.run(argv, input=asks, capture_output=True, timeout=60, check=True)
    assert done.stdout == b"0\n"


def test_who_is_not_let_in_is_not_served(sshd, make, url):
    make("a", b"123")
    settings = sshd.settings()
    with TransferEngine(settings, share=True) as engine:
        engine.stat(url("a")).result(WAIT_S)
        for asks in (
            [(1, "stat", (plain_url(RemoteURL.parse(url("a"))), True))],
            [(1, "join", ({**settings.to_plain(), "password": "wrong"},)), (2, "realpath", (1,))],
            [(1, "hello", (settings.to_plain(), "", ""))],
        ):
            sock = sharing.connect(sharing.place_for(settings.to_plain()), WAIT_S)
            assert sock is not None
            with sock:
                sock.sendall(pack(asks))
                said = bytearray()
                while data := sock.recv(4096):
                    said += data
            assert not [message for message in unpack(said) if message[2]]
        assert engine.stat(url("a")).result(WAIT_S).size == 3


def test_a_helper_that_does_not_answer_is_left_alone(sshd, make, url, monkeypatch):
    from pyremotedata_core import link

    monkeypatch.setattr(link, "JOIN_S", 0.3)
    make("a", b"123")
    settings = sshd.settings()
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(sharing.place_for(settings.to_plain()))
        silent.listen()
        with TransferEngine(settings, share=True) as engine:
            assert engine.stat(url("a")).result(WAIT_S).size == 3


def test_an_owner_that_closes_with_much_to_hear_leaves_the_helper_to_others(sshd, make, url):
    """The helper's last word comes behind all that its owner has not read yet."""
    data = os.urandom(4 * 2**20)
    make("a", data)
    with (
        TransferEngine(sshd.settings(), share=True) as owner,
        TransferEngine(sshd.settings(), share=True) as guest,
    ):
        stat = owner.stat(url("a")).result(WAIT_S)
        assert guest.stat(url("a")).result(WAIT_S) == stat
        (helper,) = below("pyremotedata_core.helper")
        busy, goes_on = threading.Event(), threading.Event()

        def block(_):
            busy.set()
            goes_on.wait(WAIT_S)

        reads = [owner.read(url("a"), 0, stat.size, stat) for _ in range(4)]
        reads[0].add_done_callback(block)
        assert busy.wait(WAIT_S)
        assert guest.read(url("a"), 0, stat.size, stat).result(WAIT_S) == data
        closing = threading.Thread(target=owner.close)
        closing.start()
        wait_until(lambda: owner.closed)
        assert guest.read(url("a"), 0, stat.size, stat).result(WAIT_S) == data
        goes_on.set()
        closing.join(WAIT_S)
        assert alive([helper]) == [helper]
        assert guest.stat(url("a")).result(WAIT_S) == stat
        assert below("pyremotedata_core.helper") == [helper]


def test_progress_is_right_after_another_helper_has_taken_over(sshd, large, tmp_path):
    slow, data = large
    told: list[tuple[int, int]] = []
    with TransferEngine(sshd.settings(), share=True) as engine:
        fetch = engine.fetch(slow, tmp_path / "a", on_progress=lambda *moved: told.append(moved))
        wait_until(lambda: sum(count for count, _ in told) > LARGE // 3, "some of it has moved")
        (helper,) = below("pyremotedata_core.helper")
        os.kill(helper, signal.SIGKILL)
        assert fetch.result(WAIT_S).size == LARGE
    assert (tmp_path / "a").read_bytes() == data
    assert sum(count for count, _ in told) == LARGE


def test_who_makes_files_with_other_permissions_has_a_helper_of_its_own(
    start, helpers, make, url, tmp_path
):
    make("a", b"123")
    before = os.umask(0o022)
    try:
        assert start().fetch(url("a"), tmp_path / "open") == 3
        os.umask(0o077)
        assert start().fetch(url("a"), tmp_path / "private") == 3
    finally:
        os.umask(before)
    assert (tmp_path / "open").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "private").stat().st_mode & 0o777 == 0o600
    assert len(helpers()) == 2


def test_an_owner_that_has_died_early_keeps_no_helper(sshd):
    """A child of it may hold its end of the socket."""
    with subprocess.Popen(["true"]) as dead:
        dead.wait(WAIT_S)
    ours, theirs = socket.socketpair()
    with ours:
        server = Server(theirs)
        server.watch_owner(dead.pid)
        running = threading.Thread(target=server.run, daemon=True)
        running.start()
        running.join(WAIT_S)
        assert not running.is_alive()


def test_a_wrong_argument_of_one_ends_nothing_of_others(sshd, make, url):
    class Number:
        def __index__(self):
            return 1

    make("a", b"123")
    with (
        TransferEngine(sshd.settings(), share=True) as one,
        TransferEngine(sshd.settings(), share=True) as other,
    ):
        stat = other.stat(url("a")).result(WAIT_S)
        (helper,) = below("pyremotedata_core.helper")
        assert one.read(url("a"), Number(), Number(), stat).result(WAIT_S) == b"2"
        with pytest.raises(TypeError):
            one.read(url("a"), b"1", 1, stat)
        with pytest.raises(ValueError, match="unmarshallable"):
            one.mkdir(url("d"), parents=object())
        one.rest()
        assert one._link.ended, "nothing is asked any more"
        assert other.stat(url("a")).result(WAIT_S) == stat
        assert below("pyremotedata_core.helper") == [helper]
