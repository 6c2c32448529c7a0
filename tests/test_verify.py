"""verify=, modes=, and archives that let one write and nothing else."""

from __future__ import annotations

import os
import subprocess

import pytest

from pyremotedata_core import (
    ConfigurationError,
    Remote,
    RemoteChanged,
    RemoteFileNotFound,
    RemotePermissionDenied,
    ServerRefused,
    TransferEngine,
    UnsafeName,
)

from .page import told
from .servers import ScriptedSshd
from .sites import temporaries, tree

LARGE = 9 << 20  # more than a segment


@pytest.fixture
def spoiling(tmp_path):
    """Start a server that changes one byte of the first answer or of the first write."""
    servers = []

    def start(what: str) -> ScriptedSshd:
        server = ScriptedSshd("relay", {"spoil": what, "mark": str(tmp_path / "mark")})
        servers.append(server)
        return server.start()

    yield start
    for server in servers:
        server.stop()


@pytest.mark.parametrize("size", [1000, LARGE])
def test_bytes_that_arrive_changed_are_noticed_and_fetched_again(spoiling, tmp_path, size):
    server = spoiling("read")
    data = os.urandom(size)
    server.make("f", data)
    with TransferEngine(server.settings()) as engine:
        engine.fetch(server.url("f"), tmp_path / "here" / "f", verify=True).result(60)
    assert (tmp_path / "here" / "f").read_bytes() == data
    assert temporaries(tmp_path / "here") == []
    assert (tmp_path / "mark").exists(), "no byte was changed"


def test_bytes_that_arrive_changed_are_told_where_nobody_asks_again(spoiling, tmp_path):
    server = spoiling("read")
    server.make("f", bytes(1000))
    with TransferEngine(server.settings()) as engine:
        known = engine.stat(server.url("f")).result(60)
        future = engine.fetch(server.url("f"), tmp_path / "f", expect=known, verify=True)
        told(future.exception(60), "was not the same when it was read again")
    assert tree(tmp_path) == {"mark": b""}


def test_an_upload_of_which_the_server_lost_something_is_not_published(spoiling, tmp_path):
    server = spoiling("lose")
    server.make("d/f", b"old")
    (tmp_path / "f").write_bytes(bytes(1000))
    with TransferEngine(server.settings()) as engine:
        with pytest.raises(ServerRefused) as caught:
            engine.store(tmp_path / "f", server.url("d/f")).result(60)
        told(caught.value, "the server kept")
    assert tree(server.root / "d") == {"f": b"old"}


@pytest.mark.parametrize("size", [1000, LARGE])
def test_bytes_that_the_server_kept_otherwise_are_not_published(spoiling, tmp_path, size):
    server = spoiling("write")
    server.make("d/f", b"old")
    (tmp_path / "f").write_bytes(os.urandom(size))
    with TransferEngine(server.settings()) as engine:
        with pytest.raises(ServerRefused) as caught:
            engine.store(tmp_path / "f", server.url("d/f"), verify=True).result(60)
        told(caught.value, "what the server holds is not what was sent")
        assert tree(server.root / "d") == {"f": b"old"}
        assert temporaries(server.root) == []
        engine.store(tmp_path / "f", server.url("d/f"), verify=True).result(60)
    assert (server.root / "d" / "f").read_bytes() == (tmp_path / "f").read_bytes()


def test_a_tree_is_compared_byte_by_byte_although_sizes_and_times_agree(sshd, tmp_path, request):
    place = f"{request.node.name}-{os.getpid()}"
    server = sshd
    for name in ("same", "rotten"):
        server.make(f"{place}/{name}", b"content of it")
    with TransferEngine(server.settings()) as engine:
        engine.fetch_tree(server.url(place), tmp_path / "t").result(60)
        info = (tmp_path / "t" / "rotten").stat()
        (tmp_path / "t" / "rotten").write_bytes(b"content OF it")
        os.utime(tmp_path / "t" / "rotten", ns=(info.st_atime_ns, info.st_mtime_ns))
        result = engine.fetch_tree(server.url(place), tmp_path / "t", compare=True).result(60)
        assert (result.files, result.unchanged) == (0, 2)
        options = {"compare": True, "verify": True}
        result = engine.fetch_tree(server.url(place), tmp_path / "t", **options).result(60)
        assert (result.files, result.unchanged) == (1, 1)
        assert tree(tmp_path / "t") == tree(server.root / place)

        (server.root / place / "same").write_bytes(b"content OF it")
        os.utime(server.root / place / "same", ns=(info.st_atime_ns, info.st_mtime_ns))
        os.utime(tmp_path / "t" / "same", ns=(info.st_atime_ns, info.st_mtime_ns))
        result = engine.store_tree(tmp_path / "t", server.url(place), **options).result(60)
        assert (result.files, result.unchanged) == (1, 1)
        assert tree(tmp_path / "t") == tree(server.root / place)


