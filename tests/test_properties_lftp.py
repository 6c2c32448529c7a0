"""Whatever a name is: through lftp it survives, with its bytes, or is clearly refused."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pyremotedata_core import Stat, UnsafeName

from . import test_properties  # noqa: F401 - its profile is that of this file, too
from .lftp_sessions import connected, end_sessions, fetch, listed, store
from .sites import needs_lftp

pytestmark = needs_lftp

# Bytes that mean something to lftp, a shell, a pattern or a terminal come more often.
SPECIAL = st.lists(
    st.sampled_from([bytes([byte]) for byte in b"\n\r\t\\\"'`$!;&|<>*?[]{}()~#% -."])
)
NAMES = (
    (st.binary(min_size=1, max_size=20) | SPECIAL.map(b"".join))
    .map(lambda raw: raw.replace(b"\0", b"").replace(b"/", b""))
    .filter(lambda raw: raw not in (b"", b".", b".."))
    .map(os.fsdecode)
)
FILES = st.dictionaries(NAMES, st.binary(max_size=40), min_size=1, max_size=3)


@pytest.fixture(scope="module")
def session(sshd):
    yield connected(sshd)
    end_sessions()


@settings(max_examples=40)
@given(FILES)
@example({"\n": b""})
@example({"!touch x\\": b"1", "\\": b"2", '"': b"3"})
def test_files_of_any_name_are_stored_listed_and_fetched_as_they_are(session, sshd, files):
    with tempfile.TemporaryDirectory(dir=sshd.root) as place:
        there, here = Path(place, "there"), Path(place, "here")
        there.mkdir()
        here.mkdir()
        for number, (name, content) in enumerate(files.items()):
            (here / name).write_bytes(content)
            os.utime(here / name, (number, 1_500_000_000 + number))
            if "\n" in name:
                with pytest.raises(UnsafeName, match="line break"):
                    store(session, here / name, there / name)
            else:
                store(session, here / name, there / name)
        carried = {name: content for name, content in files.items() if "\n" not in name}
        assert {path.name: path.read_bytes() for path in there.iterdir()} == carried
        found = listed(session, there)
        assert {name: stat.size for name, stat in found.items()} == {
            name: len(content) for name, content in carried.items()
        }
        for number, (name, content) in enumerate(files.items()):
            if name in carried:
                stat = fetch(session, there / name, here / "fetched")
                assert (here / "fetched").read_bytes() == content
                assert stat == Stat("file", len(content), 1_500_000_000 + number)
                assert session.stat(str(there / name), False) == found[name]
                session.touch(str(there / name), 5)
                assert (there / name).stat().st_mtime == 5
        assert not Path("x").exists()
        for name in set(files) - set(carried):
            (there / name).touch()
            with pytest.raises(UnsafeName, match="line break"):
                listed(session, there)
        assert session.alive
