"""What ssh_config says about a server, for a client that is not ssh."""

from __future__ import annotations

import glob
import io
import os
import pwd
import re
import shlex
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paramiko

from ..errors import ConfigurationError

ALGORITHMS = ("ciphers", "macs", "kexalgorithms", "hostkeyalgorithms")
METHODS = ("publickey", "keyboard-interactive", "password")
_KEYS = ("~/.ssh/id_rsa", "~/.ssh/id_ecdsa", "~/.ssh/id_ed25519")
_DEPTH = 16  # of Include
_LINE = re.compile(r"(\w+)(?:\s*=\s*|\s+)(.+)")
_WORD = re.compile(r"""\s*((?:\\.?|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|[^\s"'\\])+)""")
_ESCAPED = re.compile(r"""\\(["'\\])""")
_PIECE = re.compile(rf"""{_ESCAPED.pattern}|"((?:\\.|[^"\\])*)"|'((?:\\.|[^'\\])*)'""")
_TOKEN = re.compile(r"%(.?)|\$\{(\w+)\}")
_LISTS = ("userknownhostsfile", "globalknownhostsfile")
_COMMANDS = ("proxycommand", "localcommand", "remotecommand", "knownhostscommand")
_ALONE = ("all", "canonical", "final")  # criteria of Match that take no argument
_CRITERIA = (*_ALONE, "host", "originalhost", "user", "localuser", "exec")


@dataclass(frozen=True)
class Site:
    """A server as ssh_config has it.

    Attributes
    ----------
    name, host : str
        As asked for, and where it is.
    port : int
    user : str
    keys : tuple of str
        Paths of private keys.
    certificates : tuple of str
        Paths of certificates of users' keys; those that lie beside keys are among them.
    algorithms : dict
        What is written about algorithms, by option: ``ciphers``, ``macs``, ``kexalgorithms``,
        ``hostkeyalgorithms``.
    gssapi : bool
        Whether logins by GSSAPI are asked for; there are none without ssh.
    identities_only : bool
        Offer no other keys of the agent.
    agent : str
        The agent's socket, "" for none.
    proxy_command : str
        What connects to it, "" for nothing.
    jumps : tuple of str
        Jump hosts as ``[user@]host[:port]``, the first one first.
    key_name : str
        Its name in known_hosts if it has an alias there, else "".
    known_hosts, global_known_hosts : tuple of str
        Files of known host keys.
    revoked : str
        A file of host keys that are not to be trusted, "" for none.
    unknown : {"yes", "ask", "accept-new", "no"}
        What to do about an unknown key (StrictHostKeyChecking).
    hashed : bool
        Write hashed names into known_hosts.
    methods : tuple of str
        Ways to log in, in this order.
    """

    name: str
    host: str
    port: int
    user: str
    keys: tuple[str, ...]
    certificates: tuple[str, ...]
    algorithms: dict[str, str]
    gssapi: bool
    identities_only: bool
    agent: str
    proxy_command: str
    jumps: tuple[str, ...]
    key_name: str
    known_hosts: tuple[str, ...]
    global_known_hosts: tuple[str, ...]
    revoked: str
    unknown: str
    hashed: bool
    methods: tuple[str, ...]


