"""What is said to lftp, and what it says: quoting, listings, its log, its errors.

Pure functions and a reader of text; the process is in `lftp_process.py`. lftp is read at log
level 9, where it names every packet. That shows the progress of a transfer, the size and mtime
that the server reports of an open file, and the numbers of the server's refusals.
"""

from __future__ import annotations

import calendar
import re
from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import (
    ConnectionLost,
    LocalStorageFull,
    RemoteChanged,
    RemoteFileNotFound,
    RemotePermissionDenied,
    TransferError,
    UnsafeName,
    from_status,
    not_written,
)
from ..model import Entry, Kind, Stat
from ..names import check_component

# Single fields rather than -l: the name is the last of them, and nothing follows it. The time has a
# mark, for the size before it may be missing.
LIST = "cls -1 -a --perms --size --block-size=1 --date --time-style=@%s"

_ENTRY = re.compile(
    rb"(?:([-dl])([-rwxsStT]{9}))? *(?:(-?\d{1,20}) +)?@(-?\d{1,20}) (.*)", re.DOTALL
)
_KINDS: dict[bytes, Kind] = {b"-": "file", b"d": "directory", b"l": "link"}


def quote(text: str) -> str:
    """Return text as one argument of an lftp command.

    Raises
    ------
    UnsafeName
        If it holds a line break, which ends a command even inside quotes, or NUL.
    """
    if "\n" in text or "\0" in text:
        raise UnsafeName(
            f"lftp cannot carry a name with a line break: {text!r};"
            " the SFTP transport can (PYREMOTEDATA_TRANSPORT=sftp)"
        )
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def escape_glob(name: str) -> str:
    """Return a name as a pattern that matches it alone, for the commands that glob."""
    return re.sub(r"[\\*?\[\]]", r"\\\g<0>", name)


def parse_listing(output: bytes, names: int, url: str, bare: bool = False) -> Iterator[Entry]:
    """Read the output of `LIST`: the entries, with that of the directory itself (``.``).

    Parameters
    ----------
    output : bytes
    names : int
        How many names the server has sent. lftp hides special files, so there may be fewer
        entries, never more.
    url : str
        The directory, for messages.
    bare : bool
        Whether entries may have no permissions, as at FTP servers that list as Windows does:
        what has no size is a directory then.

    Raises
    ------
    UnsafeName
        If a name holds a line break, or would leave its directory.
    """
    if (not output.endswith(b"\n") and output) or output.count(b"\n") > names:
        raise _unreadable(url, output.split(b"\n", 1)[0])
    start = 0
    while start < len(output):
        end = output.index(b"\n", start)
        name, stat = _parse_entry(output[start:end], url, bare)
        start = end + 1
        if name != "..":
            yield Entry(name if name == "." else check_component(name, url), stat)


def parse_one(output: bytes, url: str) -> Stat | None:
    """Read the listing of one file; None where lftp knows no more than its name."""
    line = output.removesuffix(b"\n")
    match = _ENTRY.fullmatch(line)
    return _parse_entry(line, url)[1] if match and match[1] else None


def _parse_entry(line: bytes, url: str, bare: bool = False) -> tuple[str, Stat]:
    match = _ENTRY.fullmatch(line)
    if match is None or not (match[1] or bare):
        raise _unreadable(url, line)
    form, permissions, size, mtime, name = match.groups()
    if form is None:
        form = b"-" if size else b"d"
    if size is None:  # many an FTP server tells none of a directory
        if form == b"-":
            raise _unreadable(url, line)
        size = b"0"
    if name.startswith(b"./~"):
        name = name[2:]  # so written by lftp, which would take "~" for a home
    # lftp reads a sign where SFTP has none.
    mode = _mode(permissions) if permissions else None
    stat = Stat(_KINDS[form], int(size) % (1 << 64), wire_time(int(mtime)), mode)
    return name.decode("utf-8", "surrogateescape"), stat


def _unreadable(url: str, line: bytes) -> UnsafeName:
    shown = line[:80].decode("utf-8", "replace")
    return UnsafeName(
        f"lftp's listing cannot be read ({shown!r}): most likely a name with a line break;"
        " the SFTP transport lists it (PYREMOTEDATA_TRANSPORT=sftp)",
        url,
    )


