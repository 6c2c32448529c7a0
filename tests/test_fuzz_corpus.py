"""The kept cases of the fuzzers, played again; see ``tests/fuzz``."""

from __future__ import annotations

import struct

import pytest

from pyremotedata_core.transports import wire

from .fuzz import sftp
from .fuzz.corpus import HARNESSES, cases_of, harness
from .fuzz.script import piece


@pytest.mark.parametrize("name", HARNESSES)
def test_whatever_was_once_said_by_a_fuzzer_does_no_harm(name):
    cases, run = cases_of(name), harness(name)
    assert len(cases) > 20
    for case in cases:
        run(case)


def answer(kind: int, body: bytes) -> bytes:
    return bytes([sftp.ANSWER, sftp.TYPES.index(kind), 0]) + piece(body)


GREETING = answer(wire.VERSION, wire.string(b"limits@openssh.com") + wire.string(b"1"))
ONE_BYTE_EACH = answer(wire.EXTENDED_REPLY, struct.pack(">QQQQ", 0, 1, 1, 0))
UPLOADS, DOWNLOADS = bytes([sftp.ASK, 5]) * 10, bytes([sftp.ASK, 2]) * 10


@pytest.mark.parametrize("work", [UPLOADS, DOWNLOADS])
def test_a_server_that_claims_to_take_a_byte_at_a_time_is_not_asked_for_each(work):
    handles = answer(wire.HANDLE, wire.string(b"x")) * 10
    sftp.run(b"\xff" + GREETING + ONE_BYTE_EACH + work + handles)