def find_site(
    name: str,
    *,
    user: str | None = None,
    port: int | None = None,
    config: str | None = None,
    key: str | None = None,
    accept_new: bool = False,
) -> Site:
    """Return what the user's ssh_config, or the file ``config`` alone, says about a server.

    The arguments win over the files, as ssh's options do.

    Raises
    ------
    ConfigurationError
        If a file cannot be read.
    """
    try:
        own = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # in a container, say, the user may have a number only
        own = os.environ.setdefault("LOGNAME", str(os.getuid()))  # where paramiko, too, looks
    # The first value of an option holds.
    text = (f"User {user}\n" if user else "") + (f"Port {port}\n" if port else "")
    text += "StrictHostKeyChecking accept-new\n" if accept_new else ""
    options = _look_up(name, [text, *_texts(config)])
    user, host = options.get("user") or own, options["hostname"]
    port = _number("Port", options.get("port", "22"))
    alias = options.get("hostkeyalias", "").lower()
    tokens = {
        "%": "%",
        "d": os.path.expanduser("~"),
        "h": host,
        "i": str(os.getuid()),
        "k": alias or name,
        "L": socket.gethostname().partition(".")[0],
        "n": name,
        "p": str(port),
        "r": user,
        "u": own,
    }

    def paths(words: Sequence[str]) -> tuple[str, ...]:
        return tuple(
            os.path.expanduser(_expand(word, tokens)) for word in words if word.lower() != "none"
        )

    def listed(option: str, default: str) -> tuple[str, ...]:
        return paths(shlex.split(options.get(option, default)))

    keys = paths([key] if key else options.get("identityfile", _KEYS))
    agent = options.get("identityagent", "$SSH_AUTH_SOCK")
    if agent == "SSH_AUTH_SOCK" or re.fullmatch(r"\$\w+", agent):
        agent = os.environ.get(agent.removeprefix("$"), "")
    command, jumps = _way(options)
    return Site(
        name=name,
        host=host,
        port=port,
        user=user,
        keys=keys,
        certificates=(
            *(f"{key.removesuffix('.pub')}-cert.pub" for key in keys),
            *paths([options.get("certificatefile", "none")]),
        ),
        algorithms={option: options[option] for option in ALGORITHMS if option in options},
        gssapi=_yes(options, "gssapiauthentication", False),
        identities_only=bool(key) or _yes(options, "identitiesonly", False),
        agent="".join(paths([agent])),
        proxy_command=_expand(command, tokens),
        jumps=tuple(_expand(jump, tokens) for jump in jumps),
        key_name=alias,
        known_hosts=listed("userknownhostsfile", "~/.ssh/known_hosts ~/.ssh/known_hosts2"),
        global_known_hosts=listed(
            "globalknownhostsfile", "/etc/ssh/ssh_known_hosts /etc/ssh/ssh_known_hosts2"
        ),
        revoked="".join(paths([options.get("revokedhostkeys", "none")])),
        unknown=_strictness(options.get("stricthostkeychecking", "ask").lower()),
        hashed=_yes(options, "hashknownhosts", False),
        methods=_methods(options),
    )


def _look_up(name: str, texts: list[str]) -> dict[str, Any]:
    parsed = paramiko.SSHConfig()
    # The others are expanded here: paramiko does not know all of them, nor all options with them.
    expanded = {one: parsed.TOKENS_BY_CONFIG_KEY[one] for one in ("hostname", "match-exec")}
    parsed.TOKENS_BY_CONFIG_KEY = expanded
    try:
        for text in texts:
            parsed.parse(io.StringIO(text))
        return dict(parsed.lookup(name))
    except ImportError:
        raise ConfigurationError(
            "ssh_config has a 'Match exec', for which paramiko needs the package invoke:"
            " pip install invoke"
        ) from None
    except (paramiko.SSHException, ValueError) as error:
        raise ConfigurationError(f"ssh_config is not valid: {error}") from None


def _texts(config: str | None) -> list[str]:
    if config is None:
        usual = [Path("~/.ssh/config").expanduser(), Path("/etc/ssh/ssh_config")]
        paths = [path for path in usual if path.exists()]
    else:
        paths = [] if config.lower() == "none" else [Path(config)]
    try:
        return ["\n".join(_lines(path, 0)) for path in paths]
    except OSError as error:
        raise ConfigurationError(
            f"cannot read ssh_config {error.filename}: {error.strerror}"
        ) from None


