"""Resends of sequence numbers: find the original in the log and compare.

Theory of operation. A batch whose numbers (or the first of them) are stored already comes from a
resend or from a broken sender; only the stored bytes can tell. The producer's row knows a position
at or before the original; the lookup reads on from there until it has met every known number.
Records of the current turn are not readable yet, so the broker keeps them at hand until their sync
(`Recent`). A lookup that needs more than `reads_per_request_max` reads goes on in the next turn. At
most `lookups_max` wait so; beyond that the resend is refused with Busy.

The new rest of an overlapping batch is stored at once, when it arrives: the lookup cannot change
that it is new. Only the answer waits.

What was deleted is not read: it may be gone from the disk. Its numbers are known all the same, and
the producer's row tells their offsets (producers.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from ...batch import Batch
from ...ids import sequence_id
from ...limits import Limits
from ...outcome import Outcome, Read, Send
from ...protocol import CONFLICT, DUPLICATE, STORED, UNKNOWN_OFFSET, Produce, Produced
from ...records import BatchStored
from .producers import Row
from .topics import Partition
from .verdicts import Runs, judge_bodies


class Recent:
    """Records that were applied and not yet covered by a sync. Volatile."""

    def __init__(self) -> None:
        # (position, record) in the order of the log. Invariant: one turn's worth at most, since
        # every turn that appends ends with a sync.
        self._records: deque[tuple[int, BatchStored]] = deque()

    def add(self, record: BatchStored, position: int) -> None:
        self._records.append((position, record))

    def synced(self, end: int) -> Iterator[BatchStored]:
        """Remove and yield the records below `end`."""
        while self._records and self._records[0][0] < end:
            yield self._records.popleft()[1]

    def all(self) -> Iterator[BatchStored]:
        for _, record in self._records:
            yield record


@dataclass(slots=True)
class Lookup:
    """A resend whose verdicts are being looked up."""

    peer: bytes
    request: Produce
    batch: Batch
    topic_number: int
    partition: Partition
    row: Row  # of the producer in that partition
    known: int  # messages of the batch, from the first on, that are stored already
    limits: Limits
    tail_at_ms: int = 0  # time and first offset of the new rest, if there is one
    tail_offset: int = UNKNOWN_OFFSET
    judged: int = 0  # Invariant: <= known; messages below it have their verdict
    runs: Runs = field(default_factory=Runs)
    position: int = field(init=False)  # of the next read
    reads_left: int = field(init=False)

    def __post_init__(self) -> None:
        self.position = self.row.floor(self.request.first_sequence)
        self.allow_reads()

    def may_read(self) -> bool:
        """Go on to what is there; return whether an original may lie there."""
        start = self.partition.index.next_entry(0)
        if start is None or not self.row.positions or self.row.positions[-1] < start:
            return False
        self.position = max(self.position, start)
        return True

    def next_read(self, token: int) -> Read:
        """Return the next read; the first one is small, since it mostly suffices."""
        limits = self.limits
        first = self.judged == 0 and self.reads_left == limits.reads_per_request_max
        likely = len(self.batch.raw) + limits.first_read_extra_bytes
        size = likely if first else limits.read_bytes
        self.reads_left -= 1
        return Read(token, self.position, size, columns=True)

    def allow_reads(self) -> None:
        self.reads_left = self.limits.reads_per_request_max

    def meet(self, record: BatchStored) -> None:
        """Judge the messages whose numbers `record` holds, if it holds the next ones."""
        request = self.request
        if (
            record.producer != request.producer
            or record.first_sequence < 0
            or record.partition != request.partition
            or record.topic_number != self.topic_number
        ):
            return
        first = record.first_sequence + record.count - record.kept
        end = record.first_sequence + record.count
        self._pass(min(first, request.first_sequence + self.known))
        wanted = request.first_sequence + self.judged
        if first <= wanted < end and self.judged < self.known:
            count = min(end - wanted, self.known - self.judged)
            at = wanted - record.first_sequence
            judge_bodies(self.runs, self.batch, self.judged, count, record, at)
            self.judged += count

    def _pass(self, end: int) -> None:
        """Judge the numbers below `end` that were not met: their messages are deleted."""
        wanted = self.request.first_sequence + self.judged
        if wanted < end:
            self.row.add_known(self.runs, wanted, end - wanted)
            self.judged += end - wanted

    @property
    def done(self) -> bool:
        return self.judged >= self.known

    def answer(self, out: Outcome, topic: str) -> None:
        request, runs = self.request, self.runs
        self._pass(request.first_sequence + self.known)
        place = {"topic": topic, "partition": request.partition}
        number = request.first_sequence
        for count, verdict, offset in runs.runs:
            if verdict == CONFLICT:
                message_id = sequence_id(topic, request.producer, request.partition, number)
                fields = {"id": message_id, "offset": offset, "count": count}
                out.events.append(("id.conflict", {**place, **fields}))
            number += count
        duplicates = runs.count(DUPLICATE)
        first_offset = runs.runs[0][2]
        runs.add(self.batch.count - self.known, STORED, self.tail_offset)
        produced = Produced(request.request, self.tail_at_ms, tuple(runs.runs))
        out.sends_after_sync.append(Send(self.peer, produced))
        if duplicates and self.known == self.batch.count:
            out.events.append(
                (
                    "batch.duplicate",
                    {
                        **place,
                        "count": duplicates,
                        "producer": request.producer,
                        "first_sequence": request.first_sequence,
                        "first_offset": first_offset,
                    },
                )
            )
