"""SFTP servers that misbehave, for sshd to run as its subsystem; see `ScriptedSshd`.

``hostile_server.py lie WHAT [NAMES]`` serves a directory of its own making and breaks the protocol
or the reader's trust in the way that WHAT names. ``hostile_server.py relay SERVER OPTIONS`` stands
before OpenSSH's sftp-server and takes something away from it. Runs from this file alone.
"""

from __future__ import annotations

import json
import os
import re
import select
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import BinaryIO

INIT, VERSION, OPEN, CLOSE, READ, WRITE, LSTAT, FSTAT = 1, 2, 3, 4, 5, 6, 7, 8
OPENDIR, READDIR, REMOVE, MKDIR, RMDIR, REALPATH, STAT, RENAME = 11, 12, 13, 14, 15, 16, 17, 18
SETSTAT = 9
STATUS, HANDLE, DATA, NAME, ATTRS, EXTENDED, EXTENDED_REPLY = 101, 102, 103, 104, 105, 200, 201
OK, EOF, NO_SUCH_FILE, DENIED, FAILURE = 0, 1, 2, 3, 4

FILE = bytes(range(256)) * 400  # what every file of a liar holds
DIRECTORY_MODE, FILE_MODE = 0o040755, 0o100644
WITH_PATHS = {OPEN, LSTAT, SETSTAT, OPENDIR, REMOVE, MKDIR, RMDIR, STAT, RENAME, EXTENDED}
HOLD_S = 60.0  # at the most
TARDY_S = 0.05
FEW_BYTES = 100  # of a packet
NAMES = {
    READ: "read",
    WRITE: "write",
    SETSTAT: "setstat",
    CLOSE: "close",
    OPENDIR: "opendir",
    REMOVE: "remove",
    MKDIR: "mkdir",
    RENAME: "rename",
}
# What "limits WHAT" answers to limits@openssh.com.
LIMITS = {
    "limits cut": b"\xff" * 5,
    "limits tiny": struct.pack(">QQQQ", 0, 1, 1, 1),
    "limits huge": b"\xff" * 32,
}


def main(arguments: list[str]) -> None:
    """Serve on standard input and output."""
    if arguments[0] == "lie":
        Liar(arguments[1], json.loads(arguments[2]) if len(arguments) > 2 else []).serve()
    else:
        Middleman(arguments[1], json.loads(arguments[2])).serve()


