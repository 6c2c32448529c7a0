"""The errors of this project: one tree, and the one table from foreign errors to it.

Every error is one line that names the thing and, where there is one, the remedy.
Errors cross processes (helper, Snakemake jobs, Dask workers), so they pickle and
travel as plain dictionaries.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shlex
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote_to_bytes

from .model import TreeResult, one_line


class TransferError(Exception):
    """Root of every error raised by this project.

    Parameters
    ----------
    message : str
        What happened, in one line.
    url : str, optional
        The remote file or server concerned, without any secret.
    retryable : bool, optional
        Whether the same request may succeed later. Defaults to the class's own answer.

    Attributes
    ----------
    message, url, retryable
        As given.
    """

    retryable: bool = False
    left_temporary = False  # an upload could not remove its temporary file; not pickled
    _errno: int | None = None

    def __init__(self, message: str = "", url: str = "", retryable: bool | None = None) -> None:
        self.message = one_line(message)
        self.url = url
        if retryable is not None:
            self.retryable = retryable
        super().__init__(self.message)
        if isinstance(self, OSError):
            self.errno = self._errno
            self.strerror = self.message
            self.filename = url or None

    def __str__(self) -> str:
        return f"{one_line(self.url)}: {self.message}" if self.url else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, self.url, self.retryable)

    def to_plain(self) -> dict[str, Any]:
        """Return the error as builtins, for a message to another process."""
        return {
            "class": type(self).__name__,
            "message": self.message,
            "url": self.url,
            "retryable": self.retryable,
        }


class RemoteFileNotFound(TransferError, FileNotFoundError):  # type: ignore[misc]
    """The server says that there is no such file or directory."""

    _errno = errno.ENOENT


class RemotePermissionDenied(TransferError, PermissionError):  # type: ignore[misc]
    """The server refuses access to a file or directory."""

    _errno = errno.EACCES


class AuthenticationFailed(TransferError):
    """The server refused the login. Never retried: some servers ban an address after a few."""


class HostKeyRejected(TransferError):
    """OpenSSH does not know the server's host key, or an ftps certificate cannot be trusted."""


class ConnectionLost(TransferError):
    """The server cannot be reached, or the connection broke."""

    retryable = True


class TransferTimeout(TransferError, TimeoutError):  # type: ignore[misc]
    """Nothing moved for the configured number of seconds."""

    retryable = True
    _errno = errno.ETIMEDOUT


class RemoteChanged(TransferError):
    """The source changed while it was read."""

    retryable = True


class LocalStorageFull(TransferError):
    """The local disk or quota is full."""

    _errno = errno.ENOSPC


class UnsafeName(TransferError):
    """A name that would leave its directory, or that the transport cannot carry."""


class ServerRefused(TransferError):
    """The server answers, but refuses: too many sessions, disk full, operation not offered."""


class ConfigurationError(TransferError, ValueError):
    """A setting or URL is missing or wrong."""


class NoRemoteConfigured(ConfigurationError):
    """A path was given without a host, and none is configured."""


_TREE = {
    name: cls
    for name, cls in list(globals().items())
    if isinstance(cls, type) and issubclass(cls, TransferError)
}


def from_plain(plain: dict[str, Any]) -> TransferError:
    """Rebuild an error from `TransferError.to_plain`."""
    cls = _TREE.get(plain["class"], TransferError)
    return cls(plain["message"], plain["url"], plain["retryable"])


def raise_failures(result: TreeResult) -> None:
    """Raise the first failure of many files, and say how many there are."""
    if not result.failed:
        return
    error = from_plain(result.failed[0])
    others = len(result.failed) - 1
    if others:
        error = type(error)(f"{error.message} (and {others} more)", error.url, error.retryable)
    raise error


def cancelled() -> ConnectionLost:
    """Return the outcome of what was given up."""
    return ConnectionLost("cancelled", retryable=False)


# --- the table: SFTP status (draft-ietf-secsh-filexfer-02, section 7) ------------------------

_UNUSUAL = re.compile(r"://[^/]*/.*(%(?!20)|\*)")  # in a path, as a URL has it

NAME_BYTES = 255  # which most file systems allow
PATH_BYTES = 4095  # which Linux takes at once

