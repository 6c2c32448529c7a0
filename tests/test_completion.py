"""Completion by TAB, in a real bash on a terminal."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pyremotedata_core.nodestate import state_directory

from .logins import changed, new_key
from .waiting import PATIENCE_S

PROMPT = "ready> "


class Bash:
    """An interactive bash that completes the command."""

    def __init__(self, home: Path, ssh_config: Path) -> None:
        ours, theirs = pty.openpty()
        self._terminal = ours
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(home),
            "TERM": "dumb",
            "PS1": PROMPT,
            "PYREMOTEDATA_SSH_CONFIG": str(ssh_config),
        }
        self._process = subprocess.Popen(
            ["bash", "--norc", "--noprofile", "-i"],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=home,
            env=environment,
            start_new_session=True,
        )
        os.close(theirs)
        self.type("bind 'set enable-bracketed-paste off'; stty columns 1000; echo be''gun\n")
        self.wait_for("begun")
        self.type('eval "$(pyremotedata completion bash)"; echo do""ne\n')
        self.wait_for("done")

    def type(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def wait_for(self, text: str) -> str:
        """Return what the terminal shows, once that is in it."""
        deadline, seen = time.monotonic() + PATIENCE_S, ""
        while text not in seen:
            assert time.monotonic() < deadline, seen
            if select.select([self._terminal], [], [], 0.2)[0]:
                seen += os.read(self._terminal, 65536).decode(errors="replace")
        return seen

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._terminal)


@pytest.fixture
def bash(sshd, tmp_path):
    shell = Bash(tmp_path, sshd.ssh_config)
    yield shell
    shell.close()


def test_verbs_hosts_files_and_what_is_on_the_server_are_completed(
    bash, sshd, remote_directory, tmp_path
):
    sshd.make(f"{remote_directory}/some/day light.tif")
    top = f"sftp://{sshd.alias}{sshd.remote_path(remote_directory)}"
    bash.type("pyremotedata comp\t")
    bash.wait_for("completion ")
    bash.type("\x15pyremotedata stat sf\t" + sshd.alias[:4] + "\t")
    bash.wait_for(f"sftp://{sshd.alias}/")
    (tmp_path / "some-local-file").touch()
    bash.type("\x15pyremotedata sync so\t")
    bash.wait_for("some-local-file ")
    bash.type(f"\x15pyremotedata stat {top}/so\t")
    bash.wait_for("/some/")
    bash.type("d\t")
    bash.wait_for("day%20light.tif")
    bash.type("\n")
    assert "- 0" in bash.wait_for("day%20light.tif\r\n")
    sshd.make(f"{remote_directory}/some/über all.tif")
    bash.type(f"\x15pyremotedata stat {top}/some/üb\t")
    bash.wait_for("er%20all.tif")
    bash.type("\n")
    assert "- 0" in bash.wait_for("all.tif\r\n")


def test_a_refused_login_is_not_tried_again_by_tab(bash, sshd, tmp_path):
    refused = state_directory() / "completion-refused"
    try:
        key = new_key(tmp_path / "key")
        config = changed(sshd, tmp_path / "wrong", (str(sshd.key), str(key)))
        asked = f"pyremotedata ls --ssh-config {config} sftp://{sshd.alias}/e\t; echo a''gain\n"
        for _ in range(5):  # a busy machine may not answer a TAB within its deadline
            bash.type(asked)
            bash.wait_for("again")
            if refused.exists():
                break
        assert refused.read_text() == f"sftp://{sshd.alias}"
    finally:
        refused.unlink(missing_ok=True)
