"""Uploads to an SFTP server, from the temporary file to its final name; see `sftp_sequences`."""

from __future__ import annotations

import os

from ..errors import (
    RemoteFileNotFound,
    RemotePermissionDenied,
    ServerRefused,
    TransferError,
    from_oserror,
)
from ..model import Stat
from ..names import aside_name
from ..url import parent_path
from . import wire
from .base import SmallSource, Source
from .sftp import SftpSession
from .sftp_sequences import (
    Answer,
    Request,
    Sequence,
    attrs_of,
    error_of,
    is_ok,
    path_of,
    rename,
    room,
    room_questions,
    url_of,
)


def cannot_create(error: TransferError) -> TransferError:
    """Say of a refusal what it means for a file that was to be made."""
    if isinstance(error, RemoteFileNotFound):
        return RemoteFileNotFound("the directory does not exist", error.url)
    if isinstance(error, RemotePermissionDenied):
        return RemotePermissionDenied(
            "the server does not let you write into that directory", error.url
        )
    if type(error) is TransferError:
        return ServerRefused(
            f"the server cannot make the file ({error.message});"
            " is its disk or your quota full, or the name too long?",
            error.url,
        )
    return error


def local_changed(source: Source) -> TransferError:
    """Say that the local file is not what it was."""
    return TransferError(f"{source.path}: changed while it was uploaded", retryable=True)


def creation_flags(temporary: str, path: str, overwrite: bool) -> int:
    """Return the flags that make a file under its temporary name, or in its final place.

    A new one has nothing to truncate, but some servers know no other way of making a file.
    """
    replaces = temporary == path and overwrite
    return wire.O_WRITE | wire.O_CREAT | wire.O_TRUNC | (0 if replaces else wire.O_EXCL)


def create(
    session: SftpSession,
    temporary: str,
    path: str,
    overwrite: bool,
    size: int,
    *,
    again: bool = False,
) -> Sequence:
    """Make an empty file under a temporary name, where there is room for so many bytes."""
    if again and temporary != path:
        yield wire.REMOVE, path_of(temporary)
    flags = creation_flags(temporary, path, overwrite)
    making = wire.OPEN, path_of(temporary) + wire.u32(flags) + wire.NO_ATTRS
    answer, *answers = yield [making, *room_questions(session, parent_path(path))]
    if answer[0] != wire.HANDLE:
        raise cannot_create(error_of(session, path, answer))
    closed = yield wire.CLOSE, wire.read_handle(answer[1])
    if not is_ok(closed):
        yield from discard(temporary, cannot_create(error_of(session, path, closed)))
    free = room(answers)
    if free is not None and free < size and temporary != path:
        full = (
            f"the server's disk is full: {free} bytes are free, the file has {size};"
            " make room there, or ask who runs it"
        )
        yield from discard(temporary, ServerRefused(full, url_of(session, path)))


def discard(temporary: str, error: TransferError) -> Sequence:
    """Remove a temporary file, then fail with what went wrong before."""
    kind, body = yield wire.REMOVE, path_of(temporary)
    removed = kind == wire.STATUS and wire.read_u32(body) in (wire.OK, wire.NO_SUCH_FILE)
    error.left_temporary = not removed
    raise error


def dating(temporary: str, source: Source | SmallSource) -> list[Request]:
    """Return the requests that set the mode and the times of an upload and ask for its size.

    The times are set alone, last, and after the close: some servers drop them from a request
    that sets more, or when the mode is set, and set their own when a handle closes.
    """
    path = path_of(temporary)
    modes = [] if source.mode is None else [(wire.SETSTAT, path + wire.permissions(source.mode))]
    return [*modes, (wire.SETSTAT, path + wire.times(source.mtime)), (wire.STAT, path)]


