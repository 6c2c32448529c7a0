"""The command line: verbs, their arguments and their help."""

from __future__ import annotations

import argparse
from typing import NoReturn

from .._version import __version__
from . import completing

_PATTERN = " A quoted pattern (*, ?, [...], **) means all that matches; %5B is a real [."
_PLACE = "a directory (existing, or ending in /), or a new name"


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line.

    ``run`` is where the chosen verb's function stands, which is not loaded for parsing alone.
    """
    parser = _Parser(
        prog="pyremotedata",
        description="Move data between this machine and an SFTP server.",
        epilog="A remote file is a URL, sftp://[user@]host[:port]/path, or a path below the"
        " configured remote (PYREMOTEDATA_REMOTE_URI, or the config file).",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    machine, connecting = _machine(), _connecting()

    def verb(
        name: str,
        run: str,
        text: str,
        *,
        writes: bool = False,
        human: bool = False,
        connects: bool = True,
        json: bool = True,
    ) -> argparse.ArgumentParser:
        sub = verbs.add_parser(
            name,
            parents=[machine] * json + [connecting] * connects,
            help=text.partition(".")[0] + ".",
            description=text,
            add_help=not human,
        )
        sub.set_defaults(run=run, connects=connects)
        if human:  # -h is for sizes, as people know it
            sub.add_argument("--help", action="help", help="show this help message and exit")
            sub.add_argument(
                "-h", "--human", action="store_true", help="sizes for people: 1.5K, 23M"
            )
        if writes:
            sub.add_argument("-n", "--dry-run", action="store_true", help="only say what would be")
        return sub

    ls = verb("ls", "looking.ls", "List directories." + _PATTERN, human=True)
    ls.add_argument("-l", "--long", action="store_true", help="with type, size and mtime")
    ls.add_argument("-R", "--recursive", action="store_true", help="all that is below, as paths")
    _remote_paths(ls, "paths", "*")

    stat = verb("stat", "looking.stat", "Say what files are." + _PATTERN)
    _remote_paths(stat, "paths", "+")

    get = verb("get", "moving.get", "Download files and directories." + _PATTERN, writes=True)
    _remote_paths(get, "sources", "+")
    _local_paths(get, "destination", None, _PLACE)

    put = verb("put", "moving.put", "Upload files and directories.", writes=True)
    _local_paths(put, "sources", "+")
    _remote_paths(put, "destination", None, _PLACE)

    sync = verb("sync", "moving.sync", "Make B's content equal A's; equal files stay.", writes=True)
    sync.add_argument("--delete", action="store_true", help="remove what A does not hold")
    sync.add_argument(
        "--size-only", action="store_true", help="equal size is enough, whatever the time"
    )
    for name, text in (("include", "only files that match"), ("exclude", "nothing that matches")):
        sync.add_argument(f"--{name}", action="append", default=[], metavar="PATTERN", help=text)
    sync.add_argument(
        "--manifest",
        metavar="NAME",
        help="of checksums, in the remote directory: compare with it, or write it going up",
    )
    for mover in (get, put, sync):
        mover.add_argument("--verify", action="store_true", help="read again and compare")
        mover.add_argument("--modes", action="store_true", help="keep permission bits")
    for name, metavar, text in (
        ("source", "A", "a URL or a local directory"),
        ("destination", "B", "a local directory or a URL"),
    ):
        either = sync.add_argument(name, metavar=metavar, help=text)
        completing.complete(either, completing.any_names)

    cat = verb("cat", "looking.cat", "Write files to standard output." + _PATTERN, json=False)
    _remote_paths(cat, "paths", "+")

    du = verb(
        "du", "looking.du", "Say how many bytes files and directories hold." + _PATTERN, human=True
    )
    _remote_paths(du, "paths", "*")

    mkdir = verb("mkdir", "changing.mkdir", "Make directories, with their parents.", writes=True)
    _remote_paths(mkdir, "paths", "+")

    rm = verb("rm", "changing.rm", "Remove files." + _PATTERN, writes=True)
    rm.add_argument("-r", "--recursive", action="store_true", help="directories, too")
    rm.add_argument("-f", "--force", action="store_true", help="a missing file is no failure")
    _remote_paths(rm, "paths", "+")

    doctor = verb("doctor", "care.doctor", "Check programs, host key, login, server and speed.")
    _remote_paths(doctor, "url", "?")

    cache = verb(
        "cache",
        "care.cache",
        "Show, trim, verify or empty this node's cache of staged files.",
        writes=True,
        connects=False,
    )
    cache.add_argument(
        "action", nargs="?", default="show", choices=["show", "trim", "verify", "empty"]
    )
    cache.add_argument(
        "--to", metavar="B", help="trim: keep so many bytes, as 10G; default: the budget"
    )

    config = verb(
        "config",
        "care.config",
        "Show the settings; set up or remove the config file.",
        writes=True,
        connects=False,
    )
    action = config.add_mutually_exclusive_group()
    action.add_argument("--setup", action="store_true", help="ask, test the login, write the file")
    action.add_argument("--template", action="store_true", help="write a file of comments only")
    action.add_argument("--remove", action="store_true", help="delete the file")

    completion = verb(
        "completion",
        "care.completion",
        "Print what a shell needs to complete this command, remote paths included.",
        connects=False,
        json=False,
    )
    completion.add_argument("shell", choices=completing.SHELLS)
    return parser


class _Parser(argparse.ArgumentParser):
    """A parser (its verbs' are of the same type) whose errors are printable, whatever was typed."""

    def error(self, message: str) -> NoReturn:
        from ..model import printable

        super().error(printable(message))


def _machine() -> _Parser:
    parser = _Parser(add_help=False)
    parser.add_argument("--json", action="store_true", help="print JSON, for machines")
    return parser


def _connecting() -> _Parser:
    parser = _Parser(add_help=False)
    parser.add_argument("--transport", metavar="NAME", help="auto, sftp or lftp")
    parser.add_argument("--timeout", metavar="S", help="give up when nothing moved for S seconds")
    parser.add_argument("--connections", metavar="N", help="sessions per host at the most")
    parser.add_argument("--bandwidth", metavar="B", help="bytes per second at the most, as 10M")
    ssh_files = (
        parser.add_argument("--ssh-config", metavar="FILE", help="a file for ssh -F"),
        parser.add_argument("--ssh-key", metavar="FILE", help="the private key to use"),
    )
    for one in ssh_files:
        completing.complete(one, completing.local_names)
    parser.add_argument(
        "--accept-new", action="store_true", help="accept the host key of a server never seen"
    )
    return parser


def _remote_paths(
    parser: argparse.ArgumentParser, name: str, count: str | None, text: str | None = None
) -> None:
    default = {"*": [""], "?": ""}.get(count or "")
    paths = parser.add_argument(name, nargs=count, default=default, metavar="URL", help=text)
    completing.complete(paths, completing.remote_names)


def _local_paths(
    parser: argparse.ArgumentParser, name: str, count: str | None, text: str | None = None
) -> None:
    paths = parser.add_argument(name, nargs=count, metavar="PATH", help=text)
    completing.complete(paths, completing.local_names)
