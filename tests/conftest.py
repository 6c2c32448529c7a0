"""Fixtures: real servers, a network made to order, and an environment of the tests' own."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from multiprocessing import forkserver
from pathlib import Path
from typing import NamedTuple, TypeVar

import pytest

from pyremotedata_core import TransferEngine
from pyremotedata_core.config import ENV, VARIABLES
from workflows.embedded_sshd import descendants

from .command import here, make, run, there, url  # noqa: F401 - fixtures
from .filesystems import fs, options, place  # noqa: F401 - fixtures
from .ftp import FtpServer
from .lftp_sessions import ending, session  # noqa: F401 - fixtures
from .logins import carrier  # noqa: F401 - a fixture
from .miglike import MigLike
from .processes import command_of, processes_with
from .relay import Relay
from .servers import ChrootSshd, ScriptedSshd, Sshd
from .sites import SITES, SOMETIMES, SOMETIMES_ALWAYS, Site, temporaries
from .snakemake_bench import bench, bench_with, counting  # noqa: F401 - fixtures
from .snakemake_workflow import TEMPLATE, chrooted, counted, workflow  # noqa: F401 - fixtures
from .stager_nodes import cache_dir, offer, offer_all, processes, small, stager  # noqa: F401 - fixtures

if find_spec("distributed"):
    from .dask_cluster import (  # noqa: F401 - fixtures
        client,
        register,
        remote_file,
        served,
        start_cluster,
        two_workers,
    )
    from .dask_nodes import archive, relay, start_nodes  # noqa: F401 - fixtures

T = TypeVar("T")
LEAK_TIMEOUT_S = 5.0
PLACES = {
    "XDG_CONFIG_HOME": "config",
    "XDG_CACHE_HOME": "cache",
    "XDG_STATE_HOME": "state",
    "LFTP_HOME": "lftp",
}
# Whatever is started inherits it, and so can be found when it has lost its parent.
RUN_MARK = f"TEST_RUN={secrets.token_hex(8)}"
os.environ.update([RUN_MARK.split("=")])
# A shell starts what runs in its background deaf to Ctrl-C, and that is inherited.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the sites that run much of the contract suite with ``--full`` only."""
    for item in items:
        if not SOMETIMES.search(item.name) or not {"site", "_site"} & set(item.fixturenames):
            continue
        if not SOMETIMES_ALWAYS.search(item.name):
            item.add_marker(pytest.mark.full)


