"""Lending: who reads a remote file may get a staged one, where somebody stages files for all.

A plugin that serves a process sets `lend`; the fsspec file system asks it before the server.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future

from ..config import ConnectionSettings
from ..model import Stat
from ..url import RemoteURL
from .lease import Lease

# Takes the reader's settings, the file, and what it is if that is known; returns None for what
# the reader is to get from the server itself. May block, unless called on an event loop.
Lend = Callable[[ConnectionSettings, RemoteURL, Stat | None], Future[Lease] | None]

lend: Lend | None = None
