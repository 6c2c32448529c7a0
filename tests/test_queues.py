"""In which order operations reach the sessions, and what is known of those that wait."""

from __future__ import annotations

from pyremotedata_core.queues import SMALL_AHEAD, Queues
from pyremotedata_core.transports.base import SMALL_BYTES, Operation


class Taker:
    """A session with room for so many operations."""

    def __init__(self, room: int = 100) -> None:
        self.room = room
        self.taken: list[str] = []

    def choose(self, _operation):
        return self if len(self.taken) < self.room else None

    def submit(self, operation) -> None:
        self.taken.append(operation.name)


def make(name: str, load_bytes: int = 0) -> Operation:
    return Operation(name, (), lambda *_: None, load_bytes)


def test_questions_go_before_small_files_before_large_ones_before_what_may_come_later():
    queues, taker = Queues(), Taker()
    later, soon = make("later", 10), make("soon", 10)
    queues.append(later, background=True)
    queues.append(soon, background=True)
    queues.append(make("large file", SMALL_BYTES + 1))
    queues.append(make("file", 100))
    queues.append(make("question"))
    queues.put_back(make("file again", 100))
    queues.promote(soon)
    queues.hand_out(taker.choose)
    assert taker.taken == ["question", "file again", "file", "soon", "large file", "later"]


def test_large_transfers_have_their_turns_beside_small_ones_without_end():
    queues, taker = Queues(), Taker(0)
    queues.append(make("large", SMALL_BYTES + 1))
    queues.append(make("large", SMALL_BYTES + 1))
    for _ in range(4 * SMALL_AHEAD):  # each takes the place of one that has ended
        queues.append(make("small", SMALL_BYTES))
        taker.room += 1
        queues.hand_out(taker.choose)
    assert taker.taken.index("large") == SMALL_AHEAD
    assert taker.taken.count("large") == 2


def test_the_bytes_that_wait_are_those_of_the_operations_that_wait():
    queues, taker = Queues(), Taker(1)
    given_up = make("given up", 1)
    for operation in (make("first", 1000), make("second", 100), given_up):
        queues.append(operation)
    queues.put_back(make("before", 10))
    assert queues.remove(given_up)
    assert not queues.remove(given_up)
    assert (len(queues), queues.load_bytes) == (3, 1110)
    queues.hand_out(taker.choose)
    assert taker.taken == ["before"]
    assert (len(queues), queues.load_bytes) == (2, 1100)
    assert [operation.name for operation in queues.clear()] == ["first", "second"]
    assert (len(queues), queues.load_bytes) == (0, 0)