def _lines(path: Path, depth: int, outer: Sequence[str] = ()) -> Iterator[str]:
    """Yield the lines of a file as paramiko reads them, included ones in their place.

    paramiko takes quotes and comments for a part of values, and each criterion of a Match that it
    does not know for one that is met. And it knows no blocks within blocks, which a file is that
    is included in one: every block is a Match here, with the criteria of those around it,
    ``outer``.
    """
    block = list(outer)
    home = "/etc/ssh" if str(path).startswith("/etc/ssh") else os.path.expanduser("~/.ssh")
    for line in path.read_text(errors="replace").splitlines():
        match = _LINE.match(line.strip())
        if match is None:
            yield line
            continue
        keyword = match[1].lower()
        words = [] if keyword in _COMMANDS else _words(match[2])
        if keyword in ("host", "match"):
            criteria = ["originalhost", ",".join(words)] if keyword == "host" else _criteria(words)
            block = [*outer, *criteria]
            yield _header(block)
        elif keyword == "include" and depth < _DEPTH:
            for pattern in words:
                for found in sorted(glob.glob(os.path.join(home, os.path.expanduser(pattern)))):
                    if os.path.isfile(found):
                        yield from _lines(Path(found), depth + 1, block)
            yield _header(block)  # what follows belongs to the block again
        elif keyword in _COMMANDS:
            yield line
        else:
            yield f"{keyword} {shlex.join(words) if keyword in _LISTS else ' '.join(words)}"


def _words(text: str) -> list[str]:
    """Return the arguments of an option, without quotes and a comment at the end."""
    words: list[str] = []
    at = 0
    while (match := _WORD.match(text, at)) and not match[1].startswith("#"):
        words.append(_PIECE.sub(_plain, match[1]))
        at = match.end()
    if match is None and text[at:].strip():
        raise ConfigurationError(f"ssh_config has a quote without end: {text}")
    return words


def _plain(piece: re.Match[str]) -> str:
    return piece[1] or _ESCAPED.sub(r"\1", piece[2] or piece[3] or "")


def _criteria(words: list[str]) -> list[str]:
    """Return the criteria of a Match, in the only form that paramiko knows."""
    criteria, rest = [], iter(words)
    for word in rest:
        negated, name = "!" * word.startswith("!"), word.removeprefix("!").lower()
        if name not in _CRITERIA:
            raise ConfigurationError(
                f"paramiko cannot judge the 'Match {word}' of ssh_config: install OpenSSH's client"
            )
        if name != "all":
            criteria += [negated + name] if name in _ALONE else [negated + name, next(rest, "")]
    return criteria


def _header(block: list[str]) -> str:
    return f"Match {shlex.join(block or ['all'])}"


def _expand(text: str, tokens: Mapping[str, str]) -> str:
    """Return a value of ssh_config with its tokens and variables replaced."""

    def replacement(match: re.Match[str]) -> str:
        if match[2]:
            return os.environ.get(match[2], "")
        if match[1] == "l":
            return socket.getfqdn()
        if match[1] not in tokens:
            raise ConfigurationError(
                f"ssh_config has a {match[0]} that paramiko cannot fill: {text}"
            )
        return tokens[match[1]]

    return _TOKEN.sub(replacement, text)


def _way(options: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    """Return the ProxyCommand and the jump hosts, of which the one that stands first holds."""
    ways = [option for option in options if option in ("proxycommand", "proxyjump")]
    if not ways or ways[0] == "proxycommand":
        return options.get("proxycommand") or "", ()
    jump = options["proxyjump"]
    return "", () if jump.lower() == "none" else tuple(jump.split(","))


def _number(option: str, text: str) -> int:
    if not text.isdecimal():
        raise ConfigurationError(f"ssh_config has no number for {option}: {text}")
    return int(text)


def _yes(options: dict[str, Any], option: str, default: bool) -> bool:
    return {"yes": True, "no": False}.get(options.get(option, "").lower(), default)


def _strictness(word: str) -> str:
    return {"off": "no", "true": "yes", "false": "no"}.get(word, word)


def _methods(options: dict[str, Any]) -> tuple[str, ...]:
    preferred = options.get("preferredauthentications", ",".join(METHODS)).split(",")
    interactive = _yes(options, "challengeresponseauthentication", True)
    allowed = {
        "publickey": _yes(options, "pubkeyauthentication", True),
        "keyboard-interactive": _yes(options, "kbdinteractiveauthentication", interactive),
        "password": _yes(options, "passwordauthentication", True),
    }
    return tuple(method for method in preferred if allowed.get(method))
