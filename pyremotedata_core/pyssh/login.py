"""Connecting and logging in by paramiko, in the ways of OpenSSH.

Errors are those of the engine; what ssh would say of the same trouble leads to them, so that they
read alike with either carrier.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import paramiko
from paramiko.common import cMSG_SERVICE_REQUEST

from ..askpass import NO_ANSWER, find_answer
from ..config import ConnectionSettings
from ..errors import (
    ENDED_LOGIN,
    NO_WAY_ON,
    AuthenticationFailed,
    ConfigurationError,
    ConnectionLost,
    TransferError,
    accept_command,
    changed_host_key,
    from_ssh_stderr,
    revoked_host_key,
    unknown_host_key,
)
from ..ssh import FAST_CIPHERS, check_key
from ..url import RemoteURL
from . import hostkeys
from .keys import keys_to_offer
from .site import Site, find_site

WINDOW_BYTES = 16 << 20
PACKET_BYTES = 128 << 10
READ_BYTES = 256 << 10
WAKE_S = 1.0  # how often a silent connection is looked at
ALIVE_S = 30
PERSON_S = 300.0
_JUMPS = 8
_STEPS = 5  # ways to log in that a server may want one after the other
_SECURITY = {
    "ciphers": "ciphers",
    "macs": "digests",
    "kexalgorithms": "kex",
    "hostkeyalgorithms": "key_types",
}


@dataclass(frozen=True)
class Login:
    """What a login needs: settings, the answers of `ssh.login_environment`, which login it is."""

    settings: ConnectionSettings
    answers: Mapping[str, str]
    own: bool = True  # for the server itself rather than for a jump host

    @property
    def can_answer(self) -> bool:
        """Whether there is anything to say to a question."""
        names = ["PYREMOTEDATA_ASKER"]
        if self.own:
            names += ["PYREMOTEDATA_ANSWER_PASSWORD", "PYREMOTEDATA_ANSWER_CODE"]
        return any(self.answers.get(name) for name in names)

    def answer(self, question: str) -> str | None:
        """Return the answer to a question."""
        return find_answer(question, self.answers, "paramiko", own=self.own)

    def find(self, name: str, user: str | None, port: int | None, key: str | None = None) -> Site:
        """Return what ssh_config says about a host."""
        settings = self.settings
        return find_site(
            name,
            user=user,
            port=port,
            config=settings.ssh_config,
            key=key,
            accept_new=settings.accept_new,
        )


def log_in(login: Login) -> paramiko.Transport:
    """Connect to the server of the settings and log in.

    Raises
    ------
    TransferError
        Whatever stands in the way.
    """
    settings = login.settings
    if settings.ssh_key:
        check_key(settings.ssh_key)
    site = login.find(settings.host or "", settings.username, settings.port, settings.ssh_key)
    return _enter(
        login, site, 0, RemoteURL("sftp", site.name, "/", settings.username, settings.port)
    )


def _enter(login: Login, site: Site, depth: int, url: RemoteURL) -> paramiko.Transport:
    if depth > _JUMPS:
        raise ConfigurationError(f"ProxyJump leads through more than {_JUMPS} hosts: {site.name}")
    transport = OnceAsking(
        Stream(_connect(login, site, depth)),  # type: ignore[arg-type]
        default_window_size=WINDOW_BYTES,
        default_max_packet_size=PACKET_BYTES,
    )
    limit_s = login.settings.timeout_s + 5  # the session's own limit comes first
    transport.banner_timeout = transport.handshake_timeout = limit_s
    transport.channel_timeout = limit_s
    transport.auth_timeout = PERSON_S
    transport.set_keepalive(ALIVE_S)
    names = [site.key_name or hostkeys.name_of(site.host, site.port)]
    if not site.key_name and site.port != 22:
        names.append(hostkeys.name_of(site.host, 22))
    files = (*site.known_hosts, *site.global_known_hosts)
    known = [hostkeys.find_entries(name, files) for name in names]
    try:
        _prefer(transport, site, [entry.kind for entry in known[0] if not entry.marker])
        transport.start_client(timeout=limit_s)
        _check_host_key(login, site, transport.get_remote_server_key(), names[0], known, url.server)
        _authenticate(transport, login, site)
    except TransferError:
        raise
    except (paramiko.SSHException, EOFError, OSError) as error:
        raise _explain(error, site) from None
    return transport


# --- the way there ------------------------------------------------------------------------------


class Stream:
    """A socket for paramiko's reading thread, which asks for a few bytes at a time, and often."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._buffer = memoryview(b"")
        stream.settimeout(WAKE_S)
        self.send = stream.send
        self.close = stream.close

    def settimeout(self, _timeout_s: float) -> None:
        """Keep our own: paramiko's would wake it ten times a second."""

    def recv(self, size: int) -> bytes:
        """Return at most so many bytes; b"" at the end. Raises TimeoutError in silence."""
        if not self._buffer:
            self._buffer = memoryview(self._stream.recv(READ_BYTES))
        data = bytes(self._buffer[:size])
        self._buffer = self._buffer[size:]
        return data


