"""The verbs that take care: doctor, cache, config."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import SECRETS, ConnectionSettings, config_path, parse_bytes, remove_config
from ..engine import TransferEngine
from ..errors import ConfigurationError
from . import completing
from .output import print_json, print_plan, shown_name
from .places import chosen_remote

if TYPE_CHECKING:
    from ..stager.inventory import CacheEntry


def doctor(engine: TransferEngine, options: argparse.Namespace) -> int:
    """Check what stands between this machine and a server."""
    from ..doctor import examine

    url = chosen_remote(engine, [options.url] if options.url else []).locate(options.url)
    findings = []
    for finding in examine(engine, url):
        findings.append(finding)
        if not options.json:
            mark = {True: "ok  ", False: "BAD ", None: "-   "}[finding.well]
            print(f"{mark}{finding.what}: {finding.said}", flush=True)
    if options.json:
        print_json([finding._asdict() for finding in findings])
    return int(any(finding.well is False for finding in findings))


def cache(options: argparse.Namespace) -> int:
    """Show, trim, verify or empty the node's cache."""
    from ..stager.inventory import list_entries, remove_unsound
    from ..stager.nodecache import NodeCache
    from ..stager.place import cache_root

    settings = ConnectionSettings.load()
    target = _target(options, settings)
    root = cache_root(settings.cache_dir)
    cache = NodeCache(root, settings.cache_bytes, settings.timeout_s)
    before = list_entries(cache)
    gone: list[CacheEntry] = []
    if options.action == "verify":
        gone = [e for e in before if not e.sound and not e.in_use]
        if not options.dry_run:
            gone = remove_unsound(cache)
    elif options.action != "show":
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
            "dry_run": options.dry_run,
            "used_bytes": used,
            "files": [e._asdict() for e in shown_entries],
        }
        print_json(outcome)
        return 0
    for entry in shown_entries:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.last_use))
        state = "in use" if entry.in_use else "" if entry.sound else "broken"
        print(f"{entry.size:>14} {when} {state:6} {shown_name(entry.url)}")
    freed = sum(e.size for e in gone)
    print(f"# {cache.root}: {len(before)} files, {used} of {settings.cache_bytes} bytes")
    if options.action != "show":
        would = "would go" if options.dry_run else "gone"
        print(f"# {len(gone)} files, {freed} bytes {would}")
    return 0


def _target(options: argparse.Namespace, settings: ConnectionSettings) -> int:
    """Return how many bytes a trim, or what empties, leaves."""
    if options.to is None:
        return 0 if options.action == "empty" else settings.cache_bytes
    if options.action != "trim":
        raise ConfigurationError(f"--to is for trim, not for {options.action}")
    try:
        return parse_bytes(options.to)
    except ValueError:
        raise ConfigurationError(f"--to: not a number of bytes, as 10G: {options.to!r}") from None


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


def config(options: argparse.Namespace) -> int:
    """Show the settings; set up or remove the config file."""
    from ..interactive import set_up, write_config

    path = config_path()
    if options.dry_run and (options.setup or options.template or options.remove):
        if options.template:
            _refuse_to_replace(path)
        _say_what_would_be(options, path)
        return 0
    if options.setup:
        set_up()
    elif options.template:
        _refuse_to_replace(path)
        _say_done(options, "write", str(write_config({})))
    elif options.remove:
        removed = remove_config()
        if options.json:
            _say_done(options, "delete", *([str(path)] if removed else []))
        else:
            print(f"{'removed' if removed else 'there is no'} {path}")
    else:
        values = dict(ConnectionSettings.load().__dict__)
        for key in SECRETS:
            values[key] = "***" if values[key] else None
        if options.json:
            print_json({"file": str(path), "exists": path.exists(), **values})
        else:
            print(f"# {path}{'' if path.exists() else ' (not there)'}")
            for key, value in values.items():
                print(f"{key}: {'' if value is None else value}")
    return 0


def completion(options: argparse.Namespace) -> int:
    """Print a shell's code for completion."""
    print(completing.shell_code(options.shell))
    return 0


def _refuse_to_replace(path: Path) -> None:
    if path.exists():
        raise ConfigurationError(f"{path} is there already; --remove deletes it")


def _say_what_would_be(options: argparse.Namespace, path: Path) -> None:
    planned = [("delete" if options.remove else "write", str(path))]
    if options.remove and not path.exists():
        planned = []
    if options.json:
        print_json({"done": [], "planned": planned})
    else:
        print_plan(planned)


def _say_done(options: argparse.Namespace, action: str, *paths: str) -> None:
    if options.json:
        print_json({"done": [(action, path) for path in paths], "planned": []})
    else:
        print(*paths)
