"""Copying a file within a server, which moves no bytes over the line.

Source: ``copy-data`` in OpenSSH's PROTOCOL file, from draft-ietf-secsh-filexfer-extensions-00.
"""

from __future__ import annotations

from ..errors import RemoteChanged, ServerRefused, TransferError
from ..model import Stat
from . import wire
from .base import Source
from .sftp import SftpSession
from .sftp_publish import cannot_create, creation_flags, discard, publish
from .sftp_sequences import Sequence, attrs_of, error_of, expect_ok, is_ok, path_of, url_of

COPY_DATA = "copy-data"
COPY_BYTES = 64 << 20  # in one request: the server is silent while it copies


def copy(
    session: SftpSession,
    source: str,
    temporary: str,
    path: str,
    overwrite: bool,
    *,
    again: bool = False,
) -> Sequence:
    """Copy a regular file, and publish it; return its `Stat`, None where the server cannot."""
    if COPY_DATA not in session.extensions:
        return None
    if again and temporary != path:
        yield wire.REMOVE, path_of(temporary)
    looked: Stat = attrs_of(session, source, (yield wire.STAT, path_of(source)))
    if looked.kind != "file":  # to open a pipe would wait for a writer
        kind = "a directory" if looked.kind == "directory" else "not a regular file"
        raise ServerRefused(f"is {kind}; a file was meant", url_of(session, source))
    opened = yield wire.OPEN, path_of(source) + wire.u32(wire.O_READ) + wire.NO_ATTRS
    if opened[0] != wire.HANDLE:
        raise error_of(session, source, opened)
    handles = [wire.read_handle(opened[1])]
    try:
        stat = yield from _fill(session, source, temporary, path, overwrite, handles)
    except TransferError as error:
        yield [(wire.CLOSE, handle) for handle in handles]
        if len(handles) > 1:
            yield from discard(temporary, error)
        raise
    *_, closed = yield [(wire.CLOSE, handle) for handle in handles]
    if not is_ok(closed):
        yield from discard(temporary, error_of(session, path, closed))
    told = Source(url_of(session, source), -1, stat.size, stat.mtime)
    return (yield from publish(session, temporary, path, told, overwrite, again=again))


def _fill(
    session: SftpSession,
    source: str,
    temporary: str,
    path: str,
    overwrite: bool,
    handles: list[bytes],
) -> Sequence:
    old = handles[0]
    stat: Stat = attrs_of(session, source, (yield wire.FSTAT, old))
    flags = creation_flags(temporary, path, overwrite)
    made = yield wire.OPEN, path_of(temporary) + wire.u32(flags) + wire.NO_ATTRS
    if made[0] != wire.HANDLE:
        raise cannot_create(error_of(session, path, made))
    handles.append(wire.read_handle(made[1]))
    for offset in range(0, stat.size, COPY_BYTES):
        length = wire.u64(min(COPY_BYTES, stat.size - offset))
        body = wire.string(COPY_DATA.encode()) + old + wire.u64(offset) + length
        answer = yield wire.EXTENDED, body + handles[1] + wire.u64(offset)
        expect_ok(session, path, answer)
    now: Stat = attrs_of(session, source, (yield wire.FSTAT, old))
    if not now.same_content(stat):
        raise RemoteChanged("the file changed while it was copied", url_of(session, source))
    return stat