_STATUS: dict[int, tuple[type[TransferError], str]] = {
    2: (RemoteFileNotFound, "no such file or directory"),
    3: (RemotePermissionDenied, "permission denied by the server"),
    4: (TransferError, "the server reports a failure"),
    5: (ConnectionLost, "the server reports a bad message"),
    6: (ConnectionLost, "the server has no connection"),
    7: (ConnectionLost, "the server lost its connection"),
    8: (ServerRefused, "the server does not offer this operation"),
}


def from_status(code: int, text: str, url: str) -> TransferError:
    """Turn an SFTP status code and its text into an error."""
    if code == 5:  # so OpenSSH says what is too long
        path = url.partition("://")[2].partition("/")[2].encode("utf-8", "surrogateescape")
        longest = max(len(unquote_to_bytes(name)) for name in path.split(b"/"))
        total = len(unquote_to_bytes(path))
        for kind, count, most in (("name", longest, NAME_BYTES), ("path", total, PATH_BYTES)):
            if count > most:
                return UnsafeName(
                    f"a {kind} of {count} bytes is longer than the server can hold; shorten it to"
                    f" {most} bytes",
                    url,
                )
    cls, meaning = _STATUS.get(code, (TransferError, f"SFTP status {code}"))
    text = one_line(text)
    if text and text.lower() not in {"failure", "no such file", "permission denied", meaning}:
        meaning = f"{meaning} ({text})"
    elif code in (3, 4) and _UNUSUAL.search(url):
        meaning = f"{meaning}; some servers, as MiG, refuse names with such characters"
    elif code == 3:
        meaning = f"{meaning}; ask for rights to it, or to a directory above it"
    return cls(meaning, url)


# --- the table: errno of local calls ---------------------------------------------------------

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def from_oserror(error: OSError, path: str | os.PathLike[str] = "") -> TransferError:
    """Turn an error of a local file operation into an error that names the local path."""
    if isinstance(error, TransferError):
        return error
    where = os.fspath(path) or error.filename or "local file"
    why = error.strerror or str(error)
    if error.errno in _FULL:
        return not_written(where, why, too_large=error.errno == errno.EFBIG)
    return TransferError(f"{where}: {why}")


@contextlib.contextmanager
def naming(path: str | os.PathLike[str] = "") -> Iterator[None]:
    """Have an error of the local file operations within name the local path."""
    try:
        yield
    except OSError as error:
        raise from_oserror(error, path) from None


def not_written(
    where: str, why: str, url: str = "", *, too_large: bool = False
) -> LocalStorageFull:
    """Return the error for a local file that cannot be written, with what may help."""
    remedy = "free some space and run again"
    if too_large:
        remedy = "the file system, or the limit that ulimit -f shows, takes no file of that size"
    return LocalStorageFull(f"cannot write {where}: {why}; {remedy}", url)


# --- the table: what the OpenSSH client prints before it gives up ----------------------------

