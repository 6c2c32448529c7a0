"""What must hold for every input: URLs, names, frames, and what a server or lftp may send."""

from __future__ import annotations

import contextlib

from hypothesis import example, given, settings
from hypothesis import strategies as st

from pyremotedata_core import RemoteURL, TransferError
from pyremotedata_core.filters import Filter
from pyremotedata_core.helper import pack, unpack
from pyremotedata_core.names import aside_name, is_temporary, temporary_name
from pyremotedata_core.transports.lftp_text import Log, parse_listing, parse_one

settings.register_profile("suite", max_examples=150, derandomize=True, deadline=None)
settings.load_profile("suite")

# As names come from a server: any bytes, undecodable ones as surrogate escapes.
NAMES = (
    st.binary(min_size=1, max_size=30)
    .map(lambda raw: raw.decode("utf-8", "surrogateescape").replace("\0", "").replace("/", ""))
    .filter(lambda name: name not in ("", ".", ".."))
)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.binary() | st.text(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(st.lists(NAMES, min_size=1, max_size=4))
@example(["~"])
@example(["~", "x"])
@example(["%2F", "a b", "?#", "\udcff"])
def test_a_path_survives_its_url(names):
    url = RemoteURL.parse("sftp://me@host:2022/")
    for name in names:
        url = url.join(f"./{name}")
    again = RemoteURL.parse(str(url))
    assert again == url
    assert again.name == names[-1]
    assert str(again) == str(url)
    assert str(url).isascii()


@given(st.lists(PLAIN, max_size=4), st.integers(1, 40))
def test_frames_come_out_as_they_went_in_however_they_are_cut(messages, size):
    data, buffer, found = pack(messages) + pack([(1, 0, "last")]), bytearray(), []
    for start in range(0, len(data), size):
        buffer += data[start : start + size]
        found += unpack(buffer)
    assert found == [*messages, (1, 0, "last")]
    assert not buffer


@given(NAMES)
def test_only_our_own_names_are_taken_for_temporary(name):
    ours = temporary_name()
    assert is_temporary(ours)
    assert is_temporary(aside_name(ours))
    assert not is_temporary(name)
    assert not is_temporary(ours + name)


@given(st.lists(NAMES, min_size=1, max_size=3))
def test_a_pattern_of_plain_characters_matches_its_name_alone(names):
    path = "/".join(name.translate({ord(c): "x" for c in "*?[]"}) for name in names)
    if path.startswith("./") or path != path.strip("/"):
        return
    assert Filter(include=["/" + path]).wants_file(path)
    assert not Filter(exclude=["/" + path]).wants_file(path)
    assert not Filter(include=["/" + path]).wants_file(path + "y")


@given(
    st.lists(
        st.sampled_from(
            [
                b"---- status code=4(",
                b"---- file info: size=9, date=Fri Jan 1 00:00:00 2010",
                b"---- file info: size=1, date=Fri Foo 1 00:00:00 2010",
                b"---- data packet: pos=0, size=" + b"9" * 5000,
                b"---- file info: size=-1, date=Fri Feb 31 25:61:61 99999999999",
                b"---- data packet: pos=0, size=5",
                b"---- got file handle ab (9999999999)",
                b"---> sending a packet, length=5, type=6(",
                b"**** got file type 4",
                b"cd: Access failed: No such file",
                b"\xff\n",
                b"\n",
                b"\0",
            ]
        )
        | st.binary(max_size=30),
        max_size=12,
    ),
    st.binary(max_size=20),
)
def test_any_words_of_lftp_can_be_read(pieces, rest):
    log = Log()
    for piece in [*pieces, b"\n", rest, b"\n"]:
        log.feed(piece)
    output = b"".join(pieces) + rest
    with contextlib.suppress(TransferError):
        list(parse_listing(output, 5, "sftp://host/d"))
    with contextlib.suppress(TransferError):
        parse_one(output, "sftp://host/d")
