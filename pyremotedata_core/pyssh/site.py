"""What ssh_config says about a server, for a client that is not ssh."""

from __future__ import annotations

import glob
import io
import os
import pwd
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paramiko

from ..errors import ConfigurationError

ALGORITHMS = ("ciphers", "macs", "kexalgorithms", "hostkeyalgorithms")
METHODS = ("publickey", "keyboard-interactive", "password")
_KEYS = ("id_rsa", "id_ecdsa", "id_ed25519")
_DEPTH = 16  # of Include


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
    # The first value of an option holds.
    text = (f"User {user}\n" if user else "") + (f"Port {port}\n" if port else "")
    text += "StrictHostKeyChecking accept-new\n" if accept_new else ""
    options = _look_up(name, [text, *_texts(config)])

    def words(option: str, default: str) -> tuple[str, ...]:
        found = shlex.split(options.get(option, default))
        return tuple(os.path.expanduser(word) for word in found if word.lower() != "none")

    files = [path for path in options.get("identityfile", []) if path.lower() != "none"]
    if key:
        files = [key]
    elif "identityfile" not in options:
        files = [f"~/.ssh/{key_name}" for key_name in _KEYS]
    keys = tuple(os.path.expanduser(path.strip('"')) for path in files)
    agent = options.get("identityagent", "SSH_AUTH_SOCK")
    if agent in ("SSH_AUTH_SOCK", "$SSH_AUTH_SOCK"):
        agent = os.environ.get("SSH_AUTH_SOCK", "")
    jump = options.get("proxyjump", "none")
    return Site(
        name=name,
        host=options["hostname"],
        port=int(options.get("port", 22)),
        user=options.get("user") or pwd.getpwuid(os.getuid()).pw_name,
        keys=keys,
        certificates=(
            *(f"{key.removesuffix('.pub')}-cert.pub" for key in keys),
            *words("certificatefile", ""),
        ),
        algorithms={option: options[option] for option in ALGORITHMS if option in options},
        gssapi=_yes(options, "gssapiauthentication", False),
        identities_only=bool(key) or _yes(options, "identitiesonly", False),
        agent="" if agent.lower() == "none" else os.path.expanduser(agent.strip('"')),
        proxy_command=options.get("proxycommand", ""),
        jumps=() if jump.lower() == "none" else tuple(jump.split(",")),
        key_name=options.get("hostkeyalias", "").lower(),
        known_hosts=words("userknownhostsfile", "~/.ssh/known_hosts ~/.ssh/known_hosts2"),
        global_known_hosts=words(
            "globalknownhostsfile", "/etc/ssh/ssh_known_hosts /etc/ssh/ssh_known_hosts2"
        ),
        unknown=_strictness(options.get("stricthostkeychecking", "ask").lower()),
        hashed=_yes(options, "hashknownhosts", False),
        methods=_methods(options),
    )


def _look_up(name: str, texts: list[str]) -> dict[str, Any]:
    parsed = paramiko.SSHConfig()
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


def _lines(path: Path, depth: int) -> Iterator[str]:
    """Yield the lines of a file, included ones in their place."""
    block = "Host *"
    home = "/etc/ssh" if str(path).startswith("/etc/ssh") else os.path.expanduser("~/.ssh")
    for line in path.read_text(errors="replace").splitlines():
        words = line.replace("=", " ", 1).split(None, 1)
        keyword = words[0].lower() if words else ""
        if keyword in ("host", "match"):
            block = line
        if keyword != "include" or len(words) < 2 or depth >= _DEPTH:
            yield line
            continue
        for pattern in shlex.split(words[1]):
            for included in sorted(glob.glob(os.path.join(home, os.path.expanduser(pattern)))):
                if os.path.isfile(included):
                    yield from _lines(Path(included), depth + 1)
        yield block  # what follows belongs to the block again


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
