"""Answers the questions of a login: those of ssh as its askpass program, those of paramiko.

Answers come from the environment (`ssh.login_environment`), or from the person at the terminal of
the process that owns the engine (`asker`). ssh runs this file by its path, so it imports nothing
of this package.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from typing import Literal

Kind = Literal["passphrase", "pin", "password", "code", "unknown"]

SIGN_OF_LIFE_S = 1.0
WAITING = "pyremotedata: a question waits for an answer"  # on standard error, again and again
NO_ANSWER = "pyremotedata: no answer for:"

_CODE = re.compile(
    r"code|token|\botp\b|one.?time|(two|second).?factor|authenticator|\b[2m]fa\b|\bduo\b", re.I
)
_PASSWORD = re.compile(r"pass?wor[dt]|kennwort|contrase|mot de passe|senha|l[oö]senord", re.I)


def kind_of(question: str) -> Kind:
    """Decide what a question asks for."""
    if question.startswith("Enter passphrase for "):
        return "passphrase"
    if question.startswith("Enter PIN for "):
        return "pin"
    if _CODE.search(question):
        return "code"
    return "password" if _PASSWORD.search(question) else "unknown"


def find_answer(
    question: str, environment: Mapping[str, str], login: str, *, own: bool = True
) -> str | None:
    """Return the answer to a question, None if there is none.

    A password is given once to each login, as a server that takes it in two ways would count two
    wrong ones. A code that was configured is given once and for all.

    Parameters
    ----------
    question : str
    environment : mapping
        Of `ssh.login_environment`.
    login : str
        What asks: a name of its own for every login.
    own : bool
        Whether it asks for the server itself. A jump host asks with the same words, and gets
        nothing that was configured for the server.
    """
    kind = kind_of(question)
    person = environment.get("PYREMOTEDATA_ASKER")
    if kind == "passphrase":
        return environment.get("PYREMOTEDATA_ANSWER_PASSPHRASE") or _ask(person, question)
    if kind == "pin":
        return _ask(person, question)
    stem = f"{environment['PYREMOTEDATA_LOGIN']}.{login}"
    if not own:
        return _ask(person, question)
    if kind == "unknown":
        # A server that says "Login:" wants the password; what it asks next is the code.
        kind = "code" if os.path.exists(f"{stem}.password") else "password"
    if kind == "password":
        if not _first(f"{stem}.password"):
            return None
        return environment.get("PYREMOTEDATA_ANSWER_PASSWORD") or _ask(person, question)
    answer = environment.get("PYREMOTEDATA_ANSWER_CODE")
    if answer is None or not _take(environment["PYREMOTEDATA_CODE_TICKET"]):
        answer = _ask(person, question)
    if answer is not None:
        _first(f"{environment['PYREMOTEDATA_LOGIN']}.code")
    return answer


def main() -> int:
    """Answer the question of the ssh that runs this; return the exit status."""
    question = sys.argv[1] if len(sys.argv) > 1 else ""
    if os.environ.get("SSH_ASKPASS_PROMPT") == "none":  # no question: "touch your security key"
        print(question, file=sys.stderr)
        return 0
    if "yes/no" in question:
        # About an unknown host key: shown, as it holds the fingerprint, and refused.
        print(question, file=sys.stderr)
        return 1
    ssh = os.getppid()
    answer = find_answer(question, os.environ, str(ssh), own=_asks_for_its_server(ssh))
    if answer is not None:
        print(answer)
        return 0
    if kind_of(question) in ("passphrase", "pin"):
        return 1  # another key may do
    # An empty answer would be sent as a wrong password: end the ssh that asks.
    print(NO_ANSWER, question, file=sys.stderr, flush=True)
    os.kill(ssh, signal.SIGTERM)
    return 1


def _asks_for_its_server(ssh: int) -> bool:
    try:
        with open(f"/proc/{ssh}/cmdline", "rb") as file:
            words = file.read().decode(errors="replace").replace("\0", " ")
    except OSError:
        command = ["ps", "-o", "args=", "-p", str(ssh)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
        words = done.stdout
    return " NumberOfPasswordPrompts=1 " in words and " -s -- " in words


def _ask(person: str | None, question: str) -> str | None:
    if not person:
        return None
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(SIGN_OF_LIFE_S)
        try:
            link.connect(person)
            link.sendall(question.encode(errors="replace"))
            link.shutdown(socket.SHUT_WR)
            reply = b""
            while not reply.endswith(b"\n"):
                # The owner sets the limit; meanwhile this shows that somebody is being asked.
                print(WAITING, file=sys.stderr, flush=True)
                try:
                    data = link.recv(4096)
                except TimeoutError:
                    continue
                if not data:
                    return None
                reply += data
        except OSError:
            return None
    return reply[:-1].decode(errors="replace") or None


def _first(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        return False
    return True


def _take(path: str) -> bool:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
