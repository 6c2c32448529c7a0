"""The verbs that change: mkdir, rm."""

from __future__ import annotations

import argparse

from ..engine import TransferEngine
from .output import each
from .places import chosen_remote


def mkdir(engine: TransferEngine, options: argparse.Namespace) -> int:
    return each(options.paths, chosen_remote(engine, options.paths).mkdir)


def rm(engine: TransferEngine, options: argparse.Namespace) -> int:
    remote = chosen_remote(engine, options.paths)
    return each(options.paths, lambda path: remote.rm(path, recursive=options.recursive))
