"""The fsspec file system: names, questions, what is remembered, reading."""

from __future__ import annotations

import asyncio
import concurrent.futures
import datetime
import io
import os
import random
import subprocess
import sys
import threading

import fsspec
import pytest
from fsspec.callbacks import Callback

from pyremotedata_core import (
    AuthenticationFailed,
    ConfigurationError,
    ConnectionLost,
    RemoteChanged,
    RemoteFileNotFound,
    RemotePermissionDenied,
    TransferError,
)
from pyremotedata_core.filesystem import RemoteFileSystem
from pyremotedata_core.stream import BLOCK_BYTES, LFTP_BLOCK_BYTES

from .sites import needs_lftp, tree

MTIME = 1_234_567_890


def reach(server, **options) -> RemoteFileSystem:
    return fsspec.filesystem(
        "pyremotedata", host=server.alias, ssh_config=str(server.ssh_config), **options
    )


@pytest.fixture
def fs(sshd) -> RemoteFileSystem:
    return reach(sshd)


@pytest.fixture
def place(sshd, remote_directory) -> str:
    return str(sshd.root / remote_directory)


@pytest.fixture
def counted(sshd_factory):
    """A server that counts requests, and a file system on it."""
    server = sshd_factory(log_requests=True)
    return server, reach(server)


# --- names ----------------------------------------------------------------------------------


def test_the_package_does_not_import_fsspec():
    code = "import sys, pyremotedata_core as p; p.Remote, p.shared_engine, p.Stager"
    code += "; sys.exit('fsspec' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_fsspec_finds_our_schemes_and_keeps_its_own_sftp():
    for scheme in ("pyremotedata", "pyremotedata+sftp"):
        assert fsspec.get_filesystem_class(scheme) is RemoteFileSystem
    assert fsspec.get_filesystem_class("sftp").__module__ == "fsspec.implementations.sftp"


def test_a_url_is_opened_and_decoded_once(sshd, remote_directory):
    sshd.make(f"{remote_directory}/a b%41.bin", b"found")
    url = "pyremotedata+" + sshd.url(f"{remote_directory}/a b%41.bin")
    assert "%20" in url
    with fsspec.open(url, ssh_config=str(sshd.ssh_config)) as file:
        assert file.read() == b"found"
    fs, path = fsspec.url_to_fs(url, ssh_config=str(sshd.ssh_config))
    assert path == str(sshd.root / remote_directory / "a b%41.bin")
    assert fs.unstrip_protocol(path) == url == file.full_name
    assert fs.ls(url.rpartition("/")[0], detail=False) == [path]
    assert fs.cat(path) == b"found", "a path is taken as it is"


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("/a//b/./c/", "/a/b/c"),
        ("/", "/"),
        ("", ""),
        (".", ""),
        ("a/b/", "a/b"),
        ("/~/a", "/~/a"),
        ("/~/", "/~"),
        ("//~", "//~"),
        ("pyremotedata+sftp://h/a%20b", "/a b"),
        ("pyremotedata://u@h:22/~/a", "/~/a"),
        ("pyremotedata+sftp://h", "/"),
    ],
)
def test_paths_have_one_form(given, path):
    assert RemoteFileSystem._strip_protocol(given) == path
    assert RemoteFileSystem._strip_protocol(path) == path


@pytest.mark.parametrize(
    ("path", "parent"), [("/a/b", "/a"), ("/a", "/"), ("/", "/"), ("a", ""), ("a/b", "a")]
)
def test_every_path_has_a_parent(path, parent):
    assert RemoteFileSystem._parent(path) == parent


def test_a_password_in_a_url_is_refused_without_showing_it():
    with pytest.raises(ConfigurationError) as caught:
        fsspec.open("pyremotedata+sftp://me:canary@host/x")
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [{"host": "-oProxyCommand=x"}, {"host": "h/x"}, {"host": "h", "port": "x"}, {"colour": 1}],
)
def test_wrong_settings_are_told_at_once(options):
    with pytest.raises(ConfigurationError):
        fsspec.filesystem("pyremotedata", **options)


