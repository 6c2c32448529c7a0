"""Snakemake storage plugin: remote files over SFTP (and ftp, ftps), whole or absent.

Snakemake imports every installed plugin at every start, so nothing here is heavy and nothing
raises: the transfer engine is loaded with the first question to a server.
"""

from .provider import StorageProvider
from .settings import StorageProviderSettings
from .storage_object import StorageObject

__all__ = ["StorageObject", "StorageProvider", "StorageProviderSettings"]
