"""The distribution under whose name Snakemake deploys the plugin: it holds no code of its own."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("hatchling")

PLACE = Path(__file__).parents[1] / "snakemake_storage_plugin" / "metapackage"


def test_the_metapackage_installs_the_plugin_and_brings_no_copy_of_it(tmp_path):
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=PLACE, check=True, capture_output=True, timeout=60)
    (wheel,) = tmp_path.glob("snakemake_storage_plugin_pyremotedata-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = next(name for name in names if name.endswith("METADATA"))
        text = archive.read(metadata).decode()
    assert all(".dist-info/" in name for name in names), names
    assert "Name: snakemake-storage-plugin-pyremotedata\n" in text
    assert "Requires-Dist: pyremotedata-suite[snakemake]\n" in text
