"""Opening: what is a torn tail, what is damage, and that the new generation stands by itself."""

from __future__ import annotations

import errno
import posixpath
from dataclasses import replace

import pytest

from oncemq.errors import CorruptLog, DiskFull, StorageError, UnsupportedFormat
from oncemq.storage import document, layout
from oncemq.storage.document import Manifest
from oncemq.storage.framing import (
    COMMIT_BYTES,
    HEADER_BYTES,
    SEGMENT_HEADER_BYTES,
    SegmentHeader,
    decode_commit,
    encode_commit,
    encode_segment_header,
    log_seed,
)
from oncemq.storage.log import FencedLog
from oncemq.storage.memory import MemoryDisk
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


def killed(*groups: bytes, segment_bytes: int = 1 << 16) -> tuple[MemoryDisk, str, int]:
    """A log whose owner was killed: (disk, path of the first segment, durable end)."""
    disk = MemoryDisk()
    log = open_log(disk, segment_bytes=segment_bytes)
    for group in groups:
        put(log, group)
    path, end = segment_path(log), log.durable_end
    crash(disk, log)
    return disk, path, end


def test_a_killed_owner_loses_nothing_that_was_synced() -> None:
    """Every synced record is there after a kill, and the log goes on at the same position."""
    disk, _, end = killed(b"one", b"two")
    log = open_log(disk)

    assert log.cut_report is None
    assert (end, [b"one", b"two"]) == (log.end, bodies(log))
    put(log, b"three")
    assert bodies(log) == [b"one", b"two", b"three"]


def test_a_last_group_torn_at_any_byte_is_cut_and_reported() -> None:
    """Wherever the file ends inside the last group, exactly that group is cut, and the cut is reported."""
    disk, path, end = killed(b"one", b"two", b"last")
    whole = content(disk, path)[: SEGMENT_HEADER_BYTES + end]
    begin = end - COMMIT_BYTES - HEADER_BYTES - len(b"m" + b"last")
    for length in range(begin, end):
        disk, path, _ = killed(b"one", b"two", b"last")
        overwrite(disk, path, whole[: SEGMENT_HEADER_BYTES + length])
        log = open_log(disk)
        assert bodies(log) == [b"one", b"two"]
        assert log.end == begin
        if length == begin:
            assert log.cut_report is None
        else:
            assert log.cut_report is not None
            assert log.cut_report.from_position == begin
            assert begin < log.cut_report.to_position <= length
        put(log, b"next")
        crash(disk, log)
        again = open_log(disk)
        assert again.cut_report is None
        assert bodies(again) == [b"one", b"two", b"next"]


def test_a_last_group_with_any_damaged_byte_is_cut() -> None:
    """A sector of the last group that was not written takes the whole group with it."""
    disk, path, end = killed(b"one", b"last")
    begin = end - COMMIT_BYTES - HEADER_BYTES - len(b"m" + b"last")
    for at in range(begin, end):
        disk, path, _ = killed(b"one", b"last")
        flip(disk, path, SEGMENT_HEADER_BYTES + at)
        log = open_log(disk)
        assert (bodies(log), log.end) == ([b"one"], begin)
        assert log.cut_report is not None
        assert log.cut_report.nbytes > 0


def test_damage_in_any_byte_of_an_attested_group_stops() -> None:
    """What a later frame vouches for is never cut: the error names file, offset and witness."""
    disk, path, end = killed(b"one", b"two")
    for at in range(end - COMMIT_BYTES - HEADER_BYTES - 4):
        disk, path, _ = killed(b"one", b"two")
        flip(disk, path, SEGMENT_HEADER_BYTES + at)
        with pytest.raises(CorruptLog, match="attests all below") as caught:
            open_log(disk)
        assert (path, SEGMENT_HEADER_BYTES) == (caught.value.path, caught.value.offset)
        assert layout.generations(disk, DIRECTORY)[-1] == 2


