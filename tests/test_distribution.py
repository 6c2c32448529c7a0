"""What is built, installed with one extra each: that engine works, and no other is there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
ENGINES = {"snakemake", "dask", "distributed", "fsspec"}
# Dask brings fsspec itself.
BROUGHT = {
    "": set(),
    "snakemake": {"snakemake"},
    "dask": {"dask", "distributed", "fsspec"},
    "fsspec": {"fsspec"},
}
LOADED = f"""
import sys, dask_plugin
from pyremotedata_core import IOHandler, Remote, Stager, TransferEngine
print(*sorted({ENGINES} & set(sys.modules)))
"""
WITHOUT_DASK = """
import dask_plugin
dask_plugin.RemoteFile("sftp://archive/a.bin")
try:
    dask_plugin.StagingPlugin
except ModuleNotFoundError as error:
    print(error)
"""
INSTALLED = f"""
from importlib.util import find_spec
print(*sorted(name for name in {ENGINES} if find_spec(name)))
"""
SNAKEFILE = """
rule all:
    input: "out.bin"
rule copy:
    input: storage.pyremotedata("@URL@")
    output: "out.bin"
    shell: "cp {input} {output}"
"""
DASK = """
import sys
from dask.distributed import Client
from dask_plugin import RemoteFile, StagingPlugin

def content(file):
    return open(file, "rb").read()

if __name__ == "__main__":
    with Client(n_workers=1, threads_per_worker=1, dashboard_address=None) as client:
        client.register_plugin(StagingPlugin())
        data = client.submit(content, RemoteFile(sys.argv[1])).result(timeout=60)
    open("out.bin", "wb").write(data)
"""
FSSPEC = """
import fsspec, sys
with fsspec.open("pyremotedata+" + sys.argv[1]) as file:
    open("out.bin", "wb").write(file.read())
"""


class Environment:
    """A virtual environment in a directory of its own, to which nothing of this one leads."""

    def __init__(self, directory: Path, server) -> None:
        self.directory = directory
        self.bin = directory / "venv" / "bin"
        shut_out = ("PYTHON", "VIRTUAL_ENV")
        self.variables = {
            **{name: v for name, v in os.environ.items() if not name.startswith(shut_out)},
            "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}",
            "PYREMOTEDATA_SSH_CONFIG": str(server.ssh_config),
        }
        subprocess.run([sys.executable, "-m", "venv", self.bin.parent], check=True, timeout=120)

    def run(self, program: str, *arguments: str | Path, timeout_s: float = 120) -> str:
        done = subprocess.run(
            [self.bin / program, *arguments],
            cwd=self.directory,
            env=self.variables,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        assert done.returncode == 0, f"{program} {arguments}:\n{done.stdout}{done.stderr}"
        return done.stdout

    def script(self, text: str, *arguments: str) -> str:
        (self.directory / "script.py").write_text(text)
        return self.run("python", "script.py", *arguments)


@pytest.fixture
def environment(tmp_path, sshd) -> Iterator[Environment]:
    made = Environment(tmp_path, sshd)
    yield made
    shutil.rmtree(made.bin.parent)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> dict[str, Path]:
    """Return the wheel and the source distribution of this checkout."""
    pytest.importorskip("hatchling")
    place = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(place)]
    subprocess.run(command, cwd=PROJECT, check=True, capture_output=True, timeout=60)
    (wheel,), (sdist,) = place.glob("*.whl"), place.glob("*.tar.gz")
    return {"wheel": wheel, "sdist": sdist}


def test_the_wheel_holds_the_packages_and_the_source_distribution_the_whole_checkout(built):
    listed = subprocess.run(["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    tracked = set(listed.stdout.splitlines())
    root = "snakemake_storage_plugin/"
    packages = (
        "pyremotedata_core/",
        "dask_plugin/",
        f"{root}snakemake_storage_plugin_pyremotedata/",
    )
    in_packages = {name.removeprefix(root) for name in tracked if name.startswith(packages)}
    in_wheel = set(zipfile.ZipFile(built["wheel"]).namelist())
    assert {name for name in in_wheel if ".dist-info/" not in name} == in_packages
    with tarfile.open(built["sdist"]) as archive:
        in_sdist = {name.partition("/")[2] for name in archive.getnames()}
    assert {name for name in tracked - in_sdist if not name.startswith(".ci/")} == set()


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.parametrize("extra", BROUGHT)
@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_with_one_extra_that_engine_works_and_no_other_is_there(
    built, kind, extra, sshd, remote_directory, environment, tmp_path
):
    data = os.urandom(300_000)
    sshd.make(f"{remote_directory}/a.bin", data)
    url = sshd.url(f"{remote_directory}/a.bin")
    wanted = f"{built[kind]}[{extra}]" if extra else str(built[kind])
    environment.run("pip", "install", "--quiet", wanted, timeout_s=600)
    environment.run("pip", "check")

    assert set(environment.script(INSTALLED).split()) == BROUGHT[extra]
    assert environment.script(LOADED).split() == []
    if extra != "dask":
        assert "pip install 'pyremotedata-suite[dask]'" in environment.script(WITHOUT_DASK)
    assert "usage: pyremotedata" in environment.run("pyremotedata", "--help")
    environment.run("pyremotedata", "get", url, "here.bin")
    environment.run("pyremotedata", "put", "here.bin", f"{url}.back")
    assert (sshd.root / remote_directory / "a.bin.back").read_bytes() == data

    if extra == "snakemake":
        (tmp_path / "Snakefile").write_text(SNAKEFILE.replace("@URL@", url))
        environment.run("snakemake", "--cores", "1")
    elif extra:
        environment.script(DASK if extra == "dask" else FSSPEC, url)
    assert not extra or (tmp_path / "out.bin").read_bytes() == data
