"""Order: one file on its way to a node, from the archive or from a neighbour."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import TYPE_CHECKING

from pyremotedata_core import RemoteURL, Stat

if TYPE_CHECKING:
    from .chunks import File
    from .peers import PeerSource


class Order(Future[Stat]):
    """A file on its way to this node; ``cancel`` makes it end soon, with an error."""

    def __init__(
        self, source: PeerSource, url: RemoteURL, path: str, stat: Stat, background: bool
    ) -> None:
        super().__init__()
        self._source = source
        self.url = url
        self.path = path
        self.stat = stat
        self.background = background
        self.asked = 0.0  # when the broker was asked, 0 when there is nothing to wait for
        self.answered = False
        self.is_moving = False  # somebody brings it; whatever the broker says comes too late
        self.is_over = False
        self.fetching: Future[Stat] | None = None
        self.pulling: asyncio.Task[None] | None = None

    @property
    def file(self) -> File:
        """What names the content in the whole cluster."""
        return (str(self.url), self.stat.size, self.stat.mtime)

    def cancel(self) -> bool:
        """Have it stopped. It ends when nothing is written any more."""
        self._source.stop(self)
        return False

    def finish(self, stat: Stat | None, error: BaseException | None) -> None:
        """End it, once."""
        if self.done():
            return
        if error is not None:
            self.set_exception(error)
        else:
            self.set_result(stat or self.stat)