def test_an_attesting_frame_protects_the_last_group() -> None:
    """After idleness the last group is not torn any more, it is damaged."""
    disk = MemoryDisk()
    log = open_log(disk)
    put(log, b"one")
    log.attest()
    path = segment_path(log)
    crash(disk, log)
    flip(disk, path, SEGMENT_HEADER_BYTES + 3)
    with pytest.raises(CorruptLog, match="attests all below"):
        open_log(disk)


def test_an_attesting_frame_that_is_torn_costs_nothing() -> None:
    """The frame that vouches is itself not vouched for: without it the records stand."""
    disk = MemoryDisk()
    log = open_log(disk)
    end = put(log, b"one")
    log.attest()
    path = segment_path(log)
    crash(disk, log)
    flip(disk, path, SEGMENT_HEADER_BYTES + end + 30)
    log = open_log(disk)

    assert (bodies(log), log.end) == ([b"one"], end)
    assert log.cut_report is not None


def test_what_an_opening_took_over_is_attested() -> None:
    """The manifest vouches for every byte below the cut."""
    disk = MemoryDisk()
    log = open_log(disk)
    end = put(log, b"one")
    crash(disk, log)
    log = open_log(disk)
    path = segment_path(log)
    crash(disk, log)
    for at in range(end):
        flip(disk, path, SEGMENT_HEADER_BYTES + at)
        with pytest.raises(CorruptLog):
            open_log(disk)
        flip(disk, path, SEGMENT_HEADER_BYTES + at)
    overwrite(disk, path, content(disk, path)[: SEGMENT_HEADER_BYTES + end - 1])
    with pytest.raises(CorruptLog, match="manifest attests"):
        open_log(disk)


@pytest.mark.parametrize("tail", [bytes(5000), b"", bytes(1)], ids=["zeros", "nothing", "one zero"])
def test_reserved_space_is_not_a_torn_tail(tail: bytes) -> None:
    """Zeros behind the last group were never a record: nothing is reported."""
    disk, path, end = killed(b"one")
    overwrite(disk, path, content(disk, path)[: SEGMENT_HEADER_BYTES + end] + tail)
    log = open_log(disk)

    assert (bodies(log), log.cut_report) == ([b"one"], None)


def test_random_bytes_behind_the_last_group_are_cut() -> None:
    """Garbage that no frame follows is a torn tail, reported with its length."""
    disk, path, end = killed(b"one")
    garbage = bytes(range(1, 200)) * 3
    overwrite(disk, path, content(disk, path)[: SEGMENT_HEADER_BYTES + end] + garbage + bytes(9))
    log = open_log(disk)

    assert log.cut_report is not None
    assert (log.cut_report.from_position, log.cut_report.nbytes) == (end, len(garbage))


def test_an_old_group_copied_behind_the_last_one_does_not_count() -> None:
    """Frames are valid at their own position only."""
    disk, path, end = killed(b"one", b"two")
    whole = content(disk, path)[: SEGMENT_HEADER_BYTES + end]
    overwrite(disk, path, whole + whole[SEGMENT_HEADER_BYTES:])
    log = open_log(disk)

    assert bodies(log) == [b"one", b"two"]
    assert log.cut_report is not None


def test_frames_of_another_log_do_not_count() -> None:
    """A tail that another log wrote at the same place is no record of this one."""
    disk, path, end = killed(b"one")
    other = MemoryDisk()
    log = open_log(other, create_log_id=b"another log's id")
    put(log, b"one")
    put(log, b"not ours")
    foreign = content(other, segment_path(log))
    ours = content(disk, path)[: SEGMENT_HEADER_BYTES + end]
    overwrite(disk, path, ours + foreign[len(ours) :])

    assert bodies(open_log(disk)) == [b"one"]


def test_groups_must_follow_from_each_other() -> None:
    """A group from another history at the right position is not taken: the chain differs."""
    disk, path, end = killed(b"one", b"two")
    other, other_path, _ = killed(b"ONE", b"two")
    ours = content(disk, path)[: SEGMENT_HEADER_BYTES + end]
    theirs = content(other, other_path)[: SEGMENT_HEADER_BYTES + end]
    half = SEGMENT_HEADER_BYTES + end // 2
    overwrite(disk, path, ours[:half] + theirs[half:])
    log = open_log(disk)

    assert bodies(log) == [b"one"]
    assert log.cut_report is not None
    assert "does not follow" in log.cut_report.reason


