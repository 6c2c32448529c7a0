"""The plugin without client code: ``DASK_DISTRIBUTED__WORKER__PRELOAD=dask_plugin.preload``.

Settings come from each worker's environment and config file. A plugin that a client registers
takes the place of this one.
"""

from __future__ import annotations

from typing import Any

from .plugin import StagingPlugin


async def dask_setup(worker: Any) -> None:
    """Add the plugin to a worker that starts; called by distributed."""
    plugin = StagingPlugin()
    await worker.plugin_add(plugin=plugin, name=plugin.name)
