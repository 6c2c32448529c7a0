"""Settings of a connection: arguments > URL > environment > config file.

The config file is YAML under the XDG config home (or where ``PYREMOTEDATA_CONFIG`` says), with
the names of the fields of `ConnectionSettings` as keys.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from .errors import ConfigurationError, NoRemoteConfigured
from .url import RemoteURL, normalise, redact

ENV = "PYREMOTEDATA_"

# The environment variables that are not called as the field of ConnectionSettings that they set.
_NAMES = {
    "username": "REMOTE_USERNAME",
    "host": "REMOTE_URI",
    "port": "REMOTE_PORT",
    "directory": "REMOTE_DIRECTORY",
    "timeout_s": "TIMEOUT",
}
_CHOICES = {
    "ftps_mode": ("auto", "explicit", "implicit"),
    "transport": ("auto", "sftp", "lftp"),
    "carrier": ("auto", "openssh", "paramiko"),
    "publish": ("rename", "direct"),
}
SECRETS = ("password", "key_passphrase", "one_time_code")
SHOWN_CHARACTERS = 200  # of a value that is not valid
FLAGS = {
    **dict.fromkeys(("yes", "true", "1", "on"), True),
    **dict.fromkeys(("no", "false", "0", "off"), False),
}
_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


class Secret(str):
    """A string that does not show itself: not in ``repr``, and not in a pickle."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "Secret(***)"

    def __reduce__(self) -> Any:
        raise TypeError("a secret is never pickled; set it in the environment where it is needed")

    __str__ = __repr__
    __format__ = lambda self, _spec: repr(self)  # noqa: E731

    def reveal(self) -> str:
        """Return the plain secret, for the program that needs it."""
        return str.__str__(self)


