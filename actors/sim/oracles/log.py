"""What the broker's log has promised, kept outside of every crash and checked record by record.

Theory of operation. A record counts from the moment a sync that covers it has returned to its
writer, or a recovery has shown it. From then on it must stand at its position in every later
generation, and what it says must agree with all records before it. Each record is looked at once,
so the checks cost little; what is compared again at each recovery are bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import compress
from math import inf

from ...batch import Batch
from ...codec import records as record_codec
from ...core.broker.verdicts import kept_of
from ...core.consumer.inputs import DROPPED_HEADERS
from ...ids import DEAD_SUFFIX, INTERNAL_MARK, dead_topic
from ...proof.parse.log import Log
from ...records import (
    BatchStored,
    GroupGranted,
    GroupRewound,
    HistoryBegun,
    HorizonMarked,
    LedgerReplaced,
    ProducerGranted,
    ProducerRetired,
    Record,
    TopicConfigured,
    TopicCreated,
    Trimmed,
)
from ...topic_settings import FOREVER
from ..disk.disk import SimDisk
from ..processes.handler import Target, encoded_body, identity_of, original_of
from ..trace import Violation

Place = tuple[str, str, int]  # group, topic, partition
CREATED_AHEAD_MS = 500  # Limits.created_ahead_ms_max of a simulated world
Raw = tuple[int, bytes, bytes]  # type, meta, body


@dataclass(slots=True)
class RecordOracle:
    """The durable records of one log by position. Subclasses say what a record may be."""

    name: str
    records: dict[int, Raw]  # Invariant: positions rise in the order of insertion
    last_position: int = -1

    def __init__(self, name: str) -> None:
        self.name = name
        self.records = {}
        self.last_position = -1

    def durable(self, position: int, raw: Raw) -> None:
        """Take a record whose sync has returned, or that a recovery shows."""
        known = self.records.get(position)
        if known is not None:
            self.same(position, raw)
            return
        if position <= self.last_position:
            raise Violation(
                "zombie bytes", f"{self.name}: a record at {position}, below {self.last_position}"
            )
        self.records[position] = raw
        self.last_position = position
        kind, meta, body = raw
        self.observe(record_codec.decode(kind, meta, body, 0, columns=True), position)

    def same(self, position: int, raw: Raw) -> None:
        """Check a record that was read against what was promised."""
        known = self.records.get(position)
        if known != raw:
            what = "was never promised" if known is None else "is another one than before"
            raise Violation("changed record", f"{self.name}: the record at {position} {what}")

    def recovered(self, start: int, found: list[tuple[int, Raw]]) -> None:
        promised = [position for position in self.records if position >= start]
        shown = [position for position, _ in found]
        if shown[: len(promised)] != promised:
            lost = sorted(set(promised) - set(shown))
            raise Violation("lost record", f"{self.name}: promised and not recovered: {lost[:5]}")
        for position, raw in found:
            self.durable(position, raw)

    def observe(self, record: Record, position: int) -> None:
        raise AssertionError(f"nobody looks at {record} at {position}")


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A message at its offset."""

    identity: bytes
    body: bytes
    producer: str
    sequence: int  # -1 with an explicit id
    position: int
    original: bytes = b""  # whose letter or replay it is; b"" for what drops a letter