@pytest.fixture
def write_only():
    with ScriptedSshd("relay", {"refuse": ["rename", "remove"]}) as server:
        yield server


def test_where_nothing_can_be_renamed_the_error_names_the_setting(write_only, tmp_path):
    (tmp_path / "f").write_bytes(b"x")
    with (
        TransferEngine(write_only.settings()) as engine,
        pytest.raises(RemotePermissionDenied) as caught,
    ):
        engine.store(tmp_path / "f", write_only.url("f")).result(30)
    told(caught.value, "PYREMOTEDATA_PUBLISH=direct")


def test_directly_published_files_need_neither_rename_nor_remove(write_only, tmp_path):
    for name, size in {"empty": 0, "small": 1000, "large": LARGE}.items():
        (tmp_path / name).write_bytes(os.urandom(size))
    with TransferEngine(write_only.settings(publish="direct")) as engine:
        for round_ in range(2):  # once they are new, once they replace
            for name in ("empty", "small", "large"):
                if round_:
                    (tmp_path / name).write_bytes(os.urandom(500))
                os.utime(tmp_path / name, (1_500_000_000, 1_500_000_000))
                engine.store(tmp_path / name, write_only.url(f"new/{name}")).result(30)
                assert (write_only.root / "new" / name).stat().st_mtime == 1_500_000_000
            assert tree(write_only.root / "new") == {
                name: (tmp_path / name).read_bytes() for name in ("empty", "small", "large")
            }
        with pytest.raises(ServerRefused):
            engine.store(tmp_path / "small", write_only.url("new/small"), overwrite=False).result()
        assert (write_only.root / "new" / "small").read_bytes() == (tmp_path / "small").read_bytes()


def test_a_source_that_changes_is_still_an_error_with_verify(sshd_factory, relay_factory, tmp_path):
    server = sshd_factory()
    relay = relay_factory(server.port, rate=10e6)
    path = server.make("f", bytes(LARGE))
    with TransferEngine(server.settings()) as engine:
        url = relay.url(server.url("f"))
        known = engine.stat(url).result(30)
        moved = []
        future = engine.fetch(
            url,
            tmp_path / "f",
            expect=known,
            verify=True,
            on_progress=lambda count, _: moved.append(count),
        )
        while not moved:
            assert not future.done()
        os.utime(path, (1, 1))
        with pytest.raises(RemoteChanged):
            future.result(60)
    assert not (tmp_path / "f").exists()
    assert temporaries(tmp_path) == []


# --- manifests ------------------------------------------------------------------------------


@pytest.fixture
def remote(sshd, remote_directory):
    with Remote(sshd.url(remote_directory), ssh_config=str(sshd.ssh_config)) as remote:
        yield remote


def test_an_upload_writes_a_manifest_that_sha256sum_takes_and_a_download_compares_with_it(
    remote, sshd, remote_directory, tmp_path
):
    names = ["a", "sub dir/b", "back\\slash", "new\nline"]
    for name in names:
        (tmp_path / "up" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "up" / name).write_bytes(os.urandom(1000))
    remote.sync("t", tmp_path / "up", direction="up", verify="SHA256SUMS")
    there = sshd.root / remote_directory / "t"
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=there, check=True)

    remote.sync("t", tmp_path / "down", verify="SHA256SUMS")
    assert (tmp_path / "down" / "new\nline").read_bytes() == (there / "new\nline").read_bytes()
    (there / "a").write_bytes(os.urandom(1000))
    os.utime(there / "a", (1_600_000_000, 1_600_000_000))  # else perhaps in the same second
    with pytest.raises(RemoteChanged, match=r"its sha256 is \w{64}, in the manifest"):
        remote.sync("t", tmp_path / "down", verify="SHA256SUMS")
    remote.sync("t", tmp_path / "down", verify="SHA256SUMS", exclude=["a"])
    (there / "a").unlink()
    with pytest.raises(RemoteChanged, match="is not there"):
        remote.sync("t", tmp_path / "elsewhere", verify="SHA256SUMS")


