"""The verbs that move: get, put, sync."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

from ..engine import TransferEngine
from ..errors import ConfigurationError, TransferError
from ..model import TreeResult
from ..placing import get_all, put_all, sync_trees
from ..progress import Progress, shown
from ..url import RemoteURL, looks_like_url
from .output import end
from .places import chosen_remote, meant


def get(engine: TransferEngine, options: argparse.Namespace) -> int:
    """Download files and directories."""
    began = time.monotonic()
    remote = chosen_remote(engine, options.sources)
    urls: list[RemoteURL] = []
    unmatched: list[TransferError] = []
    for source in options.sources:
        try:
            urls += [url for url, _ in meant(remote, source)]
        except ConfigurationError:
            raise
        except TransferError as error:
            unmatched.append(error)
    result = _move(
        options,
        lambda tell: get_all(engine, urls, options.destination, tell=tell, **_how(options))[1],
    )
    failed = [*(error.to_plain() for error in unmatched), *result.failed]
    return end(result._replace(failed=failed), began, options)


def put(engine: TransferEngine, options: argparse.Namespace) -> int:
    """Upload files and directories."""
    began = time.monotonic()
    url = chosen_remote(engine, [options.destination]).locate(options.destination)
    result = _move(
        options,
        lambda tell: put_all(engine, options.sources, url, tell=tell, **_how(options))[1],
    )
    return end(result, began, options)


def sync(engine: TransferEngine, options: argparse.Namespace) -> int:
    """Make one directory's content equal another's."""
    began = time.monotonic()
    down, up = looks_like_url(options.source), looks_like_url(options.destination)
    if down == up:
        raise ConfigurationError("one of both must be a URL, the other a local directory")
    local, remote = (options.source, options.destination)[:: -1 if down else 1]
    result = _move(
        options,
        lambda tell: sync_trees(
            engine,
            remote,
            local,
            up=up,
            tell=tell,
            compare=True,
            size_only=options.size_only,
            delete=options.delete,
            include=options.include,
            exclude=options.exclude,
            manifest=options.manifest,
            **_how(options),
        ),
    )
    return end(result, began, options)


def _move(options: argparse.Namespace, move: Callable[[Progress | None], TreeResult]) -> TreeResult:
    """Return the outcome; what ends it before there is one is an outcome for machines, too."""
    moved_bytes = moved_files = 0

    def count(more_bytes: int, more_files: int) -> None:
        nonlocal moved_bytes, moved_files
        moved_bytes += more_bytes
        moved_files += more_files

    try:
        with shown(count if options.json else True, options.verb) as tell:
            result = move(tell)
    except ConfigurationError:
        raise
    except TransferError as error:
        result = TreeResult(0, 0, 0, 0, [], [error.to_plain()])
    if options.json and result.failed and not options.dry_run:
        # What a full disk or a lost server has ended does not say what had arrived by then.
        result = result._replace(files=moved_files, bytes=moved_bytes)
    return result


def _how(options: argparse.Namespace) -> Any:
    return {"dry_run": options.dry_run, "verify": options.verify, "modes": options.modes}
