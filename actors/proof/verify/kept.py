"""What a proof keeps of a small system, message by message.

Files alone need no memory. Checks that compare files with what clients and processes reported, or
with an earlier look, want every message at hand: `verify(..., keep_max=n)` keeps them, up to n.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import xxhash

from ...ids import sequence_id
from ..findings import shown_id
from ..parse.batch import BatchView, body_hash
from ..parse.records import Committed, Stored
from .rows import seed_of

FINGERPRINT_BYTES = 16

Place = tuple[str, str, int]  # group, topic, partition
ProcessedId = bytes | tuple[str, int]  # a fingerprint; producer and number


@dataclass(frozen=True, slots=True)
class Entry:
    """One message of the log."""

    topic: str
    partition: int
    offset: int
    message_id: str  # as people see it
    tagged: bytes  # the explicit id with its type tag; b"": a sequence id
    producer: str
    body_hash: int


@dataclass(frozen=True, slots=True)
class KeptCommit:
    """One commit of a ledger. A snapshot at the start of a ledger counts as one."""

    commit_no: int
    next_offset: int  # of the partition
    ranges: tuple[tuple[str, int, int], ...]  # producer, first number, count
    fingerprints: bytes
    parked: bool  # its messages became dead letters: they had no effect


@dataclass(frozen=True)
class KeptLedger:
    """A ledger, as far as it is durable."""

    place: Place
    ledger_id: bytes
    commits: tuple[KeptCommit, ...]
    base_commit_no: int  # commits up to it come from a snapshot
    next_offset: int
    # The highest offset that it ever stood at: only an operator lets `next_offset` be lower.
    reached: int

    @property
    def where(self) -> str:
        return f"group {self.place[0]} {self.place[1]}/{self.place[2]}"

    @cached_property
    def processed(self) -> frozenset[ProcessedId]:
        """All ids that it has behind it. They do not depend on what the log holds."""
        return frozenset(one for commit in self.commits for one in ids_of(commit))


@dataclass(slots=True)
class Kept:
    """The messages of the log in its order, and the ledgers."""

    entries: list[Entry] = field(default_factory=list)
    ledgers: list[KeptLedger] = field(default_factory=list)

    def names(self, ledger: KeptLedger) -> dict[ProcessedId, str]:
        seed = seed_of(ledger.ledger_id)
        _, topic, partition = ledger.place
        return {
            xxhash.xxh3_128_digest(entry.tagged, seed): entry.message_id
            for entry in self.entries
            if entry.tagged and (entry.topic, entry.partition) == (topic, partition)
        }


def ids_of(commit: KeptCommit) -> Iterator[ProcessedId]:
    for producer, first, count in commit.ranges:
        yield from ((producer, number) for number in range(first, first + count))
    blob = commit.fingerprints
    for at in range(0, len(blob), FINGERPRINT_BYTES):
        yield blob[at : at + FINGERPRINT_BYTES]


def name_of(one: ProcessedId, ledger: KeptLedger, names: dict[ProcessedId, str]) -> str:
    """Return an id of a ledger as people see it: a fingerprint where the log does not know it."""
    if isinstance(one, tuple):
        return sequence_id(ledger.place[1], one[0], ledger.place[2], one[1])
    return names.get(one, "0x" + one.hex())


class Keeper:
    """Keeps messages and commits until there are too many."""

    def __init__(self, keep_max: int) -> None:
        """More than `keep_max` messages in the log: nothing is kept."""
        self._keep_max = keep_max
        self.kept: Kept | None = Kept() if keep_max else None

    def stored(self, record: Stored, batch: BatchView, topic: str) -> None:
        if self.kept is None:
            return
        if len(self.kept.entries) + record.kept > self._keep_max:
            self.kept = None
            return
        bodies = batch.bodies()
        for step, index in enumerate(record.kept_indices()):
            tagged = batch.ids[index] if batch.ids is not None else b""
            number = record.first_sequence + index
            name = (
                shown_id(tagged)
                if tagged
                else sequence_id(topic, record.producer, record.partition, number)
            )
            self.kept.entries.append(
                Entry(
                    topic,
                    record.partition,
                    record.first_offset + step,
                    name,
                    tagged,
                    record.producer,
                    body_hash(bodies[index]),
                )
            )


def kept_commit(record: Committed, next_offset: int) -> KeptCommit:
    return KeptCommit(
        record.commit_no,
        next_offset,
        tuple((producer, first, count) for producer, first, count in record.ranges),
        record.fingerprints,
        bool(record.parked),
    )
