"""What FTP servers say, through lftp: replies, facts of MLST, lftp's log, errors.

Pure functions and a reader of text. A refusal in FTP is a number that hardly tells anything and a
text of the server's own choice; where the text is not known the caller has to look for itself.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

from ..errors import (
    AuthenticationFailed,
    ConnectionLost,
    HostKeyRejected,
    RemoteFileNotFound,
    RemotePermissionDenied,
    ServerRefused,
    TransferError,
    TransferTimeout,
)
from ..model import Kind, Stat
from .lftp_text import FULL, Failure, Log, cause, from_words, local_full, utc_seconds

_REPLY = re.compile(r"(\d{3})([ -])(.*)")
_STAMP = re.compile(r"(\d{4})(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)")
_SIZE = re.compile(r"[0-9]{1,18}")  # more than any server has
_KINDS: dict[str, Kind] = {"file": "file", "dir": "directory", "cdir": "directory"}
_KINDS |= {"pdir": "directory", "os.unix=slink": "link", "os.unix=symlink": "link"}


@dataclass(frozen=True, slots=True)
class Answer:
    """A server's answer to one command: its number, its last line, and the lines between."""

    code: int
    text: str
    lines: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether it is positive."""
        return self.code < 400


def parse_answers(output: bytes) -> list[Answer]:
    """Read the answers that lftp's ``quote`` shows, in their order."""
    answers: list[Answer] = []
    inside: list[str] = []
    open_code = ""
    for line in output.decode("utf-8", "surrogateescape").split("\n"):
        match = _REPLY.match(line)
        if open_code:
            if match and match[1] == open_code and match[2] == " ":
                answers.append(Answer(int(open_code), match[3], tuple(inside)))
                inside, open_code = [], ""
            else:
                inside.append(line)
        elif match and match[2] == "-":
            open_code = match[1]
        elif match:
            answers.append(Answer(int(match[1]), match[3]))
    return answers


def parse_time(text: str) -> int | None:
    """Read the time of a MDTM answer or a ``modify`` fact, which is in UTC."""
    match = _STAMP.match(text)
    return utc_seconds(tuple(map(int, match.groups()))) if match else None


def parse_size(text: str) -> int | None:
    """Read a number of bytes; None where it is none, or absurd."""
    return int(text) if _SIZE.fullmatch(text) else None


def show_time(mtime: int) -> str:
    """Return a time as MFMT wants it."""
    return time.strftime("%Y%m%d%H%M%S", time.gmtime(mtime))


def parse_facts(answer: Answer) -> Stat | None:
    """Read the answer to MLST; None if it does not tell enough."""
    for line in answer.lines:
        facts, space, _name = line.strip().partition(" ")
        if not space or not facts.endswith(";"):
            continue
        found = dict(fact.lower().partition("=")[::2] for fact in facts[:-1].split(";"))
        form = found.get("type", "")
        kind = _KINDS.get(form.partition(":")[0], "other")
        mtime = parse_time(found.get("modify", ""))
        size = parse_size(found.get("size", found.get("sizd", "0")))
        if size is None or (kind == "file" and ("size" not in found or mtime is None)):
            return None
        try:
            mode = int(found["unix.mode"], 8) & 0o7777
        except (KeyError, ValueError):
            mode = None
        return Stat(kind, size, mtime or 0, mode)
    return None


# --- the log --------------------------------------------------------------------------------

_HOME = re.compile(r'<--- 257 "((?:[^"]|"")*)"')
_ASKED = re.compile(r"---> (\w+)")
_REFUSED = re.compile(r"<--- ([45]\d\d)[ -](.*)")
_AT = re.compile(r"\s*`.*' at (\d{1,20}) ")
_GOT = re.compile(r"\s*`.*', got (\d{1,20}) of ")
_LISTED = re.compile(r"\s*`.*' Getting directory contents \((\d{1,20})\)")
_FAILURE = re.compile(r"(cd|cls|get1?|pget|put|mv|rm|rmdir|mkdir|quote|open): (.*)")
_LOGIN_FAILED = "Login failed: "
_MOVES = ("RETR", "STOR", "APPE")
_JOB = re.compile(r"\s*\[\d+\] |\t")


class FtpLog(Log):
    """What lftp says of FTP on standard error, and its answers to ``jobs -v``.

    The attributes of `Log` that it fills: ``received`` and ``sent`` (the same number, of whatever
    moves), ``home``, ``failure``, ``lost``, ``breaks``, ``signs``, ``by_name``.
    """

    def __init__(self) -> None:
        super().__init__()
        self._asked = ""
        self._user_refused = ""
        self._by_pget = False

    def _line(self, line: bytes) -> None:
        text = line.decode("utf-8", "surrogateescape").rstrip("\r")
        if match := _GOT.match(text):
            self._by_pget = True
            self._moved(int(match[1]))
        elif match := _AT.match(text):
            if not self._by_pget:  # then it is where one of its connections is
                self._moved(int(match[1]))
        elif match := _LISTED.match(text):
            self._moved(int(match[1]))
        elif text and not _JOB.match(text):
            self.signs += 1
            self._event(text)

    def _moved(self, count: int) -> None:
        if count > self.received:
            self.signs += 1
            self.received = self.sent = count

    def _event(self, text: str) -> None:
        if match := _ASKED.match(text):
            self._asked = match[1]
            self.by_name = self.by_name or match[1] == "NLST"
            self._begun = self._begun or match[1] in _MOVES
        elif match := _REFUSED.match(text):
            self._code = int(match[1])
            if self._asked == "USER":
                self._user_refused = f"{self._user_refused or match[1]} {match[2]}"
        elif self._asked == "PWD" and (match := _HOME.match(text)):
            self.home = match[1].replace('""', '"')
        elif text.startswith("---- Closing control socket"):
            self.lost = True
            self.breaks += self._begun
        elif text.startswith(("<--- 230", "<--- 232")):
            self.lost = False
        elif self._user_refused and _LOGIN_FAILED in text:
            # lftp sends a password all the same, and tells only what is said of that.
            self._fail("", _LOGIN_FAILED + self._user_refused)
        elif match := _FAILURE.match(text):
            self._fail(match[1], match[2])
        elif text.startswith("Fatal error: "):
            self._fail("", text)