def test_relative_paths_begin_in_the_configured_directory(sshd, place, monkeypatch):
    sshd.make(f"{os.path.basename(place)}/in/x.bin", b"1")
    monkeypatch.setenv("PYREMOTEDATA_REMOTE_URI", sshd.alias)
    monkeypatch.setenv("PYREMOTEDATA_REMOTE_DIRECTORY", place)
    fs = fsspec.filesystem("pyremotedata", ssh_config=str(sshd.ssh_config))
    assert fs.ls("", detail=False) == ["in"]
    assert fs.find("") == fs.glob("*/*.bin") == ["in/x.bin"]
    assert fs.cat("in/x.bin") == b"1"
    assert fs.unstrip_protocol("in/x.bin").endswith(f"{place}/in/x.bin")


# --- questions --------------------------------------------------------------------------------


def test_a_file_has_its_size_and_time(sshd, fs, place):
    sshd.make(f"{os.path.basename(place)}/a.bin", b"12345", mtime=MTIME)
    info = fs.info(f"{place}/a.bin")
    assert (info["name"], info["type"], info["size"]) == (f"{place}/a.bin", "file", 5)
    assert fs.ls(place) == [info]
    assert fs.modified(f"{place}/a.bin") == datetime.datetime.fromtimestamp(MTIME, datetime.UTC)
    assert fs.du(place) == 5
    assert fs.sizes([f"{place}/a.bin"]) == [5]


def test_checksum_and_ukey_change_with_the_file(sshd, fs, place):
    path = sshd.make(f"{os.path.basename(place)}/a.bin", b"1", mtime=MTIME)
    fs.ls(place)
    before = fs.checksum(str(path)), fs.ukey(str(path))
    assert before == (fs.checksum(str(path)), fs.ukey(str(path)))
    os.utime(path, (MTIME + 1, MTIME + 1))
    assert fs.checksum(str(path)) != before[0]
    assert fs.ukey(str(path)) != before[1]


def test_what_is_missing_is_the_cores_error_everywhere(fs, place, tmp_path):
    missing = f"{place}/none"
    for ask in (
        lambda: fs.info(missing),
        lambda: fs.ls(missing),
        lambda: fs.open(missing),
        lambda: fs.cat(missing),
        lambda: fs.get(missing, str(tmp_path / "x")),
        lambda: fs.get(missing, str(tmp_path / "x"), recursive=True),
        lambda: fs.rm(missing),
        lambda: fs.rm(missing, recursive=True),
        lambda: fs.rm(f"{missing}*"),
        lambda: fs.mv(missing, f"{place}/new"),
        lambda: fs.cp_file(missing, f"{place}/new"),
    ):
        with pytest.raises(RemoteFileNotFound):
            ask()
    assert not fs.exists(missing)
    assert not fs.isdir(missing)
    assert not fs.isfile(missing)
    assert fs.find(missing) == fs.glob(f"{missing}*") == []
    assert fs.cat_ranges([missing], 0, 1)[0].args


def test_no_answer_is_an_error_and_not_a_no(sshd_factory):
    server = sshd_factory()
    fs = reach(server, timeout_s=1)
    assert fs.isdir("/")
    server.halt()
    with concurrent.futures.ThreadPoolExecutor() as at_once:
        asked = [at_once.submit(ask, "/x") for ask in (fs.exists, fs.isdir, fs.isfile, fs.find)]
        asked += [at_once.submit(fs.glob, "/x*"), at_once.submit(fs.lexists, "/x")]
    for answer in asked:
        with pytest.raises(ConnectionLost):
            answer.result()


def test_a_directory_that_may_not_be_read_is_not_passed_over(chroot_sshd, tmp_path):
    closed = chroot_sshd.make("closed/in.bin", b"1").parent
    closed.chmod(0)
    try:
        fs = reach(chroot_sshd)
        top = chroot_sshd.remote_path()
        for ask in (fs.find, lambda path: list(fs.walk(path)), lambda path: fs.glob(f"{path}/**")):
            with pytest.raises(RemotePermissionDenied):
                ask(top)
        with pytest.raises(PermissionError):
            fs.get(top, str(tmp_path), recursive=True)
        assert fs.find(top, on_error="omit") is not None
        assert f"{top}/closed" in fs.find(top, on_error="omit", withdirs=True)
    finally:
        closed.chmod(0o700)


