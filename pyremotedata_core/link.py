"""The link to a helper: requests go out, their outcomes end futures."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from functools import partial
from typing import Any

from .asker import forget_answers, shared_asker
from .children import reap
from .config import ConnectionSettings
from .entries import OnBatch
from .errors import AuthenticationFailed, ConnectionLost, TransferError, from_plain
from .helper import BATCH, FAILED, FATAL_ID, OK, PROGRESS, Server, pack, unpack, url_in
from .progress import Progress
from .ssh import code_ticket

CLOSE_S = 3.0  # a helper that has not ended by then is killed
SEND_S = 60.0
QUIET_S = 3600.0


class Link:
    """The connection to one helper."""

    def __init__(
        self, settings: ConnectionSettings, in_process: bool, ask: bool, keep: bool
    ) -> None:
        self.ended = False
        self._closed = self._dismissed = False
        # A request may drop what cancels another one: the garbage collector comes at any moment.
        self._lock = threading.RLock()
        self._next_id = 0
        self._pending: dict[int, _Caller] = {}
        self._background: dict[Future[Any], int] = {}  # that have not ended, nor been promoted
        self._cancelled: set[int] = set()
        self._settled = threading.Condition()
        self._process: subprocess.Popen[bytes] | None = None
        self._sock, theirs = socket.socketpair()
        self._fatal = ""
        self._ask = ask
        self._keep = keep
        try:
            self._sock.settimeout(SEND_S)
            if in_process:
                server = Server(theirs)
                threading.Thread(target=server.run, name="pyremotedata-io", daemon=True).start()
            else:
                self._process = _start_helper(theirs)
                theirs.close()
            asker = shared_asker().path if ask else ""
            code = settings.one_time_code
            ticket = code_ticket(code.reveal()) if code else ""
            self._sock.sendall(pack([(0, "hello", (settings.to_plain(), asker, ticket))]))
        except BaseException:
            self._sock.close()
            theirs.close()
            raise
        self._reader = threading.Thread(
            target=self._read, args=(self._sock.dup(),), name="pyremotedata-reader", daemon=True
        )
        self._reader.start()

    def request(
        self,
        method: str,
        args: tuple[Any, ...],
        convert: Callable[[Any], Any],
        on_progress: Progress | None,
        background: bool,
        on_batch: OnBatch | None,
    ) -> Future[Any] | None:
        """Send a request; None if the helper has ended."""
        future: Future[Any] = _Answer(self._reader)
        with self._lock:
            if self.ended:
                return None
            self._next_id += 1
            request_id = self._next_id
            self._pending[request_id] = _Caller(future, convert, on_progress, on_batch, args)
            if background:
                self._background[future] = request_id
            try:
                self._sock.sendall(pack([(request_id, method, args)]))
            except OSError:
                # It has ended, or hangs in the middle of a frame: of no use any more.
                self.ended = True
                del self._pending[request_id]
                self._background.pop(future, None)
                with contextlib.suppress(OSError):
                    self._sock.shutdown(socket.SHUT_RDWR)
                if self._process is not None:
                    self._process.kill()
                return None

        def give_up(done: Future[Any]) -> None:
            self._background.pop(done, None)
            if done.cancelled():
                done.set_running_or_notify_cancel()  # concurrent.futures.wait waits for this
                self._cancel(request_id)

        future.add_done_callback(give_up)
        return future

    def promote(self, future: Future[Any]) -> None:
        """Tell the helper that a request is not in the background any more."""
        with self._lock, contextlib.suppress(OSError):
            request_id = self._background.pop(future, None)
            if request_id is not None and not self.ended:
                self._sock.sendall(pack([(request_id, "promote", ())]))

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
        """End the helper and wait for it."""
        self._closed = True
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)
        if self._process is not None:
            try:
                self._process.wait(CLOSE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                reap(self._process, CLOSE_S)
        if threading.current_thread() is not self._reader:
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
            _fail(caller.future, error)

    def _cancel(self, request_id: int) -> None:
        with self._lock, contextlib.suppress(OSError):
            if self.ended:
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
                    self._fatal = value
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
            _fail(future, error)
        else:
            try:
                if status == BATCH and caller.on_batch is not None:
                    caller.on_batch(value, partial(self._more, request_id))
                elif status == PROGRESS and caller.on_progress is not None:
                    caller.on_progress(*value)
            except Exception as error:
                # The caller's mistake is its outcome; this thread serves all the others, too.
                with contextlib.suppress(InvalidStateError):
                    future.set_exception(error)
                self._cancel(request_id)

    def _end(self) -> None:
        with self._lock:
            self.ended = True
            pending, self._pending = self._pending, {}
        self._settle(None)
        closed = "the engine was closed" if self._closed else "the helper process ended"
        why = self._fatal or closed
        if not self._fatal and self._process is not None and pending:
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = self._process.wait(CLOSE_S)
                if status < 0:
                    why = f"the helper process was killed by signal {-status}"
                elif status:
                    why = f"the helper process ended (exit status {status})"
        for caller in pending.values():
            _fail(caller.future, ConnectionLost(why, url_in(caller.args)))


@dataclass(slots=True, eq=False)
class _Caller:
    """Who waits for an outcome of the helper, and how it is to be handed over."""

    future: Future[Any]
    convert: Callable[[Any], Any]
    on_progress: Progress | None
    on_batch: OnBatch | None
    args: tuple[Any, ...]


_HELPER = """\
import sys
sys.path.insert(0, sys.argv[3])
from pyremotedata_core.helper import main
sys.path[1:1] = sys.argv[4:]
main(int(sys.argv[1]), int(sys.argv[2]))
"""


def _start_helper(theirs: socket.socket) -> subprocess.Popen[bytes]:
    home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    # Isolated and without site: starts in half the time, and no user's .pth file runs in it.
    # The owner's path follows for paramiko and PyYAML.
    argv = [sys.executable, "-I", "-S", "-c", _HELPER]
    argv += [str(theirs.fileno()), str(os.getpid()), home]
    argv += [entry for entry in sys.path if entry]
    return subprocess.Popen(
        argv,
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


class _Answer(Future[Any]):
    """A future that says so where its own thread would wait for it, in a callback."""

    def __init__(self, reader: threading.Thread) -> None:
        super().__init__()
        self._reader = reader

    def result(self, timeout: float | None = None) -> Any:
        self._check()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        self._check()
        return super().exception(timeout)

    def _check(self) -> None:
        if threading.current_thread() is self._reader and not self.done():
            raise RuntimeError("a callback waits for an answer that its own thread is to bring")


def _fail(future: Future[Any], error: TransferError) -> None:
    with contextlib.suppress(InvalidStateError):
        future.set_exception(error)
