"""The verbs that look: ls, stat, cat, du."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from itertools import chain, starmap
from typing import Any

from ..engine import TransferEngine
from ..errors import ServerRefused
from ..futures import wait_for
from ..model import Entry, Stat
from ..remote import Remote
from ..url import RemoteURL
from .output import each, json_list, long_line, plain_entry, print_json, shown_name, size_text
from .places import chosen_remote, meant


def ls(engine: TransferEngine, options: argparse.Namespace) -> int:
    """List directories."""
    remote = chosen_remote(engine, options.paths)
    began = False

    def line(entry: Entry) -> str:
        return long_line(entry, options.human) if options.long else shown_name(entry.name)

    def show(path: str) -> None:
        found = meant(remote, path)
        for url, known in found:
            stat, entries = _look_into(remote, url, known, options.recursive)
            if options.json:
                if stat is not None:
                    add(plain_entry(str(url), Entry(url.name, stat)))
                for entry in entries:
                    add(plain_entry(str(url.join(entry.name)), entry))
            elif stat is not None:
                print(line(Entry(str(url), stat)))
            else:
                heading(str(url), len(options.paths) > 1 or len(found) > 1)
                for entry in entries:
                    print(line(entry))

    def heading(url: str, is_needed: bool) -> None:
        nonlocal began
        if is_needed:
            print(f"{'' if not began else chr(10)}{shown_name(url)}:")
        began = True

    if not options.json:
        return each(options.paths, show)
    with json_list() as add:
        return each(options.paths, show)


def _look_into(
    remote: Remote, url: RemoteURL, known: Stat | None, recursive: bool
) -> tuple[Stat | None, Iterator[Entry]]:
    """Return the stat of a file, or the entries of a directory; one question if it is one."""
    if known is not None and known.kind != "directory":
        return known, iter(())
    try:
        if not recursive:
            entries = wait_for(remote.engine.scandir(url))
            return None, iter(sorted(entries))
        walk = remote.walk(url)
        first = next(walk, None)
    except ServerRefused:
        stat = wait_for(remote.engine.stat(url))
        if stat.kind == "directory":
            raise
        return stat, iter(())
    return None, starmap(Entry, chain([first] if first else [], walk))


def stat(engine: TransferEngine, options: argparse.Namespace) -> int:
    """Say what files are."""
    remote = chosen_remote(engine, options.paths)
    found: list[Any] = []
    looks: list[tuple[RemoteURL, Stat | Future[Stat]]] = []  # all at once

    def look(path: str) -> None:
        looks.extend((url, known or engine.stat(url)) for url, known in meant(remote, path))

    def show(look: tuple[RemoteURL, Stat | Future[Stat]]) -> None:
        url, told = look
        stat = told if isinstance(told, Stat) else wait_for(told)
        if options.json:
            found.append(plain_entry(str(url), Entry(url.name, stat)))
        else:
            print(long_line(Entry(str(url), stat)))

    status = each(options.paths, look) | each(looks, show)
    if options.json:
        print_json(found)
    return status


def cat(engine: TransferEngine, options: argparse.Namespace) -> int:
    """Write files to standard output."""
    remote = chosen_remote(engine, options.paths)

    def show(path: str) -> None:
        for url, _ in meant(remote, path):
            with remote.open(url) as file:
                shutil.copyfileobj(file, sys.stdout.buffer, 1 << 20)

    return each(options.paths, show)


def du(engine: TransferEngine, options: argparse.Namespace) -> int:
    """Say how many bytes files and directories hold."""
    remote = chosen_remote(engine, options.paths)
    sizes: list[Any] = []

    def show(path: str) -> None:
        for url, known in meant(remote, path):
            size = known.size if known and known.kind != "directory" else remote.du(url)
            sizes.append({"url": str(url), "bytes": size})
            if not options.json:
                shown = size_text(size, options.human)
                print(f"{shown:>{6 if options.human else 14}} {shown_name(str(url))}", flush=True)

    status = each(options.paths, show)
    if options.json:
        print_json(sizes)
    return status
