"""``kill -9`` at any moment: no broken file under a final name, and the next run puts all right."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .command import CLI
from .processes import kill
from .servers import ScriptedSshd
from .sites import temporaries, tree
from .waiting import wait_until

SIZES = [0, 1, 100_000, 300_000, 5 * 2**20, 18 * 2**20 + 1]
OWNER = """\
import sys
from pyremotedata_core import Remote
verb, url, local = sys.argv[1:]
with Remote(url) as remote:
    if verb == "get":
        remote.get(url, local)
    else:
        remote.put(local, url)
"""


def make_tree(root: Path) -> dict[str, bytes | None]:
    content: dict[str, bytes | None] = {"sub": None}
    for number, size in enumerate(SIZES * 2):
        content[f"sub/{number}" if number % 2 else f"{number}"] = os.urandom(size)
    for name, data in content.items():
        path = root / name
        if data is None:
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.write_bytes(data)
    return content


def check(root: Path, old: dict[str, bytes | None], new: dict[str, bytes | None]) -> int:
    """Check that every file is the old or the new one, whole; return how many are new."""
    found = {n: d for n, d in tree(root).items() if not n.rpartition("/")[2].startswith(".")}
    for name, data in found.items():
        assert data in (old.get(name, new[name]), new[name]), f"{name} is broken"
    for name in old:
        assert name in found, f"{name} was lost"
    return sum(found[name] == new[name] for name in found)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("times", [5, pytest.param(50, marks=pytest.mark.full)])
@pytest.mark.parametrize("verb", ["get", "put"])
def test_killed_at_random_moments(sshd_factory, relay_factory, tmp_path, verb, times):
    server = sshd_factory()
    relay = relay_factory(server.port, rate=40e6)
    here, there = tmp_path / "t", server.root / "t"
    source, target = (there, here) if verb == "get" else (here, there)
    old = make_tree(target)
    for name in list(old)[5:]:
        if old[name] is not None:
            (target / name).unlink()
            del old[name]
    new = make_tree(source)
    url = relay.url(server.url("t"))
    if verb == "get":  # the tree is got under its name into the directory that holds it
        arguments = [verb, url, str(tmp_path) + "/"]
    else:
        arguments = [verb, str(here), relay.url(server.url()) + "/"]
    by_command = [*CLI, *arguments]
    by_script = [sys.executable, "-c", OWNER, verb, arguments[-1] if verb == "put" else url]
    by_script.append(arguments[-1] if verb == "get" else str(here))
    environment = {**os.environ, **server.environment()}

    interrupted = 0
    for number in range(times):
        process = subprocess.Popen(
            by_script if number % 2 else by_command, env=environment, stderr=subprocess.DEVNULL
        )
        wait_until(
            lambda run=process: run.poll() is not None or temporaries(target), "it begins", 30
        )
        time.sleep(random.uniform(0, 1.2))
        interrupted += process.poll() is None
        kill(process, everything=number % 3 == 0)
        check(target, old, new)
    assert interrupted, "it was never killed in mid-transfer"

    subprocess.run(by_command, env=environment, check=True, timeout=60)
    assert check(target, old, new) == len(new)
    deadline = time.monotonic() + 10
    while temporaries(target) and time.monotonic() < deadline:
        time.sleep(0.1)
    if temporaries(target):  # those of the run before last may go when that has really ended
        subprocess.run(by_command, env=environment, check=True, timeout=60)
    assert temporaries(target) == []
    assert tree(target) == new


def test_a_file_that_stood_aside_for_a_killed_upload_comes_back(relay_factory, tmp_path):
    """A server without posix-rename cannot replace a file in one step."""
    with ScriptedSshd("relay", {"extensions": False}) as server:
        relay = relay_factory(server.port, one_way_ms=100)
        environment = {**os.environ, **server.environment()}
        final = server.make("t/a", b"old")
        (tmp_path / "a").write_bytes(b"new")
        put = [*CLI, "put", str(tmp_path / "a"), relay.url(server.url("t/a"))]
        process = subprocess.Popen(put, env=environment)
        wait_until(lambda: not final.exists())
        kill(process, everything=True)
        time.sleep(0.5)  # what is under way arrives
        assert not final.exists()
        assert len(temporaries(final.parent)) == 2
        subprocess.run([*put[:-1], relay.url(server.url("t/b"))], env=environment, check=True)
        wait_until(lambda: not temporaries(final.parent))
        assert tree(final.parent) == {"a": b"old", "b": b"new"}
