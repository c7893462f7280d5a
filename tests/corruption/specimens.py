"""Logs in every state that a crash or a stop leaves, with exactly what was promised of them.

A `Specimen` is a disk and the truth about it, noted while it was written and by no code that is
under test: every record, the end of each synced group, every snapshot, and how far something on
disk proves that a sync had returned.
"""

from __future__ import annotations

import posixpath
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache

from oncemq.codec import batch as batch_codec
from oncemq.codec import records as record_codec
from oncemq.codec import wire
from oncemq.records import (
    BatchStored,
    Committed,
    GroupGranted,
    LedgerStarted,
    Output,
    ProducerGranted,
    Record,
    TopicCreated,
)
from oncemq.storage.creation import begin_at_snapshot
from oncemq.storage.log import FencedLog
from oncemq.storage.memory import MemoryDisk, _Node

LOG_ID = bytes(range(16))
DIRECTORY = "data/log"
OWNER: dict[str, str | int] = {"pid": 7, "host": "here", "boot_id": "b", "start_time": 1}
Raw = tuple[int, int, bytes, bytes]  # position, type, meta, body


def copy_of(disk: MemoryDisk) -> MemoryDisk:
    other = MemoryDisk()
    other._directories = set(disk._directories)
    for path, node in disk._files.items():
        new = other._files[path] = _Node()
        new.data = bytearray(node.data)
    return other


@dataclass
class Specimen:
    """A log at rest. `disk` is never opened: take `copy_of` it."""

    name: str
    disk: MemoryDisk
    generation: int  # the complete one
    records: list[Raw]
    end: int  # durable end
    vouched: int  # something on disk proves that all below it had been synced
    outside: int  # as above, but by something outside of the last segment
    ends: list[int]  # where the synced groups end
    start: int
    snapshots: dict[int, dict[str, bytes]]  # those on disk, by position
    generation_jump: int = 0  # a ledger's generations are given from outside

    @property
    def path(self) -> str:
        return posixpath.join(DIRECTORY, f"gen-{self.generation:020d}")

    def files(self) -> list[str]:
        """The paths of all files, the largest last."""
        return sorted(self.disk._files, key=lambda path: (len(self.disk._files[path].data), path))

    def content(self, path: str) -> bytes:
        return bytes(self.disk._files[path].data)

    def segments(self) -> list[str]:
        return sorted(path for path in self.disk._files if path.endswith(".log"))

    def used(self, path: str) -> int:
        """How many bytes of a file come before the zeros that are only reserved."""
        data = self.content(path)
        if path == self.segments()[-1]:
            return 64 + self.end - int(posixpath.basename(path)[:20])
        return len(data)


