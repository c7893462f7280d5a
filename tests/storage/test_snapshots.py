"""Snapshots: whole or not there, two of them, and never a way back to an empty state."""

from __future__ import annotations

import errno

import pytest

from oncemq.errors import CorruptLog, DiskFull, StorageError
from oncemq.storage import layout
from oncemq.storage.log import FencedLog
from oncemq.storage.memory import MemoryDisk
from tests.storage.loghelp import (
    HookedDisk,
    bodies,
    content,
    crash,
    failing,
    flip,
    generation_path,
    open_log,
    overwrite,
    put,
    segment_path,
)


def snapshot_path(log: FencedLog, position: int) -> str:
    return f"{generation_path(log)}/{layout.snapshot_name(position)}"


def three(disk: MemoryDisk, **more: object) -> tuple[FencedLog, list[int]]:
    """A log with three groups and a snapshot after each."""
    log = open_log(disk, segment_bytes=400, **more)
    positions = []
    for number in range(3):
        positions.append(put(log, b"%d" % number * 300))
        log.write_snapshot(positions[-1], {"own": b"%d" % number}, ["same"] if number else [])
        if number == 0:
            log.write_snapshot(positions[-1], {"own": b"0", "same": b"never changes"})
    return log, positions


def test_the_two_newest_snapshots_are_kept() -> None:
    """A third snapshot replaces the oldest; parts live as long as a head names them."""
    disk = MemoryDisk()
    log, positions = three(disk)
    infos = log.snapshots()

    assert [info.position for info in infos] == positions[:0:-1]
    assert log.read_snapshot(infos[0]) == {"same": b"never changes", "own": b"2"}
    assert log.read_snapshot(infos[1]) == {"same": b"never changes", "own": b"1"}
    assert len(layout.parts_in(disk.list(generation_path(log)))) == 3


def test_snapshots_are_carried_into_the_next_generation() -> None:
    """After a restart the newest snapshot and the log behind it give the state."""
    disk = MemoryDisk()
    log, positions = three(disk)
    put(log, b"after")
    crash(disk, log)
    log = open_log(disk, segment_bytes=400)
    newest = log.snapshots()[0]

    assert newest.position == positions[-1]
    assert log.read_snapshot(newest)["own"] == b"2"
    assert bodies(log, newest.position) == [b"after"]
    put(log, b"more")
    log.write_snapshot(log.durable_end, {"own": b"3"}, ["same"])
    assert log.read_snapshot(log.snapshots()[0]) == {"same": b"never changes", "own": b"3"}


@pytest.mark.parametrize("damage", ["head", "part", "no part", "short part", "empty head"])
def test_a_damaged_snapshot_falls_back_to_the_other(damage: str) -> None:
    """The older snapshot and more replay give the same state; the damage is reported."""
    disk = MemoryDisk()
    log, positions = three(disk)
    part = next(p for p in log.snapshots()[0].parts if p.name == "own")
    path = f"{generation_path(log)}/{part.file}"
    if damage == "head":
        flip(disk, snapshot_path(log, positions[-1]), 50)
    elif damage == "empty head":
        overwrite(disk, snapshot_path(log, positions[-1]), b"")
    elif damage == "part":
        flip(disk, path, 0)
    elif damage == "no part":
        disk.unlink(path)
    else:
        overwrite(disk, path, b"")
    (info,) = log.snapshots()

    assert info.position == positions[1]
    assert len(log.snapshot_damage) == 1
    assert log.read_snapshot(info)["own"] == b"1"
    assert len(bodies(log, info.position)) == 1


def test_without_a_whole_snapshot_the_log_is_replayed_from_its_beginning() -> None:
    """While the log reaches back to position 0 nothing is lost with the snapshots."""
    disk = MemoryDisk()
    log, positions = three(disk)
    for position in positions[1:]:
        flip(disk, snapshot_path(log, position), 50)
    crash(disk, log)
    log = open_log(disk, segment_bytes=400)

    assert (log.snapshots(), log.start) == ([], 0)
    assert len(bodies(log)) == 3


def test_where_the_log_no_longer_reaches_back_damage_stops() -> None:
    """Snapshots gone and their log discarded: never an empty state."""
    disk = MemoryDisk()
    log, positions = three(disk)
    assert log.discard(log.durable_end) > 0
    for position in positions[1:]:
        flip(disk, snapshot_path(log, position), 50)
    with pytest.raises(CorruptLog, match="checksum"):
        log.snapshots()
    crash(disk, log)
    with pytest.raises(CorruptLog, match="checksum"):
        open_log(disk)
    for position in positions[1:]:
        disk.unlink(snapshot_path(log, position))
    with pytest.raises(CorruptLog, match="no snapshot"):
        open_log(disk)


