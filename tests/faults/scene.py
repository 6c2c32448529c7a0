"""Where drills happen: a server behind a relay, and disks small enough to be filled."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from tests.relay import Relay
from tests.servers import ChrootSshd, Sshd
from workflows.embedded_sshd import ServerUnavailable, run

LINK_BYTES_PER_S = 20e6
DISK_BYTES = 200 * 2**20
# Some small files, and two that move in segments and are continued.
SIZES = [0, 1, 999, 30_000, 65_536, 100_001, 150_000, 200_000, 9 * 2**20 + 1, 18 * 2**20]
LONG_AGO_S = 1_600_000_000


class Scene:
    """A server, a relay, a local directory; for one drill after the other.

    As root the server is a chrooted account and both sides have a small disk of their own, so
    that disks can be filled and permissions mean something.

    Attributes
    ----------
    server : Sshd
    relay : Relay
    local : Path
    disks : bool
        Whether both sides have small disks.
    """

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self.disks = False

    def __enter__(self) -> Scene:
        with contextlib.ExitStack() as stack:
            self.logs = Path(stack.enter_context(_directory("drill-logs-")))
            self.local = Path(stack.enter_context(_directory("drill-disk-")))
            self.server: Sshd = ChrootSshd() if os.getuid() == 0 else Sshd()
            stack.callback(self.server.stop)
            self.server.start()
            self.disks = os.getuid() == 0 and all(
                _mount(stack, path) for path in (self.local, self.server.root)
            )
            self.server._give(self.server.root)
            self.relay = stack.enter_context(Relay(self.server.port, rate=LINK_BYTES_PER_S))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def calm(self) -> None:
        """End what faults may have left in network and server."""
        self.relay.accept()
        self.relay.resume()
        self.relay.set(rate=LINK_BYTES_PER_S)
        self.server.thaw()


class Files:
    """The source files of one drill, and every content that each of them has had."""

    def __init__(self, scene: Scene, place: str, rng: random.Random, *, remote: bool) -> None:
        self.scene = scene
        self.remote = remote
        self.versions: dict[str, set[str]] = {}
        self.current: dict[str, str] = {}
        base = scene.server.root if remote else scene.local
        self.root = base / place / "data"
        self.aside = base / place / "aside"
        for directory in (self.root, self.aside):
            self._make_directory(directory)
        for number, size in enumerate(SIZES):
            name = f"f{number}.bin"
            self._note(name, data := rng.randbytes(size))
            (self.root / name).write_bytes(data)
            os.utime(self.root / name, (LONG_AGO_S, LONG_AGO_S))
            self._give(self.root / name)

    @property
    def names(self) -> list[str]:
        return list(self.versions)

    def change(self, name: str, how: str, rng: random.Random) -> None:
        """Truncate, append to, rewrite or replace a file; note each state before it is one."""
        path = self.root / name
        data = path.read_bytes()
        if how == "truncate":
            new = data[: rng.randrange(len(data))]
            self._note(name, new)
            os.truncate(path, len(new))
        elif how == "append":
            new = data + rng.randbytes(1 + rng.randrange(50_000))
            self._note(name, new)
            with open(path, "ab", buffering=0) as file:
                file.write(new[len(data) :])
        elif how == "rewrite":  # the first and the last byte, one after the other
            new = data
            with open(path, "r+b", buffering=0) as file:
                for at in (0, len(data) - 1):
                    byte = bytes([new[at] ^ 0xFF])
                    new = new[:at] + byte + new[at + 1 :]
                    self._note(name, new)
                    file.seek(at)
                    file.write(byte)
        else:
            new = rng.randbytes(len(data))
            self._note(name, new)
            beside = self.aside / name
            beside.write_bytes(new)
            self._give(beside)
            os.replace(beside, path)

    def _note(self, name: str, data: bytes) -> None:
        self.current[name] = digest(data)
        self.versions.setdefault(name, set()).add(self.current[name])

    def _make_directory(self, path: Path) -> None:
        if self.remote:
            self.scene.server.make_directory(str(path.relative_to(self.scene.server.root)))
        else:
            path.mkdir(parents=True)

    def _give(self, path: Path) -> None:
        if self.remote:
            self.scene.server._give(path)


def digest(data: bytes) -> str:
    """Return what stands for a content."""
    return sha256(data).hexdigest()


@contextlib.contextmanager
def _directory(prefix: str) -> Iterator[str]:
    path = tempfile.mkdtemp(prefix=prefix)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _mount(stack: contextlib.ExitStack, path: Path) -> bool:
    """Mount a small disk in memory; False where that is not allowed."""
    options = f"size={DISK_BYTES},mode=0755"
    try:
        run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)])
    except (ServerUnavailable, OSError):
        return False
    stack.callback(subprocess.run, ["umount", "-l", str(path)], check=False)
    return True
