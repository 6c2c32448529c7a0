"""The link to a helper: requests go out, their outcomes end futures."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Any

from . import sharing
from .asker import forget_answers, shared_asker
from .children import reap
from .config import ConnectionSettings
from .entries import OnBatch
from .errors import AuthenticationFailed, ConnectionLost, from_plain
from .helper import BATCH, FAILED, FATAL_ID, OK, PROGRESS, Server, pack, unpack, url_in
from .progress import Progress
from .ssh import code_ticket

CLOSE_S = 3.0  # a helper that has not ended by then is killed
SEND_S = 60.0
JOIN_S = 5.0  # a helper that lets nobody in by then is left alone
QUIET_S = 3600.0


class Link:
    """The connection to one helper.

    Parameters
    ----------
    settings : ConnectionSettings
    in_process : bool
    ask : bool
    keep : bool
    share : bool
    take_over : callable
        Given what another helper is to be asked for, if this one is killed.
    """

    def __init__(
        self,
        settings: ConnectionSettings,
        in_process: bool,
        ask: bool,
        keep: bool,
        share: bool,
        take_over: Callable[[list[Caller]], None],
    ) -> None:
        self.ended = False
        self._closed = self._dismissed = False
        # A request may drop what cancels another one: the garbage collector comes at any moment.
        self._lock = threading.RLock()
        self._next_id = 0
        self._pending: dict[int, Caller] = {}
        self._cancelled: set[int] = set()
        self._settled = threading.Condition()
        self._process: subprocess.Popen[bytes] | None = None
        self._stays = False  # the helper, when this link ends
        self._fatal = ""
        self._ask = ask
        self._keep = keep
        self._take_over = take_over
        plain = settings.to_plain()
        # A code is good for one login, and who is asked sits at one terminal.
        shares = share and not (in_process or ask or settings.one_time_code)
        place = sharing.place_for(plain) if shares else ""
        joined = listener = None
        if place:
            until = monotonic() + JOIN_S
            joined = _join(place, plain, until)
            listener = sharing.listen(place) if joined is None else None
            if joined is None and listener is None:  # somebody was quicker, or is of no use
                joined = _join(place, plain, until)
        self._sock = joined or self._start(settings, plain, in_process, listener)
        incoming = sharing.kept_from_children(self._sock.dup())
        self._reader = threading.Thread(
            target=self._read, args=(incoming,), name="pyremotedata-reader", daemon=True
        )
        self._reader.start()

    def _start(
        self,
        settings: ConnectionSettings,
        plain: dict[str, Any],
        in_process: bool,
        listener: socket.socket | None,
    ) -> socket.socket:
        """Start a helper, which others may join where it listens; return the socket to it."""
        ours, theirs = map(sharing.kept_from_children, socket.socketpair())
        try:
            ours.settimeout(SEND_S)
            asker = shared_asker().path if self._ask else ""
            code = settings.one_time_code
            ticket = code_ticket(code.reveal()) if code else ""
            # Before it starts: who joins it is to find it knowing them.
            ours.sendall(pack([(0, "hello", (plain, asker, ticket))]))
            if in_process:
                server = Server(theirs)
                threading.Thread(target=server.run, name="pyremotedata-io", daemon=True).start()
            else:
                self._process = _start_helper(theirs, listener)
                theirs.close()
        except BaseException:
            ours.close()
            theirs.close()
            raise
        finally:
            if listener is not None:
                listener.close()
        return ours

    def ask_for(self, caller: Caller) -> bool:
        """Send what a caller wants; False if the helper has ended."""
        with self._lock:
            if self.ended:
                return False
            self._next_id += 1
            caller.link, caller.request_id = self, self._next_id
            frame = pack([(caller.request_id, caller.method, caller.args)])
            self._pending[caller.request_id] = caller
            try:
                self._sock.sendall(frame)
            except OSError:
                # It has ended, or hangs in the middle of a frame: of no use any more.
                self.ended = True
                del self._pending[caller.request_id]
                with contextlib.suppress(OSError):
                    self._sock.shutdown(socket.SHUT_RDWR)
                if self._process is not None:
                    self._process.kill()
                return False
            caller.times += 1
        if caller.times > 1:  # what has happened meanwhile was told to the helper before
            if caller.future.done():
                self.cancel(caller)
            elif not caller.background:
                self.promote(caller)
        return True

    def promote(self, caller: Caller) -> None:
        """Tell the helper that a request is not in the background any more."""
        with self._lock, contextlib.suppress(OSError):
            if self._pending.get(caller.request_id) is caller and not self.ended:
                self._sock.sendall(pack([(caller.request_id, "promote", ())]))

    def wait_cancelled(self, timeout_s: float) -> bool:
        """Wait for the helper's last word on what was cancelled; return whether it came."""
        with self._settled:
            return self._settled.wait_for(lambda: not self._cancelled, timeout_s)

    def retire(self) -> None:
        """End the helper, with its sessions, if nothing is asked of it."""
        with self._lock:
            if self.ended or self._pending or self._cancelled:
                return
            self.ended = True  # who asks from now on gets another one
        self.close()

    def close(self) -> None:
        """End the helper and wait for it; one that serves others, too, stays."""
        self._closed = True
        until = monotonic() + CLOSE_S
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)
        if threading.current_thread() is not self._reader:
            self._reader.join(CLOSE_S)
        if self._process is not None:
            if self._stays:
                _serving_others.append(self._process)
            else:
                try:
                    self._process.wait(max(0.0, until - monotonic()))
                except subprocess.TimeoutExpired:
                    self._process.kill()
                    reap(self._process, CLOSE_S)
                    self._reader.join(CLOSE_S)
        self._sock.close()

    def dismiss(self) -> None:
        """End the helper when nothing is under way any more; without waiting, and without locks.

        For the garbage collector, which may come at any moment to any thread.
        """
        self._dismissed = True
        self._end_if_dismissed()

    def abandon(self) -> None:
        """Forget it in a forked child: the helper, its thread and its futures are the parent's."""
        self.ended = True
        self._sock.close()
        if self._process is not None:
            self._process.returncode = 0  # not this process's child: nothing to wait for
        error = ConnectionLost("a forked process does not share its parent's transfers")
        for caller in self._pending.values():
            # Locks may have been held by threads that do not exist here.
            caller.future._condition = threading.Condition()
            caller.fail(error)

    def is_reading(self) -> bool:
        """Whether this is the thread on which futures end."""
        return threading.current_thread() is self._reader

    def cancel(self, caller: Caller) -> None:
        """Have the helper give up a request."""
        with self._lock, contextlib.suppress(OSError):
            request_id = caller.request_id
            if self.ended or self._pending.get(request_id) is not caller:
                return
            self._cancelled.add(request_id)  # first: its last word may be on its way
            if self._pending.pop(request_id, None) is None:
                self._settle(request_id)
            else:
                self._sock.sendall(pack([(request_id, "cancel", self._keep)]))

    def _more(self, request_id: int, count: int) -> None:
        """Ask for more entries of a directory."""
        with self._lock, contextlib.suppress(OSError):
            if not self.ended and request_id in self._pending:
                self._sock.sendall(pack([(request_id, "more", (count,))]))

    def _settle(self, request_id: int | None) -> None:
        with self._settled:
            if request_id is None:
                self._cancelled.clear()
            else:
                self._cancelled.discard(request_id)
            self._settled.notify_all()

    def _read(self, sock: socket.socket) -> None:
        # Not None: the mode is shared with the sending end, which must not block for ever.
        sock.settimeout(QUIET_S)
        buffer = bytearray()
        while True:
            try:
                data = sock.recv(1 << 18)
            except TimeoutError:
                continue  # nothing was asked for long
            except OSError:
                data = b""
            if not data:
                break
            buffer += data
            for request_id, status, value in unpack(buffer):
                if request_id == FATAL_ID:
                    self._stays, self._fatal = status == OK, value
                else:
                    self._outcome(request_id, status, value)
            self._end_if_dismissed()
        sock.close()
        self._end()
        if self._dismissed:
            self.close()

    def _end_if_dismissed(self) -> None:
        if self._dismissed and not self._pending and not self._cancelled:
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_WR)

    def _outcome(self, request_id: int, status: int, value: Any) -> None:
        if status in (OK, FAILED):
            caller = self._pending.pop(request_id, None)
        else:
            caller = self._pending.get(request_id)
        if caller is None:
            if status in (OK, FAILED):
                self._settle(request_id)
            return
        future = caller.future
        if status == OK:
            with contextlib.suppress(InvalidStateError):
                future.set_result(caller.convert(value))
        elif status == FAILED:
            error = from_plain(value)
            if self._ask and isinstance(error, AuthenticationFailed):
                forget_answers()
            caller.fail(error)
        else:
            if status == BATCH:
                caller.tell(caller.on_batch, value, partial(self._more, request_id))
            elif status == PROGRESS:
                caller.moved = caller.moved[0] + value[0], caller.moved[1] + value[1]
                caller.tell(caller.on_progress, *value)
            if future.done():
                self.cancel(caller)

    def _end(self) -> None:
        with self._lock:
            self.ended = True
            pending, self._pending = self._pending, {}
        self._settle(None)
        closed = "the engine was closed" if self._closed else "the helper process ended"
        why = self._fatal or closed
        if not (self._closed or self._fatal):
            again = [caller for caller in pending.values() if caller.may_ask_again()]
            for caller in again:
                caller.take_back()
            self._take_over(again)
        else:
            again = []
        if not self._fatal and self._process is not None and len(pending) > len(again):
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = self._process.wait(CLOSE_S)
                if status < 0:
                    why = f"the helper process was killed by signal {-status}"
                elif status:
                    why = f"the helper process ended (exit status {status} of {sys.executable})"
        for caller in pending.values():
            if caller not in again:
                caller.fail(ConnectionLost(why, url_in(caller.args)))


