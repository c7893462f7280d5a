"""The writing end: groups, positions, room, and what happens after a failure."""

from __future__ import annotations

import errno
from itertools import pairwise
from zlib import crc32

import pytest

from oncemq.errors import CorruptLog, DiskFull, StorageError
from oncemq.limits import RECORD_BYTES_MAX, RECORD_META_BYTES_MAX, RESERVE_MARGIN_BYTES
from oncemq.sim.disk.disk import SimDisk
from oncemq.storage import layout
from oncemq.storage.framing import COMMIT_BYTES, HEADER_BYTES, SEGMENT_HEADER_BYTES
from oncemq.storage.log import FencedLog, LogIdentity, create, hold_lock, identity
from oncemq.storage.memory import MemoryDisk
from oncemq.storage.view import View, read_latest
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
    put,
    segment_path,
)


def test_positions_are_dense_and_records_come_back() -> None:
    """A record's position is where it lies in the stream, and reading there gives it back."""
    log = open_log(MemoryDisk())
    first = log.append(1, b"meta", b"body")
    second = log.append(199, b"", memoryview(b"view"), crc32(b"view"))
    assert (first, second) == (0, HEADER_BYTES + 8)
    assert log.sync() == log.end == second + HEADER_BYTES + 4 + COMMIT_BYTES

    one, two = log.read(0, 1000)
    assert (one.position, one.end, one.type, one.meta, one.body) == (0, second, 1, b"meta", b"body")
    assert (two.position, two.type, two.meta, two.body_crc) == (second, 199, b"", crc32(b"view"))
    assert one.trusted


def test_nothing_is_read_above_the_durable_end() -> None:
    """A record is not there for anybody before its sync."""
    log = open_log(MemoryDisk())
    put(log, b"one")
    log.append(1, b"", b"two")

    assert bodies(log) == [b"one"]
    assert log.durable_end < log.end


def test_read_gives_at_least_one_record_and_then_no_more_than_asked() -> None:
    """A reader with a small budget still moves on, record by record."""
    log = open_log(MemoryDisk())
    big = bytes(200_000)
    put(log, b"a", big, b"c")
    position, seen = 0, []
    while records := log.read(position, 1):
        assert len(records) == 1
        seen.append(bytes(records[0].body))
        position = records[0].end

    assert seen == [b"a", big, b"c"]
    assert [bytes(r.body) for r in log.read(0, 100)] == [b"a"]
    assert [bytes(r.body) for r in log.read(0, 1 << 20, end=30)] == [b"a"]


def test_read_goes_on_over_commit_frames_and_segments() -> None:
    """Where a segment ends in a frame that is not handed out, the next segment's record is."""
    log = open_log(MemoryDisk(), segment_bytes=200)
    put(log, b"x" * 150)
    end = log.read(0, 1)[-1].end
    put(log, b"y" * 150)

    assert [bytes(r.body) for r in log.read(end, 1)] == [b"y" * 150]


def test_a_position_before_the_start_is_a_bug_of_the_caller() -> None:
    """Asking for what cannot exist is an error of the caller, not damage."""
    log = open_log(MemoryDisk())
    put(log, b"one")
    with pytest.raises(ValueError, match="before the start"):
        log.read(-1, 100)


def test_a_position_inside_a_record_is_not_read_as_one() -> None:
    """Only record boundaries can be read from."""
    log = open_log(MemoryDisk())
    put(log, b"one", b"two")
    with pytest.raises(CorruptLog):
        log.read(1, 100)


def test_a_large_group_is_written_early_and_committed_once() -> None:
    """A group over the buffer's bound reaches the file before the sync, and counts only with it."""
    disk = MemoryDisk()
    log = open_log(disk)
    body = bytes(range(256)) * 4096
    for _ in range(6):
        log.append(1, b"", body)
    assert len(content(disk, segment_path(log))) > 3 * len(body)
    crash(disk, log)
    again = open_log(disk)

    assert bodies(again) == []
    assert again.cut_report is not None
    for _ in range(6):
        again.append(1, b"", body)
    again.sync()
    assert bodies(again) == [body] * 6


