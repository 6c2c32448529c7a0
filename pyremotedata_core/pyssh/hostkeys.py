"""Host keys: whether a server is the one that is known, by OpenSSH's known_hosts files."""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import hmac
import os
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, NamedTuple

Verdict = Literal["known", "unknown", "changed", "revoked"]


class Entry(NamedTuple):
    """A line of a known_hosts file that is about a host: marker, type, key, where it stands."""

    marker: str
    kind: str
    blob: bytes
    where: str


def name_of(host: str, port: int) -> str:
    """Return a host's name in known_hosts."""
    return host.lower() if port == 22 else f"[{host.lower()}]:{port}"


def find_entries(name: str, files: Iterable[str]) -> list[Entry]:
    """Return the lines of known_hosts files that are about a name. A missing file has none."""
    found = []
    for path in files:
        try:
            lines = Path(path).read_text(errors="replace").splitlines()
        except OSError:
            continue
        for number, line in enumerate(lines, 1):
            words = line.split()
            marker = words.pop(0) if words and words[0].startswith("@") else ""
            if len(words) < 3 or words[0].startswith("#") or not matches(words[0], name):
                continue
            with contextlib.suppress(binascii.Error, ValueError):
                blob = base64.b64decode(words[2], validate=True)
                found.append(Entry(marker, words[1], blob, f"{path}:{number}"))
    return found


def matches(patterns: str, name: str) -> bool:
    """Whether the first word of a known_hosts line is about a name."""
    if patterns.startswith("|1|"):
        return _matches_hash(patterns, name)
    matched = False
    for pattern in patterns.lower().split(","):
        # Brackets belong to the name, and are no choice of characters.
        plain = re.sub(r"\[", "[[]", pattern.removeprefix("!"))
        if fnmatchcase(name, plain):
            if pattern.startswith("!"):
                return False
            matched = True
    return matched


def judge(entries: Iterable[Entry], kind: str, blob: bytes) -> tuple[Verdict, str]:
    """Decide about a server's key; return the verdict, and the line that speaks against it."""
    verdict: Verdict = "unknown"
    against = ""
    for entry in entries:
        if entry.marker == "@revoked":
            if entry.blob == blob:
                return "revoked", entry.where
        elif not entry.marker and entry.kind == kind:
            if entry.blob == blob:
                verdict = "known"
            elif not against:
                against = entry.where
    if verdict == "unknown" and against:
        return "changed", against
    return verdict, ""


def why_revoked(path: str, blob: bytes) -> str:
    """Return where a file of RevokedHostKeys speaks against a key; "" if it does not.

    As for ssh, one that cannot be read speaks against all. So does a key revocation list in
    OpenSSH's own form, which only ssh can read.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        return f"{path}: {error.strerror}"
    if content.startswith(b"SSHKRL\n"):
        return f"{path}: a KRL, which needs the program ssh"
    keys = (line.split(b"#")[0].split() for line in content.splitlines())
    encoded = base64.b64encode(blob)
    return next((f"{path}:{number}" for number, key in enumerate(keys, 1) if encoded in key), "")


def fingerprint_of(blob: bytes) -> str:
    """Return a key's fingerprint as OpenSSH shows it."""
    digest = hashlib.sha256(blob).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def remember(path: str, name: str, kind: str, blob: bytes, *, hashed: bool) -> None:
    """Append a line to a known_hosts file; one that cannot be written is no error, as for ssh."""
    line = f"{_hash(name) if hashed else name} {kind} {base64.b64encode(blob).decode()}\n"
    file = Path(path)
    with contextlib.suppress(OSError):
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "rb+", buffering=0) as known:
            end = known.seek(0, os.SEEK_END)
            if end and os.pread(fd, 1, end - 1) != b"\n":
                line = "\n" + line
            known.write(line.encode())


def _matches_hash(word: str, name: str) -> bool:
    try:
        salt, digest = (base64.b64decode(part) for part in word.split("|")[2:4])
    except (binascii.Error, ValueError):
        return False
    return hmac.compare_digest(hmac.digest(salt, name.encode(), "sha1"), digest)


def _hash(name: str) -> str:
    salt = os.urandom(20)
    digest = hmac.digest(salt, name.encode(), "sha1")
    return "|1|" + "|".join(base64.b64encode(part).decode() for part in (salt, digest))