def test_links_are_shown_as_what_they_lead_to_and_never_walked_into(sshd, fs, place, tmp_path):
    root = sshd.make(f"{os.path.basename(place)}/d/a.bin", b"12345", mtime=MTIME).parent
    (root / "file").symlink_to("a.bin")
    (root / "loop").symlink_to("..")
    (root / "dangling").symlink_to("none")
    os.mkfifo(root / "fifo")
    types = {info["name"].rpartition("/")[2]: info["type"] for info in fs.ls(str(root))}
    assert types == {
        "a.bin": "file", "file": "file", "loop": "link", "dangling": "link", "fifo": "other"
    }  # fmt: skip
    assert fs.info(f"{root}/file")["size"] == 5
    assert fs.isdir(f"{root}/loop")
    assert not fs.exists(f"{root}/dangling")
    assert fs.lexists(f"{root}/dangling")
    assert len(fs.find(place)) == 5
    assert len(list(fs.walk(place))) == 2
    fs.get(place, str(tmp_path / "copy"), recursive=True)
    assert tree(tmp_path / "copy") == {"d": None, "d/a.bin": b"12345", "d/file": b"12345"}
    fs.invalidate_cache()
    fs.get([f"{root}/fifo", f"{root}/a.bin"], str(tmp_path) + "/", recursive=True)
    assert not (tmp_path / "fifo").exists()
    with pytest.raises(TransferError):
        fs.get_file(f"{root}/fifo", str(tmp_path / "fifo"))


# --- what is remembered -----------------------------------------------------------------------


def test_a_listing_answers_for_its_files_without_further_requests(counted):
    server, fs = counted
    for number in range(20):
        server.make(f"many/{number}", b"x" * number)
    names = fs.glob(f"{server.root}/many/*")
    assert len(names) == 20
    before = server.requests("stat") + server.requests("lstat")
    assert fs.sizes(sorted(names, key=fs.size)) == list(range(20))
    assert all(map(fs.isfile, names))
    assert server.requests("stat") + server.requests("lstat") == before


def test_without_the_cache_every_question_is_asked(counted):
    server, _ = counted
    fs = reach(server, use_listings_cache=False)
    path = server.make("one/a", b"1")
    fs.ls(str(path.parent))
    path.write_bytes(b"12")
    assert fs.size(str(path)) == 2


def test_listings_and_exists_are_asked_anew(sshd, fs, place):
    path = sshd.make(f"{os.path.basename(place)}/a", b"1")
    assert fs.ls(place, detail=False) == [str(path)]
    path.rename(f"{place}/b")
    assert fs.ls(place, detail=False) == fs.find(place) == [f"{place}/b"]
    assert fs.info(f"{place}/b")["size"] == 1
    path.write_bytes(b"")
    assert fs.exists(str(path)), "another process made it after the listing"
    path.unlink()
    assert not fs.exists(str(path))


def own_writes(fs, place, tmp_path):
    """Yield all kinds of changes, and after each the size that the file then has."""
    path = f"{place}/a"
    yield lambda: fs.pipe_file(path, b"12"), 2
    (tmp_path / "local").write_bytes(b"123")
    yield lambda: fs.put_file(str(tmp_path / "local"), path), 3
    yield lambda: fs.put(str(tmp_path / "local"), path), 3

    def write():
        with fs.open(path, "wb") as file:
            file.write(b"1234")

    yield write, 4
    fs.pipe_file(f"{place}/other", b"12345")
    yield lambda: fs.cp_file(f"{place}/other", path), 5
    yield lambda: fs.touch(path), 0
    yield lambda: fs.mv(f"{place}/other", path), 5
    yield lambda: fs.rm(path), None
    yield lambda: fs.mkdir(path), 0
    yield lambda: fs.rmdir(path), None
    yield lambda: fs.makedirs(f"{path}/b"), 0
    yield lambda: fs.rm(path, recursive=True), None

    def in_transaction():
        with fs.transaction, fs.open(path, "wb") as file:
            file.write(b"1")

    yield in_transaction, 1


def test_own_writes_are_seen_at_once_by_every_instance_under_every_name(sshd, place, tmp_path):
    (sshd.root / f"{os.path.basename(place)}-alias").symlink_to(place)
    writer, reader = reach(sshd), reach(sshd, timeout_s=50)
    assert writer is not reader
    for change, size in own_writes(writer, place, tmp_path):
        for fs in (writer, reader):
            fs.ls(place)
            fs.ls(f"{place}-alias")
        change()
        for fs in (writer, reader):
            for path in (f"{place}/a", f"{place}-alias/a"):
                assert fs.exists(path) == (size is not None)
                if size is not None:
                    assert fs.size(path) == size


