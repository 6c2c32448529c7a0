"""The looking half of the fsspec file system: names, the way to the engine, questions, listings."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import functools
import inspect
import os
import posixpath
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import fields, replace
from hashlib import sha256
from typing import Any, Self

from fsspec.asyn import AsyncFileSystem, get_loop, reset_lock
from fsspec.config import apply_config
from fsspec.spec import AbstractFileSystem
from fsspec.utils import stringify_path

from .config import SECRETS, ConnectionSettings, Secret
from .engine import TransferEngine, shared_engine
from .errors import ConfigurationError, RemoteFileNotFound, ServerRefused, TransferError
from .filesystem_files import details
from .futures import wait_for
from .spool import LISTINGS_AT_ONCE
from .url import PREFIX, RemoteURL, child_path, looks_like_url, normalise, parent_path

FILES_AT_ONCE = 512
REMEMBER_S = 5.0
REMEMBERED = 100_000  # some 50 MB

_SETTINGS = {field.name for field in fields(ConnectionSettings)}

# A forked child has no thread that runs its parent's event loop. Older fsspec does not see to it.
os.register_at_fork(after_in_child=reset_lock)


class _KeepsSecrets(type(AsyncFileSystem)):  # type: ignore[misc]
    """Keeps secrets out of what fsspec remembers of an instance, and so of pickles, JSON, tokens.

    An instance that fsspec has kept gets the ones that were given last.
    """

    def __call__(cls, *args: Any, **options: Any) -> Any:
        options = apply_config(cls, options)
        secrets = {name: options[name] for name in SECRETS if options.get(name)}
        fs = super().__call__(*args, **{**options, **dict.fromkeys(secrets, "")})
        if secrets:
            fs._log_in(**secrets)
        return fs


class LookingFileSystem(AsyncFileSystem, metaclass=_KeepsSecrets):
    """What `RemoteFileSystem` does that changes nothing and reads no file; see there."""

    mirror_sync_methods = False  # see _waiting
    _changes = object()  # another one after every change made by this process

    def __init__(
        self,
        host: str | None = None,
        username: str | None = None,
        port: int | str | None = None,
        *,
        scheme: str = "sftp",
        use_listings_cache: bool = True,
        listings_expiry_time: float | None = None,
        batch_size: int | None = None,
        **settings: Any,
    ) -> None:
        ours = {name: settings.pop(name) for name in _SETTINGS.intersection(settings)}
        for name in SECRETS:
            ours.pop(name, None)
        for name in settings.keys() - {"asynchronous", "loop", "max_paths"}:
            raise ConfigurationError(f"unknown setting {name!r}")
        super().__init__(batch_size=batch_size or FILES_AT_ONCE, **settings)
        self._server = _server(scheme, host, username, port) if host else None
        self._settings = ours if host else {**ours, "username": username, "port": port}
        expiry_s = REMEMBER_S if listings_expiry_time is None else listings_expiry_time
        self._remember_s = expiry_s if use_listings_cache else 0.0
        self._memory: tuple[object, dict[str, Any]] = (None, {})
        self._strip_protocol = self._path_here  # type: ignore[method-assign]
        self._log_in()

    # --- names -----------------------------------------------------------------------------

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(one) for one in path]
        path = stringify_path(path)
        if isinstance(path, _PathOfURL):
            return path
        if looks_like_url(path):
            return _PathOfURL(_parse(path))
        if path.startswith("/"):
            return normalise(path)
        path = posixpath.normpath(path)
        return "" if path == "." else path

    def _path_here(self, path: Any) -> Any:
        """Return the path of a name, which may be a URL of this server only.

        Stands for `_strip_protocol` in each instance.
        """
        path = type(self)._strip_protocol(path)
        if isinstance(path, list):
            return [self._path_here(one) for one in path]
        if isinstance(path, _PathOfURL):
            url, here = path.url, self._server or self._reach()[1]
            said = (url.user or here.user, url.port or here.port)
            if (url.scheme, url.host, *said) != (here.scheme, here.host, here.user, here.port):
                raise ConfigurationError(
                    f"is not on {here.server}: each server takes a file system of its own", str(url)
                )
        return str(path)

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, Any]:
        if not looks_like_url(path):
            return {}  # fsspec has taken the host out before, as in a chain of URLs
        url = _parse(path)
        found = {"host": url.host, "username": url.user, "port": url.port}
        if url.scheme != "sftp":
            found["scheme"] = url.scheme
        return {name: value for name, value in found.items() if value is not None}

    @classmethod
    def _parent(cls, path: Any) -> str:
        path = cls._strip_protocol(path)
        return parent_path(path) if path.startswith("/") else posixpath.dirname(path)

    def unstrip_protocol(self, name: str) -> str:
        """Return the URL of a path."""
        return name if looks_like_url(name) else PREFIX + str(self.url(name))

    def url(self, path: Any) -> RemoteURL:
        """Return the URL of a path, for the engine, `Remote`, a Stager."""
        return self._reach()[1].join(self._strip_protocol(path))

    @property
    def fsid(self) -> str:
        """The URL of the server."""
        return PREFIX + self._reach()[1].server

    # --- the engine ------------------------------------------------------------------------

    @property
    def engine(self) -> TransferEngine:
        """The process's shared engine for these settings."""
        return shared_engine(self._reach()[0])

    @property
    def loop(self) -> Any:
        """Fsspec's own event loop; a forked child has another one."""
        return get_loop()

    def _log_in(self, **secrets: str | None) -> None:
        self._secrets = {name: Secret(text) for name, text in secrets.items() if text}
        self._reached: tuple[ConnectionSettings, RemoteURL] | None = None

    def _reach(self) -> tuple[ConnectionSettings, RemoteURL]:
        """Return the settings, and the directory where relative paths begin.

        Not before they are needed: Dask's scheduler unpickles file systems that it never uses,
        and may be configured for none.
        """
        if self._reached is None:
            settings = ConnectionSettings.load(**self._settings, **self._secrets)
            base = self._server or settings.root()
            if self._server and settings.host in (None, base.host):
                base = base.join(settings.directory)
            elif self._server:
                base = base.join("/~")
                if "password" in self._secrets:  # meant for this host, not the configured one
                    settings = replace(settings.for_url(base), password=settings.password)
            self._reached = settings, base
        return self._reached

    async def _ask(self, method: str, *args: Any, **options: Any) -> Any:
        return await asyncio.wrap_future(getattr(self.engine, method)(*args, **options))

    async def _change(self, method: str, *args: Any, **options: Any) -> Any:
        try:
            return await self._ask(method, *args, **options)
        finally:
            self.invalidate_cache()

    def invalidate_cache(self, path: str | None = None) -> None:
        """Forget what listings said, of all paths: links may give a file several."""
        super().invalidate_cache(path)
        LookingFileSystem._changes = object()

    def _known(self) -> dict[str, Any]:
        """Return what listings said; after a change another, empty dictionary.

        A listing keeps the one that it began with: what was asked before a change is forgotten.
        """
        changes = LookingFileSystem._changes
        if self._memory[0] is not changes:
            self._memory = changes, {}
        return self._memory[1]

    # --- looking ---------------------------------------------------------------------------

    async def _info(self, path: Any, refresh: bool = False, **_: Any) -> dict[str, Any]:
        path = self._strip_protocol(path)
        until, info = self._known().get(path, (0.0, {}))
        if not refresh and time.monotonic() < until:
            return dict(info)
        return details(path, await self._ask("stat", self.url(path)))

    async def _ls(self, path: Any, detail: bool = True, **_: Any) -> list[Any]:
        path = self._strip_protocol(path)
        known = self._known()
        try:
            entries = await self._ask("scandir", self.url(path))
        except ServerRefused:
            infos = [await self._info(path, refresh=True)]
            if infos[0]["type"] == "directory":
                raise
        else:
            infos = [details(child_path(path, name), stat) for name, stat in sorted(entries)]
            links = [info for info in infos if info["type"] == "link"]
            await each(self._follow, links, FILES_AT_ONCE)
            self._remember(known, infos)
        return [dict(info) if detail else info["name"] for info in infos]

    async def _follow(self, info: dict[str, Any]) -> None:
        info["islink"] = True
        try:
            stat = await self._ask("stat", self.url(info["name"]))
        except TransferError as error:
            if error.retryable:
                raise
        else:
            if stat.kind == "file":
                info.update(details(info["name"], stat))

    def _remember(self, known: dict[str, Any], infos: list[dict[str, Any]]) -> None:
        if len(known) + len(infos) > REMEMBERED:
            known.clear()
        if self._remember_s and len(infos) <= REMEMBERED:
            until = time.monotonic() + self._remember_s
            plain = [info for info in infos if info["type"] in ("file", "directory")]
            known.update((info["name"], (until, info)) for info in plain)

    async def _type(self, path: Any, refresh: bool = False) -> str | None:
        try:
            return str((await self._info(path, refresh=refresh))["type"])
        except FileNotFoundError:
            return None  # anything else is an error, and not a no

    async def _exists(self, path: Any, **_: Any) -> bool:
        return await self._type(path, refresh=True) is not None

    async def _isdir(self, path: Any) -> bool:
        return await self._type(path) == "directory"

    async def _isfile(self, path: Any) -> bool:
        return await self._type(path) == "file"

    async def _lexists(self, path: Any, **_: Any) -> bool:
        try:
            await self._ask("stat", self.url(path), follow=False)
        except FileNotFoundError:
            return False
        return True

    async def _find(
        self,
        path: Any,
        maxdepth: int | None = None,
        withdirs: bool = False,
        detail: bool = False,
        on_error: Any = None,
        **_: Any,
    ) -> Any:
        async def listing(directory: str) -> list[dict[str, Any]]:
            try:
                return await self._ls(directory)
            except Exception as error:
                _may_miss(error, on_error)
                return []

        path = self._strip_protocol(path)
        found = {}
        if withdirs and path and await self._isdir(path):
            found[path] = await self._info(path)
        level, depth = [path], 0
        while level and (maxdepth is None or depth < maxdepth):
            listings = await each(listing, level, LISTINGS_AT_ONCE)
            level, depth = [], depth + 1
            for info in (info for infos in listings for info in infos):
                if info["type"] == "directory":
                    level.append(info["name"])
                if withdirs or info["type"] != "directory":
                    found[info["name"]] = info
        return {name: found[name] for name in sorted(found)} if detail else sorted(found)

    def walk(self, path: Any, *args: Any, on_error: Any = None, **options: Any) -> Iterator[Any]:
        """As fsspec's, but of what cannot be listed only what has gone is passed over."""
        on_error = functools.partial(_may_miss, on_error=on_error)
        return super().walk(path, *args, on_error=on_error, **options)

    async def _walk(self, path: Any, *args: Any, on_error: Any = None, **options: Any) -> Any:
        on_error = functools.partial(_may_miss, on_error=on_error)
        async for found in super()._walk(path, *args, on_error=on_error, **options):
            yield found

    async def _du(self, path: Any, total: bool = True, **options: Any) -> Any:
        found = await self._find(path, **{**options, "detail": True})
        sizes = {name: info["size"] for name, info in found.items()}
        return sum(sizes.values()) if total else sizes

    async def _expand_path(self, path: Any, *args: Any, **options: Any) -> list[str]:
        try:
            return await super()._expand_path(path, *args, **options)
        except FileNotFoundError as error:
            if isinstance(error, TransferError):
                raise
            raise RemoteFileNotFound(f"nothing is or matches {path!r}", self.fsid) from None

    async def _modified(self, path: Any) -> datetime.datetime:
        mtime = (await self._info(path, refresh=True))["mtime"]
        return datetime.datetime.fromtimestamp(mtime, tz=datetime.UTC)

    async def _ukey(self, path: Any) -> str:
        info = await self._info(path, refresh=True)
        return sha256(repr((info["name"], info["size"], info["mtime"])).encode()).hexdigest()

    async def _checksum(self, path: Any) -> int:
        return int(await self._ukey(path), 16)


