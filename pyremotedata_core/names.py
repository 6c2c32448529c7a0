"""Names: temporary ones of our own, and those a server sends.

A temporary file stands in the directory of its final name. It is called
``.pyremotedata-HOST-WRITER.part``: HOST tells the node that writes it, WRITER is unique to the
writing process and file. All characters are among those that every known server takes. The same
name with ``.old`` is a file that is being replaced on a server that cannot do it in one step, with
``.done`` the list of what a local one holds already. lftp makes a list of its own.
"""

from __future__ import annotations

import os
import re
import unicodedata
import zlib
from itertools import count
from urllib.parse import quote

from .errors import UnsafeName

MAX_NAME = 1024  # characters; no file system takes as many, and listings are kept in memory
PGET_STATUS = ".lftp-pget-status"  # at the end of the name of lftp's list
_TEMPORARY = re.compile(
    rf"\.pyremotedata-([0-9a-f]{{8}})-([0-9a-f]+)\.(part({re.escape(PGET_STATUS)})?|old|done)"
)
_stem = ""  # of the temporary names of this process
_numbers = count(1)


def host_tag() -> str:
    """Return eight hexadecimal digits that stand for this node."""
    return f"{zlib.crc32(os.uname().nodename.encode()):08x}"


def temporary_name() -> str:
    """Return a name never returned before, by any process; cheap enough for each small file."""
    return f"{_stem}{next(_numbers):06x}.part"


def is_temporary(name: str) -> bool:
    """Whether a file name is one of our temporary names."""
    return name.startswith(".pyremotedata-") and _TEMPORARY.fullmatch(name) is not None


def aside_name(temporary: str) -> str:
    """Return the path where the file stands aside that a temporary one replaces."""
    return temporary.removesuffix(".part") + ".old"


def record_name(temporary: str) -> str:
    """Return the path of the list of what a local temporary file holds."""
    return temporary.removesuffix(".part") + ".done"


def temporary_host(name: str) -> str | None:
    """Return the host tag of a temporary name, None for any other name."""
    match = _TEMPORARY.fullmatch(name)
    return match[1] if match else None


def check_component(name: str, url: str = "") -> str:
    """Return a name that a server sent, if it is one component of a path.

    Raises
    ------
    UnsafeName
        If it is empty, ``.``, ``..``, or holds ``/`` or NUL: it would leave its directory. And if
        it is longer than any file system has it.
    """
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise UnsafeName(f"the server lists a name that leaves its directory: {name!r}", url)
    if len(name) > MAX_NAME:
        raise UnsafeName(f"the server lists a name of {len(name)} characters: {name[:40]!r}…", url)
    return name


def check_local(path: str) -> str:
    """Return a local path, if it can be written in the encoding that Python has for file names.

    Raises
    ------
    UnsafeName
        Where it cannot, which the locale decides.
    """
    try:
        os.fsencode(path)
    except UnicodeEncodeError as error:
        raise UnsafeName(
            f"{path!r} cannot be written in the locale's encoding of file names"
            f" ({error.encoding}); set PYTHONUTF8=1"
        ) from None
    return path


def folded(name: str) -> str:
    """Return a name as file systems see it that tell neither case nor forms of accents apart."""
    return name.lower() if name.isascii() else unicodedata.normalize("NFD", name).casefold()


def file_name_for(server: str) -> str:
    """Return a file name that stands for a server's URL."""
    return quote(server, safe="@+,=:")[:200]


def absolute(path: str) -> str:
    """Return a local path from the root; ``..`` goes up from where a link leads, as everywhere."""
    parts = path.split(os.sep)
    if os.pardir in parts:
        end = len(parts) - parts[::-1].index(os.pardir)
        path = os.path.join(os.path.realpath(os.sep.join(parts[:end])), *parts[end:])
    return os.path.abspath(path)


def local_parent(path: str) -> str:
    """Return the directory that holds a local path."""
    return os.path.dirname(path) or "."


def _begin() -> None:
    global _stem
    _stem = f".pyremotedata-{host_tag()}-{os.urandom(8).hex()}"


_begin()
os.register_at_fork(after_in_child=_begin)
