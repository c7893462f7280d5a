"""The parser of the proof against the storage it judges: same bytes, same verdict, other code."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oncemq.codec import batch as batch_codec
from oncemq.codec import records as record_codec
from oncemq.errors import CorruptLog, StorageError, UnsupportedFormat
from oncemq.proof.parse import batch as parse_batch
from oncemq.proof.parse import records as parse_records
from oncemq.proof.parse.files import OsFiles
from oncemq.proof.parse.frames import Frame
from oncemq.proof.parse.log import Log, LogMoved
from oncemq.proof.verify.sorter import Sorter
from oncemq.runtime.os_disk import OsDisk
from oncemq.storage import framing, layout
from oncemq.storage.log import FencedLog
from oncemq.storage.memory import MemoryDisk
from oncemq.storage.outside_reader import LogReader
from tests.storage.loghelp import (
    DIRECTORY,
    OWNER,
    content,
    failing,
    flip,
    generation_path,
    open_log,
    overwrite,
    put,
    segment_path,
)

Told = list[tuple[int, int, bytes, bytes]]


def by_storage(disk: MemoryDisk) -> tuple[int, int, Told] | str:
    """Start, end and records as storage reads them, or the name of the error."""
    try:
        reader = LogReader.open(disk, DIRECTORY)
        start, end = reader.start, reader.end
        if start:
            reader.snapshots()
        told = [(r.position, r.type, bytes(r.meta), bytes(r.body)) for r in reader.replay()]
    except StorageError as error:
        return type(error).__name__
    return start, end, told


def by_proof(disk: Any, directory: str = DIRECTORY) -> tuple[int, int, Told] | str:
    """The same as the proof reads it."""
    try:
        log = Log.look(disk, directory)
        assert log is not None
        told = [(f.position, f.kind, f.meta, bytes(f.body)) for g in log.groups() for f in g.frames]
    except (CorruptLog, UnsupportedFormat) as error:
        return type(error).__name__
    return log.start, log.end, told


def a_log(choice: random.Random, steps: int) -> MemoryDisk:
    disk = MemoryDisk()
    log = open_log(disk, segment_bytes=2048)
    for _ in range(steps):
        match choice.randrange(10):
            case 0:
                log.attest()
            case 1:
                log.close(clean=choice.random() < 0.5)
                disk.drop_locks()
                log = open_log(disk, segment_bytes=2048)
            case 2:
                log.write_snapshot(log.durable_end, {"part": choice.randbytes(20)})
            case 3:
                log.discard(log.durable_end)
            case _:
                put(log, *[choice.randbytes(choice.randrange(1, 400)) for _ in range(3)])
    return disk


def last_segment(disk: MemoryDisk) -> str:
    """The path of the newest segment of the newest generation."""
    path = f"{DIRECTORY}/{layout.generation_name(layout.generations(disk, DIRECTORY)[-1])}"
    return f"{path}/{layout.segment_name(layout.segments_in(disk.list(path))[-1])}"


@given(st.integers(0, 2**32), st.integers(1, 40))
def test_both_read_the_same_records(number: int, steps: int) -> None:
    """Whatever was done to a log, both see the same start, end and records."""
    disk = a_log(random.Random(number), steps)
    assert by_proof(disk) == by_storage(disk)


@given(st.integers(0, 2**32), st.integers(1, 30), st.floats(0, 1))
def test_both_judge_a_cut_tail_alike(number: int, steps: int, place: float) -> None:
    """Cut anywhere, a last segment is a torn tail for both, or damage for both."""
    disk = a_log(random.Random(number), steps)
    path = last_segment(disk)
    data = content(disk, path)
    overwrite(disk, path, data[: int(len(data) * place)])
    assert by_proof(disk) == by_storage(disk)


@given(st.integers(0, 2**32), st.integers(1, 30), st.integers(0, 2**32), st.integers(1, 255))
def test_both_judge_a_flipped_byte_alike(number: int, steps: int, place: int, mask: int) -> None:
    """A byte that changed anywhere in the newest generation means the same to both."""
    disk = a_log(random.Random(number), steps)
    path = f"{DIRECTORY}/{layout.generation_name(layout.generations(disk, DIRECTORY)[-1])}"
    files = sorted(
        name for name in disk.list(path) if content(disk, f"{path}/{name}") and name != "LOCK"
    )
    name = files[place % len(files)]
    data = content(disk, f"{path}/{name}")
    flip(disk, f"{path}/{name}", place % len(data), mask)
    assert by_proof(disk) == by_storage(disk), (name, place % len(data))


def test_every_cut_of_a_small_log_gives_whole_groups_or_damage() -> None:
    """At each length both agree, and what is told is a prefix of what was written."""
    disk = MemoryDisk()
    log = open_log(disk)
    for number in range(4):
        put(log, b"%d" % number)
    whole = by_proof(disk)
    assert not isinstance(whole, str)
    path = segment_path(log)
    data = content(disk, path)
    verdicts = set()
    for length in range(whole[1] + 100):  # zeros of the reserved room lie behind
        overwrite(disk, path, data[:length])
        told = by_proof(disk)
        assert told == by_storage(disk)
        if not isinstance(told, str):
            assert told[2] == whole[2][: len(told[2])]
        verdicts.add(told if isinstance(told, str) else len(told[2]))
    assert "CorruptLog" in verdicts
    assert 3 in verdicts


def test_the_golden_files_of_format_1_are_read() -> None:
    """What an earlier commit wrote stays readable for the proof too."""
    root = Path(__file__).parents[2] / "golden" / "v1"
    logs = sorted({path.parent.parent for path in root.rglob("MANIFEST")})
    assert logs
    for directory in logs:
        told = by_proof(OsFiles(), str(directory))
        reader = LogReader.open(OsDisk(), str(directory))
        stored = [(r.position, r.type, bytes(r.meta), bytes(r.body)) for r in reader.replay()]
        reader.close()
        assert told == (reader.start, reader.end, stored)


def test_newer_formats_are_refused_by_name() -> None:
    """A later version is no damage."""
    disk = MemoryDisk()
    log = open_log(disk)
    put(log, b"x")
    path = f"{generation_path(log)}/MANIFEST"
    overwrite(disk, path, content(disk, path).replace(b"manifest 1", b"manifest 2", 1))
    with pytest.raises(UnsupportedFormat):
        Log.look(disk, DIRECTORY)


def test_an_unfinished_generation_is_passed_over_and_one_with_records_is_not() -> None:
    """Without a manifest a generation counts as not made, unless it wrote something itself."""
    disk = MemoryDisk()
    log = open_log(disk)
    put(log, b"x")
    log.close()
    disk.drop_locks()
    before = by_proof(disk)
    disk.hook = failing("rename", "MANIFEST")  # type: ignore[attr-defined]
    number = log.generation + 1
    path = f"{DIRECTORY}/{layout.generation_name(number)}"
    disk.make_directory(path)
    assert by_proof(disk) == before
    disk.remove_directory(path)
    later = open_log(disk)
    put(later, b"y")
    disk.unlink(f"{generation_path(later)}/MANIFEST")
    assert by_proof(disk) == "CorruptLog"


def test_a_reader_sees_no_more_than_its_look_while_the_owner_goes_on() -> None:
    """What is written after the look is not told, in the same segment or in later ones."""
    disk = MemoryDisk()
    log = open_log(disk, segment_bytes=2048)
    put(log, b"a" * 100)
    look = Log.look(disk, DIRECTORY)
    assert look is not None
    for _ in range(50):
        put(log, b"b" * 100)
    assert [bytes(f.body) for g in look.groups() for f in g.frames] == [b"a" * 100]
    assert look.still_counts()


def test_files_that_were_compacted_away_are_no_damage() -> None:
    """The reader is told to look again."""
    disk = MemoryDisk()
    log = open_log(disk, segment_bytes=2048)
    for _ in range(50):
        put(log, b"b" * 100)
    look = Log.look(disk, DIRECTORY)
    assert look is not None
    log.write_snapshot(log.durable_end, {"part": b"x"})
    log.discard(log.durable_end)
    with pytest.raises(LogMoved):
        list(look.groups())


def test_a_successor_that_cut_less_keeps_a_look_and_one_that_cut_more_does_not() -> None:
    """Bytes beyond the cut of a manifest are a dead branch, whoever has read them."""
    disk = MemoryDisk()
    log = open_log(disk)
    put(log, b"a")
    look = Log.look(disk, DIRECTORY)
    assert look is not None
    disk.drop_locks()
    successor = open_log(disk)
    assert look.still_counts()
    put(successor, b"b")
    disk.drop_locks()
    open_log(disk)
    assert not look.still_counts()  # not its direct successor: what it cut is not known here


def test_a_live_maker_of_a_successor_is_seen() -> None:
    """An unfinished generation whose lock is held may still leave part of a look behind."""
    disk = MemoryDisk()
    log = open_log(disk)
    put(log, b"a")
    look = Log.look(disk, DIRECTORY)
    assert look is not None
    path = f"{DIRECTORY}/{layout.generation_name(log.generation + 1)}"
    disk.make_directory(path)
    assert not look.being_replaced()
    disk.create(f"{path}/LOCK").close()
    lock = disk.lock(f"{path}/LOCK")
    assert lock is not None
    assert look.being_replaced()
    lock.release()
    assert not look.being_replaced()


def test_locks_of_the_operating_system_are_seen(tmp_path: Path) -> None:
    """The real door tells a held lock from a free one, and lets a free one go again."""
    (tmp_path / "LOCK").write_bytes(b"")
    path = str(tmp_path / "LOCK")
    free = OsFiles().lock(path)
    assert free is not None
    assert OsFiles().lock(path) is None
    free.release()
    again = OsDisk().lock(path)
    assert again is not None
    assert OsFiles().lock(path) is None
    again.release()
    with pytest.raises(FileNotFoundError):
        OsFiles().lock(str(tmp_path / "nothing"))


# --- batches and records -------------------------------------------------------------------------

VALUES = st.lists(
    st.tuples(st.binary(max_size=30), st.one_of(st.none(), st.binary(min_size=1, max_size=9))),
    min_size=1,
    max_size=20,
)


@given(VALUES, st.booleans(), st.booleans(), st.booleans())
def test_batches_are_parsed_alike(
    values: list[tuple[bytes, bytes | None]], with_ids: bool, with_times: bool, with_headers: bool
) -> None:
    """Columns, bodies, keys and hashes come out as they went in."""
    count = len(values)
    batch = batch_codec.build(
        [value for value, _ in values],
        encodings=[number % 3 for number in range(count)],
        keys=[key for _, key in values],
        ids=[b"s%d" % number for number in range(count)] if with_ids else None,
        created_at_ms=list(range(count)) if with_times else None,
        headers=[b"h" * (number % 3) for number in range(count)] if with_headers else None,
    )
    view = parse_batch.parse(batch.raw)
    assert view.count == count
    assert view.ids == batch.ids
    assert view.headers == batch.headers
    assert [parse_batch.split_body(body) for body in view.bodies()] == [
        (number % 3, key, value) for number, (value, key) in enumerate(values)
    ]
    if batch.hashes is not None:
        assert list(batch.hashes) == list(map(parse_batch.body_hash, view.bodies()))


@given(VALUES, st.integers(0, 2**32))
def test_damaged_batches_are_refused_or_whole(
    values: list[tuple[bytes, bytes | None]], place: int
) -> None:
    """A cut batch is a BadBatch; nothing else is raised, nothing is read beyond the end."""
    batch = batch_codec.build([value for value, _ in values], encodings=0)
    raw = bytes(batch.raw)
    with pytest.raises(parse_batch.BadBatch):
        parse_batch.parse(raw[: place % len(raw)])


def frame_of(record: Any) -> Frame:
    """The frame in which a log would hold a record."""
    kind, meta, body, crc = record_codec.encode(record)
    return Frame(0, 1, kind, bytes(meta), memoryview(bytes(body)), crc or 0)


def test_records_that_make_no_sense_are_refused() -> None:
    """Their checksums hold, so a reason is named instead."""
    good = frame_of(record_codec.decode(10, b"", _started(), 0))
    for bad in (
        good._replace(kind=77),
        good._replace(body=memoryview(b"\xc1")),
        good._replace(body=memoryview(b"\x91\x01")),
        good._replace(kind=parse_records.STORED, meta=b"short"),
    ):
        with pytest.raises(parse_records.BadRecord):
            parse_records.parse(bad)


def _started() -> bytes:
    from oncemq.records import LedgerStarted

    return bytes(record_codec.encode(LedgerStarted("g", "t", 0, b"", b"", b"", 0))[2])


# --- sorting -------------------------------------------------------------------------------------


@given(st.lists(st.binary(min_size=4, max_size=4)), st.integers(1, 7))
def test_sorting_in_runs_is_sorting(records: list[bytes], run_records: int) -> None:
    """However small the runs are, all records come back in order."""
    sorter = Sorter(4, run_records=run_records)
    for record in records:
        sorter.add([record])
    assert list(sorter.sorted()) == sorted(records)
    assert sorter.count == len(records)
    sorter.close()


def test_many_runs_become_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of runs is bounded: they are merged on the way."""
    from oncemq.proof.verify import sorter as module

    monkeypatch.setattr(module, "RUNS_MAX", 3)
    sorter = Sorter(2, run_records=1)
    for number in range(50):
        sorter.add([number.to_bytes(2, "big")])
    assert list(sorter.sorted()) == [number.to_bytes(2, "big") for number in range(50)]
    sorter.close()


