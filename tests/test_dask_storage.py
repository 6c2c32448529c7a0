"""Disks, budgets and quotas that are full, on clusters of real worker processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from dask_plugin import RemoteFile, stage_out, stats
from pyremotedata_core import LocalStorageFull, ServerRefused

from .dask_nodes import content
from .page import told
from .waiting import wait_until

pytest.importorskip("distributed")


def on_its_way(cache: Path) -> list[Path]:
    """Return what is neither a whole file nor a directory of the cache itself."""
    return [
        path
        for kind in ("incoming/*", "incoming/*/*", "trash/*", "locks/*")
        for path in cache.glob(f"*/{kind}")
    ]


def line_of(error: BaseException, *words: str) -> None:
    """Check that an error is one line that says these words."""
    text = str(error)
    assert "\n" not in text
    assert all(word in text for word in words), text


def test_a_full_disk_is_the_tasks_error_and_the_next_task_goes_on(archive, start_nodes, small_disk):
    large, _ = archive.make("large", 12_000_000)
    client = start_nodes(1, cache_dir=str(small_disk), timeout_s=3)
    error = client.submit(content, large).exception()
    assert isinstance(error, LocalStorageFull)
    line_of(error, large.url, str(small_disk), "bytes free", "PYREMOTEDATA_CACHE_DIR")
    other = small_disk / "of somebody else"
    other.write_bytes(bytes(6_000_000))
    half, data = archive.make("half", 5_000_000)
    error = client.submit(content, half).exception()
    assert isinstance(error, LocalStorageFull)
    line_of(error, half.url, str(small_disk), "bytes free", "free some space")
    wait_until(lambda: not on_its_way(small_disk), "nothing is left of what did not fit")
    other.unlink()
    assert client.submit(content, half, pure=False).result() == data


def test_a_file_above_the_budget_is_an_error_that_names_the_setting(archive, start_nodes, tmp_path):
    large, _ = archive.make("large", 20_000)
    small, data = archive.make("small", 2_000)
    client = start_nodes(1, cache_bytes=10_000)
    tasks = client.map(content, [large, small])
    error = tasks[0].exception()
    assert isinstance(error, LocalStorageFull)
    line_of(error, "20000 bytes", "budget of 10000", large.url)
    told(error, "PYREMOTEDATA_CACHE_BYTES")
    assert tasks[1].result() == data
    wait_until(lambda: not on_its_way(tmp_path / "node0"), "nothing is left of it")


def test_an_archive_over_quota_refuses_an_output_and_keeps_the_old_one(
    archive, start_nodes, mount_disk, tmp_path
):
    disk = mount_disk(archive.server.root / "quota", "2m")
    (disk / "out").write_bytes(b"old")
    url = archive.server.url("quota/out")

    def produce(size):
        with stage_out(url) as out:
            out.path.write_bytes(bytes(size))
        return out.file

    client = start_nodes(1)
    error = client.submit(produce, 5_000_000).exception()
    assert isinstance(error, ServerRefused)
    line_of(error, url, "quota full?")
    assert [path.name for path in disk.iterdir()] == ["out"]
    assert (disk / "out").read_bytes() == b"old"
    wait_until(lambda: not on_its_way(tmp_path / "node0"), "nothing is left of it")
    file = client.submit(produce, 1_000_000).result()
    assert isinstance(file, RemoteFile)
    assert (disk / "out").read_bytes() == bytes(1_000_000)
    assert stats(client).total["stored_files"] == 1