# --- pieces -----------------------------------------------------------------------------------


class _PathOfURL(str):
    """The path of a URL, which keeps the URL.

    Fsspec makes one file system for a list of URLs, after the first of them, and hands it the
    paths of all.
    """

    def __new__(cls, url: RemoteURL) -> Self:
        path = super().__new__(cls, url.path)
        path.url = url
        return path

    url: RemoteURL

    def __reduce__(self) -> Any:
        return _PathOfURL, (self.url,)


def _parse(text: str) -> RemoteURL:
    bare = text.removeprefix("pyremotedata://")
    return RemoteURL.parse(text if bare == text else f"sftp://{bare}")


def _server(scheme: str, host: str, username: str | None, port: int | str | None) -> RemoteURL:
    try:
        number = int(port) if port else None
    except ValueError:
        raise ConfigurationError(f"not a port number: {port!r}") from None
    url = RemoteURL(scheme, host.strip("[]"), "/", username or None, number)
    if RemoteURL.parse(f"{url.server}/") != url:
        raise ConfigurationError(f"not a host name: {host!r}")
    return url


def _may_miss(error: BaseException, on_error: Any = None) -> None:
    """Decide about a directory that cannot be listed.

    Fsspec would pass over it without a word; but a tree that is searched or copied is then not
    the whole tree, unless the directory has gone meanwhile.
    """
    if callable(on_error):
        on_error(error)
    elif on_error != "omit" and (on_error == "raise" or not isinstance(error, FileNotFoundError)):
        raise error


