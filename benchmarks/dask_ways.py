"""The ways to read remote files in Dask tasks: the plugin, and its peers at their best."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from distributed import Client

from benchmarks.peers import Place

OURS = "pyremotedata"
FLOOR = "local files"


@dataclass(frozen=True)
class Way:
    """A way to read remote files in tasks: what the tasks are given, and how they read it."""

    inputs: Callable[[Site, Client], list[Any]]
    open: Callable[[Any], AbstractContextManager[BinaryIO]]


@dataclass(frozen=True)
class Site:
    """The server as the ways see it, a directory on it, and a folder of a run's own."""

    place: Place
    name: str
    folder: Path

    @property
    def remote(self) -> Path:
        """The directory of the files."""
        return self.place.root / self.name

    def login(self) -> dict[str, Any]:
        """Return paramiko's arguments."""
        return {
            "hostname": self.place.option("HostName"),
            "port": int(self.place.option("Port")),
            "username": self.place.option("User"),
            "key_filename": self.place.option("IdentityFile"),
            "look_for_keys": False,
            "allow_agent": False,
        }


def ours_inputs(site: Site, client: Client) -> list[Any]:
    """Register the plugin, and list."""
    from dask_plugin import StagingPlugin, glob

    client.register_plugin(StagingPlugin(ssh_config=str(site.place.config)))
    pattern = f"sftp://{site.place.host}{site.remote}/*"
    return glob(pattern, ssh_config=str(site.place.config))


def local_inputs(site: Site, _: Client) -> list[Any]:
    """List the server's files as local ones."""
    return sorted(site.remote.iterdir())


def fsspec_inputs(site: Site, _: Client, protocol: str = "sftp") -> list[Any]:
    """List with fsspec, and have the tasks open with it."""
    import fsspec

    login = site.login()
    host = login.pop("hostname")
    found = fsspec.filesystem("sftp", host=host, **login).ls(str(site.remote), detail=False)
    prefix, storage = (
        ("sftp", login) if protocol == "sftp" else (f"{protocol}::sftp", {"sftp": login})
    )
    return [(f"{prefix}://{host}{path}", storage) for path in sorted(found)]


def simplecache_inputs(site: Site, client: Client) -> list[Any]:
    """As `fsspec_inputs`, with a folder for each process, as is the default: it locks nothing."""
    return fsspec_inputs(site, client, "simplecache")


@contextmanager
def fsspec_open(given: tuple[str, dict[str, Any]]) -> Iterator[BinaryIO]:
    """Open with fsspec, which keeps a connection per process; read ahead, where the file can."""
    import fsspec

    url, options = given
    with fsspec.open(url, "rb", **options) as file:
        if hasattr(file, "prefetch"):  # else each 32 KiB would cost a round trip
            file.prefetch(file.stat().st_size)
        yield file


def paramiko_inputs(site: Site, _: Client) -> list[Any]:
    """List with paramiko, and have each task connect."""
    login = site.login()
    with connected(login) as sftp:
        return [(login, f"{site.remote}/{name}") for name in sorted(sftp.listdir(str(site.remote)))]


@contextmanager
def paramiko_open(given: tuple[dict[str, Any], str]) -> Iterator[BinaryIO]:
    """Connect, and open with prefetching."""
    login, path = given
    with connected(login) as sftp, sftp.open(path, "rb") as file:
        file.prefetch(file.stat().st_size)
        yield file


@contextmanager
def connected(login: dict[str, Any]) -> Iterator[Any]:
    """A connection with paramiko."""
    import paramiko

    with paramiko.SSHClient() as ssh:
        ssh.set_missing_host_key_policy(paramiko.AutoAddPolicy())
        ssh.connect(**login)
        yield ssh.open_sftp()


def sshfs_inputs(site: Site, _: Client) -> list[Any]:
    """Mount with sshfs, and list."""
    mount = site.folder / "mount"
    mount.mkdir()
    run = ["sshfs", "-F", str(site.place.config), "-o", "max_conns=4"]
    subprocess.run([*run, f"{site.place.host}:{site.remote}", str(mount)], check=True)
    return sorted(mount.iterdir())


def path_open(given: Any) -> BinaryIO:
    """Open a local path, or what turns into one."""
    return open(given, "rb")


WAYS = {
    OURS: Way(ours_inputs, path_open),
    FLOOR: Way(local_inputs, path_open),
    "fsspec": Way(fsspec_inputs, fsspec_open),
    "simplecache": Way(simplecache_inputs, fsspec_open),
    "paramiko": Way(paramiko_inputs, paramiko_open),
    "sshfs": Way(sshfs_inputs, path_open),
}
