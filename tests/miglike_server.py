"""An SFTP server with the manners of MiG (the software of ERDA); run by `tests.miglike`.

What it does differently from OpenSSH: no extensions; a plain rename replaces a file and moves
into a directory; what is missing is often "permission denied"; attributes are set by halves;
links and many names are refused; wrong passwords lead to a lock-out, as do logins beyond the
sessions that a user may have.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import socket
import sys
import threading
import time
import unicodedata
from collections import Counter
from collections.abc import Callable
from typing import Any

import paramiko
from paramiko import SFTPAttributes
from paramiko.sftp import (
    SFTP_FAILURE,
    SFTP_NO_SUCH_FILE,
    SFTP_OK,
    SFTP_OP_UNSUPPORTED,
    SFTP_PERMISSION_DENIED,
)

WINDOW_BYTES, PACKET_BYTES = 16 << 20, 512 << 10
WRONG_SECRETS = 5  # different ones, after which an address is locked out for a user
PUNCTUATION = " !#$%&'()+,-./:;=@_~±½÷€£§¤¢¥‰"
INVISIBLE = {".htaccess", ".vgridscm", ".vgridwiki", ".trash"}
REFUSED = set('"\\*?#[]{}|<>^`')


class Refused(Exception):
    """An answer other than success."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Site:
    """What all connections share: users, their sessions, failed logins, the log."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.users: dict[str, dict[str, Any]] = settings["users"]
        self.lock_s: float = settings["lock_s"]
        self.most_sessions: int = settings["most_sessions"]
        self.log_path: str = settings["log"]
        self.lock = threading.Lock()
        self.failed: dict[tuple[str, str], dict[str, float]] = {}
        self.sessions: Counter[str] = Counter()

    def log(self, *words: str) -> None:
        with self.lock, open(self.log_path, "a") as file:
            print(*words, file=file)

    def locked(self, who: tuple[str, str]) -> bool:
        now = time.monotonic()
        with self.lock:
            fresh = {s: t for s, t in self.failed.get(who, {}).items() if t + self.lock_s > now}
            self.failed[who] = fresh
            return len(fresh) >= WRONG_SECRETS

    def count_failure(self, who: tuple[str, str], secret: str) -> None:
        with self.lock:
            self.failed.setdefault(who, {})[secret] = time.monotonic()

    def begin(self, who: tuple[str, str]) -> bool:
        """Count a session, and forget wrong logins; False if the user has as many as may be."""
        with self.lock:
            room = self.sessions[who[1]] < self.most_sessions
            if room:
                self.sessions[who[1]] += 1
                self.failed.pop(who, None)
            return room

    def end(self, user: str) -> None:
        with self.lock:
            self.sessions[user] -= 1


class Login(paramiko.ServerInterface):
    """Decides who comes in, and to what."""

    def __init__(self, site: Site, address: str, transport: paramiko.Transport) -> None:
        self.site, self.address, self.transport, self.user = site, address, transport, ""

    def get_allowed_auths(self, user: str) -> str:
        if "codes" in self.site.users.get(user, {}):
            return "keyboard-interactive"
        return "password,publickey"

    def check_auth_interactive(self, user: str, _methods: str) -> Any:
        if "codes" not in self.site.users.get(user, {}):
            return paramiko.AUTH_FAILED
        self.asked, self.right = [user], True
        return paramiko.InteractiveQuery("", "", ("Password: ", False))

    def check_auth_interactive_response(self, responses: list[str]) -> Any:
        user, *steps = self.asked
        known = self.site.users[user]
        if not steps:  # as PAM does, the second question comes whatever the answer to the first
            self.asked.append("password")
            self.right = responses == [known["password"]]
            self.site.log("login", user, "password", "taken" if self.right else "wrong")
            return paramiko.InteractiveQuery("", "", ("Verification code: ", False))
        code = responses[0] if responses else ""
        right = self.right and code in known["codes"]
        if right:
            known["codes"].remove(code)
        return self.decide(user, "code", code, right)

    def check_auth_password(self, user: str, password: str) -> int:
        known = self.site.users.get(user, {}).get("password")
        return self.decide(user, "password", password, password == known)

    def check_auth_publickey(self, user: str, key: paramiko.PKey) -> int:
        text = key.get_base64()
        keys = self.site.users.get(user, {}).get("keys", [])
        if not keys:
            return paramiko.AUTH_FAILED  # not held against anybody
        return self.decide(user, "key", text, text in keys)

    def decide(self, user: str, kind: str, secret: str, right: bool) -> int:
        who = (self.address, user)
        if self.site.locked(who):
            return self.break_off(who, kind, "locked")
        if right and not self.user and not self.site.begin(who):
            return self.break_off(who, kind, "crowded")
        self.site.log("login", user, kind, "accepted" if right else "refused")
        if not right:
            self.site.count_failure(who, secret)
            return paramiko.AUTH_FAILED
        self.user = user
        return paramiko.AUTH_SUCCESSFUL

    def break_off(self, who: tuple[str, str], kind: str, why: str) -> int:
        self.site.count_failure(who, f"{why} {time.monotonic()}")
        self.site.log("login", who[1], kind, why)
        self.transport.close()
        return paramiko.AUTH_FAILED

    def check_channel_request(self, kind: str, _number: int) -> int:
        return paramiko.OPEN_SUCCEEDED

    def check_channel_shell_request(self, _channel: paramiko.Channel) -> bool:
        return True  # and nothing ever comes


def guarded(method: Callable[..., Any]) -> Callable[..., Any]:
    """Turn exceptions of a file operation into status codes."""

    def call(*args: Any) -> Any:
        try:
            return method(*args)
        except Refused as refused:
            return refused.status
        except FileNotFoundError:
            return SFTP_NO_SUCH_FILE
        except Exception:
            return SFTP_FAILURE

    return call


class Handle(paramiko.SFTPHandle):
    """An open file."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self.fd = fd

    def read(self, offset: int, length: int) -> bytes | int:
        return os.pread(self.fd, length, offset)

    def write(self, offset: int, data: bytes) -> int:
        try:
            os.pwrite(self.fd, data, offset)
        except OSError as error:
            return paramiko.SFTPServer.convert_errno(error.errno or errno.EIO)
        return SFTP_OK

    def stat(self) -> SFTPAttributes:
        return SFTPAttributes.from_stat(os.fstat(self.fd))

    def close(self) -> None:
        os.close(self.fd)


