"""The fsspec file system: what it writes is there whole, or not at all."""

from __future__ import annotations

import gzip
import os
import signal
import tempfile
import threading
import zipfile

import fsspec
import pytest

from pyremotedata_core import (
    ConfigurationError,
    ConnectionLost,
    LocalStorageFull,
    RemoteFileNotFound,
    RemotePermissionDenied,
    ServerRefused,
    TransferError,
)

from .filesystems import Heard, reach
from .page import told
from .sites import temporaries, tree

MTIME = 1_234_567_890
LARGE = 8 * 2**20 + 5


@pytest.fixture
def place(there, tmp_path, monkeypatch):
    """A directory of the server; neither there nor in the temporary folder may anything remain."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield there
    assert not temporaries(there)
    assert not list(folder.glob("pyremotedata-*"))


class Failed(Exception):
    """What a user's block raises."""


def write_half(writer, half=b"half", then=None) -> None:
    """Write in a ``with`` block that fails, or does something else, before it ends."""
    with writer as file:
        file.write(half)
        if then is None:
            raise Failed
        then()


# --- open files -----------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["open", "pipe"])
def test_a_file_that_replaces_another_is_later(fs, place, way):
    def write(data: bytes) -> None:
        if way == "pipe":
            fs.pipe_file(f"{place}/a", data)
            return
        with fs.open(f"{place}/a", "wb") as file:
            file.write(data)

    times = []
    for number in range(4):
        write(b"%d" % number)
        times.append(fs.info(f"{place}/a")["mtime"])
    assert sorted(set(times)) == times
    far = times[-1] + 10 * 86_400  # by a wrong clock
    os.utime(os.path.join(place, "a"), (far, far))
    write(b"more")
    assert fs.info(f"{place}/a")["mtime"] < far


def test_a_file_appears_whole_when_it_is_closed(fs, place):
    data = os.urandom(LARGE)
    with fs.open(f"{place}/new/a", "wb") as file:
        for start in range(0, LARGE, 1_000_000):
            file.write(data[start : start + 1_000_000])
            assert file.tell() == min(start + 1_000_000, LARGE)
        assert not (place / "new").exists()
        assert file.full_name == fs.unstrip_protocol(f"{place}/new/a")
    assert (place / "new/a").read_bytes() == data
    assert file.closed
    file.close()


def writers(fs, options, path):
    url = fs.unstrip_protocol(str(path))
    yield fs.open(str(path), "wb"), b"half"
    yield fs.open(str(path), "w", encoding="utf-8"), "half"
    yield fs.open(str(path), "wb", compression="gzip"), b"half"
    yield fs.open(str(path), "wt", compression="gzip", encoding="utf-8"), "half"
    for mode, half in (("wb", b"half"), ("wt", "half")):
        for compression in (None, "gzip"):
            options["compression"] = compression
            yield fsspec.open(url, mode, **options), half


@pytest.mark.parametrize("number", range(8))
def test_an_exception_in_the_block_leaves_what_was_there(fs, options, place, number):
    path = place / "a"
    path.write_bytes(b"old")
    writer, half = list(writers(fs, options, path))[number]
    with pytest.raises(Failed):
        write_half(writer, half)
    assert tree(place) == {"a": b"old"}


@pytest.mark.parametrize("number", range(8))
def test_a_block_that_ends_well_replaces_what_was_there(fs, options, place, number):
    path = place / "a"
    path.write_bytes(b"old")
    writer, half = list(writers(fs, options, path))[number]
    try:
        raise Failed
    except Failed:  # an exception outside the block is none of it
        with writer as file:
            file.write(half)
    data = path.read_bytes()
    assert (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data) == b"half"
    assert (data[:2] == b"\x1f\x8b") == (number in (2, 3, 5, 7))


@pytest.mark.parametrize("mode", ["wb", "w"])
def test_a_file_that_is_never_closed_is_not_stored_and_that_is_told(fs, place, mode, caplog):
    file = fs.open(f"{place}/a", mode)
    file.write(b"half" if mode == "wb" else "half")
    del file
    assert "never closed" in caplog.text
    assert f"{place}/a" in caplog.text
    assert tree(place) == {}


