"""Topics and their partitions.

Theory of operation. A record creates a topic, and its partition count never changes. Its number is
the count of topics before it and stands for it in stored batches. Offsets of a partition are dense.
`end_offset` moves when a record is applied, `durable_end_offset` only when a sync that covers it
has returned: readers see what lies below the latter.

Users name topics freely within the rules of names. Two more shapes belong to OnceMQ itself:
`T.dead` for the dead letters of T, and `T@G` for messages that group G alone handles again.
"""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterator
from dataclasses import astuple, dataclass, field

from ...errors import UnknownTopic
from ...ids import DEAD_SUFFIX, INTERNAL_MARK, check_name, did_you_mean
from ...limits import Limits
from ...records import BatchStored, Plain, TopicConfigured, TopicCreated
from ...topic_settings import DEFAULTS, TopicSettings
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


@dataclass(slots=True)
class Partition:
    """One partition. Hard state except where said."""

    number: int
    index: OffsetIndex
    cursors_max: int
    # The offset of the next message. Invariant: first_offset + kept of the last applied batch.
    end_offset: int = 0
    # Readers see what lies below. Invariant: <= end_offset; only Synced and Recovered move it.
    durable_end_offset: int = 0
    # Volatile: from the offset of a next fetch to the position where its reading goes on.
    # Invariant: bounded; the batch with that offset does not lie before that position.
    cursors: dict[int, int] = field(default_factory=dict)

    def apply(self, record: BatchStored, position: int) -> None:
        assert record.first_offset == self.end_offset, "offsets are dense"
        assert record.kept > 0, "a batch with nothing new is not stored"
        self.index.add(record.first_offset, position)
        self.end_offset += record.kept

    def position_of(self, offset: int) -> int | None:
        """Return a position at or before the batch that contains `offset`."""
        cursor = self.cursors.get(offset)
        return self.index.floor(offset) if cursor is None else cursor

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
    # Partitions by number, made at first use: a topic may have many that are never used.
    # Invariant: numbers < `partitions`.
    by_number: dict[int, Partition] = field(default_factory=dict)

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

    def end_offsets(self) -> tuple[int, ...]:
        ends = [0] * self.partitions
        for number, partition in self.by_number.items():
            ends[number] = partition.durable_end_offset
        return tuple(ends)


class TopicTable:
    """All topics. Hard state."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        # By number. Invariant: the n-th topic has number n.
        self.by_number: list[Topic] = []
        # By name. Invariant: the same topics.
        self.by_name: dict[str, Topic] = {}

    def __len__(self) -> int:
        return len(self.by_number)

    def get(self, name: str) -> Topic:
        topic = self.by_name.get(name)
        if topic is None:
            raise self._unknown(name)
        return topic

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
        for topic in self.by_number:
            for number in sorted(topic.by_number):
                yield topic, topic.by_number[number]

    def apply(self, record: TopicCreated) -> None:
        assert record.topic not in self.by_name, "a topic is made once"
        self._add(record.topic, record.topic_id, record.partitions, record.at_ms)

    def apply_configured(self, record: TopicConfigured) -> None:
        self.by_number[record.topic_number].settings = record.settings

    def _add(self, name: str, topic_id: bytes, partitions: int, at_ms: int) -> Topic:
        topic = Topic(len(self), name, topic_id, partitions, at_ms, self._limits)
        self.by_number.append(topic)
        self.by_name[topic.name] = topic
        return topic

    def freeze(self) -> Plain:
        """All but the indexes, as a part of a snapshot."""
        return [
            [
                topic.name,
                topic.topic_id,
                topic.partitions,
                topic.at_ms,
                [
                    [number, partition.end_offset]
                    for number, partition in sorted(topic.by_number.items())
                    if partition.end_offset
                ],
                list(astuple(topic.settings)),
            ]
            for topic in self.by_number
        ]

    def restore(self, part: Plain) -> None:
        for name, topic_id, count, at_ms, partitions, *later in part:
            topic = self._add(name, topic_id, count, at_ms)
            if later:  # snapshots of version 3 have no settings
                topic.settings = TopicSettings(*later[0])
            for number, end_offset in partitions:
                topic.add_partition(number, end_offset)
