"""What tests of the fsspec file system share."""

from __future__ import annotations

import fsspec
import pytest
from fsspec.callbacks import Callback

from pyremotedata_core.filesystem import RemoteFileSystem


def reach(server, **options) -> RemoteFileSystem:
    """Return a file system on a server."""
    return fsspec.filesystem(
        "pyremotedata", host=server.alias, ssh_config=str(server.ssh_config), **options
    )


@pytest.fixture
def options(sshd) -> dict[str, str]:
    """What leads to the server beside its URL."""
    return {"ssh_config": str(sshd.ssh_config)}


@pytest.fixture
def fs(sshd) -> RemoteFileSystem:
    return reach(sshd)


@pytest.fixture
def place(there) -> str:
    return str(there)


class Heard(Callback):
    """Hears of many files; what it heard of each is found by the names at both ends."""

    def __init__(self) -> None:
        super().__init__()
        self.children: dict[str, Callback] = {}

    def branched(self, path_1: str, path_2: str, **_: object) -> Callback:
        self.children[path_1] = self.children[path_2] = child = Callback()
        return child
