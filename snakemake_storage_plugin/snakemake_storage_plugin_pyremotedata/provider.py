"""The storage provider: settings, queries, the engine and what is known of remote files."""

from __future__ import annotations

import atexit
import contextlib
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snakemake_interface_storage_plugins.common import Operation
from snakemake_interface_storage_plugins.storage_provider import (
    ExampleQuery,
    QueryType,
    StorageProviderBase,
    StorageQueryValidationResult,
)

from pyremotedata_core.errors import ConfigurationError, TransferError

from . import query as queries
from .copies import Directories, Leavings
from .failures import StorageError
from .fetching import Fetching
from .host import Host
from .limit import RequestLimit
from .lookup import Lookup
from .prefetch import Prefetch
from .report import Report
from .settings import (
    StorageProviderSettings,
    connection_settings,
    is_yes,
    prefetch_bytes,
    requests_per_second,
    unknown_settings,
)

# Snakemake looks for this name in the module of the provider.
from .storage_object import StorageObject as StorageObject
from .storing import Storing
from .tally import Tally

if TYPE_CHECKING:
    from pyremotedata_core.engine import TransferEngine
    from pyremotedata_core.stager import Stager
    from pyremotedata_core.url import RemoteURL


class StorageProvider(StorageProviderBase):
    """Remote files behind ``sftp://``, ``ftp://`` and ``ftps://`` queries.

    Making one opens no connection and loads no engine. Thread-safe.
    """

    settings: Any

    def __post_init__(self) -> None:
        if self.settings is None:
            self.settings = StorageProviderSettings()
        unknown = unknown_settings(self.settings)
        if unknown:
            raise StorageError(
                f"Storage provider pyremotedata has no setting {', '.join(unknown)}; see "
                "'snakemake --help' for its settings (--storage-pyremotedata-...)."
            )
        self.is_valid_query = _judge  # type: ignore[method-assign]
        self.host = host = Host.of_caller()
        apart = host.is_remote_job and not host.shares_local_copies
        try:
            self._limit = requests_per_second(self.settings)
            ahead_bytes = prefetch_bytes(self.settings)
            self._read_only = is_yes(self.settings, "read_only")
            cached = is_yes(self.settings, "node_cache", default=apart)
            self.uses_checksums = is_yes(self.settings, "checksums")
        except ConfigurationError as error:
            raise StorageError(error.message) from error
        self.lookup = Lookup(self.engine, looks_ahead=not self.use_rate_limiter())
        self.directories = Directories(self.local_prefix)
        self.leavings = Leavings(self.local_prefix)
        if apart:
            atexit.register(lambda: self.leavings.clear(host.own_job_id, host.files_of(self)))
        self.storing = Storing(self.engine, self.lookup, self.host, self.local_prefix)
        self.fetching = Fetching(
            self.engine,
            self.lookup,
            self.stager if cached else None,
            self.logger.warning,
            links=lambda: host.jobs_follow_links,
        )
        looks_ahead = not (cached or self.use_rate_limiter())
        self.prefetch = Prefetch(self.engine, self.local_prefix, ahead_bytes if looks_ahead else 0)
        self.tally = Tally()
        report = getattr(self.settings, "report", None)
        self.report = Report(
            Path(report).absolute() if report else None,
            not host.is_remote_job,
            self.logger,
        )
        self._lock = threading.Lock()
        self._engine: TransferEngine | None = None
        self._started = False
        self._stager: Stager | None = None

    def __deepcopy__(self, _memo: dict[int, Any]) -> StorageProvider:
        return self

    def __str__(self) -> str:
        # Snakemake ends the address of a page with it, to which it sends who has an invalid query.
        return "pyremotedata"

    def engine(self) -> TransferEngine:
        """Return this process's engine for the provider's settings; made on first use.

        Raises
        ------
        ConfigurationError
            If a setting is wrong.
        """
        with self._lock:
            if self._engine is None:
                from pyremotedata_core.engine import shared_engine

                self._engine = shared_engine(connection_settings(self.settings))
                if self.keep_local:
                    # Snakemake cleans nothing up then, which is when we tell otherwise.
                    atexit.register(self.tell, _say_at_exit)
            return self._engine

    def expect(self, url: RemoteURL) -> None:
        """Note a file of the workflow, which may be asked about soon.

        With the first one the engine's helper is started, so that it is there when the Snakefile
        has been read; it connects to nothing before the first question. Raises nothing.
        """
        self.lookup.expected.note(url)
        if not self._started and self.host.is_main_process:
            self._started = True
            with contextlib.suppress(Exception):  # told when something is asked
                self.engine().start()

    def stager(self) -> Stager:
        """Return this process's stager of the node's cache for the provider's settings.

        Raises
        ------
        ConfigurationError
            If a setting is wrong.
        """
        engine = self.engine()
        with self._lock:
            if self._stager is None:
                from pyremotedata_core.stager import shared_stager

                self._stager = shared_stager(engine.settings)
            return self._stager

    def refuse_change(self) -> None:
        """Raise a `ConfigurationError` if the user wants nothing changed here."""
        if self._read_only:
            name = self.local_prefix.name
            raise ConfigurationError(f"storage {name} is read-only (setting read_only)")

    def refuse_outputs(self) -> None:
        """Raise a `StorageError` before the first job runs, if one is to store something here."""
        output = self.host.unwritable(self) if self._read_only else None
        if output is not None:
            rule, query = output
            raise StorageError(
                f"Storage {self.local_prefix.name} is read-only (setting read_only), but rule "
                f"{rule} is to store {query}; give that another storage."
            )

    def tell(self, say: Callable[[str], None] | None = None) -> None:
        """Log what was moved, or ``say`` it, if anything was since it was last told."""
        news = self.tally.news()
        if news:
            (say or self.logger.info)(f"Storage {self.local_prefix.name}: {news}.")
            self.report.finish()

    @classmethod
    def example_queries(cls) -> list[ExampleQuery]:
        """Return queries that show what is possible."""
        return [
            ExampleQuery(
                query="sftp://io.erda.au.dk/project/reads/{sample}.fastq.gz",
                description="A file on an SFTP server; host may be an alias of ~/.ssh/config.",
                type=QueryType.ANY,
            ),
            ExampleQuery(
                query="sftp://user@host:2222/~/results",
                description="A file or directory below the login directory; storage(...) takes "
                "both, without directory().",
                type=QueryType.ANY,
            ),
            ExampleQuery(
                query="pyremotedata+sftp://host/data/a%20b%23c.csv",
                description="The same as sftp://, for when another plugin serves sftp:// as well. "
                "Percent-encoding is decoded once; '?' and '#' need none.",
                type=QueryType.ANY,
            ),
            ExampleQuery(
                query="ftps://host/pub/archive.tar",
                description="A file on an FTP server with TLS (through lftp).",
                type=QueryType.ANY,
            ),
        ]

    @classmethod
    def is_valid_query(cls, query: str) -> StorageQueryValidationResult:
        """Say whether a query (wildcards included) can be served, and why not."""
        result = _judge(query)
        return _Ours(**vars(result)) if queries.is_ours(query) else result

    def postprocess_query(self, query: str) -> str:
        """Return the canonical form of a query, so that one file has one name."""
        try:
            canonical = queries.canonical(str(query))
        except TransferError:
            return query  # the validation that follows tells why
        # Flags, as those of `storage(temp(...))`, are part of the string that Snakemake hands over.
        new_from = getattr(query, "new_from", None)
        return new_from(canonical) if new_from else canonical

    def safe_print(self, query: str) -> str:
        """Return the query; a password that does not belong there is left out."""
        return queries.without_password(query)

    def use_rate_limiter(self) -> bool:
        """Return whether the user has set a limit; without one there is none."""
        return self._limit is not None

    def rate_limiter(self, query: str, operation: Operation) -> AbstractAsyncContextManager[Any]:
        """Return what a request has to wait in before it begins."""
        if self._limit is None:
            return contextlib.nullcontext()
        key = self.rate_limiter_key(query, operation)
        with self._lock:
            return self._rate_limiters.setdefault(key, RequestLimit(self._limit))

    def default_max_requests_per_second(self) -> float:
        """Return what Snakemake asks for but does not use: without a setting there is no limit."""
        return 1e6

    def rate_limiter_key(self, query: str, operation: Operation) -> str:  # noqa: ARG002
        """Return the server: a limit holds for all its files and all kinds of requests."""
        return queries.to_url(query).server


def _say_at_exit(news: str) -> None:
    print(news, file=sys.stderr)  # Snakemake's loggers are closed by then


def _judge(query: str) -> StorageQueryValidationResult:
    reason = queries.why_invalid(str(query))
    return StorageQueryValidationResult(
        query=queries.without_password(query), valid=reason is None, reason=reason
    )


class _Ours(StorageQueryValidationResult):
    """The judgement on a query of our schemes, true even where it is not valid.

    Snakemake looks for a class that says yes. Where none does it prints the query as it is, also a
    password in it, and no reason; else it asks the provider, which tells that.
    """

    def __bool__(self) -> bool:
        return True
