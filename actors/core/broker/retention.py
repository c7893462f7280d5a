"""Retention: which messages of a topic go, and from where on the log is still needed.

Theory of operation. A message goes as soon as one of its topic's settings says so: it is older than
`retain_ms`; the topic holds more than `retain_bytes` and this is the oldest; or, with
`retain_processed`, every group of the topic has committed beyond it. What goes is decided here and
written as a record, `Trimmed`, which moves up the log_start_offset of one partition by whole entries
of its index. From then on a reader below is refused (`OffsetTrimmed`), never moved.

Nothing else is forgotten: explicit ids stay in the index with their offsets, sequence numbers in the
rows of their producers.

The bytes go later. The log holds all topics one behind the other, so its segments can go only below
the first message that any partition still has (BrokerState.needed_from). A sweep visits all
partitions, a bounded number in each turn, and the least of what it finds is that position: starts
only move up, and what is stored during a sweep lies behind its beginning.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ...limits import RETENTION_EVERY_MS, TRIMS_WITHOUT_ROOM_MAX, Limits
from ...outcome import Outcome
from ...records import Trimmed
from .state import BrokerState
from .topics import Partition, Topic

AGE, SIZE, PROCESSED = "age", "size", "processed"


@dataclass(slots=True)
class Sweep:
    """One visit of all partitions."""

    topics: Iterator[Topic]
    needed_from: int  # by what was visited so far


class Retention:
    """Decides what goes. Volatile: after a restart it finds out again."""

    def __init__(self, state: BrokerState, limits: Limits) -> None:
        self._state = state
        self._limits = limits
        self._next_ms = 0
        self._sweep: Sweep | None = None
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
            self._sweep = Sweep(iter(list(topics.by_number.values())), self._state.durable_end)
        left = self._limits.retention_partitions_per_turn
        for topic in self._sweep.topics:
            if topics.by_number.get(topic.number) is not topic:
                continue  # deleted since the sweep began
            self._trim(topic, broker_ms, out, disk_full=disk_full)
            for partition in topic.by_number.values():
                first = partition.index.next_entry(0)
                if first is not None:
                    self._sweep.needed_from = min(self._sweep.needed_from, first)
            left -= len(topic.by_number)
            if left <= 0:
                self._next_ms = now_ms + 1
                return
        self._state.needed_from = self._sweep.needed_from
        self._sweep = None
        self._next_ms = now_ms + RETENTION_EVERY_MS

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
