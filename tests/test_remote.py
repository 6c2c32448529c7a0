"""Remote, the face for scripts and notebooks, against a real server."""

from __future__ import annotations

import pickle
import signal
import threading
from pathlib import Path

import pytest

from pyremotedata_core import (
    ConfigurationError,
    ConnectionSettings,
    Remote,
    RemoteFileNotFound,
    RemotePermissionDenied,
    RemoteURL,
    Stat,
    TransferEngine,
    TransferTimeout,
)
from pyremotedata_core.placing import put_all
from pyremotedata_core.remote import check_removal

from .servers import ScriptedSshd
from .sites import temporaries, tree
from .waiting import wait_until

MTIME = 1_234_567_890
LARGE = 20 * 2**20 + 12_345


@pytest.fixture(scope="module")
def engine(sshd):
    with TransferEngine(sshd.settings(timeout_s=30.0)) as engine:
        yield engine


@pytest.fixture
def remote(sshd, remote_directory, engine) -> Remote:
    return Remote(sshd.url(remote_directory), engine=engine)


# --- which remote ---------------------------------------------------------------------------


def test_a_remote_leaves_an_engine_that_it_was_given_open(sshd, engine, remote_directory):
    with Remote(sshd.url(remote_directory), engine=engine) as remote:
        assert remote.ls() == []
    assert engine.stat(sshd.url()).result(30).kind == "directory"
    with pytest.raises(ConfigurationError, match="engine"):
        Remote(sshd.url(), engine=engine, timeout_s=3)


def test_paths_are_relative_absolute_or_whole_urls(remote, make, sshd, remote_directory):
    make("sub/a b#c", b"12")
    for path in (
        "sub/a b#c",
        "./sub//a b#c",
        sshd.remote_path(f"{remote_directory}/sub/a b#c"),
        sshd.url(f"{remote_directory}/sub/a b#c"),
        RemoteURL.parse(sshd.url(f"{remote_directory}/sub/a b#c")),
    ):
        assert remote.stat(path).size == 2


# --- looking --------------------------------------------------------------------------------


def test_names_are_listed_sorted(remote, make):
    for name in ("b", "a", "C", ".d"):
        make(name)
    make("sub/e")
    assert remote.ls() == [".d", "C", "a", "b", "sub"]
    assert remote.ls("sub") == ["e"]
    assert remote.ls("sub/e") == ["e"]
    assert [entry.stat.kind for entry in remote.scandir()] == ["file"] * 4 + ["directory"]
    with pytest.raises(RemoteFileNotFound):
        remote.ls("none")


def test_only_the_whole_name_exists(remote, make):
    make("ab.txt")
    assert remote.exists("ab.txt")
    assert remote.exists("")
    for name in ("b.txt", "a", "ab", "ab.tx?", "*", "none/ab.txt"):
        assert not remote.exists(name)


def test_whether_something_exists_costs_one_request(sshd_factory):
    server = sshd_factory(log_requests=True)
    with Remote(server.url(), ssh_config=str(server.ssh_config)) as remote:
        remote.exists("")
        before = server.requests()
        assert not remote.exists("none")
        assert server.requests() == before + 1


def test_what_cannot_be_known_is_an_error_and_not_a_no(chroot_sshd):
    chroot_sshd.make("shut/a", b"1")
    (chroot_sshd.root / "shut").chmod(0)
    try:
        remote = Remote(chroot_sshd.url(), ssh_config=str(chroot_sshd.ssh_config))
        with remote, pytest.raises(RemotePermissionDenied):
            remote.exists("shut/a")
    finally:
        (chroot_sshd.root / "shut").chmod(0o755)


@pytest.mark.parametrize("path", ["", ".", "./", "sub/.."])
def test_a_path_that_says_nothing_does_not_remove_the_whole_remote(remote, make, path):
    file = make("sub/a", b"1")
    with pytest.raises(ConfigurationError, match="all that is there"):
        remote.rm(path, recursive=True)
    assert file.exists()
    remote.rm(remote.url, recursive=True)  # named
    assert not file.exists()


@pytest.mark.parametrize("path", ["/", "/~", "/~/a/..", "..", "../.."])
def test_the_root_and_the_login_directory_are_never_removed(path):
    base = RemoteURL.parse("sftp://h/~/a")
    with pytest.raises(ConfigurationError, match="all that is there"):
        check_removal(path, base.join(path), base)
    check_removal("b", base.join("b"), base)
    check_removal("../ab", base.join("../ab"), base)


