"""SFTP version 3 on the wire: numbers, packing, unpacking.

Source: draft-ietf-secsh-filexfer-02, and OpenSSH's PROTOCOL file for the extensions.
"""

from __future__ import annotations

import struct

from ..model import Entry, Stat, kind_of, sftp_time

INIT, VERSION, OPEN, CLOSE, READ, WRITE, LSTAT, FSTAT, SETSTAT = 1, 2, 3, 4, 5, 6, 7, 8, 9
OPENDIR, READDIR, REMOVE, MKDIR, RMDIR, REALPATH, STAT, RENAME = 11, 12, 13, 14, 15, 16, 17, 18
STATUS, HANDLE, DATA, NAME, ATTRS = 101, 102, 103, 104, 105
EXTENDED, EXTENDED_REPLY = 200, 201

OK, EOF, NO_SUCH_FILE, DENIED, FAILURE, UNSUPPORTED = 0, 1, 2, 3, 4, 8

O_READ, O_WRITE, O_CREAT, O_TRUNC, O_EXCL = 0x01, 0x02, 0x08, 0x10, 0x20

_SIZE, _UIDGID, _MODE, _TIMES, _MORE = 0x01, 0x02, 0x04, 0x08, 0x80000000

_u32 = struct.Struct(">I")
_u64 = struct.Struct(">Q")
_times = struct.Struct(">II")
_USUAL = _SIZE | _UIDGID | _MODE | _TIMES
_usual = struct.Struct(">IQIIIII")
head = struct.Struct(">IBI")  # length, type, request id

NO_ATTRS = _u32.pack(0)
MAX_HANDLE = 256  # bytes, says the protocol; every request repeats them


class Garbage(ValueError):
    """The server sent something that is not SFTP."""


def string(data: bytes) -> bytes:
    """Pack a string."""
    return _u32.pack(len(data)) + data


def u32(number: int) -> bytes:
    """Pack an unsigned 32-bit number."""
    return _u32.pack(number)


def u64(number: int) -> bytes:
    """Pack an unsigned 64-bit number."""
    return _u64.pack(number)


def permissions(mode: int) -> bytes:
    """Pack attributes that set the permission bits, and nothing else."""
    return _u32.pack(_MODE) + _u32.pack(mode)


def times(mtime: int) -> bytes:
    """Pack attributes that set access and modification time, in seconds, and nothing else."""
    seconds = sftp_time(mtime)
    return _u32.pack(_TIMES) + _times.pack(seconds, seconds)


def read_string(body: memoryview, at: int) -> tuple[bytes, int]:
    """Unpack a string; return it and the position after it."""
    try:
        (length,) = _u32.unpack_from(body, at)
    except struct.error:
        raise Garbage("a string is cut short") from None
    end = at + 4 + length
    if end > len(body):
        raise Garbage("a string is cut short")
    return bytes(body[at + 4 : end]), end


def read_u32(body: memoryview, at: int = 0) -> int:
    """Unpack an unsigned 32-bit number."""
    try:
        return _u32.unpack_from(body, at)[0]
    except struct.error:
        raise Garbage("a number is cut short") from None


def read_handle(body: memoryview) -> bytes:
    """Unpack the body of a HANDLE reply; return the handle packed, as requests name it."""
    handle, _ = read_string(body, 0)
    if len(handle) > MAX_HANDLE:
        raise Garbage(f"a handle of {len(handle)} bytes")
    return string(handle)


def read_status(body: memoryview) -> tuple[int, str]:
    """Unpack the body of a STATUS reply: code and text."""
    code = read_u32(body)
    if len(body) < 8:
        return code, ""  # some old servers send no text
    text, _ = read_string(body, 4)
    return code, text.decode("utf-8", "replace")


def read_data(body: memoryview, asked_bytes: int) -> memoryview:
    """Unpack the body of a DATA reply to a request for so many bytes."""
    length = read_u32(body)
    if length > asked_bytes or length != len(body) - 4:
        raise Garbage(f"{length} bytes of data where {asked_bytes} were asked for")
    return body[4:]


def read_attrs(body: memoryview, at: int = 0) -> tuple[Stat, int]:
    """Unpack attributes; return them and the position after them."""
    try:
        (flags,) = _u32.unpack_from(body, at)
        at += 4
        size = mtime = 0
        mode = None
        if flags & _SIZE:
            (size,) = _u64.unpack_from(body, at)
            at += 8
        if flags & _UIDGID:
            at += 8
        if flags & _MODE:
            (mode,) = _u32.unpack_from(body, at)
            at += 4
        if flags & _TIMES:
            _atime, mtime = _times.unpack_from(body, at)
            at += 8
        if flags & _MORE:
            (count,) = _u32.unpack_from(body, at)
            at += 4
            for _ in range(count):
                _, at = read_string(body, at)
                _, at = read_string(body, at)
    except struct.error:
        raise Garbage("attributes are cut short") from None
    if at > len(body):
        raise Garbage("attributes are cut short")
    permissions = None if mode is None else mode & 0o7777
    return Stat(kind_of(mode), size, mtime, permissions), at


def _usual_attrs(body: memoryview, at: int) -> tuple[Stat, int] | None:
    """Unpack attributes as most servers send them: faster, for long listings."""
    end = at + _usual.size
    if end > len(body):
        return None
    flags, size, _uid, _gid, mode, _atime, mtime = _usual.unpack_from(body, at)
    return (Stat(kind_of(mode), size, mtime, mode & 0o7777), end) if flags == _USUAL else None


def read_names(body: memoryview) -> list[Entry]:
    """Unpack the body of a NAME reply; names undecodable as UTF-8 keep surrogate escapes."""
    count = read_u32(body)
    at = 4
    entries = []
    for _ in range(count):
        name, at = read_string(body, at)
        at += 4 + read_u32(body, at)  # the long form is for people
        stat, at = _usual_attrs(body, at) or read_attrs(body, at)
        entries.append(Entry(name.decode("utf-8", "surrogateescape"), stat))
    return entries


def read_extensions(body: memoryview) -> dict[str, str]:
    """Unpack the extension pairs that follow the version number."""
    at, found = 0, {}
    while at < len(body):
        name, at = read_string(body, at)
        value, at = read_string(body, at)
        found[name.decode("utf-8", "replace")] = value.decode("utf-8", "replace")
    return found


def read_room(body: memoryview) -> int | None:
    """Unpack a statvfs@openssh.com reply: bytes free to a user, None where that is not known."""
    try:
        _, unit_bytes, blocks, _, available = struct.unpack_from(">5Q", body)
    except struct.error:
        raise Garbage("what the file system has is cut short") from None
    return unit_bytes * available if blocks else None


def read_limits(body: memoryview) -> tuple[int, int, int, int]:
    """Unpack a limits@openssh.com reply: packet, read and write bytes, open handles; 0 unknown."""
    try:
        return struct.unpack_from(">QQQQ", body)
    except struct.error:
        raise Garbage("the limits are cut short") from None