class Files(paramiko.SFTPServerInterface):
    """The file operations of one session, below the user's directory."""

    def __init__(self, login: Login, site: Site) -> None:
        super().__init__(login)
        self.site, self.user = site, login.user
        self.root = site.users[login.user]["root"]

    def session_started(self) -> None:
        self.site.log("session", self.user, "begins")

    def session_ended(self) -> None:
        self.site.log("session", self.user, "ends")

    def real(self, path: str) -> str:
        """Return the local path of a name that is allowed."""
        full = os.path.normpath(os.path.join(self.root, path.lstrip("/")))
        text = unicodedata.normalize("NFC", path)
        inside = full == self.root or full.startswith(self.root + "/")
        resolved = os.path.realpath(full)
        stays = resolved == self.root or resolved.startswith(self.root + "/")
        if not (inside and stays and all(map(allowed, text)) and visible(text)):
            raise Refused(SFTP_PERMISSION_DENIED)
        return full

    @guarded
    def list_folder(self, path: str) -> list[SFTPAttributes] | int:
        local = self.real(path)
        found = []
        for name in os.listdir(local):
            with contextlib.suppress(OSError):  # broken links are left out
                if visible(name):
                    info = os.stat(os.path.join(local, name))
                    found.append(SFTPAttributes.from_stat(info, name))
        return found

    @guarded
    def stat(self, path: str) -> SFTPAttributes | int:
        return SFTPAttributes.from_stat(os.stat(self.real(path)))

    lstat = stat  # links are followed here, too

    @guarded
    def open(self, path: str, flags: int, _attributes: SFTPAttributes) -> Handle | int:
        local = self.real(path)
        if flags & os.O_CREAT and not os.path.isdir(os.path.dirname(local)):
            return SFTP_PERMISSION_DENIED
        if os.path.isdir(local):
            return SFTP_FAILURE
        return Handle(os.open(local, flags | os.O_CLOEXEC, 0o644))

    @guarded
    def remove(self, path: str) -> int:
        local = self.real(path)
        if not os.path.exists(local) or os.path.islink(local):
            return SFTP_PERMISSION_DENIED
        os.remove(local)
        return SFTP_OK

    @guarded
    def rename(self, old: str, new: str) -> int:
        source, target = self.real(old), self.real(new)
        os.stat(source)
        if os.path.islink(source) or not os.path.isdir(os.path.dirname(target)):
            return SFTP_PERMISSION_DENIED
        shutil.move(source, target)
        return SFTP_OK

    @guarded
    def mkdir(self, path: str, _attributes: SFTPAttributes) -> int:
        local = self.real(path)
        if os.path.isdir(local):
            return SFTP_FAILURE
        if not os.path.isdir(os.path.dirname(local)):
            return SFTP_PERMISSION_DENIED
        os.mkdir(local, 0o755)
        return SFTP_OK

    @guarded
    def rmdir(self, path: str) -> int:
        local = self.real(path)
        if os.path.islink(local):
            return SFTP_PERMISSION_DENIED
        os.rmdir(local)
        return SFTP_OK

    @guarded
    def chattr(self, path: str, attributes: SFTPAttributes) -> int:
        local = self.real(path)
        os.stat(local)
        if attributes.st_mode is not None:
            if attributes.st_mode & 0o7000 or attributes.st_mode & 0o600 != 0o600:
                return SFTP_OP_UNSUPPORTED
            os.chmod(local, attributes.st_mode & 0o775 | 0o640)
            return SFTP_OK  # and whatever else was asked for is forgotten
        if attributes.st_mtime is not None:
            os.utime(local, (attributes.st_atime, attributes.st_mtime))
        if attributes.st_size is not None:
            os.truncate(local, attributes.st_size)
        return SFTP_OK

    @guarded
    def readlink(self, path: str) -> int:
        os.stat(self.real(path))
        return SFTP_FAILURE

    def symlink(self, _target: str, _path: str) -> int:
        return SFTP_OP_UNSUPPORTED


