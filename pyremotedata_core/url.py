"""Remote URLs: parse, normalise, join, print.

``sftp://[user@]host[:port]/abs/path``, ``ftp://``, ``ftps://``. ``host`` may be an alias of the
user's ssh_config. ``/~/x`` is relative to the login directory, ``//~/x`` is below an entry of the
root that is called ``~``. ``pyremotedata+sftp://`` means the same. Percent-encoding is decoded
once; ``?`` and ``#`` are ordinary characters of a path.
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass, field, replace
from urllib.parse import quote, unquote_to_bytes

from .errors import ConfigurationError, UnsafeName

SCHEMES = ("sftp", "ftp", "ftps")
PREFIX = "pyremotedata+"

_FORM = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/]*)(?P<path>/.*)?", re.S
)
_HOST = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.-]*|\[[0-9A-Fa-f:.]+(%[A-Za-z0-9_.-]+)?\]")
_PORT = re.compile(r"[0-9]{1,5}")
_USER = re.compile(r"[^\s\x00-\x1f\x7f'\"`$\\;&<>|(){}-][^\s\x00-\x1f\x7f'\"`$\\;&<>|(){}]*")
_SAFE = "/~!$&'()*+,;=:@-._"


def encode_path(path: str) -> str:
    """Percent-encode a path for a URL."""
    return quote(path.encode("utf-8", "surrogateescape"), safe=_SAFE)


def redact(text: str) -> str:
    """Return text without what may be a password before an ``@``."""
    text = re.sub(r"(//[^/:@\s]*):\S*@", r"\1:***@", text)  # it may hold any character
    return re.sub(r":[^:/@\s]*@", ":***@", text)


def looks_like_url(text: str) -> bool:
    """Whether the text is meant as a URL of some scheme rather than as a path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) is not None


@dataclass(frozen=True, slots=True)
class RemoteURL:
    """A remote file or directory.

    Attributes
    ----------
    scheme : {"sftp", "ftp", "ftps"}
    host : str
        Host name, address or ssh_config alias; IPv6 addresses without brackets.
    path : str
        Decoded, normalised, absolute; undecodable bytes as surrogate escapes. A path below the
        login directory begins with ``/~/``.
    user : str or None
    port : int or None
    trailing_slash : bool
        Whether the URL was written with a final ``/``, which asks for a directory. Not part of
        identity.

    Notes
    -----
    Immutable, hashable, safe to share between threads, never holds a secret.
    """

    scheme: str
    host: str
    path: str
    user: str | None = None
    port: int | None = None
    trailing_slash: bool = field(default=False, compare=False)

    @classmethod
    def parse(cls, text: str | RemoteURL) -> RemoteURL:
        """Read a URL.

        Raises
        ------
        ConfigurationError
            If it is not a URL that this project serves, or carries a password.
        UnsafeName
            If its path holds a NUL character, or half of one.
        """
        if isinstance(text, RemoteURL):
            return text
        form = _FORM.fullmatch(text)
        if form is None:
            raise ConfigurationError(
                f"not a remote URL: {redact(repr(text))}; write sftp://[user@]host[:port]/path"
            )
        scheme = form["scheme"].lower().removeprefix(PREFIX)
        if scheme not in SCHEMES:
            raise ConfigurationError(
                f"unknown scheme {form['scheme']!r}; use sftp://, ftp:// or ftps://"
            )
        userinfo, at, hostport = form["authority"].rpartition("@")
        user, colon, _password = userinfo.partition(":")
        if colon:
            raise ConfigurationError(
                f"a password does not belong in a URL (user {_decode(user)!r}, host {hostport!r});"
                " use a key or ssh-agent, or set PYREMOTEDATA_PASSWORD or the config file"
            )
        user = _decode(user)
        if at and not _USER.fullmatch(user):
            raise ConfigurationError(f"not a user name: {user!r}")
        host, port = _split_port(hostport)
        raw = form["path"] or "/"
        path = _decode(raw)
        if "\0" in path:
            raise UnsafeName(f"a path cannot hold a NUL character: {raw!r}")
        return cls(
            scheme, host, normalise(path), user or None, port, trailing_slash=path.endswith("/")
        )

    def __str__(self) -> str:
        return self.server + encode_path(self.path)

    @property
    def server(self) -> str:
        """The URL without its path: what one login serves."""
        user = quote(self.user, safe="@+,=._~-") + "@" if self.user else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{user}{host}{f':{self.port}' if self.port else ''}"

    @property
    def name(self) -> str:
        """The last component of the path."""
        return posixpath.basename(self.path)

    @property
    def parent(self) -> RemoteURL:
        """The directory that holds it; the root is its own parent."""
        path = parent_path(self.path)
        return RemoteURL(self.scheme, self.host, path, self.user, self.port, trailing_slash=True)

    def below(self, relative: str) -> RemoteURL:
        """Return the URL of a path that is normal already, as names from a listing are."""
        path = child_path(self.path, relative)
        return RemoteURL(self.scheme, self.host, path, self.user, self.port)

    def join(self, relative: str) -> RemoteURL:
        """Return the URL of a decoded path relative to this one; an absolute one replaces it.

        Raises
        ------
        UnsafeName
            If it holds a NUL character, or half of one.
        """
        _encoded(relative)
        if "\0" in relative:
            raise UnsafeName(f"a path cannot hold a NUL character: {relative!r}", str(self))
        return replace(
            self,
            path=_join(self.path, relative),
            trailing_slash=relative.endswith("/"),
        )


