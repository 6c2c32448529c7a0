"""How many sessions are worth having: decisions from figures, without any server."""

from __future__ import annotations

import pytest

from pyremotedata_core.growth import CHANNEL_BYTES, more_sessions, windows_worth_having

FIGURES = {
    "sessions": 1,
    "rate_bytes": 100e6,
    "rate_files": 0.0,
    "rtt_s": 0.02,
    "operations": 64,
    "left_s": 60.0,
    "connect_s": 0.4,
    "last_gain": None,
}


def test_on_a_short_line_one_window_is_enough_for_any_work():
    assert windows_worth_having(10**12, 0.0) == 1
    assert windows_worth_having(0, 0.2) == 1


def test_more_work_on_a_long_line_is_worth_more_windows():
    windows = [windows_worth_having(n * CHANNEL_BYTES, 0.02) for n in (0, 10, 20, 50, 500)]
    assert windows == sorted(windows)
    assert windows[0] == 1 < windows[-1]


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({}, True),  # a full window each round trip: the line waits for answers
        ({"left_s": 0.5}, False),  # done before a login would be
        ({"rtt_s": 0.0001}, True),  # a large file: try whether a second cipher process helps
        ({"rtt_s": 0.0001, "last_gain": 1.02}, False),  # it did not
        ({"rtt_s": 0.0001, "rate_bytes": 20e6, "rate_files": 1000.0}, False),  # small files
        ({"rate_bytes": 1e6, "rate_files": 2000.0}, True),  # all handles wait for answers
    ],
)
def test_another_session_is_opened_while_it_pays(change, wanted):
    assert (more_sessions(**{**FIGURES, **change}) > 0) == wanted