HUNG_UP = "the server closed the connection"
IN_LOGIN = "the server broke off the login"
ENDED_LOGIN = "the server ended the login"  # so paramiko tells it
NO_WAY_ON = "the jump host does not connect to the server; ask its administrator whether it may"
NO_SUCH_HOST = "unknown host; check its spelling and your ssh_config"
_SSH: list[tuple[str, type[TransferError], bool, str]] = [
    # pattern, class, retryable, remedy; the first match wins
    (
        r"REMOTE HOST IDENTIFICATION HAS CHANGED|Host key verification failed"
        r"|host key is known for|No matching host key fingerprint",
        HostKeyRejected,
        False,
        "",
    ),
    (
        r"pyremotedata: no answer for:",
        AuthenticationFailed,
        False,
        "the login was refused, or asks for more than is configured (PYREMOTEDATA_PASSWORD,"
        " or PYREMOTEDATA_ONE_TIME_CODE, which serves one login); not tried again",
    ),
    (
        r"Too many authentication failures|Permission denied \(|No more authentication methods",
        AuthenticationFailed,
        False,
        "check user name, key (PYREMOTEDATA_SSH_KEY, ssh-agent), its passphrase"
        " (PYREMOTEDATA_KEY_PASSPHRASE), PYREMOTEDATA_PASSWORD or one-time code; not tried again,"
        " as some servers ban an address after a few wrong logins",
    ),
    (
        # Nobody answers who would know it.
        r"Could not resolve hostname .*[Tt]emporary failure",
        ConnectionLost,
        True,
        NO_SUCH_HOST,
    ),
    (r"Could not resolve hostname", ConnectionLost, False, NO_SUCH_HOST),
    (
        r"Bad configuration option|Bad owner or permissions|terminating, \d+ bad configuration"
        r"|Can't open user config file|Bad port",
        ConfigurationError,
        False,
        "OpenSSH does not accept its configuration",
    ),
    (
        r"No user exists for uid",
        ConfigurationError,
        False,
        "ssh serves nobody whom this machine does not know; have /etc/passwd name this user, or"
        " set PYREMOTEDATA_CARRIER=paramiko",
    ),
    (
        r"Unable to negotiate|no matching .* found|Protocol major versions differ"
        r"|Bad remote protocol version",
        ConnectionLost,
        False,
        "client and server have no protocol or algorithm in common",
    ),
    (
        r"banner line contains invalid|banner exchange.*[Ii]nvalid",
        ConnectionLost,
        False,
        "no SSH server answers there; check the port",
    ),
    (
        r"subsystem request failed",
        ServerRefused,
        False,
        "the server offers no SFTP; ask its administrator for the sftp subsystem",
    ),
    (
        r"Session open refused|administratively prohibited|open failed"
        r"|session request failed|xceeded MaxStartups|xceeded MaxSessions"
        r"|Not allowed at this time",
        ServerRefused,
        True,
        "the server takes no further session now",
    ),
    (
        r"Connection refused",
        ConnectionLost,
        True,
        "nothing listens at that port; check host and port",
    ),
    (
        r"timed out|Timeout",
        TransferTimeout,
        True,
        "the server does not answer; check host, port and firewall",
    ),
    (
        r"No route to host|Network is unreachable|Host is down",
        ConnectionLost,
        True,
        "the network does not reach the server",
    ),
    (r"kex_exchange_identification|ssh_exchange_identification", ConnectionLost, True, HUNG_UP),
    (
        # With a port it is after the servers' greetings.
        r"^Connection (closed|reset) by .* port \d+",
        ConnectionLost,
        True,
        f"{IN_LOGIN}; if it stays so, wait some minutes: after a few wrong logins some servers"
        " (MiG) refuse an address for a while, and longer with every attempt",
    ),
    (
        r"Connection closed|Connection reset|Broken pipe|closed by remote host",
        ConnectionLost,
        True,
        HUNG_UP,
    ),
]

_NOISE = re.compile(
    r"^(Warning: Permanently added|debug\d|\*\* |Pseudo-terminal"
    r"|Authenticated (to|using) |Transferred: sent |Bytes per second: "  # of LogLevel VERBOSE
    r"|pyremotedata: a question waits)"
)