@pytest.mark.parametrize("fields", [{"first": 1}, {"generation": 1}, {"generation": 3}])
def test_a_commit_frame_must_close_its_own_group_in_its_own_generation(
    fields: dict[str, int],
) -> None:
    """A frame with right checksums that tells another story closes nothing."""
    disk, path, end = killed(b"one", b"two")
    at = SEGMENT_HEADER_BYTES + end - COMMIT_BYTES
    data = content(disk, path)
    commit = decode_commit(data, at, end - COMMIT_BYTES, log_seed(LOG_ID))
    forged = encode_commit(replace(commit, **fields), log_seed(LOG_ID))
    overwrite(disk, path, data[:at] + forged)

    assert bodies(open_log(disk)) == [b"one"]


def test_an_opening_asks_for_the_room_that_it_needs() -> None:
    """What the last owner had only reserved is not copied: a nearly full disk can be opened."""
    disk = MemoryDisk()
    log = open_log(disk, segment_bytes=1 << 20)
    put(log, b"one")
    crash(disk, log)
    reserved = len(content(disk, segment_path(log)))
    assert reserved > 1 << 20
    disk.capacity = disk.used() + reserved // 2

    assert bodies(open_log(disk)) == [b"one"]


def test_bytes_of_a_torn_tail_are_not_taken_over() -> None:
    """The copy ends at the cut: no old byte can come back behind a shorter new group."""
    disk, path, end = killed(b"one")
    overwrite(disk, path, content(disk, path)[: SEGMENT_HEADER_BYTES + end] + b"x" * 5000)
    log = open_log(disk)
    assert not content(disk, segment_path(log))[SEGMENT_HEADER_BYTES + end :].strip(b"\0")
    put(log, b"two")
    crash(disk, log)
    assert open_log(disk).cut_report is None


def test_a_taken_over_segment_without_groups_is_attested_too() -> None:
    """The manifest lists it, so its head was synced: damage to the head is no unfinished making."""
    disk, log, firsts = rolled()
    overwrite(disk, segment_path(log, firsts[-1]), b"")
    log = open_log(disk)
    crash(disk, log)
    flip(disk, segment_path(log, firsts[-1]), 20)
    with pytest.raises(CorruptLog, match="segment header"):
        open_log(disk)


def rolled() -> tuple[MemoryDisk, FencedLog, list[int]]:
    """A killed log of several segments: (disk, its last owner, first positions)."""
    disk = MemoryDisk()
    log = open_log(disk, segment_bytes=400)
    for number in range(8):
        put(log, b"%d" % number * 150)
    firsts = layout.segments_in(disk.list(generation_path(log)))
    assert len(firsts) >= 4
    crash(disk, log)
    return disk, log, firsts


def test_a_missing_segment_stops() -> None:
    """The first, a middle or the last listed segment gone: never a shorter log."""
    for number in (0, 1, 2):
        disk, log, firsts = rolled()
        disk.unlink(segment_path(log, firsts[number]))
        with pytest.raises(CorruptLog):
            open_log(disk)
    disk, log, firsts = rolled()
    crash(disk, open_log(disk))
    disk.unlink(f"{DIRECTORY}/{layout.generation_name(3)}/{layout.segment_name(firsts[-1])}")
    with pytest.raises(CorruptLog, match="the segment is missing"):
        open_log(disk)


def test_swapped_segments_stop() -> None:
    """A segment under another one's name is found by its head."""
    disk, log, firsts = rolled()
    one, two = (content(disk, segment_path(log, first)) for first in firsts[:2])
    overwrite(disk, segment_path(log, firsts[0]), two)
    overwrite(disk, segment_path(log, firsts[1]), one)
    with pytest.raises(CorruptLog, match="belongs to position"):
        open_log(disk)


