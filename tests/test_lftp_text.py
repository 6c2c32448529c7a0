"""What is said to lftp and what it says."""

from __future__ import annotations

import pytest

from pyremotedata_core import (
    LocalStorageFull,
    RemoteFileNotFound,
    RemotePermissionDenied,
    Stat,
    TransferError,
    UnsafeName,
)
from pyremotedata_core.errors import ConnectionLost
from pyremotedata_core.transports import lftp_ftp_text
from pyremotedata_core.transports.lftp_text import (
    Failure,
    Log,
    escape_glob,
    from_failure,
    from_lost,
    parse_listing,
    parse_one,
    quote,
)

URL = "sftp://h/d"


@pytest.mark.parametrize(
    ("name", "quoted"),
    [
        ("plain", '"plain"'),
        (" a b ", '" a b "'),
        ('d"q', '"d\\"q"'),
        ("b\\s", '"b\\\\s"'),
        ('\\"', '"\\\\\\""'),
        ("$(x) `y` ; ! | > <", '"$(x) `y` ; ! | > <"'),
    ],
)
def test_only_backslash_and_double_quote_are_escaped(name, quoted):
    assert quote(name) == quoted


@pytest.mark.parametrize("name", ["a\nb", "a\0b", "\n!touch x", "a\n"])
def test_a_line_break_or_nul_is_refused(name):
    with pytest.raises(UnsafeName):
        quote(name)


def test_a_pattern_is_escaped_to_match_itself():
    assert escape_glob("a*b?[c]\\{}") == "a\\*b\\?\\[c\\]\\\\{}"


def test_a_listing_gives_kind_size_mtime_mode_and_the_name_as_it_is():
    output = (
        b"drwxr-xr-x     4096 @1795355971 .\n"
        b"drwxrwxrwt     4096 @1795355971 ..\n"
        b"-rw-r-----        6 @1293840000 a -> b\n"
        b"lrwxrwxrwx        7 @1795354954  lead\n"
        b"-rwsr-S--T 5368709120 @981173106 12345 6 x \xff\n"
    )
    assert [tuple(entry) for entry in parse_listing(output, 5, URL)] == [
        (".", Stat("directory", 4096, 1795355971, 0o755)),
        ("a -> b", Stat("file", 6, 1293840000, 0o640)),
        (" lead", Stat("link", 7, 1795354954, 0o777)),
        ("12345 6 x \udcff", Stat("file", 5 << 30, 981173106, 0o7740)),
    ]


@pytest.mark.parametrize("spaces", [b" ", b"          "])
def test_a_directory_may_have_no_size_and_a_file_has_one(spaces):
    output = b"drwxr-xr-x" + spaces + b"@1795355971 123 @4 x\n"
    assert list(parse_listing(output, 1, URL)) == [
        ("123 @4 x", Stat("directory", 0, 1795355971, 0o755))
    ]
    with pytest.raises(UnsafeName, match="cannot be read"):
        list(parse_listing(output.replace(b"d", b"-", 1), 1, URL))


def test_a_name_with_a_tilde_is_listed_as_it_is():
    (entry,) = parse_listing(b"-rw-r--r--        6 @5 ./~a\n", 1, URL)
    assert entry.name == "~a"


def test_a_time_after_2038_that_lftp_takes_for_negative_is_put_right():
    (entry,) = parse_listing(b"-rw-r--r--        6 @-2147483648 a\n", 1, URL)
    assert entry.stat.mtime == 1 << 31


@pytest.mark.parametrize(
    "output",
    [
        b"-rw-r--r--        6 @1293840000 a\nb\n",
        b"-rw-r--r--        6 @1293840000 a\n-rw-r--r--        6 @1293840000 forged\n",
        b"-rw-r--r--        6 @1293840000 unfinished",
        b"/\n",
    ],
)
def test_a_listing_with_a_name_that_holds_a_line_break_is_refused(output):
    with pytest.raises(UnsafeName, match="line break"):
        list(parse_listing(output, 1, URL))


@pytest.mark.parametrize("name", [b"../x", b"a/b", b""])
def test_a_name_that_leaves_its_directory_is_refused(name):
    with pytest.raises(UnsafeName):
        list(parse_listing(b"-rw-r--r--        6 @1293840000 " + name + b"\n", 1, URL))


