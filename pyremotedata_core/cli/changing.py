"""The verbs that change: mkdir, rm."""

from __future__ import annotations

import argparse
from concurrent.futures import Future

from ..engine import TransferEngine
from ..errors import RemoteFileNotFound, ServerRefused
from ..futures import wait_for
from ..model import Stat
from ..placing import check_way
from ..remote import Remote, check_removal
from ..url import RemoteURL
from .output import Changes
from .places import chosen_remote, meant


def mkdir(engine: TransferEngine, options: argparse.Namespace) -> int:
    """Make directories, with their parents."""
    remote = chosen_remote(engine, options.paths)
    changes = Changes(options)

    def make(path: str) -> None:
        url = remote.locate(path)
        if not options.dry_run:
            remote.mkdir(url)
        elif check_way(engine, url) == url:
            return
        changes.say("mkdir", str(url))

    for path in options.paths:
        changes.attempt(make, path)
    return changes.end()


def rm(engine: TransferEngine, options: argparse.Namespace) -> int:
    """Remove files, and with ``--recursive`` directories."""
    remote = chosen_remote(engine, options.paths)
    changes = Changes(options)
    urls: list[RemoteURL] = []

    def choose(path: str) -> None:
        try:
            found = [url for url, _ in meant(remote, path)]
        except RemoteFileNotFound:
            if not options.force:
                raise
            return
        for url in found:
            check_removal(path, url, remote.url)
        urls.extend(found)

    for path in options.paths:
        changes.attempt(choose, path)
    if options.dry_run:
        looks = [engine.stat(url, follow=False) for url in urls]
        for url, look in zip(urls, looks, strict=True):
            changes.attempt(_say_what_goes, remote, url, look, options, changes)
        return changes.end()
    removals = [
        engine.remove(url, recursive=options.recursive, missing_ok=options.force) for url in urls
    ]

    def see(url: RemoteURL, removal: Future[None]) -> None:
        wait_for(removal)
        changes.say("delete", str(url))

    for url, removal in zip(urls, removals, strict=True):
        changes.attempt(see, url, removal)
    return changes.end()


def _say_what_goes(
    remote: Remote,
    url: RemoteURL,
    look: Future[Stat],
    options: argparse.Namespace,
    changes: Changes,
) -> None:
    try:
        stat = wait_for(look)
    except RemoteFileNotFound:
        if options.force:
            return
        raise
    if stat.kind == "directory":
        if not options.recursive:
            raise ServerRefused("is a directory; remove it recursively", str(url))
        for below, _ in remote.walk(url):
            changes.say("delete", str(url.below(below)))
    changes.say("delete", str(url))