def test_a_listing_that_began_before_a_change_is_not_remembered(sshd, fs, place):
    path = str(sshd.make(f"{os.path.basename(place)}/a", b""))
    ended = threading.Event()

    def list_on():
        while not ended.is_set():
            fs.ls(place)

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        listers = [pool.submit(list_on) for _ in range(3)]
        try:
            for size in range(1, 150):
                fs.pipe_file(path, b"x" * size)
                assert fs.size(path) == size
        finally:
            ended.set()
    assert all(lister.result() is None for lister in listers)


def test_answers_are_the_askers_own(sshd, fs, place):
    sshd.make(f"{os.path.basename(place)}/a", b"1")
    fs.ls(place)[0]["size"] = 99
    fs.info(f"{place}/a")["size"] = 99
    assert fs.size(f"{place}/a") == 1


# --- reading ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "end"),
    [(None, None), (0, 0), (5, None), (None, 5), (-7, None), (None, -7), (-9, -3), (10, 5),
     (BLOCK_BYTES - 1, 2 * BLOCK_BYTES + 1), (0, 10**9), (10**9, None), (-(10**9), 4)],
)  # fmt: skip
def test_a_range_is_a_slice(sshd, fs, start, end):
    path = sshd.root / "range.bin"
    if not path.exists():
        sshd.make("range.bin", os.urandom(3 * BLOCK_BYTES + 17))
    assert fs.cat_file(str(path), start, end) == path.read_bytes()[start:end]


def test_ranges_of_one_file_share_one_look_at_it(counted):
    server, fs = counted
    path = server.make("a.bin", os.urandom(100_000))
    starts = list(range(0, 100_000, 1000))
    before = server.requests("stat")
    pieces = fs.cat_ranges([str(path)] * 100, starts, [start + 10 for start in starts])
    assert server.requests("stat") == before + 1
    data = path.read_bytes()
    assert pieces == [data[start : start + 10] for start in starts]


def test_ranges_return_or_raise_what_fails(sshd, fs, place):
    path = str(sshd.make(f"{os.path.basename(place)}/a", b"123"))
    good, bad = fs.cat_ranges([path, f"{path}-none"], 0, 2)
    assert good == b"12"
    assert isinstance(bad, RemoteFileNotFound)
    with pytest.raises(RemoteFileNotFound):
        fs.cat_ranges([path, f"{path}-none"], 0, 2, on_error="raise")


def test_many_files_are_read_at_once(sshd, fs, place):
    data = {f"{place}/{n}": os.urandom(1000 + n) for n in range(100)}
    for path, content in data.items():
        sshd.make(os.path.relpath(path, sshd.root), content)
    assert fs.cat(list(data)) == fs.cat(place, recursive=True, on_error="omit") == data


def test_an_open_file_reads_and_seeks_as_a_local_one(sshd, fs, place):
    path = sshd.make(f"{os.path.basename(place)}/a", os.urandom(20 * BLOCK_BYTES + 3))
    chance = random.Random(11)
    with fs.open(str(path)) as file, path.open("rb") as local:
        assert file.size == path.stat().st_size
        for _ in range(40):
            offset = chance.randrange(21 * BLOCK_BYTES)
            size = chance.choice((0, 1, 512, 4096, 2 * BLOCK_BYTES))
            assert file.seek(offset) == local.seek(offset)
            assert file.read(size) == local.read(size)
    assert file.closed


def test_lines_and_text_are_read_as_from_a_local_file(sshd, fs, place):
    text = "".join(f"{number},ø\r\n" for number in range(200_000))
    path = sshd.make(f"{os.path.basename(place)}/a.csv", text.encode())
    with fs.open(str(path)) as file, path.open("rb") as local:
        assert all(ours == theirs for ours, theirs in zip(file, local, strict=True))
    assert fs.read_text(str(path), encoding="utf-8", newline="") == text
    assert fs.read_block(str(path), 10, 100, b"\n") in text.encode()
    assert fs.head(str(path), 7) == text.encode()[:7]
    assert fs.tail(str(path), 7) == text.encode()[-7:]


def test_compressed_files_are_read(sshd, fs, place):
    import gzip

    path = sshd.make(f"{os.path.basename(place)}/a.gz", gzip.compress(b"plain" * 1000))
    with fs.open(str(path), "rt", compression="infer") as file:
        assert file.read() == "plain" * 1000


