"""Clusters with the plugin on one node, and what their tasks read."""

from __future__ import annotations

from pathlib import Path

import pytest

from dask_plugin import RemoteFile, StagingPlugin
from pyremotedata_core.stager.inventory import list_entries
from pyremotedata_core.stager.nodecache import NodeCache


@pytest.fixture(scope="module")
def two_workers():
    """A cluster of two worker processes with one thread each, for tests that leave it whole."""
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.fixture
def start_cluster():
    """Start clusters; they end with the test."""
    distributed = pytest.importorskip("distributed")
    started = []

    def start(**options):
        options = {"processes": True, "dashboard_address": ":0", **options}
        cluster = distributed.LocalCluster(**options)
        started.append(cluster)
        client = distributed.Client(cluster)
        started.append(client)
        return client

    yield start
    for one in reversed(started):
        one.close()


@pytest.fixture
def register(cache_dir):
    """Register the plugin for a server, with a cache of the test's own."""

    def register(client, server, **options):
        settings = {"ssh_config": str(server.ssh_config), "cache_dir": str(cache_dir)}
        client.register_plugin(StagingPlugin(**{**settings, **options}))
        return client

    return register


@pytest.fixture
def served(start_cluster, register, sshd):
    """Start a cluster with the plugin: ``served(cache_bytes=40_000)``; it ends with the test."""

    def served(server=sshd, *, workers: int = 1, threads: int = 1, **options):
        return register(
            start_cluster(n_workers=workers, threads_per_worker=threads), server, **options
        )

    return served


@pytest.fixture
def client(two_workers, register, sshd):
    return register(two_workers, sshd)


@pytest.fixture
def remote_file(make, url):
    """Make a file on the server and return its handle."""

    def remote_file(name: str, data: bytes | None = None) -> RemoteFile:
        make(name, name.encode() if data is None else data)
        return RemoteFile(url(name))

    return remote_file


def files_in(cache_dir: Path) -> set[str]:
    return {path.name for path in cache_dir.glob("*/files/*/*")}


def in_use(cache_dir: Path) -> list[str]:
    """Return the URLs of files in the cache that somebody pins."""
    [root] = cache_dir.glob("*")
    entries = list_entries(NodeCache(root, 2**40))
    return [entry.url for entry in entries if entry.in_use]


def read(file, *_):
    with open(file) as text:
        return text.read()


def read_after(file, _before):
    return read(file)


def read_all(nested, *, more=()):
    return read(nested["first"]) + "".join(map(read, nested["rest"])) + "".join(map(read, more))


def len_of(file):
    return len(Path(file).read_bytes())
