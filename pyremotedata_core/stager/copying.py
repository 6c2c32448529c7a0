"""Copy a local file: sharing its blocks where the file system can, whole or absent."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from pathlib import Path

from ..errors import TransferError, naming
from ..model import Stat
from ..part import Part

_FICLONE = 0x40049409  # linux/fs.h: share the blocks of another file, copied on write
_CHUNK_BYTES = 2**20
# Between two file systems, or on one that does not know how.
_CANNOT = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM}


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
    with naming(part.final), open(source, "rb") as data:
        size, fd = os.fstat(data.fileno()).st_size, data.fileno()
        if not (_reflink(fd, part.fd) or copy_range(fd, part.fd, 0, size)):
            raise TransferError(f"{source} was cut short while it was copied")


def copy_range(source: int, target: int, start: int, length: int) -> bool:
    """Copy a piece of an open file to the same place in another; False if it ends before.

    Raises
    ------
    OSError
    """
    end = start + length
    in_kernel = hasattr(os, "copy_file_range")
    while start < end:
        count = min(_CHUNK_BYTES, end - start)
        if in_kernel:
            try:
                done = os.copy_file_range(source, target, count, start, start)
            except OSError as error:
                if error.errno not in _CANNOT:
                    raise
                done = 0
            in_kernel = done > 0  # some file systems copy nothing, and call it success
        else:
            done = os.pwrite(target, os.pread(source, count, start), start)
            if done == 0:
                return False
        start += done
    return True


def _reflink(source: int, target: int) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        return False
    return True