def test_manifests_of_other_sums_are_read_and_what_is_none_is_named(
    remote, sshd, remote_directory, tmp_path
):
    there = sshd.root / remote_directory / "t"
    sshd.make(f"{remote_directory}/t/x", b"x")
    sshd.make(f"{remote_directory}/t/MD5SUMS", b"9dd4e461268c8034f5c8564e155c67a6 *./x\n")
    remote.sync("t", tmp_path / "t", verify="MD5SUMS")
    (there / "MD5SUMS").write_text("9dd4e461268c8034f5c8564e155c67a6  x\nnonsense\n")
    with pytest.raises(ConfigurationError, match="MD5SUMS, line 2"):
        remote.sync("t", tmp_path / "t", verify="MD5SUMS")
    (there / "MD5SUMS").write_text("")
    with pytest.raises(RemoteChanged, match="lists no file"):
        remote.sync("t", tmp_path / "t", verify="MD5SUMS")
    with pytest.raises(RemoteFileNotFound):
        remote.sync("t", tmp_path / "t", verify="no-such-manifest")
    with pytest.raises(ConfigurationError, match="replaced by the manifest"):
        remote.sync("t", tmp_path / "t", direction="up", verify="MD5SUMS")


def test_the_manifest_of_nothing_lists_nothing(remote, tmp_path):
    (tmp_path / "up").mkdir()
    remote.sync("t", tmp_path / "up", direction="up", verify="SHA256SUMS")
    assert remote.sync("t", tmp_path / "down", verify="SHA256SUMS").files == 1


def test_a_manifest_lists_what_was_sent_and_nothing_that_was_left_out(
    remote, sshd, remote_directory, tmp_path
):
    up = tmp_path / "up"
    (up / "left" / "out").mkdir(parents=True)
    for name in ("a", "left/b", "left/out/c"):
        (up / name).write_text(name)
    os.mkfifo(up / "pipe")
    (up / "to_a").symlink_to("a")
    (up / "to_nothing").symlink_to("missing")
    (tmp_path / "outside").write_text("private")
    (up / "to_outside").symlink_to("../outside")
    remote.sync("t", up, direction="up", exclude=["left"], verify="SHA256SUMS")
    there = sshd.root / remote_directory / "t"
    listed = [line.split("  ")[1] for line in (there / "SHA256SUMS").read_text().splitlines()]
    assert listed == ["a", "to_a"]
    remote.sync("t", tmp_path / "down", verify="SHA256SUMS")


def test_a_manifest_is_not_asked_about_a_directory_that_was_left_out(
    remote, sshd, remote_directory, tmp_path
):
    for name in ("a", "left/b", "left/out/c"):
        sshd.make(f"{remote_directory}/t/{name}", name.encode())
    there = sshd.root / remote_directory / "t"
    sums = subprocess.run(
        ["sha256sum", "a", "left/b", "left/out/c"], cwd=there, capture_output=True, check=True
    )
    (there / "SHA256SUMS").write_bytes(sums.stdout)
    remote.sync("t", tmp_path / "t", exclude=["left"], verify="SHA256SUMS")
    assert not (tmp_path / "t" / "left").exists()


def test_a_manifest_stands_in_the_directory_itself(remote, tmp_path):
    (tmp_path / "up").mkdir()
    for name in ("", ".", "..", "../SUMS", "sums/SHA256", "/SHA256SUMS"):
        with pytest.raises(ConfigurationError, match="not a name for a manifest"):
            remote.sync("t", tmp_path / "up", direction="up", verify=name)
    assert not remote.exists("t")


@pytest.mark.parametrize("way", ["../private", "a/../../private", "{}/private"])
def test_a_manifest_asks_about_no_file_outside_of_the_directory(
    remote, sshd, remote_directory, tmp_path, way
):
    (tmp_path / "private").write_text("private")
    there = sshd.root / remote_directory / "t"
    (there / "a").mkdir(parents=True)
    (there / "SHA256SUMS").write_text(f"{'0' * 64}  {way.format(tmp_path)}\n")
    with pytest.raises(UnsafeName, match="outside of the directory"):
        remote.sync("t", tmp_path / "t", verify="SHA256SUMS")
