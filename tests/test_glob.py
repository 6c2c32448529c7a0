"""Remote files by pattern: what matches, and what the server is asked for it."""

from __future__ import annotations

import glob
from pathlib import Path

import pytest

from pyremotedata_core import Remote, TransferError

NAMES = (
    "a.tif",
    "b.tif",
    "c.csv",
    ".hidden.tif",
    "run1/a.tif",
    "run1/x.csv",
    "run2/deep/d.tif",
    "run2/deep/er/e.tif",
    ".git/f.tif",
    "odd/[1].tif",
    "odd/1.tif",
    "odd/*.tif",
    "odd/b c?.tif",
)


@pytest.fixture(scope="module")
def place(sshd) -> Path:
    for name in NAMES:
        sshd.make(f"glob/{name}")
    top = sshd.root / "glob"
    (top / "link.tif").symlink_to("a.tif")
    (top / "dangling.tif").symlink_to("nowhere")
    (top / "run3").symlink_to("run1")
    return top


@pytest.fixture(scope="module")
def remote(sshd, place):
    with Remote(sshd.url("glob"), ssh_config=str(sshd.ssh_config)) as remote:
        yield remote


@pytest.mark.parametrize(
    "pattern",
    [
        "*.tif",
        "[ab].tif",
        "[!a]*",
        "*",
        "*/",
        "run?/*.csv",
        "*/x.csv",
        "run*/../c.csv",
        ".h*",
        "**/*.tif",
        "**/deep/*.tif",
        "run2/**/e.tif",
        "**/deep/**/*.tif",
        "**/",
        "a.tif",
        "run1/",
        "a.tif/*",
        "none/*",
        "odd/[[]1].tif",
        "odd/[*].tif",
        glob.escape("odd/b c?.tif"),
        "odd/?.tif",
    ],
)
def test_a_pattern_finds_what_pythons_glob_finds(remote, place, pattern):
    expected = glob.glob(pattern, root_dir=place, recursive=True)
    # Python lists links that lead nowhere, follows links with ** where we would not end, and
    # gives `..` back as it was.
    expected = [name.rstrip("/") for name in expected if (place / name).exists()]
    if "**" in pattern:
        expected = [name for name in expected if not name.startswith("run3/")]
    if ".." in pattern:
        expected = ["c.csv"]
    found = list(remote.glob(pattern))
    assert sorted(found) == sorted(set(expected) - {""})
    assert len(found) == len(set(found))


def test_urls_give_urls_and_what_is_encoded_stands_for_itself(remote, sshd):
    top = sshd.url("glob")
    assert list(remote.glob(f"{top}/odd/[1].tif")) == [f"{top}/odd/1.tif"]
    assert list(remote.glob(f"{top}/odd/%5B1].tif")) == [f"{top}/odd/%5B1%5D.tif"]
    assert list(remote.glob(f"{top}/odd/%2A.tif")) == [f"{top}/odd/*.tif"]
    with Remote(f"{top}/odd", engine=remote.engine) as odd:
        assert list(odd.glob(f"{sshd.remote_path('glob')}/odd/[*].tif")) == [
            f"{sshd.remote_path('glob')}/odd/*.tif"
        ]


def test_a_directory_whose_name_holds_brackets_is_a_directory(remote, sshd):
    sshd.make("glob [x]/a.tif")
    with Remote(sshd.url("glob [x]"), engine=remote.engine) as here:
        assert list(here.glob("*")) == ["a.tif"]


def test_no_directory_is_listed_without_need(sshd_factory):
    server = sshd_factory(log_requests=True)
    for name in ("a/x/1", "a/y/1", "b/x/1", "c/1"):
        server.make(f"top/{name}")
    with Remote(server.url("top"), ssh_config=str(server.ssh_config)) as remote:
        assert list(remote.glob("a/*/1")) == ["a/x/1", "a/y/1"]
        assert server.requests("opendir") == 1
        assert sorted(remote.glob("**/x/1")) == ["a/x/1", "b/x/1"]
        assert server.requests("opendir") == 1 + 7


def test_results_come_while_others_are_sought(remote, place, sshd):
    found = remote.glob("**")
    first = next(found)
    assert (place / first).exists()
    with pytest.raises(TransferError):
        list(Remote(f"sftp://127.0.0.1:1{sshd.remote_path('glob')}", timeout_s=5).glob("*"))
