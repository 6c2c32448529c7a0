"""One lftp process, and the protocol that drives it over its standard input.

Each command runs as a background job of lftp's and ends in a line with a token that nobody can
guess: ``(command && echo TOKEN-1: ok || echo TOKEN-1: bad) &``. Why so:

- lftp goes on reading its input while a job runs. So a job can be given up (``kill all``) and the
  login survives, and lftp ends at once when its input does, that is, when this process dies in
  whatever way. In the foreground it would first finish a transfer of hours.
- ``cmd:fail-exit yes``, the alternative, ends the process at the first error. A new login costs
  0.2 s on loopback and 0.45 s at 20 ms, where a question for a missing file costs 1 ms and 21 ms;
  and servers count logins.

The job's output (a listing) and the token come on one pipe, lftp's log and errors on another,
ssh's own words on a third. lftp writes what belongs to a command before its token, so after the
token the other two pipes hold all there is.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import selectors
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from ..children import kill_group, plain_environment, reap
from ..config import ConnectionSettings
from ..errors import (
    ConfigurationError,
    ConnectionLost,
    TransferError,
    TransferTimeout,
    from_oserror,
    from_ssh_stderr,
    naming,
)
from ..ssh import ssh_environment
from .lftp_login import ftp_login, sftp_login
from .lftp_text import Log, quote

ASK_S = 1.0  # how often lftp is asked for its progress where its log does not tell
WAKE_S = 0.25  # how often a waiting caller is asked whether it still wants the answer
INTERRUPT_TIMEOUT_S = 5.0
SSH_TEXT_BYTES = 8192
_PIPE_BYTES = 1 << 16


def find_lftp() -> str:
    """Return the path of the lftp program.

    Raises
    ------
    ConfigurationError
        If there is none on PATH.
    """
    path = shutil.which("lftp")
    if path is None:
        raise ConfigurationError(
            "the program lftp is not installed; install it (Debian, Ubuntu: apt install lftp;"
            " macOS: brew install lftp), or reach an SFTP server without it"
            " (PYREMOTEDATA_TRANSPORT=sftp)"
        )
    return path


@dataclass(frozen=True, slots=True)
class Reply:
    """The outcome of a command.

    Attributes
    ----------
    ok : bool
        Whether lftp takes it for a success.
    output : bytes
    log : Log
    paths : tuple of str
        The paths that it was given.
    """

    ok: bool
    output: bytes
    log: Log
    paths: tuple[str, ...]


class LftpProcess:
    """A running lftp with one site.

    One thread calls `start` and `run`; `kill` may be called from any thread.

    Parameters
    ----------
    settings : ConnectionSettings
        Already those of the server.
    url : str
        The server.
    make_log : type
        What reads its log.

    Attributes
    ----------
    last_heard : float
        Monotonic time of its last sign of life.
    probe_path : str
        A local path that a command may write to; what is written there is nobody's.
    scratch_path : str
        Another one; `scratch` returns what was written there.
    """

    def __init__(self, settings: ConnectionSettings, url: str, make_log: type[Log] = Log) -> None:
        self.last_heard = time.monotonic()
        self.probe_path = ""
        self.scratch_path = ""
        self._scratch_fd = -1
        self._settings = settings
        self._url = url
        self._make_log = make_log
        self._ftp = not url.startswith("sftp://")
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._busy = False
        self._killed = False
        self._token = secrets.token_hex(16)
        self._count = 0
        self._said = b""
        self._selector: selectors.DefaultSelector | None = None
        self._ssh_fd = -1

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        with self._lock:
            return not self._killed and self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the process and tell it the site; it logs in at its first command.

        Raises
        ------
        ConfigurationError
            If lftp or ssh is not installed, or a setting does not fit.
        TransferError
            If it cannot be started.
        """
        program, settings = find_lftp(), self._settings
        self._ssh_fd, ssh_end = os.pipe()
        with tempfile.TemporaryFile() as probe, tempfile.TemporaryFile() as scratch:
            fds = (ssh_end, probe.fileno(), scratch.fileno())
            try:
                with self._lock:
                    if self._killed:
                        raise ConnectionLost("the connection was closed", self._url)
                    self._process = self._popen(program, fds)
                    self._scratch_fd = os.dup(scratch.fileno())
            except OSError as error:
                raise from_oserror(error, program) from None
            finally:
                os.close(ssh_end)
                if self._process is None:
                    os.close(self._ssh_fd)
            self.probe_path = f"/dev/fd/{probe.fileno()}"
            self.scratch_path = f"/dev/fd/{scratch.fileno()}"
        self._selector = selectors.DefaultSelector()
        for fd in self._fds():
            os.set_blocking(fd, False)
            self._selector.register(fd, selectors.EVENT_READ)
        login = ftp_login(settings, self._url) if self._ftp else sftp_login(settings, ssh_end)
        self._send("\n".join([*login, "debug 9"]))

    def run(
        self,
        command: str,
        *paths: str,
        watch: Callable[[Log], None] | None = None,
        asking: bool = False,
    ) -> Reply:
        """Run a command and wait for its end.

        Parameters
        ----------
        command : str
            With ``{}`` in place of every path.
        paths : str
            The paths, which are quoted.
        watch : callable, optional
            Called with the log whenever lftp has said something, and several times a second.
            An exception that it raises ends the command, not the process.
        asking : bool
            Ask lftp for its progress, where its log does not tell.

        Raises
        ------
        UnsafeName
            If a path cannot be said to lftp.
        ConnectionLost
            If the process has ended.
        TransferTimeout
            If it was silent for the session's time limit; it has then been killed.
        """
        log = self._make_log()
        job = command.format(*map(quote, paths))
        self._enter()
        try:
            # What has come since the last command is not about this one.
            self._hear(None, self._make_log())
            self._said = b""
            self._count += 1
            mark = f"{self._token}-{self._count}:"
            self.last_heard = time.monotonic()
            self._send(f"({job} && echo {mark} ok || echo {mark} bad) &")
            try:
                output, verdict = self._until(mark.encode(), log, watch, asking)
            except BaseException:
                self._interrupt()
                if log.breaks:
                    # What lftp keeps of a transfer that it was about to go on with is not known.
                    # Killed before, it may leave a child that it has stopped until it runs ssh.
                    self.kill()
                raise
            return Reply(verdict == b"ok", output, log, paths)
        finally:
            self._leave()

    def scratch(self, most: int) -> bytes:
        """Return what the last command wrote to `scratch_path`, up to ``most`` bytes; empty it."""
        with self._lock:
            if self._killed:
                raise ConnectionLost("the connection was closed", self._url)
            with naming("a temporary file"):
                pieces, at = [], 0
                while at < most and (piece := os.pread(self._scratch_fd, most - at, at)):
                    pieces.append(piece)
                    at += len(piece)
                os.ftruncate(self._scratch_fd, 0)
            return b"".join(pieces)

    def ssh_error(self, *, in_login: bool = False) -> TransferError | None:
        """Return what ssh has said since the last command began, None if it said nothing."""
        if not self._killed:
            self._hear(None, self._make_log())
        said = self._said.decode("utf-8", "replace")
        if not said.strip():
            return None
        status = 255 if in_login else None  # with which ssh ends without a login
        return from_ssh_stderr(said, self._url, status, ssh_config=self._settings.ssh_config)

    def kill(self) -> None:
        """End it and what it has started, at once. Safe from any thread, more than once."""
        with self._lock:
            self._killed = True
            process = self._process
            if process is None:
                return
            if process.poll() is None:
                # Its ssh children are sessions of their own on terminals that lftp holds: they
                # get a hangup when it dies.
                kill_group(process)
            if not self._busy:
                self._close()

    # --- inside ------------------------------------------------------------------------------

    def _popen(self, program: str, fds: tuple[int, ...]) -> subprocess.Popen[bytes]:
        environment = plain_environment() if self._ftp else ssh_environment(self._settings)
        environment.pop("LANGUAGE", None)
        # Texts untranslated, names as bytes, times of the log in UTC, and a directory in which
        # nothing can be kept: where there is none, lftp makes one in the user's home.
        environment.update(LC_ALL="C", TZ="UTC0", LFTP_HOME="/dev/fd")
        password = self._settings.password
        environment["LFTP_PASSWORD"] = password.reveal() if password else ""
        return subprocess.Popen(
            [program, "--norc"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=fds,
            env=environment,
            cwd="/",
            bufsize=0,
            start_new_session=True,
        )

    def _fds(self) -> tuple[int, int, int]:
        process = self._process
        assert process is not None
        assert process.stdout is not None
        assert process.stderr is not None
        return process.stdout.fileno(), process.stderr.fileno(), self._ssh_fd

    def _send(self, text: str) -> None:
        process = self._process
        if process is None or process.stdin is None or process.stdin.closed:
            raise self._ended()
        try:
            process.stdin.write(text.encode("utf-8", "surrogateescape") + b"\n")
        except OSError:
            raise self._ended() from None

    def _until(
        self,
        mark: bytes,
        log: Log,
        watch: Callable[[Log], None] | None,
        asking: bool = False,
    ) -> tuple[bytes, bytes]:
        """Collect output up to a mark; return it and the word after the mark."""
        output = bytearray()
        limit_s = self._settings.timeout_s
        asked = time.monotonic()
        while True:
            if asking and time.monotonic() - asked > ASK_S:
                self._send("jobs -v >>/dev/fd/2")  # to where the log goes
                asked = time.monotonic()
            seen = len(output)
            if self._hear(output, log):
                self.last_heard = time.monotonic()
            elif time.monotonic() - self.last_heard > limit_s:
                self.kill()
                raise TransferTimeout(
                    f"the server said nothing for {limit_s:g} s; check the network", self._url
                )
            at = output.find(mark, max(0, seen - len(mark)))
            if at >= 0 and output.endswith(b"\n"):
                while self._hear(None, log):  # the log of this command is there: see above
                    pass
                if watch:
                    watch(log)
                return bytes(output[:at]), bytes(output[at + len(mark) :].strip())
            if watch:
                watch(log)

    def _hear(self, output: bytearray | None, log: Log) -> bool:
        """Read what there is; wait for something unless ``output`` is None."""
        assert self._selector is not None
        out_fd, log_fd, ssh_fd = self._fds()
        heard = False
        for key, _ in self._selector.select(0 if output is None else WAKE_S):
            if key.fd == out_fd and output is None:
                continue
            data = _read(key.fd)
            if data is None:
                continue
            if data:
                # ssh tells of silence, too: "Timeout, server … not responding."
                heard = heard or (key.fd != log_fd and not data.startswith(b"Timeout"))
            elif key.fd == out_fd:
                self._hear(None, log)
                raise self._ended()
            else:
                self._selector.unregister(key.fd)
            if key.fd == out_fd and output is not None:
                output += data
            elif key.fd == log_fd:
                signs = log.signs
                log.feed(data)
                heard = heard or log.signs != signs
            elif key.fd == ssh_fd:
                self._said = (self._said + data)[-SSH_TEXT_BYTES:]
        return heard

    def _interrupt(self) -> None:
        """Give up the job under way; the login survives if lftp is well."""
        if not self.alive:
            return
        self._count += 1
        mark = f"{self._token}-{self._count}:"
        deadline = time.monotonic() + INTERRUPT_TIMEOUT_S

        def hurry(_: Log) -> None:
            if time.monotonic() > deadline:
                raise TransferTimeout("lftp does not answer", self._url)

        heard = self.last_heard
        try:
            self._send(f"kill all\necho {mark}")
            self._until(mark.encode(), self._make_log(), hurry)
        except TransferError:
            self.kill()
        finally:
            self.last_heard = heard  # what answers is lftp, not the server

    def _ended(self) -> TransferError:
        if self._killed:
            return ConnectionLost("the connection was closed", self._url)
        self.kill()
        return ConnectionLost("the lftp process has ended", self._url)

    def _enter(self) -> None:
        with self._lock:
            if self._killed or self._process is None:
                raise ConnectionLost("the connection was closed", self._url)
            self._busy = True

    def _leave(self) -> None:
        with self._lock:
            self._busy = False
            if self._killed:
                self._close()

    def _close(self) -> None:
        """Close the pipes and reap the process; with the lock held."""
        process, self._process = self._process, None
        if process is None:
            return
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        if self._selector is not None:
            self._selector.close()
        os.close(self._ssh_fd)
        os.close(self._scratch_fd)
        reap(process)


def _read(fd: int) -> bytes | None:
    """Return what a pipe holds, b"" at its end, None if it holds nothing now."""
    try:
        return os.read(fd, _PIPE_BYTES)
    except BlockingIOError:
        return None
    except OSError:
        return b""