# What may be asked again when nobody knows whether it has been done.
_REPEATABLE = {"stat", "realpath", "info", "read", "fetch", "store", "touch"}


@dataclass(eq=False)
class Caller:
    """Who waits for an outcome of a helper, and how it is to be handed over."""

    method: str
    args: tuple[Any, ...]
    convert: Callable[[Any], Any]
    on_progress: Progress | None
    on_batch: OnBatch | None
    background: bool  # until it is promoted
    link: Link | None = None
    request_id: int = 0
    times: int = 0  # it was asked
    moved: tuple[int, int] = 0, 0  # bytes and files, as told

    def __post_init__(self) -> None:
        self.future = Answer(self)
        self.future.add_done_callback(_ended)

    def may_ask_again(self) -> bool:
        """Whether another helper may be asked for the same."""
        if self.method == "store" and not self.args[2]["overwrite"]:
            return False  # it would take for another's what is stored already
        return self.method in _REPEATABLE and self.times == 1 and not self.future.done()

    def tell(self, callback: Callable[..., None] | None, *args: Any) -> None:
        """Call a callback; a mistake in it is the outcome, and no matter of the reader thread."""
        try:
            if callback is not None:
                callback(*args)
        except Exception as error:
            self.fail(error)

    def take_back(self) -> None:
        """Tell that what has moved has to be moved again, or counted again."""
        count, files = self.moved
        self.moved = 0, 0
        if count or files:
            self.tell(self.on_progress, -count, -files)

    def fail(self, error: Exception) -> None:
        """End it with an error, if it has not ended."""
        with contextlib.suppress(InvalidStateError):
            self.future.set_exception(error)


