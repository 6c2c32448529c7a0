"""StagingPlugin: the worker plugin that has the files of tasks fetched ahead.

It arrives in a pickle on a worker's event loop, which must not wait for imports: this module is
light, and what serves the worker (`serving`) is imported on a thread.
"""

from __future__ import annotations

import asyncio
from dataclasses import fields
from importlib import import_module
from typing import TYPE_CHECKING, Any

from distributed.diagnostics.plugin import WorkerPlugin

if TYPE_CHECKING:
    from .serving import Serving


class StagingPlugin(WorkerPlugin):
    """Have the remote files of tasks fetched to the node while earlier tasks compute.

    Register it once: ``client.register_plugin(StagingPlugin())``. It serves the workers that are
    there and those that come. Without it handles work, too, but nothing is fetched ahead.

    Parameters
    ----------
    ahead_files : int
        How many files a worker fetches, and keeps, for tasks that have not opened them yet.
    ahead_bytes : int or str
        How many bytes that may be, such as ``"2 GiB"``; never more than a quarter of the
        cache's budget.
    archive_reads : int
        How many files a cluster of several nodes reads from the archive at a time. One node alone
        is bounded by its sessions, ``connections``.
    locality : bool
        Have new tasks prefer nodes that hold their files already. They run elsewhere, and get
        the files there, when those have too much to do or have gone. Not for clusters that
        resize a lot: such tasks are sent to their workers at once instead of waiting at the
        scheduler.
    filesystem : bool
        Have whole files staged that tasks read through fsspec (``pyremotedata+sftp://``), in
        ``dask.dataframe``, bag, xarray. False where tasks read small parts of very large files.
    **settings
        Fields of `pyremotedata_core.ConnectionSettings` that are to hold on the workers, such
        as ``cache_dir``, ``cache_bytes``, ``connections``, ``ssh_config``. What is not given is
        read on each worker, from its environment and config file. Secrets always are: they
        must not pass through the scheduler.

    Raises
    ------
    ConfigurationError
        If a setting is unknown, not valid, or a secret.

    Notes
    -----
    A file is read from the archive once per cluster: the first node that wants it reads it, the
    others pull it from there, over Dask's own connections. A plugin on the scheduler, which this
    one installs, arranges that. Where that fails, each node reads from the archive. The package
    must be installed there in any case: Dask unpickles graphs on the scheduler.

    Each fetch is a red bar of its task in the dashboard's task stream; each file that a task opens
    and each task that computes with files is an event, ``client.get_events("pyremotedata")``,
    which `plot` draws. Counters are on the worker's Prometheus endpoint, and in `stats`.

    A worker is sent about one task more than it has threads, so the look-ahead is one file deep
    or so. ``dask.config.set({"distributed.scheduler.worker-saturation": 2.0})`` before the
    scheduler starts makes it deeper, which helps where tasks are short.
    """

    name = "pyremotedata-staging"

    def __init__(
        self,
        *,
        ahead_files: int = 64,
        ahead_bytes: int | str = "2 GiB",
        archive_reads: int = 64,
        locality: bool = False,
        filesystem: bool = True,
        **settings: Any,
    ) -> None:
        from pyremotedata_core import ConfigurationError, ConnectionSettings
        from pyremotedata_core.config import SECRETS, convert, parse_bytes

        known = {field.name for field in fields(ConnectionSettings)}
        for key, value in settings.items():
            if key in SECRETS:
                raise ConfigurationError(
                    f"{key} must not pass through the scheduler: set"
                    f" PYREMOTEDATA_{key.upper()} or the config file on the workers"
                )
            if key not in known:
                raise ConfigurationError(f"unknown setting {key!r}")
            if value is not None:
                convert(key, value, key)
        counts = {"ahead_files": (ahead_files, 0), "archive_reads": (archive_reads, 1)}
        for key, (count, least) in counts.items():
            if not isinstance(count, int) or count < least:
                raise ConfigurationError(f"{key} is not valid: {count!r}")
        for key, switch in (("locality", locality), ("filesystem", filesystem)):
            if not isinstance(switch, bool):
                raise ConfigurationError(f"{key} is not valid: {switch!r}; it is True or False")
        self.ahead_files = ahead_files
        self.archive_reads = archive_reads
        self.locality = locality
        self.filesystem = filesystem
        try:
            self.ahead_bytes = parse_bytes(ahead_bytes)
        except ValueError:
            self.ahead_bytes = -1
        if self.ahead_bytes < 0:
            raise ConfigurationError(f"ahead_bytes is not valid: {ahead_bytes!r}")
        self.settings = settings
        self._serving: Serving | None = None
        self._is_torn_down = False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_serving": None, "_is_torn_down": False}

    async def setup(self, worker: Any) -> None:
        """Take up work on a worker. Wrong settings fail with the first file."""
        serving = await asyncio.to_thread(import_module, f"{__package__}.serving")
        if not self._is_torn_down:  # while the loop was free
            self._serving = serving.Serving(worker, self)
            await self._serving.begin()

    def teardown(self, worker: Any) -> None:  # noqa: ARG002
        """Give everything back."""
        serving, self._serving = self._serving, None
        self._is_torn_down = True
        if serving is not None:
            serving.end()

    def transition(self, key: Any, start: str, finish: str, **_: Any) -> None:
        """Follow a task; called by the worker on its event loop."""
        if self._serving is not None:
            self._serving.follow(key, start, finish)
