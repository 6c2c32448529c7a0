"""The broker's decisions: one reader per file, bounded reads, nobody forgotten."""

from __future__ import annotations

import random

import pytest

from dask_plugin import ledger as ledger_module
from dask_plugin.ledger import PULLS_PER_NODE, Ledger


def cluster(count: int, archive_reads: int = 10, per_node: int = 1) -> Ledger:
    ledger = Ledger(archive_reads)
    for number in range(count):
        ledger.join(f"w{number}", f"n{number // per_node}")
    return ledger


def test_the_first_reads_and_the_others_pull_when_it_has_the_file():
    ledger = cluster(3)
    assert ledger.want("w0", "f", background=False) == [("w0", ("fetch", "f", None))]
    assert ledger.want("w1", "f", background=False) == [("w1", ("wait", "f", None))]
    assert ledger.want("w2", "f", background=True) == [("w2", ("wait", "f", None))]
    assert ledger.ended("w0", "f", is_here=True) == [
        ("w1", ("pull", "f", "w0")),
        ("w2", ("pull", "f", "w0")),
    ]


def test_others_pull_from_a_reader_that_gives_what_it_has():
    ledger = cluster(3)
    for worker in ("w0", "w1"):
        ledger.want(worker, "f", background=False)
    assert ledger.shares("w1", "f") == []  # it does not read it
    assert ledger.shares("w0", "f") == [("w1", ("pull", "f", "w0"))]
    assert ledger.want("w2", "f", background=False) == [("w2", ("pull", "f", "w0"))]
    assert ledger.ended("w0", "f", is_here=True) == []
    assert ledger.ended("w1", "f", is_here=True) == []


def test_who_cannot_pull_from_the_reader_reads_in_its_place():
    ledger = cluster(3)
    for worker in ("w0", "w1", "w2"):
        ledger.want(worker, "f", background=False)
    ledger.shares("w0", "f")
    assert ledger.want("w1", "f", background=False, lost="w0") == [("w1", ("wait", "f", None))]
    assert ledger.want("w2", "f", background=False, lost="w0") == [
        ("w1", ("fetch", "f", None)),
        ("w2", ("wait", "f", None)),
    ]
    assert ledger._reading == 1


def test_no_more_pull_from_a_reader_than_a_node_serves():
    ledger = cluster(PULLS_PER_NODE + 2)
    for number in range(PULLS_PER_NODE + 2):
        ledger.want(f"w{number}", "f", background=False)
    assert len(ledger.shares("w0", "f")) == PULLS_PER_NODE
    assert ledger.ended("w1", "f", is_here=True) == [
        (f"w{PULLS_PER_NODE + 1}", ("pull", "f", "w1"))
    ]


def test_when_the_reader_fails_the_next_one_reads():
    ledger = cluster(2)
    ledger.want("w0", "f", background=False)
    ledger.want("w1", "f", background=False)
    assert ledger.ended("w0", "f", is_here=False) == [("w1", ("fetch", "f", None))]


def test_when_the_reader_leaves_the_next_one_reads():
    ledger = cluster(2)
    ledger.want("w0", "f", background=False)
    ledger.want("w1", "f", background=False)
    assert ledger.leave("w0") == [("w1", ("fetch", "f", None))]


def test_a_node_holds_its_files_for_as_long_as_one_of_its_workers_lives():
    ledger = cluster(3, per_node=2)
    ledger.want("w0", "f", background=False)
    ledger.ended("w0", "f", is_here=True)
    assert ledger.nearest([("f", 1)]) == {"w0", "w1"}
    ledger.leave("w0")
    assert ledger.want("w2", "f", background=False) == [("w2", ("pull", "f", "w1"))]
    ledger.leave("w1")
    assert ledger.want("w2", "f", background=False, lost="w1") == [("w2", ("fetch", "f", None))]


def test_a_holder_that_does_not_give_the_file_is_not_asked_again():
    ledger = cluster(3)
    for worker in ("w0", "w1"):
        ledger.want(worker, "f", background=False)
        ledger.ended(worker, "f", is_here=True)
    assert ledger.want("w2", "f", background=False) == [("w2", ("pull", "f", "w0"))]
    again = ledger.want("w2", "f", background=False, lost="w0")
    assert again == [("w2", ("pull", "f", "w1"))]
    assert ledger.want("w2", "f", background=False, lost="w1") == [("w2", ("fetch", "f", None))]


def test_reads_from_the_archive_are_bounded_and_the_foreground_goes_first():
    ledger = cluster(4, archive_reads=1)
    assert ledger.want("w0", "a", background=True) == [("w0", ("fetch", "a", None))]
    assert ledger.want("w1", "b", background=True) == [("w1", ("wait", "b", None))]
    assert ledger.want("w2", "c", background=False) == [("w2", ("wait", "c", None))]
    assert ledger.ended("w0", "a", is_here=True) == [("w2", ("fetch", "c", None))]
    assert ledger.leave("w2") == [("w1", ("fetch", "b", None))]


def test_a_worker_that_asks_again_in_the_foreground_goes_first():
    ledger = cluster(3, archive_reads=1)
    ledger.want("w0", "a", background=True)
    ledger.want("w1", "b", background=True)
    ledger.want("w2", "c", background=True)
    assert ledger.want("w2", "c", background=False) == [("w2", ("wait", "c", None))]
    assert ledger.ended("w0", "a", is_here=True) == [("w2", ("fetch", "c", None))]


