"""The tree of errors, and the table from the words of others to it."""

from __future__ import annotations

import errno
import inspect
import os
import pickle

import pytest

from pyremotedata_core import errors
from pyremotedata_core.errors import (
    AuthenticationFailed,
    ConfigurationError,
    ConnectionLost,
    HostKeyRejected,
    LocalStorageFull,
    RemoteFileNotFound,
    RemotePermissionDenied,
    ServerRefused,
    TransferError,
    TransferTimeout,
    UnsafeName,
    from_oserror,
    from_plain,
    from_ssh_stderr,
    from_status,
)

URL = "sftp://me@host:2222"
CLASSES = [
    cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, TransferError)
]


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_crosses_processes_as_it_is(cls):
    error = cls("it broke", "sftp://h/a", retryable=True)
    for copy in (pickle.loads(pickle.dumps(error)), from_plain(error.to_plain())):
        assert type(copy) is cls
        assert (copy.message, copy.url, copy.retryable) == ("it broke", "sftp://h/a", True)
        assert str(copy) == str(error) == "sftp://h/a: it broke"


def test_errors_are_also_pythons_own():
    assert isinstance(RemoteFileNotFound("x"), FileNotFoundError)
    assert RemoteFileNotFound("x", "sftp://h/a").errno == errno.ENOENT
    assert RemoteFileNotFound("x", "sftp://h/a").filename == "sftp://h/a"
    assert isinstance(RemotePermissionDenied("x"), PermissionError)
    assert RemotePermissionDenied("x").errno == errno.EACCES
    assert isinstance(TransferTimeout("x"), TimeoutError)
    assert isinstance(ConfigurationError("x"), ValueError)


def test_an_error_is_one_printable_line():
    error = TransferError("two\nlines\tand \x1b[31mcolour\udcff", "sftp://h/a\nb")
    assert str(error).isprintable()
    str(error).encode()
    assert "\\x1b[31m" in str(error)


def test_what_may_pass_is_retryable_and_what_will_not_is_not():
    retryable = {cls.__name__ for cls in CLASSES if cls("x").retryable}
    assert retryable == {"ConnectionLost", "TransferTimeout", "RemoteChanged"}


@pytest.mark.parametrize(
    ("code", "cls"),
    [
        (2, RemoteFileNotFound),
        (3, RemotePermissionDenied),
        (4, TransferError),
        (7, ConnectionLost),
        (8, ServerRefused),
        (31, TransferError),
    ],
)
def test_every_status_of_a_server_has_an_error(code, cls):
    error = from_status(code, "said\nso", "sftp://h/a")
    assert type(error) is cls
    assert "said so" in str(error)


def test_what_the_server_says_is_not_said_twice():
    error = from_status(2, "No such file or directory", URL)
    assert error.message == "no such file or directory"


@pytest.mark.parametrize("code", [3, 4])
def test_a_refusal_without_a_word_may_be_of_the_name(code):
    for name in ("na%EFve", "q%22q", "a*b", "%E6%97%A5"):
        assert "names with such characters" in str(from_status(code, "Failure", f"{URL}/d/{name}"))
    assert "names" not in str(from_status(code, "Failure", "sftp://[fe80::1%25eth0]/a%20b.txt"))
    assert "names" not in str(from_status(code, "quota exceeded", f"{URL}/a*b"))


def test_a_name_that_is_too_long_is_no_lost_connection():
    error = from_status(5, "Bad message", f"{URL}/d/{'%C3%A9' * 128}/x")
    assert type(error) is UnsafeName
    assert "a name of 256 bytes" in str(error)
    assert type(from_status(5, "Bad message", f"{URL}/d/{'%C3%A9' * 127}")) is ConnectionLost


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "free some space"),
        (errno.EFBIG, "ulimit -f"),
    ],
)
def test_a_full_disk_is_told_with_the_remedy(number, remedy):
    error = from_oserror(OSError(number, os.strerror(number), "/data/x"))
    assert isinstance(error, LocalStorageFull)
    assert "/data/x" in str(error)
    assert remedy in str(error)


def test_another_local_error_names_the_path():
    error = from_oserror(PermissionError(errno.EACCES, "Permission denied"), "/data/x")
    assert type(error) is TransferError
    assert str(error) == "/data/x: Permission denied"