def test_a_damaged_part_stops_where_no_other_snapshot_covers_it() -> None:
    """The parts are checked before a snapshot is offered."""
    disk = MemoryDisk()
    log, _ = three(disk)
    log.discard(log.durable_end)
    for info in log.snapshots():
        flip(disk, f"{generation_path(log)}/{info.parts[0].file}", 0)
        break
    with pytest.raises(CorruptLog, match="wrong checksum of a part"):
        log.snapshots()


def test_a_snapshot_above_the_log_attests_what_is_missing() -> None:
    """A log that ends below its snapshot was cut from outside: opening it fails."""
    disk = MemoryDisk()
    log = open_log(disk)
    put(log, b"one")
    end = put(log, b"two")
    log.write_snapshot(end, {"a": b"x"})
    crash(disk, log)
    flip(disk, segment_path(log), 64 + end - 5)
    with pytest.raises(CorruptLog, match="a snapshot attests"):
        open_log(disk)


def test_a_snapshot_of_another_history_is_passed_over() -> None:
    """A head whose chain is not the log's was made from other records."""
    disk, other = MemoryDisk(), MemoryDisk()
    log, theirs = open_log(disk), open_log(other)
    end = put(log, b"one")
    put(theirs, b"two")
    theirs.write_snapshot(end, {"a": b"x"})
    log.write_snapshot(end, {"a": b"x"})
    overwrite(disk, snapshot_path(log, end), content(other, snapshot_path(theirs, end)))

    assert log.snapshots() == []
    assert "other records" in str(log.snapshot_damage[0])


def test_a_snapshot_of_another_log_is_passed_over() -> None:
    """Even where nothing else could tell them apart, before the first record."""
    disk, other = MemoryDisk(), MemoryDisk()
    log, theirs = open_log(disk), open_log(other, create_log_id=b"another log's id")
    theirs.write_snapshot(0, {})
    log.write_snapshot(0, {})
    overwrite(disk, snapshot_path(log, 0), content(other, snapshot_path(theirs, 0)))

    assert log.snapshots() == []
    assert "another log" in str(log.snapshot_damage[0])


def test_a_snapshot_under_another_name_is_passed_over() -> None:
    """A head must name its own position."""
    disk = MemoryDisk()
    log = open_log(disk)
    end = put(log, b"one")
    log.write_snapshot(end, {"a": b"x"})
    disk.rename(snapshot_path(log, end), snapshot_path(log, 0))
    crash(disk, log)
    log = open_log(disk)
    assert log.snapshots() == []


def test_a_snapshot_stands_where_a_group_or_its_records_end() -> None:
    """Other positions, and those that are not synced, are bugs of the caller."""
    disk = MemoryDisk()
    log = open_log(disk)
    put(log, b"one", b"two")
    records = list(log.replay(0))
    log.write_snapshot(records[-1].end, {"a": b"records"})
    log.write_snapshot(0, {"a": b"nothing"})
    with pytest.raises(ValueError, match="no group ends"):
        log.write_snapshot(records[0].end, {"a": b""})
    with pytest.raises(ValueError, match="above the durable end"):
        log.write_snapshot(log.end + 1, {"a": b""})


def test_parts_are_given_or_kept_not_both_and_must_exist() -> None:
    """Mistakes about parts raise before anything is written."""
    log = open_log(MemoryDisk())
    end = put(log, b"one")
    with pytest.raises(ValueError, match="no part named"):
        log.write_snapshot(end, {"a": b""}, ["b"])
    log.write_snapshot(end, {"a": b""})
    with pytest.raises(ValueError, match="given and kept"):
        log.write_snapshot(end, {"a": b""}, ["a"])


@pytest.mark.parametrize(
    ("call", "part"),
    [
        ("create", ".part"),
        ("write", ".part"),
        ("sync", ".part"),
        ("create", ".tmp"),
        ("write", ".tmp"),
        ("sync", ".tmp"),
        ("rename", ".snapshot"),
        ("sync_directory", "gen-"),
    ],
)
def test_a_full_disk_takes_back_a_snapshot_and_the_log_goes_on(call: str, part: str) -> None:
    """DiskFull leaves the older snapshots, no new files, and a log that works."""
    disk = HookedDisk()
    log, positions = three(disk)
    before = disk.list(generation_path(log))
    end = put(log, b"more")
    disk.hook = failing(call, part, errno.ENOSPC)
    with pytest.raises(DiskFull):
        log.write_snapshot(end, {"own": b"3"}, ["same"])
    assert set(disk.list(generation_path(log))) <= {*before, layout.segment_name(positions[-1])}
    put(log, b"still")
    log.write_snapshot(log.durable_end, {"own": b"4"}, ["same"])
    assert log.read_snapshot(log.snapshots()[0])["own"] == b"4"