def test_a_log_of_another_owner_is_opened_by_nobody() -> None:
    """Looking takes no lock and leaves none behind."""
    disk = MemoryDisk()
    log = FencedLog.open(disk, DIRECTORY, generation=None, owner=OWNER, create_log_id=b"x" * 16)
    put(log, b"a")
    assert by_proof(disk) == by_storage(disk)
    put(log, b"b")
    assert log.durable_end > 0


# --- bytes of another branch: every checksum holds, the history is another one -------------------


def two_branches(*, reopen: bool) -> tuple[MemoryDisk, MemoryDisk, list[str]]:
    """Two logs of one id and shape with other bodies, and the paths of their segments."""
    disks = []
    for body in (b"a", b"b"):
        disk = MemoryDisk()
        log = open_log(disk, segment_bytes=2048)
        for _ in range(30):
            put(log, body * 100)
        if reopen:
            log.close()
            disk.drop_locks()
            log = open_log(disk, segment_bytes=2048)
        disks.append(disk)
    path = f"{DIRECTORY}/{layout.generation_name(layout.generations(disk, DIRECTORY)[-1])}"
    names = map(layout.segment_name, layout.segments_in(disk.list(path)))
    return disks[0], disks[1], [f"{path}/{name}" for name in names]


def refusal(disk: MemoryDisk) -> str:
    """Why the proof refuses a log. Storage refuses to read it too."""
    assert by_storage(disk) == "CorruptLog"
    with pytest.raises(CorruptLog) as error:
        log = Log.look(disk, DIRECTORY)
        assert log is not None
        list(log.groups())
    return str(error.value)