def test_one_entry_of_which_lftp_knows_only_the_name_is_no_answer():
    assert parse_one(b"/\n", URL) is None
    assert parse_one(b"-rw-r--r--        6 @1293840000 a\n", URL) == Stat(
        "file", 6, 1293840000, 0o644
    )


LOG = b"""\
---- Running connect program (ssh -s -- h sftp 2>/dev/fd/5 # -s -l login server sftp)
---- protocol version set to 3
---- home set to /home/me \xc3\xa6
---- path on wire is `/d/file info: size=9, date=x'
---> sending a packet, length=40, type=3(OPEN), id=504
<--- got a packet, length=13, type=102(HANDLE), id=504
---- got file handle 0000000000000000 (8)
---- file info: size=600, date=Sat Jan  1 00:00:09 2011
---- data packet: pos=0, size=400
---- data packet: pos=400, size=200
---- status code=1(EOF), message=End of file
---> sending a packet, length=1029, type=6(WRITE), id=14
---> sending a packet, length=30, type=10(FSETSTAT), id=15
---- file name count=7
---- file name count=2
**** got file type 4
---- status code=3(Permission denied), message=Permission denied
get: Access failed: Permission denied (/d/x)
"""


@pytest.mark.parametrize("piece", [1, 7, 4096])
def test_the_log_is_read_in_pieces_of_any_size(piece):
    log = Log()
    for start in range(0, len(LOG), piece):
        log.feed(LOG[start : start + piece])
    assert log.home == "/home/me æ"
    assert log.infos == [(600, 1293840009)]
    assert (log.received, log.sent, log.names, log.file_type) == (600, 1000, 9, 4)
    assert log.failure == Failure("get", "Access failed: Permission denied (/d/x)", 3)
    assert not log.lost


def test_a_connection_is_lost_until_another_one_is_made():
    log = Log()
    log.feed(b"---- path on wire is `/x'\n---- Disconnecting\n")
    assert log.lost
    log.feed(b"---- protocol version set to 3\n")
    assert not log.lost
    assert log.breaks == 1


def test_a_connection_that_went_before_the_command_began_is_not_one_that_broke_in_it():
    log = Log()
    log.feed(b"---- Disconnecting\n---- protocol version set to 3\n---- path on wire is `/x'\n")
    assert log.breaks == 0


@pytest.mark.parametrize(
    ("text", "code", "cls"),
    [
        ("Access failed: No such file (/d/x)", 2, RemoteFileNotFound),
        ("Access failed: anything (/d/x)", 2, RemoteFileNotFound),
        ("Access failed: Permission denied (/d/x)", 3, RemotePermissionDenied),
        ("Access failed: No such file (/d/x)", None, RemoteFileNotFound),
        ("/loc: Access failed: No such file (/d/x)", 2, RemoteFileNotFound),
        ("Access failed: Failure (/d/x)", 4, TransferError),
        ("/d/x: /loc: No space left on device", None, LocalStorageFull),
        ("/d/x: /loc: No such file or directory", None, TransferError),
    ],
)
def test_error_texts_become_the_errors_of_the_tree(text, code, cls):
    error = from_failure(Failure("get", text, code), ("/d/x", "/loc"), URL)
    assert type(error) is cls
    assert error.url == URL


@pytest.mark.parametrize("failure", [None, Failure("get", "", None), Failure("get", " ", None)])
def test_a_failure_without_a_reason_is_tried_again(failure):
    for explain in (from_failure, lftp_ftp_text.from_failure):
        error = explain(failure, ("/d/x", "/loc"), URL)
        assert type(error) is ConnectionLost
        assert error.retryable


def test_a_file_name_in_an_error_text_is_not_taken_for_its_cause():
    path = "/d/No such file"
    failure = Failure("get", f"Access failed: Failure ({path})", None)
    assert type(from_failure(failure, (path,), URL)) is TransferError
    path = "/d/No space left on device"
    failure = Failure("get", f"{path}: /loc: Input/output error", None)
    assert type(from_failure(failure, (path, "/loc"), URL)) is TransferError


def test_a_lost_connection_is_told_from_a_refusal_that_closed_further_connections():
    log = Log()
    log.feed(b"get: /d/x: Fatal error: max-retries exceeded\n---- Disconnecting\n")
    assert isinstance(from_lost(log, ("/d/x",), URL), ConnectionLost)
    log = Log()
    log.feed(b"pget: /d/x: /loc: No space left on device\n---- Disconnecting\n")
    assert from_lost(log, ("/d/x", "/loc"), URL) is None
