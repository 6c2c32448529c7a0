"""What has moved of a large file before the end of a process or a connection moves only once."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pyremotedata_core import ConnectionLost, TransferEngine, TransferError
from pyremotedata_core.jobs import SEGMENT_BYTES

from .command import CLI
from .processes import commands, kill
from .sites import needs_lftp, temporaries
from .waiting import wait_until

SIZE = 10 * SEGMENT_BYTES + 12_345
OWNER = """\
import sys
from pyremotedata_core import ConnectionSettings, TransferEngine
verb, first, second, config = sys.argv[1:]
getattr(TransferEngine(ConnectionSettings(ssh_config=config)), verb)(first, second).result()
"""


class Line:
    """A server behind a relay, a large file at one end, and a directory at the other."""

    def __init__(self, server, relay, tmp_path: Path, verb: str) -> None:
        self.server, self.relay, self.verb = server, relay, verb
        here, there = tmp_path / "here", server.root / "there"
        here.mkdir()
        there.mkdir()
        self.source_place, self.place = (there, here) if verb == "fetch" else (here, there)
        self.source, self.target = self.source_place / "f", self.place / "g"
        self.new_source()
        remote = relay.url(server.url("there/f" if verb == "fetch" else "there/g"))
        self.arguments = (
            (remote, str(self.target)) if verb == "fetch" else (str(self.source), remote)
        )

    def new_source(self) -> None:
        self.data = os.urandom(SIZE)
        self.source.write_bytes(self.data)

    def run(self, engine: TransferEngine, **options):
        return getattr(engine, self.verb)(*self.arguments, **options)

    def moved(self) -> int:
        return self.relay.status()["down" if self.verb == "fetch" else "up"]

    def moved_back(self) -> int:
        return self.relay.status()["up" if self.verb == "fetch" else "down"]

    def wait_for(self, share: float) -> None:
        """Wait until so much of the file has arrived."""
        blocks = SIZE * share / 512
        wait_until(lambda: sum(os.stat(p).st_blocks for p in temporaries(self.place)) >= blocks)

    def break_off(self, how: str) -> None:
        """Let another process move a good part, and end it."""
        self.relay.set(rate=60e6)
        config = self.server.ssh_config
        command = [sys.executable, "-c", OWNER, self.verb, *self.arguments, str(config)]
        process = subprocess.Popen(command)
        self.wait_for(0.7)
        kill(process, everything=how == "everything")
        self.relay.set(rate=0)
        # The helper notices, and leaves what can be continued.
        wait_until(lambda: not [c for c in commands() if "ssh" in c[:20] and str(config) in c])

    def finished(self) -> None:
        assert self.target.read_bytes() == self.data
        wait_until(lambda: not temporaries(self.place))


@pytest.fixture
def line(sshd_factory, relay_factory, tmp_path, request):
    server = sshd_factory()
    return Line(server, relay_factory(server.port), tmp_path, request.param)


both_ways = pytest.mark.parametrize("line", ["fetch", "store"], indirect=True)
downwards = pytest.mark.parametrize("line", ["fetch"], indirect=True)
upwards = pytest.mark.parametrize("line", ["store"], indirect=True)


@both_ways
@pytest.mark.parametrize("how", [pytest.param("owner", marks=pytest.mark.full), "everything"])
def test_what_a_killed_process_has_moved_is_not_moved_again(line, how):
    line.break_off(how)
    assert not line.target.exists()
    assert temporaries(line.place)
    before = line.moved()
    told: list[int] = []
    with TransferEngine(line.server.settings()) as engine:
        line.run(engine, on_progress=lambda count, _: told.append(count)).result(60)
    line.finished()
    assert line.moved() - before < SIZE * 0.8
    assert sum(told) == SIZE


@both_ways
def test_nothing_of_a_source_that_has_changed_is_continued(line):
    line.break_off("everything")
    line.new_source()
    os.utime(line.source, (1_600_000_000, 1_600_000_000))
    with TransferEngine(line.server.settings()) as engine:
        line.run(engine).result(60)
    line.finished()


@both_ways
def test_a_change_that_size_and_time_hide_is_found_by_verify_and_moved_anew(line):
    line.break_off("everything")
    before = line.source.stat()
    line.new_source()
    os.utime(line.source, ns=(before.st_atime_ns, before.st_mtime_ns))
    with TransferEngine(line.server.settings()) as engine:
        line.run(engine, verify=True).result(60)
    line.finished()


@upwards
def test_what_nobody_can_continue_goes_with_the_next_process(line):
    line.break_off("everything")
    line.source.unlink()
    line.data = b"something else"
    with TransferEngine(line.server.settings()) as engine:
        (line.source_place / "other").write_bytes(b"1")
        url = line.arguments[1].replace("there/g", "there/other")
        engine.store(line.source_place / "other", url).result(60)
        line.target.write_bytes(line.data)
        line.finished()


@upwards
def test_a_part_with_the_time_of_an_old_source_is_continued_by_a_sync(line):
    """An upload gets the time of its source just before its name, and may be killed between."""
    line.target = line.place / "f"
    line.arguments = (str(line.source), line.arguments[1].replace("there/g", "there/f"))
    line.break_off("everything")
    (part,) = temporaries(line.place)
    os.utime(part, (1_600_000_000, 1_600_000_000))
    before = line.moved()
    with TransferEngine(line.server.settings()) as engine:
        url = line.arguments[1].removesuffix("/f")
        result = engine.store_tree(line.source_place, url, compare=True).result(60)
    assert result.failed == []
    line.finished()
    assert line.moved() - before < SIZE * 0.8


@downwards
def test_a_part_of_another_size_of_segments_or_another_boot_is_not_continued(line):
    line.break_off("everything")
    (record,) = line.place.glob(".*.done")
    head, *rest = record.read_text().split("\n")
    record.write_text("\n".join([json.dumps({**json.loads(head), "boot": "another"}), *rest]))
    part = record.with_suffix(".part")
    with part.open("r+b") as file:
        file.write(bytes(SIZE))
    with TransferEngine(line.server.settings()) as engine:
        line.run(engine).result(60)
    line.finished()


@both_ways
def test_a_connection_that_comes_back_too_late_loses_nothing(line):
    with TransferEngine(line.server.settings(timeout_s=2.0)) as engine:
        line.relay.set(rate=60e6)
        future = line.run(engine)
        line.wait_for(0.7)
        line.relay.refuse()
        line.relay.reset()
        with pytest.raises(TransferError) as caught:
            future.result(60)
        assert isinstance(caught.value, ConnectionLost), caught.value
        line.relay.accept()
        line.relay.set(rate=0)
        before = line.moved()
        line.run(engine).result(60)
    line.finished()
    assert line.moved() - before < SIZE * 0.8


@downwards
def test_of_two_downloads_that_were_broken_off_one_is_continued_and_the_other_goes(line):
    settings = line.server.settings(timeout_s=2.0)
    with TransferEngine(settings) as one, TransferEngine(settings) as two:
        line.relay.set(rate=60e6)
        futures = [line.run(one), line.run(two)]
        line.wait_for(1.4)  # of both together
        line.relay.refuse()
        line.relay.reset()
        for future in futures:
            assert isinstance(future.exception(60), ConnectionLost)
    line.relay.accept()
    line.relay.set(rate=0)
    before = line.moved()
    with TransferEngine(settings) as engine:
        line.run(engine).result(60)
    line.finished()
    assert line.moved() - before < SIZE * 0.8


@upwards
def test_a_part_that_has_gone_from_the_server_is_made_anew(line):
    line.break_off("everything")
    shutil.rmtree(line.place)
    line.place.mkdir()
    with TransferEngine(line.server.settings()) as engine:
        line.run(engine).result(60)
    line.finished()


@both_ways
def test_a_transfer_that_is_given_up_leaves_nothing(line):
    with TransferEngine(line.server.settings()) as engine:
        line.relay.set(rate=60e6)
        future = line.run(engine)
        line.wait_for(0.5)
        future.cancel()
        assert engine.wait_cancelled(30)
        assert temporaries(line.place) == []


@both_ways
def test_what_is_on_its_way_when_a_transfer_is_given_up_moves_again(line):
    with TransferEngine(line.server.settings(), keep=True) as engine:
        line.relay.set(rate=60e6)
        future = line.run(engine)
        line.wait_for(0.5)
        future.cancel()
        assert engine.wait_cancelled(30)  # all that was asked for has been answered
        assert temporaries(line.place)
        line.relay.set(rate=0)
        line.run(engine).result(60)
    line.finished()


@both_ways
def test_the_command_broken_off_at_the_keyboard_goes_on_with_the_next(line):
    line.relay.set(rate=60e6)
    verb = "get" if line.verb == "fetch" else "put"
    command = [*CLI, verb, "--ssh-config", line.server.ssh_config]
    process = subprocess.Popen([*command, *line.arguments])
    line.wait_for(0.7)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    line.relay.set(rate=0)
    before = line.moved()
    subprocess.run([*command, *line.arguments], check=True, timeout=60)
    line.finished()
    assert line.moved() - before < SIZE * 0.8


@upwards
def test_what_moves_again_is_counted_once(line):
    line.relay.set(rate=60e6)
    told: list[int] = []
    with TransferEngine(line.server.settings()) as engine:
        future = line.run(engine, on_progress=lambda count, _files: told.append(count))
        line.wait_for(0.3)
        os.utime(line.source, (5, 5))  # seen in the end: all of it is sent once more
        line.relay.set(rate=0)
        assert future.result(60).mtime == 5
    line.finished()
    assert sum(told) == SIZE


# --- over lftp ------------------------------------------------------------------------------


@needs_lftp
@downwards
def test_an_engine_that_ends_leaves_nothing_of_what_lftp_fetches(line):
    line.relay.set(rate=60e6)
    with TransferEngine(line.server.settings(transport="lftp")) as engine:
        future = line.run(engine)
        line.wait_for(0.1)
    with pytest.raises(ConnectionLost):
        future.result(0)
    assert temporaries(line.place) == []


@needs_lftp
@pytest.mark.full
@upwards
def test_an_upload_that_is_given_up_is_not_compared_to_the_end(line):
    line.relay.set(rate=60e6)
    with TransferEngine(line.server.settings(transport="lftp")) as engine:
        future = line.run(engine, verify=True)
        line.wait_for(0.7)
        line.relay.set(rate=10e6)  # to compare it takes long enough for us
        wait_until(line.target.exists)
        future.cancel()
        assert engine.wait_cancelled(60)
    assert line.moved_back() < SIZE / 2