@dataclass(frozen=True)
class ConnectionSettings:
    """How to reach a server. Frozen, comparable; pickles without its secrets.

    Attributes
    ----------
    username, host, port, directory
        The configured remote; a URL overrides them. ``directory`` is where relative remote
        paths begin, default the login directory.
    local_directory : str
        Where relative local paths of `IOHandler` begin.
    password, key_passphrase : Secret or None
        Given to OpenSSH through askpass, to lftp through its environment; never in argv.
    one_time_code : Secret or None
        The answer to a server that asks for one; sent once, and never kept in the config file.
    ssh_config : str or None
        A file for ``ssh -F``.
    ssh_key : str or None
        A private key file; only this key is then offered, and by ssh, after it, what ssh_config
        has as IdentityFile for the server.
    accept_new : bool
        Accept the host key of a server seen for the first time (never a changed one).
    ftps_mode : {"auto", "explicit", "implicit"}
        Whether TLS is asked for after an FTP connection is made, or begins with it. "auto":
        implicit at port 990, else explicit.
    ca_file : str or None
        Certificates (PEM) of the authorities that may vouch for an ftps server, in place of the
        system's.
    transport : {"auto", "sftp", "lftp"}
    carrier : {"auto", "openssh", "paramiko"}
        What carries the SFTP transport. By default the program ssh, and paramiko where there is
        none.
    connections : int
        Sessions per host and node at the most.
    timeout_s : float
        Give up when nothing has moved for so many seconds.
    bandwidth : int or None
        Bytes per second at the most, of this process and server; downloads and uploads each. Of
        processes that share a helper: of all together.
    fsync : bool
        Flush every local file to disk before it is published. Off: a power cut may leave a
        published file empty or short, a killed process may not.
    publish : {"rename", "direct"}
        How an upload gets its name. "direct" is for archives that let one write, but not rename
        or delete: it is written under its final name, and while it moves, or when it is broken
        off, a part of it stands there.
    cache_dir : str or None
        Place of the node's cache.
    cache_bytes : int
        Its budget.
    """

    username: str | None = None
    host: str | None = None
    port: int | None = None
    directory: str = "/~"
    local_directory: str = ""
    password: Secret | None = field(default=None, repr=False, compare=False)
    key_passphrase: Secret | None = field(default=None, repr=False, compare=False)
    one_time_code: Secret | None = field(default=None, repr=False, compare=False)
    ssh_config: str | None = None
    ssh_key: str | None = None
    accept_new: bool = False
    ftps_mode: str = "auto"
    ca_file: str | None = None
    transport: str = "auto"
    carrier: str = "auto"
    connections: int = 4
    timeout_s: float = 60.0
    bandwidth: int | None = None
    fsync: bool = False
    publish: str = "rename"
    cache_dir: str | None = None
    cache_bytes: int = 50 * 2**30

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, **dict.fromkeys(SECRETS)}

    @classmethod
    def load(cls, **arguments: Any) -> ConnectionSettings:
        """Read the settings: ``arguments`` (None means not given), environment, config file.

        Raises
        ------
        ConfigurationError
            Naming the variable, key or argument that is wrong.
        """
        values: dict[str, Any] = {}
        known = {f.name for f in fields(cls)}
        path, from_file = _read_file()
        for key, value in from_file.items():
            if key not in known:
                raise ConfigurationError(f"{path}: unknown setting {key!r}")
            if key == "one_time_code":
                raise ConfigurationError(
                    f"{path}: a one-time code serves one login only; give it as {ENV}ONE_TIME_CODE"
                )
            if value is not None:
                values[key] = convert(key, value, f"{path}: {key}")
        for suffix, key in VARIABLES.items():
            text = os.environ.get(ENV + suffix, "")
            if text:
                values[key] = convert(key, text, ENV + suffix)
        for key, value in arguments.items():
            if key not in known:
                raise ConfigurationError(f"unknown setting {key!r}")
            if value is not None:
                values[key] = convert(key, value, key)
        return cls(**values)

    def root(self) -> RemoteURL:
        """Return the configured remote directory.

        Raises
        ------
        ConfigurationError
            If no host is configured.
        """
        if not self.host:
            raise NoRemoteConfigured(
                "no remote is configured: give a URL (sftp://host/path), or set"
                f" {ENV}REMOTE_URI (and {ENV}REMOTE_USERNAME) or {config_path()}"
            )
        return RemoteURL("sftp", self.host, normalise(self.directory), self.username, self.port)

    def for_url(self, url: RemoteURL) -> ConnectionSettings:
        """Return the settings with what the URL says in place of user, host and port.

        What was configured for one host, secrets above all, is not used for another.
        """
        same_host = self.host in (None, url.host)
        return replace(
            self if same_host else replace(self, password=None, one_time_code=None),
            username=url.user or (self.username if same_host else None),
            host=url.host,
            port=url.port or (self.port if same_host and self.host else None),
        )

    def transport_for(self, url: RemoteURL) -> str:
        """Return which transport serves a URL: ``"sftp"`` or ``"lftp"``.

        Raises
        ------
        ConfigurationError
            If the one that was chosen does not.
        """
        if url.scheme == "sftp":
            return "sftp" if self.transport == "auto" else self.transport
        if self.transport == "sftp":
            raise ConfigurationError(f"{url.scheme}:// needs the lftp transport", str(url))
        return "lftp"

    def to_plain(self) -> dict[str, Any]:
        """Return all fields as builtins, secrets revealed: for the helper's socket only."""
        plain = dict(self.__dict__)
        for key in ("ssh_config", "ssh_key", "ca_file"):  # the helper works in another directory
            plain[key] = os.path.abspath(plain[key]) if plain[key] else None
        if str(self.ssh_config or "").lower() == "none":  # to ssh: no file at all
            plain["ssh_config"] = "none"
        for key in ("local_directory", "cache_dir"):  # which may be given as `Path`
            plain[key] = os.fspath(plain[key]) if plain[key] else plain[key]
        for key in SECRETS:
            plain[key] = plain[key].reveal() if plain[key] else None
        return plain

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> ConnectionSettings:
        """Rebuild the settings from `to_plain`."""
        secrets = {key: Secret(plain[key]) for key in SECRETS if plain[key]}
        return cls(**{**plain, **secrets})


# The field that each environment variable sets.
VARIABLES = {_NAMES.get(f.name, f.name.upper()): f.name for f in fields(ConnectionSettings)}


def config_path() -> Path:
    """Return where the config file is, or would be.

    Raises
    ------
    ConfigurationError
        If it is in a home directory that nobody knows.
    """
    chosen = os.environ.get(ENV + "CONFIG")
    home = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    try:
        if chosen:
            return Path(chosen).expanduser()
        return Path(home).expanduser() / "pyremotedata" / "config.yaml"
    except RuntimeError:
        raise ConfigurationError(
            f"no home directory is known for {chosen or home}; set HOME, or {ENV}CONFIG"
        ) from None


def read_config() -> dict[str, Any]:
    """Return the settings that the config file holds, as they are written there."""
    return {key: value for key, value in _read_file()[1].items() if value is not None}


def remove_config() -> bool:
    """Delete the config file; return whether there was one."""
    try:
        config_path().unlink()
    except FileNotFoundError:
        return False
    return True


def parse_bytes(text: str | int | float) -> int:
    """Read a number of bytes: ``1000``, ``10M``, ``1.5 GiB`` (powers of 1024).

    Raises
    ------
    ValueError
        If it is none.
    """
    unit = ""
    if isinstance(text, str):
        text = text.strip().lower().removesuffix("ib").removesuffix("b").strip()
        unit = text[-1:] if text[-1:] in _UNITS else ""
        text = text[: len(text) - len(unit)]
    try:
        return int(float(text) * _UNITS[unit]) if isinstance(text, str | float) else int(text)
    except (TypeError, OverflowError):
        raise ValueError(f"not a number of bytes: {text!r}") from None


