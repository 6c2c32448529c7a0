"""The README's examples, run as they stand against a server called ``archive``."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"^```(python|bash)\n(.*?)^```$", README.read_text(), re.DOTALL | re.MULTILINE)
TIMEOUT_S = 100


@pytest.fixture
def archive(sshd_factory, tmp_path, monkeypatch):
    """An archive with the README's files, and an empty working directory."""
    home = tmp_path / "home"
    (home / "project" / "images").mkdir(parents=True)
    (home / "project" / "results").mkdir()
    for name in ("a.bin", "b.bin", "images/1.png", "images/2.png"):
        (home / "project" / name).write_bytes(os.urandom(5000 + len(name)))
    server = sshd_factory(root=home, sftp_arguments=f"-d {home}")
    config = server.ssh_config.read_text()
    server.ssh_config.write_text(config.replace("Host embedded", "Host archive embedded"))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    bin_directory = str(Path(sys.executable).parent)
    monkeypatch.setenv("PATH", f"{bin_directory}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYREMOTEDATA_CACHE_DIR", str(tmp_path / "cache"))
    return home


def run(argv: list[str]) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, f"{argv}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def block(language: str, start: str) -> str:
    found = [text for kind, text in BLOCKS if kind == language and start in text]
    assert len(found) == 1, f"the README has {len(found)} {language} blocks with {start!r}"
    return found[0]


def test_the_commands_move_the_files_they_name(archive):
    for line in block("bash", "pyremotedata get").splitlines():
        run(["sh", "-c", line])
    for name in ("a.bin", "images/1.png", "images/2.png"):
        assert Path("data", name).read_bytes() == (archive / "project" / name).read_bytes()
    sent = (archive / "results" / "a.bin").read_bytes()
    assert sent == (archive / "project" / "a.bin").read_bytes()


def test_the_snakefile_runs(archive):
    Path("Snakefile").write_text(block("python", "# Snakefile"))
    for line in block("bash", "snakemake").splitlines():
        run(["sh", "-c", line])
    total = (archive / "results" / "total.txt").read_text().split()
    sizes = [(archive / "project" / f"{name}.bin").stat().st_size for name in "ab"]
    assert [int(number) for number in total] == sizes


def test_the_dask_tasks_read_the_remote_files(archive):
    Path("tasks.py").write_text(block("python", "RemoteFile"))
    sizes = tuple((archive / "project" / f"{name}.bin").stat().st_size for name in "ab")
    assert run([sys.executable, "tasks.py"]).strip() == str(sizes)


def test_the_python_example_moves_files_both_ways(archive):
    Path("script.py").write_text(block("python", "with Remote("))
    printed = run([sys.executable, "script.py"])
    size = (archive / "project/a.bin").stat().st_size
    assert printed.splitlines() == [
        f"['1.png', '2.png'] {size} False",
        "['images/1.png', 'images/2.png']",
    ]
    original = (archive / "project" / "a.bin").read_bytes()
    assert Path("data/a.bin").read_bytes() == original
    assert (archive / "project" / "results" / "a.bin").read_bytes() == original
    assert Path("data/images/2.png").read_bytes() == (archive / "project/images/2.png").read_bytes()


def test_every_setting_of_the_readme_exists():
    from pyremotedata_core.config import ENV, VARIABLES

    named = set(
        re.findall(r"^\| `PYREMOTEDATA_(\w+)` \| `(\w+)`", README.read_text(), re.MULTILINE)
    )
    assert ENV == "PYREMOTEDATA_"
    assert named == set(VARIABLES.items())
