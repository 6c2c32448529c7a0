"""The verbs that look: ls, stat, cat, du."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from typing import Any

from ..engine import TransferEngine
from ..model import Entry
from .output import each, long_line, plain_entry, shown_name
from .places import chosen_remote


def ls(engine: TransferEngine, options: argparse.Namespace) -> int:
    remote = chosen_remote(engine, options.paths)
    listed: list[Any] = []

    def show(path: str) -> None:
        entries = remote.scandir(path)
        if options.json:
            listed.extend(plain_entry(str(remote.locate(path).join(e.name)), e) for e in entries)
            return
        if len(options.paths) > 1:
            print(f"{path}:")
        for entry in entries:
            print(long_line(entry) if options.long else shown_name(entry.name))

    status = each(options.paths, show)
    if options.json:
        print(json.dumps(listed, indent=1))
    return status


def stat(engine: TransferEngine, options: argparse.Namespace) -> int:
    remote = chosen_remote(engine, options.paths)
    found: list[Any] = []

    def show(path: str) -> None:
        url = remote.locate(path)
        entry = Entry(url.name, remote.stat(url))
        if options.json:
            found.append(plain_entry(str(url), entry))
        else:
            print(f"{long_line(Entry(str(url), entry.stat))}")

    status = each(options.paths, show)
    if options.json:
        print(json.dumps(found, indent=1))
    return status


def cat(engine: TransferEngine, options: argparse.Namespace) -> int:
    remote = chosen_remote(engine, options.paths)

    def show(path: str) -> None:
        with remote.open(path) as file:
            shutil.copyfileobj(file, sys.stdout.buffer, 1 << 20)

    return each(options.paths, show)


def du(engine: TransferEngine, options: argparse.Namespace) -> int:
    remote = chosen_remote(engine, options.paths)
    sizes: list[Any] = []

    def show(path: str) -> None:
        url, size = str(remote.locate(path)), remote.du(path)
        sizes.append({"url": url, "bytes": size})
        if not options.json:
            print(f"{size:>14} {shown_name(url)}")

    status = each(options.paths, show)
    if options.json:
        print(json.dumps(sizes, indent=1))
    return status
