"""The transfer engine: remote files over SFTP (and ftp, ftps through lftp), whole or absent.

Names are loaded on first use, so that importing the package costs next to nothing: plugins are
imported by every start of their engine.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .config import ConnectionSettings, Secret, remove_config
    from .engine import TransferEngine, shared_engine
    from .entries import Entries
    from .errors import (
        AuthenticationFailed,
        ConfigurationError,
        ConnectionLost,
        HostKeyRejected,
        LocalStorageFull,
        RemoteChanged,
        RemoteFileNotFound,
        RemotePermissionDenied,
        ServerRefused,
        TransferError,
        TransferTimeout,
        UnsafeName,
    )
    from .handler import IOHandler
    from .iterator import RemotePathIterator
    from .model import Entry, Stat, TreeResult
    from .remote import Remote
    from .stager import Lease, Stager, shared_stager
    from .url import RemoteURL

if sys.platform == "win32":
    raise ImportError("pyremotedata needs Linux or macOS; on Windows, use it within WSL")

# Where the names are at home; all others are errors.
_HOME = {
    "config": ("ConnectionSettings", "Secret", "remove_config"),
    "engine": ("TransferEngine", "shared_engine"),
    "entries": ("Entries",),
    "handler": ("IOHandler",),
    "iterator": ("RemotePathIterator",),
    "model": ("Entry", "Stat", "TreeResult"),
    "remote": ("Remote",),
    "stager": ("Lease", "Stager", "shared_stager"),
    "url": ("RemoteURL",),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "AuthenticationFailed",
    "ConfigurationError",
    "ConnectionLost",
    "ConnectionSettings",
    "Entries",
    "Entry",
    "HostKeyRejected",
    "IOHandler",
    "Lease",
    "LocalStorageFull",
    "Remote",
    "RemoteChanged",
    "RemoteFileNotFound",
    "RemotePathIterator",
    "RemotePermissionDenied",
    "RemoteURL",
    "Secret",
    "ServerRefused",
    "Stager",
    "Stat",
    "TransferEngine",
    "TransferError",
    "TransferTimeout",
    "TreeResult",
    "UnsafeName",
    "__version__",
    "remove_config",
    "shared_engine",
    "shared_stager",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_MODULE.get(name, 'errors')}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
