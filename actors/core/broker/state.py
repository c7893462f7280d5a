"""What must survive a restart of the broker, and the one function that changes it.

Theory of operation. The driver calls `apply` with each record right after it was appended, and with
the same records when it replays the log, so both ways lead to the same state. No other function of
the broker changes this state; decisions (core.py and its parts) only read it.

A snapshot has three kinds of parts. Topics, producers and groups are written whole, and frozen row
by row over many turns (freezing.py). The offset index grows for ever and only at its end: it is cut
at fixed places into parts that never change once they are full. Most ids lie in files of their own.
A snapshot keeps full parts and files by name; a name stands for the same content for ever.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ...errors import LogRegressed, ProtocolError, UnsupportedFormat
from ...history import MARK_BYTES, History, Place
from ...limits import LIMITS, Limits
from ...outcome import FrozenRow, Keep, NewFile, Snapshot
from ...records import (
    BatchStored,
    GroupGranted,
    GroupRewound,
    HistoryBegun,
    HorizonMarked,
    LedgerReplaced,
    Plain,
    ProducerGranted,
    ProducerRetired,
    Record,
    TopicConfigured,
    TopicCreated,
    TopicDeleted,
    Trimmed,
)
from .freezing import Freezing
from .groups import GroupTable
from .kept import KeptParts, is_kept
from .producers import ProducerTable
from .topics import Partition, Topic, TopicTable

if TYPE_CHECKING:
    from .id_index import IdIndex

# 4 knows when and how much was stored, for retention; 1 and 2 kept all ids of a topic in parts of
# their own. A log that starts above 0 cannot make the state anew: later versions must read 4.
STATE_VERSION = 4


class BrokerState:
    """Hard state of the broker. Its `due`, `made` and `failed` are those of outcome.Files."""

    def __init__(self, secret: bytes, limits: Limits = LIMITS) -> None:
        """`secret`: of the log; all hashes of ids and bodies are made under it."""
        self._secret = secret
        self._limits = limits
        self._ids: IdIndex | None = None
        self._offset_part_bytes = limits.offset_part_bytes
        self.topics = TopicTable(limits)
        self.producers = ProducerTable(limits)
        self.groups = GroupTable()
        # The marks of all generations: one for each start of the broker.
        self.history = History()
        # Volatile: end of what is durable in the log. Only Synced and Recovered move it.
        self.durable_end = 0
        # Time of the latest record. Invariant: never decreases.
        self.last_at_ms = 0
        # Position of the latest record, plus one: everything applied lies below.
        self.applied_end = 0
        # Volatile: below it the log holds nothing that a partition still has, for all of this
        # state. Only the sweeps of retention move it, up.
        self.needed_from = 0
        self.kept = KeptParts()
        # Names of parts of the newest written snapshot that stay true.
        self._frozen: frozenset[str] = frozenset()
        # The same for a snapshot that was handed out, which a full disk may prevent.
        self._offered: frozenset[str] = frozenset()
        # Where the first part begins that the restored snapshot had: no entry lies below.
        self._offsets_from = 0
        # Beginnings of the parts that held an entry at the last sweep, and the end of what it saw.
        self._swept: tuple[frozenset[int], int] = (frozenset(), 0)
        # The snapshot whose rows are being frozen; None: all were.
        self._freezing: Freezing | None = None

    @property
    def ids(self) -> IdIndex:
        """The explicit ids of all topics. With the first one numpy is loaded, which takes a while."""
        if self._ids is None:
            from .id_index import IdIndex

            self._ids = IdIndex(self._secret, self._limits)
        return self._ids

    def due(self) -> list[NewFile | Keep]:
        return [*(self._ids.due() if self._ids is not None else []), *self.kept.due()]

    def made(self, name: str, buffer: Any, path: str) -> None:
        """Raises CorruptLog."""
        if self.kept.is_making(name):
            self.kept.made(len(buffer))
            self.topics.changed = True
        else:
            self.ids.made(name, buffer, path)

    def failed(self, name: str) -> None:
        if self.kept.is_making(name):
            self.kept.failed()
        else:
            self.ids.failed(name)

    def partition_of(self, record: BatchStored) -> tuple[Topic, Partition]:
        topic = self.topics.by_number[record.topic_number]
        return topic, topic.partition(record.partition)

    def check_place(self, place: Place, who: str, hint: str) -> None:
        """Refuse who relied on a past that this log does not have. Raises LogRegressed."""
        if place.mark and not self.history.holds(place, self.durable_end):
            raise LogRegressed(
                f"{who} relies on {place}; {self.history.difference(place, self.durable_end)}. "
                "The broker's data was restored from a backup, or is a copy",
                hint=hint,
            )

    def apply(self, record: Record, position: int) -> None:
        """Apply a record: live right after its append, and on replay."""
        if self._freezing is not None:
            self._freezing.before(record)
        if isinstance(record, BatchStored):
            self._apply_batch(record, position)
        elif isinstance(record, TopicCreated):
            self.topics.apply(record)
        elif isinstance(record, TopicConfigured):
            self.topics.apply_configured(record)
        elif isinstance(record, HorizonMarked):
            self.topics.apply_horizon(record)
            self.ids.forget(self.topics.by_number.values())
        elif isinstance(record, Trimmed):
            self.topics.apply_trimmed(record)
        elif isinstance(record, TopicDeleted):
            self._apply_deleted(record)
        elif isinstance(record, ProducerGranted):
            self.producers.apply_granted(record)
        elif isinstance(record, ProducerRetired):
            self.producers.apply_retired(record)
        elif isinstance(record, HistoryBegun):
            self.history.begin(record.mark, position)
        elif isinstance(record, GroupRewound):
            self.groups.apply_rewound(record)
        elif isinstance(record, LedgerReplaced):
            pass  # the grant that follows names the other ledger
        else:
            assert isinstance(record, GroupGranted), f"not a record of a broker: {record}"
            self.groups.apply(record)
            self.producers.apply_group(record)
        self.last_at_ms = max(self.last_at_ms, record.at_ms)
        self.applied_end = position + 1

    def _apply_batch(self, record: BatchStored, position: int) -> None:
        topic, partition = self.partition_of(record)
        if record.first_sequence >= 0:
            self.producers.apply_batch(record, position)
        else:
            self.ids.add(record, topic)
            topic.ids += record.kept
        partition.apply(record, position)

    def _apply_deleted(self, record: TopicDeleted) -> None:
        """Ids of the topic may stay in the index: their hashes hold its number, which is not given again."""
        topic = self.topics.apply_deleted(record)
        self.groups.forget_topic(topic.name)
        self.producers.forget_topic(topic.number)
        if self._ids is not None:
            self._ids.forget(self.topics.by_number.values())

    # --- snapshot --------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """New parts, and the names of unchanged parts of the last snapshot."""
        parts: dict[str, Plain] = {
            "broker": [
                STATE_VERSION,
                self.last_at_ms,
                self.applied_end,
                self.topics.next_number,
            ],
            "history": [list(begin) for begin in self.history.begins],
        }
        keep = set()
        if self._ids is not None:
            parts["ids"], files = self._ids.freeze()
            keep.update(files)
        keep.update(self.kept.offer())
        made: dict[str, tuple[int, int]] = {}
        for start in self._offset_parts():
            end = min(start + self._offset_part_bytes, self.applied_end)
            name = f"offsets-{start}-{end}"
            if name in self._frozen:
                keep.add(name)
            else:
                made[name] = (start, end)
        names = (*keep, *made)
        self._offered = frozenset(name for name in names if name.startswith("offsets-"))
        self._freezing = Freezing(self.topics, self.producers, self.groups, made)
        return Snapshot(parts, frozenset(keep), self._freezing.lists, self._rows(self._freezing))

    def _rows(self, freezing: Freezing) -> Iterator[FrozenRow]:
        yield from freezing.rows()
        if self._freezing is freezing:
            self._freezing = None

    def snapshot_written(self) -> None:
        """Allow the next snapshot to keep parts of the last one, which is durable now."""
        self._frozen = self._offered
        self.kept.written()
        self.topics.changed |= bool(self.kept.parts)

    def _offset_parts(self) -> list[int]:
        """Return where the parts begin that may hold an entry.

        Some may be empty, which costs little; to look at every partition would hold up the turn.
        """
        size, (used, end) = self._offset_part_bytes, self._swept
        since = range(max(end // size * size, self._offsets_from), self.applied_end, size)
        return sorted({*used, *since})

    def offset_parts_of(self, partition: Partition) -> Iterator[int]:
        """Yield where the parts begin that hold an entry of a partition."""
        size, at = self._offset_part_bytes, partition.index.next_entry(0)
        while at is not None:
            start = at // size * size
            yield start
            at = partition.index.next_entry(start + size)

    def swept(self, needed_from: int, used: frozenset[int], end: int) -> None:
        """Take what a sweep found: what it says of parts holds for entries below `end`."""
        self.needed_from, self._swept = needed_from, (used, end)

    def restore(self, parts: dict[str, Plain]) -> None:
        """Become the state that `snapshot` returned; all of it is durable."""
        version, *broker = parts["broker"]
        if version != STATE_VERSION:
            raise UnsupportedFormat(
                f"a snapshot of version {version}: this OnceMQ makes the state of version "
                f"{STATE_VERSION} from the log's records instead"
            )
        if "ids" in parts:
            self.ids.restore(parts["ids"], parts)
        self.last_at_ms, self.applied_end, next_number = broker
        self.topics.restore(parts["topics"], next_number)
        self.kept.restore({name: len(part.buffer) for name, part in parts.items() if is_kept(name)})
        self.producers.restore(parts["producers"])
        self.groups.restore(parts["groups"])
        self.history = History((mark, at) for mark, at in parts["history"])
        names = [name for name in parts if name.startswith("offsets-")]
        for name in sorted(names, key=_place_of):
            self._restore_offsets(parts[name])
        for _, partition in self.topics.partitions():
            partition.forget_trimmed()
        self._frozen = frozenset(names)
        self._offsets_from = min((_place_of(name)[0] for name in names), default=0)

    def _restore_offsets(self, part: Plain) -> None:
        """A part that is full never changes: it has entries of what was deleted since."""
        for topic_number, partition_number, entries in part:
            topic = self.topics.by_number.get(topic_number)
            if topic is None:
                continue
            partition = topic.partition(partition_number)
            for entry in entries:
                partition.index.restore_entry(*entry)


def checked_place(mark: bytes, position: int) -> Place:
    """Return the place that a request names. Raises ProtocolError."""
    if mark and len(mark) != MARK_BYTES:
        raise ProtocolError(f"a mark is {MARK_BYTES} random bytes")
    return Place(mark, position)


def _place_of(name: str) -> list[int]:
    """Return the numbers in the name of a part, by which parts are restored in order."""
    return [int(number) for number in name.split("-")[1:]]
