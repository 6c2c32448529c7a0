"""Dask clusters whose workers are nodes of their own, and the archive that they share."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from dask_plugin import RemoteFile, StagingPlugin

from .waiting import PATIENCE_S

# What makes a worker take the others for workers of other hosts.
APART = """\
import os
from dask_plugin import chunks
from pyremotedata_core import sharing
chunks.boot = lambda: str(os.getpid())
sharing.place_for = lambda settings: ""
"""
_READ = re.compile(r'close "(.*)" bytes read (\d+)')


class Archive:
    """A server that counts the bytes it hands out."""

    def __init__(self, server, log: Path) -> None:
        self.server = server
        self._log = log

    def make(self, name: str, size: int) -> tuple[RemoteFile, bytes]:
        data = os.urandom(size)
        self.server.make(name, data)
        return self.handle(name), data

    def handle(self, name: str) -> RemoteFile:
        stat = (self.server.root / name).stat()
        return RemoteFile(self.server.url(name), stat.st_size, int(stat.st_mtime))

    def sessions(self) -> int:
        return self._log.read_text().count("session opened")

    def bytes_read(self, name: str) -> int:
        """Return how much of a file was read, as the server tells when it has closed it."""
        found = _READ.findall(self._log.read_text())
        return sum(int(size) for path, size in found if path.endswith(f"/{name}"))


@pytest.fixture
def archive(sshd_factory, tmp_path) -> Archive:
    log = tmp_path / "sftp.log"
    return Archive(sshd_factory(external=True, sftp_arguments=f"-e -l INFO 2>>{log}"), log)


@pytest.fixture
def relay(archive, relay_factory):
    """A relay to the archive; `through` makes handles of it."""
    return relay_factory(archive.server.port)


def through(relay, file: RemoteFile) -> RemoteFile:
    """Return a handle on a file through a relay."""
    return RemoteFile(relay.url(file.url), file.size, file.mtime)


@pytest.fixture
def start_nodes(tmp_path, archive):
    """Start worker processes, each with a cache of its own, as if on nodes of their own.

    With ``one_host`` they know that they are on one host.
    """
    distributed = pytest.importorskip("distributed")
    started = []

    def start(
        count: int, *, per_node: int = 1, plugin: bool = True, one_host: bool = False, **options
    ):
        workers = {
            number: {
                "cls": distributed.Nanny,
                "options": {
                    "nthreads": 1,
                    "preload": [] if one_host else [APART],
                    "env": {"PYREMOTEDATA_CACHE_DIR": str(tmp_path / f"node{number // per_node}")},
                },
            }
            for number in range(count)
        }
        scheduler = {"cls": distributed.Scheduler, "options": {"dashboard_address": ":0"}}
        started.append(distributed.SpecCluster(workers=workers, scheduler=scheduler))
        client = distributed.Client(started[-1])
        started.append(client)
        client.wait_for_workers(count, timeout=PATIENCE_S)
        if plugin:
            config = str(archive.server.ssh_config)
            client.register_plugin(StagingPlugin(ssh_config=config, **options))
        return client

    yield start
    for one in reversed(started):
        one.close()


def content(file) -> bytes:
    return Path(file).read_bytes()


def on_each(client, function, *args) -> list:
    """Run a task on every worker at once."""
    return [
        client.submit(function, *args, workers=[worker], pure=False)
        for worker in workers_of(client)
    ]


def workers_of(client) -> list[str]:
    return sorted(client.nthreads())  # the client's own `scheduler_info` may be empty at times
