"""What a damaged log may do: give the right data, or refuse and say where. Nothing else.

`judge` opens a damaged copy as an owner does and as a reader does, reads everything, and works on
where that is possible. The verdict is one word; wrong or missing data is the word `silent`.
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from typing import Any

from oncemq.codec import records as record_codec
from oncemq.codec import wire
from oncemq.errors import CorruptLog, StorageError, UnsupportedFormat
from oncemq.storage.framing import SEGMENT_HEADER_BYTES
from oncemq.storage.log import FencedLog
from oncemq.storage.memory import MemoryDisk
from oncemq.storage.outside_reader import LogReader
from tests.corruption.specimens import DIRECTORY, LOG_ID, OWNER, Raw, Specimen, copy_of

HARMLESS = "harmless"  # all data is right, and nothing was lost
REPORTED = "reported"  # all promised data is right, and the damage was told
CUT = "cut"  # the last group, which nothing vouched for, was left out, and it was told
REFUSED = "refused"  # a typed error that names file and offset
# The end of the newest file is gone, whole groups with it, and with them all that vouched for them.
# The log cannot know; a client or ledger that relied on them can, and stops (LogRegressed).
SHORTENED = "shortened"


class Silent(AssertionError):
    """Wrong data, missing data, or an error that says nothing."""


@dataclass(frozen=True, slots=True)
class Damage:
    """Where a copy differs from the specimen."""

    path: str
    offset: int  # first byte that differs
    what: str
    # Whether a refusal must name this very file. False: several files, or the file is missing.
    exact: bool = True
    lost: bool = False  # all bytes from `offset` on are gone
    nothing_left: bool = False  # the directory is as before a log was made in it


def judge(specimen: Specimen, disk: MemoryDisk, damage: Damage) -> str:
    """Return the verdict of owner and reader, which must be one. Raises Silent."""
    try:
        by_reader = _read(specimen, copy_of(disk), damage)
        by_owner = _own(specimen, disk, damage)
        if (by_reader == REFUSED) != (by_owner == REFUSED):
            raise Silent(f"the reader: {by_reader}, the owner: {by_owner}")
    except Silent as silent:
        raise Silent(f"{specimen.name}: {damage}: {silent}") from silent.__cause__
    return by_owner


def _own(specimen: Specimen, disk: MemoryDisk, damage: Damage) -> str:
    log = None
    try:
        log = _open(specimen, disk, create=not damage.nothing_left)
        if log.log_id != LOG_ID:
            raise Silent("an empty log took the place of the damaged one")
        found = [_raw(record) for record in log.replay(log.start)]
        snapshots = {info.position: log.read_snapshot(info) for info in log.snapshots()}
    except StorageError as error:
        return _check_refusal(error, damage)
    except Silent:
        raise
    except Exception as error:
        raise Silent(f"the owner met {error!r}") from error
    told = list(log.snapshot_damage)
    verdict = _compare(specimen, log.end, found, snapshots, bool(told), log.cut_report, damage)
    for passed_over in told:
        _check_refusal(passed_over, damage)
    _work_on(specimen, disk, log, found)
    return verdict


def _open(specimen: Specimen, disk: MemoryDisk, *, create: bool) -> FencedLog:
    jump = specimen.generation_jump
    return FencedLog.open(
        disk,
        DIRECTORY,
        generation=specimen.generation + 3 * jump if jump else None,
        owner=OWNER,
        segment_bytes=1 << 14,
        create_log_id=b"another log's id" if create else None,
    )


def _read(specimen: Specimen, disk: MemoryDisk, damage: Damage) -> str:
    try:
        reader = LogReader.open(disk, DIRECTORY)
        found = [_raw(record) for record in reader.replay()]
        infos = reader.snapshots()
        snapshots = {info.position: reader.read_snapshot(info) for info in infos}
    except StorageError as error:
        return _check_refusal(error, damage)
    except Exception as error:
        raise Silent(f"the reader met {error!r}") from error
    fewer = set(snapshots) != set(specimen.snapshots)  # a reader needs one, and does not tell
    return _compare(specimen, reader.end, found, snapshots, fewer, reader.cut_report, damage)


def _raw(record: Any) -> Raw:
    decoded = record_codec.decode(
        record.type, record.meta, record.body, record.body_crc, columns=True
    )
    assert decoded is not None
    return record.position, record.type, bytes(record.meta), bytes(record.body)


def _check_refusal(error: StorageError, damage: Damage) -> str:
    """A refusal says in which file and where; the place is not behind the damage."""
    if isinstance(error, CorruptLog):
        if not error.path.startswith(DIRECTORY):
            raise Silent(f"a refusal without a file: {error}")
        if damage.exact and posixpath.basename(error.path) != posixpath.basename(damage.path):
            raise Silent(f"the refusal names another file: {error}")
        if damage.exact and not 0 <= error.offset <= damage.offset:
            raise Silent(f"the refusal names a place behind the damage: {error}")
    elif isinstance(error, UnsupportedFormat):
        if posixpath.basename(damage.path) not in str(error):
            raise Silent(f"the refusal names no file: {error}")
    elif DIRECTORY not in str(error):
        raise Silent(f"a refusal without a place: {error!r}")
    return REFUSED


def _compare(
    specimen: Specimen,
    end: int,
    found: list[Raw],
    snapshots: dict[int, dict[str, bytes]],
    told: bool,
    cut: Any,
    damage: Damage,
) -> str:
    """Say what became of the data. The last group may be missing if nothing vouched for it."""
    for position, parts in snapshots.items():
        if parts != specimen.snapshots.get(position):
            raise Silent(f"the snapshot at {position} is another")
        for part in parts.values():
            wire.unpack_plain(part)
    if len(snapshots) < len(specimen.snapshots) and not (told or not damage.exact):
        raise Silent("a snapshot was passed over and nobody was told")
    if end == specimen.end:
        if found != specimen.records:
            raise Silent("records are missing or changed")
        return REPORTED if told or cut is not None else HARMLESS
    if found != [raw for raw in specimen.records if raw[0] < end]:
        raise Silent("the last group was cut, and more is missing or changed")
    return _shorter(specimen, end, cut, damage)


def _shorter(specimen: Specimen, end: int, cut: Any, damage: Damage) -> str:
    """Judge a log that ends early: at the last group that the damage left whole, and told."""
    last = specimen.segments()[-1]
    if damage.path != last:
        raise Silent(f"the log ends at {end} for damage elsewhere")
    first = int(posixpath.basename(last)[:20])
    place = max(first, first + damage.offset - SEGMENT_HEADER_BYTES)
    if end != max(known for known in specimen.ends if known <= place):
        raise Silent(f"the log ends at {end}, the damage begins at {place}")
    if not damage.lost and end != specimen.vouched:
        raise Silent(f"cut at {end}, though {specimen.vouched} is vouched for")
    if end < specimen.outside:
        raise Silent(f"cut at {end}, though {specimen.outside} is vouched for elsewhere")
    if cut is None and not (damage.lost and place == end):
        raise Silent("a cut that was not told")
    return CUT if end == specimen.vouched else SHORTENED


def _work_on(specimen: Specimen, disk: MemoryDisk, log: FencedLog, found: list[Raw]) -> None:
    """Write one more record, die, and find all of it."""
    log.reserve(10)
    position = log.append(1, b"", b"more")
    log.sync()
    expected = [*found, (position, 1, b"", b"more")]
    disk.drop_locks()
    try:
        jump = specimen.generation_jump
        given = specimen.generation + 4 * jump if jump else None
        again = FencedLog.open(disk, DIRECTORY, generation=given, owner=OWNER)
        after = [
            (r.position, r.type, bytes(r.meta), bytes(r.body)) for r in again.replay(log.start)
        ]
    except StorageError as error:
        raise Silent(f"what a repaired log wrote cannot be read: {error}") from error
    if after != expected:
        raise Silent("what a repaired log wrote is not what is read")