@pytest.mark.parametrize("call", ["write", "sync", "rename", "sync_directory"])
def test_another_error_of_a_snapshot_is_final(call: str) -> None:
    """An I/O error while a snapshot is made ends the log."""
    disk = HookedDisk()
    log, positions = three(disk)
    disk.hook = failing(call)
    with pytest.raises(OSError, match="Input/output error"):
        log.write_snapshot(positions[-1], {"own": b"3"})
    with pytest.raises(StorageError, match="failed before"):
        log.sync()


def test_a_snapshot_is_read_back_before_it_replaces_another() -> None:
    """A disk that stores something else than it was given is noticed while the old one stands."""
    disk = HookedDisk()
    log, positions = three(disk)
    end = put(log, b"more")

    def spoil(call: str, path: str) -> None:
        if call == "rename":
            disk.hook = HookedDisk.hook
            parts = layout.parts_in(disk.list(generation_path(log)))
            flip(disk, f"{generation_path(log)}/{max(parts, key=lambda name: parts[name])}", 0)

    disk.hook = spoil
    with pytest.raises(CorruptLog, match="checksum of a part"):
        log.write_snapshot(end, {"own": b"3"}, ["same"])
    crash(disk, log)
    assert open_log(disk).snapshots()[0].position == positions[-1]


def test_discard_deletes_whole_segments_that_no_snapshot_needs() -> None:
    """What lies below the older snapshot and below the limit goes; the rest reads on."""
    disk = MemoryDisk()
    log = open_log(disk, segment_bytes=400)
    assert log.discard(1 << 40) == 0
    positions = [put(log, b"%d" % number * 300) for number in range(6)]
    assert log.discard(1 << 40) == 0, "without a snapshot nothing may go"
    log.write_snapshot(positions[2], {"a": b"2"})
    log.write_snapshot(positions[4], {"a": b"4"})
    assert log.discard(positions[0] - 1) == 0
    assert log.discard(positions[1]) == positions[1]
    assert log.discard(1 << 40) == log.start == positions[2]

    assert layout.segments_in(disk.list(generation_path(log)))[0] == positions[2]
    assert [b[:1] for b in bodies(log)] == [b"3", b"4", b"5"]
    with pytest.raises(ValueError, match="before the start"):
        log.read(0, 100)
    crash(disk, log)
    log = open_log(disk, segment_bytes=400)
    assert (log.start, len(bodies(log))) == (positions[2], 3)
    crash(disk, log)
    disk.unlink(segment_path(log, positions[2]))
    with pytest.raises(CorruptLog, match="missing"):
        open_log(disk)


def test_segments_that_a_crash_left_below_the_start_are_not_read() -> None:
    """The new start is noted before segments are deleted; what is left of them is nothing."""
    disk = HookedDisk()
    log = open_log(disk, segment_bytes=400)
    positions = [put(log, b"%d" % number * 300) for number in range(4)]
    log.write_snapshot(positions[3], {"a": b"3"})
    disk.hook = failing("unlink", ".log")
    with pytest.raises(OSError, match="Input/output error"):
        log.discard(positions[3])
    crash(disk, log)
    flip(disk, segment_path(log), 100)
    log = open_log(disk, segment_bytes=400)
    assert log.start == positions[2]
    assert layout.segments_in(disk.list(generation_path(log))) == positions[2:3]


def test_a_full_disk_at_discard_changes_nothing() -> None:
    """Noting the new start needs a little room; without it the log stays as it is."""
    disk = HookedDisk()
    log = open_log(disk, segment_bytes=400)
    positions = [put(log, b"%d" % number * 300) for number in range(4)]
    log.write_snapshot(positions[3], {"a": b"3"})
    disk.hook = failing("create", "START", errno.ENOSPC)
    with pytest.raises(DiskFull):
        log.discard(positions[3])
    assert (log.start, len(bodies(log))) == (0, 4)
    assert log.discard(positions[3]) == positions[2]


def test_a_damaged_start_stops() -> None:
    """Where the log starts is not guessed."""
    disk = MemoryDisk()
    log, _ = three(disk)
    log.discard(log.durable_end)
    crash(disk, log)
    path = f"{generation_path(log)}/START"
    good = content(disk, path)
    flip(disk, path, 30)
    with pytest.raises(CorruptLog, match="checksum of the start"):
        open_log(disk)
    overwrite(disk, path, good)
    assert bodies(open_log(disk))
