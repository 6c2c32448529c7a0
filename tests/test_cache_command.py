"""The command ``cache``: show, trim, verify, empty."""

from __future__ import annotations

import json
import os

import pytest

from pyremotedata_core import RemoteURL, Stager

SIZE = 1000


@pytest.fixture
def cache(sshd, tmp_path, run):
    """A stager with four staged files, the oldest first; and a way to run the command."""
    urls = []
    for number in range(4):
        sshd.make(f"cached/{number}.bin", os.urandom(SIZE))
        urls.append(sshd.url(f"cached/{number}.bin"))
    directory = str(tmp_path / "cache")
    run.environment["PYREMOTEDATA_CACHE_DIR"] = directory
    with Stager(sshd.settings(cache_dir=directory)) as stager:
        for age, url in enumerate(urls):
            lease = stager.lease(url)
            key = lease.path.parent.name
            lease.release()
            pin = lease.path.parents[2] / "pins" / key
            os.utime(pin, (1_700_000_000 + age, 1_700_000_000 + age))

        yield stager, urls, lambda *words: json.loads(run("cache", "--json", *words).stdout)


def urls_of(outcome: dict) -> list[str]:
    return [entry["url"] for entry in outcome["files"]]


def test_show_lists_what_is_there_oldest_first(cache):
    stager, urls, run = cache
    with stager.lease(urls[3]):
        outcome = run()
        assert urls_of(outcome) == urls
        assert outcome["used_bytes"] == 4 * SIZE
        assert [entry["in_use"] for entry in outcome["files"]] == [False, False, False, True]
        assert all(entry["sound"] for entry in outcome["files"])


def test_trim_removes_the_oldest_that_nobody_uses(cache):
    stager, urls, run = cache
    lease = stager.lease(urls[0])
    pin = lease.path.parents[2] / "pins" / lease.path.parent.name
    os.utime(pin, (1_600_000_000, 1_600_000_000))
    assert urls_of(run("trim", "--to", "2000", "-n")) == urls[1:3]
    assert len(urls_of(run())) == 4, "a dry run removes nothing"
    assert urls_of(run("trim", "--to", "2000")) == urls[1:3]
    assert sorted(urls_of(run())) == [urls[0], urls[3]]
    assert lease.path.stat().st_size == SIZE
    lease.release()


def test_verify_removes_what_is_broken(cache):
    stager, urls, run = cache
    with stager.lease(urls[2]) as lease:
        path = lease.path
    os.chmod(path, 0o600)
    path.write_bytes(b"short")
    assert urls_of(run("verify")) == [urls[2]]
    assert sorted(urls_of(run())) == sorted([*urls[:2], urls[3]])


def test_verify_leaves_a_sound_file_that_was_begun_by_a_longer_url(cache):
    stager, urls, run = cache
    run("empty")
    stat = stager.stat(urls[0]).result(60)
    key = stager.remember(RemoteURL.parse(urls[0]), stat)
    longer = urls[0].replace("sftp://", "sftp://somebody-else@")
    stager.cache.reserve(key, "0.bin", longer, stat).release()  # and it was killed
    stager.lease(urls[0]).release()
    assert urls_of(run("verify")) == []
    assert urls_of(run()) == [urls[0]]


def test_empty_leaves_only_what_is_in_use(cache):
    stager, urls, run = cache
    with stager.lease(urls[1]) as lease:
        assert len(urls_of(run("empty"))) == 3
        assert urls_of(run()) == [urls[1]]
        assert lease.path.stat().st_size == SIZE


def test_a_size_to_keep_is_refused_where_all_would_go(run):
    assert "--to is for trim" in run.failure("cache", "empty", "--to", "10G", status=2)