def test_a_file_that_changes_while_it_is_open_is_an_error(sshd, fs, place):
    path = sshd.make(f"{os.path.basename(place)}/a", os.urandom(30 * BLOCK_BYTES), mtime=MTIME)
    with fs.open(str(path)) as file:
        assert len(file.read(10)) == 10
        path.write_bytes(os.urandom(30 * BLOCK_BYTES))
        file.seek(25 * BLOCK_BYTES)
        with pytest.raises(RemoteChanged):
            file.read(10)
    with fs.open(str(path)) as file:
        assert file.read() == path.read_bytes()


def test_a_directory_is_no_file(fs, place):
    for ask in (fs.open, fs.cat_file):
        with pytest.raises(IsADirectoryError):
            ask(place)
    with pytest.raises(ConfigurationError):
        fs.open(f"{place}/a", "r+b")


def test_a_file_and_its_listing_may_be_out_of_step(sshd, fs, place, tmp_path):
    path = sshd.make(f"{os.path.basename(place)}/a", b"1", mtime=MTIME)
    fs.ls(place)
    path.write_bytes(b"12")
    fs.get_file(str(path), str(tmp_path / "a"))
    assert (tmp_path / "a").read_bytes() == b"12"


class Heard(Callback):
    def __init__(self):
        super().__init__()
        self.children = {}

    def branched(self, path_1, path_2, **_):
        self.children[path_1] = child = Callback()
        return child


def test_a_tree_is_fetched_with_its_times_and_progress(sshd, fs, place, tmp_path):
    base = os.path.basename(place)
    files = {f"{n % 7}/{n}.bin": os.urandom(n * 100) for n in range(100)}
    for name, data in files.items():
        sshd.make(f"{base}/{name}", data, mtime=MTIME)
    sshd.make_directory(f"{base}/empty")
    heard = Heard()
    fs.get(place, str(tmp_path / "t"), recursive=True, callback=heard)
    expected = {**files, "empty": None, **{str(n): None for n in range(7)}}
    assert tree(tmp_path / "t") == expected
    assert (tmp_path / "t/1/8.bin").stat().st_mtime == MTIME
    assert heard.value == heard.size == len(expected) + 1
    for name, data in files.items():
        child = heard.children[f"{place}/{name}"]
        assert child.value == child.size == len(data)


def test_files_are_fetched_side_by_side(counted, tmp_path):
    server, fs = counted
    for number in range(200):
        server.make(f"many/{number}", os.urandom(20_000))
    fs.get(f"{server.root}/many/*", str(tmp_path) + "/")
    assert tree(tmp_path) == tree(server.root / "many")
    log = server.sftp_log.read_text()
    assert log.count('open "') == log.count('close "')
    assert server.most_open() > 4


def test_a_file_is_fetched_into_an_open_file(sshd, fs, place):
    path = sshd.make(f"{os.path.basename(place)}/a", os.urandom(3 * BLOCK_BYTES + 1))
    into, heard = io.BytesIO(), Callback()
    fs.get_file(str(path), into, callback=heard)
    assert into.getvalue() == path.read_bytes()
    assert heard.value == heard.size == path.stat().st_size


def test_it_works_within_another_event_loop(sshd, place):
    sshd.make(f"{os.path.basename(place)}/a", b"1")

    async def look():
        fs = reach(sshd, asynchronous=True)
        return await asyncio.gather(fs._cat_file(f"{place}/a"), fs._ls(place, detail=False))

    assert asyncio.run(look()) == [b"1", [f"{place}/a"]]


def test_a_new_password_reaches_an_instance_that_fsspec_has_kept(chroot_sshd):
    def log_in(password):
        return fsspec.filesystem(
            "pyremotedata",
            host=chroot_sshd.alias,
            ssh_config=str(chroot_sshd.password_ssh_config),
            password=password,
        )

    with pytest.raises(AuthenticationFailed):
        log_in("wrong").ls("/")
    assert log_in(chroot_sshd.password).ls("/")


@needs_lftp
def test_parts_of_files_come_through_lftp_too(sshd, place):
    data = os.urandom(3 * LFTP_BLOCK_BYTES)
    path = f"{place}/parts.bin"
    with open(path, "wb") as file:
        file.write(data)
    fs = reach(sshd, transport="lftp")
    assert fs.cat_file(path, 10, 2 * LFTP_BLOCK_BYTES + 5) == data[10 : 2 * LFTP_BLOCK_BYTES + 5]
    with fs.open(path) as file:
        file.seek(-7, os.SEEK_END)
        assert file.read() == data[-7:]
