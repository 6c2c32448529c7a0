"""What lftp is told before its first command: options, and how to log in."""

from __future__ import annotations

import shlex

from ..config import ConnectionSettings
from ..errors import ConfigurationError
from ..ssh import ssh_argv
from .lftp_text import quote

# What holds for every session. Retries, resumption and back-off are the engine's business; here
# each step is tried once, so that a refused login is not repeated behind its back.
_OPTIONS = {
    "cmd:interactive": "no",
    "cmd:show-status": "no",
    "cmd:cls-default": '""',
    "cmd:fail-exit": "no",
    "cmd:trace": "no",
    "cmd:verify-path": "yes",  # else lftp takes any path for a directory
    "cmd:move-background": "no",
    "cmd:at-exit": '"kill all"',
    "cache:enable": "no",
    "net:max-retries": "1",
    "net:persist-retries": "0",
    "net:reconnect-interval-base": "1",
    "net:reconnect-interval-max": "1",
    "net:idle": "1d",  # the pool closes idle sessions
    "xfer:clobber": "yes",
    "xfer:make-backup": "no",  # else an existing target is renamed
    "xfer:use-temp-file": "no",
    "xfer:auto-rename": "no",
    "xfer:disk-full-fatal": "yes",  # else a full disk waits for ever
    "xfer:log": "no",
    "xfer:verify": "no",
    "file:use-lock": "no",
    "file:use-fallocate": "no",
    "pget:save-status": "never",
}
# Of the commands that are used. lftp reads /etc/lftp.conf whatever it is told, aliases included.
_ALIASABLE = (
    "cd", "chmod", "close", "cls", "debug", "echo", "get", "get1", "jobs", "kill", "mkdir", "mv",
    "open", "pget", "put", "quote", "rm", "rmdir", "set",
)  # fmt: skip
_SFTP_OPTIONS = {
    "sftp:auto-confirm": "no",  # host keys are ssh's business
    "sftp:protocol-version": "3",  # as measured; 4 and later would convert names
    "sftp:charset": '""',  # names are bytes
    "sftp:use-full-path": "yes",
    "sftp:size-read": "32k",
    "sftp:size-write": "32k",  # more is not what every server takes
}
_FTP_OPTIONS = {
    "cmd:verify-host": "no",  # the first command says that there is no such host, `open` too early
    "ftp:passive-mode": "yes",
    "ftp:auto-passive-mode": "no",  # else it lets the server connect to us after a failure
    "ftp:use-mlsd": "yes",  # where the server offers it: times to the second
    "ftp:list-options": "-a",  # where it does not
    "ftp:sync-mode": "yes",
    "ftp:home": '""',
    "ftp:skey-force": "no",
    "ftp:use-utf8": "no",  # names are bytes
    "ftp:charset": '""',
    "file:charset": '""',  # or they are converted where the server offers LANG
    # After ABOR lftp takes its answer, which may be late, for that of the next command. Without it
    # lftp would wait for the end of a download before it ends itself.
    "ftp:use-abor": "no",
    "cmd:at-exit": '"set ftp:use-abor yes; kill all"',
    "ftp:retry-530": '""',  # a refused login is refused
    "ftp:retry-530-anonymous": '""',
    "ftp:ssl-protect-data": "yes",
    "ftp:ssl-protect-list": "yes",
    # In TLS 1.3 a server sends tickets whenever it likes. lftp does not read them while it uploads,
    # and to close a socket with something unread is to reset it: the end of the file is then lost.
    "ssl:priority": '"NORMAL:-VERS-TLS1.3"',
    "ssl:verify-certificate": "yes",
    "ssl:check-hostname": "yes",
}
IMPLICIT_PORT = 990


def sftp_login(settings: ConnectionSettings, words_fd: int) -> list[str]:
    """Return the commands that lead to an SFTP server, by an ssh that complains to a descriptor."""
    # lftp appends "-s -l USER HOST sftp", which the "#" makes a comment: user and host are in
    # ssh's own arguments, and lftp's idea of them is a mere label. So no name can be taken
    # for an option, and no other site's settings or entry in ~/.netrc matches.
    ssh = [*ssh_argv(settings), "-s", "--", settings.host or "", "sftp"]
    connect = shlex.join(ssh) + f" 2>/dev/fd/{words_fd} #"
    # ssh before 8.4 asks on the terminal that lftp makes for it, even with askpass.
    login = "--user login --env-password" if settings.password else "-u login,"
    return [
        *_lines({**_OPTIONS, **_SFTP_OPTIONS}, settings),
        f"set sftp:connect-program {quote(connect)}",
        f"open {login} sftp://server",
    ]


def ftp_login(settings: ConnectionSettings, server: str) -> list[str]:
    """Return the commands that lead to an FTP server, whose URL says whether with TLS.

    TLS begins at once (implicit) or is asked for first (explicit), as the settings say. Without
    a user the login is anonymous, unless ``~/.netrc`` knows the host.
    """
    secure = server.startswith("ftps://")
    implicit = secure and is_implicit(settings)
    options = {**_OPTIONS, **_FTP_OPTIONS, "ftp:ssl-allow": "yes" if secure else "no"}
    if secure:
        options["ftp:ssl-force"] = "yes"
    if settings.ca_file:
        _check_ca_file(settings.ca_file)
        options["ssl:ca-file"] = quote(settings.ca_file)
    host = settings.host or ""
    host = f"[{host}]" if ":" in host else host
    port = f":{settings.port}" if settings.port else ""
    user = f"--user {quote(settings.username)} --env-password " if settings.username else ""
    return [
        *_lines(options, settings),
        f"open {user}{'ftps' if implicit else 'ftp'}://{host}{port}",
    ]


def _check_ca_file(path: str) -> None:
    """lftp says nothing of a file that it cannot use, and then trusts nobody."""
    try:
        with open(path, "rb") as file:
            holds = b"-----BEGIN " in file.read()
    except OSError as error:
        why = f"cannot be read ({error.strerror})"
    else:
        why = "" if holds else "holds no certificate (PEM)"
    if why:
        raise ConfigurationError(f"{path} {why}; ca_file (PYREMOTEDATA_CA_FILE) names it")


def is_implicit(settings: ConnectionSettings) -> bool:
    """Whether TLS begins with the connection; else it is asked for in the open."""
    if settings.ftps_mode == "auto":
        return settings.port == IMPLICIT_PORT
    return settings.ftps_mode == "implicit"


def _lines(options: dict[str, str], settings: ConnectionSettings) -> list[str]:
    lines = [f"alias {name}" for name in _ALIASABLE]
    lines += [f"set {name} {value}" for name, value in options.items()]
    # The limit that counts is the one of the caller; lftp's own comes after it.
    lines.append(f"set net:timeout {round(settings.timeout_s) + 5}")
    if settings.bandwidth:
        # Of this process; a server has at the most so many of them.
        lines.append(f"set net:limit-total-rate {settings.bandwidth // settings.connections}")
    return lines
