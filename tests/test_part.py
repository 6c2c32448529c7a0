"""What others can read of a large file that is on its way."""

from __future__ import annotations

import errno
import os

from pyremotedata_core import Stat
from pyremotedata_core.part import Part, open_arrived

from .forks import in_a_fork

SEGMENT = 10
STAT = Stat("file", 25, 1_600_000_000)


def read_arrived(final: str, stat: Stat, start: int, length: int) -> bytes | None:
    part = open_arrived(final, stat, start, length)
    if part is None:
        return None
    with part:
        return os.pread(part.fileno(), length, start)


def test_whole_segments_of_a_part_can_be_read_until_it_is_published(tmp_path):
    final = str(tmp_path / "large")
    part = Part(final)
    part.resume("sftp://archive/large", STAT, SEGMENT)
    part.write(memoryview(b"a" * 25), 0)
    part.note(2)
    assert read_arrived(final, STAT, 20, 5) == b"a" * 5
    assert read_arrived(final, STAT, 15, 10) is None, "a segment of it is not there"
    part.note(1)
    assert read_arrived(final, STAT, 15, 10) == b"a" * 10
    assert read_arrived(final, STAT._replace(mtime=1), 15, 10) is None
    assert read_arrived(str(tmp_path / "other"), STAT, 15, 10) is None
    part.publish(STAT, fsync=False)
    assert read_arrived(final, STAT, 15, 10) is None


def test_a_forked_child_makes_temporary_files_of_its_own(tmp_path):
    def begin(name):
        part = Part(str(tmp_path / name))
        part.write(memoryview(b"a"), 0)
        return part

    parts = [begin("before")]
    assert in_a_fork(lambda: begin("in the child")) == ""
    parts.append(begin("after"))
    assert len(os.listdir(tmp_path)) == 3
    for part in parts:
        part.discard()


def test_what_a_full_disk_has_kept_of_a_line_makes_no_segment(tmp_path):
    final, stat = str(tmp_path / "large"), STAT._replace(size=200)
    part = Part(final)
    part.resume("sftp://archive/large", stat, SEGMENT)
    part.note(2)
    part.note(12)
    (record,) = tmp_path.glob(".*.done")
    os.truncate(record, record.stat().st_size - 2)
    part.keep()
    for arrived in (3, 4):
        part = Part(final)
        assert part.resume("sftp://archive/large", stat, SEGMENT) <= {2, 3, 4}
        part.note(arrived)
        part.keep()
    assert Part(final).resume("sftp://archive/large", stat, SEGMENT) == {2, 4}


def test_of_two_parts_of_one_file_the_one_that_has_more_is_continued(tmp_path):
    def begin(*there: int) -> Part:
        part = Part(str(tmp_path / "large"))
        assert part.resume("sftp://archive/large", STAT, SEGMENT) == set()
        for segment in there:
            part.note(segment)
        return part

    parts = [begin(1), begin(0, 2), begin(2)]
    for part in parts:
        part.keep()
    assert len(list(tmp_path.iterdir())) == 2, "it and its record"
    part = Part(str(tmp_path / "large"))
    assert part.resume("sftp://archive/large", STAT, SEGMENT) == {0, 2}
    part.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_part_whose_last_bytes_found_no_room_is_not_continued(tmp_path, monkeypatch):
    """Some file systems say so when a file is closed."""
    part = Part(str(tmp_path / "large"))
    part.resume("sftp://archive/large", STAT, SEGMENT)
    part.note(0)
    full, close = part.fd, os.close

    def close_full(fd):
        close(fd)
        if fd == full:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(os, "close", close_full)
    part.keep()
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []
    assert Part(str(tmp_path / "large")).resume("sftp://archive/large", STAT, SEGMENT) == set()
