"""The Snakemake plugin without Snakemake: a provider, whose objects the tests ask themselves."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


class Bench:
    """A provider and the directory of a server that it works on."""

    def __init__(self, server, directory: str, local: Path, relay=None, **settings) -> None:
        from snakemake_storage_plugin_pyremotedata import StorageProvider, StorageProviderSettings

        self.server, self.directory, self.relay = server, directory, relay
        self.local = local
        self.provider = StorageProvider(
            local_prefix=local,
            logger=logging.getLogger("test"),
            settings=StorageProviderSettings(ssh_config=str(server.ssh_config), **settings),
        )

    def object(self, relative: str):
        url = self.server.url(f"{self.directory}/{relative}")
        return self.provider.object(self.relay.url(url) if self.relay else url)

    def make(self, relative: str, data: bytes = b"", **options) -> Path:
        return self.server.make(f"{self.directory}/{relative}", data, **options)

    def path(self, relative: str) -> Path:
        return self.server.root / self.directory / relative

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self.provider.prefetch.close()
        self.provider.engine().close()


@pytest.fixture
def bench_with(sshd, remote_directory, tmp_path) -> Iterator[Callable[..., Bench]]:
    """Make benches on the server of the run: ``bench_with(relay, checksums="yes")``."""
    with contextlib.ExitStack() as ends:
        yield lambda relay=None, **settings: ends.enter_context(
            Bench(sshd, remote_directory, tmp_path / "local", relay, **settings)
        )


@pytest.fixture
def bench(bench_with) -> Bench:
    """A bench on the server of the run."""
    return bench_with()


@pytest.fixture
def counting(sshd_factory, tmp_path) -> Iterator[Bench]:
    """A bench on a server of its own that writes down every request."""
    server = sshd_factory(log_requests=True)
    server.make_directory("d")
    with Bench(server, "d", tmp_path / "local") as made:
        yield made
