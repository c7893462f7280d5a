"""Topics and their partitions.

Theory of operation. A record creates a topic, and its partition count never changes. Its number is
the count of topics made before it and stands for it in stored batches. Offsets of a partition are
dense. `end_offset` moves when a record is applied, `durable_end_offset` only when a sync that covers
it has returned: readers see what lies below the latter, from `log_start_offset` on (retention.py).

A record deletes a topic. A later topic of its name is another one, with another number and id.

Users name topics freely within the rules of names. Two more shapes belong to OnceMQ itself:
`T.dead` for the dead letters of T, and `T@G` for messages that group G alone handles again.
"""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterator
from dataclasses import astuple, dataclass, field

from ...errors import OffsetTrimmed, UnknownTopic
from ...ids import DEAD_SUFFIX, INTERNAL_MARK, check_name, dead_topic, did_you_mean, utc_text
from ...limits import Limits
from ...records import (
    BatchStored,
    HorizonMarked,
    Plain,
    TopicConfigured,
    TopicCreated,
    TopicDeleted,
    Trimmed,
)
from ...topic_settings import DEFAULTS, FOREVER, TopicSettings
from .horizon import Horizon
from .offset_index import OffsetIndex

_LIKE_TOPICS_MAX = 1_000  # that a mistyped name is compared with


def check_topic(name: str) -> str:
    """Raises InvalidName."""
    base, mark, group = name.partition(INTERNAL_MARK)
    if mark:
        check_name(group, "group")
    check_name(base.removesuffix(DEAD_SUFFIX), "topic")
    return name


def is_own(name: str) -> bool:
    """Whether only OnceMQ itself creates such a topic."""
    return INTERNAL_MARK in name or name.endswith(DEAD_SUFFIX)


def deleted(topic: Topic) -> UnknownTopic:
    """Return the refusal of a request that waited when its topic was deleted."""
    return UnknownTopic(f"topic {topic.name} was deleted")


def trimmed(topic: Topic, partition: Partition, offset: int, group: str) -> OffsetTrimmed:
    """Return the refusal of a group, or of a reader without one, at an offset below the start."""
    start = partition.log_start_offset
    hint = f"read on from offset {start}"
    if group:
        names = f"{shlex.quote(group)} {shlex.quote(topic.name.partition(INTERNAL_MARK)[0])}"
        hint = f"say that the group passes them over: oncemq groups seek {names} --to earliest"
    return OffsetTrimmed(
        f"{topic.name} partition {partition.number} starts at offset {start}: the messages {offset} "
        f"to {start - 1} were deleted by its retention, for their {partition.trimmed_why}, the last "
        f"of them at {utc_text(partition.trimmed_at_ms)}",
        hint=hint,
    )


@dataclass(slots=True)
class Partition:
    """One partition. Hard state except where said."""

    number: int
    index: OffsetIndex
    cursors_max: int
    # The offset of the next message. Invariant: first_offset + kept of the last applied batch.
    end_offset: int = 0
    # Messages below were deleted. Invariant: <= durable_end_offset, the first offset of a batch or
    # the end; only a record moves it up.
    log_start_offset: int = 0
    # Bytes of all batches ever stored, and of those below the start.
    bytes_stored: int = 0
    bytes_trimmed: int = 0
    # Time of the last batch; 0: there was none.
    last_at_ms: int = 0
    # Why and when the start was moved last.
    trimmed_why: str = ""
    trimmed_at_ms: int = 0
    # Readers see what lies below. Invariant: <= end_offset; only Synced and Recovered move it.
    durable_end_offset: int = 0
    # Volatile: from the offset of a next fetch to the position where its reading goes on.
    # Invariant: bounded; the batch with that offset does not lie before that position.
    cursors: dict[int, int] = field(default_factory=dict)

    def apply(self, record: BatchStored, position: int) -> None:
        assert record.first_offset == self.end_offset, "offsets are dense"
        assert record.kept > 0, "a batch with nothing new is not stored"
        self.index.add(record.first_offset, position, record.at_ms, self.bytes_stored)
        self.end_offset += record.kept
        self.bytes_stored += record.size
        self.last_at_ms = record.at_ms

    def trim(self, record: Trimmed) -> None:
        assert self.log_start_offset < record.below <= self.end_offset, "a start moves up"
        self.log_start_offset = record.below
        self.trimmed_why, self.trimmed_at_ms = record.why, record.at_ms
        self.forget_trimmed()
        self.cursors = {offset: at for offset, at in self.cursors.items() if offset >= record.below}

    def forget_trimmed(self) -> None:
        """Let the index begin with the first batch that is there."""
        self.index.trim(self.log_start_offset)
        first = self.index.first
        self.bytes_trimmed = self.bytes_stored if first is None else first[3]

    def position_of(self, offset: int) -> int | None:
        """Return a position at or before the batch that contains `offset`."""
        floor, cursor = self.index.floor(offset), self.cursors.get(offset)
        # A cursor may have stayed behind, where the log is gone.
        return floor if floor is None or cursor is None else max(floor, cursor)

    def remember(self, offset: int, position: int) -> None:
        """Remember the position where a fetch from `offset` goes on reading."""
        self.cursors.pop(offset, None)
        while len(self.cursors) >= self.cursors_max:
            del self.cursors[next(iter(self.cursors))]
        self.cursors[offset] = position