@pytest.mark.parametrize(
    ("kind", "meta", "body"),
    [
        (0, b"", b"x"),
        (200, b"", b"x"),
        (1, b"", b""),
        (1, b"", memoryview(bytes(RECORD_BYTES_MAX + 1))),
        (1, bytes(RECORD_META_BYTES_MAX + 1), b""),
    ],
    ids=["type 0", "type of the log", "empty", "too long", "meta too long"],
)
def test_impossible_records_are_refused(kind: int, meta: bytes, body: bytes) -> None:
    """What could not be read back is not taken, and the log goes on."""
    log = open_log(MemoryDisk())
    with pytest.raises(ValueError, match=r"meta|record"):
        log.append(kind, meta, body)
    put(log, b"fine")
    assert bodies(log) == [b"fine"]


def test_a_turn_never_spans_segments_and_a_segment_is_not_cut_short() -> None:
    """A new segment begins between groups, when the next group would pass the size."""
    disk = MemoryDisk()
    log = open_log(disk, segment_bytes=1000)
    for number in range(10):
        put(log, b"%d" % number * 200, b"%d" % number * 200)
    firsts = layout.segments_in(disk.list(generation_path(log)))

    assert len(firsts) > 3
    for first, successor in pairwise(firsts):
        length = len(content(disk, segment_path(log, first)))
        assert length == SEGMENT_HEADER_BYTES + successor - first
    assert len(bodies(log)) == 20
    assert [bodies(log, first)[0][:1] for first in firsts] == [b"0", b"2", b"4", b"6", b"8"]


def test_attesting_is_done_once() -> None:
    """An idle log vouches for its last group by one frame, not by one each time it is asked."""
    log = open_log(MemoryDisk())
    assert log.attested == log.durable_end
    put(log, b"one")
    assert log.attested < log.durable_end
    log.attest()
    assert log.attested == log.durable_end == log.end
    end = log.end
    log.attest()
    assert log.sync() == end
    put(log, b"two")
    assert log.attested == end


def test_attesting_waits_for_the_sync_of_a_group() -> None:
    """A group that is not synced cannot be vouched for."""
    log = open_log(MemoryDisk())
    put(log, b"one")
    end = log.durable_end
    log.append(1, b"", b"two")
    log.attest()
    assert log.durable_end == end


def test_a_clean_close_attests_and_gives_room_back() -> None:
    """After a clean stop the last group is vouched for and the file holds nothing else."""
    disk = MemoryDisk()
    log = open_log(disk)
    put(log, b"one")
    end, path = log.durable_end, segment_path(log)
    log.close()
    log.close()

    assert len(content(disk, path)) == SEGMENT_HEADER_BYTES + end + COMMIT_BYTES
    flip(disk, path, SEGMENT_HEADER_BYTES + HEADER_BYTES)
    with pytest.raises(CorruptLog):
        open_log(disk)


def test_an_unclean_close_only_lets_go() -> None:
    """close(clean=False) writes nothing."""
    disk = MemoryDisk()
    log = open_log(disk)
    put(log, b"one")
    before = content(disk, segment_path(log))
    path = segment_path(log)
    log.close(clean=False)

    assert before == content(disk, path)
    assert bodies(open_log(disk)) == [b"one"]


def test_a_closed_log_refuses_every_call() -> None:
    """Using a log after its close is an error that says so."""
    log = open_log(MemoryDisk())
    log.close()
    for call in (log.sync, log.attest, log.check_fence, log.snapshots, lambda: log.reserve(1)):
        with pytest.raises(StorageError, match="closed"):
            call()
    with pytest.raises(StorageError, match="closed"):
        log.append(1, b"", b"x")


@pytest.mark.parametrize("call", ["write", "sync"])
def test_a_failed_write_or_sync_is_final(call: str) -> None:
    """After an error of the disk nothing is tried again: what is durable is unknown."""
    disk = HookedDisk()
    log = open_log(disk)
    put(log, b"one")
    calls = []
    log.append(1, b"", b"two")
    disk.hook = failing(call)
    with pytest.raises(OSError, match="Input/output error"):
        log.sync()

    disk.hook = lambda name, _path: calls.append(name)
    for again in (log.sync, log.attest, lambda: log.read(0, 10), lambda: log.reserve(1)):
        with pytest.raises(StorageError, match="failed before"):
            again()
    log.close()
    assert not {"write", "sync"} & set(calls)
    assert bodies(open_log(disk))[:1] == [b"one"]


