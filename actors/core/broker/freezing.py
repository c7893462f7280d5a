"""A snapshot of the tables, frozen row by row while the state goes on changing.

Theory of operation. A snapshot shows the state of one moment, but to freeze it in that moment would
stop the broker for as long as its tables are large. So rows are frozen a few at a time, over many
turns, and `before` gets every record before it is applied: a row that the record will change is
frozen first. Entries of offset indexes are only added at the end, so a part of them is the same
whenever it is cut out.

A record of a kind that `before` does not know freezes all that is left at once: slow, never wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ...ids import output_producer
from ...outcome import FrozenRow
from ...records import (
    BatchStored,
    GroupGranted,
    GroupRewound,
    HistoryBegun,
    HorizonMarked,
    Plain,
    ProducerGranted,
    ProducerRetired,
    Record,
    TopicConfigured,
    TopicCreated,
    Trimmed,
)
from .groups import GroupTable
from .producers import ProducerTable
from .topics import TopicTable


class Freezing:
    """The rows of one snapshot: of topics and their offset indexes, of producers, of groups."""

    def __init__(
        self,
        topics: TopicTable,
        producers: ProducerTable,
        groups: GroupTable,
        offset_parts: Mapping[str, tuple[int, int]],
    ) -> None:
        """`offset_parts`: those that are to be made, each with the positions that it covers."""
        self._topics = topics
        self._offset_parts = offset_parts
        self._tables: dict[str, tuple[dict[Any, Any], Callable[[Any], Plain]]] = {
            "topics": (topics.by_number, topics.freeze),
            "producers": (producers.by_name, producers.freeze),
            "groups": (groups.grants, groups.freeze),
        }
        # Rows of the snapshot in their order, and those that are not frozen yet (of a copy of the
        # table, which is quick to make, only the keys count).
        self._order = {part: [*table] for part, (table, _) in self._tables.items()}
        self._left: dict[str, dict[Any, Any]] = {
            part: {**table} for part, (table, _) in self._tables.items()
        }
        # Frozen before their turn, by part and key.
        self._early: dict[tuple[str, Any], list[FrozenRow]] = {}

    @property
    def lists(self) -> frozenset[str]:
        """The names of the parts that consist of rows."""
        return frozenset((*self._order, *self._offset_parts))

    def rows(self) -> Iterator[FrozenRow]:
        """Freeze and yield one row after the other."""
        for part, order in self._order.items():
            for key in order:
                self._take(part, key)
                yield from self._early.pop((part, key))

    def before(self, record: Record) -> None:
        """Freeze what `record` will change: it is applied next."""
        if isinstance(record, BatchStored):
            self._take("topics", record.topic_number)
            self._take("producers", record.producer)
        elif isinstance(record, Trimmed | TopicConfigured | HorizonMarked):
            self._take("topics", record.topic_number)
        elif isinstance(record, ProducerGranted | ProducerRetired):
            self._take("producers", record.producer)
        elif isinstance(record, GroupGranted | GroupRewound):
            key = (record.group, record.topic, record.partition)
            self._take("groups", key)
            self._take("producers", output_producer(*key))
        elif not isinstance(record, TopicCreated | HistoryBegun):
            for part, left in self._left.items():
                for key in [*left]:
                    self._take(part, key)

    def _take(self, part: str, key: Any) -> None:
        """Freeze a row, unless it was frozen, or is newer than the snapshot."""
        if self._left[part].pop(key, None) is None:
            return
        _, freeze = self._tables[part]
        rows = self._early[part, key] = [FrozenRow(part, freeze(key))]
        if part == "topics":
            partitions = sorted(self._topics.by_number[key].by_number.items())
            for name, (start, end) in self._offset_parts.items():
                for number, partition in partitions:
                    if entries := partition.index.entries(start, end):
                        rows.append(FrozenRow(name, [key, number, entries]))
