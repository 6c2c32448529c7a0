"""Errors as Snakemake shows them: one `WorkflowError`, one line, with the remedy."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_storage_plugins.exceptions import FileOrDirectoryNotFoundError

from pyremotedata_core.errors import RemoteFileNotFound, TransferError, from_oserror

_TRACEBACK = BaseException.__dict__["__traceback__"]
_HERE = os.path.dirname(__file__)


class _CallersFramesOnly:
    """Its traceback ends where the plugin is called.

    Snakemake prints the frames of a plugin under the message. What happened within is the
    ``__cause__``, which ``snakemake --verbose`` prints in full.
    """

    @property
    def __traceback__(self) -> TracebackType | None:
        whole = _TRACEBACK.__get__(self)
        return _above(whole) or whole

    @__traceback__.setter
    def __traceback__(self, value: TracebackType | None) -> None:
        _TRACEBACK.__set__(self, value)


class StorageError(_CallersFramesOnly, WorkflowError):
    """Something could not be done with a remote file; one line says what, why and the remedy."""


class StorageFileNotFound(_CallersFramesOnly, FileOrDirectoryNotFoundError):
    """A remote file that was needed does not exist."""


def explain(action: str, query: str, local_path: Path, error: Exception) -> WorkflowError:
    """Return what Snakemake should raise for an error met while doing ``action`` to ``query``."""
    if isinstance(error, WorkflowError):
        return error
    if isinstance(error, RemoteFileNotFound) and error.url in ("", query):
        return StorageFileNotFound(local_path=local_path, query=query)
    if isinstance(error, OSError) and not isinstance(error, TransferError):
        error = from_oserror(error)
    return StorageError(f"Failed to {action} {query}: {_reason(query, error)}")


def _reason(query: str, error: Exception) -> str:
    if not isinstance(error, TransferError):
        return f"{type(error).__name__}: {error}"
    # The query names its server already; another file of a directory is worth naming.
    return error.message if query.startswith(error.url) else str(error)


def _above(frames: TracebackType | None) -> TracebackType | None:
    """Return a traceback without the plugin's frames and what they called."""
    if frames is None or os.path.dirname(frames.tb_frame.f_code.co_filename) == _HERE:
        return None
    return TracebackType(_above(frames.tb_next), frames.tb_frame, frames.tb_lasti, frames.tb_lineno)