@pytest.mark.parametrize("call", ["write", "sync"])
def test_nobody_reads_a_group_whose_sync_failed(call: str) -> None:
    """The page cache shows it and a reader's own sync succeeds, but no disk has it: it is cut off."""
    disk = SimDisk()
    log = open_log(disk)
    put(log, b"one")
    before = read_latest(disk, DIRECTORY)
    log.append(1, b"", b"two" * 400)
    disk.inject(call, errno.EIO, written=1 << 20)
    with pytest.raises(OSError, match="Input/output error"):
        log.sync()
    after = read_latest(disk, DIRECTORY, before)

    assert before is not None
    assert after is not None
    assert after.end == before.end


def test_a_reader_that_saw_a_group_too_early_forgets_it() -> None:
    """It looked between write and sync; the sync failed: its next look ends before that group."""
    disk = SimDisk()
    log = open_log(disk)
    end = put(log, b"one")
    seen: list[View | None] = []
    disk.inject("sync", errno.EIO)
    log.append(1, b"", b"two")

    def look(kind: str, _path: str) -> None:
        if kind == "sync" and not seen:
            seen.append(None)
            seen[0] = read_latest(disk, DIRECTORY)

    disk.observer = look
    with pytest.raises(OSError, match="Input/output error"):
        log.sync()
    early = seen[0]
    assert early is not None
    assert early.end > end
    again = read_latest(disk, DIRECTORY, early)
    assert again is not None
    assert again.end == end


def test_an_error_of_the_fence_check_is_final() -> None:
    """A directory that cannot be listed cannot be trusted."""
    disk = HookedDisk()
    log = open_log(disk)
    disk.hook = failing("list")
    with pytest.raises(OSError, match="Input/output error"):
        log.check_fence()
    with pytest.raises(StorageError, match="failed before"):
        log.check_fence()


def test_room_is_found_before_a_turn_and_a_full_disk_refuses_it_whole() -> None:
    """With no room the turn is refused, reads go on, and work resumes when room returns."""
    disk = MemoryDisk(capacity=1_000_000)
    log = open_log(disk)
    put(log, b"one")
    with pytest.raises(DiskFull):
        log.reserve(2_000_000)
    assert bodies(log) == [b"one"]

    disk.capacity = 9_000_000
    put(log, bytes(2_000_000))
    assert len(bodies(log)) == 2


def test_the_margin_serves_control_records_on_a_full_disk() -> None:
    """After DiskFull the records that only keep things going still find room."""
    disk = MemoryDisk()
    log = open_log(disk)
    put(log, b"one")
    disk.capacity = disk.used()
    with pytest.raises(DiskFull):
        log.reserve(RESERVE_MARGIN_BYTES + 8_000_000)
    log.append(1, b"", bytes(RESERVE_MARGIN_BYTES - HEADER_BYTES - 2 * COMMIT_BYTES))
    log.sync()
    log.attest()
    assert len(bodies(log)) == 2


def test_a_full_disk_at_the_step_to_a_new_segment_leaves_the_old_one_going() -> None:
    """No half-made segment stays behind: its name would say that the old one ended there."""
    disk = HookedDisk()
    log = open_log(disk, segment_bytes=1000)
    put(log, b"x" * 900)
    for call, part in [("create", ".log"), ("reserve", ".log"), ("sync", ".log")]:
        disk.hook = failing(call, part, errno.ENOSPC)
        with pytest.raises(DiskFull):
            log.reserve(500)
        assert layout.segments_in(disk.list(generation_path(log))) == [0]
        log.append(1, b"", call.encode())
        log.sync()
    disk.hook = failing("sync_directory", "gen-", errno.ENOSPC)
    with pytest.raises(DiskFull):
        log.reserve(500)
    put(log, b"y" * 500)
    crash(disk, log)
    again = open_log(disk)
    assert [b[:6] for b in bodies(again)] == [b"x" * 6, b"create", b"reserv", b"sync", b"y" * 6]


@pytest.mark.parametrize("call", ["create", "write", "truncate"])
def test_any_other_error_at_the_step_to_a_new_segment_is_final(call: str) -> None:
    """Only a full disk is survived."""
    disk = HookedDisk()
    log = open_log(disk, segment_bytes=1000)
    put(log, b"x" * 900)
    disk.hook = failing(call, ".log")
    with pytest.raises(OSError, match="Input/output error"):
        log.reserve(500)
    with pytest.raises(StorageError, match="failed before"):
        log.reserve(500)