@pytest.mark.parametrize(
    ("said", "cls", "retryable", "word"),
    [
        ("me@host: Permission denied (publickey,password).", AuthenticationFailed, False, "key"),
        (
            "Received disconnect from 127.0.0.1 port 22:2: Too many authentication failures",
            AuthenticationFailed,
            False,
            "not tried again",
        ),
        (
            "ssh: Could not resolve hostname h: Temporary failure in name resolution",
            ConnectionLost,
            True,
            "unknown host",
        ),
        (
            "ssh: Could not resolve hostname nowhere: Name or service not known",
            ConnectionLost,
            False,
            "unknown host",
        ),
        (
            "ssh: connect to host h port 1: Connection refused",
            ConnectionLost,
            True,
            "check host and port",
        ),
        ("ssh: connect to host h port 1: Connection timed out", TransferTimeout, True, "firewall"),
        ("ssh: connect to host h port 1: No route to host", ConnectionLost, True, "network"),
        (
            "kex_exchange_identification: Connection closed by remote host\n"
            "Connection closed by 127.0.0.1 port 22",
            ConnectionLost,
            True,
            "closed",
        ),
        ("Connection reset by 127.0.0.1 port 22", ConnectionLost, True, "broke off the login"),
        ("client_loop: send disconnect: Broken pipe", ConnectionLost, True, "closed"),
        (
            "Timeout, server host not responding.",
            TransferTimeout,
            True,
            "does not answer",
        ),
        ("subsystem request failed on channel 0", ServerRefused, False, "sftp subsystem"),
        (
            "mux_client_request_session: session request failed: Session open refused by peer",
            ServerRefused,
            True,
            "no further session",
        ),
        ("Not allowed at this time", ServerRefused, True, "no further session"),
        (
            "Unable to negotiate with h port 22: no matching host key type found.",
            ConnectionLost,
            False,
            "in common",
        ),
        (
            "kex_exchange_identification: banner line contains invalid characters",
            ConnectionLost,
            False,
            "no SSH server",
        ),
        ("/x/conf: line 1: Bad configuration option: foo", ConfigurationError, False, "OpenSSH"),
        ("Can't open user config file /x: No such file", ConfigurationError, False, "OpenSSH"),
        ("something new", ConnectionLost, True, "something new"),
        ("", ConnectionLost, True, "exit status 255"),
    ],
)
def test_the_last_words_of_ssh_have_an_error_with_a_remedy(said, cls, retryable, word):
    error = from_ssh_stderr(said, URL, 255)
    assert type(error) is cls
    assert error.retryable is retryable
    assert word in str(error)
    assert str(error).startswith(URL)


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        ("Warning: Permanently added 'h' to the list of known hosts.\n", "without a word"),
        (
            'Authenticated to h ([192.0.2.1]:22) using "publickey".\n'
            "Transferred: sent 3240, received 2888 bytes, in 0.5 seconds\n"
            "Bytes per second: sent 6480.0, received 5776.0\n",
            "without a word",
        ),
        (
            "Permission denied to all but members\nsubsystem request failed on channel 0\n",
            "no SFTP",
        ),
    ],
    ids=["warning", "statistics", "banner"],
)
def test_what_is_said_beside_the_cause_is_not_taken_for_it(said, cause):
    error = from_ssh_stderr(said, URL)
    assert cause in str(error)
    assert said.partition("\n")[0] not in str(error)


@pytest.mark.parametrize("said", ["", "Connections are closed after a Timeout of 10 minutes.\n"])
def test_a_server_that_runs_something_else_in_the_place_of_sftp_is_not_asked_again(said):
    error = from_ssh_stderr(said, URL, 127)
    assert type(error) is ServerRefused
    assert not error.retryable
    assert "administrator" in str(error)


@pytest.mark.parametrize(
    ("url", "command"),
    [
        ("sftp://h", "sftp h"),
        ("sftp://me@uni.dk@h:1", "sftp -P 1 me@uni.dk@h"),
        ("sftp://[::1]:1", "sftp -P 1 [::1]"),
    ],
)
def test_the_command_to_accept_a_key_fits_the_url(url, command):
    error = from_ssh_stderr("Host key verification failed.", url)
    assert str(error).endswith(command)


def test_a_changed_host_key_is_not_to_be_accepted_just_so():
    said = (
        "@@@@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @@@@\n"
        "The fingerprint for the ED25519 key sent by the remote host is\n"
        "SHA256:abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG.\n"
        "Offending ED25519 key in /home/me/.ssh/known_hosts:7\n"
        "Host key verification failed.\n"
    )
    error = from_ssh_stderr(said, URL)
    assert isinstance(error, HostKeyRejected)
    assert not error.retryable
    for part in ("SHA256:abcdef", "/home/me/.ssh/known_hosts:7", "ask its administrator"):
        assert part in str(error)