def dated_well(answer: Answer) -> bool:
    """Whether times are set, or the server refuses that: the file keeps the time of its upload."""
    kind, body = answer
    refusals = (wire.DENIED, wire.FAILURE, wire.UNSUPPORTED)
    return kind == wire.STATUS and wire.read_u32(body) in (wire.OK, *refusals)


def publish(
    session: SftpSession,
    temporary: str,
    path: str,
    source: Source,
    overwrite: bool,
    *,
    again: bool = False,
    dated: list[Answer] | None = None,
) -> Sequence:
    """Check a complete temporary file, set its mtime, rename it.

    With ``again`` an attempt before may have done any part of it, and its answer was lost.
    ``dated`` are the answers to `dating`, if it has been asked already.
    """
    wanted = Stat("file", source.size, source.mtime)
    direct = temporary == path
    try:
        if again and not direct:
            yield from _put_back(temporary, path)
        *_, times_set, checked = dated or (yield dating(temporary, source))
        if dated and (checked[0] != wire.ATTRS or _size_of(checked) != source.size):
            # Answered out of turn, perhaps: ask once more, now that the file is closed.
            *_, times_set, checked = yield dating(temporary, source)
        if not dated_well(times_set):
            raise error_of(session, path, times_set)
        stat = attrs_of(session, path, checked)
        if stat.size != source.size:
            raise ServerRefused(
                f"the server kept {stat.size} of {source.size} bytes", url_of(session, path)
            )
        _expect_unchanged(source)
        if direct:
            return stat
        if not overwrite:
            answer = yield wire.LSTAT, path_of(path)
            if answer[0] != wire.ATTRS:
                # It replaces nothing that has come meanwhile, on most servers.
                renamed = yield wire.RENAME, path_of(temporary) + path_of(path)
                if is_ok(renamed):
                    return stat
                answer = yield wire.LSTAT, path_of(path)
            if answer[0] == wire.ATTRS:
                there = wire.read_attrs(answer[1])[0]
                if again and there.same_content(wanted):
                    yield wire.REMOVE, path_of(temporary)
                    return there
                raise ServerRefused("exists already", url_of(session, path))
        try:
            yield from rename(session, temporary, path, aside_name(temporary))
        except RemotePermissionDenied as error:
            hint = "if it lets nobody rename, set PYREMOTEDATA_PUBLISH=direct"
            raise RemotePermissionDenied(f"{error.message}; {hint}", error.url) from None
    except TransferError as error:
        if again and not direct:
            left, answer = yield [(wire.LSTAT, path_of(temporary)), (wire.LSTAT, path_of(path))]
            # Nobody else knows the temporary name.
            if left[0] != wire.ATTRS and answer[0] == wire.ATTRS:
                there = wire.read_attrs(answer[1])[0]
                if there.same_content(wanted):
                    return there
        yield from discard(temporary, error)
    return stat


def _expect_unchanged(source: Source) -> None:
    try:
        if source.fd < 0:
            return  # it lies at the server
        now = os.fstat(source.fd)  # an empty file is opened only now
    except OSError as error:
        raise from_oserror(error, source.path) from None
    if (now.st_size, now.st_mtime_ns) != (source.size, source.mtime_ns):
        raise local_changed(source)


def _size_of(answer: Answer) -> int:
    return wire.read_attrs(answer[1])[0].size


def clear_orphan(_session: SftpSession, temporary: str, final: str) -> Sequence:
    """Remove what a killed upload left; put a file back that stood aside without successor."""
    yield wire.REMOVE, path_of(temporary)
    yield from _put_back(temporary, final)


def _put_back(temporary: str, final: str) -> Sequence:
    """Put a file back that stood aside without successor."""
    aside = aside_name(temporary)
    old, new = yield [(wire.LSTAT, path_of(aside)), (wire.LSTAT, path_of(final))]
    if old[0] == wire.ATTRS:
        if new[0] == wire.ATTRS:
            yield wire.REMOVE, path_of(aside)
        else:
            yield wire.RENAME, path_of(aside) + path_of(final)
