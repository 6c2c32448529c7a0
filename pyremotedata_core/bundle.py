"""FetchBundle, StoreBundle: many small files of a tree, moved as one operation of a session."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .errors import TransferError
from .jobs import Job
from .journal import Orphan
from .local import SmallFileSource
from .model import Stat
from .part import Part
from .transports.base import Done
from .transports.sftp_bundle import SmallFile, SmallUpload
from .url import RemoteURL

if TYPE_CHECKING:
    from .mover import Mover

BUNDLE_FILES = 16
BUNDLE_BYTES = 1 << 20
SMALL_BYTES = 255 * 1024  # one read of most servers


class _Bundle(Job):
    """Moves small files of a tree where their directories are there.

    What does not go smoothly is handed to ``odd``, to be moved alone: an error is told there.

    Parameters
    ----------
    mover : Mover
    url : RemoteURL
        The top of the tree.
    moved : callable
        Called with name and bytes of each file that has its name.
    odd : callable
        Called with the name of each that has failed; of a download with its stat, too.
    done : callable
        Called in the end, with the error of files of which neither was told.
    modes : bool
    """

    def __init__(
        self,
        mover: Mover,
        url: RemoteURL,
        moved: Callable[[str, int], None],
        odd: Callable[..., None],
        done: Done,
        modes: bool,
    ) -> None:
        super().__init__(mover, url, done)
        self._moved, self._odd, self._modes = moved, odd, modes
        self._names: dict[Any, str] = {}
        self._left: list[Any] = []

    def _begin(self, name: str, load_bytes: int) -> None:
        args = (self._left, self._one_ended)
        self._submit(
            name, args, self._all_ended, load_bytes=load_bytes or 1, weight=len(self._left)
        )

    @abstractmethod
    def _one_ended(self, file: Any, error: TransferError | None) -> None:
        """Take a file off those that are left, as an attempt after this one leaves it alone."""

    @abstractmethod
    def _all_ended(self, result: Any, error: TransferError | None) -> None:
        """Clear away, and end."""


class FetchBundle(_Bundle):
    """Downloads: of each file name, remote path, local path, and what it is known to be."""

    def __init__(
        self, mover: Mover, url: RemoteURL, files: list[tuple[str, str, str, Stat]], *how: Any
    ) -> None:
        super().__init__(mover, url, *how)
        self._parts: dict[SmallFile, Part] = {}
        for name, remote, local, stat in files:
            part = Part(local)
            file = SmallFile(remote, stat, part)
            self._names[file], self._parts[file] = name, part
            self._left.append(file)
        self._begin("read_bundle", sum(file[3].size for file in files))

    def _one_ended(self, file: SmallFile, error: TransferError | None) -> None:
        self._left.remove(file)
        part, name = self._parts.pop(file), self._names.pop(file)
        if error is None:
            try:
                part.publish(file.stat, self._mover.settings.fsync, modes=self._modes)
            except TransferError as local_error:
                error = local_error
        if error is None:
            self._moved(name, file.stat.size)
        else:
            part.discard()
            self._odd(name, file.stat)

    def _all_ended(self, result: Any, error: TransferError | None) -> None:
        for part in self._parts.values():
            part.discard()
        self._end(result, error)


class StoreBundle(_Bundle):
    """Uploads: of each file name, local path, remote path, and bytes."""

    def __init__(
        self, mover: Mover, url: RemoteURL, files: list[tuple[str, str, str, int]], *how: Any
    ) -> None:
        super().__init__(mover, url, *how)
        self._journal = mover.journal(url)
        for name, local, remote, _ in files:
            source = SmallFileSource(local, SMALL_BYTES, self._modes)
            self._names[SmallUpload(source, remote, mover.temporary_beside(remote))] = name
        self._left += self._names
        self._gone: list[str] = []  # of the journal
        try:
            self._journal.begin_all([Orphan(file.temporary, file.path) for file in self._left])
        except TransferError:
            mover.loop.call_soon(self._give_back)
            return
        self._begin("write_bundle", sum(file[3] for file in files))

    def _give_back(self) -> None:
        for name in self._names.values():
            self._odd(name)
        self._end(None, None)

    def _one_ended(self, file: SmallUpload, error: TransferError | None) -> None:
        self._left.remove(file)
        name = self._names.pop(file)
        if not file.left:
            self._gone.append(file.temporary)
        if error is None:
            self._moved(name, file.source.size)
        else:
            self._odd(name)

    def _all_ended(self, result: Any, error: TransferError | None) -> None:
        self._gone += [file.temporary for file in self._left if not file.begun]
        self._journal.end(*self._gone)
        self._end(result, error)
