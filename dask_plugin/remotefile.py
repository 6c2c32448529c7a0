"""RemoteFile: a small handle on a remote file that is a local path where it is used."""

from __future__ import annotations

import operator
import os
import weakref
from pathlib import Path, PurePosixPath
from typing import Any

from pyremotedata_core import ConfigurationError, Lease, RemoteURL, Stat

from . import current


class RemoteFile(os.PathLike[str]):
    """A file on a server: give it to tasks as an argument, and open it there as a path.

    ``open(f)``, ``pandas.read_csv(f)``, ``os.fspath(f)`` and ``subprocess.run(["wc", f])`` see a
    local, read-only file under its own name. In a task it stays there until the task ends;
    elsewhere for as long as the handle lives; `hold` keeps it longer.

    Parameters
    ----------
    url : str
        Where it is. Credentials are not part of it: they are found where it is opened.
    size, mtime : int, optional
        Bytes, and seconds since the epoch, as `glob` finds them. With both, opening costs no
        question to the server, and a file that is no longer that one is `RemoteChanged`. Else
        the server is asked; what it says holds for two seconds in that process.

    Raises
    ------
    ConfigurationError
        If it is not a URL that can be served, or carries a password, or if size or mtime is not
        a whole number.

    Notes
    -----
    Immutable, hashable, picklable, tokenizable; a few hundred bytes. Equal handles name the
    same content. Opening raises the errors of `pyremotedata_core`, such as `RemoteFileNotFound`.
    """

    __slots__ = ("_lease", "mtime", "size", "url")

    url: str
    size: int | None
    mtime: int | None
    _lease: Lease | None

    def __init__(self, url: str, size: int | None = None, mtime: int | None = None) -> None:
        parsed = RemoteURL.parse(url)
        if not parsed.name:
            raise ConfigurationError(f"the URL names no file: {url}")
        _fill(self, str(parsed), _whole("size", size), _whole("mtime", mtime))

    @property
    def name(self) -> str:
        """The file's name, without the directory."""
        return RemoteURL.parse(self.url).name

    @property
    def suffix(self) -> str:
        """The last suffix of the name, with its dot."""
        return PurePosixPath(self.name).suffix

    @property
    def expected(self) -> Stat | None:
        """What the file is known to be, if that is enough to find it without a question."""
        if self.size is None or self.mtime is None:
            return None
        return Stat("file", self.size, self.mtime)

    def __fspath__(self) -> str:
        return str(current.open_here(self).path)

    def resolve(self) -> Path:
        """Return the local path, absolute: `numpy.memmap` asks what is not a string for it."""
        return Path(self).resolve()

    def hold(self, owner: Any = None) -> Lease:
        """Have the file here for longer than the task: for readers that open it lazily.

        Parameters
        ----------
        owner : object, optional
            The reader (a memory map, a dataset). The file is released with it; without an
            owner, when the lease is released (``with f.hold() as lease: lease.path``) or the
            process ends.

        Returns
        -------
        Lease
            Its ``path`` is the local file.

        Raises
        ------
        TypeError
            If nobody can tell when the owner goes: a list or a dictionary.
        """
        if owner is not None:
            _check_owner(owner)
        (lease,) = current.hold_here([self])
        if owner is not None:
            weakref.finalize(owner, lease.release)
        return lease

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a RemoteFile is immutable; make another one to change its {name}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a RemoteFile is immutable, with its {name}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemoteFile) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        return ("pyremotedata", *self._identity())

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrived, self._identity()

    def __str__(self) -> str:
        return self.url

    def __repr__(self) -> str:
        known = "".join(
            f", {name}={value}"
            for name, value in (("size", self.size), ("mtime", self.mtime))
            if value is not None
        )
        return f"RemoteFile({self.url!r}{known})"

    def _identity(self) -> tuple[str, int | None, int | None]:
        return self.url, self.size, self.mtime


def _check_owner(owner: Any) -> None:
    try:
        weakref.ref(owner)
    except TypeError:
        kind = type(owner).__name__
        raise TypeError(
            f"a {kind} cannot own a file, as nothing tells when it goes:"
            " hold it without an owner, and release the lease"
        ) from None


def _whole(name: str, number: Any) -> int | None:
    """Return a number as Python's own int; tables hold numpy's."""
    try:
        return None if number is None else operator.index(number)
    except TypeError:
        raise ConfigurationError(f"{name} is a whole number, not {number!r}") from None


def _fill(handle: RemoteFile, url: str, size: int | None, mtime: int | None) -> RemoteFile:
    fill = object.__setattr__
    fill(handle, "url", url)
    fill(handle, "size", size)
    fill(handle, "mtime", mtime)
    fill(handle, "_lease", None)
    return handle


def _arrived(url: str, size: int | None, mtime: int | None) -> RemoteFile:
    """Rebuild a handle from a pickle, and tell the plugins of the workers in this process."""
    handle = _fill(RemoteFile.__new__(RemoteFile), url, size, mtime)
    # Not the handle itself, which would be kept, and with it what it has opened.
    current.announce(_fill(RemoteFile.__new__(RemoteFile), url, size, mtime))
    return handle
