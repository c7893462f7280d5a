"""Damage that once went unseen, was told in the wrong place, or stopped more than it had to."""

from __future__ import annotations

import posixpath

import pytest

from oncemq.errors import CorruptLog
from oncemq.storage import layout
from oncemq.storage.log import FencedLog
from oncemq.storage.memory import MemoryDisk
from oncemq.storage.snapshots import read_part
from tests.storage.loghelp import (
    DIRECTORY,
    OWNER,
    bodies,
    content,
    crash,
    flip,
    generation_path,
    open_log,
    overwrite,
    put,
    segment_path,
)


def with_two_snapshots() -> tuple[MemoryDisk, FencedLog, list[int]]:
    """A killed log: (disk, its owner, positions of its snapshots)."""
    disk = MemoryDisk()
    log = open_log(disk)
    positions = []
    for number in range(2):
        put(log, b"%d" % number)
        log.write_snapshot(log.durable_end, {"state": b"state %d" % number})
        positions.append(log.durable_end)
    put(log, b"after")
    crash(disk, log)
    return disk, log, positions


def test_a_snapshot_whose_head_is_damaged_is_told_by_the_next_owner() -> None:
    """A head that cannot be read is not carried on, and that is said."""
    disk, log, positions = with_two_snapshots()
    path = posixpath.join(generation_path(log), layout.snapshot_name(positions[1]))
    flip(disk, path, 30)
    again = open_log(disk)
    assert [info.position for info in again.snapshots()] == positions[:1]
    assert [damage.path for damage in again.snapshot_damage] == [path]
    assert bodies(again) == [b"0", b"1", b"after"]


def test_a_missing_part_of_a_snapshot_does_not_stop_an_opening() -> None:
    """The other snapshot and replay stand for it; the missing file is named."""
    disk, log, positions = with_two_snapshots()
    (part,) = log.snapshots()[0].parts
    path = posixpath.join(generation_path(log), part.file)
    disk.unlink(path)
    again = open_log(disk)
    assert [info.position for info in again.snapshots()] == positions[:1]
    assert [damage.path for damage in again.snapshot_damage] == [path]
    assert bodies(again) == [b"0", b"1", b"after"]


def test_a_log_without_its_manifest_is_not_replaced_by_an_empty_one() -> None:
    """Nothing was written since the opening, the manifest is lost: damage, not a new beginning."""
    disk = MemoryDisk()
    log = open_log(disk)
    put(log, b"one")
    crash(disk, log)
    log = open_log(disk)
    crash(disk, log)
    path = posixpath.join(generation_path(log), layout.MANIFEST)
    disk.unlink(path)
    with pytest.raises(CorruptLog, match="manifest is missing") as caught:
        open_log(disk, create_log_id=b"another log's id")
    assert caught.value.path == path


def test_a_segment_with_bytes_behind_a_bad_head_was_not_cut_short() -> None:
    """Another segment's bytes in place of the newest: its groups are gone, and that stops."""
    disk = MemoryDisk()
    log = open_log(disk, segment_bytes=400)
    for number in range(6):
        put(log, b"%d" % number * 150)
    firsts = layout.segments_in(disk.list(generation_path(log)))
    crash(disk, log)
    overwrite(disk, segment_path(log, firsts[-1]), content(disk, segment_path(log, firsts[0])))
    with pytest.raises(CorruptLog) as caught:
        open_log(disk)
    assert caught.value.path == segment_path(log, firsts[-1])


def test_damage_in_the_last_frame_of_a_sealed_segment_is_told_where_it_is() -> None:
    """The offset is that of the frame, not of the end of the file."""
    disk = MemoryDisk()
    log = open_log(disk, segment_bytes=400)
    for number in range(4):
        put(log, b"%d" % number * 150)
    crash(disk, log)
    length = len(content(disk, segment_path(log)))
    flip(disk, segment_path(log), length - 10)
    with pytest.raises(CorruptLog) as caught:
        FencedLog.open(disk, DIRECTORY, generation=None, owner=OWNER)
    assert caught.value.offset < length - 10


def test_a_part_that_grew_is_told_where_it_should_end() -> None:
    """The offset is the first byte that should not be there."""
    disk, log, _ = with_two_snapshots()
    part = log.snapshots()[0].parts[0]
    path = posixpath.join(generation_path(log), part.file)
    overwrite(disk, path, content(disk, path) + b"more")
    with pytest.raises(CorruptLog) as caught:
        read_part(disk, generation_path(log), part)
    assert caught.value.offset == part.length
