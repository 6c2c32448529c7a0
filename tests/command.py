"""The command pyremotedata, run as a user runs it, and the fixtures of its tests."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest

CLI = [sys.executable, "-m", "pyremotedata_core.cli"]


class Command:
    """Runs the command in a directory, with an environment."""

    def __init__(self, directory: Path, server) -> None:
        self.argv = CLI
        self.directory = directory
        self.environment = {**os.environ, "PYREMOTEDATA_SSH_CONFIG": str(server.ssh_config)}

    def __call__(
        self, *arguments: str | Path, status: int = 0, **more
    ) -> subprocess.CompletedProcess:
        done = subprocess.run(
            [*self.argv, *map(str, arguments)],
            cwd=self.directory,
            env=self.environment,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            timeout=60,
            check=False,
            **more,
        )
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode == status, done.stderr or done.stdout
        return done

    def within(self, line: str) -> Command:
        """Return the command as a line of shell runs it, which has it as ``"$@"``."""
        command = copy.copy(self)
        command.argv = ["bash", "-c", line, "bash", *self.argv]
        return command

    def failure(self, *arguments: str | Path, status: int = 1, **more) -> str:
        """Run what must fail; return its one line."""
        lines = self(*arguments, status=status, **more).stderr.splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("pyremotedata: ")
        return lines[0]


def python(code: str, *arguments: object, **more) -> subprocess.CompletedProcess:
    """Run some lines of Python, which must succeed."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, **more)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture
def run(sshd, tmp_path) -> Command:
    directory = tmp_path / "here"
    directory.mkdir()
    return Command(directory, sshd)


@pytest.fixture
def here(run) -> Path:
    return run.directory


@pytest.fixture
def there(sshd, remote_directory) -> Path:
    return sshd.root / remote_directory


@pytest.fixture
def url(sshd, remote_directory):
    """Return the URL of a remote file."""
    return lambda relative="": sshd.url(
        f"{remote_directory}/{relative}" if relative else remote_directory
    )


@pytest.fixture
def make(sshd, remote_directory):
    """Write a file in the remote directory."""

    def write(relative: str, data: bytes = b"", **options) -> Path:
        return sshd.make(f"{remote_directory}/{relative}", data, **options)

    return write
