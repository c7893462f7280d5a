"""What the records of one ledger say, as a proof from files gathers it."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...ids import private_topic
from ..parse.records import Skips, Started
from .effects import Effects
from .kept import KeptCommit, KeptLedger
from .parked import Parked

Target = tuple[str, int]  # (topic, partition) of an output


@dataclass(slots=True)
class Ledger:
    """What the records of one ledger say, up to `end`."""

    directory: str
    number: int  # in the rows
    ledger_id: bytes = b""
    generation: int = 0
    end: int = 0
    started: Started | None = None
    topic_number: int = -1  # in the log, once a batch of its topic was met
    next_offset: int = 0
    commit_no: int = 0
    epoch: int = 0
    # What it relies on in the broker's log: mark and position; b"" before it relied on anything.
    seen: tuple[bytes, int] = (b"", 0)
    # The highest offset that it ever stood at: above `next_offset` after an operator went back.
    reached: int = 0
    # What an operator had it pass over: ascending, nothing above `next_offset`.
    skips: Skips = field(default_factory=list)
    # The log shows no message of the partition below this offset: they were deleted.
    shown_from: int = 0
    # How many messages in `skips` were never processed: counted when ids are compared.
    skipped: int = 0
    # Offsets and commits below these come from a snapshot.
    base_offset: int = 0
    base_commit_no: int = 0
    # Ids processed, messages passed over because their ids had been, and commits read.
    processed: int = 0
    passed_over: int = 0
    commits: int = 0
    parked: Parked = field(default_factory=Parked)
    effects: Effects = field(default_factory=Effects)
    # The next number of an output, the first that records here tell of, and what is acknowledged.
    next_sequence: dict[Target, int] = field(default_factory=dict)
    known_from: dict[Target, int] = field(default_factory=dict)
    acked: dict[Target, int] = field(default_factory=dict)
    # Numbers that an operator passed over, as (first, next): outputs of a lost ledger or of a copy.
    foreign: dict[Target, list[tuple[int, int]]] = field(default_factory=dict)
    # Each epoch that committed, and the first offset of its first commit.
    epochs: dict[int, int] = field(default_factory=dict)
    # For the comparison with snapshots: numbers by producer, fingerprints, their words' sum.
    numbers: dict[str, int] = field(default_factory=dict)
    fingerprints: int = 0
    words: int = 0
    state: dict[str, bytes] | None = field(default_factory=dict)
    # Every commit, where a proof keeps them.
    kept: list[KeptCommit] | None = None

    @property
    def where(self) -> str:
        started = self.started
        if started is None:
            return self.directory
        return f"group {started.group} {started.topic}/{started.partition}"

    @property
    def place(self) -> tuple[str, str, int]:
        assert self.started is not None, "only ledgers with a first record have a place"
        return self.started.group, self.started.topic, self.started.partition

    def as_kept(self) -> KeptLedger:
        assert self.kept is not None, "its commits were kept"
        return KeptLedger(
            self.place,
            self.ledger_id,
            tuple(self.kept),
            self.base_commit_no,
            self.next_offset,
            self.reached,
        )

    @property
    def private_topic(self) -> str:
        """The topic that only this group reads besides its input."""
        group, topic, _ = self.place
        return private_topic(topic, group)

    def unacked(self, topic: str, partition: int) -> int:
        """How many outputs to a target are not acknowledged."""
        target = (topic, partition)
        sent = self.next_sequence.get(target, 0)
        return max(0, sent - self.acked.get(target, 0))

    def next_offset_of(self, topic_id: bytes) -> int:
        if self.started is None or topic_id == self.started.topic_id:
            return self.next_offset
        return self.parked.offsets.get(topic_id, 0)

    def missing(self, first: int, end: int) -> list[tuple[int, int]]:
        """Take note that offsets [first, end) were not processed; return those that should be.

        What an operator had it pass over need not be, nor what it is to read again.
        """
        end = min(end, max(first, self.next_offset))
        wrong = []
        for low, high, _ in self.skips:
            if high <= first or end <= low:
                continue
            if first < low:
                wrong.append((first, low))
            self.skipped += min(end, high) - max(first, low)
            first = min(end, high)
        return [*wrong, (first, end)] if first < end else wrong