@dataclass
class Writer:
    """Writes a log and notes what holds of it."""

    name: str
    segment_bytes: int
    jump: int = 0
    disk: MemoryDisk = field(default_factory=MemoryDisk)
    records: list[Raw] = field(default_factory=list)
    vouched: int = 0
    outside: int = 0
    ends: list[int] = field(default_factory=lambda: [0])
    snapshots: dict[int, dict[str, bytes]] = field(default_factory=dict)
    generation: int = 1
    log: FencedLog = field(init=False)

    def __post_init__(self) -> None:
        self.open()

    def open(self) -> None:
        """Continue in a new generation; its manifest vouches for all."""
        given = self.generation + self.jump if self.jump else None
        self.log = FencedLog.open(
            self.disk,
            DIRECTORY,
            generation=given,
            owner=OWNER,
            segment_bytes=self.segment_bytes,
            create_log_id=LOG_ID,
        )
        self.generation = self.log.generation
        self.vouched = self.outside = self.log.durable_end

    def group(self, *records: Record) -> None:
        """One turn: the next group proves that the one before it was synced."""
        encoded = [record_codec.encode(record) for record in records]
        before = self.log.durable_end
        files = self.log._view.firsts[-1]
        self.log.reserve(sum(len(meta) + len(body) for _, meta, body, _ in encoded))
        if self.log._view.firsts[-1] != files:
            self.rolled(before)
        for kind, meta, body, crc in encoded:
            position = self.log.append(kind, meta, body, crc)
            self.records.append((position, kind, bytes(meta), bytes(body)))
        self.log.sync()
        self.ends.append(self.log.durable_end)
        self.vouched = max(self.vouched, before)

    def rolled(self, end: int) -> None:
        """A new segment vouches for those before it."""
        self.vouched = self.outside = end

    def snapshot(self, parts: Mapping[str, object], keep: tuple[str, ...] = ()) -> None:
        """A snapshot vouches for all below it; the two newest stay."""
        position = self.log.durable_end
        packed = {name: wire.pack_plain(part) for name, part in parts.items()}
        newest = self.snapshots[max(self.snapshots)] if self.snapshots else {}
        self.log.write_snapshot(position, packed, keep)
        self.snapshots[position] = packed | {name: newest[name] for name in keep}
        for old in sorted(self.snapshots)[:-2]:
            del self.snapshots[old]
        self.vouched = max(self.vouched, position)
        self.outside = max(self.outside, position)

    def kill(self) -> None:
        self.disk.drop_locks()

    def stop(self) -> None:
        """End cleanly: the last group is vouched for by a frame of its own."""
        before = self.log.durable_end
        self.log.close()
        if self.log.durable_end > before:
            self.vouched = before
            self.ends.append(self.log.durable_end)

    def done(self) -> Specimen:
        log = self.log
        return Specimen(
            self.name,
            copy_of(self.disk),
            self.generation,
            [raw for raw in self.records if raw[0] >= log.start],
            log.durable_end,
            self.vouched,
            self.outside,
            list(self.ends),
            log.start,
            dict(self.snapshots),
            self.jump,
        )


# --- what actors write ----------------------------------------------------------------------------


class BrokerRecords:
    """Records as a broker writes them, without end."""

    def __init__(self, size: int) -> None:
        self._source = random.Random(5)
        self._size = size
        self._offset = 0

    def first(self) -> list[Record]:
        return [
            TopicCreated("orders", b"T" * 16, 1, 1),
            ProducerGranted("importer", 1, b"N" * 16, "host:7", 2),
            GroupGranted("billing", "orders", 0, 1, b"I" * 16, b"L" * 16, 0, "h", "p", "l", 3),
        ]

    def batch(self) -> Record:
        values = [self._source.randbytes(self._size) for _ in range(3)]
        batch = batch_codec.build(values, encodings=0)
        first = self._offset
        self._offset += 3
        return BatchStored(
            0, 0, first, 3, 1_000 + first, "importer", 1, first, b"", b"", batch.raw, batch.crc, 3
        )


class LedgerRecords:
    """Commits as a consumer writes them, without end."""

    def __init__(self, size: int) -> None:
        self._source = random.Random(6)
        self._size = size
        self._number = 0

    def first(self) -> list[Record]:
        return [LedgerStarted("billing", "orders", 0, b"T" * 16, LOG_ID, LOG_ID, 0)]

    def commit(self) -> Record:
        """The next commit: offset, ids, state and an output."""
        self._number += 1
        number = self._number
        batch = batch_codec.build([self._source.randbytes(self._size)], encodings=0)
        return Committed(
            1,
            number,
            [(b"T" * 16, number)],
            [("importer", number - 1, 1)],
            self._source.randbytes(16),
            {f"k{number % 3}": self._source.randbytes(8)},
            [Output("invoices", 0, number - 1, 1, bytes(batch.raw), batch.crc)],
            [("invoices", 0, max(0, number - 2))],
        )


def broker_log(*, size: int = 20, groups: int = 2, segment_bytes: int = 700) -> Writer:
    """A broker that was killed once, went on and rolled, with two snapshots."""
    records = BrokerRecords(size)
    writer = Writer("broker log", segment_bytes)
    writer.group(*records.first())
    for _ in range(groups):
        writer.group(records.batch())
    writer.snapshot({"topics": ["orders"], "ids": list(range(groups))})
    writer.kill()
    writer.open()
    for _ in range(groups):
        writer.group(records.batch(), records.batch())
    writer.snapshot({"topics": ["orders", 2]}, ("ids",))
    for _ in range(groups):
        writer.group(records.batch())
    return writer


