"""Completion by the shell's TAB key: options, local paths, hosts, and paths on a server.

argcomplete asks this program for every TAB. What is on a server is listed within a deadline, by a
login that needs no answer from anybody; what cannot be listed is not completed.
"""

from __future__ import annotations

import argparse
import os
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

SHELLS = ("bash", "zsh", "fish")
DEADLINE_S = 2.0
AFTER_REFUSAL_S = 600.0


def is_asked() -> bool:
    """Whether this is a shell's question rather than a run."""
    return "_ARGCOMPLETE" in os.environ


def answer(parser: argparse.ArgumentParser) -> None:
    """Answer the shell, and exit."""
    import argcomplete

    argcomplete.autocomplete(parser, always_complete_options=False)


def shell_code(shell: str) -> str:
    """Return what a shell has to run for completion."""
    import argcomplete

    return argcomplete.shellcode(["pyremotedata"], shell=shell)


def complete(action: argparse.Action, names: Callable[..., Iterable[str]]) -> None:
    """Complete an argument by `local_names`, `remote_names` or `any_names`."""
    action.completer = names  # type: ignore[attr-defined]


def local_names(prefix: str, **_: Any) -> Iterable[str]:
    """Return the local paths that begin so."""
    from argcomplete.completers import FilesCompleter

    return FilesCompleter()(prefix)


def any_names(prefix: str, parsed_args: argparse.Namespace, **_: Any) -> Iterable[str]:
    """Return the URLs, or the local paths, that begin so."""
    if "://" in prefix:
        return remote_names(prefix, parsed_args)
    return [*local_names(prefix), *_scheme(prefix)]


def remote_names(prefix: str, parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    """Return the URLs, or paths below the configured remote, that begin so."""
    from concurrent.futures import CancelledError

    from ..errors import NoRemoteConfigured, TransferError

    scheme, mark, rest = prefix.partition("://")
    try:
        if mark and "/" not in rest:
            return [f"{scheme}://{host}/" for host in _hosts(parsed_args) if host.startswith(rest)]
        return [*_scheme(prefix), *_listed(prefix, parsed_args)]
    except NoRemoteConfigured:
        return _scheme(prefix)
    except (TransferError, TimeoutError, CancelledError, OSError):
        return []


def _scheme(prefix: str) -> list[str]:
    return ["sftp://"] if prefix and "sftp://".startswith(prefix) and prefix != "sftp://" else []


def _listed(prefix: str, parsed_args: argparse.Namespace) -> list[str]:
    """Return the names that begin so, directories with a slash."""
    from ..config import ConnectionSettings
    from ..engine import TransferEngine
    from ..errors import AuthenticationFailed
    from ..nodestate import state_directory
    from ..url import RemoteURL, encode_path, looks_like_url

    is_url = looks_like_url(prefix)
    directory, slash, beginning = prefix.rpartition("/")
    settings = ConnectionSettings.load(
        timeout_s=DEADLINE_S,
        connections=1,
        ssh_config=parsed_args.ssh_config,
        ssh_key=parsed_args.ssh_key,
    )
    url = RemoteURL.parse(directory + "/") if is_url else settings.root().join(directory + slash)
    # Some archives ban an address after a few refused logins, and TAB is soon pressed again.
    refused = state_directory() / "completion-refused"
    is_fresh = refused.exists() and time.time() - refused.stat().st_mtime < AFTER_REFUSAL_S
    if is_fresh and refused.read_text() == url.server:
        return []
    try:
        with TransferEngine(settings, in_process=True) as engine:
            entries = engine.scandir(url).result(DEADLINE_S)
    except AuthenticationFailed:
        refused.write_text(url.server)
        raise
    found = []
    for name, stat in sorted(entries):
        shown = encode_path(name) if is_url else name
        if is_url and name.startswith(beginning) and not shown.startswith(beginning):
            shown = beginning + encode_path(name.removeprefix(beginning))  # typed as it is
        hidden = name.startswith(".") and not beginning.startswith(".")
        if shown.startswith(beginning) and not hidden and name.isprintable():
            found.append(directory + slash + shown + "/" * (stat.kind == "directory"))
    return found


def _hosts(parsed_args: argparse.Namespace) -> list[str]:
    """Return the hosts that the user's ssh_config names."""
    path = Path(
        parsed_args.ssh_config or os.environ.get("PYREMOTEDATA_SSH_CONFIG") or "~/.ssh/config"
    )
    text = path.expanduser().read_text(errors="replace")
    named = re.findall(r"(?im)^[ \t]*host[ \t=]+(.*)$", text)
    words = [word for line in named for word in line.split()]
    return sorted({word for word in words if not re.search(r"[*?!\"]", word)})
