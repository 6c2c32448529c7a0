"""The command line: verbs, their arguments and their help."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from .._version import __version__
from . import care, changing, looking, moving


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line; ``run`` is the function of the chosen verb."""
    parser = argparse.ArgumentParser(
        prog="pyremotedata",
        description="Move data between this machine and an SFTP server.",
        epilog="A remote file is a URL, sftp://[user@]host[:port]/path, or a path below the"
        " configured remote (PYREMOTEDATA_REMOTE_URI, or the config file).",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print JSON, for machines")
    common.add_argument("--transport", metavar="NAME", help="auto, sftp or lftp")
    common.add_argument("--timeout", metavar="S", help="give up when nothing moved for S seconds")
    common.add_argument("--connections", metavar="N", help="sessions per host at the most")
    common.add_argument("--bandwidth", metavar="B", help="bytes per second at the most, as 10M")
    common.add_argument("--ssh-config", metavar="FILE", help="a file for ssh -F")
    common.add_argument("--ssh-key", metavar="FILE", help="the private key to use")
    common.add_argument(
        "--accept-new", action="store_true", help="accept the host key of a server never seen"
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, run: Callable[..., int], text: str) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, parents=[common], help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    ls = verb("ls", looking.ls, "List directories.")
    ls.add_argument("-l", "--long", action="store_true", help="with type, size and mtime")
    ls.add_argument("paths", nargs="*", default=[""], metavar="URL")

    stat = verb("stat", looking.stat, "Say what files are.")
    stat.add_argument("paths", nargs="+", metavar="URL")

    get = verb("get", moving.get, "Download files and directories.")
    get.add_argument("sources", nargs="+", metavar="URL")
    get.add_argument(
        "destination", metavar="PATH", help="a directory (existing, or ending in /), or a new name"
    )

    put = verb("put", moving.put, "Upload files and directories.")
    put.add_argument("sources", nargs="+", metavar="PATH")
    put.add_argument(
        "destination", metavar="URL", help="a directory (existing, or ending in /), or a new name"
    )

    sync = verb("sync", moving.sync, "Make B's content equal A's; unchanged files stay.")
    sync.add_argument("--delete", action="store_true", help="remove what A does not hold")
    sync.add_argument("-n", "--dry-run", action="store_true", help="only say what would be done")
    for name, text in (("include", "only files that match"), ("exclude", "nothing that matches")):
        sync.add_argument(f"--{name}", action="append", default=[], metavar="PATTERN", help=text)
    sync.add_argument("source", metavar="A", help="a URL or a local directory")
    sync.add_argument("destination", metavar="B", help="a local directory or a URL")

    cat = verb("cat", looking.cat, "Write files to standard output.")
    cat.add_argument("paths", nargs="+", metavar="URL")

    du = verb("du", looking.du, "Say how many bytes files and directories hold.")
    du.add_argument("paths", nargs="*", default=[""], metavar="URL")

    mkdir = verb("mkdir", changing.mkdir, "Make directories, with their parents.")
    mkdir.add_argument("paths", nargs="+", metavar="URL")

    rm = verb("rm", changing.rm, "Remove files.")
    rm.add_argument("-r", "--recursive", action="store_true", help="directories, too")
    rm.add_argument("paths", nargs="+", metavar="URL")

    doctor = verb("doctor", care.doctor, "Check programs, host key, login, server and speed.")
    doctor.add_argument("url", nargs="?", default="", metavar="URL")
    cache = verb(
        "cache", care.cache, "Show, trim, verify or empty this node's cache of staged files."
    )
    cache.add_argument(
        "action", nargs="?", default="show", choices=["show", "trim", "verify", "empty"]
    )
    cache.add_argument(
        "--to", metavar="B", help="trim: keep so many bytes, as 10G; default: the budget"
    )
    cache.add_argument("-n", "--dry-run", action="store_true", help="only say what would go")

    config = verb("config", care.config, "Show the settings; set up or remove the config file.")
    action = config.add_mutually_exclusive_group()
    action.add_argument("--setup", action="store_true", help="ask, test the login, write the file")
    action.add_argument("--template", action="store_true", help="write a file of comments only")
    action.add_argument("--remove", action="store_true", help="delete the file")
    return parser
