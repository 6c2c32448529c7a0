"""The verbs that move: get, put, sync."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from ..engine import TransferEngine
from ..errors import ConfigurationError, RemoteFileNotFound, TransferError
from ..model import Stat
from ..progress import Progress, shown
from ..remote import fetch_known, local_target, own_name, wait_for
from ..url import RemoteURL, looks_like_url
from .output import Tally
from .places import chosen_remote


def get(engine: TransferEngine, options: argparse.Namespace) -> int:
    remote = chosen_remote(engine, options.sources)
    urls = [remote.locate(source) for source in options.sources]
    destination = options.destination
    into = destination.endswith("/") or os.path.isdir(destination)
    if len(urls) > 1 and not into:
        raise ConfigurationError(f"{destination} is no directory; end it with / to make one")
    _check_names([url.name for url in urls], destination)
    tally = Tally()
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


def put(engine: TransferEngine, options: argparse.Namespace) -> int:
    remote = chosen_remote(engine, [options.destination])
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
    tally = Tally()
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


def sync(engine: TransferEngine, options: argparse.Namespace) -> int:
    down, up = looks_like_url(options.source), looks_like_url(options.destination)
    if down == up:
        raise ConfigurationError("one of both must be a URL, the other a local directory")
    tally = Tally()
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