# --- the table: answers and lftp's own words ---------------------------------------------------

_NOT_FOUND = re.compile(
    r"no such|not found|does ?n[o']t exist|cannot find|can't find|not exist|no file|"
    r"can't check for file existence",
    re.I,
)
_DENIED = re.compile(
    r"denied|not permitted|privilege|not allowed|forbidden|read[- ]only|permission", re.I
)
_BUSY = re.compile(
    r"too many|overload|try .*later|maximum|number of connect|simultaneous|limit|busy", re.I
)
_STORAGE = re.compile(r"disk|quota|space|storage|exceeded", re.I)
_TLS = re.compile(r"\b(SSL|TLS)\b|encrypt|secure", re.I)
_CERTIFICATE = re.compile(r"certificate", re.I)
_NO_HOST = re.compile(r": .*(not known|does not resolve|[Nn]o address|name resolution|ookup)[^/]*$")


def from_answer(code: int, text: str, url: str) -> TransferError:
    """Turn a negative answer of the server into an error; a plain `TransferError` says little."""
    said = f"{text[:1].lower()}{text[1:]}" if text[1:2].islower() else text
    if code == 421:
        return ConnectionLost(f"the server closes the connection ({text})", url)
    if code in (452, 552):
        return ServerRefused(f"the server cannot write ({text}); is its disk full?", url)
    if code in (500, 501, 502, 504):
        return ServerRefused(f"the server does not offer this operation ({text})", url)
    if _NOT_FOUND.search(text):
        return RemoteFileNotFound(said, url)
    if code in (530, 532, 534) or _DENIED.search(text):
        return RemotePermissionDenied(said, url)
    if _STORAGE.search(text):
        return ServerRefused(f"the server cannot write ({text}); is its disk full?", url)
    if code == 553:
        return RemotePermissionDenied(f"the server does not let you write there ({text})", url)
    if code in (425, 426, 450, 451):
        return ServerRefused(f"the server cannot serve it now ({text})", url, retryable=True)
    return TransferError(f"the server refuses: {text}", url)


def from_failure(failure: Failure | None, paths: tuple[str, ...], url: str) -> TransferError:
    """Turn an error of lftp into one of ours; see `lftp_text.from_failure`."""
    if failure is None:
        return from_words("", url)
    text = cause(failure, paths)
    if text.startswith("Access failed: "):
        text = text.removeprefix("Access failed: ")
        match = _REPLY.match(text)
        return from_answer(int(match[1]), match[3], url) if match else from_answer(0, text, url)
    if text.startswith(_LOGIN_FAILED):
        return _from_login(text.removeprefix(_LOGIN_FAILED), url)
    if text.startswith("Fatal error: "):
        return _from_fatal(text.removeprefix("Fatal error: "), url)
    if FULL.search(text):
        return local_full(text, url)
    if _NO_HOST.search(text):
        return ConnectionLost(f"unknown host; check its spelling: {text}", url, retryable=False)
    return from_words(text, url)


def _from_login(text: str, url: str) -> TransferError:
    if "ssl-force" in text:
        return ServerRefused(
            "the server does not offer TLS when asked for it; if it begins with TLS set"
            " PYREMOTEDATA_FTPS_MODE=implicit, if it has none use ftp://",
            url,
        )
    if url.startswith("ftp://") and _TLS.search(text):
        return ServerRefused(f"the server asks for TLS: use ftps:// ({text})", url)
    if text.startswith("421") or _BUSY.search(text):
        return ServerRefused(f"the server takes no further session now: {text}", url, True)
    return AuthenticationFailed(
        "the login was refused: check user name and PYREMOTEDATA_PASSWORD; not tried again,"
        f" as some servers ban an address after a few wrong logins: {text}",
        url,
    )


def _from_fatal(text: str, url: str) -> TransferError:
    match = re.match(r"max-retries exceeded(?: \((.*)\))?", text)
    said = (match[1] or "no word of why") if match else text
    if _CERTIFICATE.search(said):
        remedy = "if an authority of your own signed it, name its file in PYREMOTEDATA_CA_FILE"
        if "expired" in said or "not yet" in said:
            remedy = "ask the server's administrator for a valid one"
        elif "match requested host name" in said:
            remedy = "use the host name that it is for"
        return HostKeyRejected(f"the server's certificate cannot be trusted; {remedy}: {said}", url)
    if "Connection refused" in said:
        return ConnectionLost(f"nothing listens at that port; check host and port: {said}", url)
    if re.search(r"unreachable|No route to host|Host is down", said):
        return ConnectionLost(f"the network does not reach the server: {said}", url)
    if said.startswith("421") or _BUSY.search(said):
        return ServerRefused(f"the server takes no further session now: {said}", url, True)
    if re.search(r"[Tt]imed? ?out", said):
        return TransferTimeout(
            f"the server does not answer; check host, port and firewall: {said}", url
        )
    if re.search(r"gnutls|SSL|TLS|handshake|packet", said):
        return ConnectionLost(
            f"no TLS could be agreed on; check port and PYREMOTEDATA_FTPS_MODE: {said}", url
        )
    return ConnectionLost(f"the connection broke ({said})", url)