# --- placement, as cp -r does it --------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "destination", "made"),
    [
        ("a.txt", "new", "new"),
        ("a.txt", "new/deep/name", "new/deep/name"),
        ("a.txt", "new/deep/", "new/deep/a.txt"),
        ("a.txt", "there", "there/a.txt"),
        ("a.txt", "there/", "there/a.txt"),
        ("a.txt", "there/b.txt", "there/b.txt"),
        ("a.txt", ".", "a.txt"),
        ("t", "new/deep", "new/deep"),
        ("t/", "new/", "new/t"),
        ("t", "there", "there/t"),
        ("t/", "there/", "there/t"),
        ("t", "there/u", "there/u"),
    ],
)
def test_what_is_moved_goes_into_a_directory_or_under_a_name(
    remote, make, there, tmp_path, monkeypatch, source, destination, made
):
    make("a.txt", b"123")
    make("t/sub/a", b"1")
    (there / "t/empty").mkdir()
    (there / "up/there").mkdir(parents=True)
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path)
    assert remote.get(source, destination) == Path(made)
    assert remote.put(Path(there, source), f"up/{destination}") == remote.locate(f"up/{made}")
    for moved in (tmp_path / made, there / "up" / made):
        if source == "a.txt":
            assert moved.read_bytes() == b"123"
        else:
            assert tree(moved) == {"sub": None, "sub/a": b"1", "empty": None}


def test_the_root_of_a_remote_has_no_name_of_its_own(chroot_sshd, tmp_path):
    chroot_sshd.make("root/a", b"1")
    base = chroot_sshd.url().removesuffix("/upload")
    with Remote(f"{base}/", ssh_config=str(chroot_sshd.ssh_config)) as remote:
        remote.get("", tmp_path)
    assert (tmp_path / "upload/root/a").read_bytes() == b"1"


def test_a_link_is_put_under_its_own_name(remote, there, tmp_path):
    (tmp_path / "target.bin").write_bytes(b"1")
    (tmp_path / "link.bin").symlink_to("target.bin")
    (tmp_path / "t").mkdir()
    (tmp_path / "tree").symlink_to("t")
    remote.put(tmp_path / "link.bin", "up/")
    remote.put(tmp_path / "tree", "up/")
    assert tree(there / "up") == {"link.bin": b"1", "tree": None}


def test_the_current_directory_is_put_under_its_name(remote, there, tmp_path, monkeypatch):
    (tmp_path / "t").mkdir()
    (tmp_path / "t/a").write_bytes(b"1")
    monkeypatch.chdir(tmp_path / "t")
    remote.put(".", "up/")
    assert tree(there / "up") == {"t": None, "t/a": b"1"}


def test_many_files_are_got_in_their_order(remote, make, tmp_path):
    names = [f"{number}" for number in range(30)]
    for name in names:
        make(f"sub/{name}", name.encode())
    paths = remote.get_many([f"sub/{name}" for name in names], tmp_path / "new")
    assert paths == [tmp_path / "new" / name for name in names]
    assert [path.read_bytes() for path in paths] == [name.encode() for name in names]
    assert remote.get_many([], tmp_path) == []


def test_two_files_of_one_name_are_refused_before_anything_moves(remote, make, tmp_path):
    make("one/a", b"1")
    make("two/a", b"2")
    with pytest.raises(ConfigurationError, match="'a'"):
        remote.get_many(["one/a", "two/a"], tmp_path)
    assert tree(tmp_path) == {}


def test_a_single_path_where_several_are_meant_is_refused(remote):
    for move in (remote.get_many, remote.stream):
        with pytest.raises(ConfigurationError, match=r"write \['a.bin'\]"):
            move("a.bin")


def test_of_many_files_the_failures_are_raised_after_the_others_have_moved(remote, make, tmp_path):
    make("a", b"1")
    make("b", b"2")
    with pytest.raises(RemoteFileNotFound, match="and 1 more"):
        remote.get_many(["none", "a", "nothing", "b"], tmp_path)
    assert tree(tmp_path) == {"a": b"1", "b": b"2"}


