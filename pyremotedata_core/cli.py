"""The command ``pyremotedata``.

Exit status: 0 done; 1 something failed, each failure one line on standard error; 2 usage.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any

from ._version import __version__
from .config import ConnectionSettings, config_path, parse_bytes, remove_config
from .engine import TransferEngine
from .errors import (
    ConfigurationError,
    NoRemoteConfigured,
    RemoteFileNotFound,
    TransferError,
    from_plain,
)
from .model import Entry, Stat, TreeResult, one_line, printable
from .progress import Progress, shown
from .remote import Remote, fetch_known, local_target, own_name, wait_for
from .url import RemoteURL, looks_like_url

if TYPE_CHECKING:
    from .stager.inventory import CacheEntry


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and exit."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="surrogateescape")  # names are bytes to a server
    options = _parser().parse_args(arguments)
    try:
        status = _run(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        status = 130
    except BrokenPipeError:  # the reader of our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 128 + signal.SIGPIPE
    sys.exit(status)


def _run(options: argparse.Namespace) -> int:
    given = {
        "transport": options.transport,
        "timeout_s": options.timeout,
        "connections": options.connections,
        "ssh_config": options.ssh_config,
        "ssh_key": options.ssh_key,
        "accept_new": options.accept_new or None,
        "bandwidth": options.bandwidth,
    }
    try:
        if options.verb in ("config", "cache"):
            return options.run(options)
        try:
            return _with_engine(options, given)
        except NoRemoteConfigured:
            from .interactive import may_ask, set_up

            if not may_ask():
                raise
            set_up()
            return _with_engine(options, given)
    except ConfigurationError as error:
        _complain(error)
        return 2
    except TransferError as error:
        _complain(error)
        return 1
    except BrokenPipeError:
        raise
    except OSError as error:
        print(f"pyremotedata: {one_line(str(error))}", file=sys.stderr)
        return 1


def _with_engine(options: argparse.Namespace, given: dict[str, Any]) -> int:
    settings = ConnectionSettings.load(**given)
    # This process computes nothing that could starve the I/O: no helper.
    with TransferEngine(settings, in_process=True) as engine:
        return options.run(engine, options)


def _complain(error: TransferError) -> None:
    print(f"pyremotedata: {error}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
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

    ls = verb("ls", _ls, "List directories.")
    ls.add_argument("-l", "--long", action="store_true", help="with type, size and mtime")
    ls.add_argument("paths", nargs="*", default=[""], metavar="URL")

    stat = verb("stat", _stat, "Say what files are.")
    stat.add_argument("paths", nargs="+", metavar="URL")

    get = verb("get", _get, "Download files and directories.")
    get.add_argument("sources", nargs="+", metavar="URL")
    get.add_argument(
        "destination", metavar="PATH", help="a directory (existing, or ending in /), or a new name"
    )

    put = verb("put", _put, "Upload files and directories.")
    put.add_argument("sources", nargs="+", metavar="PATH")
    put.add_argument(
        "destination", metavar="URL", help="a directory (existing, or ending in /), or a new name"
    )

    sync = verb("sync", _sync, "Make B's content equal A's; unchanged files stay.")
    sync.add_argument("--delete", action="store_true", help="remove what A does not hold")
    sync.add_argument("-n", "--dry-run", action="store_true", help="only say what would be done")
    for name, text in (("include", "only files that match"), ("exclude", "nothing that matches")):
        sync.add_argument(f"--{name}", action="append", default=[], metavar="PATTERN", help=text)
    sync.add_argument("source", metavar="A", help="a URL or a local directory")
    sync.add_argument("destination", metavar="B", help="a local directory or a URL")

    cat = verb("cat", _cat, "Write files to standard output.")
    cat.add_argument("paths", nargs="+", metavar="URL")

    du = verb("du", _du, "Say how many bytes files and directories hold.")
    du.add_argument("paths", nargs="*", default=[""], metavar="URL")

    mkdir = verb("mkdir", _mkdir, "Make directories, with their parents.")
    mkdir.add_argument("paths", nargs="+", metavar="URL")

    rm = verb("rm", _rm, "Remove files.")
    rm.add_argument("-r", "--recursive", action="store_true", help="directories, too")
    rm.add_argument("paths", nargs="+", metavar="URL")

    doctor = verb("doctor", _doctor, "Check programs, host key, login, server and speed.")
    doctor.add_argument("url", nargs="?", default="", metavar="URL")
    cache = verb("cache", _cache, "Show, trim, verify or empty this node's cache of staged files.")
    cache.add_argument(
        "action", nargs="?", default="show", choices=["show", "trim", "verify", "empty"]
    )
    cache.add_argument(
        "--to", metavar="B", help="trim: keep so many bytes, as 10G; default: the budget"
    )
    cache.add_argument("-n", "--dry-run", action="store_true", help="only say what would go")

    config = verb("config", _config, "Show the settings; set up or remove the config file.")
    action = config.add_mutually_exclusive_group()
    action.add_argument("--setup", action="store_true", help="ask, test the login, write the file")
    action.add_argument("--template", action="store_true", help="write a file of comments only")
    action.add_argument("--remove", action="store_true", help="delete the file")
    return parser


def _remote(engine: TransferEngine, paths: Sequence[str]) -> Remote:
    """Return the configured remote, or where the URL among the paths is."""
    if all(looks_like_url(path) for path in paths) and paths:
        return Remote(RemoteURL.parse(paths[0]), engine=engine)
    return Remote(engine=engine)


def _each(paths: Sequence[str], act: Callable[[str], None]) -> int:
    """Do something for each path; a failure does not stop the others."""
    failed = False
    for path in paths:
        try:
            act(path)
        except ConfigurationError:
            raise
        except TransferError as error:
            _complain(error)
            failed = True
    return int(failed)


# --- looking --------------------------------------------------------------------------------------


def _ls(engine: TransferEngine, options: argparse.Namespace) -> int:
    remote = _remote(engine, options.paths)
    listed: list[Any] = []

    def show(path: str) -> None:
        entries = remote.scandir(path)
        if options.json:
            listed.extend(_plain_entry(str(remote.locate(path).join(e.name)), e) for e in entries)
            return
        if len(options.paths) > 1:
            print(f"{path}:")
        for entry in entries:
            print(_long(entry) if options.long else _shown(entry.name))

    status = _each(options.paths, show)
    if options.json:
        print(json.dumps(listed, indent=1))
    return status


def _stat(engine: TransferEngine, options: argparse.Namespace) -> int:
    remote = _remote(engine, options.paths)
    found: list[Any] = []

    def show(path: str) -> None:
        url = remote.locate(path)
        entry = Entry(url.name, remote.stat(url))
        if options.json:
            found.append(_plain_entry(str(url), entry))
        else:
            print(f"{_long(Entry(str(url), entry.stat))}")

    status = _each(options.paths, show)
    if options.json:
        print(json.dumps(found, indent=1))
    return status


def _cat(engine: TransferEngine, options: argparse.Namespace) -> int:
    remote = _remote(engine, options.paths)

    def show(path: str) -> None:
        with remote.open(path) as file:
            shutil.copyfileobj(file, sys.stdout.buffer, 1 << 20)

    return _each(options.paths, show)


def _du(engine: TransferEngine, options: argparse.Namespace) -> int:
    remote = _remote(engine, options.paths)
    sizes: list[Any] = []

    def show(path: str) -> None:
        url, size = str(remote.locate(path)), remote.du(path)
        sizes.append({"url": url, "bytes": size})
        if not options.json:
            print(f"{size:>14} {_shown(url)}")

    status = _each(options.paths, show)
    if options.json:
        print(json.dumps(sizes, indent=1))
    return status


def _shown(name: str) -> str:
    # A name must not be able to forge lines or drive the terminal.
    return name if not sys.stdout.isatty() and "\n" not in name else printable(name)


def _long(entry: Entry) -> str:
    stat = entry.stat
    letter = {"directory": "d", "link": "l", "other": "?"}.get(stat.kind, "-")
    mode = "----" if stat.mode is None else f"{stat.mode:04o}"
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(stat.mtime))
    return f"{letter} {mode} {stat.size:>14} {when} {_shown(entry.name)}"


def _plain_entry(url: str, entry: Entry) -> dict[str, Any]:
    return {"url": url, "name": entry.name, **entry.stat._asdict()}


# --- moving ---------------------------------------------------------------------------------------


def _get(engine: TransferEngine, options: argparse.Namespace) -> int:
    remote = _remote(engine, options.sources)
    urls = [remote.locate(source) for source in options.sources]
    destination = options.destination
    into = destination.endswith("/") or os.path.isdir(destination)
    if len(urls) > 1 and not into:
        raise ConfigurationError(f"{destination} is no directory; end it with / to make one")
    _check_names([url.name for url in urls], destination)
    tally = _Tally()
    looks = [(url, engine.stat(url)) for url in urls]
    pairs: list[tuple[RemoteURL, Any]] = []
    with shown(not options.json, "get") as tell:
        for url, future in looks:
            try:
                stat = wait_for(future)
            except TransferError as error:
                tally.fail(error)
                continue
            target = local_target(url, destination)
            if stat.kind == "directory":
                tree = engine.fetch_tree(url, target, on_progress=tell)
                tally.attempt_tree(partial(wait_for, tree))
            elif len(urls) == 1:
                tally.attempt(partial(_fetch_one, engine, url, target, stat, tell))
            else:
                pairs.append((url, target))
        if pairs:
            many = engine.fetch_many(pairs, on_progress=tell)
            tally.attempt_tree(partial(wait_for, many))
    return tally.end(options)


def _fetch_one(
    engine: TransferEngine, url: RemoteURL, target: Any, stat: Any, tell: Progress | None
) -> int:
    return fetch_known(engine, url, target, stat, tell).size


def _check_names(names: Sequence[str], where: object) -> None:
    """Refuse to place two sources of one name, as the second would replace the first."""
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise ConfigurationError(f"two of the sources would become {twice!r} in {where}")


def _size_of(store: Future[Stat]) -> int:
    return wait_for(store).size


def _put(engine: TransferEngine, options: argparse.Namespace) -> int:
    remote = _remote(engine, [options.destination])
    url = remote.locate(options.destination)
    into = url.trailing_slash
    if not into:
        try:
            into = remote.stat(url).kind == "directory"
        except RemoteFileNotFound:
            into = False
    if len(options.sources) > 1 and not into:
        raise ConfigurationError(f"{url} is no directory; end it with / to make one")
    _check_names([own_name(source) for source in options.sources], url)
    tally = _Tally()
    stores = []
    with shown(not options.json, "put") as tell:
        for source in options.sources:
            target = url.join(own_name(source)) if into else url
            if os.path.isdir(source):
                tree = engine.store_tree(source, target, on_progress=tell)
                tally.attempt_tree(partial(wait_for, tree))
            else:
                stores.append(engine.store(source, target, on_progress=tell))
        for store in stores:
            tally.attempt(partial(_size_of, store))
    return tally.end(options)


def _sync(engine: TransferEngine, options: argparse.Namespace) -> int:
    down, up = looks_like_url(options.source), looks_like_url(options.destination)
    if down == up:
        raise ConfigurationError("one of both must be a URL, the other a local directory")
    tally = _Tally()
    with shown(not options.json, "sync") as tell:
        keywords: dict[str, Any] = {
            "compare": True,
            "delete": options.delete,
            "include": options.include,
            "exclude": options.exclude,
            "dry_run": options.dry_run,
            "on_progress": tell,
        }
        if down:
            future = engine.fetch_tree(options.source, options.destination, **keywords)
        else:
            future = engine.store_tree(options.source, options.destination, **keywords)
        tally.add(wait_for(future))
    return tally.end(options)


class _Tally:
    """What was moved, and what failed."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._sum = {"files": 0, "bytes": 0, "unchanged": 0, "deleted": 0}
        self._skipped: list[tuple[str, str]] = []
        self._planned: list[tuple[str, str]] = []
        self._errors: list[TransferError] = []

    def add(self, result: TreeResult) -> None:
        for key in self._sum:
            self._sum[key] += getattr(result, key)
        self._skipped += result.skipped
        self._planned += result.planned
        self._errors += [from_plain(plain) for plain in result.failed]

    def fail(self, error: TransferError) -> None:
        self._errors.append(error)

    def attempt(self, move: Callable[[], int]) -> None:
        """Count a file, or its failure."""
        try:
            size = move()
        except ConfigurationError:
            raise
        except TransferError as error:
            self.fail(error)
        else:
            self._sum["files"] += 1
            self._sum["bytes"] += size

    def attempt_tree(self, move: Callable[[], TreeResult]) -> None:
        """Count a tree, or its failure."""
        try:
            self.add(move())
        except ConfigurationError:
            raise
        except TransferError as error:
            self.fail(error)

    def end(self, options: argparse.Namespace) -> int:
        """Print the outcome; return the exit status."""
        for path, why in self._skipped:
            print(f"pyremotedata: skipped {one_line(path)}: {why}", file=sys.stderr)
        for error in self._errors:
            _complain(error)
        if not options.json:
            for action, path in self._planned:
                print(f"{action} {_shown(path)}")
        else:
            outcome = {
                **self._sum,
                "seconds": round(time.monotonic() - self._began, 3),
                "skipped": self._skipped,
                "planned": self._planned,
                "failed": [error.to_plain() for error in self._errors],
            }
            print(json.dumps(outcome, indent=1))
        return int(bool(self._errors))