def killed_broker() -> Specimen:
    """The last group is vouched for by nothing: it alone may be cut."""
    writer = broker_log()
    writer.kill()
    specimen = writer.done()
    assert specimen.vouched < specimen.end
    return specimen


def stopped_broker() -> Specimen:
    """A clean stop: every record is vouched for."""
    writer = broker_log()
    writer.stop()
    specimen = writer.done()
    assert max(raw[0] for raw in specimen.records) < specimen.vouched
    assert len([end for end in specimen.ends if end > specimen.outside]) >= 2
    return specimen


def ledger() -> Specimen:
    """A ledger that was compacted: its start is gone, generations jump, two snapshots."""
    records = LedgerRecords(30)
    writer = Writer("ledger", 600, jump=5)
    writer.group(*records.first())
    for number in range(6):
        writer.group(records.commit())
        if number in {2, 4}:
            writer.snapshot({"state": {"n": number}, "ids-0": b"f" * 32 * number})
    writer.log.discard(writer.log.durable_end)
    writer.kill()
    writer.open()
    writer.group(records.commit(), records.commit())
    writer.group(records.commit())
    writer.kill()
    specimen = writer.done()
    assert specimen.start > 0
    assert len(specimen.snapshots) == 2
    return specimen


def young() -> Specimen:
    writer = Writer("young log", 1 << 16)
    writer.group(*BrokerRecords(10).first())
    writer.kill()
    return writer.done()


def fresh_segment() -> Specimen:
    """Killed right after a new segment was begun: nothing is in it."""
    records = BrokerRecords(40)
    writer = Writer("fresh segment", 400)
    writer.group(*records.first())
    writer.group(records.batch())
    writer.log.reserve(400)
    writer.rolled(writer.log.durable_end)
    writer.kill()
    return writer.done()


def opened() -> Specimen:
    """Opened and killed before anything was written: nothing in it is of this generation."""
    writer = broker_log()
    writer.kill()
    writer.open()
    writer.kill()
    specimen = writer.done()
    assert specimen.vouched == specimen.end
    return specimen


def imported() -> Specimen:
    """A ledger that began with a snapshot and no records, and went on once: it needs that snapshot."""
    parts = {"ledger": wire.pack_plain({"n": 7}), "ids-0": wire.pack_plain(b"f" * 48)}
    disk = MemoryDisk()
    begin_at_snapshot(
        disk, DIRECTORY, log_id=LOG_ID, generation=3, parts=parts, owner={"imported": 1}
    )
    records = LedgerRecords(30)
    writer = Writer("imported ledger", 600, 5, disk, generation=3, ends=[1], snapshots={1: parts})
    writer.group(records.commit())
    writer.group(records.commit())
    writer.kill()
    specimen = writer.done()
    assert (specimen.start, list(specimen.snapshots)) == (1, [1])
    return specimen


def large_broker() -> Specimen:
    writer = broker_log(size=400, groups=14, segment_bytes=16 * 1024)
    writer.name = "large broker log"
    writer.kill()
    return writer.done()


def large_ledger() -> Specimen:
    records = LedgerRecords(900)
    writer = Writer("large ledger", 16 * 1024, jump=1)
    writer.group(*records.first())
    for number in range(60):
        writer.group(records.commit())
        if number == 20:
            state = random.Random(number).randbytes(64 * 1024)
            writer.snapshot({"state": {"all": state}, "ids-0": b"f" * 512})
        if number == 50:
            writer.snapshot({"ids-1": b"g" * 512}, ("state", "ids-0"))
    writer.kill()
    return writer.done()


SMALL: dict[str, Callable[[], Specimen]] = {
    "killed_broker": cache(killed_broker),
    "stopped_broker": cache(stopped_broker),
    "ledger": cache(ledger),
    "young": cache(young),
    "fresh_segment": cache(fresh_segment),
    "opened": cache(opened),
    "imported": cache(imported),
}
LARGE: dict[str, Callable[[], Specimen]] = {
    "large_broker": cache(large_broker),
    "large_ledger": cache(large_ledger),
}