def test_a_new_file_never_replaces_one(fs, place):
    with fs.open(f"{place}/a", "xb") as file:
        file.write(b"1")
    with pytest.raises(FileExistsError) as caught:
        fs.open(f"{place}/a", "xb")
    assert isinstance(caught.value, TransferError)
    with pytest.raises(TransferError):
        write_half(fs.open(f"{place}/b", "xb"), then=lambda: (place / "b").write_bytes(b"its"))
    assert tree(place) == {"a": b"1", "b": b"its"}
    (place / "local").write_bytes(b"2")
    for create in (
        lambda: fs.pipe_file(f"{place}/a", b"2", mode="create"),
        lambda: fs.put_file(f"{place}/local", f"{place}/a", mode="create"),
        lambda: fs.mkdir(f"{place}/a"),
        lambda: fs.makedirs(f"{place}/a"),
    ):
        with pytest.raises(FileExistsError):
            create()
    assert (place / "a").read_bytes() == b"1"


def test_one_may_seek_and_read_while_writing(fs, place):
    with fs.open(f"{place}/a.zip", "wb") as file, zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x", b"1" * 1000)
        archive.writestr("y", b"2")
    with fs.open(f"{place}/a.zip") as file, zipfile.ZipFile(file) as archive:
        assert archive.read("x") == b"1" * 1000
    with fs.open(f"{place}/b", "wb") as file:
        file.write(b"0123")
        file.seek(1)
        assert file.read(2) == b"12"
        file.seek(0)
        file.write(b"9")
    assert (place / "b").read_bytes() == b"9123"


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_one_may_go_on_with_a_file(fs, place, compression):
    unpack = gzip.decompress if compression else bytes
    for expected, mode, data in (
        ("", "a+", ""),
        ("1é", "a", "1é"),
        ("1é23", "a", "23"),
        ("xé23", "r+", "x"),
        ("new", "w+", "new"),
    ):
        with fs.open(f"{place}/a", mode, compression=compression, encoding="utf-8") as file:
            file.write(data)
            if "+" in mode:
                file.seek(0)
                assert file.read() == expected
        assert unpack((place / "a").read_bytes()) == expected.encode()
    with pytest.raises(Failed):
        write_half(fs.open(f"{place}/a", "ab", compression=compression))
    with pytest.raises(RemoteFileNotFound):
        fs.open(f"{place}/none", "r+b", compression=compression)
    assert {path: unpack(data) for path, data in tree(place).items()} == {"a": b"new"}


@pytest.mark.parametrize(
    ("mode", "before", "after"),
    [("r+b", b"old", b"its"), ("ab", b"old", b"its"), ("ab", b"old", None), ("ab", None, b"its")],
)
def test_what_was_changed_by_another_meanwhile_is_not_overwritten(fs, place, mode, before, after):
    def change(data):
        (place / "a").unlink(missing_ok=True)
        if data is not None:
            (place / "a").write_bytes(data)
            os.utime(place / "a", (MTIME, MTIME + (data == b"its")))

    change(before)
    with pytest.raises(TransferError):
        write_half(fs.open(f"{place}/a", mode), then=lambda: change(after))
    assert tree(place) == ({"a": after} if after else {})


def test_a_refused_upload_is_the_cores_error(chroot_sshd):
    closed = chroot_sshd.make_directory("written-never")
    closed.chmod(0o500)
    fs = reach(chroot_sshd)
    path = f"{chroot_sshd.remote_path('written-never')}/a"
    with pytest.raises(RemotePermissionDenied), fs.open(path, "wb") as file:
        file.write(b"1")
    with pytest.raises(PermissionError):
        fs.pipe(path, b"1")


