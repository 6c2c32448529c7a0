"""How many sessions are worth having: decisions from figures, without any server."""

from __future__ import annotations

import os
import time

import pytest

from pyremotedata_core.growth import CHANNEL_BYTES, Processors, more_sessions, windows_worth_having

FIGURES = {
    "sessions": 1,
    "rate_bytes": 100e6,
    "rate_files": 0.0,
    "rtt_s": 0.02,
    "operations": 64,
    "left_s": 60.0,
    "connect_s": 0.4,
    "last_gain": None,
    "idle_processors": 2.0,
}


def test_on_a_short_line_one_window_is_enough_for_any_work():
    assert windows_worth_having(10**12, 0.0) == 1
    assert windows_worth_having(10**12, 0.0005) == 1
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
        ({"rtt_s": 0.0001, "idle_processors": 0.2}, False),  # nothing left to run it on
        ({"rtt_s": 0.0001, "idle_processors": None}, True),
        ({"idle_processors": 0.0}, True),  # waiting for answers takes no processor
        ({"rtt_s": 0.0001, "rate_bytes": 20e6, "rate_files": 1000.0}, False),  # small files
        ({"rate_bytes": 1e6, "rate_files": 2000.0}, True),  # all handles wait for answers
    ],
)
def test_another_session_is_opened_while_it_pays(change, wanted):
    assert (more_sessions(**{**FIGURES, **change}) > 0) == wanted


@pytest.mark.skipif(not os.path.exists("/proc/stat"), reason="the system does not tell")
def test_what_processors_have_left_counts_only_while_there_is_work():
    processors = Processors()
    for worked in (False, True):
        time.sleep(0.1)
        assert processors.idle(worked) == 0.0  # the work may have begun within this time
    time.sleep(0.1)
    after = processors.idle(True)
    assert after is not None
    assert 0.0 <= after <= (os.cpu_count() or 1) + 0.5
