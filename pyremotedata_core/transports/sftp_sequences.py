"""Short sequences of questions to an SFTP server, as generators that yield requests.

`Run` drives one: it sends what the generator yields and gives it the answers.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Generator
from functools import lru_cache, partial
from typing import Any

from ..errors import (
    RemoteFileNotFound,
    RemotePermissionDenied,
    ServerRefused,
    TransferError,
    from_oserror,
    from_status,
)
from ..model import Stat
from ..names import TemporaryNames, aside_name
from ..url import encode_path, parent_path, wire_path
from . import wire
from .base import SmallSource, Source
from .sftp import SftpSession

Request = tuple[int, bytes]
Answer = tuple[int, memoryview]
Sequence = Generator[Request | list[Request], Any, Any]

POSIX_RENAME = "posix-rename@openssh.com"
STATVFS = "statvfs@openssh.com"
_temporary_names = TemporaryNames()


class Run:
    """Drives a generator: sends what it yields, gives it the answers."""

    __slots__ = ("_answers", "_finish", "_missing", "_sequence", "_session")

    def __init__(
        self,
        session: SftpSession,
        sequence: Sequence,
        finish: Callable[[Any, TransferError | None], None],
    ) -> None:
        self._session, self._sequence, self._finish = session, sequence, finish
        self._step(None)

    def _step(self, answer: Any) -> None:
        try:
            request = self._sequence.send(answer)
        except StopIteration as stop:
            # Outside of the caller's frame: an outcome is never announced from within `submit`.
            self._session.loop.call_soon(partial(self._finish, stop.value, None))
            return
        except TransferError as error:
            self._session.loop.call_soon(partial(self._finish, None, error))
            return
        if isinstance(request, list):
            self._answers: list[Any] = [None] * len(request)
            self._missing = len(request)
            for number, (kind, body) in enumerate(request):
                self._session.request(kind, body, self._one_of, number)
        else:
            self._session.request(request[0], request[1], self._only)

    def _only(self, kind: int, body: memoryview, _data: Any) -> None:
        self._step((kind, memoryview(bytes(body))))

    def _one_of(self, kind: int, body: memoryview, number: int) -> None:
        self._answers[number] = (kind, memoryview(bytes(body)))
        self._missing -= 1
        if not self._missing:
            self._step(self._answers)


def ignore(_kind: int, _body: memoryview, _data: Any) -> None:
    """Take an answer that does not matter."""


def url_of(session: SftpSession, path: str) -> str:
    """Return the URL of a path, for messages."""
    return session.url + encode_path(path)


@lru_cache(1024)  # a file's path is sent several times within a short while
def path_of(path: str) -> bytes:
    """Pack a path as the server is to see it."""
    return wire.string(wire_path(path))


def error_of(session: SftpSession, path: str, answer: Answer) -> TransferError:
    """Turn an answer that is not the one hoped for into an error."""
    kind, body = answer
    if kind != wire.STATUS:
        raise wire.Garbage(f"packet type {kind} for a status")
    code, text = wire.read_status(body)
    return from_status(code, text, url_of(session, path))


def is_ok(answer: Answer) -> bool:
    """Whether an answer is OK."""
    kind, body = answer
    return kind == wire.STATUS and wire.read_u32(body) == wire.OK


def expect_ok(session: SftpSession, path: str, answer: Answer) -> None:
    """Raise unless the answer is OK."""
    if not is_ok(answer):
        raise error_of(session, path, answer)


def attrs_of(session: SftpSession, path: str, answer: Answer) -> Stat:
    """Return the attributes that an answer holds, or raise."""
    kind, body = answer
    if kind != wire.ATTRS:
        raise error_of(session, path, answer)
    return wire.read_attrs(body)[0]


def _stat(session: SftpSession, path: str, follow: bool = True) -> Sequence:
    answer = yield (wire.STAT if follow else wire.LSTAT), path_of(path)
    return attrs_of(session, path, answer)


def _realpath(session: SftpSession, path: str) -> Sequence:
    kind, body = yield wire.REALPATH, path_of(path)
    if kind != wire.NAME:
        raise error_of(session, path, (kind, body))
    names = wire.read_names(body)
    if len(names) != 1:
        raise wire.Garbage(f"{len(names)} canonical paths")
    return names[0].name


def _mkdir(session: SftpSession, path: str) -> Sequence:
    answer = yield wire.MKDIR, path_of(path) + wire.NO_ATTRS
    if is_ok(answer):
        return
    # "failure" for a directory that is there; some servers answer "permission denied" instead.
    stat = yield wire.STAT, path_of(path)
    if stat[0] == wire.ATTRS:
        if wire.read_attrs(stat[1])[0].kind == "directory":
            return
        raise ServerRefused(
            "cannot make a directory: a file of that name exists", url_of(session, path)
        )
    raise error_of(session, path, answer)


def _remove(session: SftpSession, path: str, kind: int = wire.REMOVE) -> Sequence:
    answer = yield kind, path_of(path)
    if is_ok(answer):
        return
    error = error_of(session, path, answer)
    if not isinstance(error, RemoteFileNotFound):
        # MiG answers "permission denied" for what is not there.
        stat = yield wire.LSTAT, path_of(path)
        if stat[0] != wire.ATTRS:
            raise error_of(session, path, stat)
        if wire.read_attrs(stat[1])[0].kind == "directory" and kind == wire.REMOVE:
            raise ServerRefused("is a directory; remove it recursively", url_of(session, path))
        if kind == wire.RMDIR:
            raise TransferError(
                f"cannot remove the directory ({error.message}); is it empty?",
                url_of(session, path),
            )
    raise error


def _rmdir(session: SftpSession, path: str) -> Sequence:
    return _remove(session, path, wire.RMDIR)


def _touch(session: SftpSession, path: str, mtime: int) -> Sequence:
    answer = yield wire.SETSTAT, path_of(path) + wire.times(mtime)
    expect_ok(session, path, answer)


def _rename(
    session: SftpSession, old: str, new: str, aside: str = "", *, again: bool = False
) -> Sequence:
    """Rename over whatever file stands there, as safely as the server can.

    With posix-rename one atomic step. Without: a plain rename, which some servers (MiG) let
    overwrite; where it is refused because the new name exists, that file is renamed aside, the
    new one renamed in, the old one removed, and put back if that fails.

    With ``again`` an attempt before may have done it, and its answer was lost: a missing old
    name is then no error if the new one is there.
    """
    if POSIX_RENAME in session.extensions:
        names = path_of(old) + path_of(new)
        answer = yield wire.EXTENDED, wire.string(POSIX_RENAME.encode()) + names
        if answer[0] == wire.STATUS:
            code = wire.read_u32(answer[1])
            if code == wire.OK:
                return
            if code != wire.UNSUPPORTED:
                there, source = yield [
                    (wire.LSTAT, path_of(new)),
                    (wire.LSTAT, path_of(old)),
                ]
                if source[0] != wire.ATTRS:
                    if again and there[0] == wire.ATTRS:
                        return
                    raise error_of(session, old, source)
                _refuse_directory(session, new, there)
                raise error_of(session, new, answer)
    # A plain rename moves *into* a directory on some servers: look first.
    there = yield wire.LSTAT, path_of(new)
    _refuse_directory(session, new, there)
    answer = yield wire.RENAME, path_of(old) + path_of(new)
    if is_ok(answer):
        return
    source = yield wire.LSTAT, path_of(old)
    if source[0] != wire.ATTRS:
        if again and there[0] == wire.ATTRS:
            return
        raise error_of(session, old, source)
    if there[0] != wire.ATTRS:
        raise error_of(session, new, answer)
    if not aside:
        name = aside_name(_temporary_names.next())
        aside = posixpath.join(posixpath.dirname(new), name)
    moved = yield wire.RENAME, path_of(new) + path_of(aside)
    expect_ok(session, new, moved)
    answer = yield wire.RENAME, path_of(old) + path_of(new)
    if is_ok(answer):
        yield wire.REMOVE, path_of(aside)
        return
    yield wire.RENAME, path_of(aside) + path_of(new)
    raise error_of(session, new, answer)


def _refuse_directory(session: SftpSession, path: str, answer: Answer) -> None:
    if answer[0] == wire.ATTRS and wire.read_attrs(answer[1])[0].kind == "directory":
        raise ServerRefused("is a directory; a file was meant", url_of(session, path))


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
    """Return the flags that make a file under its temporary name, or in its final place."""
    replaces = temporary == path and overwrite
    return wire.O_WRITE | wire.O_CREAT | (wire.O_TRUNC if replaces else wire.O_EXCL)


def _create(
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
    answer, *room = yield [making, *_room_questions(session, parent_path(path))]
    if answer[0] != wire.HANDLE:
        raise cannot_create(error_of(session, path, answer))
    closed = yield wire.CLOSE, wire.read_handle(answer[1])
    expect_ok(session, path, closed)
    free = _room(room)
    if free is not None and free < size and temporary != path:
        full = (
            f"the server's disk is full: {free} bytes are free, the file has {size};"
            " make room there, or ask who runs it"
        )
        yield from discard(temporary, ServerRefused(full, url_of(session, path)))


def _room_questions(session: SftpSession, path: str) -> list[Request]:
    """Return how to ask what is free on the file system of a path, nothing where one cannot."""
    if STATVFS not in session.extensions:
        return []
    return [(wire.EXTENDED, wire.string(STATVFS.encode()) + path_of(path))]


def _room(answers: list[Answer]) -> int | None:
    told = answers[0] if answers else None
    return wire.read_room(told[1]) if told and told[0] == wire.EXTENDED_REPLY else None


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
    return kind == wire.STATUS and wire.read_u32(body) in (wire.OK, wire.DENIED, wire.UNSUPPORTED)


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
            there = yield from _put_back(temporary, path)
            left = yield wire.LSTAT, path_of(temporary)
            # Nobody else knows the temporary name.
            if left[0] != wire.ATTRS and there and there.same_content(wanted):
                return there
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
        if source.fd >= 0:
            _expect_unchanged(source)
        if direct:
            return stat
        if not overwrite:
            answer = yield wire.LSTAT, path_of(path)
            if answer[0] == wire.ATTRS:
                there = wire.read_attrs(answer[1])[0]
                if again and there.same_content(wanted):
                    yield wire.REMOVE, path_of(temporary)
                    return there
                raise ServerRefused("exists already", url_of(session, path))
        try:
            yield from _rename(session, temporary, path, aside_name(temporary))
        except RemotePermissionDenied as error:
            hint = "if it lets nobody rename, set PYREMOTEDATA_PUBLISH=direct"
            raise RemotePermissionDenied(f"{error.message}; {hint}", error.url) from None
    except TransferError as error:
        yield from discard(temporary, error)
    return stat


def _expect_unchanged(source: Source) -> None:
    try:
        now = os.fstat(source.fd)
    except OSError as error:
        raise from_oserror(error, source.path) from None
    if now.st_size != source.size or int(now.st_mtime) != source.mtime:
        raise local_changed(source)


def _size_of(answer: Answer) -> int:
    return wire.read_attrs(answer[1])[0].size


def _clear_orphan(_session: SftpSession, temporary: str, final: str) -> Sequence:
    """Remove what a killed upload left; put a file back that stood aside without successor."""
    yield wire.REMOVE, path_of(temporary)
    yield from _put_back(temporary, final)


def _put_back(temporary: str, final: str) -> Sequence:
    """Put a file back that stood aside without successor; return what then stands there."""
    aside = aside_name(temporary)
    old, new = yield [(wire.LSTAT, path_of(aside)), (wire.LSTAT, path_of(final))]
    if old[0] == wire.ATTRS:
        if new[0] == wire.ATTRS:
            yield wire.REMOVE, path_of(aside)
        else:
            yield wire.RENAME, path_of(aside) + path_of(final)
            new = old
    return wire.read_attrs(new[1])[0] if new[0] == wire.ATTRS else None


def _info(session: SftpSession, path: str) -> Sequence:
    """Return what the server says of itself, with one round trip measured."""
    _, *room = yield [(wire.REALPATH, wire.string(b".")), *_room_questions(session, path)]
    return {
        "free_bytes": _room(room),
        "extensions": sorted(session.extensions),
        "read_bytes": session.read_bytes,
        "write_bytes": session.write_bytes,
        "operations": session.max_operations,
        "round_trip_s": session.rtt_s,
    }


REPEATED = ("copy", "create", "publish", "rename")  # must know of an attempt whose answer was lost
SEQUENCES: dict[str, Callable[..., Sequence]] = {
    "stat": _stat,
    "realpath": _realpath,
    "mkdir": _mkdir,
    "remove": _remove,
    "rmdir": _rmdir,
    "touch": _touch,
    "rename": _rename,
    "create": _create,
    "publish": publish,
    "clear_orphan": _clear_orphan,
    "info": _info,
}