class OnceAsking(paramiko.Transport):
    """Asks for the service of logins once, where paramiko asks before each attempt.

    RFC 4252 has it once for all, and servers in Go, as well as asyncssh, end the connection
    when they are asked again.
    """

    _asked = False

    def _send_message(self, data: paramiko.Message) -> None:
        if self.authenticated or data.asbytes()[:1] != cMSG_SERVICE_REQUEST:
            super()._send_message(data)  # type: ignore[misc]
        elif not self._asked:
            self._asked = True
            super()._send_message(data)  # type: ignore[misc]
        else:
            accepted = paramiko.Message()
            accepted.add_string("ssh-userauth")
            accepted.rewind()
            self.auth_handler._parse_service_accept(accepted)  # type: ignore[union-attr]


def _connect(login: Login, site: Site, depth: int) -> Any:
    """Return a stream to the server: through jump hosts, through a program, or direct."""
    limit_s = login.settings.timeout_s
    if site.proxy_command:
        return _start_proxy(site.proxy_command)
    if site.jumps:
        return _jump(login, site, depth)
    try:
        stream = socket.create_connection((site.host, site.port), timeout=limit_s)
    except socket.gaierror as error:
        text = f"Could not resolve hostname {site.host}: {error.strerror}"
        raise from_ssh_stderr(text, "") from None
    except OSError as error:
        why = error.strerror or "Connection timed out"
        text = f"connect to host {site.host} port {site.port}: {why}"
        raise from_ssh_stderr(text, "") from None
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return stream


def _start_proxy(command: str) -> socket.socket:
    """Run a ProxyCommand; it ends with this process's group."""
    ours, theirs = socket.socketpair()
    with theirs:
        subprocess.Popen(
            ["/bin/sh", "-c", f"exec {command}"], stdin=theirs.fileno(), stdout=theirs.fileno()
        )
    return ours


def _jump(login: Login, site: Site, depth: int) -> Any:
    hop = site.jumps[-1].strip().removeprefix("ssh://")
    user, _, place = hop.rpartition("@")
    name, port = place, None
    if place.rpartition(":")[2].isdigit() and (place.count(":") == 1 or "]:" in place):
        name, _, digits = place.rpartition(":")
        port = int(digits)
    theirs = Login(login.settings, login.answers, own=False)
    jump = theirs.find(name.strip("[]"), user or None, port)
    if len(site.jumps) > 1:  # the last one is reached through those before it
        jump = replace(jump, jumps=site.jumps[:-1], proxy_command="")
    url = RemoteURL("sftp", jump.name, "/", user or None, port)
    transport = _enter(theirs, jump, depth + 1, url)
    try:
        return transport.open_channel("direct-tcpip", (site.host, site.port), ("127.0.0.1", 0))
    except paramiko.SSHException as error:
        why = f"{jump.name} to {site.host}:{site.port}: {error}"
        raise ConnectionLost(f"{NO_WAY_ON}: {why}") from None


def _prefer(transport: paramiko.Transport, site: Site, known: list[str]) -> None:
    """Ask for what ssh_config says; else for the host keys that are known, and fast ciphers."""
    security = transport.get_security_options()
    for option, field in _SECURITY.items():
        if option in site.algorithms:
            chosen = _choose(site.algorithms[option], security, field)
            if not chosen:
                raise ConfigurationError(
                    f"paramiko knows nothing of what ssh_config has for {option}"
                    f" ({site.algorithms[option]}); its own: {', '.join(getattr(security, field))}"
                )
            setattr(security, field, chosen)
    types = ["rsa-sha2" if kind == "ssh-rsa" else kind for kind in known]

    def is_new(algorithm: str) -> bool:
        return not any(algorithm.startswith(kind) for kind in types)

    if "hostkeyalgorithms" not in site.algorithms:
        security.key_types = tuple(sorted(security.key_types, key=is_new))
    if "ciphers" not in site.algorithms:
        fast = tuple(name for name in FAST_CIPHERS if name in security.ciphers)
        security.ciphers = fast + tuple(name for name in security.ciphers if name not in fast)


def _choose(
    written: str, security: paramiko.transport.SecurityOptions, field: str
) -> tuple[str, ...]:
    """Return the algorithms of an option of ssh_config: a list, or a change (+, -, ^) of ours."""
    own = getattr(security, field)
    names = written.lstrip("+-^").split(",")
    if written.startswith("-"):
        return tuple(one for one in own if not any(fnmatchcase(one, name) for name in names))
    known = []
    for name in names:
        for form in (name, f"{name}@libssh.org"):  # as curve25519-sha256 was called at first
            with contextlib.suppress(ValueError):
                setattr(security, field, (form,))
                known.append(form)
                break
    setattr(security, field, own)
    others = [name for name in own if name not in known]
    return tuple({"+": [*own, *known], "^": [*known, *others]}.get(written[:1], known))