def test_a_segment_of_another_branch_does_not_follow() -> None:
    """Its header names the chain before it, and that is not the chain here."""
    disk, other, paths = two_branches(reopen=False)
    assert len(paths) > 2
    overwrite(disk, paths[1], content(other, paths[1]))
    assert "does not follow" in refusal(disk)


def test_all_segments_of_another_branch_are_not_what_was_taken_over() -> None:
    """They agree with each other, but the manifest names the chain at its cut."""
    disk, other, paths = two_branches(reopen=True)
    for path in paths:
        overwrite(disk, path, content(other, path))
    assert "not those of the manifest" in refusal(disk)


def test_a_record_of_another_branch_breaks_the_chain_of_its_group() -> None:
    """A commit frame counts only after the very records that it was written after."""
    disk, other, paths = two_branches(reopen=False)
    frame = 64 + 24 + 1 + 100
    mixed = content(other, paths[0])[:frame] + content(disk, paths[0])[frame:]
    overwrite(disk, paths[0], mixed)
    with pytest.raises(CorruptLog) as error:
        log = Log.look(disk, DIRECTORY)
        assert log is not None
        list(log.groups())
    assert "does not follow from what is before" in str(error.value)


def test_a_record_copied_to_another_place_is_no_record_there() -> None:
    """Its own position gives it away, though its checksums hold."""
    disk, _, paths = two_branches(reopen=False)
    data = content(disk, paths[0])
    frame, group = 24 + 1 + 100, 24 + 1 + 100 + 76
    moved = data[64 : 64 + frame]
    overwrite(disk, paths[0], data[: 64 + group] + moved + data[64 + group + frame :])
    assert "a record of position 0 stands here" in refusal(disk)


