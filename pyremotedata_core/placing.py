"""Placing: where sources go, as ``cp -r`` has it, and moving them there.

A destination that is a directory, or ends in ``/``, receives each source under its own name;
otherwise it is the new name of the one source.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Unpack

from .engine import AnyPath, TransferEngine
from .errors import (
    ConfigurationError,
    RemoteChanged,
    RemoteFileNotFound,
    ServerRefused,
    TransferError,
)
from .filters import Filter, TreeKeywords
from .futures import wait_for
from .local import LocalSource, check_target, in_place_of_directory
from .manifest import check_manifest, make_manifest
from .model import Stat, TreeResult
from .names import absolute
from .progress import Progress, expect
from .url import RemoteURL, looks_like_url


def get_all(
    engine: TransferEngine,
    urls: Sequence[RemoteURL],
    destination: AnyPath,
    *,
    dry_run: bool = False,
    verify: bool = False,
    modes: bool = False,
    tell: Progress | None = None,
) -> tuple[list[Path], TreeResult]:
    """Download files and directories; return where each is now, and the outcome.

    Failures are part of the outcome, and do not stop the others.

    Raises
    ------
    ConfigurationError
        If the sources cannot all be placed there.
    TransferError
        If a file stands where a directory was meant.
    """
    text = _local(destination)
    if text.endswith(os.sep) and os.path.lexists(text.rstrip(os.sep)) and not os.path.isdir(text):
        raise TransferError(f"{text} is a file; a directory was meant")
    _check_places([url.name for url in urls], text, text.endswith(os.sep) or os.path.isdir(text))
    targets = [local_target(url, destination) for url in urls]
    outcome = _Outcome()
    how: dict[str, Any] = {"verify": verify, "modes": modes}
    files: list[tuple[RemoteURL, Path, Stat]] = []
    looks = [engine.stat(url) for url in urls]
    for url, target, look in zip(urls, targets, looks, strict=True):
        with outcome:
            stat = wait_for(look)
            if stat.kind == "other":
                raise ServerRefused("is not a regular file; a file was meant", str(url))
            if dry_run and (error := in_place_of_directory(absolute(str(target.parent)))):
                raise error
            if stat.kind != "directory":
                check_target(str(target), 0)  # its room is checked once its directory is there
                files.append((url, target, stat))
            elif os.path.lexists(target) and not os.path.isdir(target):
                raise TransferError(f"{target} is a file; the directory cannot go there", str(url))
            else:
                tree = engine.fetch_tree(
                    url, target, dry_run=dry_run, verify=verify, modes=modes, on_progress=tell
                )
                outcome.add(wait_for(tree), str(target))
    if len(files) == len(urls):
        expect(tell, sum(stat.size for _, _, stat in files))
    if dry_run:
        for _, target, stat in files:
            outcome.plan("fetch", str(target), stat.size)
    elif len(files) == 1:
        with outcome:
            stat = _fetch_known(engine, *files[0], on_progress=tell, **how)
            outcome.add(_one_file(stat, tell))
    elif files:
        pairs = [(url, target) for url, target, _ in files]
        with outcome:
            outcome.add(wait_for(engine.fetch_many(pairs, on_progress=tell, **how)))
    return targets, outcome.result()


def put_all(
    engine: TransferEngine,
    sources: Sequence[AnyPath],
    destination: RemoteURL,
    *,
    dry_run: bool = False,
    verify: bool = False,
    modes: bool = False,
    tell: Progress | None = None,
) -> tuple[list[RemoteURL], TreeResult]:
    """Upload files and directories; the mirror of `get_all`."""
    names = [own_name(_local(source)) for source in sources]
    kind = "directory" if destination.trailing_slash else _kind(engine, destination)
    if kind == "other":  # a rename would replace it
        raise ServerRefused("is a device or pipe; name a file to make or replace", str(destination))
    if dry_run:
        check_way(engine, destination if destination.trailing_slash else destination.parent)
    into = kind == "directory"
    _check_places(names, str(destination), into)
    targets = [destination.join(name) if into and name else destination for name in names]
    how: dict[str, Any] = {"verify": verify, "modes": modes, "on_progress": tell}
    outcome = _Outcome()
    stores: list[Future[Stat]] = []
    with contextlib.ExitStack() as ends:  # Ctrl-C: what is under way ends, too
        for source, target in zip(sources, targets, strict=True):
            with outcome:
                if os.path.isdir(source):
                    # Otherwise making the directory would say so.
                    if dry_run and _kind(engine, target) not in ("directory", None):
                        raise ServerRefused(
                            "cannot make a directory: a file of that name exists", str(target)
                        )
                    tree = engine.store_tree(source, target, dry_run=dry_run, **how)
                    outcome.add(wait_for(tree), str(target))
                elif dry_run:
                    size = LocalSource(absolute(os.fspath(source))).size
                    if _kind(engine, target) == "directory":
                        raise ServerRefused("is a directory; a file was meant", str(target))
                    outcome.plan("store", str(target), size)
                else:
                    stores.append(engine.store(source, target, **how))
                    ends.callback(stores[-1].cancel)
        if len(stores) == len(sources):
            expect(tell, sum(os.path.getsize(one) for one in sources if os.path.exists(one)))
        outcome.add(wait_for_stores(stores, tell))
    return targets, outcome.result()


def sync_trees(
    engine: TransferEngine,
    remote: str | RemoteURL,
    local: AnyPath,
    *,
    up: bool,
    manifest: str | None = None,
    tell: Progress | None = None,
    **options: Unpack[TreeKeywords],
) -> TreeResult:
    """Make one directory's content equal the other's; failures are part of the result.

    The manifest of that name in the remote directory is compared with, or is written.

    Raises
    ------
    RemoteChanged
        If a file is not what the manifest says; all have been moved by then.
    """
    local = _local(local)
    if manifest is not None and (manifest in ("", ".", "..") or "/" in manifest):
        raise ConfigurationError(f"not a name for a manifest: {manifest!r}; SHA256SUMS is one")
    if up and manifest and os.path.lexists(mine := os.path.join(local, manifest)):
        raise ConfigurationError(f"{mine} would be replaced by the manifest; move it away")
    if not up and os.path.lexists(local) and not os.path.isdir(local):
        raise TransferError(f"{os.fspath(local)} is a file; a directory was meant")
    if options.get("dry_run"):
        if up:
            check_way(engine, RemoteURL.parse(remote))
        elif error := in_place_of_directory(absolute(os.fspath(local))):
            raise error
    if up:
        result = wait_for(engine.store_tree(local, remote, on_progress=tell, **options))
    else:
        result = wait_for(engine.fetch_tree(remote, local, on_progress=tell, **options))
    if manifest and not result.failed and not options.get("dry_run"):
        url = RemoteURL.parse(remote).join(manifest)
        chosen = Filter(options.get("include", ()), options.get("exclude", ()))
        with tempfile.TemporaryDirectory(prefix="pyremotedata-manifest-") as folder:
            draft = Path(folder) / "manifest"
            if up:
                make_manifest(draft, os.fspath(local), chosen)
                wait_for(engine.store(draft, url))
            else:
                wait_for(engine.fetch(url, draft))
                check_manifest(draft, url, os.fspath(local), chosen)
    return result


def local_target(url: RemoteURL, destination: AnyPath) -> Path:
    """Return where a source goes: into a directory, or under its name."""
    text = os.fspath(destination)
    into = text.endswith(os.sep) or os.path.isdir(text)
    # The root and the login directory have no name of their own: their content goes there.
    named = url.path not in ("/", "/~")
    return Path(text) / url.name if into and named else Path(text)


def own_name(path: AnyPath) -> str:
    """Return the name of a local file: a link's own, the real one of ``.`` and ``..``."""
    return os.path.basename(absolute(os.fspath(path)))


