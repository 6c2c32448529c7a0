"""What unpacks the bodies of SFTP answers: an answer, or `Garbage`."""

from __future__ import annotations

import contextlib

from pyremotedata_core.transports import wire

READERS = (
    wire.read_names,
    wire.read_attrs,
    wire.read_status,
    wire.read_extensions,
    wire.read_limits,
    wire.read_u32,
    lambda body: wire.read_string(body, 0),
)


def run(data: bytes) -> None:
    """Give the bytes after the first to the reader that the first one names."""
    body = memoryview(data)[1:]
    read = READERS[data[0] % len(READERS)] if data else wire.read_names
    with contextlib.suppress(wire.Garbage):
        read(body)
    with contextlib.suppress(wire.Garbage):
        for entry in wire.read_names(body):
            assert 0 <= entry.stat.size < 2**64
            assert 0 <= entry.stat.mtime < 2**32