def test_a_segment_of_another_log_stops() -> None:
    """A segment with another log_id does not belong here, under any name."""
    disk, log, firsts = rolled()
    data = content(disk, segment_path(log, firsts[1]))
    head = encode_segment_header(SegmentHeader(bytes(16), 2, firsts[1], 0))
    overwrite(disk, segment_path(log, firsts[1]), head + data[SEGMENT_HEADER_BYTES:])
    with pytest.raises(CorruptLog, match="another log"):
        open_log(disk)


@pytest.mark.parametrize("number", [0, 1, -1])
def test_a_segment_from_another_history_stops(number: int) -> None:
    """The chain in a segment's head must be the one behind its predecessor."""
    disk, log, firsts = rolled()
    first = firsts[number]
    data = content(disk, segment_path(log, first))
    head = encode_segment_header(SegmentHeader(LOG_ID, 2, first, 12345))
    overwrite(disk, segment_path(log, first), head + data[SEGMENT_HEADER_BYTES:])
    with pytest.raises(CorruptLog):
        crash(disk, open_log(disk))
        list(open_log(disk).replay(0))


def test_a_sealed_segment_that_ends_early_or_late_stops() -> None:
    """A newer segment attests its predecessor to the last byte."""
    for edit, match in [
        (lambda data: data[:-1], "ends before"),
        (lambda data: data + b"x", "bytes behind"),
        (lambda data: data[:-4] + b"\1\2\3\4", "checksum"),
        (lambda data: data[:10], "segment header"),
    ]:
        disk, log, firsts = rolled()
        path = segment_path(log, firsts[1])
        overwrite(disk, path, edit(content(disk, path)))
        with pytest.raises(CorruptLog, match=match):
            open_log(disk)
    disk, log, firsts = rolled()
    overwrite(disk, segment_path(log), content(disk, segment_path(log)) + bytes(100))
    assert len(bodies(open_log(disk))) == 8, "reserved zeros that were not given back do no harm"


def test_a_segment_whose_making_was_cut_short_is_made_again() -> None:
    """An empty or half-headed newest segment holds nothing: the log goes on at its place."""
    for length in (0, 1, 63):
        disk, log, firsts = rolled()
        last = segment_path(log, firsts[-1])
        end = firsts[-1]
        overwrite(disk, last, content(disk, last)[:length])
        again = open_log(disk)
        assert (again.end, again.cut_report, len(bodies(again))) == (end, None, 7)
        put(again, b"next")
        crash(disk, again)
        assert bodies(open_log(disk))[7:] == [b"next"]


def test_a_damaged_head_of_a_segment_with_groups_stops() -> None:
    """The head was synced before the first group was written: this is no torn tail."""
    disk, log, firsts = rolled()
    flip(disk, segment_path(log, firsts[-1]), 20)
    with pytest.raises(CorruptLog, match="segment header"):
        open_log(disk)


def test_a_damaged_manifest_stops_and_no_older_generation_is_taken() -> None:
    """The highest generation with a manifest is the log, damaged or not."""
    disk, _, _ = killed(b"one")
    crash(disk, open_log(disk))
    flip(disk, f"{DIRECTORY}/{layout.generation_name(3)}/MANIFEST", 40)
    with pytest.raises(CorruptLog, match="manifest"):
        open_log(disk)


def test_frames_without_a_manifest_are_damage() -> None:
    """A generation that wrote frames had a manifest: without it nothing is guessed."""
    disk = MemoryDisk()
    log = open_log(disk)
    put(log, b"one")
    crash(disk, log)
    disk.unlink(f"{generation_path(log)}/MANIFEST")
    with pytest.raises(CorruptLog, match="manifest is missing"):
        open_log(disk)


