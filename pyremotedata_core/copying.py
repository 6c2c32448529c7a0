"""Copy: a file that its server copies by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import ConnectionLost, TransferError, TransferTimeout
from .jobs import Job
from .model import Stat
from .transports.base import Done
from .url import RemoteURL

if TYPE_CHECKING:
    from .mover import Mover


class Copy(Job):
    """Copies one regular file within a server, whole or not at all."""

    def __init__(
        self, mover: Mover, old: RemoteURL, new: RemoteURL, done: Done, *, overwrite: bool
    ) -> None:
        self._temporary = mover.temporary_beside(new.path)
        if self._temporary != new.path:
            mover.journal(new).begin(self._temporary, new.path)
        super().__init__(mover, new, done)

        def args() -> tuple[Any, ...]:
            return old.path, self._temporary, new.path, overwrite

        def renew() -> tuple[Any, ...]:
            self._temporary = mover.other_temporary(new, self._temporary)
            return args()

        self._submit("copy", args(), self._copied, renew=renew)

    def _copied(self, stat: Stat | None, error: TransferError | None) -> None:
        lost = isinstance(error, ConnectionLost | TransferTimeout)
        if not lost and (error is None or not error.left_temporary):
            self._mover.journal(self._url).end(self._temporary)
        self._end(stat, error)