def test_a_full_local_disk_is_told_and_stores_nothing(fs, place):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
        with pytest.raises(LocalStorageFull) as caught, fs.open(f"{place}/a", "wb") as file:
            file.write(b"x" * (2 << 20))
        told(caught.value, "takes no file of that size")
        with pytest.raises(LocalStorageFull):
            fs.pipe(f"{place}/a", b"x" * (2 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)
    assert tree(place) == {}


# --- transactions ---------------------------------------------------------------------------


def test_a_transaction_stores_all_its_files_at_its_end(fs, place):
    with fs.transaction:
        for name in "ab":
            with fs.open(f"{place}/{name}", "wb") as file:
                file.write(name.encode())
        assert tree(place) == {}
    assert tree(place) == {"a": b"a", "b": b"b"}
    assert fs.size(f"{place}/a") == 1


@pytest.mark.parametrize("mode", ["ab", "r+b"])
def test_a_transaction_has_what_was_gone_on_with(fs, place, mode):
    (place / "a").write_bytes(b"0123")
    with fs.transaction:
        with fs.open(f"{place}/a", mode) as file:
            file.write(b"9")
        assert tree(place) == {"a": b"0123"}
    assert tree(place) == {"a": b"01239" if mode == "ab" else b"9123"}


def test_a_transaction_that_fails_stores_nothing(fs, place):
    (place / "a").write_bytes(b"old")

    def work():
        with fs.transaction:
            fs.open(f"{place}/a", "wb").close()
            write_half(fs.open(f"{place}/b", "wb"))

    with pytest.raises(Failed):
        work()
    assert tree(place) == {"a": b"old"}


def test_a_transaction_leaves_out_a_file_whose_block_failed(fs, place):
    with fs.transaction:
        with pytest.raises(Failed):
            write_half(fs.open(f"{place}/a", "wb"))
        with fs.open(f"{place}/b", "wb") as file:
            file.write(b"b")
    assert tree(place) == {"b": b"b"}


# --- many files -----------------------------------------------------------------------------


def test_a_tree_is_stored_with_its_times_and_progress(fs, place, tmp_path):
    source = tmp_path / "source"
    for number in range(100):
        path = source / str(number % 7) / f"{number}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(number * 100))
        os.utime(path, (MTIME, MTIME))
    (source / "empty").mkdir()
    heard = Heard()
    fs.put(str(source), f"{place}/t", recursive=True, callback=heard)
    assert tree(place / "t") == tree(source)
    assert (place / "t/1/8.bin").stat().st_mtime == MTIME
    assert heard.value == heard.size == 100
    child = heard.children[f"{place}/t/1/99.bin"]
    assert child.value == child.size == 9900


def test_a_tree_is_copied_and_keeps_the_times(fs, place):
    for number in range(40):
        path = place / "s" / str(number % 3) / str(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(number))
        os.utime(path, (MTIME, MTIME))
    fs.copy(f"{place}/s", f"{place}/t", recursive=True)
    assert tree(place / "t") == tree(place / "s")
    assert (place / "t/0/0").stat().st_mtime == MTIME


def test_a_failure_in_a_tree_is_raised(fs, place, tmp_path):
    for name in "abc":
        (tmp_path / "s" / name).mkdir(parents=True)
        (tmp_path / "s" / name / "x").write_bytes(b"1")
    (place / "b").write_bytes(b"a file where a directory is to be")
    with pytest.raises(ServerRefused):
        fs.put(f"{tmp_path}/s/", str(place), recursive=True)


# --- small changes --------------------------------------------------------------------------


def test_files_and_directories_are_renamed_and_not_copied(fs, place):
    (place / "d").mkdir()
    (place / "d/x").write_bytes(b"1")
    (place / "a").write_bytes(b"2")
    inode = (place / "a").stat().st_ino
    fs.mv(f"{place}/a", f"{place}/b")
    assert (place / "b").stat().st_ino == inode
    fs.mv(f"{place}/b", f"{place}/d")
    fs.mv(f"{place}/d", f"{place}/e", recursive=True)
    fs.mv(f"{place}/e/*", f"{place}/new/")
    fs.mv(f"{place}/new/x", f"{place}/new/x")
    assert tree(place) == {"e": None, "new": None, "new/x": b"1", "new/b": b"2"}


def test_two_sources_of_one_name_are_not_renamed_into_one_directory(fs, place):
    for name in ("a/x", "b/x"):
        (place / name).parent.mkdir()
        (place / name).write_bytes(name.encode())
    (place / "all").mkdir()
    before = tree(place)
    for sources in (f"{place}/[ab]/x", [f"{place}/a/x", f"{place}/b/x"]):
        with pytest.raises(ConfigurationError, match="all/x"):
            fs.mv(sources, f"{place}/all")
        assert tree(place) == before


def test_removing_takes_what_was_named_and_nothing_else(fs, place):
    for name in ("a/b/c", "a/x", "ab/x", "keep/x", "f1", "f2"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(b"1")
    (place / "a/link").symlink_to(place / "keep")
    fs.rm([f"{place}/a", f"{place}/a/b", f"{place}/ab"], recursive=True)
    fs.rm(f"{place}/f?")
    assert tree(place) == {"keep": None, "keep/x": b"1"}
    with pytest.raises(TransferError):
        fs.rm(f"{place}/keep")
    fs.rm_file(f"{place}/keep/x")
    assert tree(place) == {"keep": None}


def test_a_pattern_that_matches_a_tree_at_all_levels_removes_it(fs, place):
    for number in range(60):
        path = place / "d" / str(number % 3) / str(number % 6) / str(number % 12) / str(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"1")
    fs.rm(f"{place}/d/**", recursive=True)
    assert tree(place) == {}, "fsspec's ** is also the directory itself"


def test_removing_to_a_depth_takes_files_only_so_deep(fs, place):
    (place / "a/b").mkdir(parents=True)
    (place / "a/x").write_bytes(b"1")
    (place / "a/b/y").write_bytes(b"1")
    with pytest.raises(TransferError):
        fs.rm(f"{place}/a", recursive=True, maxdepth=1)
    assert tree(place) == {"a": None, "a/b": None, "a/b/y": b"1"}
    fs.rm(f"{place}/a", recursive=True, maxdepth=9)
    assert tree(place) == {}


def test_only_an_empty_directory_is_removed_as_one(fs, place):
    fs.makedirs(f"{place}/a/b")
    (place / "a/x").write_bytes(b"1")
    fs.rmdir(f"{place}/a/b")
    with pytest.raises(TransferError):
        fs.rmdir(f"{place}/a")
    assert tree(place) == {"a": None, "a/x": b"1"}


def test_directories_are_made_with_their_parents_if_wanted(fs, place):
    fs.mkdir(f"{place}/a/b")
    fs.makedirs(f"{place}/a/b", exist_ok=True)
    with pytest.raises(FileNotFoundError):
        fs.mkdir(f"{place}/x/y", create_parents=False)
    assert tree(place) == {"a": None, "a/b": None}


def test_touch_makes_empties_or_only_dates(fs, place):
    fs.touch(f"{place}/a")
    assert tree(place) == {"a": b""}
    (place / "a").write_bytes(b"1")
    os.utime(place / "a", (MTIME, MTIME))
    fs.touch(f"{place}/a", truncate=False)
    assert (place / "a").read_bytes() == b"1"
    assert (place / "a").stat().st_mtime > MTIME
    fs.touch(f"{place}/a", truncate=True)
    assert tree(place) == {"a": b""}


# --- breaking off -----------------------------------------------------------------------------


def test_ctrl_c_gives_up_what_is_under_way(sshd, place, relay_factory, tmp_path):
    (place / "a").write_bytes(os.urandom(LARGE))
    relay = relay_factory(sshd.port)
    url = "pyremotedata+" + relay.url(sshd.url(place.name))
    fs, path = fsspec.url_to_fs(f"{url}/a", ssh_config=str(sshd.ssh_config))
    assert fs.exists(path)
    relay.stall()
    timer = threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        fs.get(path, str(tmp_path / "got"))
    timer.join()
    relay.resume()
    fs.ls(str(place))
    assert not temporaries(tmp_path)
    assert not (tmp_path / "got").exists()
    assert not fs.engine._link._pending
    fs.engine.close()


def test_a_server_that_dies_leaves_the_old_file(sshd_factory, place):
    server = sshd_factory()
    (place / "a").write_bytes(b"old")
    fs = reach(server, timeout_s=1)
    with pytest.raises(ConnectionLost):
        write_half(fs.open(f"{place}/a", "wb"), then=server.halt)
    assert tree(place) == {"a": b"old"}


def test_a_copy_within_a_server_moves_no_bytes_over_the_line(sshd_factory):
    server = sshd_factory(log_requests=True)
    data = os.urandom(65 * 2**20)  # more than one request copies
    server.make("d/a", data, mtime=MTIME)
    fs = reach(server)
    fs.cp_file(server.remote_path("d/a"), server.remote_path("d/b"))
    copy = server.root / "d/b"
    assert copy.read_bytes() == data
    assert copy.stat().st_mtime == MTIME
    assert not server.requests("read")
    assert not server.requests("write")
    fs.cp_file(server.remote_path("d/a"), server.remote_path("new/b"))  # its directory is made
    assert (server.root / "new/b").read_bytes() == data