def normalise(path: str) -> str:
    """Collapse ``//``, ``.`` and ``..`` of an absolute path; ``..`` stops at the root."""
    if path.startswith("/~/") or path == "/~":
        inner = posixpath.normpath("/" + path[3:])
        return "/~" if inner == "/" else "/~" + inner
    plain = posixpath.normpath("/" + path.lstrip("/"))
    # Two slashes keep an entry called "~" apart from the login directory.
    return "/" + plain if plain == "/~" or plain.startswith("/~/") else plain


def child_path(directory: str, name: str) -> str:
    """Return the path of an entry of a directory, or of one below it."""
    if directory == "/":
        # An entry of the root called "~" is not the login directory.
        return f"//{name}" if name == "~" or name.startswith("~/") else f"/{name}"
    return posixpath.join(directory, name)


def parent_path(path: str) -> str:
    """Return the path of the directory that holds an entry; the root is its own."""
    return normalise(posixpath.dirname(path))


def wire_path(path: str) -> bytes:
    """Return the path as the server sees it: relative to the login directory after ``/~``."""
    if path == "/~":
        path = "."
    elif path.startswith("/~/"):
        path = path[3:]
    elif path.startswith("//"):
        path = path[1:]
    return path.encode("utf-8", "surrogateescape")


def _join(base: str, relative: str) -> str:
    path = posixpath.join(base, relative)
    below_login = (base if not relative.startswith("/") else relative).startswith("/~")
    return normalise(path if below_login else "/" + path)


def _decode(text: str) -> str:
    return unquote_to_bytes(_encoded(text)).decode("utf-8", "surrogateescape")


def _encoded(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a surrogate that stands for no byte
        raise UnsafeName(f"a path cannot hold half a character: {text!r}") from None


def _split_port(hostport: str) -> tuple[str, int | None]:
    host, colon, port_text = hostport.rpartition(":")
    if not colon or hostport.endswith("]"):
        host, colon = hostport, ""
    if not _HOST.fullmatch(host):
        raise ConfigurationError(
            f"not a host name: {host!r}" if host else "the URL names no host; sftp://host/path"
        )
    port = None
    if colon:
        if not _PORT.fullmatch(port_text) or not 0 < int(port_text) < 65536:
            # Not what was read: it may be a part of a password, up to a slash in it.
            raise ConfigurationError(
                f"what follows {host}: is not a port number, nor is a password accepted in a URL"
            )
        port = int(port_text)
    return host.strip("[]"), port
