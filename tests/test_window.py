"""How much is under way on a session: the window follows what the line carries."""

from __future__ import annotations

import pytest

from pyremotedata_core.transports.base import SMALL_BYTES
from pyremotedata_core.transports.window import (
    FIRST_BYTES,
    LEAST_BYTES,
    MOST_BYTES,
    Turns,
    Window,
)

PIECE = 255 * 1024


def move(window: Window, total: int, *, rate: float, answer_s: float) -> None:
    """Move bytes over a line that carries so many per second, to a server that answers so late."""
    now, sent, free_at = 0.0, [], 0.0
    while total > 0:
        while not window.is_full:
            size = window.piece(PIECE)
            free_at = max(free_at, now) + size / rate
            sent.append((size, now, free_at + answer_s))
            window.take(size)
        size, since, now = sent.pop(0)
        window.answered(size, since, now)
        total -= size
    for size, *_ in sent:
        window.used -= size


@pytest.mark.parametrize(
    ("rate", "answer_s", "least", "most"),
    [
        (1e9, 0.0, MOST_BYTES, MOST_BYTES),
        (1e9, 0.3, MOST_BYTES, MOST_BYTES),
        (1e6, 0.02, LEAST_BYTES, 3e6),
        (5e4, 0.02, LEAST_BYTES, FIRST_BYTES),
        (1e9, 2.0, MOST_BYTES, MOST_BYTES),  # the server takes its time, the line does not
    ],
)
def test_a_window_holds_what_the_line_carries_in_about_a_second(rate, answer_s, least, most):
    window = Window()
    move(window, 100 << 20, rate=rate, answer_s=answer_s)
    assert least <= window._size <= most


def test_a_server_that_becomes_slow_does_not_keep_the_window_small():
    window = Window()
    move(window, 100 << 20, rate=1e9, answer_s=0.01)
    move(window, 100 << 20, rate=1e9, answer_s=1.5)
    assert window._size == MOST_BYTES


def test_pieces_are_small_where_little_is_under_way():
    window = Window()
    assert window.piece(PIECE) == PIECE
    move(window, 100 << 20, rate=5e4, answer_s=0.0)
    assert window.piece(PIECE) < PIECE
    assert window.piece(10) == 10


class Sending:
    """A transfer that notes each of its requests."""

    def __init__(self, name: str, size: int, window: Window, sent: list[str]) -> None:
        self.is_small = size <= SMALL_BYTES
        self._name, self._left, self._window, self._sent = name, size, window, sent

    def issue(self) -> bool:
        size = self._window.piece(min(PIECE, self._left))
        self._window.take(size)
        self._left -= size
        self._sent.append(self._name)
        return self._left > 0


def test_small_transfers_go_first_and_the_others_have_their_turns():
    sent: list[str] = []
    window = Window()
    turns = Turns(window)
    turns.append(Sending("large", SMALL_BYTES + 1, window, sent))
    for number in range(10):  # as if there were no end of them
        turns.append(Sending(str(number), SMALL_BYTES // 2, window, sent))
    while turns:
        turns.issue()
    assert [name for name in dict.fromkeys(sent) if name != "large"] == list("0123456789")
    assert sent[0] == "0"
    assert 0 < sent.index("large") < sent.index("4")