@pytest.fixture(scope="session", autouse=True)
def _forked_workers() -> Iterator[None]:
    """Have Dask fork its workers from one process: a spawned one imports for most of a second.

    Of their tests' environment they get what our settings and places are read from.
    """
    if dask := sys.modules.get("dask"):
        suffixes = (*VARIABLES, "CONFIG", "AUTO")
        names = [*(ENV + suffix for suffix in suffixes), *PLACES]
        method = {"distributed.worker.multiprocessing-method": "forkserver"}
        with dask.config.set(method | {"distributed.nanny.environ": dict.fromkeys(names, "")}):
            yield
    else:
        yield


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory):
    """Keep the settings of the user who runs the tests out of them."""
    for name in list(os.environ):
        if name.startswith(("PYREMOTEDATA_", "SNAKEMAKE_", "LFTP_")):
            monkeypatch.delenv(name)
    for name in ("SSH_ASKPASS", "SSH_AUTH_SOCK", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path_factory.mktemp("home")
    for name, below in PLACES.items():
        monkeypatch.setenv(name, str(home / below))
    monkeypatch.setenv("PYREMOTEDATA_CACHE_DIR", str(home / "staged"))
    monkeypatch.setenv("PYREMOTEDATA_AUTO", "yes")


@pytest.fixture(scope="session")
def sshd() -> Iterator[Sshd]:
    """A server for the whole run: do not stop it, do not break its sessions.

    Give every test a directory of its own on it: `remote_directory`.
    """
    with Sshd() as server:
        yield server


@pytest.fixture
def remote_directory(sshd: Sshd, request: pytest.FixtureRequest) -> str:
    """A new directory on `sshd`, relative to its root."""
    relative = _place_for(request)
    sshd.make_directory(relative)
    return relative


@pytest.fixture
def sshd_factory() -> Iterator[Callable[..., Sshd]]:
    """Start further servers, with options of `Sshd`; they end with the test."""
    yield from _started(Sshd)


@pytest.fixture(scope="session")
def chroot_sshd() -> Iterator[ChrootSshd]:
    """A chrooted account with SFTP only, for the whole run; skipped where we are not root."""
    if os.getuid() != 0:
        pytest.skip("a chrooted account can only be made by root")
    server = ChrootSshd()
    try:
        yield server.start()
    finally:
        server.stop()


@pytest.fixture
def chroot_factory() -> Iterator[Callable[..., ChrootSshd]]:
    """Make further chrooted accounts, each with a server of its own; root only."""
    if os.getuid() != 0:
        pytest.skip("a chrooted account can only be made by root")
    yield from _started(ChrootSshd)


@pytest.fixture(scope="session")
def plain_sshd() -> Iterator[Sshd]:
    """A server that offers no extensions, for the whole run."""
    with ScriptedSshd("relay", {"extensions": False}) as server:
        yield server


@pytest.fixture(scope="session")
def miglike() -> Iterator[MigLike]:
    """A server with the manners of MiG (ERDA), for the whole run: do not log in wrongly."""
    with MigLike() as server:
        yield server


@pytest.fixture(scope="session")
def ftp() -> Iterator[FtpServer]:
    """An FTP server for the whole run."""
    with FtpServer() as server:
        yield server


@pytest.fixture(scope="session")
def ftps() -> Iterator[FtpServer]:
    """An FTP server with (explicit) TLS, for the whole run."""
    with FtpServer(tls="explicit") as server:
        yield server


@pytest.fixture(scope="session")
def ftplist() -> Iterator[FtpServer]:
    """An FTP server of few words, as vsftpd is, for the whole run."""
    with FtpServer(without=("MLSD", "MLST"), terse=True) as server:
        yield server


@pytest.fixture
def ftp_factory() -> Iterator[Callable[..., FtpServer]]:
    """Start further FTP servers, with options of `FtpServer`; they end with the test."""
    yield from _started(FtpServer)


@pytest.fixture(scope="module", params=SITES)
def _site(request: pytest.FixtureRequest) -> Iterator[Site]:
    transport, kind = request.param.split("-")
    fixture = {"openssh": "sshd", "plain": "plain_sshd", "chrooted": "chroot_sshd"}.get(kind, kind)
    server = request.getfixturevalue(fixture)
    carrier, transport = ("paramiko", "sftp") if transport == "paramiko" else ("auto", transport)
    settings = server.settings(transport=transport, carrier=carrier, timeout_s=30.0)
    with TransferEngine(settings) as engine:
        yield Site(transport, kind, server, engine)


@pytest.fixture
def site(_site: Site, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    """A transport at a server, and a new directory there; no temporary file may remain."""
    _site.place = _place_for(request)
    _site.make_directory("")
    yield _site
    assert not temporaries(_site.path())
    assert not temporaries(tmp_path)


@pytest.fixture
def barred(site: Site) -> Iterator[Callable[..., Path]]:
    """Bar a file of a `site` where permissions count; files get them back in the end."""
    if site.miglike or (os.getuid() == 0 and site.kind != "chrooted"):
        pytest.skip("the server's account may do everything")
    modes: list[tuple[Path, int]] = []

    def bar(relative: str, mode: int = 0) -> Path:
        path = site.path(relative)
        modes.append((path, path.stat().st_mode))
        path.chmod(mode)
        return path

    yield bar
    for path, mode in modes:
        path.chmod(mode)


@pytest.fixture
def relay_factory() -> Iterator[Callable[..., Relay]]:
    """Start relays to a port: ``relay_factory(server.port, one_way_ms=10)``."""
    yield from _started(Relay)


@pytest.fixture
def engine(sshd: Sshd) -> Iterator[TransferEngine]:
    """An engine with the settings of `sshd`."""
    with TransferEngine(sshd.settings(timeout_s=30.0)) as engine:
        yield engine


class Far(NamedTuple):
    """A server of its own at the far end of a relay."""

    server: Sshd
    relay: Relay

    def url(self, name: str) -> str:
        return self.relay.url(self.server.url(name))


@pytest.fixture
def far(sshd_factory, relay_factory) -> Far:
    """A server of its own, and the relay through which `url` leads to its files."""
    server = sshd_factory()
    return Far(server, relay_factory(server.port))


class Slow(NamedTuple):
    """An engine, and the URLs of files in `remote_directory` at the far end of a slow link."""

    engine: TransferEngine
    url: Callable[[str], str]


@pytest.fixture
def slow(engine: TransferEngine, url: Callable[[str], str], sshd: Sshd, relay_factory) -> Slow:
    """An engine at the far end of a link of 8 MB/s."""
    relay = relay_factory(sshd.port, rate=8e6)
    return Slow(engine, lambda name: relay.url(url(name)))


@pytest.fixture
def alone() -> list[str]:
    """What begins a command that is to run in a network of its own, in which there is nothing."""
    command = ["unshare", "--net", *([] if os.getuid() == 0 else ["--map-root-user"])]
    if not shutil.which("unshare") or subprocess.run([*command, "true"], check=False).returncode:
        pytest.skip("no network can be made here")
    return command


@pytest.fixture
def machine_wide() -> Callable[[Path, str], list[str]]:
    """What begins a command that is to find a file in the place of one of the system's."""

    def begin(file: Path, place: str) -> list[str]:
        mount = 'mount --bind "$0" "$1" && shift && exec "$@"'
        command = ["unshare", "--mount", "sh", "-c", mount, str(file), place]
        # Not in a chroot.
        if os.getuid() or subprocess.run([*command, "true"], check=False).returncode:
            pytest.skip("only root can put a file there")
        return command

    return begin


@pytest.fixture
def mount_disk() -> Iterator[Callable[[Path, str], Path]]:
    """Make small file systems: ``mount_disk(path, "2m")``; skipped where we are not root."""
    with contextlib.ExitStack() as ends:

        def mount(place: Path, size: str) -> Path:
            place.mkdir()
            command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
            if os.getuid() or subprocess.run(command, check=False, capture_output=True).returncode:
                pytest.skip("only root can mount a small file system")
            ends.callback(subprocess.run, ["umount", "-l", str(place)], check=True)
            return place

        yield mount


@pytest.fixture
def small_disk(mount_disk, tmp_path: Path) -> Path:
    """A file system of 8 MiB; skipped where we are not root."""
    return mount_disk(tmp_path / "disk", "8m")


@pytest.fixture(scope="session", autouse=True)
def _nothing_left_running() -> Iterator[None]:
    """Fail the run when a process that it started outlives it."""
    yield
    _close_shared_engines()
    TEMPLATE.close()
    deadline = time.monotonic() + LEAK_TIMEOUT_S
    while (left := _children()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left, f"processes left running: {left}"


@pytest.fixture(scope="module", autouse=True)
def _engines_of_one_module() -> Iterator[None]:
    """Let no module see the helper processes of another one's shared engines."""
    yield
    _close_shared_engines()


def _started(kind: type[T]) -> Iterator[Callable[..., T]]:
    """Hand out a function that makes and starts servers; stop them in the end."""
    with contextlib.ExitStack() as ends:

        def make(*args, **options) -> T:
            server = kind(*args, **options)
            ends.callback(server.stop)
            return server.start()

        yield make


def _place_for(request: pytest.FixtureRequest) -> str:
    stem = "".join(c if c.isascii() and c.isalnum() else "_" for c in request.node.name)[:40]
    return f"{stem}-{time.monotonic_ns()}"


def _children() -> dict[int, str]:
    """Return what this run has started, also what has lost its parent: command by pid."""
    found = {}
    own = {os.getpid(), forkserver._forkserver._forkserver_pid}
    for pid in {*descendants(os.getpid()), *processes_with(RUN_MARK)} - own:
        command = command_of(pid)
        if command and "multiprocessing.resource_tracker" not in command:
            found[pid] = command
    return found


def _close_shared_engines() -> None:
    """Close what lives until the process exits, which is after this check."""
    if engine := sys.modules.get("pyremotedata_core.engine"):
        engine._close_all()
