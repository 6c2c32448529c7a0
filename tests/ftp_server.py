"""An FTP server (pyftpdlib) in a process of its own, with faults on demand; see `ftp.FtpServer`.

Reads one line of JSON (the options), writes the port, and then obeys one line of JSON after the
other, each a dictionary of faults; it answers every one with a line.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
import sys
import threading
import time
from typing import Any

from pyftpdlib.authorizers import AuthenticationFailed, DummyAuthorizer
from pyftpdlib.filesystems import AbstractedFS
from pyftpdlib.handlers import DTPHandler, FTPHandler, TLS_DTPHandler, TLS_FTPHandler
from pyftpdlib.servers import FTPServer

FAULTS: dict[str, Any] = {}
_ALL = "elradfmwMT"


class Authorizer(DummyAuthorizer):
    """Counts the logins that it refuses."""

    def validate_authentication(self, username: str, password: str, handler: Any) -> None:
        try:
            super().validate_authentication(username, password, handler)
        except AuthenticationFailed:
            FAULTS["refused"] = FAULTS.get("refused", 0) + 1
            raise


class Faults:
    """A data connection that breaks or stalls after some bytes, if told to."""

    _moved = 0

    def send(self, data: bytes) -> int:
        if self._fails(len(data)):
            return 0
        return super().send(data)

    def handle_close(self) -> None:
        if FAULTS.get("mute") and self.producer_fifo:
            self.close()  # without a word, as Pure-FTPd to a client that has seen enough
        else:
            super().handle_close()

    def recv(self, size: int) -> bytes:
        data = super().recv(size)
        return b"" if self._fails(len(data)) else data

    def _fails(self, count: int) -> bool:
        self._moved += count
        if self._moved > FAULTS.get("stall_after", 1 << 60):
            self._stall()
            return True
        if self._moved <= FAULTS.get("drop_after", 1 << 60) or not FAULTS.get("drops", 0):
            return False
        FAULTS["drops"] -= 1
        self.cmd_channel.close()
        return True

    def _stall(self) -> None:
        self.modify_ioloop_events(0)


class Endless:
    """A listing that does not end."""

    _numbers = itertools.count()

    def more(self) -> bytes:
        facts = b"type=file;size=5;modify=20200101000000; %012d\r\n"
        return b"".join(facts % number for number in itertools.islice(self._numbers, 1000))


class Transfer(Faults, DTPHandler):
    pass


class SecureTransfer(Faults, TLS_DTPHandler):
    pass


class FileSystem(AbstractedFS):
    """Tells no size of a directory, as proftpd and Pure-FTPd do, nor the time of "timeless".

    LIST is that of Windows, or writes some characters as question marks, if told to.
    """

    def format_list(self, basedir: str, listing: list[str], *args: Any, **more: Any) -> Any:
        if FAULTS.get("windows"):
            for name in listing:
                yield _windows_line(os.path.join(basedir, name), name)
            return
        for line in super().format_list(basedir, listing, *args, **more):
            yield line.replace("ø".encode(), b"?") if FAULTS.get("question_marks") else line

    def format_mlsx(self, *args: Any, **more: Any) -> Any:
        for line in super().format_mlsx(*args, **more):
            line = re.sub(rb"size=\d+;(?=type=dir)", b"", line)
            hidden = b"timeless" in os.fsencode(args[0]) + line
            yield re.sub(rb"modify=\d+;", b"", line) if hidden else line


def _windows_line(path: str, name: str) -> bytes:
    stat = os.stat(path)
    size = "<DIR>         " if os.path.isdir(path) else f"{stat.st_size:>14}"
    stamp = time.strftime("%m-%d-%y  %I:%M%p", time.gmtime(stat.st_mtime))
    return f"{stamp} {size:>20} {name}\r\n".encode()


class Plain(FTPHandler):
    dtp_handler = Transfer


class Secure(TLS_FTPHandler):
    dtp_handler = SecureTransfer


def _handler(options: dict[str, Any]) -> type[FTPHandler]:
    base: type[Any] = Plain
    if options["certificate"]:
        base = Secure
    without = set(options["without"])
    commands = {**FTPHandler.proto_cmds, "LANG": {**FTPHandler.proto_cmds["NOOP"], "arg": None}}
    offered = {k: v for k, v in commands.items() if k not in without}

    class Handler(base):  # type: ignore[misc]
        proto_cmds = offered
        abstracted_fs = FileSystem
        banner = "ready"
        unicode_errors = "surrogateescape"
        auth_failed_timeout = 0
        use_sendfile = False  # which would pass the faults by
        timeout = 60

        def on_connect(self) -> None:
            FAULTS["connections"] = FAULTS.get("connections", 0) + 1
            if "LANG" in offered:
                self._extra_feats.append("LANG EN*")
            if options["implicit"]:
                self.secure_connection(self.ssl_context)
            if FAULTS.pop("full_house", False):
                self.respond("421 Too many users.")
                self.close_when_done()

        def pre_process_command(self, line: str, cmd: str, arg: str) -> None:
            if self.ac_in_buffer:  # another command, before this one has its answer
                FAULTS["hurries"] = FAULTS.get("hurries", 0) + 1
                if FAULTS.get("strict"):
                    self.close()
                    return
            if cmd in ("USER", "PASS") and options["certificate"] and not self._ssl_established:
                # As Pure-FTPd does.
                said = {"USER": "421 No cleartext sessions, but TLS.", "PASS": "530 Who are you?"}
                self.respond(said[cmd])
            else:
                super().pre_process_command(line, cmd, arg)

        def respond(self, resp: str, *args: Any, **more: Any) -> None:
            if resp.startswith("550") and FAULTS.get("denies"):
                resp = "550 Access is denied."
            if options["terse"] and resp.startswith("550"):
                resp = "550 Failed."
            super().respond(resp, *args, **more)

        def ftp_LANG(self, _: str) -> None:  # noqa: N802
            self.respond("200 EN it is.")

        def ftp_ABOR(self, line: str) -> Any:  # noqa: N802
            FAULTS["aborts"] = FAULTS.get("aborts", 0) + 1
            return super().ftp_ABOR(line)

        def ftp_MDTM(self, path: str) -> Any:  # noqa: N802
            FAULTS["times"] = FAULTS.get("times", 0) + 1
            return super().ftp_MDTM(path)

        def ftp_RNTO(self, path: str) -> Any:  # noqa: N802
            if FAULTS.get("trims"):
                path = path.rstrip()
            if FAULTS.get("no_replace") and os.path.exists(path):
                self._rnfr = None
                self.respond("550 Cannot create a file when that file already exists.")
                return None
            return super().ftp_RNTO(path)

        def ftp_LIST(self, path: str) -> Any:  # noqa: N802
            if FAULTS.pop("crowded", False):
                FAULTS["full_house"] = True
                self.close()
                return None
            return self._list_for_ever(path) if FAULTS.get("endless") else super().ftp_LIST(path)

        def ftp_NLST(self, path: str) -> Any:  # noqa: N802
            if name := FAULTS.pop("late", ""):
                open(os.path.join(path, name), "w").close()
            return super().ftp_NLST(path)

        def ftp_MLSD(self, path: str) -> Any:  # noqa: N802
            return self._list_for_ever(path) if FAULTS.get("endless") else super().ftp_MLSD(path)

        def _list_for_ever(self, path: str) -> Any:
            self.push_dtp_data(Endless(), isproducer=True, cmd="MLSD")
            return path

        def ftp_STOR(self, *args: Any, **more: Any) -> Any:  # noqa: N802
            if FAULTS.get("full"):
                self.respond("552 Insufficient disk space.")
                return None
            return super().ftp_STOR(*args, **more)

    if options["certificate"]:
        Handler.certfile = options["certificate"]
        Handler.tls_control_required = not options["implicit"]
        Handler.tls_data_required = True
        for command in ("AUTH", "PBSZ", "PROT"):
            offered[command] = TLS_FTPHandler.proto_cmds[command]
    return Handler


def main() -> None:
    options = json.loads(sys.stdin.readline())
    logging.disable(logging.CRITICAL)
    authorizer = Authorizer()
    root = options["root"]
    authorizer.add_user(options["user"], options["password"], root, perm=_ALL)
    authorizer.add_user("reader", options["password"], root, perm="elr")
    authorizer.add_anonymous(root)
    handler = _handler(options)
    handler.authorizer = authorizer
    server = FTPServer(("127.0.0.1", options["port"]), handler)
    if options["most"]:
        server.max_cons = options["most"]
    print(server.address[1], flush=True)

    def obey() -> None:
        for line in sys.stdin:
            FAULTS.update(json.loads(line))
            print(json.dumps(FAULTS), flush=True)
        os._exit(0)  # whoever started it is gone

    threading.Thread(target=obey, daemon=True).start()
    server.serve_forever(timeout=1.0, handle_exit=False)


if __name__ == "__main__":
    main()
