"""The storage interface's own test suite, run against real servers."""

from __future__ import annotations

import os
import uuid

import pytest

pytest.importorskip("snakemake")

from snakemake_interface_storage_plugins.tests import TestStorageBase
from snakemake_storage_plugin_pyremotedata import StorageProvider, StorageProviderSettings


class _Suite(TestStorageBase):
    __test__ = False
    touch = True
    files_only = False

    @pytest.fixture(autouse=True)
    def _server(self, sshd, remote_directory):
        self.server, self.directory = sshd, remote_directory

    def get_storage_provider_cls(self):
        return StorageProvider

    def get_storage_provider_settings(self):
        return StorageProviderSettings(ssh_config=str(self.server.ssh_config))

    @pytest.fixture(autouse=True)
    def _closed(self):
        self.providers = []
        yield
        for provider in self.providers:
            provider.engine().close()

    def _get_provider(self, tmp_path):
        self.providers.append(super()._get_provider(tmp_path))
        return self.providers[-1]

    def get_query(self, tmp_path):
        return self.server.url(f"{self.directory}/new/test.txt")

    def get_query_not_existing(self, tmp_path):
        return self.server.url(f"{self.directory}/{uuid.uuid4().hex}")


class TestFilesAndDirectories(_Suite):
    __test__ = True


class TestNamesThatNeedCare(_Suite):
    __test__ = True

    def get_query(self, tmp_path):
        return self.server.url(f"{self.directory}/a b#c?d%41/é & {{x}}.txt")


class TestWithAnotherScheme(_Suite):
    __test__ = True

    def get_query(self, tmp_path):
        return "pyremotedata+" + super().get_query(tmp_path)


class TestChrooted(_Suite):
    __test__ = True

    @pytest.fixture(autouse=True)
    def _server(self, chroot_sshd):
        self.server, self.directory = chroot_sshd, f"t{os.getpid()}-{uuid.uuid4().hex}"


del TestStorageBase
