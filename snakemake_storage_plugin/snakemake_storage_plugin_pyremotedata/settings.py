"""The settings a Snakemake user can make: ``--storage-pyremotedata-...``, profiles, Snakefiles.

They mean what the core's settings of the same name mean, and go before environment and config
file. None of them is a secret: Snakemake writes settings into the scripts of cluster jobs.
"""

# Snakemake reads the types of the fields: no postponed annotations, and Optional for `| None`.
# ruff: noqa: UP045
import math
from dataclasses import dataclass, field, fields
from typing import Any, Optional

from snakemake_interface_storage_plugins.settings import StorageProviderSettingsBase

from pyremotedata_core.config import FLAGS, ConnectionSettings, parse_bytes
from pyremotedata_core.errors import ConfigurationError

# What `storage: provider="pyremotedata", ...` takes for Snakemake itself.
_SNAKEMAKES_OWN = {"keep_local", "retrieve"}
PREFETCH_BYTES = 2 * 2**30
_CORE_NAMES = {"timeout": "timeout_s"}


def _read(text: str) -> str:
    return text.removeprefix(":")


def _write(value: Any) -> str:
    # Snakemake passes settings of a tag to cluster jobs as TAG:VALUE, but reads TAG::VALUE.
    # With a colon of our own in front of the value, both ways are read right.
    return f":{value}"


def _setting(help_text: str, metavar: str) -> Any:
    # Every value is text here and read by the core, which knows what each one may be.
    metadata = {
        "help": help_text,
        "metavar": metavar,
        "parse_func": _read,
        "unparse_func": _write,
        "unparse": _write,
    }
    return field(default=None, metadata=metadata)


@dataclass
class StorageProviderSettings(StorageProviderSettingsBase):
    """Settings of one storage provider; every one is optional.

    Passwords and passphrases are not among them: they are read where they are needed, from
    ``PYREMOTEDATA_PASSWORD``, ``PYREMOTEDATA_KEY_PASSPHRASE`` or the config file there.
    """

    # Snakemake has it for every plugin; anew, so that it reaches cluster jobs from a tag, too.
    max_requests_per_second: Optional[str] = _setting(
        "Questions and transfers that may begin per second at the most, for each process and "
        "server (default: no limit). Nothing is fetched ahead then.",
        "N",
    )
    username: Optional[str] = _setting("User name, for queries that name none.", "NAME")
    host: Optional[str] = _setting(
        "Host that username and port belong to; queries to other hosts do not use them.", "HOST"
    )
    port: Optional[str] = _setting("Port of the given host, for queries that name none.", "PORT")
    ssh_config: Optional[str] = _setting(
        "OpenSSH configuration file to use instead of ~/.ssh/config.", "FILE"
    )
    ssh_key: Optional[str] = _setting(
        "Private key file: the only key to offer, beside those that ssh_config names.", "FILE"
    )
    accept_new: Optional[str] = _setting(
        "Accept the host key of a server that is seen for the first time: yes or no (default).",
        "YES_NO",
    )
    transport: Optional[str] = _setting(
        "What moves the data: auto (default), sftp or lftp.", "NAME"
    )
    ftps_mode: Optional[str] = _setting(
        "For ftps://: explicit, implicit or auto (default).", "MODE"
    )
    ca_file: Optional[str] = _setting(
        "For ftps://: certificates of the authorities to trust (default: the system's).", "FILE"
    )
    connections: Optional[str] = _setting(
        "Sessions to each host at the most, for all processes of a node (default 4).", "N"
    )
    timeout: Optional[str] = _setting(
        "Give up when nothing has moved for so many seconds (default 60).", "SECONDS"
    )
    bandwidth: Optional[str] = _setting(
        "Bytes per second at the most, e.g. 50M, for downloads and uploads each (default: no "
        "limit).",
        "BYTES",
    )
    prefetch: Optional[str] = _setting(
        "Bytes of inputs that may be fetched ahead of their jobs, while others run (default 2G, "
        "0: none).",
        "BYTES",
    )
    read_only: Optional[str] = _setting(
        "Store, touch and remove nothing: yes or no (default).", "YES_NO"
    )
    node_cache: Optional[str] = _setting(
        "Fetch inputs through the cache that all jobs of a node share, and copy them from there: "
        "yes, no or auto (default: for cluster jobs whose local copies are not on a shared file "
        "system). Nothing is fetched ahead then.",
        "YES_NO_AUTO",
    )
    checksums: Optional[str] = _setting(
        "Take the checksum of X from X.sha256 or X.md5 beside it, which costs questions: yes or "
        "no (default).",
        "YES_NO",
    )
    report: Optional[str] = _setting(
        "Write all transfers, and the jobs, to this file, a JSON object a line; with matplotlib "
        "a picture beside it (default: none).",
        "FILE",
    )


def unknown_settings(settings: Any) -> list[str]:
    """Return the names that a Snakefile gave to ``storage:`` and that mean nothing here."""
    known = {f.name for f in fields(settings)} | _SNAKEMAKES_OWN
    return sorted(set(vars(settings)) - known)


def prefetch_bytes(settings: Any) -> int:
    """Return how many bytes may be fetched ahead.

    Raises
    ------
    ConfigurationError
        If the setting is no number of bytes.
    """
    value = getattr(settings, "prefetch", None)
    if value is None:
        return PREFETCH_BYTES
    try:
        return max(0, parse_bytes(value))
    except ValueError:
        raise ConfigurationError(
            f"pyremotedata settings: prefetch is not valid: {value!r}; it is a number of bytes,"
            " as 2G, or 0 for none"
        ) from None


def requests_per_second(settings: Any) -> float | None:
    """Return how many requests may begin per second, None for no limit.

    Raises
    ------
    ConfigurationError
        If the setting is no number greater than zero.
    """
    value = getattr(settings, "max_requests_per_second", None)
    if value is None:
        return None
    try:
        rate = float(value)
    except (TypeError, ValueError):
        rate = 0.0
    if not 0 < rate < math.inf:
        raise ConfigurationError(
            f"pyremotedata settings: max_requests_per_second is not valid: {value!r}; it is a "
            "number greater than 0, leave it out for no limit"
        )
    return rate


def is_yes(settings: Any, name: str, default: bool = False) -> bool:
    """Return whether a setting is yes; auto, and one that is not made, is the default.

    Raises
    ------
    ConfigurationError
        If it is something else.
    """
    value = getattr(settings, name, None)
    text = "auto" if value is None else str(value).strip().lower()
    if text in ("auto", ""):
        return default
    if text in FLAGS:
        return FLAGS[text]
    raise ConfigurationError(
        f"pyremotedata settings: {name} is not valid: {value!r}; it is yes, no or auto"
    )


def connection_settings(settings: Any) -> ConnectionSettings:
    """Return the core's settings: these, then environment, then config file.

    Raises
    ------
    ConfigurationError
        Naming the setting that is wrong.
    """
    cores = {one.name for one in fields(ConnectionSettings)}
    given = {}
    for own in fields(StorageProviderSettings):
        name = _CORE_NAMES.get(own.name, own.name)
        if name in cores:
            given[name] = getattr(settings, own.name, None)
    try:
        return ConnectionSettings.load(**given)
    except ConfigurationError as error:
        raise ConfigurationError(f"pyremotedata settings: {error.message}") from None
