"""Outputs of tasks: written locally, uploaded when they are complete."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Self

from pyremotedata_core.stager import Draft

from . import current
from .remotefile import RemoteFile


def stage_out(url: str) -> Output:
    """Write a remote file as a local one: it is uploaded when the block ends well.

    ::

        def summarise(reads):
            with stage_out("sftp://archive/out/summary.csv") as out:
                table(reads).to_csv(out)
            return out.file

    Parameters
    ----------
    url : str
        The file; missing directories are made, an existing file is replaced.

    Returns
    -------
    Output
        A context manager, and a path to write to. When the block raises, nothing is uploaded;
        when the upload fails, the block's end raises the `TransferError`, and ``retries=`` makes
        another attempt. The server has the whole file or none at any time, whatever dies. A file
        that replaces another one within a second gets an mtime of its own, later by a second.
    """
    return Output(url)


class Output(os.PathLike[str]):
    """A file that is being written; see `stage_out`."""

    def __init__(self, url: str) -> None:
        self.url = RemoteFile(url).url
        self._draft: Draft | None = None
        self._file: RemoteFile | None = None

    @property
    def path(self) -> Path:
        """Where to write it, with the name of the remote file; only inside the block."""
        if self._draft is None:
            raise RuntimeError("use it in a with block: with stage_out(url) as out: ...")
        return self._draft.path

    @property
    def file(self) -> RemoteFile:
        """A handle on the uploaded file, which is in the node's cache; only after the block."""
        if self._file is None:
            raise RuntimeError("the file is not uploaded before the with block has ended well")
        return self._file

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"stage_out({self.url!r})"

    def __enter__(self) -> Self:
        stager, _ = current.stager_here()
        self._file = None
        self._draft = stager.draft(self.url)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        draft, self._draft = self._draft, None
        assert draft is not None
        if kind is not None:
            draft.discard()
            return
        stat = draft.deliver()
        self._file = RemoteFile(self.url, stat.size, stat.mtime)
        _, staging = current.stager_here()
        if staging is not None:
            staging.note_stored(stat.size)
