"""Readers of the files: whole groups only, synced, of the newest generation, and no writing."""

from __future__ import annotations

import pytest

from oncemq.errors import CorruptLog, LogInUse, StorageError
from oncemq.storage import layout
from oncemq.storage.log import FencedLog, identity
from oncemq.storage.memory import MemoryDisk
from oncemq.storage.outside_reader import LogReader
from tests.storage.loghelp import (
    DIRECTORY,
    HookedDisk,
    crash,
    flip,
    generation_path,
    open_log,
    put,
    segment_path,
)


def read(disk: MemoryDisk) -> list[bytes]:
    reader = LogReader.open(disk, DIRECTORY)
    try:
        return [bytes(record.body) for record in reader.replay()]
    finally:
        reader.close()


def test_a_reader_sees_whole_groups_of_a_live_log() -> None:
    """What a live owner has written, up to its last whole group; a growing group is not shown."""
    disk = MemoryDisk()
    log = open_log(disk)
    assert read(disk) == []
    put(log, b"one")
    log.append(1, b"", b"two")
    log._writer._write()
    reader = LogReader.open(disk, DIRECTORY)

    assert read(disk) == [b"one"]
    assert (reader.end, reader.generation, reader.start) == (log.durable_end, 2, 0)
    assert reader.cut_report is not None
    assert [bytes(r.body) for r in reader.replay(0)] == [b"one"]


def test_a_reader_writes_nothing_and_syncs_what_it_tells() -> None:
    """It syncs the last segment through its own descriptor; it makes and changes no file."""
    disk = HookedDisk()
    log = open_log(disk)
    put(log, b"one")
    calls = []
    disk.hook = lambda call, path: calls.append((call, path))
    LogReader.open(disk, DIRECTORY)

    assert ("sync", segment_path(log)) in calls
    assert {call for call, _ in calls} <= {"open", "close", "sync", "list"}


def test_a_reader_reads_snapshots() -> None:
    """The newest whole snapshot and what follows it give the state."""
    disk = MemoryDisk()
    log = open_log(disk)
    put(log, b"one")
    log.write_snapshot(log.durable_end, {"a": b"state"})
    put(log, b"two")
    reader = LogReader.open(disk, DIRECTORY)
    (info,) = reader.snapshots()

    assert reader.read_snapshot(info) == {"a": b"state"}
    assert [bytes(r.body) for r in reader.replay(info.position)] == [b"two"]
    flip(disk, f"{generation_path(log)}/{info.parts[0].file}", 0)
    with pytest.raises(CorruptLog):
        reader.read_snapshot(info)


def test_a_reader_without_a_log_says_so() -> None:
    """A missing log is reported as missing, not as damage."""
    with pytest.raises(StorageError, match="no log"):
        LogReader.open(MemoryDisk(), DIRECTORY)


def test_a_reader_finds_damage() -> None:
    """Damage stops a reader like an opening."""
    disk = MemoryDisk()
    log = open_log(disk)
    put(log, b"one")
    put(log, b"two")
    flip(disk, segment_path(log), 70)
    with pytest.raises(CorruptLog, match="attests"):
        LogReader.open(disk, DIRECTORY)


def test_a_reader_waits_for_a_generation_in_the_making() -> None:
    """While a new generation is made a reader prints nothing: the new one decides what counts."""
    disk = MemoryDisk()
    log = open_log(disk)
    put(log, b"one")
    path = f"{DIRECTORY}/{layout.generation_name(3)}"
    disk.make_directory(path)
    assert read(disk) == [b"one"], "its maker is dead: it holds no lock"
    disk.create(f"{path}/LOCK").close()
    assert read(disk) == [b"one"]
    lock = disk.lock(f"{path}/LOCK")
    assert lock is not None
    with pytest.raises(LogInUse, match="being made"):
        LogReader.open(disk, DIRECTORY)
    waited = []

    def wait() -> None:
        waited.append(1)
        if len(waited) == 3:
            lock.release()

    reader = LogReader.open(disk, DIRECTORY, wait=wait)
    assert (len(waited), reader.end) == (3, log.durable_end)
    held = disk.lock(f"{path}/LOCK")
    assert held is not None
    with pytest.raises(LogInUse, match="opened again and again"):
        LogReader.open(disk, DIRECTORY, wait=lambda: None)