def test_a_file_that_changes_after_the_first_look_is_got_as_it_is_now(remote, make, tmp_path):
    """Between the look that decides where it goes and the transfer."""
    path = make("a", b"old", mtime=MTIME)
    engine = remote.engine
    look = engine.stat

    def look_and_change(url, **options):
        future = look(url, **options)
        future.result(30)
        path.write_bytes(b"new and longer")
        return future

    engine.stat = look_and_change
    try:
        remote.get("a", tmp_path / "a")
    finally:
        del engine.stat
    assert (tmp_path / "a").read_bytes() == b"new and longer"


# --- sync -----------------------------------------------------------------------------------


def test_a_sync_can_replace_what_is_the_same(remote, make, tmp_path):
    make("t/a", b"1", mtime=MTIME)
    make("t/sub/b", b"2", mtime=MTIME)
    assert remote.sync("t", tmp_path / "t").files == 2
    result = remote.sync("t", tmp_path / "t", replace=True)
    assert (result.files, result.unchanged) == (2, 0)
    with pytest.raises(ConfigurationError, match="manifest"):
        remote.sync("t", tmp_path / "t", verify="")
    with pytest.raises(ConfigurationError, match="direction"):
        remote.sync("t", tmp_path / "t", direction="sideways")


def test_progress_is_told_to_a_function(remote, make, tmp_path):
    make("t/a", bytes(LARGE))
    make("t/b", b"1")
    told: list[tuple[int, int]] = []

    def tell(*moved: int) -> None:
        told.append(moved)

    for source, size, files in (("t", LARGE + 1, 2), ("t/a", LARGE, 1), ("t/b", 1, 1)):
        local = remote.get(source, tmp_path / source.replace("/", "-"), progress=tell)
        remote.put(local, f"back/{source}", progress=tell)
        assert tuple(map(sum, zip(*told, strict=True))) == (2 * size, 2 * files)
        told.clear()
    remote.get("t/a", tmp_path / "a", progress=True)  # no terminal: no bar, no error


# --- changing -------------------------------------------------------------------------------


def test_ctrl_c_ends_the_single_files_of_a_put_too(sshd, there, remote_directory, tmp_path):
    for name in ("single", "t/a"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(8 * 2**20))
    interrupts = [signal.SIGINT]

    def interrupt(*_: int) -> None:
        if interrupts:
            signal.pthread_kill(threading.main_thread().ident, interrupts.pop())

    with TransferEngine(sshd.settings(bandwidth=2**20)) as engine:
        target = RemoteURL.parse(sshd.url(remote_directory) + "/")
        with pytest.raises(KeyboardInterrupt):
            put_all(engine, [tmp_path / "single", tmp_path / "t"], target, tell=interrupt)
        wait_until(lambda: not temporaries(there))
    assert {path for path, data in tree(there).items() if data is not None} == set()


def test_listing_a_silent_server_waits_only_once():
    """The second look, whether it is a file, is for servers that answer."""
    with (
        ScriptedSshd("lie", "silent") as server,
        Remote(server.url(), ssh_config=str(server.ssh_config), timeout_s=2.0) as remote,
    ):
        before = server.logins()
        with pytest.raises(TransferTimeout):
            remote.ls("a")
        assert server.logins() == before + 1


def test_a_remote_that_is_sent_to_another_process_says_what_to_send(remote):
    with pytest.raises(TypeError, match="send the URL"):
        pickle.dumps(remote)


def test_repr_names_the_remote_and_no_secret(sshd):
    with Remote(sshd.url(), password="canary") as remote:
        assert str(RemoteURL.parse(sshd.url())) in repr(remote)
        assert "canary" not in repr(remote) + repr(remote.engine)


@pytest.mark.parametrize("size", [3, LARGE])
def test_what_no_transport_serves_is_told_whatever_is_asked(tmp_path, size):
    (tmp_path / "a").write_bytes(bytes(size))
    url = "ftp://host/x"
    known = Stat("file", size, MTIME)
    with TransferEngine(ConnectionSettings(transport="sftp")) as engine:
        for future in (
            engine.stat(url),
            engine.fetch(url, tmp_path / "b", expect=known),
            engine.store(tmp_path / "a", url),
            engine.fetch_tree(url, tmp_path / "t"),
            engine.store_tree(tmp_path, url),
            engine.remove(url, recursive=True),
        ):
            error = future.exception(30)
            assert type(error) is ConfigurationError
            assert str(error).startswith(url)