@dataclass(slots=True)
class Topic:
    number: int
    name: str
    topic_id: bytes
    partitions: int
    at_ms: int
    limits: Limits
    settings: TopicSettings = DEFAULTS
    horizon: Horizon = field(default_factory=Horizon)
    # Partitions by number, made at first use: a topic may have many that are never used.
    # Invariant: numbers < `partitions`.
    by_number: dict[int, Partition] = field(default_factory=dict)
    # Explicit ids ever stored: they are remembered when their messages are gone.
    ids: int = 0
    # Messages since this broker started that were duplicates, conflicts, or refused. Volatile.
    duplicates: int = 0
    conflicts: int = 0
    refused: int = 0

    @property
    def dated(self) -> bool:
        """Whether each message with an id must tell when it was created.

        Also where ids are remembered for ever again: only its time tells a resend of a message that
        was forgotten before.
        """
        return self.settings.dedup_ms is not None or self.horizon.floor_ms > 0

    def partition(self, number: int) -> Partition:
        found = self.by_number.get(number)
        if found is None:
            if not 0 <= number < self.partitions:
                raise UnknownTopic(
                    f"topic {self.name} has {self.partitions} partitions, there is no {number}",
                    hint="the partition count never changes: use a partition below it",
                )
            found = self.add_partition(number)
        return found

    def add_partition(self, number: int, end_offset: int = 0) -> Partition:
        """Add a partition whose messages below `end_offset` are durable."""
        index = OffsetIndex(self.limits.offset_index_step_bytes)
        cursors_max = self.limits.cursors_per_partition
        added = Partition(number, index, cursors_max, end_offset, end_offset)
        self.by_number[number] = added
        return added

    @property
    def messages(self) -> list[int]:
        """How many each used partition holds."""
        used = self.by_number.values()
        return [one.durable_end_offset - one.log_start_offset for one in used]

    def start_offsets(self) -> tuple[int, ...]:
        """(): no message was ever deleted."""
        starts = [0] * self.partitions
        for number, partition in self.by_number.items():
            starts[number] = partition.log_start_offset
        return tuple(starts) if any(starts) else ()

    def end_offsets(self) -> tuple[int, ...]:
        ends = [0] * self.partitions
        for number, partition in self.by_number.items():
            ends[number] = partition.durable_end_offset
        return tuple(ends)


