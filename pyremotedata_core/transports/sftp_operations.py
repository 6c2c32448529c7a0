"""What each operation of a pipelined SFTP session is made of."""

from __future__ import annotations

from functools import partial

from .base import Operation
from .sftp import SftpSession
from .sftp_bundle import Bundle
from .sftp_copy import copy
from .sftp_listing import Listing
from .sftp_publish import clear_orphan, create, publish
from .sftp_sequences import SEQUENCES, Run
from .sftp_transfers import Download, Upload

_SEQUENCES = SEQUENCES | {
    "copy": copy,
    "create": create,
    "publish": publish,
    "clear_orphan": clear_orphan,
}
_REPEATED = ("copy", "create", "publish", "rename")  # must know of an attempt with a lost answer


def begin(session: SftpSession, operation: Operation) -> None:
    """Start an operation on a session."""
    if operation.name == "read":
        Download(session, operation)
    elif operation.name == "write":
        path, source, overwrite, temporary = operation.args
        Upload(session, operation, temporary, source, 0, source.size, (path, overwrite))
    elif operation.name == "write_part":
        Upload(session, operation, *operation.args)
    elif operation.name in ("read_bundle", "write_bundle"):
        Bundle(session, operation)
    elif operation.name == "scandir":
        Listing(session, operation)
    else:
        options = {"again": True} if operation.name in _REPEATED and operation.attempts else {}
        sequence = _SEQUENCES[operation.name](session, *operation.args, **options)
        Run(session, sequence, partial(session.finish, operation))
