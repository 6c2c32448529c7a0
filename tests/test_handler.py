"""pyRemoteData's own names: IOHandler and RemotePathIterator."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from pyremotedata_core import (
    ConfigurationError,
    IOHandler,
    RemoteFileNotFound,
    RemotePathIterator,
    TransferError,
)

from .command import python
from .forks import in_a_fork

FILES = {"a.bin": 300, "ab.txt": 5, "sub/c.bin": 20_000, "sub/deep/d e.bin": 0, "sub2/f.bin": 77}


@pytest.fixture
def data(sshd):
    """The server's directory ``handler`` with a few files."""
    shutil.rmtree(sshd.root / "handler", ignore_errors=True)
    for name, size in FILES.items():
        sshd.make(f"handler/{name}", os.urandom(size))
    return sshd.root / "handler"


@pytest.fixture
def io(sshd, data, tmp_path, monkeypatch):
    """A handler in that directory, configured through the environment as the seed's users do."""
    monkeypatch.setenv("PYREMOTEDATA_REMOTE_USERNAME", sshd.user)
    monkeypatch.setenv("PYREMOTEDATA_REMOTE_URI", "127.0.0.1")
    monkeypatch.setenv("PYREMOTEDATA_REMOTE_PORT", str(sshd.port))
    monkeypatch.setenv("PYREMOTEDATA_REMOTE_DIRECTORY", str(data))
    monkeypatch.setenv("PYREMOTEDATA_SSH_CONFIG", str(sshd.ssh_config))
    local = tmp_path / "local"
    local.mkdir()
    with IOHandler(local_dir=str(local)) as io:
        yield io


def test_the_example_of_the_old_readme_runs_with_only_its_imports_changed(sshd, data, tmp_path):
    script = f'''
import os
os.environ["PYREMOTEDATA_REMOTE_USERNAME"] = "{sshd.user}"
os.environ["PYREMOTEDATA_REMOTE_URI"] = "{sshd.alias}"
os.environ["PYREMOTEDATA_REMOTE_DIRECTORY"] = "{data}"
os.environ["PYREMOTEDATA_AUTO"] = "yes"

from pyremotedata_core.handler import IOHandler

handler = IOHandler()

with handler as io:
    print(io.ls())

# The configuration is persistent, but can be removed using the following:
from pyremotedata_core.config import remove_config
remove_config()
'''
    environment = {**os.environ, **sshd.environment(), "XDG_CONFIG_HOME": str(tmp_path)}
    done = python(script, env=environment)
    assert done.stderr == ""
    assert done.stdout.strip() == "['a.bin', 'ab.txt', 'sub', 'sub2']"


def test_ls_and_exists_name_exactly_what_is_there(io):
    assert io.ls("sub") == ["sub/c.bin", "sub/deep"]
    assert io.ls(recursive=True) == sorted(FILES)
    assert io.exists("ab.txt")
    assert not io.exists("b.txt"), "a name that ends alike is another name"
    assert io.exists("sub", mode="directory")
    assert not io.exists("sub", mode="file")


def test_cd_and_lcd_change_where_relative_paths_begin(io, data):
    io.cd("sub/deep")
    assert io.pwd() == f"{data}/sub/deep"
    assert io.ls() == ["d e.bin"]
    io.cd("..")
    assert io.pwd() == f"{data}/sub"
    with pytest.raises(RemoteFileNotFound):
        io.cd("none")
    Path(io.lpwd(), "x").mkdir()
    io.lcd("x")
    assert Path(io.download("c.bin")) == Path(io.lpwd(), "c.bin")
    assert Path(io.lpwd()).name == "x"


def test_download_of_one_of_many_and_of_a_directory(io, data, tmp_path):
    assert Path(io.download("a.bin")).read_bytes() == (data / "a.bin").read_bytes()
    paths = io.download(["a.bin", "sub/c.bin"], str(tmp_path / "many"))
    assert paths == [f"{tmp_path}/many/a.bin", f"{tmp_path}/many/c.bin"]
    assert Path(paths[1]).read_bytes() == (data / "sub/c.bin").read_bytes()
    one_each = io.download(("a.bin", "sub/c.bin"), (str(tmp_path / "1"), str(tmp_path / "2")))
    assert one_each == (f"{tmp_path}/1/a.bin", f"{tmp_path}/2/c.bin")
    io.download("sub", str(tmp_path / "tree"))
    assert (tmp_path / "tree/deep/d e.bin").read_bytes() == b""
    with pytest.raises(RemoteFileNotFound, match="none"):
        io.download("none")


def test_many_files_keep_their_directories_where_no_place_is_named(io, data):
    (data / "sub2/c.bin").write_bytes(b"another c")
    local = io.lpwd()
    wanted = ["sub/c.bin", f"{data}/sub2/c.bin"]
    assert io.download(wanted) == [f"{local}/sub/c.bin", f"{local}{data}/sub2/c.bin"]
    assert io.download(["sub/../a.bin"]) == [f"{local}/a.bin"]
    assert Path(local + f"{data}/sub2/c.bin").read_bytes() == b"another c"


def test_what_only_steered_lftp_is_taken(io, tmp_path):
    IOHandler(lftp_settings={"net:timeout": "5"}, verbose=True, port=1)
    assert io.ls("sub", True, False, pbar=1) == ["sub/c.bin", "sub/deep/d e.bin"]
    io.sync(str(tmp_path / "all"), "down", False, False, 16, True, True, n=3)
    assert sorted(io.lls(str(tmp_path / "all"), R=True)) == sorted(FILES)
    assert len(RemotePathIterator(io, store=False, retry_timeout=9.0)) == len(FILES)


