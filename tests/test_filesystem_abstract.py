"""fsspec's own test suite for file systems, at real servers.

No test of it is left out because of a server: every reply of theirs suits it. Its glob cases ask
the same of a server again and again, and are not repeated at the slow one.
"""

from __future__ import annotations

import fsspec
import pytest
from fsspec.tests import abstract


class Fixtures(abstract.AbstractFixtures):
    @pytest.fixture(
        params=[
            "sshd",
            pytest.param("plain_sshd", marks=pytest.mark.full),
            pytest.param("miglike", marks=pytest.mark.full),
        ]
    )
    def server(self, request):
        if request.param == "miglike" and "glob_edge_cases" in request.node.name:
            pytest.skip("repeats itself")
        return request.getfixturevalue(request.param)

    @pytest.fixture
    def fs(self, server):
        url = f"pyremotedata+{server.url()}"
        return fsspec.url_to_fs(url, ssh_config=str(server.ssh_config), ssh_key=str(server.key))[0]

    @pytest.fixture
    def fs_path(self, fs, server, tmp_path):
        server.make_directory(tmp_path.name)
        return fs._strip_protocol(server.url(tmp_path.name))


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