def test_an_error_of_reserve_that_is_not_a_full_disk_is_final() -> None:
    """EIO from fallocate ends the log."""
    disk = HookedDisk()
    log = open_log(disk)
    disk.hook = failing("reserve")
    with pytest.raises(OSError, match="Input/output error"):
        log.reserve(5_000_000)
    with pytest.raises(StorageError, match="failed before"):
        log.append(1, b"", b"x")


def test_damage_in_a_sealed_segment_is_found_when_it_is_read() -> None:
    """Bodies that this process did not write are checked; the error names file and offset."""
    disk = MemoryDisk()
    log = open_log(disk, segment_bytes=1000)
    for _ in range(4):
        put(log, b"x" * 900)
    path = segment_path(log)
    crash(disk, log)
    flip(disk, path, SEGMENT_HEADER_BYTES + HEADER_BYTES + 100)
    log = open_log(disk, segment_bytes=1000)
    with pytest.raises(CorruptLog) as caught:
        list(log.replay(0))
    assert caught.value.path == segment_path(log)
    assert caught.value.offset == SEGMENT_HEADER_BYTES


def test_many_segments_are_read_with_few_open_files() -> None:
    """Old segments are opened as needed and closed again."""
    disk = MemoryDisk()
    log = open_log(disk, segment_bytes=100)
    for number in range(40):
        put(log, b"%02d" % number * 50)
    assert len(bodies(log)) == 40
    assert len(log._reader._files) <= 16


def test_create_makes_a_log_once() -> None:
    """The second creation returns the identity of the first."""
    disk = MemoryDisk()
    made = create(disk, "a/b/c", log_id=LOG_ID, owner=OWNER)

    assert made == LogIdentity(LOG_ID, LOG_ID, 1, 0)
    assert made == create(disk, "a/b/c", log_id=bytes(16), owner=OWNER)
    with pytest.raises(ValueError, match="16 bytes"):
        create(disk, "x", log_id=b"short", owner=OWNER)


def test_create_passes_over_what_an_earlier_attempt_left() -> None:
    """A generation without manifest and frames is nothing, and its number is not used again."""
    disk = MemoryDisk()
    for path in ("data", DIRECTORY, f"{DIRECTORY}/{layout.generation_name(4)}"):
        disk.make_directory(path)
    assert identity(disk, DIRECTORY) is None
    assert create(disk, DIRECTORY, log_id=LOG_ID, owner=OWNER).highest_generation == 5


def test_two_creators_do_not_make_two_logs() -> None:
    """While one process creates the log, another gets LogInUse with the hint to try again."""
    disk = HookedDisk()
    caught = []

    def second(call: str, path: str) -> None:
        if call == "rename":
            disk.hook = HookedDisk.hook
            try:
                create(disk, DIRECTORY, log_id=bytes(16), owner=OWNER)
            except StorageError as error:
                caught.append(error.code)

    disk.hook = second
    assert create(disk, DIRECTORY, log_id=LOG_ID, owner=OWNER).log_id == LOG_ID
    assert caught == ["log_in_use"]
    assert create(disk, DIRECTORY, log_id=bytes(16), owner=OWNER).log_id == LOG_ID


def test_identity_does_not_write() -> None:
    """Looking at a directory, with or without a log, changes nothing in it."""
    disk = MemoryDisk()
    assert identity(disk, DIRECTORY) is None
    assert not disk.exists("data")
    log = open_log(disk)
    put(log, b"one")
    names = disk.list(generation_path(log))
    assert identity(disk, DIRECTORY) == LogIdentity(LOG_ID, LOG_ID, 2, log.durable_end)
    assert names == disk.list(generation_path(log))


def test_an_open_without_a_log_says_so() -> None:
    """A directory without a log is not opened, and not made."""
    disk = MemoryDisk()
    with pytest.raises(StorageError, match="no log"):
        FencedLog.open(disk, DIRECTORY, generation=None, owner=OWNER)
    assert not disk.exists("data")


def test_the_lock_of_the_last_owner_proves_it_dead() -> None:
    """hold_lock gives a lock exactly when the owner of the highest generation is gone."""
    disk = MemoryDisk()
    assert hold_lock(disk, DIRECTORY) is None
    log = open_log(disk)
    assert hold_lock(disk, DIRECTORY) is None
    path = f"{generation_path(log)}/{layout.LOCK}"
    log.close()
    lock = hold_lock(disk, DIRECTORY)
    assert lock is not None
    assert hold_lock(disk, DIRECTORY) is None
    lock.release()
    disk.unlink(path)
    assert hold_lock(disk, DIRECTORY) is not None
