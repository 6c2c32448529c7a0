"""Errors as Snakemake shows them: one `WorkflowError`, one line, with the remedy."""

from __future__ import annotations

from pathlib import Path

from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_storage_plugins.exceptions import FileOrDirectoryNotFoundError

from pyremotedata_core.errors import RemoteFileNotFound, TransferError, from_oserror


def explain(action: str, query: str, local_path: Path, error: Exception) -> WorkflowError:
    """Return what Snakemake should raise for an error met while doing ``action`` to ``query``."""
    if isinstance(error, WorkflowError):
        return error
    if isinstance(error, RemoteFileNotFound) and error.url in ("", query):
        return FileOrDirectoryNotFoundError(local_path=local_path, query=query)
    if isinstance(error, OSError) and not isinstance(error, TransferError):
        error = from_oserror(error)
    return WorkflowError(f"Failed to {action} {query}: {_reason(query, error)}")


def _reason(query: str, error: Exception) -> str:
    if not isinstance(error, TransferError):
        return f"{type(error).__name__}: {error}"
    # The query names its server already; another file of a directory is worth naming.
    return error.message if query.startswith(error.url) else str(error)