def wait_for_stores(stores: Sequence[Future[Stat]], tell: Progress | None = None) -> TreeResult:
    """Wait for uploads; the failure of one does not stop the others, Ctrl-C does."""
    outcome = _Outcome()
    try:
        for store in stores:
            with outcome:
                outcome.add(_one_file(store.result(), tell))
    finally:
        for store in stores:
            store.cancel()
    return outcome.result()


class _Outcome:
    """The sum of results; as a context it takes in the failure of one source."""

    def __init__(self) -> None:
        self._results: list[TreeResult] = []

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
        if not isinstance(error, TransferError) or isinstance(error, ConfigurationError):
            return False
        self.add(TreeResult(0, 0, 0, 0, [], [error.to_plain()]))
        return True

    def add(self, result: TreeResult, top: str = "") -> None:
        """Add what was moved, or planned, below a directory."""
        planned = tuple((action, posixpath.join(top, path)) for action, path in result.planned)
        self._results.append(result._replace(planned=planned))

    def plan(self, action: str, path: str, size: int) -> None:
        """Add a file that would be moved."""
        self._results.append(TreeResult(1, size, 0, 0, [], [], ((action, path),)))

    def result(self) -> TreeResult:
        """Return the sum."""
        return TreeResult(
            sum(one.files for one in self._results),
            sum(one.bytes for one in self._results),
            sum(one.unchanged for one in self._results),
            sum(one.deleted for one in self._results),
            [skipped for one in self._results for skipped in one.skipped],
            [failed for one in self._results for failed in one.failed],
            tuple(planned for one in self._results for planned in one.planned),
        )


def check_way(engine: TransferEngine, url: RemoteURL) -> RemoteURL:
    """Refuse a directory that could not be made, as making it would; return what there is of it."""
    while (kind := _kind(engine, url)) is None and url.parent != url:
        url = url.parent
    if kind not in ("directory", None):
        raise ServerRefused("cannot make a directory: a file of that name exists", str(url))
    return url


def _check_places(names: Sequence[str], where: str, into: bool) -> None:
    """Refuse to place a source where another one goes, too."""
    if len(names) > 1 and not into:
        raise ConfigurationError(f"{where} is no directory; end it with / to make one")
    twice = next((name for name, times in Counter(names).items() if times > 1), None)
    if twice is not None:
        raise ConfigurationError(f"two of the sources would become {twice!r} in {where}")


def _fetch_known(
    engine: TransferEngine, url: RemoteURL, path: Path, stat: Stat, **options: Any
) -> Stat:
    """Fetch a file after a first look at it; if it has changed since, as it is now."""
    try:
        return wait_for(engine.fetch(url, path, expect=stat, **options))
    except RemoteChanged:
        return wait_for(engine.fetch(url, path, **options))


def _local(path: AnyPath) -> str:
    text = os.fspath(path)
    if looks_like_url(text):
        raise ConfigurationError("is a URL; a local path was meant", text)
    if not text:  # a variable that is not set, and hardly the current directory
        raise ConfigurationError("the local path is empty; the current directory is '.'")
    return text


def _kind(engine: TransferEngine, url: RemoteURL) -> str | None:
    try:
        return wait_for(engine.stat(url)).kind
    except RemoteFileNotFound:
        return None


def _one_file(stat: Stat, tell: Progress | None) -> TreeResult:
    if tell is not None:
        tell(0, 1)
    return TreeResult(1, stat.size, 0, 0, [], [])
