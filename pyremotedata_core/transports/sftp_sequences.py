"""Questions to an SFTP server and small changes there, as generators that yield requests.

`Run` drives one: it sends what the generator yields and gives it the answers.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Generator
from functools import lru_cache, partial
from typing import Any

from ..errors import (
    RemoteFileNotFound,
    ServerRefused,
    TransferError,
    from_status,
)
from ..model import Stat
from ..names import aside_name, temporary_name
from ..url import encode_path, wire_path
from . import wire
from .sftp import SftpSession

Request = tuple[int, bytes]
Answer = tuple[int, memoryview]
Sequence = Generator[Request | list[Request], Any, Any]

POSIX_RENAME = "posix-rename@openssh.com"
STATVFS = "statvfs@openssh.com"


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
    if kind == wire.RMDIR or not isinstance(error, RemoteFileNotFound):
        # MiG answers "permission denied" for what is not there, and OpenSSH that a file, which
        # is no directory to remove, is not there.
        stat = yield wire.LSTAT, path_of(path)
        if stat[0] != wire.ATTRS:
            raise error_of(session, path, stat)
        is_directory = wire.read_attrs(stat[1])[0].kind == "directory"
        if is_directory and kind == wire.REMOVE:
            raise ServerRefused("is a directory; remove it recursively", url_of(session, path))
        if kind == wire.RMDIR:
            if not is_directory:
                raise ServerRefused("is a file; a directory was meant", url_of(session, path))
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


def rename(
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
                _refuse_file(session, new, there, source)
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
    _refuse_file(session, new, there, source)
    if not aside:
        aside = posixpath.join(posixpath.dirname(new), aside_name(temporary_name()))
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


def _refuse_file(session: SftpSession, path: str, there: Answer, source: Answer) -> None:
    """Raise if what would take the place of a file is a directory. OpenSSH calls it not found."""
    if there[0] == wire.ATTRS and wire.read_attrs(source[1])[0].kind == "directory":
        raise ServerRefused("is a file; a directory was meant", url_of(session, path))


def room_questions(session: SftpSession, path: str) -> list[Request]:
    """Return how to ask what is free on the file system of a path, nothing where one cannot."""
    if STATVFS not in session.extensions:
        return []
    return [(wire.EXTENDED, wire.string(STATVFS.encode()) + path_of(path))]


def room(answers: list[Answer]) -> int | None:
    """Return the bytes that are free, by the answers to `room_questions`; None if not known."""
    told = answers[0] if answers else None
    return wire.read_room(told[1]) if told and told[0] == wire.EXTENDED_REPLY else None


def _info(session: SftpSession, path: str) -> Sequence:
    """Return what the server says of itself, with one round trip measured."""
    _, *answers = yield [(wire.REALPATH, wire.string(b".")), *room_questions(session, path)]
    return {
        "free_bytes": room(answers),
        "extensions": sorted(session.extensions),
        "read_bytes": session.read_bytes,
        "write_bytes": session.write_bytes,
        "operations": session.max_operations,
        "round_trip_s": session.rtt_s,
    }


SEQUENCES: dict[str, Callable[..., Sequence]] = {
    "stat": _stat,
    "realpath": _realpath,
    "mkdir": _mkdir,
    "remove": _remove,
    "rmdir": _rmdir,
    "touch": _touch,
    "rename": rename,
    "info": _info,
}