class TopicTable:
    """All topics. Hard state."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        # By number, rising. Invariant: no number is given twice, also not after a deletion.
        self.by_number: dict[int, Topic] = {}
        self.next_number = 0
        # By name. Invariant: the same topics.
        self.by_name: dict[str, Topic] = {}
        # Numbers of those with a bound on what they retain.
        self.bounded: set[int] = set()
        # Volatile: whether messages were deleted since retention looked last, or may have been.
        self.changed = False

    def __len__(self) -> int:
        return len(self.by_number)

    def get(self, name: str) -> Topic:
        topic = self.by_name.get(name)
        if topic is None:
            raise self._unknown(name)
        return topic

    def own_of(self, name: str) -> list[Topic]:
        """Return the topics that OnceMQ itself made for a topic."""
        return [
            topic
            for topic in self.by_number.values()
            if topic.name == dead_topic(name)
            or topic.name.partition(INTERNAL_MARK)[:2] == (name, INTERNAL_MARK)
        ]

    def check_wanted(self, name: str) -> None:
        """Raise UnknownTopic for a topic of users that none of them has created.

        Topics of OnceMQ itself are created when they are needed.
        """
        if not is_own(name):
            raise self._unknown(name)

    def _unknown(self, name: str) -> UnknownTopic:
        near = ""
        if not is_own(name):
            known = itertools.islice(self.by_name, _LIKE_TOPICS_MAX)
            near = did_you_mean(name, (one for one in known if not is_own(one)))
        return UnknownTopic(
            f"there is no topic {name!r}{near}",
            hint=f"create it with: oncemq topics create {shlex.quote(name)}",
        )

    def partitions(self) -> Iterator[tuple[Topic, Partition]]:
        """Only partitions in use, in the order of numbers."""
        for topic in self.by_number.values():
            for number in sorted(topic.by_number):
                yield topic, topic.by_number[number]

    def apply(self, record: TopicCreated) -> None:
        assert record.topic not in self.by_name, "a topic is made once"
        self._add(self.next_number, record.topic, record.topic_id, record.partitions, record.at_ms)
        self.next_number += 1

    def apply_configured(self, record: TopicConfigured) -> None:
        topic = self.by_number[record.topic_number]
        if record.dedup_ms != topic.settings.dedup_ms:
            topic.horizon.since_ms = record.at_ms
        self._configure(topic, record.settings)

    def apply_horizon(self, record: HorizonMarked) -> None:
        topic = self.by_number[record.topic_number]
        ends = {number: its.end_offset for number, its in topic.by_number.items()}
        topic.horizon.apply(record, ends)

    def _configure(self, topic: Topic, settings: TopicSettings) -> None:
        topic.settings = settings
        self.bounded.discard(topic.number)
        if settings.retain != FOREVER:
            self.bounded.add(topic.number)

    def apply_trimmed(self, record: Trimmed) -> None:
        self.by_number[record.topic_number].partition(record.partition).trim(record)
        self.changed = True

    def apply_deleted(self, record: TopicDeleted) -> Topic:
        topic = self.by_number.pop(record.topic_number)
        del self.by_name[topic.name]
        self.bounded.discard(topic.number)
        self.changed = True
        return topic

    def _add(self, number: int, name: str, topic_id: bytes, partitions: int, at_ms: int) -> Topic:
        topic = Topic(number, name, topic_id, partitions, at_ms, self._limits)
        self.by_number[number] = topic
        self.by_name[topic.name] = topic
        return topic

    def freeze(self, number: int) -> Plain:
        """Return all of a topic but its indexes, as a row of a snapshot."""
        topic = self.by_number[number]
        return [
            topic.name,
            topic.topic_id,
            topic.partitions,
            topic.at_ms,
            [
                [
                    partition.number,
                    partition.end_offset,
                    partition.log_start_offset,
                    partition.bytes_stored,
                    partition.last_at_ms,
                    partition.trimmed_why,
                    partition.trimmed_at_ms,
                ]
                for _, partition in sorted(topic.by_number.items())
                if partition.end_offset
            ],
            list(astuple(topic.settings)),
            [topic.number, topic.ids],
            topic.horizon.freeze(),
        ]

    def restore(self, part: Plain, next_number: int) -> None:
        """Take the rows that `freeze` returned; the entries of the indexes come later."""
        self.next_number = next_number
        self.changed = True
        for name, topic_id, count, at_ms, partitions, settings, counts, horizon in part:
            number, ids = counts
            topic = self._add(number, name, topic_id, count, at_ms)
            topic.ids, topic.horizon = ids, Horizon.restored(horizon)
            self._configure(topic, TopicSettings(*settings))
            for partition_number, end_offset, start, stored, last_at_ms, why, when in partitions:
                partition = topic.add_partition(partition_number, end_offset)
                partition.log_start_offset, partition.bytes_stored = start, stored
                partition.last_at_ms = last_at_ms
                partition.trimmed_why, partition.trimmed_at_ms = why, when