def test_an_unfinished_generation_is_passed_over_and_its_number_burned() -> None:
    """Files without manifest and own frame are an opening that died; the next one is above it."""
    disk, path, _ = killed(b"one")
    unfinished = f"{DIRECTORY}/{layout.generation_name(7)}"
    disk.make_directory(unfinished)
    file = disk.create(f"{unfinished}/{layout.segment_name(0)}")
    file.write(content(disk, path), 0)
    file = disk.create(f"{unfinished}/{layout.segment_name(9)}")
    log = open_log(disk)

    assert (log.generation, bodies(log)) == (8, [b"one"])
    assert layout.generations(disk, DIRECTORY) == [8]


def test_a_newer_format_is_refused_by_name() -> None:
    """A newer version's manifest is neither damage nor an invitation to fall back."""
    disk, path, _ = killed(b"one")
    manifest = posixpath.join(posixpath.dirname(path), "MANIFEST")
    data = content(disk, manifest)
    overwrite(disk, manifest, data.replace(b"manifest 1 ", b"manifest 2 "))
    with pytest.raises(UnsupportedFormat, match="format 2"):
        open_log(disk)


def edit_manifest(disk: MemoryDisk, path: str, **fields: object) -> None:
    name = posixpath.join(posixpath.dirname(path), "MANIFEST")
    table = document.decode("manifest", content(disk, name), name)
    overwrite(disk, name, document.encode("manifest", {**table, **fields}))


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"generation": 9}, "belongs to generation 9"),
        ({"chain": 4711}, "not those of the manifest"),
        ({"cut": 5}, "commit frame of generation|no group ends at the cut"),
        ({"segments": [[0, 50], [60, 10]]}, "missing"),
        ({"segments": [[0, 50], [0, 50]]}, "do not follow"),
    ],
)
def test_a_manifest_that_disagrees_with_the_files_stops(
    fields: dict[str, object], match: str
) -> None:
    """Manifest and segments must tell one story."""
    disk = MemoryDisk()
    log = open_log(disk)
    put(log, b"one")
    crash(disk, log)
    log = open_log(disk)
    put(log, b"two")
    crash(disk, log)
    edit_manifest(disk, segment_path(log), **fields)
    with pytest.raises(CorruptLog, match=match):
        open_log(disk)


def test_a_manifest_names_its_parent_its_cut_and_its_owner() -> None:
    disk, _, end = killed(b"one")
    log = open_log(disk, generation=40)
    path = f"{generation_path(log)}/MANIFEST"
    manifest = Manifest.decode(content(disk, path), path)

    assert (manifest.parent, manifest.cut, manifest.generation) == (2, end, 40)
    assert (manifest.segments, manifest.owner) == ([(0, end)], OWNER)


def test_where_links_fail_sealed_segments_are_copied() -> None:
    """A file system without hard links gives the same log."""
    for number in (errno.EPERM, errno.EXDEV):
        disk = HookedDisk()
        log = open_log(disk, segment_bytes=400)
        for index in range(8):
            put(log, b"%d" % index * 150)
        log.write_snapshot(log.durable_end, {"part": b"state"})
        crash(disk, log)
        disk.hook = failing("link", "", number, times=100)
        log = open_log(disk)
        assert len(bodies(log)) == 8
        assert log.read_snapshot(log.snapshots()[0]) == {"part": b"state"}


def test_another_error_of_link_ends_the_opening() -> None:
    """Only a file system that has no links is worked around."""
    disk = HookedDisk()
    log = open_log(disk, segment_bytes=400)
    for index in range(8):
        put(log, b"%d" % index * 150)
    crash(disk, log)
    disk.hook = failing("link")
    with pytest.raises(OSError, match="Input/output error"):
        open_log(disk)


def test_no_file_of_an_older_generation_is_changed() -> None:
    """Until the new generation is complete the old one is byte for byte as it was."""
    disk = HookedDisk()
    log = open_log(disk, segment_bytes=400)
    for index in range(8):
        put(log, b"%d" % index * 150)
    old = generation_path(log)
    crash(disk, log)
    before = {name: content(disk, f"{old}/{name}") for name in disk.list(old)}
    looked = []

    def look(call: str, path: str) -> None:
        if call not in ("open", "close") and old not in path and disk.exists(old):
            now = {n: layout.read_file(MemoryView(disk), f"{old}/{n}") for n in disk.list(old)}
            looked.append(now == before)

    disk.hook = look
    open_log(disk)
    assert looked
    assert all(looked)
    assert not disk.exists(old)


