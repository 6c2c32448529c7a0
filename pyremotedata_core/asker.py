"""The person at the terminal: asked by the process that the terminal belongs to.

Logins run in processes without a terminal. They bring their questions to a socket in the user's
private directory, where a thread of this process asks them one after the other. Answers are kept
in memory only, codes not at all.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import select
import socket
import sys
import termios
import threading
import time
from pathlib import Path

from .askpass import kind_of
from .config import ENV, FLAGS, Secret

ASK_S = 120.0  # sshd's own patience with a login
_MOST_BYTES = 4096


def may_ask() -> bool:
    """Whether there is a person to ask: a terminal, and ``PYREMOTEDATA_AUTO`` is not yes."""
    if FLAGS.get(os.environ.get(ENV + "AUTO", "").lower()):
        return False
    if sys.stdin is None or not sys.stdin.isatty() or not sys.stderr.isatty():
        return False
    try:
        # A job in the background would be stopped by its question.
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except OSError:
        return False  # a terminal, but not ours to ask at


class Asker:
    """Asks at the terminal of this process, each question once.

    Attributes
    ----------
    path : str
        The socket for `askpass.find_answer`.
    """

    def __init__(self) -> None:
        from .nodestate import private_directory, state_directory

        self.path = str(private_directory(state_directory() / "ask") / os.urandom(8).hex())
        self._answers: dict[str, Secret] = {}
        self._owner = os.getpid()
        self._listener = socket.socket(socket.AF_UNIX)
        self._stop_in, self._stop_out = os.pipe()
        self._listener.bind(self.path)
        self._listener.listen(16)
        self._thread = threading.Thread(target=self._serve, name="pyremotedata-asker", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ask no more; the terminal is left as it was found."""
        if os.getpid() != self._owner:
            return  # a forked child has neither the thread nor the socket
        with contextlib.suppress(OSError):
            os.write(self._stop_out, b"\0")
        self._thread.join(2.0)
        self._listener.close()
        Path(self.path).unlink(missing_ok=True)

    def _serve(self) -> None:
        while self._ready(self._listener.fileno(), None):
            with contextlib.suppress(OSError):
                link, _ = self._listener.accept()
                with link:
                    link.settimeout(5.0)
                    self._answer(link)

    def _answer(self, link: socket.socket) -> None:
        question = b""
        while len(question) < _MOST_BYTES and (data := link.recv(_MOST_BYTES)):
            question += data
        text = _printable(question.decode(errors="replace"))
        answer = self._answers.get(text)
        if answer is None:
            answer = Secret(self._ask(text, link))
            if answer and kind_of(text) in ("password", "passphrase"):
                self._answers[text] = answer
        link.sendall(answer.reveal().encode() + b"\n")

    def _ask(self, question: str, link: socket.socket) -> str:
        try:
            terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError:
            return ""
        try:
            before = termios.tcgetattr(terminal)
            silent = list(before)
            silent[3] &= ~termios.ECHO
            termios.tcsetattr(terminal, termios.TCSAFLUSH, silent)
            try:
                os.write(terminal, f"{question.rstrip()} ".encode())
                return self._read_line(terminal, link)
            finally:
                termios.tcsetattr(terminal, termios.TCSAFLUSH, before)
                os.write(terminal, b"\n")
        except (OSError, termios.error):
            return ""
        finally:
            os.close(terminal)

    def _read_line(self, terminal: int, link: socket.socket) -> str:
        line = b""
        deadline = time.monotonic() + ASK_S
        while not line.endswith(b"\n") and len(line) < _MOST_BYTES:
            if not self._ready(terminal, deadline, link):
                return ""
            data = os.read(terminal, _MOST_BYTES)
            if not data:
                return ""
            line += data
        return line.decode(errors="replace").rstrip("\r\n")

    def _ready(self, fd: int, deadline: float | None, link: socket.socket | None = None) -> bool:
        """Wait for input; False when time is up, the asking login has gone, or at the end."""
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        poll.register(self._stop_in, select.POLLIN)
        if link is not None:
            poll.register(link, 0)  # only its end
        left_ms = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
        ready = dict(poll.poll(left_ms))
        return bool(ready) and set(ready) == {fd}


_shared: Asker | None = None
_lock = threading.Lock()


def shared_asker() -> Asker:
    """Return this process's asker, made when it is first needed."""
    global _shared
    with _lock:
        if _shared is None or _shared._owner != os.getpid():
            _shared = Asker()
            atexit.register(_shared.close)
        return _shared


def forget_answers() -> None:
    """Ask again next time, if anybody was asked: an answer was wrong."""
    if _shared is not None:
        _shared._answers.clear()


def _printable(text: str) -> str:
    """Return a question, which a server may have written, without anything but characters."""
    return re.sub(r"[^\x20-\x7e\xa0-\uffff]+", " ", text).strip()[:300]