def _join(place: str, settings: dict[str, Any], until: float) -> socket.socket | None:
    """Join the helper at a place, if it has the same settings, and says so in time."""
    sock = sharing.connect(place, max(0.0, until - monotonic()))
    if sock is None:
        return None
    answer: list[Any] = []
    with contextlib.suppress(OSError):
        sock.sendall(pack([(0, "join", (settings,))]))
        buffer = bytearray()
        while not answer and (data := sock.recv(1 << 12)):
            buffer += data
            answer = unpack(buffer)
    if answer == [(0, OK, True)]:
        sock.settimeout(SEND_S)
        return sock
    sock.close()
    return None


_HELPER = """\
import sys
sys.path.insert(0, sys.argv[4])
from pyremotedata_core.helper import main
sys.path[1:1] = sys.argv[5:]
main(*map(int, sys.argv[1:4]))
"""
# They are waited for when another one starts.
_serving_others: list[subprocess.Popen[bytes]] = []


def _start_helper(theirs: socket.socket, listener: socket.socket | None) -> subprocess.Popen[bytes]:
    _serving_others[:] = [process for process in _serving_others if process.poll() is None]
    home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    # Isolated and without site: starts in half the time, and no user's .pth file runs in it.
    # The owner's path follows for paramiko and PyYAML.
    argv = [sys.executable, "-I", "-S", "-c", _HELPER]
    given = [_beside_streams(sock) for sock in (theirs, listener) if sock is not None]
    fds = [sock.fileno() for sock in given]
    argv += [str(fds[0]), str(-1 if listener is None else fds[1]), str(os.getpid()), home]
    argv += [entry for entry in sys.path if entry]
    try:
        return subprocess.Popen(
            argv,
            pass_fds=fds,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    finally:
        for sock in given:
            sock.close()


def _beside_streams(sock: socket.socket) -> socket.socket:
    """Return a socket again, which may have the number of a standard stream that is closed."""
    fd = fcntl.fcntl(sock, fcntl.F_DUPFD_CLOEXEC, 3)
    return sharing.kept_from_children(socket.socket(fileno=fd))


class Answer(Future[Any]):
    """A future that says so where its own thread would wait for it, in a callback."""

    def __init__(self, caller: Caller) -> None:
        super().__init__()
        self.caller: Caller | None = caller  # until it has ended

    def promote(self) -> None:
        """Serve a request in the background like any other from now on."""
        caller = self.caller
        if caller is not None and caller.background:
            # First: another helper may be asked just now, see `Link.ask_for`.
            caller.background = False
            if caller.link is not None:
                caller.link.promote(caller)

    def result(self, timeout: float | None = None) -> Any:
        self._check()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        self._check()
        return super().exception(timeout)

    def _check(self) -> None:
        link = self.caller.link if self.caller is not None else None
        if link is not None and link.is_reading() and not self.done():
            raise RuntimeError("a callback waits for an answer that its own thread is to bring")


def _ended(future: Any) -> None:
    """Have the helper give up what was cancelled; let the caller go."""
    caller, future.caller = future.caller, None
    if future.cancelled():
        future.set_running_or_notify_cancel()  # concurrent.futures.wait waits for this
        caller.link.cancel(caller)
