"""Things that happen between two calls of an opening, and files that were edited by hand."""

from __future__ import annotations

import posixpath

import pytest

from oncemq.errors import CorruptLog, DiskFull, Fenced, LogInUse, StorageError
from oncemq.storage import document, layout
from oncemq.storage.document import Manifest
from oncemq.storage.inspection import inspect
from oncemq.storage.log import FencedLog, create, hold_lock
from oncemq.storage.memory import MemoryDisk
from oncemq.storage.recovery import maker_is_gone
from tests.storage.loghelp import (
    DIRECTORY,
    LOG_ID,
    OWNER,
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


def at(disk: HookedDisk, call: str, part: str, act: object) -> None:
    """Let `act` happen once, just before the first such call on a path that contains `part`."""

    def hook(name: str, path: str) -> None:
        if name == call and part in path:
            disk.hook = HookedDisk.hook
            act()  # type: ignore[operator]

    disk.hook = hook


def killed(disk: MemoryDisk, groups: int = 1) -> FencedLog:
    """A log of small segments whose owner was killed."""
    log = open_log(disk, segment_bytes=400)
    for number in range(groups):
        put(log, b"%d" % number * 300)
    crash(disk, log)
    return log


def test_an_opening_continues_what_another_one_completed_meanwhile() -> None:
    """Between looking and taking another owner came and went: its records are taken over."""
    disk = HookedDisk()
    killed(disk)

    def other() -> None:
        put(open_log(disk, generation=12), b"between")

    log = open_log(disk, prepare=other)
    assert log.generation == 13
    assert bodies(log)[1:] == [b"between"]
    path = f"{generation_path(log)}/MANIFEST"
    assert Manifest.decode(content(disk, path), path).parent == 12


def test_a_grant_that_is_overtaken_while_it_prepares_is_fenced() -> None:
    """A higher number that appears before the directory is made wins."""
    disk = HookedDisk()
    killed(disk)
    with pytest.raises(Fenced):
        open_log(disk, generation=9, prepare=lambda: open_log(disk, generation=12))


def test_two_openings_never_share_a_number() -> None:
    """Who finds its directory made by another takes the next number, or is fenced."""
    name = layout.generation_name(3)
    for number in (None, 3):
        disk = HookedDisk()
        killed(disk)
        at(
            disk,
            "make_directory",
            name,
            lambda d=disk: MemoryDisk.make_directory(d, f"{DIRECTORY}/{name}"),
        )
        if number is None:
            assert open_log(disk).generation == 4
        else:
            with pytest.raises(Fenced):
                open_log(disk, generation=3)


def test_an_opening_that_finds_a_higher_one_complete_is_fenced() -> None:
    """After its directory is made and before it takes the tail another one may be done."""
    disk = HookedDisk()
    killed(disk)
    at(disk, "create", "LOCK", lambda: disk.make_directory(f"{DIRECTORY}/x"))
    name = layout.generation_name(8)
    at(disk, "lock", name, lambda: open_log(disk, generation=9))
    with pytest.raises(Fenced):
        open_log(disk, generation=8)


def test_a_generation_that_appears_while_the_parent_is_looked_at_is_looked_at_too() -> None:
    """The parent is the one whose lock is held."""
    disk = HookedDisk()
    killed(disk)
    at(disk, "lock", "LOCK", lambda: open_log(disk, generation=7).close())
    log = open_log(disk)
    assert (log.generation, len(bodies(log))) == (8, 1)


def test_a_live_maker_of_an_unfinished_generation_is_named() -> None:
    """Who is opening the log owns it already."""
    disk = MemoryDisk()
    killed(disk)
    path = f"{DIRECTORY}/{layout.generation_name(5)}"
    disk.make_directory(path)
    layout.write_new(disk, f"{path}/LOCK", document.encode("owner", {"owner": {"pid": 55}}))
    lock = disk.lock(f"{path}/LOCK")
    assert lock is not None
    with pytest.raises(LogInUse, match="pid 55"):
        open_log(disk)
    lock.release()
    assert open_log(disk).generation == 6


def test_a_lock_file_names_its_maker_only_under_its_lock() -> None:
    """Frozen between the two, a live maker would look dead: the name with a free lock is the proof."""
    disk = HookedDisk()
    killed(disk)
    found: list[bool] = []

    def look(call: str, path: str) -> None:
        if call in {"write", "sync"} and path.endswith("LOCK"):
            found.append(maker_is_gone(disk, DIRECTORY, 3))

    disk.hook = look
    open_log(disk).close()
    assert found == [False, False]


def test_a_lock_that_never_comes_free_is_told() -> None:
    """A process that holds the lock of a directory just made is not waited for."""
    disk = HookedDisk()
    killed(disk)
    name = layout.generation_name(3)
    at(disk, "lock", name, lambda: MemoryDisk.lock(disk, f"{DIRECTORY}/{name}/LOCK"))
    with pytest.raises(LogInUse, match="just created"):
        open_log(disk)


def test_two_probes_for_room_do_not_meet() -> None:
    """Another opening that probes at the same moment is no obstacle."""
    disk = HookedDisk()
    killed(disk)
    at(disk, "create", layout.PROBE, lambda: MemoryDisk.create(disk, f"{DIRECTORY}/{layout.PROBE}"))
    assert open_log(disk).generation == 3


def test_a_segment_that_the_owner_discards_under_an_opening_is_listed_again() -> None:
    """The owner looked at the fence before the directory was there, and deletes after."""
    disk = HookedDisk()
    log = open_log(disk, segment_bytes=400, generation=5)
    positions = [put(log, b"%d" % number * 300) for number in range(4)]
    log.write_snapshot(positions[3], {"a": b"3"})
    path = generation_path(log)

    def discard() -> None:
        start = document.encode("start", {"start": positions[1]})
        layout.write_new(disk, f"{path}/START", start)
        for first in (0, positions[0]):
            disk.unlink(segment_path(log, first))

    at(disk, "link", layout.segment_name(positions[0]), discard)
    new = open_log(disk, generation=6)
    assert (new.start, len(bodies(new))) == (positions[1], 2)
    assert layout.segments_in(disk.list(generation_path(new)))[0] == positions[1]


def test_the_lock_of_a_generation_that_was_replaced_proves_nothing() -> None:
    """The lock counts only while its generation is the highest."""
    disk = HookedDisk()
    killed(disk)
    at(disk, "lock", "LOCK", lambda: open_log(disk, generation=7))
    assert hold_lock(disk, DIRECTORY) is None


def test_an_error_while_a_large_group_is_written_early_is_final() -> None:
    """The early part of a group is a write like any other."""
    disk = HookedDisk()
    log = open_log(disk)
    disk.hook = failing("write")
    with pytest.raises(OSError, match="Input/output error"):
        log.append(1, b"", bytes(5_000_000))
    with pytest.raises(StorageError, match="failed before"):
        log.append(1, b"", b"x")


def test_an_error_is_told_even_if_the_fence_cannot_be_looked_at() -> None:
    """When the whole disk fails, the first failure is the one that is raised."""
    disk = HookedDisk()
    log = open_log(disk)
    log.append(1, b"", b"x")

    def everything(call: str, path: str) -> None:
        raise OSError(5, f"{call} failed", path)

    disk.hook = everything
    with pytest.raises(OSError, match="write failed") as caught:
        log.sync()
    assert "list failed" in caught.value.__notes__[0]
    disk.hook = HookedDisk.hook


def test_impossible_metas_and_huge_documents_are_refused() -> None:
    """Bounds are held before memory is taken."""
    disk = MemoryDisk()
    log = killed(disk)
    path = f"{generation_path(log)}/MANIFEST"
    file = disk.open(path, write=True)
    file.truncate(document.DOCUMENT_BYTES_MAX + 1)
    with pytest.raises(CorruptLog, match="impossible length"):
        open_log(disk)


def test_a_start_without_a_position_is_damage() -> None:
    """A right checksum over no position is no start."""
    disk = MemoryDisk()
    log = killed(disk)
    layout.write_new(disk, f"{generation_path(log)}/START", document.encode("start", {}))
    with pytest.raises(CorruptLog, match="no start position"):
        open_log(disk)


def test_a_stray_segment_stops() -> None:
    """A segment that no history could have made is damage, wherever it stands."""
    disk = MemoryDisk()
    log = killed(disk)
    disk.create(segment_path(log, 10)).close()
    with pytest.raises(CorruptLog, match="without a commit frame"):
        open_log(disk)


def test_a_snapshot_above_an_empty_log_stops() -> None:
    """A log without segments has no snapshot of records."""
    disk = MemoryDisk()
    create(disk, DIRECTORY, log_id=LOG_ID, owner=OWNER)
    path = f"{DIRECTORY}/{layout.generation_name(1)}/{layout.snapshot_name(100)}"
    disk.create(path).close()
    with pytest.raises(CorruptLog, match="records that are missing"):
        open_log(disk)


def test_a_cut_inside_a_group_stops() -> None:
    """A manifest names the end of a group, also in a sealed segment."""
    disk = MemoryDisk()
    killed(disk, 4)
    log = open_log(disk)
    crash(disk, log)
    path = f"{generation_path(log)}/MANIFEST"
    table = document.decode("manifest", content(disk, path), path)
    overwrite(disk, path, document.encode("manifest", {**table, "cut": 10, "segments": []}))
    with pytest.raises(CorruptLog, match=r"generation|no group ends"):
        open_log(disk)


def test_a_file_that_shrinks_under_a_live_log_is_damage() -> None:
    """Reading bytes that were cut away names the file and the place."""
    disk = MemoryDisk()
    log = open_log(disk)
    put(log, bytes(200_000))
    file = disk.open(segment_path(log), write=True)
    file.truncate(100_000)
    with pytest.raises(CorruptLog, match="file ends inside a record") as caught:
        log.read(0, 10)
    assert caught.value.path == segment_path(log)


def test_a_snapshot_that_stands_inside_a_group_is_passed_over() -> None:
    """A head with a right checksum and an impossible position is not used."""
    disk = MemoryDisk()
    log = open_log(disk)
    put(log, b"one", b"two")
    info = log.write_snapshot(log.durable_end, {})
    name = f"{generation_path(log)}/{layout.snapshot_name(5)}"
    table = document.decode("snapshot", info.encode(), name)
    layout.write_new(disk, name, document.encode("snapshot", {**table, "position": 5}))
    log._view.snapshots.insert(0, 5)
    assert [found.position for found in log.snapshots()] == [info.position]
    assert "no group ends at 5" in str(log.snapshot_damage[0])


def test_a_snapshot_head_that_reads_back_changed_is_final() -> None:
    """What the disk gives back is compared with what was meant."""
    disk = HookedDisk()
    log = open_log(disk)
    end = put(log, b"one")
    other = document.SnapshotInfo(LOG_ID, 2, end, 1, [])
    path = posixpath.join(generation_path(log), layout.snapshot_name(end) + layout.TEMPORARY)
    at(disk, "rename", ".snapshot", lambda: overwrite(disk, path, other.encode()))
    with pytest.raises(CorruptLog, match="reads back changed"):
        log.write_snapshot(end, {"a": b"x"})
    with pytest.raises(CorruptLog):
        log.sync()


def test_a_damaged_older_snapshot_does_not_hold_the_log_back() -> None:
    """Log is kept for snapshots that can be used; below the start one is no snapshot any more."""
    disk = MemoryDisk()
    log = open_log(disk, segment_bytes=400)
    positions = [put(log, b"%d" % number * 300) for number in range(5)]
    log.write_snapshot(positions[0], {"a": b"0"})
    log.write_snapshot(positions[4], {"a": b"4"})
    flip(disk, f"{generation_path(log)}/{layout.snapshot_name(positions[0])}", 50)
    assert [info.position for info in log.snapshots()] == positions[4:]
    assert log.discard(1 << 40) == positions[3]
    assert [info.position for info in log.snapshots()] == positions[4:]
    assert log.snapshot_damage == []


def test_a_log_whose_snapshots_were_deleted_under_it_says_so() -> None:
    """With its start discarded a log without snapshots is no log."""
    disk = MemoryDisk()
    log = open_log(disk, segment_bytes=400)
    positions = [put(log, b"%d" % number * 300) for number in range(5)]
    log.write_snapshot(positions[4], {"a": b"4"})
    assert log.discard(1 << 40) > 0
    log._view.snapshots.clear()
    with pytest.raises(CorruptLog, match="no snapshot, and the log starts at"):
        log.snapshots()


def test_dump_shows_misplaced_segments_and_damage_inside_sealed_ones() -> None:
    """What an opening would find only on reading is in the verdict of a dump."""
    disk = MemoryDisk()
    log = killed(disk, 4)
    flip(disk, segment_path(log), 200)
    *_, verdict = inspect(disk, DIRECTORY)
    assert not verdict["ok"]
    assert "wrong checksum of a record body" in verdict["reason"]

    flip(disk, segment_path(log), 200)
    data = content(disk, segment_path(log))
    layout.write_new(disk, segment_path(log, 7), data)
    foreign = MemoryDisk()
    other = killed_by(foreign, b"another log's id")
    layout.write_new(disk, segment_path(log, 9), content(foreign, segment_path(other)))
    verdicts = [i["verdict"] for i in inspect(disk, DIRECTORY) if i["kind"] == "segment"]
    assert "the segment belongs to position 0" in verdicts
    assert "the segment belongs to another log" in verdicts


def killed_by(disk: MemoryDisk, log_id: bytes) -> FencedLog:
    log = open_log(disk, create_log_id=log_id)
    put(log, b"theirs")
    return log


def test_a_full_disk_of_its_own_kind_is_told_with_the_size() -> None:
    """DiskFull names how much was asked for."""
    disk = MemoryDisk(capacity=300_000)
    log = open_log(disk)
    with pytest.raises(DiskFull, match="7000000 bytes"):
        log.reserve(7_000_000)
