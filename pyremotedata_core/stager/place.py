"""Where a node's cache lies: a directory of this user alone, on a file system that will do."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import ConfigurationError
from ..names import host_tag
from ..nodestate import node_temporary, private_directory, user_number

CHANGE_PLACE = "choose a local directory with PYREMOTEDATA_CACHE_DIR"
# File systems that several nodes may mount: there every node gets a cache of its own, because
# locks may hold within a node only.
_SHARED = {
    *("nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "cifs", "smb3", "afs", "9p", "panfs"),
    *("ceph-fuse", "glusterfs", "sshfs", "virtiofs", "wekafs"),
}
_IN_MEMORY = {"tmpfs", "ramfs"}


def cache_root(cache_dir: str | None) -> Path:
    """Return the cache directory of this user on this node, made and checked.

    Parameters
    ----------
    cache_dir : str or None
        The place that was chosen. None means the node's own temporary folder, see
        `nodestate.node_temporary`.

    Raises
    ------
    ConfigurationError
        If the directory cannot be made, or is not this user's alone.
    """
    mine = f"pyremotedata-{user_number()}"
    try:
        if not cache_dir:
            place = _system_temporary()
            return private_directory(private_directory(place / mine) / "cache")
        place = Path(cache_dir).expanduser().absolute()
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        if _filesystem(place) in _SHARED:
            mine = f"{mine}-{host_tag()}"
        return private_directory(place / mine)
    except OSError as error:
        raise ConfigurationError(
            f"cannot make the cache in {place}: {error.strerror}; {CHANGE_PLACE}"
        ) from None


def _system_temporary() -> Path:
    """Return ``/tmp``, or ``/var/tmp`` where ``/tmp`` lies in memory and ``/var/tmp`` does not."""
    first, second = map(Path, map(os.path.realpath, (node_temporary(), "/var/tmp")))  # noqa: S108
    in_memory = _filesystem(first) in _IN_MEMORY and _filesystem(second) not in _IN_MEMORY
    return second if in_memory and os.access(second, os.W_OK | os.X_OK) else first


def _filesystem(path: Path) -> str:
    """Return the type of the file system that holds a path, ``""`` where that is not known."""
    best, kind = -1, ""
    try:
        lines = Path("/proc/self/mounts").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return ""
    where = os.path.realpath(path)
    for line in lines:
        fields = line.split(" ")
        point = fields[1].replace("\\040", " ")
        inside = where == point or where.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= best:  # the later of two mounts on one point is on top
            best, kind = len(point), fields[2]
    return kind.removeprefix("fuse.")