def from_ssh_stderr(
    text: str, url: str, exit_status: int | None = None, *, ssh_config: str | None = None
) -> TransferError:
    """Turn the last words of an ssh client into an error.

    Parameters
    ----------
    text : str
        What it wrote to standard error.
    url : str
        The server, as a URL.
    exit_status : int, optional
        Its exit status, if the server has not served yet.
    ssh_config : str, optional
        The file that it was to read (``-F``), for commands that are advised.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    lines = [line for line in lines if not _NOISE.match(line)]
    if exit_status is not None and 0 <= exit_status < 255:
        # Of what the server ran. ssh had nothing to complain of: what it showed was a banner.
        return ended_at_once(url, exit_status)
    if any("stdio forwarding failed" in line for line in lines):
        # Said by the jump host, of which ssh says the same as of a server without room for more.
        why = next((line for line in lines if "open failed" in line), lines[-1])
        return ConnectionLost(f"{NO_WAY_ON}: {why}", url)
    for pattern, cls, retryable, remedy in _SSH:
        if remedy.startswith(IN_LOGIN) and exit_status is None:
            continue  # ssh says the same of a connection that was in use
        for line in reversed(lines):
            if not re.search(pattern, line):
                continue
            if cls is HostKeyRejected:
                return _host_key_error(text, url, ssh_config)
            said = line.removeprefix("ssh: ")
            if cls is AuthenticationFailed:
                remedy = "; ".join([*_unused_keys(lines), remedy])
            return cls(f"{remedy}: {said}" if remedy else said, url, retryable)
    if lines:  # maybe those of the server's greeting
        return ConnectionLost(f"ssh ended; the last that it showed: {lines[-1]}", url)
    how = "" if exit_status is None else f" (exit status {exit_status})"
    return ConnectionLost(f"ssh ended without a word{how}; see what sftp -v says", url)


def _unused_keys(lines: list[str]) -> Iterator[str]:
    """Yield which keys ssh passed over, and why."""
    for line in lines:
        if match := re.match(r'Load key "(.*)": (.*)', line):
            path, why = match.groups()
            if why == "bad permissions":
                why = f"others may read it: chmod 600 {shlex.quote(path)}"
            yield f"the key {path} was not used: {why}"


def ended_at_once(url: str, exit_status: int | None = None) -> ServerRefused:
    """Return the error for a server that lets in, and runs something else in the place of SFTP."""
    how = "" if exit_status is None else f" (exit status {exit_status})"
    return ServerRefused(
        f"the server ended the session at once{how}: the login is closed to SFTP, or the server"
        " lacks its SFTP program; ask its administrator",
        url,
    )


def changed_host_key(url: str, fingerprint: str, where: str) -> HostKeyRejected:
    """Return the error for a host key that contradicts a known one, which stands at ``where``."""
    known = f" (the old one is at {where})" if where else ""
    return HostKeyRejected(
        f"the server shows a host key{_by(fingerprint)} that is not the one known{known};"
        " ask its administrator why before removing the old one with ssh-keygen -R",
        url,
    )


def revoked_host_key(url: str, fingerprint: str, where: str) -> HostKeyRejected:
    """Return the error for a host key that is said to be revoked, at ``where``."""
    marked = f" (at {where})" if where else ""
    return HostKeyRejected(
        f"the server shows a host key{_by(fingerprint)} that is marked as revoked{marked};"
        " do not log in, ask its administrator",
        url,
    )


def unknown_host_key(url: str, fingerprint: str, command: str) -> HostKeyRejected:
    """Return the error for an unknown host key, with the command to accept it."""
    return HostKeyRejected(
        f"the server's host key{_by(fingerprint)} is not known; compare it with what the server's"
        f" administrator publishes, then accept it once with: {command}",
        url,
    )


def _by(fingerprint: str) -> str:
    return f" with fingerprint {fingerprint}" if fingerprint else ""


def _host_key_error(text: str, url: str, ssh_config: str | None) -> HostKeyRejected:
    found = re.search(r"\b(SHA256:[A-Za-z0-9+/]{20,})", text)
    fingerprint = found[1] if found else ""
    if "HAS CHANGED" in text:
        known = re.search(r"Offending \S+ key in (\S+)", text)
        return changed_host_key(url, fingerprint, known[1] if known else "")
    if re.search(r"REVOKED HOST KEY|marked as revoked", text):
        return revoked_host_key(url, fingerprint, "")
    if listed := re.search(r"revoked (?:by|keys) file (.*)", text):  # RevokedHostKeys
        return revoked_host_key(url, fingerprint, listed[1].strip())
    strict = "requested strict checking" in text
    return unknown_host_key(url, fingerprint, accept_command(url, ssh_config, strict=strict))


def accept_command(url: str, ssh_config: str | None, *, strict: bool) -> str:
    """Return what shows a server's host key and asks whether to accept it.

    Parameters
    ----------
    url : str
        The server.
    ssh_config : str or None
        A file for ``-F``.
    strict : bool
        ``ssh_config`` has ``StrictHostKeyChecking yes``, with which ssh would not ask.
    """
    match = re.match(r"\w+://(?:([^/]*)@)?(\[[^\]]+\]|[^/:]*)(?::(\d+))?", url)
    if not match:
        return "ssh HOST"
    user, host, port = match.groups()
    words = ["sftp"]
    words += ["-F", shlex.quote(ssh_config)] if ssh_config else []
    words += ["-o", "StrictHostKeyChecking=ask"] if strict else []
    words += ["-P", port] if port else []
    return " ".join([*words, f"{user}@{host}" if user else host])
