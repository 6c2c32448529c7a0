"""A script of bytes: what a harness reads its decisions from."""

from __future__ import annotations

from collections.abc import Callable, Iterable


class Script:
    """Bytes, taken from the front; beyond their end there are zeros."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def byte(self) -> int:
        """Return the next byte."""
        return (self.take(1) or b"\0")[0]

    def choose(self, choices: list[int]) -> int:
        """Return one of some numbers."""
        return choices[self.byte() % len(choices)]

    def take(self, count: int) -> bytes:
        """Return up to so many bytes."""
        piece = self._data[self._at : self._at + count]
        self._at += count
        return piece

    def piece(self) -> bytes:
        """Return bytes whose length stands before them."""
        return self.take(int.from_bytes(self.take(2), "big"))


def piece(data: bytes) -> bytes:
    """Return bytes as `Script.piece` reads them."""
    return len(data).to_bytes(2, "big") + data


def once(told: list[str], name: str) -> Callable[..., None]:
    """Return what notes an outcome; a second one of the same name is an error."""

    def tell(*_: object) -> None:
        assert name not in told, f"the outcome of {name} is told twice"
        told.append(name)

    return tell


def pack(cases: Iterable[bytes]) -> bytes:
    """Return cases as one file: each after its length, in four bytes."""
    return b"".join(len(case).to_bytes(4, "big") + case for case in cases)


def unpack(data: bytes) -> list[bytes]:
    """Return the cases of a file that `pack` made."""
    cases = []
    while data:
        end = 4 + int.from_bytes(data[:4], "big")
        cases.append(data[4:end])
        data = data[end:]
    return cases
