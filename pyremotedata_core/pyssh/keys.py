"""Keys of users: those of files and of the agent, with the certificates that vouch for them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paramiko
from paramiko.pkey import PublicBlob

from .site import Site

_CERTIFICATE = "-cert-v01@openssh.com"
_KEY_TYPES = (paramiko.Ed25519Key, paramiko.ECDSAKey, paramiko.RSAKey)
Answer = Callable[[str], str | None]


def keys_to_offer(site: Site, answer: Answer) -> Iterator[paramiko.PKey]:
    """Yield the keys to offer, each with its certificates first and then alone.

    Those of the agent come first, as they cost no passphrase.
    """
    certificates = [found for path in site.certificates if (found := _read_public(path))]
    if site.agent:
        public = (path if path.endswith(".pub") else f"{path}.pub" for path in site.keys)
        named = [found.key_blob for path in public if (found := _read_public(path))]
        os.environ["SSH_AUTH_SOCK"] = site.agent
        held: list[Any] = []
        with contextlib.suppress(paramiko.SSHException):
            held = list(paramiko.Agent().get_keys())
        for key in held:
            if key.get_name().endswith(_CERTIFICATE):
                key.public_blob = PublicBlob(key.get_name(), key.blob)
        held.sort(key=lambda key: not _is_named(key, named))
        for key in held:
            if not site.identities_only or _is_named(key, named):
                yield from _certified(key, certificates)
    for path in site.keys:
        if (key := _load(answer, path)) is not None:
            yield from _certified(key, certificates)


def _certified(key: Any, certificates: list[PublicBlob]) -> Iterator[paramiko.PKey]:
    """Yield a key as each certificate of it shows it, and then as it is."""
    own = key.public_blob  # a certificate that the agent holds
    if own is None:
        for certificate in certificates:
            if _is_of(certificate, key.asbytes()):
                key.public_blob = certificate
                yield key
    key.public_blob = own
    yield key


def _is_named(key: Any, named: list[bytes]) -> bool:
    """Whether a key, or a certificate, of the agent is of one of these public keys."""
    own = key.public_blob
    return key.asbytes() in named or (own is not None and any(_is_of(own, one) for one in named))


def _is_of(certificate: PublicBlob, key: bytes) -> bool:
    """Whether a certificate is of this key: after its type and a nonce it has what the key has."""
    theirs, ours = paramiko.Message(certificate.key_blob), paramiko.Message(key)
    theirs.get_string()
    theirs.get_string()
    ours.get_string()
    return theirs.get_remainder().startswith(ours.get_remainder())


def _read_public(path: str) -> PublicBlob | None:
    """Read a public key or a certificate."""
    try:
        return PublicBlob.from_file(path)
    except (OSError, ValueError, IndexError, paramiko.SSHException):
        return None


def _load(answer: Answer, path: str) -> paramiko.PKey | None:
    """Return a private key; None if there is none, or no passphrase for it."""
    if not Path(path).is_file():
        return None
    passphrase = None
    try:
        encrypted = _is_encrypted(path)
        if encrypted:
            passphrase = answer(f"Enter passphrase for key '{path}': ")
            if passphrase is None:
                return None
    except OSError:
        return None
    for cls in _KEY_TYPES:
        with contextlib.suppress(paramiko.SSHException, ValueError, OSError):
            return cls.from_private_key_file(path, passphrase)
    return None


def _is_encrypted(path: str) -> bool:
    for cls in _KEY_TYPES:
        try:
            cls.from_private_key_file(path)
        except paramiko.PasswordRequiredException:
            return True
        except (paramiko.SSHException, ValueError):
            continue
        return False
    return False
