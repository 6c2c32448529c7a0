"""Which program carries an SFTP session: ssh, or paramiko in a process of its own."""

from __future__ import annotations

import shutil

from .config import ConnectionSettings
from .ssh import SshChild
from .transports.sftp import Carrier


def open_carrier(settings: ConnectionSettings, shared: Carrier | None = None) -> Carrier:
    """Begin a login, or a session on the connection of another carrier.

    Raises
    ------
    ConfigurationError
        If the program that the settings want is not there.
    """
    if takes_paramiko(settings):
        from .pyssh.carrier import ParamikoChild

        return ParamikoChild(settings, shared if isinstance(shared, ParamikoChild) else None)
    return SshChild(settings, shared if isinstance(shared, SshChild) else None)


def takes_paramiko(settings: ConnectionSettings) -> bool:
    """Whether paramiko carries the sessions: where it was asked for, or there is no ssh."""
    if settings.carrier == "auto":
        return shutil.which("ssh") is None
    return settings.carrier == "paramiko"
