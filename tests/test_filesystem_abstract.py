"""fsspec's own test suite for file systems, at a real server.

All of it runs: no test is left out.
"""

from __future__ import annotations

import fsspec
import pytest

pytest.importorskip("fsspec.tests.abstract")

from fsspec.tests import abstract


class Fixtures(abstract.AbstractFixtures):
    @pytest.fixture
    def fs(self, sshd):
        return fsspec.filesystem("pyremotedata", host=sshd.alias, ssh_config=str(sshd.ssh_config))

    @pytest.fixture
    def fs_path(self, sshd, remote_directory):
        return str(sshd.root / remote_directory)


class TestCopy(abstract.AbstractCopyTests, Fixtures):
    pass


class TestGet(abstract.AbstractGetTests, Fixtures):
    pass


class TestPut(abstract.AbstractPutTests, Fixtures):
    pass


class TestOpen(abstract.AbstractOpenTests, Fixtures):
    pass


class TestPipe(abstract.AbstractPipeTests, Fixtures):
    pass