def test_a_reader_starts_over_when_a_successor_completes() -> None:
    """A generation that appears while the reader looks is the one it reads."""
    disk = HookedDisk()
    log = open_log(disk)
    put(log, b"one")

    def succeed(call: str, path: str) -> None:
        if call == "sync" and "log" in path:
            disk.hook = HookedDisk.hook
            put(open_log(disk, generation=9), b"two")

    disk.hook = succeed
    reader = LogReader.open(disk, DIRECTORY)
    assert reader.generation == 9
    assert [bytes(r.body) for r in reader.replay()] == [b"one", b"two"]


def test_a_reader_starts_over_when_files_go_away_under_it() -> None:
    """A file that a successor deleted is no damage."""
    for name in ("MANIFEST", ".log"):
        disk = HookedDisk()
        put(open_log(disk), b"one")

        def succeed(call: str, path: str, disk: HookedDisk = disk, name: str = name) -> None:
            if call == "open" and path.endswith(name):
                disk.hook = HookedDisk.hook
                open_log(disk, generation=9)

        disk.hook = succeed
        assert read(disk) == [b"one"]


def test_a_reader_that_was_too_slow_is_told_to_read_again() -> None:
    """When its files are gone the reader reports that, and no damage."""
    disk = MemoryDisk()
    log = open_log(disk)
    put(log, b"one")
    log.write_snapshot(log.durable_end, {"a": b"x"})
    reader = LogReader.open(disk, DIRECTORY)
    (info,) = reader.snapshots()
    open_log(disk, generation=9)

    for call in (
        lambda: list(reader.replay()),
        lambda: reader.read_snapshot(info),
        reader.snapshots,
    ):
        with pytest.raises(StorageError, match="moved on"):
            call()


def test_a_group_that_is_just_being_written_is_not_called_damage() -> None:
    """A reader that saw half of a group looks a second time before it judges."""
    disk = HookedDisk()
    log = open_log(disk)
    put(log, b"one")
    put(log, b"two")
    whole = layout.read_file(disk, segment_path(log))
    flip(disk, segment_path(log), 70)
    reads = []

    class Late(HookedDisk):
        """The same disk; the bytes become whole after the first reading."""

        def open(self, path: str, *, write: bool = False):  # type: ignore[no-untyped-def]
            file = super().open(path, write=write)
            if path.endswith(".log"):
                inner = file.read

                def late(offset: int, length: int) -> bytes:
                    data = inner(offset, length)
                    if length > 1000:
                        reads.append(offset)
                        target = super(HookedDisk, self).open(path, write=True)
                        target.write(whole, 0)
                    return data

                file.read = late
            return file

    late = Late()
    late.__dict__.update({k: v for k, v in disk.__dict__.items() if k != "hook"})
    assert read(late) == [b"one", b"two"]
    assert len(reads) >= 2


def test_identity_while_a_log_is_taken_over() -> None:
    """The highest number in use counts, complete or not: a grant must be above it."""
    disk = MemoryDisk()
    log = open_log(disk)
    put(log, b"one")
    disk.make_directory(f"{DIRECTORY}/{layout.generation_name(30)}")
    found = identity(disk, DIRECTORY)

    assert found is not None
    assert (found.highest_generation, found.end) == (30, log.durable_end)


def test_identity_of_a_log_after_its_owner_was_killed() -> None:
    """Anybody may look at a log without an owner."""
    disk = MemoryDisk()
    log: FencedLog = open_log(disk)
    put(log, b"one")
    crash(disk, log)
    found = identity(disk, DIRECTORY)
    assert found is not None
    assert found.end == log.durable_end