def convert(key: str, value: Any, where: str) -> Any:
    """Return a value as the field of that name has it.

    Raises
    ------
    ConfigurationError
        If it is not valid; ``where`` names what holds it.
    """
    try:
        return _CONVERTERS.get(key, _text)(value)
    except (ValueError, TypeError, KeyError, OverflowError):
        if key in SECRETS:
            raise ConfigurationError(f"{where} is not valid") from None
        wanted = f"; it is {_WANTED[key]}" if key in _WANTED else ""
        raise ConfigurationError(f"{where} is not valid: {_shown(value)}{wanted}") from None


def _read_file() -> tuple[Path, dict[str, Any]]:
    path = config_path()
    try:
        with path.open("rb") as file:
            content = file.read()
            shared = os.fstat(file.fileno()).st_mode & 0o077
    except FileNotFoundError:
        if os.environ.get(ENV + "CONFIG"):
            raise ConfigurationError(f"{ENV}CONFIG: there is no file {path}") from None
        return path, {}
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from None
    import yaml

    try:
        values = yaml.load(content.decode(), _plain_loader()) or {}  # noqa: S506 - a safe one
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # The parser's own text may quote the file, which may hold a secret. It lets through what
        # Python says of bytes that are no text, days that there are not, and endless numbers.
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise ConfigurationError(f"{path}{where}: not valid YAML") from None
    if not isinstance(values, dict):
        raise ConfigurationError(f"{path}: expected lines of the form 'setting: value'")
    if shared and any(values.get(key) for key in SECRETS):
        raise ConfigurationError(f"{path} holds a secret that others may read: chmod 600 {path}")
    return path, values


def _plain_loader() -> Any:
    """Return what leaves a value as it is written: to YAML 1.1 a password 0123 is 83."""
    import yaml

    resolvers = {
        first: [one for one in found if one[0] == "tag:yaml.org,2002:null"]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    return type("PlainLoader", (yaml.SafeLoader,), {"yaml_implicit_resolvers": resolvers})


def _shown(value: Any) -> str:
    try:
        text = redact(repr(value))
    except ValueError:  # an integer that is too long to be written
        return "a number without end"
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"


def _text(value: Any) -> str:
    if not isinstance(value, str | os.PathLike | int | float):
        raise TypeError
    return os.fspath(value) if isinstance(value, os.PathLike) else str(value)


def _path(value: Any) -> str:
    return os.path.expanduser(_text(value))


def _secret(value: Any) -> Secret:
    if isinstance(value, Secret):
        return value
    text = _text(value)
    if "\n" in text or "\0" in text:
        raise ValueError
    return Secret(text)


def _flag(value: Any) -> bool:
    return FLAGS[str(value).lower()]


def _positive(value: Any) -> int:
    number = int(value)
    if number < 1 or isinstance(value, bool | float):
        raise ValueError
    return number


def _port(value: Any) -> int:
    number = _positive(value)
    if number > 65535:
        raise ValueError
    return number


def _seconds(value: Any) -> float:
    number = float(value)
    if isinstance(value, bool) or not 0 < number < 10**7:
        raise ValueError
    return number


def _bytes(value: Any) -> int:
    return _positive(parse_bytes(value))


def _one_of(choices: tuple[str, ...]) -> Callable[[Any], str]:
    def choose(value: Any) -> str:
        if value not in choices:
            raise ValueError
        return str(value)

    return choose


def _host(value: Any) -> str:
    url = RemoteURL.parse(f"sftp://{value}/")
    if url.user or url.port or url.path != "/":
        raise ValueError  # each has a setting of its own
    return url.host


def _directory(value: Any) -> str:
    text = _text(value)
    if text == "~":
        return "/~"
    return normalise(text if text.startswith("/") else "/~/" + text.removeprefix("~/"))


_WANTED = {  # for people
    "host": "a name or address alone, as io.erda.au.dk; user, port and directory are set elsewhere",
    "port": "a number from 1 to 65535",
    "connections": "a whole number, at least 1",
    "timeout_s": "a number of seconds, more than 0",
    **dict.fromkeys(("accept_new", "fsync"), "yes or no"),
    **dict.fromkeys(("bandwidth", "cache_bytes"), "a number of bytes, as 10M"),
    **{key: " or ".join(choices) for key, choices in _CHOICES.items()},
}

_CONVERTERS = {
    "host": _host,
    "port": _port,
    "directory": _directory,
    "connections": _positive,
    "timeout_s": _seconds,
    **dict.fromkeys(("local_directory", "ssh_config", "ssh_key", "ca_file", "cache_dir"), _path),
    **dict.fromkeys(SECRETS, _secret),
    **dict.fromkeys(("accept_new", "fsync"), _flag),
    **dict.fromkeys(("bandwidth", "cache_bytes"), _bytes),
    **{key: _one_of(choices) for key, choices in _CHOICES.items()},
}
