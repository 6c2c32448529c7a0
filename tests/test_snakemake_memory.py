"""What the Snakemake plugin believes of remote files, and for how long."""

from __future__ import annotations

import time

import pytest

pytest.importorskip("snakemake")

from snakemake_storage_plugin_pyremotedata import memory as memories
from snakemake_storage_plugin_pyremotedata.memory import NEGATIVE_S, POSITIVE_S, Memory

from pyremotedata_core import Entry, RemoteURL, Stat

FILE = Stat("file", 3, 1000)
DIRECTORY = Stat("directory", 0, 1000)
LINK = Stat("link", 3, 1000)


def url(path: str) -> RemoteURL:
    return RemoteURL("sftp", "h", path)


def now(ago_s: float = 0.0) -> float:
    return time.monotonic() - ago_s


def test_what_exists_is_believed_for_a_minute_and_what_is_missing_for_a_second():
    memory = Memory()
    memory.remember(url("/d/a"), FILE, now(POSITIVE_S - 5))
    memory.remember(url("/d/b"), FILE, now(POSITIVE_S + 1))
    memory.remember(url("/d/c"), None, now())
    memory.remember(url("/d/e"), None, now(NEGATIVE_S + 0.1))
    assert memory.recall(url("/d/a")).stat == FILE
    assert memory.recall(url("/d/b")) is None
    assert memory.recall(url("/d/c")).stat is None
    assert memory.recall(url("/d/e")) is None
    assert memory.recall(url("/d/never-asked")) is None


def test_who_asked_believes_the_answer_however_long_it_took():
    memory = Memory()
    memory.remember(url("/d/a"), None, now(NEGATIVE_S + 5))
    assert memory.recall(url("/d/a")) is None
    assert memory.recall(url("/d/a"), now(NEGATIVE_S + 5)).stat is None


def test_a_directory_was_missing_until_something_in_it_is_seen():
    memory = Memory()
    memory.remember(url("/d/e"), None, now(NEGATIVE_S + 5))
    assert memory.was_missing(url("/d/e"))
    assert memory.was_missing(url("/d/e/f"))
    assert not memory.was_missing(url("/d"))
    assert memory.topmost_missing(url("/d/e/f")) == url("/d/e")
    assert memory.topmost_missing(url("/d")) is None
    memory.remember(url("/d/e/f/g"), FILE, now())
    assert not memory.was_missing(url("/d/e"))
    assert not memory.was_missing(url("/d/e/f"))


def test_an_answer_that_was_asked_for_earlier_does_not_replace_a_later_one():
    memory = Memory()
    memory.remember(url("/d/a"), FILE, now())
    memory.remember(url("/d/a"), None, now(0.5))
    memory.remember_listing(url("/d"), [], now(0.5))
    memory.remember_listing(url("/d"), [Entry("b", FILE)], now(0.6))
    assert memory.recall(url("/d/b")).stat is None
    assert memory.recall(url("/d/a")).stat == FILE


def test_the_second_question_about_a_directory_lists_it():
    memory = Memory()
    assert not memory.should_list(url("/d/a"))
    assert not memory.should_list(url("/d/a"))
    assert not memory.should_list(url("/other/a"))
    assert memory.should_list(url("/d/b"))


def test_a_huge_directory_is_not_listed_again_for_a_few_files():
    memory = Memory()
    entries = [Entry(f"{n}", FILE) for n in range(1000)]
    memory.remember_listing(url("/d"), entries, now(POSITIVE_S + 1))
    asked = next(n for n in range(1000) if memory.should_list(url(f"/d/{n}")))
    assert asked + 1 == pytest.approx(1000 / memories.NAMES_PER_QUESTION, abs=1)


def test_a_directory_that_cannot_be_listed_is_not_listed():
    memory = Memory()
    memory.should_list(url("/d/a"))
    memory.never_list(url("/d"))
    assert not memory.should_list(url("/d/b"))


def test_a_listing_answers_for_every_name_and_says_for_a_second_what_is_missing():
    memory = Memory()
    memory.remember_listing(url("/d"), [Entry("a", FILE), Entry("s", DIRECTORY)], now())
    assert memory.recall(url("/d/a")).stat == FILE
    assert memory.recall(url("/d/s")).stat == DIRECTORY
    assert memory.recall(url("/d/b")).stat is None
    assert memory.listing(url("/d")) == {"a": FILE, "s": DIRECTORY}
    older = Memory()
    older.remember_listing(url("/d"), [Entry("a", FILE)], now(NEGATIVE_S + 0.1))
    assert older.recall(url("/d/a")).stat == FILE
    assert older.recall(url("/d/b")) is None
    assert older.listing(url("/d")) is None


