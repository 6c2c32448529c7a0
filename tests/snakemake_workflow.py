"""Workflows for the tests of the Snakemake plugin: written, run by the real ``snakemake``."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from .servers import Sshd
from .snakemake_template import Template

TEMPLATE = Template()
RUN_TIMEOUT_S = 100


@dataclass
class Outcome:
    """Exit status and everything that a run has printed."""

    status: int
    text: str

    def succeeded(self) -> Outcome:
        """Check that the run went well, or show what it printed."""
        assert self.status == 0, self.text
        return self

    def failed(self, *reasons: str) -> Outcome:
        """Check that the run failed, without a traceback, and gave the reasons on one line."""
        assert self.status == 1, self.text
        assert "Traceback" not in self.text, self.text
        assert not re.search(r'^\s*File ".*snakemake_storage_plugin', self.text, re.M), self.text
        lines = self.text.splitlines()
        assert any(all(reason in line for reason in reasons) for line in lines), self.text
        return self


class Workflow:
    """A directory with a Snakefile, run against a server."""

    def __init__(self, directory: Path, server: Sshd, remote: str) -> None:
        self.directory = directory
        self.server = server
        self.remote = remote
        self.timeout_s = RUN_TIMEOUT_S
        config = getattr(server, "ssh_config", None)  # an FTP server has none
        self.env = {"PYREMOTEDATA_SSH_CONFIG": str(config)} if config else {}
        directory.mkdir(parents=True, exist_ok=True)

    def write(self, text: str, **names: object) -> None:
        """Write the Snakefile; ``@URL@`` stands for the remote directory, ``@NAME@`` for names."""
        text = textwrap.dedent(text).replace("@URL@", self.server.url(self.remote))
        for name, value in names.items():
            text = text.replace(f"@{name}@", str(value))
        (self.directory / "Snakefile").write_text(text)

    def write_copy(self, source: str, target: str) -> None:
        """Write a Snakefile that copies a file: ``write_copy('storage("@URL@/in")', '"out"')``."""
        shell = "cp {input:q} {output:q}"
        self.write(f"rule copy:\n input: {source}\n output: {target}\n shell: {shell!r}\n")

    def run(self, *arguments: str, cores: int = 2) -> Outcome:
        """Run ``snakemake``."""
        output = self.directory.with_name(f"{self.directory.name}.output")
        status = TEMPLATE.run(
            self.timeout_s,
            arguments=self._arguments(cores, arguments),
            directory=str(self.directory),
            env={**os.environ, **self.env},
            output=str(output),
        )
        text = output.read_text()
        assert status is not None, f"the run did not end:\n{text}"
        return Outcome(status, text)

    def submit(self, *arguments: str, jobs: int = 2, before: str = "") -> Outcome:
        """Run ``snakemake`` with its cluster-generic executor: every job a process of its own.

        Before a job, a line of shell is run, for which ``$1`` is the script of the job.
        """
        script = self.path("submit.sh")
        start = 'nohup sh "$1" > "$1.log" 2>&1 < /dev/null &\necho $!\n'
        script.write_text(f"#!/bin/sh\n{before}\n{start}")
        script.chmod(0o755)
        cluster = ("--executor", "cluster-generic", "--cluster-generic-submit-cmd", str(script))
        return self.run(
            *cluster, "--jobs", str(jobs), "--seconds-between-status-checks", "1", *arguments
        )

    def start(self, *arguments: str, cores: int = 2) -> subprocess.Popen[str]:
        """Start ``snakemake`` in a process group of its own."""
        command = [sys.executable, "-m", "snakemake", *self._arguments(cores, arguments)]
        return subprocess.Popen(
            command,
            cwd=self.directory,
            env={**os.environ, **self.env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def default_storage(self) -> tuple[str, ...]:
        """Return the arguments by which all files are remote, but for those marked as local."""
        url = self.server.url(self.remote)
        return ("--default-storage-provider", "pyremotedata", "--default-storage-prefix", url)

    def _arguments(self, cores: int, more: tuple[str, ...]) -> list[str]:
        return ["--cores", str(cores), "--nocolor", *more]

    def path(self, relative: str) -> Path:
        """Return a path of the workflow's directory."""
        return self.directory / relative

    def remote_path(self, relative: str) -> Path:
        """Return where the server keeps a file of the remote directory."""
        return self.server.root / self.remote / relative

    def make_remote(self, relative: str, data: bytes = b"", **options: int) -> Path:
        """Write a file of the remote directory."""
        return self.server.make(f"{self.remote}/{relative}", data, **options)

    def local_copy(self, relative: str) -> Path:
        """Return where the local copy of a remote file lies."""
        server = f"{self.server.user}@127.0.0.1+{self.server.port}"
        place = self.directory / ".snakemake/storage/pyremotedata" / server
        return Path(f"{place}{self.server.remote_path(f'{self.remote}/{relative}')}")


@pytest.fixture
def workflow(sshd, remote_directory, tmp_path) -> Workflow:
    """A workflow on the server of the run."""
    return Workflow(tmp_path / "work", sshd, remote_directory)


@pytest.fixture
def counted(sshd_factory, tmp_path) -> Workflow:
    """A workflow on a server of its own that writes down every request."""
    server = sshd_factory(log_requests=True)
    server.make_directory("data")
    return Workflow(tmp_path / "work", server, "data")


@pytest.fixture
def chrooted(chroot_sshd, tmp_path) -> Workflow:
    """A workflow on a server whose account may not do everything; skipped where we are not root."""
    return Workflow(tmp_path / "work", chroot_sshd, f"work-{time.monotonic_ns()}")


def kill_group(process: subprocess.Popen[str]) -> None:
    """Kill a run and its jobs at once."""
    os.killpg(process.pid, signal.SIGKILL)


def temporaries(directory: Path) -> list[str]:
    """Return the temporary files below a directory."""
    return [str(path) for path in directory.rglob(".pyremotedata-*")]
