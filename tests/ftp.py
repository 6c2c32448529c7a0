"""Real FTP servers for the tests; `ftp_server.py` is what runs in their processes."""

from __future__ import annotations

import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

from pyremotedata_core import ConnectionSettings, Secret
from pyremotedata_core.url import encode_path
from workflows.embedded_sshd import own_directory

from .child import Child
from .servers import ChildServer


class FtpServer(ChildServer):
    """A running server.

    It lets in `user` with `password`, ``reader`` (who may not write) with the same, and anybody as
    ``anonymous``, to read.

    Parameters
    ----------
    tls : {"", "explicit", "implicit"}
    without : tuple of str
        Commands that it does not offer.
    terse : bool
        Whether it keeps to itself why it refuses something.
    most : int
        Connections at the most, 0 for any number.
    """

    user = "me"

    def __init__(
        self, *, tls: str = "", without: tuple[str, ...] = (), terse: bool = False, most: int = 0
    ) -> None:
        self.directory = own_directory("ftp")
        self.root = self.directory / "root"
        self.root.mkdir()
        self.password = secrets.token_urlsafe(12) + " $'\"\\"
        self.port = 0
        self.tls = tls
        self._without = without
        self._terse = terse
        self._most = most
        if tls:
            self._make_certificate()

    @property
    def certificate(self) -> Path:
        """What a client has to trust."""
        return self.directory / "certificate.pem"

    def start(self) -> Self:
        """Start it; after `halt` on the same port."""
        self._child = Child(sys.executable, str(Path(__file__).with_name("ftp_server.py")))
        options = {
            "root": str(self.root),
            "user": self.user,
            "password": self.password,
            "port": self.port,
            "certificate": str(self.directory / "both.pem") if self.tls else "",
            "implicit": self.tls == "implicit",
            "without": self._without,
            "terse": self._terse,
            "most": self._most,
        }
        self.port = self._child.ask(options)
        return self

    def faults(self, **faults: Any) -> dict[str, Any]:
        """Set faults (see `ftp_server`); return all that are set, and what was counted."""
        assert self._child is not None
        return self._child.ask(faults)

    def settings(self, **more: Any) -> ConnectionSettings:
        """Return settings that log in; ``more`` are other fields."""
        values: dict[str, Any] = {
            "password": Secret(self.password),
            "ftps_mode": self.tls or "auto",
        }
        if self.tls:
            values["ca_file"] = str(self.certificate)
        return ConnectionSettings(**{**values, **more})

    def url(self, relative: str = "", user: str | None = None) -> str:
        """Return the URL of a file."""
        scheme = "ftps" if self.tls else "ftp"
        who = self.user if user is None else user
        login = f"{who}@" if who else ""
        path = encode_path(self.remote_path(relative))
        return f"{scheme}://{login}127.0.0.1:{self.port}{path}"

    def _make_certificate(self) -> None:
        key = self.directory / "key.pem"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
             "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext",
             "subjectAltName=DNS:localhost,IP:127.0.0.1",
             "-keyout", str(key), "-out", str(self.certificate)],
            check=True, capture_output=True, timeout=60,
        )  # fmt: skip
        both = key.read_text() + self.certificate.read_text()
        (self.directory / "both.pem").write_text(both)