def test_asking_again_gets_the_same_answer():
    ledger = cluster(2)
    for _ in range(2):
        assert ledger.want("w0", "f", background=False) == [("w0", ("fetch", "f", None))]
    for _ in range(2):
        assert ledger.want("w1", "f", background=False) == [("w1", ("wait", "f", None))]
    ledger.ended("w0", "f", is_here=True)
    assert ledger.want("w1", "f", background=False) == [("w1", ("pull", "f", "w0"))]
    assert ledger.ended("w1", "f", is_here=True) == []


def test_pulls_from_a_node_are_bounded_and_what_waits_for_it_goes_on():
    ledger = cluster(PULLS_PER_NODE + 2)
    for file in "ab":
        ledger.want("w0", file, background=False)
        ledger.ended("w0", file, is_here=True)
    for number in range(1, PULLS_PER_NODE + 1):
        assert ledger.want(f"w{number}", "a", background=False)[0][1][0] == "pull"
    last = f"w{PULLS_PER_NODE + 1}"
    assert ledger.want(last, "b", background=False) == [(last, ("wait", "b", None))]
    assert ledger.ended("w1", "a", is_here=True) == [(last, ("pull", "b", "w0"))]


def test_a_pull_that_fails_makes_way_for_what_waits_for_its_node():
    ledger = cluster(PULLS_PER_NODE + 2)
    for file in "ab":
        ledger.ended("w0", file, is_here=True)
    for number in range(1, PULLS_PER_NODE + 1):
        ledger.want(f"w{number}", "a", background=False)
    last = f"w{PULLS_PER_NODE + 1}"
    ledger.want(last, "b", background=False)
    assert (last, ("pull", "b", "w0")) in ledger.want("w1", "a", background=False, lost="w0")


def test_when_a_file_has_come_only_what_may_be_pulled_then_is_looked_at(monkeypatch):
    looked_at = []
    go_on = Ledger._go_on
    monkeypatch.setattr(
        Ledger, "_go_on", lambda self, file: looked_at.append(file) or go_on(self, file)
    )
    files = range(1000)
    ledger = cluster(3)
    for file in files:
        ledger.ended("w0", file, is_here=True)
        ledger.want("w1", file, background=True)
    ended = 0
    while ledger.want("w1", ended, background=True) == [("w1", ("pull", ended, "w0"))]:
        ended += 1
    assert ended == PULLS_PER_NODE
    looked_at.clear()
    assert ledger.ended("w1", 0, is_here=True) == [("w1", ("pull", PULLS_PER_NODE, "w0"))]
    assert len(looked_at) < 5


def test_the_nearest_workers_are_those_whose_node_holds_the_most_bytes():
    ledger = cluster(4, per_node=2)
    assert ledger.nearest([("a", 10), ("b", 20)]) == set()
    ledger.ended("w0", "a", is_here=True)
    assert ledger.nearest([("a", 10), ("b", 20)]) == {"w0", "w1"}
    ledger.ended("w2", "b", is_here=True)
    assert ledger.nearest([("a", 10), ("b", 20)]) == {"w2", "w3"}


def test_some_workers_of_each_node_are_chosen():
    ledger = cluster(5, per_node=3)
    assert ledger.some_of_each_node(2) == ["w0", "w1", "w3", "w4"]


def test_files_that_nobody_brings_are_forgotten_beyond_a_bound(monkeypatch):
    monkeypatch.setattr(ledger_module, "REMEMBERED", 10)
    ledger = cluster(1, archive_reads=100)
    ledger.want("w0", "takes long", background=False)
    for number in range(50):
        ledger.want("w0", number, background=False)
        ledger.ended("w0", number, is_here=True)
    assert len(ledger._files) <= 11
    assert ledger.want("w0", "takes long", background=False) == [
        ("w0", ("fetch", "takes long", None))
    ]


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_nobody_is_forgotten_and_no_file_has_two_readers(seed):
    dice = random.Random(seed)
    ledger = cluster(8, archive_reads=3, per_node=2)
    wanted: set[tuple[str, str]] = set()
    doing: dict[tuple[str, str], str] = {}
    gone: set[str] = set()

    def hear(words):
        for worker, (what, file, _) in words:
            if (worker, file) in wanted and worker not in gone and what != "wait":
                doing[worker, file] = what

    def end(one, is_here):
        doing.pop(one, None)
        wanted.discard(one)
        hear(ledger.ended(*one, is_here=is_here))

    for _ in range(400):
        worker, file = f"w{dice.randrange(8)}", f"f{dice.randrange(6)}"
        happens = dice.random()
        if worker in gone:
            gone.discard(worker)
            ledger.join(worker, f"n{int(worker[1:]) // 2}")
        elif happens < 0.5:
            lost = f"w{dice.randrange(8)}" if doing.get((worker, file)) == "pull" else None
            if lost:
                del doing[worker, file]
                if doing.get((lost, file)) == "fetch":  # it goes on, but nobody counts on it
                    del doing[lost, file]
                    wanted.discard((lost, file))
            wanted.add((worker, file))
            hear(ledger.want(worker, file, background=dice.random() < 0.5, lost=lost))
        elif happens < 0.9 and wanted:
            end(dice.choice(sorted(wanted)), dice.random() < 0.7)
        elif happens < 0.92:
            hear(ledger.shares(worker, file))
        elif happens < 0.95:
            gone.add(worker)
            for one in [one for one in wanted if one[0] == worker]:
                wanted.discard(one)
                doing.pop(one, None)
            hear(ledger.leave(worker))
        fetched = [file for (_, file), what in doing.items() if what == "fetch"]
        assert len(fetched) == len(set(fetched)) <= 3
        assert ledger._reading == len(fetched)
    while doing:
        end(sorted(doing)[0], True)
    assert wanted == set()