class MemoryView(MemoryDisk):
    """The same files without hooks."""

    def __init__(self, disk: MemoryDisk) -> None:
        self.__dict__.update(disk.__dict__)


@pytest.mark.parametrize(
    ("call", "part"),
    [
        ("reserve", layout.PROBE),
        ("create", layout.PROBE),
        ("write", ".log"),
        ("sync", ".log"),
        ("reserve", ".log"),
        ("create", "MANIFEST"),
        ("sync", "MANIFEST"),
        ("create", "LOCK"),
    ],
)
def test_a_full_disk_at_an_opening_leaves_the_old_log_and_the_number(call: str, part: str) -> None:
    """DiskFull takes back what was made; the same grant can be tried again when there is room."""
    disk = HookedDisk()
    log = open_log(disk)
    put(log, b"one")
    crash(disk, log)
    disk.hook = failing(call, part, errno.ENOSPC)
    with pytest.raises(DiskFull):
        open_log(disk, generation=9)
    assert layout.generations(disk, DIRECTORY) == [2]
    assert layout.PROBE not in disk.list(DIRECTORY)
    log = open_log(disk, generation=9)
    assert bodies(log) == [b"one"]


def test_another_error_at_an_opening_is_raised_and_the_next_one_recovers() -> None:
    """An opening that failed anywhere leaves a log that opens."""
    for call in ("create", "write", "reserve", "sync", "rename", "sync_directory"):
        disk = HookedDisk()
        log = open_log(disk)
        put(log, b"one")
        crash(disk, log)
        disk.hook = failing(call)
        with pytest.raises(OSError, match="Input/output error"):
            open_log(disk)
        disk.hook = HookedDisk.hook
        disk.drop_locks()
        assert bodies(open_log(disk)) == [b"one"]


def test_prepare_is_called_before_the_old_owner_is_fenced() -> None:
    """What may fail for other reasons (a socket in use) fails before anything is made."""
    disk, _, _ = killed(b"one")

    def fail() -> None:
        raise StorageError("address in use")

    with pytest.raises(StorageError, match="address in use"):
        open_log(disk, prepare=fail)
    assert layout.generations(disk, DIRECTORY) == [2]
    open_log(disk)


def test_an_empty_log_opens_again_and_again() -> None:
    """Generations without any record follow each other."""
    disk = MemoryDisk()
    for number in range(2, 6):
        log = open_log(disk)
        assert (log.generation, log.end, bodies(log)) == (number, 0, [])
        log.close()
    put(log := open_log(disk), b"one")
    assert bodies(log) == [b"one"]


def test_a_group_of_another_branch_is_damage_when_the_log_is_replayed() -> None:
    """Records may be whole in themselves and still not be those that the log was built on."""
    disks = MemoryDisk(), MemoryDisk()
    logs = [open_log(disk, segment_bytes=1024) for disk in disks]
    for number in range(12):
        for log, fill in zip(logs, (b"a", b"b"), strict=True):
            put(log, fill * 200 + b"%02d" % number)
    paths = [generation_path(log) for log in logs]
    sealed = disks[0].list(paths[0])[0]
    assert sealed.endswith(".log")
    mine, other = (
        layout.read_file(disk, posixpath.join(path, sealed))
        for disk, path in zip(disks, paths, strict=True)
    )
    assert len(mine) == len(other)
    group = 24 + 1 + 202  # the first group's record
    file = disks[0].open(posixpath.join(paths[0], sealed), write=True)
    file.write(other[64 : 64 + group], 64)
    file.close()
    crash(disks[0], logs[0])
    again = open_log(disks[0], segment_bytes=1024)

    with pytest.raises(CorruptLog, match="does not follow") as error:
        bodies(again)
    assert sealed in str(error.value)
