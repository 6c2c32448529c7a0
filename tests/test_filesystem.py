"""The fsspec file system: names, questions, what is remembered."""

from __future__ import annotations

import concurrent.futures
import datetime
import os
import pickle
import threading

import fsspec
import pytest

from pyremotedata_core import (
    ConfigurationError,
    ConnectionLost,
    RemoteFileNotFound,
    RemotePermissionDenied,
    TransferError,
)
from pyremotedata_core.filesystem import RemoteFileSystem

from .filesystems import reach
from .sites import tree

MTIME = 1_234_567_890


@pytest.fixture
def counted(sshd_factory):
    """A server that counts requests, and a file system on it."""
    server = sshd_factory(log_requests=True)
    return server, reach(server)


# --- names ----------------------------------------------------------------------------------


def test_fsspec_finds_our_schemes_and_keeps_its_own_sftp():
    for scheme in ("pyremotedata", "pyremotedata+sftp"):
        assert fsspec.get_filesystem_class(scheme) is RemoteFileSystem
    assert fsspec.get_filesystem_class("sftp").__module__ == "fsspec.implementations.sftp"


def test_a_url_is_opened_and_decoded_once(sshd, make, remote_directory):
    make("a b%41.bin", b"found")
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


@pytest.mark.parametrize(
    "change", [("://", "://other@"), ("embedded", "elsewhere"), ("sftp", "ftp")]
)
def test_a_url_of_another_server_is_refused_and_not_looked_for_here(sshd, fs, make, place, change):
    make("a", b"its")
    url = f"pyremotedata+sftp://{sshd.alias}{place}/a"
    other = url.replace(*change)
    assert fs.cat(url) == b"its"
    for work in (
        lambda: fs.cat(other),
        lambda: fs.glob(f"{other}*"),
        lambda: fs.open(other),
        lambda: fs.open(other, "wb"),
        lambda: fs.pipe(other, b"2"),
        lambda: fs.copy(url, f"{other}2"),
        lambda: fs.mv(url, f"{other}2"),
        lambda: fs.rm(other),
    ):
        with pytest.raises(ConfigurationError) as caught:
            work()
        assert f"is not on sftp://{sshd.alias}" in str(caught.value)
    assert tree(place) == {"a": b"its"}


def test_a_list_of_urls_is_of_one_server(sshd, options, make, place):
    make("a", b"its")
    urls = [f"pyremotedata://{host}{place}/a" for host in (sshd.alias, "elsewhere")]
    first, second = fsspec.open_files(urls, **options)
    with first as file:
        assert file.read() == b"its"
    for one in (second, pickle.loads(pickle.dumps(second))):
        with pytest.raises(ConfigurationError), one:
            pass
    with pytest.raises(ConfigurationError):
        fsspec.open_files([f"{url[:-1]}*" for url in urls], **options)


def test_relative_paths_begin_in_the_configured_directory(sshd, make, place, monkeypatch):
    make("in/x.bin", b"1")
    monkeypatch.setenv("PYREMOTEDATA_REMOTE_URI", sshd.alias)
    monkeypatch.setenv("PYREMOTEDATA_REMOTE_DIRECTORY", place)
    fs = fsspec.filesystem("pyremotedata", ssh_config=str(sshd.ssh_config))
    assert fs.ls("", detail=False) == ["in"]
    assert fs.find("") == fs.glob("*/*.bin") == ["in/x.bin"]
    assert fs.cat("in/x.bin") == b"1"
    assert fs.unstrip_protocol("in/x.bin").endswith(f"{place}/in/x.bin")
    assert fs.cat(fs.unstrip_protocol("in/x.bin")) == b"1"
    with pytest.raises(ConfigurationError):
        fs.cat("pyremotedata://elsewhere/in/x.bin")


# --- questions --------------------------------------------------------------------------------


def test_a_file_has_its_size_and_time(make, fs, place):
    make("a.bin", b"12345", mtime=MTIME)
    info = fs.info(f"{place}/a.bin")
    assert (info["name"], info["type"], info["size"]) == (f"{place}/a.bin", "file", 5)
    assert fs.ls(place) == [info]
    assert fs.modified(f"{place}/a.bin") == datetime.datetime.fromtimestamp(MTIME, datetime.UTC)
    assert fs.du(place) == 5
    assert fs.sizes([f"{place}/a.bin"]) == [5]


def test_checksum_and_ukey_change_with_the_file(make, fs, place):
    path = make("a.bin", b"1", mtime=MTIME)
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


def test_links_are_shown_as_what_they_lead_to_and_never_walked_into(make, fs, place, tmp_path):
    root = make("d/a.bin", b"12345", mtime=MTIME).parent
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


def test_listings_and_exists_are_asked_anew(make, fs, place):
    path = make("a", b"1")
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


def test_a_listing_that_began_before_a_change_is_not_remembered(make, fs, place):
    path = str(make("a", b""))
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


def test_answers_are_the_askers_own(make, fs, place):
    make("a", b"1")
    fs.ls(place)[0]["size"] = 99
    fs.info(f"{place}/a")["size"] = 99
    assert fs.size(f"{place}/a") == 1