# --- changing, checking ---------------------------------------------------------------------------


def _mkdir(engine: TransferEngine, options: argparse.Namespace) -> int:
    return _each(options.paths, _remote(engine, options.paths).mkdir)


def _rm(engine: TransferEngine, options: argparse.Namespace) -> int:
    remote = _remote(engine, options.paths)
    return _each(options.paths, lambda path: remote.rm(path, recursive=options.recursive))


def _doctor(engine: TransferEngine, options: argparse.Namespace) -> int:
    from .doctor import examine

    url = _remote(engine, [options.url] if options.url else []).locate(options.url)
    findings = []
    for finding in examine(engine, url):
        findings.append(finding)
        if not options.json:
            mark = {True: "ok  ", False: "BAD ", None: "-   "}[finding.well]
            print(f"{mark}{finding.what}: {finding.said}", flush=True)
    if options.json:
        print(json.dumps([finding._asdict() for finding in findings], indent=1))
    return int(any(finding.well is False for finding in findings))


def _cache(options: argparse.Namespace) -> int:
    from .stager.inventory import list_entries, remove_unsound
    from .stager.nodecache import NodeCache
    from .stager.place import cache_root

    settings = ConnectionSettings.load()
    cache = NodeCache(cache_root(settings.cache_dir), settings.cache_bytes)
    before = list_entries(cache)
    gone: list[CacheEntry] = []
    if options.action == "verify":
        gone = [e for e in before if not e.sound and not e.in_use]
        if not options.dry_run:
            gone = remove_unsound(cache)
    elif options.action != "show":
        target = 0
        if options.action == "trim":
            target = parse_bytes(options.to) if options.to else settings.cache_bytes
        gone = _oldest(before, target)
        if not options.dry_run:
            went = set(cache.trim(target))
            gone = [e for e in before if os.path.basename(os.path.dirname(e.path)) in went]
    shown_entries = before if options.action == "show" else gone
    used = sum(e.size for e in before)
    if options.json:
        outcome = {
            "directory": str(cache.root),
            "budget_bytes": settings.cache_bytes,
            "used_bytes": used,
            "files": [e._asdict() for e in shown_entries],
        }
        print(json.dumps(outcome, indent=1))
        return 0
    for entry in shown_entries:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.last_use))
        state = "in use" if entry.in_use else "" if entry.sound else "broken"
        print(f"{entry.size:>14} {when} {state:6} {_shown(entry.url)}")
    freed = sum(e.size for e in gone)
    print(f"# {cache.root}: {len(before)} files, {used} of {settings.cache_bytes} bytes")
    if options.action != "show":
        would = "would go" if options.dry_run else "gone"
        print(f"# {len(gone)} files, {freed} bytes {would}")
    return 0


def _oldest(entries: list[CacheEntry], target_bytes: int) -> list[CacheEntry]:
    """Return what a trim would remove."""
    used = sum(e.size for e in entries)
    gone = []
    for entry in entries:
        if used <= target_bytes:
            break
        if not entry.in_use:
            gone.append(entry)
            used -= entry.size
    return gone


def _config(options: argparse.Namespace) -> int:
    from .interactive import set_up, write_config

    path = config_path()
    if options.setup:
        set_up()
    elif options.template:
        if path.exists():
            raise ConfigurationError(f"{path} is there already; --remove deletes it")
        print(write_config({}))
    elif options.remove:
        print(f"{'removed' if remove_config() else 'there is no'} {path}")
    else:
        values = dict(ConnectionSettings.load().__dict__)
        for key in ("password", "key_passphrase"):
            values[key] = "***" if values[key] else None
        if options.json:
            print(json.dumps({"file": str(path), "exists": path.exists(), **values}, indent=1))
        else:
            print(f"# {path}{'' if path.exists() else ' (not there)'}")
            for key, value in values.items():
                print(f"{key}: {'' if value is None else value}")
    return 0


if __name__ == "__main__":
    main()
