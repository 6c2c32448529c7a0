"""Which program carries an SFTP session: ssh, or paramiko in a process of its own."""

from __future__ import annotations

import atexit
import shutil
from importlib.util import find_spec
from typing import TYPE_CHECKING

from .config import ConnectionSettings
from .nodestate import SessionSlots
from .ssh import SshChild, code_ticket, use_owner
from .url import RemoteURL

if TYPE_CHECKING:
    from .transports.sftp import Carrier

_begun: dict[ConnectionSettings, Carrier] = {}


def begin_login(settings: ConnectionSettings, url: RemoteURL, *, ask: bool) -> None:
    """Begin the login that this process's engine will want first.

    A login takes longer than to load the engine. Nothing happens where the engine would wait for
    other processes, or use another transport.

    Raises
    ------
    ConfigurationError
        If the program that the settings want is not there.
    OSError
        If it cannot be started.
    """
    if url.scheme != "sftp" or settings.transport_for(url) != "sftp":
        return
    mine = settings.for_url(url)
    if not SessionSlots(url.server, mine.connections).reserve():
        return
    if ask:
        from .asker import shared_asker

        code = mine.one_time_code
        use_owner(shared_asker().path, code_ticket(code.reveal()) if code else "", mine)
    _begun[mine] = open_carrier(mine)


def _kill_begun() -> None:
    while _begun:
        _begun.popitem()[1].kill()


atexit.register(_kill_begun)


def open_carrier(settings: ConnectionSettings, shared: Carrier | None = None) -> Carrier:
    """Begin a login, or a session on the connection of another carrier.

    Raises
    ------
    ConfigurationError
        If the program that the settings want is not there.
    """
    if shared is None and settings in _begun:
        return _begun.pop(settings)
    if takes_paramiko(settings):
        from .pyssh.carrier import ParamikoChild

        return ParamikoChild(settings, shared if isinstance(shared, ParamikoChild) else None)
    return SshChild(settings, shared if isinstance(shared, SshChild) else None)


def takes_paramiko(settings: ConnectionSettings) -> bool:
    """Whether paramiko carries the sessions: where it was asked for, or there is no ssh.

    With neither of them, ssh is what the error tells to install.
    """
    if settings.carrier == "auto":
        return shutil.which("ssh") is None and find_spec("paramiko") is not None
    return settings.carrier == "paramiko"
