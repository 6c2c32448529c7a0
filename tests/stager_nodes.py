"""What tests of the Stager share: processes with a stager each, places."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import pytest

from pyremotedata_core.nodestate import user_number
from pyremotedata_core.stager import Stager

from .child import Child

# What a process obeys: "stage URL" leases a file, "release" gives it back, "begin URL" only begins
# and says nothing, "draft URL" begins to write one, "fork" makes a child that does nothing.
CHILD = """
import json, os, signal, sys
from pyremotedata_core import ConnectionSettings, TransferError
from pyremotedata_core.stager import Stager
stager = Stager(ConnectionSettings(**json.loads(sys.argv[1])))
for line in sys.stdin:
    verb, _, url = json.loads(line).partition(" ")
    if verb == "stage":
        try:
            lease = stager.lease(url)
            answer = {"path": str(lease.path), "from_cache": lease.from_cache}
        except TransferError as error:
            answer = {"error": type(error).__name__, "text": str(error)}
        print(json.dumps({**answer, "counts": stager.counts()._asdict()}), flush=True)
    elif verb == "release":
        lease.release()
        print("{}", flush=True)
    elif verb == "draft":
        draft = stager.draft(url)
        draft.path.write_bytes(b"theirs")
        print(json.dumps({"path": str(draft.path)}), flush=True)
    elif verb == "begin":
        future = stager.stage(url)
    elif verb == "fork":
        pid = os.fork()
        if pid == 0:
            signal.alarm(120)
            signal.pause()
        print(json.dumps({"pid": pid}), flush=True)
"""


class Process(Child):
    """A process with a Stager."""

    def __init__(self, **settings) -> None:
        super().__init__(sys.executable, "-c", CHILD, json.dumps(settings))

    def end(self) -> None:
        self._process.send_signal(signal.SIGCONT)
        super().end()


@pytest.fixture
def cache_dir(tmp_path) -> Path:
    """Where the node's cache of a test is to be."""
    return tmp_path / "cache"


@pytest.fixture
def stager(sshd, cache_dir):
    with Stager(sshd.settings(cache_dir=str(cache_dir))) as stager:
        yield stager


@pytest.fixture
def processes(sshd, cache_dir):
    """Start processes with a Stager: ``processes(server, timeout_s=2)``; they end with the test."""
    started: list[Process] = []

    def start(server=sshd, **settings) -> Process:
        reach = {"ssh_config": str(server.ssh_config), "cache_dir": str(cache_dir)}
        started.append(Process(**{**reach, **settings}))
        return started[-1]

    yield start
    for process in started:
        process.end()


def root_of(cache_dir: Path) -> Path:
    return cache_dir / f"pyremotedata-{user_number()}"


def files_in(cache_dir: Path) -> set[str]:
    """The names of the staged files."""
    return {path.name for path in (root_of(cache_dir) / "files").glob("*/*")}


def left_over(cache_dir: Path) -> list[Path]:
    return [
        path
        for name in ("incoming", "trash", "locks")
        for path in (root_of(cache_dir) / name).iterdir()
    ]


@pytest.fixture
def small(sshd, cache_dir):
    """A stager with room for 30,000 bytes."""
    with Stager(
        sshd.settings(cache_dir=str(cache_dir), cache_bytes=30_000, timeout_s=3.0)
    ) as stager:
        yield stager


def make_files(sshd, directory: str, names: Iterable[str], size: int = 10_000) -> list[str]:
    for name in names:
        sshd.make(f"{directory}/{name}", os.urandom(size))
    return [sshd.url(f"{directory}/{name}") for name in names]


@pytest.fixture
def offer(make, url):
    """Make a file on the server; return its URL: ``offer("a", b"content", mtime=1)``."""

    def offer(name: str, data: bytes = b"", **options) -> str:
        make(name, data, **options)
        return url(name)

    return offer


@pytest.fixture
def offer_all(sshd, remote_directory):
    """Make files of some bytes on the server; return their URLs: ``offer_all("abc", size=9)``."""
    return partial(make_files, sshd, remote_directory)
