"""Copy a local file: sharing its blocks where the file system can, whole or absent."""

from __future__ import annotations

import fcntl
import os
import sys
from pathlib import Path

from ..errors import from_oserror
from ..model import Stat
from ..part import Part

_FICLONE = 0x40049409  # linux/fs.h: share the blocks of another file, copied on write
_CHUNK_BYTES = 2**20


def copy_file(source: Path, target: Path, stat: Stat) -> Path:
    """Copy a file, writable whatever the source is, and give it the mtime of ``stat``.

    Raises
    ------
    TransferError
        `LocalStorageFull` or another local failure, naming the target.
    """
    part = Part(str(target))
    try:
        fill(part, source)
        part.publish(stat, fsync=False)
    finally:
        part.discard()
    return target


def fill(part: Part, source: Path) -> None:
    """Copy a file's content into a part, which its owner publishes or discards.

    Raises
    ------
    TransferError
        `LocalStorageFull` or another local failure, naming the final name of the part.
    """
    try:
        with open(source, "rb") as data:
            if not _reflink(data.fileno(), part.fd):
                while chunk := data.read(_CHUNK_BYTES):
                    _write(part.fd, chunk)
    except OSError as error:
        raise from_oserror(error, part.final) from None


def _write(fd: int, chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        view = view[os.write(fd, view) :]


def _reflink(source: int, target: int) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        return False
    return True