# --- the server's key ---------------------------------------------------------------------------


def _check_host_key(
    login: Login,
    site: Site,
    key: paramiko.PKey,
    name: str,
    known: list[list[hostkeys.Entry]],
    url: str,
) -> None:
    kind, blob = key.get_name(), key.asbytes()
    fingerprint = hostkeys.fingerprint_of(blob)
    if site.revoked and (why := hostkeys.why_revoked(site.revoked, blob)):
        raise revoked_host_key(url, fingerprint, why)
    verdict, where = hostkeys.judge(known[0], kind, blob)
    if verdict == "unknown" and hostkeys.judge(known[-1], kind, blob)[0] == "known":
        return  # known without its port
    if verdict == "known":
        return
    if verdict == "revoked":
        raise revoked_host_key(url, fingerprint, where)
    if verdict == "changed":
        # Also with StrictHostKeyChecking=no, where ssh would go on without a password.
        raise changed_host_key(url, fingerprint, where)
    if site.unknown not in ("accept-new", "no"):
        strict = site.unknown == "yes"
        command = accept_command(url, login.settings.ssh_config, strict=strict)
        if shutil.which("sftp") is None:
            command = f"pyremotedata ls --accept-new {url}/"
        raise unknown_host_key(url, fingerprint, command)
    if site.known_hosts:
        hostkeys.remember(site.known_hosts[0], name, kind, blob, hashed=site.hashed)


# --- the login ----------------------------------------------------------------------------------


def _authenticate(transport: paramiko.Transport, login: Login, site: Site) -> None:
    try:
        transport.auth_none(site.user)
    except paramiko.BadAuthenticationType as refused:
        allowed = refused.allowed_types
    else:
        return
    methods = {"publickey": _offer_keys}
    if login.can_answer:
        methods |= {"keyboard-interactive": _talk, "password": _give_password}
    for _ in range(_STEPS):
        for method in site.methods:
            if method not in methods or method not in allowed:
                continue
            further = methods[method](transport, login, site)
            if further is not None:
                break
        else:
            break
        if not further:
            return
        allowed = further  # this was one of several steps
    text = f"{site.user}@{site.host}: Permission denied ({','.join(allowed)})."
    if site.gssapi:
        text += " GSSAPIAuthentication needs the program ssh; paramiko cannot do it."
    raise from_ssh_stderr(text, "")


def _offer_keys(transport: paramiko.Transport, login: Login, site: Site) -> list[str] | None:
    offered = set()
    for key in keys_to_offer(site, login.answer):
        shown = key.public_blob.key_blob if key.public_blob else key.asbytes()
        if shown in offered:
            continue
        offered.add(shown)
        further = _try(transport, partial(transport.auth_publickey, site.user, key))
        if further is not None:
            return further
    return None


def _talk(transport: paramiko.Transport, login: Login, site: Site) -> list[str] | None:
    def handle(_title: str, _text: str, prompts: list[tuple[str, bool]]) -> list[str]:
        return [_answer(login, f"({site.user}@{site.host}) {text}") for text, _echo in prompts]

    return _try(transport, partial(transport.auth_interactive, site.user, handle))


def _give_password(transport: paramiko.Transport, login: Login, site: Site) -> list[str] | None:
    password = _answer(login, f"{site.user}@{site.host}'s password: ")
    return _try(transport, partial(transport.auth_password, site.user, password, fallback=False))


def _answer(login: Login, question: str) -> str:
    answer = login.answer(question)
    if answer is None:
        # Any other answer would be sent as a wrong one.
        raise from_ssh_stderr(f"{NO_ANSWER} {question}", "")
    return answer


def _try(transport: paramiko.Transport, attempt: Callable[[], list[str]]) -> list[str] | None:
    """Return what else the server wants, None if it refuses."""
    try:
        return attempt()
    except paramiko.AuthenticationException as error:
        if not transport.is_active():
            raise AuthenticationFailed(
                f"{ENDED_LOGIN}: {error}; check user name, key and password; not tried again"
            ) from None
        return None


def _explain(error: Exception, site: Site) -> TransferError:
    """Turn an exception of paramiko into an error."""
    text = str(error)
    if isinstance(error, EOFError) or not text or "session not active" in text:
        text = f"Connection closed by {site.host} port {site.port}"
    elif isinstance(error, paramiko.ChannelException):
        text = f"open failed: {error.text}"
    elif "protocol banner" in text or "protocol version" in text:
        # A server that hangs up says as little.
        cause = error.__cause__ or error.__context__
        gone = isinstance(cause, EOFError | ConnectionError)
        text = "Connection closed" if gone else f"banner exchange: invalid format: {text}"
    elif isinstance(error, paramiko.ssh_exception.IncompatiblePeer):
        text = f"Unable to negotiate with {site.host}: {text}"
    elif isinstance(error, OSError):
        text = error.strerror or text
    return from_ssh_stderr(text, "", 255)  # as ssh ends without a login