def string(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def packet(kind: int, body: bytes) -> bytes:
    return struct.pack(">IB", len(body) + 1, kind) + body


def attributes(size: int, mode: int, mtime: int = 1_500_000_000) -> bytes:
    return struct.pack(">IQIII", 0x0D, size, mode, mtime, mtime)


def packets(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    while len(head := stream.read(5)) == 5:
        length, kind = struct.unpack(">IB", head)
        yield kind, stream.read(length - 1)


def take_string(body: bytes, at: int = 0) -> bytes:
    (length,) = struct.unpack_from(">I", body, at)
    return body[at + 4 : at + 4 + length]


class Liar:
    """A server of one directory, ``/lies``, that holds ``file.bin`` or the given names."""

    def __init__(self, what: str, names: list[str]) -> None:
        self.what = what
        self.names = [name.encode("utf-8", "surrogateescape") for name in names] or [b"file.bin"]
        self.listed = False
        self.batches: dict[bytes, int] = {}

    def serve(self) -> None:
        if self.what == "mute":
            time.sleep(120)
        if self.what == "banner":
            self.send(b"Welcome to the cluster!\r\nYou have new mail.\r\n")
        for kind, body in packets(sys.stdin.buffer):
            if kind == INIT:
                version = 2 if self.what == "old" else 3
                offered = b"limits@openssh.com", b"1"
                pairs = b"".join(map(string, offered)) if self.what in LIMITS else b""
                self.send(packet(VERSION, struct.pack(">I", version) + pairs))
            else:
                request_id, body = struct.unpack(">I", body[:4])[0], body[4:]
                self.misbehave(kind, request_id, body)

    def misbehave(self, kind: int, request_id: int, body: bytes) -> None:
        answer_kind, answer = self.answer(kind, body)
        whole = packet(answer_kind, struct.pack(">I", request_id) + answer)
        match self.what:
            case "silent":
                return
            case "deaf":
                time.sleep(120)
            case "quit":
                os._exit(1)
            case "half":
                self.send(whole[: len(whole) // 2])
                os._exit(0)
            case "garbage":
                whole = bytes(range(256)) * 2048
            case "huge":
                whole = struct.pack(">IBI", 0x7FFFFFFF, answer_kind, request_id) + b"x" * 100_000
            case "tiny":
                whole = bytes(64)
            case "wrong id":
                whole = packet(answer_kind, struct.pack(">I", request_id + 7777) + answer)
            case "twice":
                whole *= 2
            case "wrong type":
                whole = packet(DATA, struct.pack(">I", request_id) + string(b"surprise"))
            case "unknown type":
                whole = packet(77, struct.pack(">I", request_id) + answer)
            case "cut" if answer_kind in (ATTRS, NAME, HANDLE):
                cut = struct.pack(">II", request_id, 0xFFFFFFFF)
                whole = packet(answer_kind, cut)
            case "chatter":
                os.write(2, b"blah \x1b[31m\xff" * 20_000)
        self.send(whole)

    def answer(self, kind: int, body: bytes) -> tuple[int, bytes]:
        if kind == REALPATH:
            return NAME, struct.pack(">I", 1) + string(take_string(body)) * 2 + attributes(0, 0)
        if kind in (STAT, LSTAT, FSTAT):
            return self.attributes(take_string(body), kind)
        if kind in (OPEN, OPENDIR):
            self.listed = False
            handle = b"handle %d" % len(self.batches)
            if self.what == "long handle":
                handle = handle.ljust(200_000)
            self.batches[handle] = 0
            return HANDLE, string(handle)
        if kind == EXTENDED and self.what in LIMITS:
            return EXTENDED_REPLY, LIMITS[self.what]
        if kind == READDIR:
            return self.listing(take_string(body))
        if kind == READ:
            offset, length = struct.unpack_from(">QI", body, 4 + len(take_string(body)))
            return self.data(offset, length)
        return self.status(OK if kind == CLOSE else FAILURE)

    def attributes(self, path: bytes, kind: int) -> tuple[int, bytes]:
        if kind != FSTAT and not path.endswith(b".bin"):
            return ATTRS, attributes(0, DIRECTORY_MODE)
        size = 2**63 + 5 if self.what == "giant" or b"giant" in path else len(FILE)
        size = 2**26 if self.what == "long handle" else size
        return ATTRS, attributes(size, FILE_MODE)

    def listing(self, handle: bytes) -> tuple[int, bytes]:
        if self.what.startswith("many "):
            return self.part_of_many(handle, int(self.what.split()[1]))
        if self.what == "the same":
            return self.names_reply([b"a.bin", b"b.bin"])
        if self.what == "long names":
            self.batches[handle] += 1
            return self.names_reply([b"%d" % self.batches[handle] + b"x" * 120_000])
        if self.what == "slow":
            time.sleep(0.1)
            self.batches[handle] += 1
            return self.names_reply([b"%d.bin" % self.batches[handle]])
        if self.listed:
            return self.status(EOF)
        self.listed = True
        count = 0xFFFFFFFF if self.what == "too many names" else len(self.names)
        kind, body = self.names_reply(self.names)
        return kind, struct.pack(">I", count) + body[4:]

    def names_reply(self, names: list[bytes]) -> tuple[int, bytes]:
        """Return names as files; the word "giant" in one makes its size absurd."""
        entries = [
            string(n) * 2
            + attributes(2**63 + 5 if b"giant" in n else len(FILE), FILE_MODE, 0xFFFFFFFF)
            for n in names
        ]
        return NAME, struct.pack(">I", len(names)) + b"".join(entries)

    def part_of_many(self, handle: bytes, total: int) -> tuple[int, bytes]:
        """Return the next thousand of so many entries."""
        done = 1000 * self.batches[handle]
        if done >= total:
            return self.status(EOF)
        self.batches[handle] += 1
        rest = attributes(1, FILE_MODE)
        head = struct.pack(">I", 16)
        entry = b"".join([head, b"%016d", bytes(4), rest.replace(b"%", b"%%")])
        numbers = range(done, min(total, done + 1000))
        entries = b"".join([entry % number for number in numbers])
        return NAME, struct.pack(">I", len(numbers)) + entries

    def data(self, offset: int, length: int) -> tuple[int, bytes]:
        match self.what:
            case "too much":
                return DATA, string(b"x" * (length + 1))
            case "lying length":
                return DATA, struct.pack(">I", length) + b"x"
            case "nothing":
                return DATA, string(b"")
            case "short":
                length = min(length, 1000)
            case "early end" if offset + length >= len(FILE):
                return self.status(EOF)
        data = FILE[offset : offset + length]
        return (DATA, string(data)) if data else self.status(EOF)

    def status(self, code: int) -> tuple[int, bytes]:
        text = b"" if self.what == "no text" else string(b"so it is") + string(b"en")
        return STATUS, struct.pack(">I", code) + text

    def send(self, data: bytes) -> None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


class Middleman:
    """Stands between a client and OpenSSH's sftp-server.

    Options
    -------
    extensions : bool
        False: the server offers none.
    versions : bool
        It says that it knows newer versions of the protocol.
    read_bytes : int
        Reads and writes of the server, at the most: longer reads are answered short.
    end_after : str, mark : str
        Ends the connection instead of sending the answer to the first request of this kind
        (``rename``, ``create``, ``remove``, ``mkdir``, ``opendir``); the file ``mark`` is then
        made, and keeps it from doing so again.
    hold : str, mark : str, times : int
        Keeps the first requests of this kind, one if not told otherwise, until somebody opens the
        pipe that is then made, ``mark`` and a number, for writing. When it is answered, there is a
        file of the pipe's name and ``.done``.
    fold : bool
        Keeps names in lower case, as servers of some systems keep theirs in one normal form.
    refuse : list of str
        Kinds of requests that are answered with "permission denied", or with ``refusal``, a code;
        ``continue`` is to open a file that is there for writing, ``write elsewhere`` to write
        anywhere but behind what has been written through the same handle.
    tardy : list of str
        Kinds of requests (``read``, ``write``) that are done when nothing else has come for a
        moment: those that come after them are done before, as asynchronous servers may.
    spoil : str, mark : str
        Changes a byte of the first DATA (``read``) or WRITE (``write``) of the first session, or
        says of that WRITE that it is done, and does not do it (``lose``). A WRITE of a few bytes
        is left alone.
    """

    def __init__(self, server: str, options: dict) -> None:
        self.options = options
        self.child = subprocess.Popen([server], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.asked: dict[bytes, str] = {}
        self.ends: dict[bytes, int] = {}  # by handle, where what has been written ends
        self.held: dict[bytes, str] = {}
        self.sending = threading.Lock()
        self.passing = threading.Lock()
        self.tardy: list[bytes] = []
        self.quiet = threading.Timer(0, self.catch_up)

    def serve(self) -> None:
        answers = threading.Thread(target=self.answers, daemon=True)
        answers.start()
        assert self.child.stdin is not None
        for kind, body in packets(sys.stdin.buffer):
            if kind != INIT:
                self.asked[body[:4]] = self.name(kind, body)
            spoils = self.options.get("spoil") if kind == WRITE and len(body) > FEW_BYTES else ""
            if spoils == "write" and self.first():
                body = body[:-1] + bytes([body[-1] ^ 1])
            if kind != INIT and self.asked[body[:4]] == self.options.get("hold"):
                self.hold(body[:4])
            if self.asked.get(body[:4]) in self.options.get("refuse", ()):
                del self.asked[body[:4]]
                code = self.options.get("refusal", DENIED)
                self.send(STATUS, body[:4] + struct.pack(">I", code) + string(b"no") * 2)
                continue
            if spoils == "lose" and self.first():
                del self.asked[body[:4]]
                self.send(STATUS, body[:4] + struct.pack(">I", OK) + string(b"") * 2)
                continue
            if kind in WITH_PATHS and self.options.get("fold"):
                body = body[:4] + re.sub(rb"/[^\0]*", lambda path: path[0].lower(), body[4:])
            limit = self.options.get("read_bytes")
            if kind == READ and limit:
                (length,) = struct.unpack(">I", body[-4:])
                body = body[:-4] + struct.pack(">I", min(length, limit))
            self.quiet.cancel()
            with self.passing:
                if self.asked.get(body[:4]) in self.options.get("tardy", ()):
                    self.tardy.append(packet(kind, body))
                else:
                    self.child.stdin.write(packet(kind, body))
                    self.child.stdin.flush()
            if self.tardy:
                self.quiet = threading.Timer(TARDY_S, self.catch_up)
                self.quiet.start()
        while self.held:  # at the end of its input the server gives no answer any more
            time.sleep(0.01)
        self.child.stdin.close()
        answers.join()
        os._exit(0)

    def catch_up(self) -> None:
        assert self.child.stdin is not None
        with self.passing:
            self.child.stdin.write(b"".join(self.tardy))
            self.child.stdin.flush()
            self.tardy.clear()

    def answers(self) -> None:
        assert self.child.stdout is not None
        for kind, body in packets(self.child.stdout):
            if kind == VERSION and self.options.get("extensions") is False:
                body = body[:4]
            if kind == VERSION and self.options.get("versions"):
                body += string(b"versions") + string(b"3,6")
            if self.asked.pop(body[:4], "") == self.options.get("end_after") and self.first():
                self.child.kill()
                os._exit(1)
            if pipe := self.held.pop(body[:4], ""):
                open(f"{pipe}.done", "x").close()
            if kind == DATA and self.options.get("spoil") == "read" and self.first():
                body = body[:-1] + bytes([body[-1] ^ 1])
            self.send(kind, body)
        os._exit(0)

    def send(self, kind: int, body: bytes) -> None:
        with self.sending:
            sys.stdout.buffer.write(packet(kind, body))
            sys.stdout.buffer.flush()

    def hold(self, request_id: bytes) -> None:
        for number in range(self.options.get("times", 1)):
            pipe = f"{self.options['mark']}{number}"
            try:
                os.mkfifo(pipe)
            except FileExistsError:
                continue
            select.select([os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)], [], [], HOLD_S)
            self.held[request_id] = pipe
            return

    def first(self) -> bool:
        try:
            os.close(os.open(self.options["mark"], os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True

    def name(self, kind: int, body: bytes) -> str:
        if kind == EXTENDED:
            return "rename" if take_string(body, 4).startswith(b"posix-rename") else "extended"
        if kind == OPEN:
            (flags,) = struct.unpack_from(">I", body, 8 + len(take_string(body, 4)))
            if flags & 0x08:
                return "create" if flags & 0x10 else "create untruncated"
            return "continue" if flags & 0x02 else "open"
        if "write elsewhere" in self.options.get("refuse", ()) and self.is_elsewhere(kind, body):
            return "write elsewhere"
        return NAMES.get(kind, "other")

    def is_elsewhere(self, kind: int, body: bytes) -> bool:
        if kind not in (WRITE, CLOSE):
            return False
        handle = take_string(body, 4)
        end = self.ends.pop(handle, 0)
        if kind == WRITE:
            at = 8 + len(handle)
            (offset,) = struct.unpack_from(">Q", body, at)
            self.ends[handle] = end
            if offset != end:
                return True
            self.ends[handle] += len(take_string(body, at + 8))
        return False


if __name__ == "__main__":
    main(sys.argv[1:])