async def each(
    work: Callable[[Any], Awaitable[Any]], items: Iterable[Any], at_once: int
) -> list[Any]:
    """Do a work on each item, so many at once; the first failure ends the others."""
    items = list(items)
    results = [None] * len(items)
    numbered = iter(enumerate(items))

    async def worker() -> None:
        for number, item in numbered:
            results[number] = await work(item)

    workers = [asyncio.ensure_future(worker()) for _ in range(min(at_once, len(items)))]
    try:
        await asyncio.gather(*workers)
    finally:
        for one in workers:
            one.cancel()
    return results


def _waiting(method: str, model: Any) -> Any:
    """Return the method that waits for a coroutine.

    Unlike fsspec's own it gives up what is under way when the wait is broken off (Ctrl-C).
    """

    @functools.wraps(model)
    def call(self: LookingFileSystem, *args: Any, **options: Any) -> Any:
        loop = self.loop
        with contextlib.suppress(RuntimeError):
            if asyncio.get_running_loop() is loop:
                raise TypeError(f"{method} is to be awaited in fsspec's own event loop")
        return wait_for(
            asyncio.run_coroutine_threadsafe(getattr(self, method)(*args, **options), loop)
        )

    return call


def mirror(cls: type[LookingFileSystem]) -> None:
    """Give a class the waiting method of each coroutine method, as fsspec names them."""
    for method, _ in inspect.getmembers(cls, inspect.iscoroutinefunction):
        model = getattr(AbstractFileSystem, method[1:], None)
        if model is not None and getattr(cls, method[1:]) is model:
            setattr(cls, method[1:], _waiting(method, model))
