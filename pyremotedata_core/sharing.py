"""Sharing: processes of one user on one node that let one helper move their files.

Each engine that shares (``TransferEngine(share=True)``) looks for a helper of the same settings in
the same surroundings, and otherwise starts one where others find it: an abstract Unix socket, whose
name is a digest of what the two must have in common but for secrets. Who answers there must be the
same user, and then compares the secrets. Linux only; elsewhere each engine has a helper of its own.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
import weakref
from typing import Any

from ._version import __version__
from .config import SECRETS

BACKLOG = 128
# What ssh looks at in the environment of the helper.
_LOOKED_AT = ("SSH_", "KRB5", "HOME", "PATH")
# What of a process decides to whom a file belongs that it makes, and who may read it.
_CREDENTIALS = (b"Uid:", b"Gid:", b"Groups:", b"Umask:")
# What only the engine's own process uses.
_OWN = ("local_directory", "cache_dir", "cache_bytes")


def common(settings: dict[str, Any]) -> dict[str, Any]:
    """Return what of plain settings a helper looks at."""
    return {name: value for name, value in settings.items() if name not in _OWN}


def place_for(settings: dict[str, Any]) -> str:
    """Return the name of the socket for plain settings; empty where nothing can be shared.

    Processes that see other files, that make files of other owners or permissions, or that may be
    ended together with others than the helper (a batch job has a control group of its own), have
    other places.
    """
    if not sys.platform.startswith("linux"):
        return ""
    import hashlib  # here: it takes long to load

    told = sorted(pair for pair in common(settings).items() if pair[0] not in SECRETS)
    around = sorted(pair for pair in os.environ.items() if pair[0].startswith(_LOOKED_AT))
    try:
        with open("/proc/self/cgroup", "rb") as file:
            group = file.read()
        with open("/proc/self/status", "rb") as file:
            credentials = [line for line in file if line.startswith(_CREDENTIALS)]
        files = os.stat("/proc/self/ns/mnt").st_ino, os.stat("/").st_ino
    except OSError:
        return ""
    home = os.path.dirname(os.path.abspath(__file__))
    versions = sys.version, __version__
    text = repr((credentials, versions, home, told, around, group, files))
    digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
    return f"\0pyremotedata-{digest[:32]}"


def connect(place: str, timeout_s: float) -> socket.socket | None:
    """Connect to the helper at a place; None if there is none, or it is somebody else's."""
    sock = kept_from_children(socket.socket(socket.AF_UNIX))
    with contextlib.suppress(OSError):
        sock.settimeout(timeout_s)
        sock.connect(place)
        if peer_of(sock)[1] == os.getuid():
            return sock
    sock.close()
    return None


def listen(place: str) -> socket.socket | None:
    """Listen at a place; None if somebody does."""
    sock = kept_from_children(socket.socket(socket.AF_UNIX))
    try:
        sock.bind(place)
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        return None
    return sock


def peer_of(sock: socket.socket) -> tuple[int, int]:
    """Return the process and the user at the other end."""
    told = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _ = struct.unpack("3i", told)
    return pid, uid


# Forked at any moment, a child would keep them open for as long as it lives.
_own: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def kept_from_children(sock: socket.socket) -> socket.socket:
    """Return a socket that a forked child will not hold."""
    _own.add(sock)
    return sock


def _close_in_child() -> None:
    for sock in list(_own):
        sock.close()


os.register_at_fork(after_in_child=_close_in_child)
