"""Remote inputs for Dask tasks: local by the time the task runs.

A task takes a `RemoteFile` and opens it as a path. `StagingPlugin`, registered on the client,
fetches the files of the next tasks while earlier ones compute, once per node::

    from dask_plugin import RemoteFile, StagingPlugin, glob

    client.register_plugin(StagingPlugin())
    futures = client.map(count_reads, glob("sftp://archive/run7/*.fastq.gz"))

Names are loaded on first use: a handle needs neither dask nor distributed.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .finding import glob
    from .localpaths import local
    from .outputs import stage_out
    from .plotting import plot
    from .plugin import StagingPlugin
    from .remotefile import RemoteFile
    from .report import stats

_HOME = {
    "RemoteFile": "remotefile",
    "StagingPlugin": "plugin",
    "glob": "finding",
    "local": "localpaths",
    "plot": "plotting",
    "stage_out": "outputs",
    "stats": "report",
}

__all__ = ["RemoteFile", "StagingPlugin", "glob", "local", "plot", "stage_out", "stats"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    except ModuleNotFoundError as error:
        if error.name not in ("dask", "distributed"):
            raise
        raise ModuleNotFoundError(
            f"{__name__}.{name} needs {error.name}, which is not installed:"
            " pip install 'pyremotedata-suite[dask]'",
            name=error.name,
        ) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