class BrokerOracle(RecordOracle):
    """The log as a plain list of messages for each partition."""

    def __init__(
        self,
        retain: Mapping[str, str] | None = None,
        committed: Callable[[GroupGranted], int | None] = lambda _grant: None,
    ) -> None:
        """`retain`: the bounds of topics. `committed` tells where the ledger of a grant stands."""
        super().__init__("broker log")
        self.retain = retain or {}
        self._committed = committed
        # The first offset of each partition from which messages were deleted.
        self.starts: dict[Target, int] = {}
        self.topics: list[TopicCreated] = []
        self.messages: dict[Target, list[StoredMessage]] = {}
        self.by_identity: dict[bytes, tuple[int, StoredMessage]] = {}  # id to partition, message
        self.producer_epochs: dict[str, int] = {}
        self.retired: set[str] = set()  # names that nobody has taken up again
        self.next_sequence: dict[tuple[str, str, int], int] = {}  # producer, topic, partition
        self.grants: dict[Place, GroupGranted] = {}
        self.replaced: dict[Place, GroupGranted] = {}  # the grant before that one
        # What ledgers have committed to be sent, by output producer and target.
        self.outputs: dict[tuple[str, str, int], list[bytes]] = {}
        # Bodies that users have sent: nothing else may be stored.
        self.sent: set[bytes] = set()
        # Batches that processes have sent: raw bytes to (process, number, rising).
        self.submitted: dict[bytes, tuple[str, int]] = {}
        self._last_number: dict[tuple[str, str, int], int] = {}
        self.last_at_ms = 0
        # Of topics that have, or had, a dedup horizon.
        self.settings: dict[str, TopicConfigured] = {}
        self._since_ms: dict[str, int] = {}  # when the horizon was set last
        self.floors: dict[str, int] = {}
        self.forgotten_ms: dict[str, int] = {}
        # When each message of an id was stored, by topic and id, then by the time of the message.
        self.times_of: dict[tuple[str, bytes], dict[int, int]] = {}
        self.marks: dict[bytes, int] = {}  # with the position where each begins
        self._generation = 0  # of the last mark

    def partitions(self) -> dict[str, int]:
        return {created.topic: created.partitions for created in self.topics}

    def observe(self, record: Record, position: int) -> None:
        if isinstance(record, BatchStored):
            self._batch(record, position)
        elif isinstance(record, TopicCreated):
            if record.topic in self.partitions():
                raise Violation("topic twice", record.topic)
            self.topics.append(record)
            for partition in range(record.partitions):
                self.messages[record.topic, partition] = []
        elif isinstance(record, TopicConfigured):
            topic = self.topics[record.topic_number].topic
            if record.settings.retain != self.retain.get(topic, FOREVER):
                raise Violation("topic configured", f"nobody has asked for {record}")
            self._dedup(topic, record)
        elif isinstance(record, Trimmed):
            self._trimmed(record)
        elif isinstance(record, HorizonMarked):
            self._horizon(record)
        elif isinstance(record, ProducerGranted):
            self._epoch(record.producer, record.epoch)
        elif isinstance(record, GroupGranted):
            self._grant(record)
        elif isinstance(record, LedgerReplaced):
            raise Violation("ledger replaced", f"no operator has asked for {record}")
        elif isinstance(record, GroupRewound):
            self._rewound(record)
        elif isinstance(record, ProducerRetired):
            if record.producer.startswith(INTERNAL_MARK) or record.producer in self.retired:
                raise Violation("retired", f"{record.producer} may not be retired now")
            self.retired.add(record.producer)
        elif isinstance(record, HistoryBegun):
            self._history(record, position)
        else:
            raise Violation("foreign record", f"{record} in the broker's log")
        if record.at_ms < self.last_at_ms:
            raise Violation("time goes back", f"{record.at_ms} after {self.last_at_ms}")
        self.last_at_ms = record.at_ms

    def _dedup(self, topic: str, record: TopicConfigured) -> None:
        known = self.settings.get(topic)
        if known is None and record.dedup_ms is None:
            return
        if known is None or known.dedup_ms != record.dedup_ms:
            self._since_ms[topic] = record.at_ms
        self.settings[topic] = record

    def _horizon(self, record: HorizonMarked) -> None:
        """A horizon moves up only, by what is set for so long, and forgets what is older than it."""
        topic = self.topics[record.topic_number].topic
        dedup_ms, floor_ms = self.settings[topic].dedup_ms, self.floors.get(topic, 0)
        if record.floor_ms < floor_ms or record.forgotten_ms < self.forgotten_ms.get(topic, 0):
            raise Violation("horizon goes back", f"{topic}: {record} after {floor_ms}")
        moved = record.floor_ms > floor_ms
        if dedup_ms is None or (moved and record.floor_ms > record.at_ms - dedup_ms):
            raise Violation("horizon ahead", f"{topic}: {record} with {dedup_ms}")
        if moved and record.at_ms - self._since_ms[topic] < dedup_ms:
            raise Violation("forgotten at once", f"{topic}: {record}, set {self._since_ms[topic]}")
        if record.forgotten_ms and record.forgotten_ms + CREATED_AHEAD_MS >= record.floor_ms:
            raise Violation("forgotten too early", f"{topic}: {record}")
        self.floors[topic], self.forgotten_ms[topic] = record.floor_ms, record.forgotten_ms

    def _dated(self, topic: str, batch: Batch, index: int, at_ms: int) -> bytes:
        """Return what a message of a topic with a horizon is known by besides its id: its time."""
        if topic not in self.settings:
            return b""
        assert batch.ids is not None
        assert batch.created_at_ms is not None
        created_ms, floor_ms = batch.created_at_ms[index], self.floors.get(topic, 0)
        if not floor_ms <= created_ms <= at_ms + CREATED_AHEAD_MS:
            raise Violation("stored out of time", f"{topic}: {created_ms}, floor {floor_ms}")
        times = self.times_of.setdefault((topic, batch.ids[index]), {})
        if max(times.values(), default=-1) > self.forgotten_ms.get(topic, 0):
            raise Violation("stored twice", f"{batch.ids[index]!r} of {created_ms} beside {times}")
        times[created_ms] = at_ms
        return b"@%d" % created_ms

    def _trimmed(self, record: Trimmed) -> None:
        """Only durable messages of a bounded topic go, and none before a group has passed it."""
        topic = self.topics[record.topic_number].topic
        place = (topic, record.partition)
        if not self.starts.get(place, 0) < record.below <= len(self.messages[place]):
            raise Violation("trimmed", f"{place} from {self.starts.get(place, 0)} by {record}")
        if topic not in self.retain or (record.why == "processed") != (
            self.retain[topic] == "processed"
        ):
            raise Violation("trimmed", f"nobody has asked for {record}")
        self.starts[place] = record.below
        if record.why != "processed":
            return
        groups = {group for group, of_topic, _ in self.grants if of_topic == topic}
        for group in sorted(groups):
            grant = self.grants.get((group, topic, record.partition))
            committed = 0 if grant is None else self._committed(grant)
            if committed is not None and committed < record.below:
                raise Violation("trimmed below a group", f"{group} is at {committed}: {record}")

    def _history(self, record: HistoryBegun, position: int) -> None:
        """Each generation begins one history, under a mark of its own."""
        if record.mark in self.marks or record.generation <= self._generation:
            raise Violation("history", f"{record.mark.hex()} of {record.generation} comes late")
        self.marks[record.mark] = position
        self._generation = record.generation

    def history_end(self, mark: bytes) -> float:
        """Return where the history under a mark ends, as far as was promised; -1: there is none."""
        if mark not in self.marks:
            return -1
        later = [at for at in self.marks.values() if at > self.marks[mark]]
        return min(later, default=inf)

    def _epoch(self, producer: str, epoch: int) -> None:
        if epoch <= self.producer_epochs.get(producer, 0):
            raise Violation("epoch", f"{producer} was granted {epoch} a second time")
        self.producer_epochs[producer] = epoch
        self.retired.discard(producer)

    def _grant(self, record: GroupGranted) -> None:
        place = (record.group, record.topic, record.partition)
        last = self.grants.get(place)
        if last is not None and record.next_offset < last.next_offset:
            raise Violation("offset goes back", f"{place} granted at {record.next_offset}")
        if record.next_offset > len(self.messages[record.topic, record.partition]):
            raise Violation("grant ahead", f"{place} at {record.next_offset}, beyond the log")
        self._epoch(f"@{record.group}/{record.topic}/{record.partition}", record.epoch)
        if last is not None:
            self.replaced[place] = last
        self.grants[place] = record

    def _rewound(self, record: GroupRewound) -> None:
        """Only the owner of the partition may allow a rewind."""
        place = (record.group, record.topic, record.partition)
        last = self.grants[place]
        if record.epoch != last.epoch:
            raise Violation("rewound", f"{place} under epoch {record.epoch}, not {last.epoch}")
        self.grants[place] = replace(last, next_offset=min(last.next_offset, record.next_offset))

    def _batch(self, record: BatchStored, position: int) -> None:
        topic, batch = self.topics[record.topic_number].topic, record.batch
        assert batch is not None
        log = self.messages[topic, record.partition]
        if record.first_offset != len(log):
            raise Violation("offsets", f"{topic}/{record.partition} at {record.first_offset}")
        if record.producer in self.retired:
            raise Violation("retired stored", f"{record.producer} at {position}")
        if record.producer and record.epoch != self.producer_epochs.get(record.producer):
            raise Violation(
                "zombie stored", f"{record.producer} under epoch {record.epoch} at {position}"
            )
        kept = list(compress(range(record.count), kept_of(record.mask, record.count)))
        if len(kept) != record.kept or not kept:
            raise Violation("mask", f"{record.kept} kept, the mask says {len(kept)}")
        if record.first_sequence >= 0:
            self._numbers(topic, record, kept)
        assert batch.ids is not None or record.first_sequence >= 0
        ids = [] if batch.ids is None else [batch.ids[index] for index in kept]
        # An id that was forgotten comes as a new message: what it was before, a duplicate, was
        # not stored, and said nothing of the order.
        if not any((topic, one) in self.times_of for one in ids):
            self._order(topic, record)
        for index in kept:
            sequence = record.first_sequence + index if record.first_sequence >= 0 else -1
            identity = identity_of(topic, record, batch, index)
            identity += self._dated(topic, batch, index, record.at_ms)
            original = b""
            internal = INTERNAL_MARK in topic or topic.endswith(DEAD_SUFFIX)
            if internal and batch.headers is not None:
                dropped = batch.headers[index] == DROPPED_HEADERS
                original = b"" if dropped else original_of(batch, index)
            message = StoredMessage(
                identity, batch.body(index), record.producer, sequence, position, original
            )
            self._message(topic, record.partition, message)
            log.append(message)

    def _order(self, topic: str, record: BatchStored) -> None:
        """What one process sent to one partition is stored in the order in which it was sent."""
        process, number = self.submitted.get(bytes(record.raw), ("", 0))
        key = (process, topic, record.partition)
        if process and number <= self._last_number.get(key, 0):
            raise Violation("order", f"batch {number} of {process} comes after a later one")
        self._last_number[key] = number

    def _numbers(self, topic: str, record: BatchStored, kept: list[int]) -> None:
        key = (record.producer, topic, record.partition)
        expected = self.next_sequence.get(key, 0)
        numbers = [record.first_sequence + index for index in kept]
        if numbers != list(range(expected, expected + len(kept))):
            raise Violation("sequence", f"{key}: {numbers} stored, {expected} expected")
        self.next_sequence[key] = expected + len(kept)

    def _message(self, topic: str, partition: int, message: StoredMessage) -> None:
        known = self.by_identity.get(message.identity)
        if known is not None:
            raise Violation("stored twice", f"{message.identity!r} in {topic}/{partition}")
        self.by_identity[message.identity] = (partition, message)
        if INTERNAL_MARK in topic:
            self._replay(topic, message)
            return
        if not message.producer.startswith("@"):
            if message.body not in self.sent:
                raise Violation("invented", f"{message.identity!r} was never sent")
            return
        committed = self.outputs.get((message.producer, topic, partition), [])
        if message.sequence >= len(committed):
            raise Violation("output before commit", f"{message.identity!r}")
        if committed[message.sequence] != message.body:
            raise Violation("wrong output", f"{message.identity!r} is not what was committed")

    def _replay(self, topic: str, message: StoredMessage) -> None:
        """What is sent to a private topic is a letter that its group has parked."""
        place = message.identity.rpartition(b"?sdead:")[2].split(b":")
        dead = dead_topic(topic.partition(INTERNAL_MARK)[0])
        letters = self.messages.get((dead, int(place[0])), [])
        if int(place[1]) >= len(letters) or letters[int(place[1])].body != message.body:
            raise Violation("invented", f"{message.identity!r} is no dead letter of {topic}")

    def committed_output(
        self, producer: str, target: Target, sequence: int, key: bytes | None, value: bytes
    ) -> None:
        """Take a message that a durable commit sends; the same number always means the same."""
        known = self.outputs.setdefault((producer, *target), [])
        body = encoded_body(key, value)
        if sequence > len(known) or (sequence < len(known) and known[sequence] != body):
            raise Violation("output numbers", f"{producer} to {target}: {sequence}")
        if sequence == len(known):
            known.append(body)


def read_back(disk: SimDisk, directory: str, oracle: RecordOracle) -> None:
    """Read a log by the proof's own parser; it must hold what was promised and nothing else."""
    log = Log.look(disk, directory)
    if log is None:
        raise Violation("lost log", f"{oracle.name}: nothing in {directory}")
    found = [
        (frame.position, (frame.kind, frame.meta, bytes(frame.body)))
        for group in log.groups()
        for frame in group.frames
    ]
    oracle.recovered(log.start, found)
    bases = [head for head in log.snapshots if head.position >= log.start]
    for frame in log.frames_before(bases[0]) if log.start else ():
        oracle.same(frame.position, (frame.kind, frame.meta, bytes(frame.body)))