def test_upload_of_one_of_many_and_of_a_directory(io, data):
    local = Path(io.lpwd())
    (local / "up").mkdir()
    (local / "up/g h.bin").write_bytes(os.urandom(900))
    (local / "i.bin").write_bytes(b"i")
    assert io.upload("i.bin") == f"{data}/i.bin"
    assert io.upload(["i.bin", "up/g h.bin"], "new") == [f"{data}/new/i.bin", f"{data}/new/g h.bin"]
    with pytest.raises(TransferError, match=r"missing.* \(and 1 more\)"):
        io.upload(["missing", "gone", "i.bin"], "others")
    assert (data / "others/i.bin").read_bytes() == b"i"
    io.upload("up", "whole")
    assert (data / "whole/g h.bin").read_bytes() == (local / "up/g h.bin").read_bytes()


def test_sync_begins_at_the_working_directory_and_leaves_the_index_alone(
    io, data, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    io.get_file_index()
    assert (data / ".folder_index.txt").exists()
    assert sorted(io.sync("here")) == sorted(FILES)
    assert (tmp_path / "here/sub/c.bin").exists()
    assert ".folder_index.txt" not in io.ls()


def test_sync_down_up_and_both(io, data):
    local = Path(io.lpwd())
    assert sorted(io.sync()) == sorted(FILES)
    assert (local / "handler/sub/c.bin").read_bytes() == (data / "sub/c.bin").read_bytes()
    (local / "handler/new.bin").write_bytes(b"new")
    io.sync(direction="up")
    assert (data / "new.bin").read_bytes() == b"new"
    (data / "other.bin").write_bytes(b"other")
    io.sync(direction="both")
    assert (local / "handler/other.bin").read_bytes() == b"other"
    io.cd("/")
    with pytest.raises(ValueError, match="allow_root"):
        io.sync()


def test_du_counts_bytes_below_each_path(io):
    assert io.du("sub") == {"sub": 20_000}
    assert io.du("sub", all=True) == {
        "sub": 20_000,
        "sub/c.bin": 20_000,
        "sub/deep": 0,
        "sub/deep/d e.bin": 0,
    }


def test_rm_removes_what_it_is_told_and_directories_only_by_force(io, data):
    io.rm("a.bin")
    assert not (data / "a.bin").exists()
    with pytest.raises(Exception, match="recursively"):
        io.rm("sub")
    io.rm(["sub", "ab.txt", "gone"], force=True)
    assert io.ls() == ["sub2"]


@pytest.mark.parametrize("path", ["", ".", "..", "deep/.."])
def test_rm_by_force_spares_the_current_directory_and_what_is_above_it(io, data, path):
    io.cd("sub")
    with pytest.raises(ConfigurationError, match="all that is there"):
        io.rm(["c.bin", path], force=True)
    assert (data / "sub/c.bin").exists()
    io.rm(str(data / "sub"), force=True)  # named
    assert not (data / "sub").exists()


def test_the_file_index_is_kept_on_the_server_and_made_anew_on_demand(io, data):
    assert io.get_file_index(store=False) == sorted(FILES)
    assert not (data / ".folder_index.txt").exists()
    assert io.get_file_index(pattern=r"\.txt$") == ["ab.txt"]
    assert (data / ".folder_index.txt").exists()
    (data / "late.bin").write_bytes(b"")
    assert "late.bin" not in io.get_file_index()
    assert "late.bin" in io.get_file_index(override=True)
    assert io.get_file_index(skip=1, nmax=2) == ["ab.txt", "late.bin"]


def test_clean_deletes_in_the_local_directory_only(io, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "a.bin").write_bytes(b"precious")
    monkeypatch.chdir(elsewhere)
    io.download("a.bin")
    io.clean()
    assert (elsewhere / "a.bin").read_bytes() == b"precious"
    assert os.listdir(io.lpwd()) == []


def test_a_handler_can_be_started_stopped_and_started_again(io):
    io.stop()
    io.start()
    assert io.exists("a.bin")


def test_the_iterator_yields_every_file_once_and_clears_up(io, data):
    iterator = RemotePathIterator(io, batch_size=2, max_queued_batches=1, n_local_files=1)
    seen = {}
    for local, remote in iterator:
        seen[remote] = Path(local).read_bytes()
    assert seen == {name: (data / name).read_bytes() for name in FILES}
    assert os.listdir(io.lpwd()) == []


def test_a_forked_child_leaves_the_local_files_to_its_parent(io, data):
    io.do_clean = True
    seen = {}
    stream = iter(RemotePathIterator(io, batch_size=2, max_queued_batches=1, n_local_files=1))
    for local, remote in stream:
        for work in (stream.close, lambda: io.__exit__()):
            assert in_a_fork(work) == ""
        seen[remote] = Path(local).read_bytes()
    assert seen == {name: (data / name).read_bytes() for name in FILES}


def test_shuffle_subset_and_split_part_the_files(io):
    iterator = RemotePathIterator(io)
    iterator.shuffle()
    assert sorted(iterator.remote_paths) == sorted(FILES)
    parts = iterator.split(proportion=[0.6, 0.4])
    assert [len(part) for part in parts] == [3, 2]
    assert sorted(parts[0].remote_paths + parts[1].remote_paths) == sorted(FILES)
    first, rest = iterator.split(indices=[[0], [1, 2, 3, 4]])
    assert [*first.remote_paths, *rest.remote_paths] == iterator.remote_paths
    with pytest.raises(ValueError, match="place 9"):
        iterator.split(indices=[[9]])
    iterator.subset(slice(0, 2))
    assert len(iterator) == 2
    assert len(list(first)) == 1