def test_a_listed_link_says_nothing_of_its_target():
    memory = Memory()
    memory.remember_listing(url("/d"), [Entry("l", LINK), Entry("a", FILE)], now())
    assert memory.recall(url("/d/l")) is None
    memory.remember_listing(url("/"), [Entry("l", LINK)], now())
    assert memory.recall(url("/l/below")) is None
    assert memory.listing(url("/d")) is None


def test_a_name_that_left_the_directory_is_missing_after_the_next_listing():
    memory = Memory()
    memory.remember_listing(url("/d"), [Entry("a", FILE)], now(5))
    memory.remember_listing(url("/d"), [], now())
    assert memory.recall(url("/d/a")).stat is None


def test_a_new_file_makes_its_directories_exist():
    memory = Memory()
    memory.remember_listing(url("/"), [], now(0.1))
    memory.remember(url("/x/y"), None, now(0.1))
    memory.remember(url("/x/y/z"), FILE, now())
    assert memory.recall(url("/x/y/z")).stat == FILE
    assert memory.recall(url("/x/y")) is None
    assert memory.recall(url("/x")) is None


def test_a_directory_is_forgotten_with_everything_below_it():
    memory = Memory()
    for path in ("/d/a/b/c", "/d/a", "/d/ab/c"):
        memory.remember(url(path), FILE, now())
    memory.forget(url("/d/a"))
    assert memory.recall(url("/d/a")) is None
    assert memory.recall(url("/d/a/b/c")) is None
    assert memory.recall(url("/d/ab/c")).stat == FILE


def test_other_servers_and_the_login_directory_are_not_confused():
    memory = Memory()
    memory.remember(url("/a"), FILE, now())
    assert memory.recall(RemoteURL("sftp", "g", "/a")) is None
    assert memory.recall(RemoteURL("sftp", "h", "/a", user="u")) is None
    assert memory.recall(url("/~/a")) is None


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(memories, "MAX_NAMES", 100)
    memory = Memory()
    for d in range(50):
        memory.remember_listing(url(f"/{d}"), [Entry(f"{n}", FILE) for n in range(10)], now())
    assert sum(len(d.answers) for d in memory._directories.values()) <= 100
    assert memory.recall(url("/49/9")).stat == FILE
    assert memory.recall(url("/0/9")) is None


def test_nothing_exists_below_a_directory_that_is_missing():
    memory = Memory()
    memory.remember(url("/a/missing"), None, now())
    memory.remember(url("/a/there"), DIRECTORY, now())
    assert memory.recall(url("/a/missing/deep/file")).stat is None
    assert memory.recall(url("/a/there/deep/file")) is None
    memory.remember_listing(url("/b"), [], now())
    assert memory.recall(url("/b/x/y")).stat is None
    memory.remember(url("/b/x/y"), FILE, now())
    assert memory.recall(url("/b/x/y")).stat == FILE
    assert memory.recall(url("/b/x")) is None


def test_in_a_directory_that_was_missing_is_only_what_has_come_since():
    """Until that is too old, as for any other that was missing."""
    memory = Memory()
    memory.remember(url("/a"), None, now())
    memory.remember_listing(url("/b"), [], now(NEGATIVE_S / 2))
    for directory in ("/a", "/b/x"):
        memory.remember(url(f"{directory}/p/q"), FILE, now())
        assert memory.recall(url(f"{directory}/p/q")).stat == FILE
        assert memory.recall(url(f"{directory}/p/r")).stat is None
        assert memory.recall(url(f"{directory}/s/t")).stat is None
        assert memory.recall(url(f"{directory}/p")) is None
        assert memory.recall(url(f"{directory}/s/t"), now() + NEGATIVE_S) is None


def test_that_a_directory_is_missing_is_forgotten_as_fast_as_for_a_file():
    memory = Memory()
    memory.remember(url("/a/missing"), None, now(ago_s=NEGATIVE_S))
    assert memory.recall(url("/a/missing/file")) is None


def test_a_directory_whose_neighbours_were_worth_listing_is_listed_at_once():
    memory = Memory()
    for name in "ab":
        assert not memory.should_list(url(f"/in/{name}/1"))
        assert memory.should_list(url(f"/in/{name}/2"))
        entries = [Entry("1", FILE), Entry("2", FILE)]
        memory.remember_listing(url(f"/in/{name}"), entries, now())
    assert memory.should_list(url("/in/c/1"))
    assert not memory.should_list(url("/elsewhere/c/1"))


def test_a_directory_with_large_neighbours_is_not_listed_for_one_file():
    memory = Memory()
    for name in "ab":
        entries = [Entry(str(n), FILE) for n in range(memories.SMALL + 1)]
        memory.remember_listing(url(f"/in/{name}"), entries, now())
    assert not memory.should_list(url("/in/c/1"))