def test_bytes_behind_the_end_of_a_sealed_segment_are_damage() -> None:
    """Where the next segment starts, the one before it has ended: only zeros may follow."""
    disk, _, paths = two_branches(reopen=False)
    data = content(disk, paths[0])
    overwrite(disk, paths[0], data + bytes(50))
    assert not isinstance(by_proof(disk), str)
    overwrite(disk, paths[0], data + bytes(50) + b"x")
    assert "where the next one starts" in refusal(disk)


def test_a_group_of_the_wrong_writer_is_no_group() -> None:
    """Behind the cut only this generation has written, below it only older ones."""
    disk = MemoryDisk()
    log = open_log(disk)
    put(log, b"a")
    end = put(log, b"b")
    path = segment_path(log)
    seed = framing.log_seed(log.log_id)
    at = 64 + end - framing.COMMIT_BYTES
    data = content(disk, path)
    frame = framing.decode_commit(data, at, end - framing.COMMIT_BYTES, seed)
    forged = framing.encode_commit(replace(frame, generation=frame.generation - 1), seed)
    overwrite(disk, path, data[:at] + forged + data[at + len(forged) :])
    told = by_proof(disk)
    assert told == by_storage(disk)
    assert not isinstance(told, str)
    assert [body for *_, body in told[2]] == [b"a"]
