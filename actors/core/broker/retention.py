"""Retention: which messages of a topic go, and from where on the log is still needed.

Theory of operation. A message goes as soon as one of its topic's settings says so: it is older than
`retain_ms`; the topic holds more than `retain_bytes` and this is the oldest; or, with
`retain_processed`, every group of the topic has committed beyond it. What goes is decided here and
written as a record, `Trimmed`, which moves up the log_start_offset of one partition by whole entries
of its index. From then on a reader below is refused (`OffsetTrimmed`), never moved.

Nothing else is forgotten: explicit ids stay in the index with their offsets, sequence numbers in the
rows of their producers.

The bytes go later. The log holds all topics one behind the other, so its segments can go only below
the first message that any partition still has (BrokerState.needed_from), but for those that were
copied into kept parts (kept.py). A sweep visits all partitions, a bounded number in each turn, and the
least of what it finds is that position: starts only move up, and what is stored during a sweep lies
behind its beginning. On its way it measures how much is left of the log below some marks, which tells
whether a copy is worth its bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from ...limits import RETENTION_EVERY_MS, TRIMS_WITHOUT_ROOM_MAX, Limits
from ...outcome import Outcome
from ...records import Trimmed
from .kept import KeptRange
from .state import BrokerState
from .topics import Partition, Topic

_PAUSES = 4  # a sweep of many partitions takes a fifth of the time at most
_MARKS_MAX = 32  # beginnings of partitions up to which a copy may go
AGE, SIZE, PROCESSED = "age", "size", "processed"


@dataclass(slots=True)
class Sweep:
    """One visit of all partitions, and what it has found so far."""

    topics: Iterator[Topic]
    end: int  # of the log at its beginning
    safe_end: int  # what lies below needs no log (KeptParts.durable_end)
    kept_end: int  # what lies below is in parts, or about to be
    needed_from: int  # the least position at or above `safe_end` with a message
    first: int  # the same for `kept_end`
    # Positions; bytes of messages below each, by whole entries; the first entry at or above each.
    marks: list[int]
    parts: list[KeptRange]
    below: list[int] = field(init=False)
    entries: list[int] = field(init=False)
    offset_parts: set[int] = field(default_factory=set)  # of snapshots, by their beginnings
    used: set[KeptRange] = field(default_factory=set)  # parts in which a message may be left

    def __post_init__(self) -> None:
        self.below = [0] * len(self.marks)
        self.entries = [self.first] * len(self.marks)

    def visit(self, partition: Partition) -> None:
        index, whole = partition.index, (partition.end_offset, partition.bytes_stored)
        needed, first = index.read_on(self.safe_end), index.read_on(self.kept_end)
        self.needed_from = min(self.needed_from, self.needed_from if needed is None else needed)
        self.first = min(self.first, self.first if first is None else first)
        for part in self.parts:
            left = index.read_on(part.start)
            if left is not None and left < part.end:
                self.used.add(part)
        for number, mark in enumerate(self.marks):
            held = index.cut_at(mark, whole)[1] - partition.bytes_trimmed
            self.below[number] += max(0, held)
            entry = index.next_entry(mark)
            if entry is not None and entry < self.entries[number]:
                self.entries[number] = entry

    def left(self, start: int, end: int) -> int:
        """Return the bytes that are left between two marks."""
        return self.below[self.marks.index(end)] - self.below[self.marks.index(start)]


class Retention:
    """Decides what goes. Volatile: after a restart it finds out again."""

    def __init__(self, state: BrokerState, limits: Limits) -> None:
        self._state = state
        self._limits = limits
        self._next_ms = self._began_ms = 0
        self._sweep: Sweep | None = None
        # Where the last sweep found the first message that is in no kept part.
        self._first = 0
        # Records that may still be written while the disk is full: they fit into the margin of the
        # log, and may be what makes room. Invariant: back at the most once there is room.
        self._without_room = TRIMS_WITHOUT_ROOM_MAX

    @property
    def wake_at_ms(self) -> int | None:
        topics = self._state.topics
        return self._next_ms if self._sweep or topics.bounded or topics.changed else None

    def tick(self, now_ms: int, broker_ms: int, out: Outcome, *, disk_full: bool) -> None:
        """Go on with the sweep, or begin one when it is time."""
        if self.wake_at_ms is None or now_ms < self._next_ms:
            return
        topics = self._state.topics
        if not disk_full:
            self._without_room = TRIMS_WITHOUT_ROOM_MAX
        if self._sweep is None:
            topics.changed = False
            self._sweep, self._began_ms = self._begin(), now_ms
        left = self._limits.retention_partitions_per_turn
        for topic in self._sweep.topics:
            if topics.by_number.get(topic.number) is not topic:
                continue  # deleted since the sweep began
            self._trim(topic, broker_ms, out, disk_full=disk_full)
            for partition in topic.by_number.values():
                self._sweep.visit(partition)
                self._sweep.offset_parts.update(self._state.offset_parts_of(partition))
            left -= len(topic.by_number)
            if left <= 0:
                self._next_ms = now_ms + 1
                return
        topics.changed |= self._sweep.first != self._first  # the next one has better marks
        self._keep(self._sweep)
        needed_from, making = self._sweep.needed_from, self._state.kept.making
        if making is not None:
            needed_from = min(needed_from, making.start)
        self._state.swept(needed_from, frozenset(self._sweep.offset_parts), self._sweep.end)
        self._first, self._sweep = self._sweep.first, None
        self._next_ms = now_ms + max(RETENTION_EVERY_MS, _PAUSES * (now_ms - self._began_ms))

    # --- what is kept of the log ------------------------------------------------------------------

    def _begin(self) -> Sweep:
        state, least = self._state, self._limits.keep_bytes_min
        kept, end = state.kept, state.durable_end
        marks = {bound for part in kept.parts for bound in (part.start, part.end)}
        if kept.making is None:
            # Where bounded topics begin: below it much is deleted.
            bounded = islice((state.topics.by_number[n] for n in state.topics.bounded), _MARKS_MAX)
            firsts = (
                one.index.next_entry(0) for topic in bounded for one in topic.by_number.values()
            )
            marks |= {
                first for first in islice(firsts, _MARKS_MAX) if first and first > self._first
            }
            step = least
            while self._first + step < end:
                marks |= {self._first, self._first + step}
                step *= 2
        ends = (kept.durable_end, kept.end)
        topics = iter(list(state.topics.by_number.values()))
        return Sweep(topics, end, *ends, end, end, sorted(marks), list(kept.parts))

    def _keep(self, sweep: Sweep) -> None:
        """Begin a copy if it frees enough."""
        kept, least = self._state.kept, self._limits.keep_bytes_min
        if kept.making is not None:
            return
        for part in [part for part in kept.parts if part in sweep.parts]:
            left = sweep.left(part.start, part.end)
            if part not in sweep.used:
                kept.parts.remove(part)
            elif part.size >= least and left <= part.size // 2:
                kept.want(part.start, part.end, left, self._starts())
                return
        gains = []
        for mark, entry in zip(sweep.marks, sweep.entries, strict=True):
            if self._first in sweep.marks and sweep.first < mark <= entry:
                left = sweep.left(self._first, mark)
                dead = mark - sweep.first - left
                if dead >= max(least, left // 4):
                    gains.append((dead - left, entry, left))
        if gains:
            _, end, left = max(gains)
            kept.want(sweep.first, end, left, self._starts())

    def _starts(self) -> dict[tuple[int, int], int]:
        return {
            (topic.number, number): partition.log_start_offset
            for topic in self._state.topics.by_number.values()
            for number, partition in topic.by_number.items()
        }

    # --- what goes --------------------------------------------------------------------------------

    def _trim(self, topic: Topic, broker_ms: int, out: Outcome, *, disk_full: bool) -> None:
        """Write what goes of a topic. The start that this moves is seen by the next sweep."""
        if topic.number not in self._state.topics.bounded:
            return
        size_cut = self._size_cut(topic)
        for partition in topic.by_number.values():
            below, why = max(self._reasons(topic, partition, broker_ms, size_cut))
            if below <= partition.log_start_offset:
                continue
            if disk_full:
                if not self._without_room:
                    return
                self._without_room -= 1
            out.appends.append(Trimmed(topic.number, partition.number, below, why, broker_ms))
            place = {"topic": topic.name, "partition": partition.number}
            moved = {"first_offset": partition.log_start_offset, "next_offset": below}
            out.events.append(("topic.trimmed", {**place, **moved, "reason": why}))

    def _reasons(
        self, topic: Topic, partition: Partition, broker_ms: int, size_cut: int | None
    ) -> Iterator[tuple[int, str]]:
        """Yield below which offset messages go, and why. Only what is durable goes."""
        settings, index, end = topic.settings, partition.index, partition.durable_end_offset
        yield 0, ""
        if settings.retain_ms is not None:
            oldest = broker_ms - settings.retain_ms
            below = end if partition.last_at_ms < oldest else index.older(oldest)
            yield min(below, end), AGE
        if size_cut is not None:
            whole = (partition.end_offset, partition.bytes_stored)
            yield min(index.cut_at(size_cut, whole)[0], end), SIZE
        if settings.retain_processed:
            processed = self._state.groups.processed(topic.name, partition.number)
            if processed is not None:
                yield (end if processed >= end else index.down(processed)), PROCESSED

    def _size_cut(self, topic: Topic) -> int | None:
        """Return the position in the log below which the topic's oldest messages are too many."""
        most = topic.settings.retain_bytes
        partitions = topic.by_number.values()
        held = sum(partition.bytes_stored - partition.bytes_trimmed for partition in partitions)
        if most is None or held <= most:
            return None
        firsts = (partition.index.next_entry(0) for partition in partitions)
        low = min(first for first in firsts if first is not None)
        high = self._state.durable_end
        while high - low > self._limits.offset_index_step_bytes:
            middle = (low + high) // 2
            held = 0
            for partition in partitions:
                whole = (partition.end_offset, partition.bytes_stored)
                held += partition.bytes_stored - partition.index.cut_at(middle, whole)[1]
            low, high = (middle, high) if held > most else (low, middle)
        return high