def allowed(character: str) -> bool:
    if character in REFUSED:
        return False
    if character.isascii():
        return character.isalnum() or character in PUNCTUATION
    return character in PUNCTUATION or unicodedata.category(character) in ("Lu", "Ll", "Lt")


def visible(path: str) -> bool:
    return INVISIBLE.isdisjoint(path.split("/"))


def converse(connection: socket.socket, address: str, site: Site, key: paramiko.PKey) -> None:
    """Serve one connection until it ends."""
    transport = paramiko.Transport(
        connection, default_window_size=WINDOW_BYTES, default_max_packet_size=PACKET_BYTES
    )
    transport.add_server_key(key)
    transport.set_subsystem_handler("sftp", paramiko.SFTPServer, Files, site)
    login = Login(site, address, transport)
    channels = []  # one that nobody holds is closed
    try:
        transport.start_server(server=login)
        channels.append(transport.accept(60))
        while login.user and transport.is_active():
            channels.append(transport.accept(1))
    except Exception as error:
        site.log("connection", "failed", repr(error))
    finally:
        transport.close()
        if login.user:
            site.end(login.user)


def main() -> None:
    """Serve until standard input ends; the settings are its first line."""
    settings = json.loads(sys.stdin.readline())
    site = Site(settings)
    key = paramiko.RSAKey(filename=settings["host_key"])
    listener = socket.create_server(("127.0.0.1", settings["port"]))
    print(listener.getsockname()[1], flush=True)

    def accept() -> None:
        while True:
            connection, (address, _port) = listener.accept()
            arguments = (connection, address, site, key)
            threading.Thread(target=converse, args=arguments, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main()