def _mode(permissions: bytes) -> int:
    """Return the permission bits of text like ``rwxr-sr-t``."""
    mode = 0
    for place, letter in enumerate(permissions.decode("ascii")):
        if letter in "rwxst":
            mode |= 0o400 >> place
        if letter in "sStT":
            mode |= 0o4000 >> (place // 3)
    return mode


def utc_seconds(parts: tuple[int, ...]) -> int | None:
    """Return a time in UTC, from the year to the second; None where there is no such day."""
    try:
        return calendar.timegm(parts)
    except (ValueError, OverflowError):
        return None


def wire_time(seconds: int) -> int:
    """Return a time of SFTP version 3, which has no sign, from lftp, which reads one."""
    return seconds % (1 << 32)


# --- the log --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Failure:
    """An error line of lftp: the command that it names, its text, the server's status code."""

    command: str
    text: str
    code: int | None


# A server's words stand in the log, too, and may look like lines of it: so numbers end somewhere.
_STATUS = re.compile(rb"---- status code=(\d{1,20})\(")
_INFO = re.compile(
    rb"---- file info: size=(-?\d{1,20}), date=\w{3} (\w{3}) +(\d\d?) (\d\d?):(\d\d?):(\d\d?)"
    rb" (-?\d{1,20})"
)
_DATA = re.compile(rb"---- data packet: pos=\d+, size=(\d{1,20})")
_WRITE = re.compile(rb"---> sending a packet, length=(\d{1,20}), type=6\(")
_HANDLE = re.compile(rb"---- got file handle \w* \((\d{1,20})\)")
_NAMES = re.compile(rb"---- file name count=(\d{1,20})")
_TYPE = re.compile(rb"\*\*\*\* got file type (\d{1,20})")
_HOME = b"---- home set to "
_ON_WIRE = b"---- path on wire is "
_DISCONNECTED = b"---- Disconnecting"
_CONNECTED = b"---- protocol version set to "
_HEARD = b"<--- "
_LOG = (b"---- ", b"---> ", b"<--- ", b"**** ", b"copy: ", b"expected pos=")
_COMMAND = re.compile(r"([a-z0-9]+): ")
LINE_BYTES = 1 << 16
_WRITE_HEAD = 21  # of a WRITE packet: type, id, offset, the lengths of handle and data
_MONTHS = {
    name: number + 1
    for number, name in enumerate(b"Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split())
}


class Log:
    """What lftp said on standard error while it ran one command.

    Attributes
    ----------
    received, sent : int
        Bytes of file content that came in, and that were handed to the connection.
    largest : int
        Bytes of the largest piece of file content that came in.
    infos : list of (int, int)
        Size and mtime of each file that was opened to be read, as the server told them of the
        open file.
    names : int
        Names that the server listed.
    file_type : int or None
        What the server says of a path that is no directory: 1 a regular file, 4 a special one.
    home : str or None
        The login directory, said once after each login.
    failure : Failure or None
        The first error.
    lost : bool
        Whether the last connection is gone and no other one was made.
    signs : int
        Signs of life.
    breaks : int
        How often a connection broke once the command was under way. lftp connects anew by itself
        as long as each connection brings it forward.
    by_name : bool
        Whether an FTP server was asked for bare names: what lftp does after an empty listing.
    """

    def __init__(self) -> None:
        self.received = 0
        self.sent = 0
        self.largest = 0
        self.infos: list[tuple[int, int]] = []
        self.names = 0
        self.file_type: int | None = None
        self.home: str | None = None
        self.failure: Failure | None = None
        self.lost = False
        self.signs = 0
        self.breaks = 0
        self.by_name = False
        self._rest = b""
        self._code: int | None = None
        self._handle_bytes = 4
        self._begun = False

    def feed(self, data: bytes) -> None:
        """Take in the next piece of it."""
        *lines, rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._line(line)
        self._rest = rest[:LINE_BYTES]  # what is longer is not said to us

    def _line(self, line: bytes) -> None:
        self.signs += line.startswith(_HEARD)  # not what lftp does alone: to connect anew, say
        if not line.startswith(_LOG):
            if line:
                self._error(line.decode("utf-8", "surrogateescape"))
        elif match := _DATA.match(line):
            self.received += int(match[1])
            self.largest = max(self.largest, int(match[1]))
        elif match := _WRITE.match(line):
            self.sent += max(0, int(match[1]) - _WRITE_HEAD - self._handle_bytes)
            self.signs += 1  # the network takes it
        elif match := _STATUS.match(line):
            code = int(match[1])
            if code > 1:  # neither OK nor the end of a file
                self._code = code
        else:
            self._rare_line(line)

    def _rare_line(self, line: bytes) -> None:
        if match := _INFO.match(line):
            size, month, day, hour, minute, second, year = match.groups()
            parts = (int(year), _MONTHS.get(month, 0), *map(int, (day, hour, minute, second)))
            seconds = utc_seconds(parts)
            if int(size) >= 0 and seconds is not None:  # else it does not say, or says nonsense
                self.infos.append((int(size), wire_time(seconds)))
        elif match := _HANDLE.match(line):
            self._handle_bytes = int(match[1])
        elif match := _NAMES.match(line):
            self.names += int(match[1])
        elif match := _TYPE.match(line):
            self.file_type = int(match[1])
        elif line.startswith(_HOME):
            self.home = line[len(_HOME) :].decode("utf-8", "surrogateescape")
        elif line.startswith(_ON_WIRE):
            self._begun = True
        elif line.startswith(_DISCONNECTED):
            self.lost = True
            self.breaks += self._begun
        elif line.startswith(_CONNECTED):
            self.lost = False

    def _error(self, line: str) -> None:
        match = _COMMAND.match(line)
        self._fail(match[1] if match else "", line[match.end() if match else 0 :])

    def _fail(self, command: str, text: str) -> None:
        if self.failure is None:
            self.failure = Failure(command, text, self._code)


# --- the table: lftp's error texts -----------------------------------------------------------

_ACCESS = "Access failed: "
_TEXTS: tuple[tuple[str, type[TransferError]], ...] = (
    # For what lftp finds out itself, without a number from the server; the first match wins.
    (r"No such (file|path)|[Nn]ot found|does not exist", RemoteFileNotFound),
    (r"[Pp]ermission denied|[Aa]ccess denied", RemotePermissionDenied),
)
FULL = re.compile(r"No space left on device|[Dd]isk quota exceeded|File too large|disk is full")


def from_failure(failure: Failure | None, paths: tuple[str, ...], url: str) -> TransferError:
    """Turn an error of lftp into one of ours.

    Parameters
    ----------
    failure : Failure or None
    paths : tuple of str
        The paths that the command was given. lftp repeats them before and after the cause, where
        they must not be taken for words of lftp or the server.
    url : str
        The file, for messages.
    """
    if failure is None:
        return from_words("", url)
    text = cause(failure, paths)
    if not text.startswith(_ACCESS):
        if FULL.search(text):
            return local_full(text, url)
        if text == "file size decreased during transfer":
            return RemoteChanged("the file changed while it was read", url)
        return from_words(text, url)
    text = text.removeprefix(_ACCESS)
    if failure.code is not None:
        return from_status(failure.code, text, url)
    for pattern, cls in _TEXTS:
        if re.search(pattern, text):
            return cls(text[:1].lower() + text[1:], url)
    return TransferError(f"the server refuses: {text}", url)


def local_full(text: str, url: str) -> LocalStorageFull:
    """Return the error for a full disk of this machine; lftp does not name the file."""
    return not_written("the local file", text, url, too_large="File too large" in text)


def from_words(text: str, url: str) -> TransferError:
    """Return the error for words of lftp that are not known here."""
    if not text.strip():
        # A connection that breaks at certain moments leaves lftp without a reason to give.
        return ConnectionLost("lftp failed without a word", url)
    return TransferError(f"lftp says: {text}", url)


def from_lost(log: Log, paths: tuple[str, ...], url: str) -> TransferError | None:
    """Return the error of a command that failed because its connection is gone, else None."""
    if not log.lost:
        return None
    text = cause(log.failure, paths) if log.failure else "no word of why"
    if text.startswith(_ACCESS) or FULL.search(text):
        return None  # a further connection went with a command that failed for another reason
    return ConnectionLost(f"the connection broke ({text})", url)


def cause(failure: Failure, paths: tuple[str, ...]) -> str:
    """Return what lftp says went wrong, without the paths that it was given."""
    text = failure.text.replace("\r", "")
    for path in paths:
        text = text.removeprefix(f"{path}: ").removesuffix(f" ({path})")
    return text
