"""Producer names: the live owner, and the next sequence number in each partition.

Theory of operation. A producer name has one live owner: the incarnation with the highest epoch.
A grant is a record, so a replaced owner is refused for ever, also after a restart. Numbers belong
to (producer, topic, partition), are contiguous, start at 0 and go on over epochs; `next_sequence`
alone tells which are stored. "Newer than the highest seen" would not do: ZeroMQ drops messages
silently, and a resend of lost ones would look like duplicates.

Each row has a short list of places, to find a stored number. A full list drops every second entry of
its older half: the newest batches, which are the usual resends, stay exact, and older ones are found
by reading on from the nearest entry.

An idle name may be retired: of its rows only the next numbers and digests stay. The incarnation that had it is
refused; the next one goes on. A number from before is known and has no offset any more.

A number whose message was deleted is not found in the log. Its offset follows from the row's runs: in a
run, offsets and numbers go up together. A producer that is alone in its partition has one run for
ever; where several take turns, each turn begins a run, and a full list drops the oldest ones.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from operator import itemgetter

from ...errors import Fenced, RetiredProducer, UnknownProducer
from ...ids import output_producer
from ...limits import Limits
from ...protocol import DUPLICATE, UNKNOWN_OFFSET
from ...records import BatchStored, GroupGranted, Plain, ProducerGranted, ProducerRetired
from .verdicts import Runs

RowKey = tuple[int, int]  # topic number, partition
# About how much memory these take, for people.
_NAME_BYTES, _NONCE_BYTES, _ROW_BYTES, _PLACE_BYTES, _KEPT_BYTES = 600, 150, 500, 150, 200


@dataclass(slots=True)
class Row:
    """What one producer has written to one partition."""

    # The next number to store. Invariant: all below are stored, each once.
    next_sequence: int = 0
    # Running digest that came with the last batch; b"": none.
    digest: bytes = b""
    # First new number of some stored batches. Invariant: rising, bounded, as long as `positions`.
    sequences: list[int] = field(default_factory=list)
    # Their positions in the log. Invariant: rising.
    positions: list[int] = field(default_factory=list)
    # Runs: first number and first offset of each. Invariant: rising in both, bounded.
    runs: list[tuple[int, int]] = field(default_factory=list)

    def apply(self, record: BatchStored, position: int) -> None:
        first_new = record.first_sequence + record.count - record.kept
        assert first_new == self.next_sequence, "sequence numbers are contiguous"
        if self.offset_of(first_new) != record.first_offset:
            self.runs.append((first_new, record.first_offset))
        self.next_sequence += record.kept
        self.digest = record.digest
        self.sequences.append(first_new)
        self.positions.append(position)

    def thin(self) -> None:
        """Drop every second place of the older half."""
        half = len(self.sequences) // 2
        self.sequences[:half] = self.sequences[:half:2]
        self.positions[:half] = self.positions[:half:2]

    def offset_of(self, sequence: int) -> int:
        """Return the offset of a number, as far as it is still known; else UNKNOWN_OFFSET."""
        place = bisect_right(self.runs, sequence, key=itemgetter(0)) - 1
        if place < 0:
            return UNKNOWN_OFFSET
        first_sequence, first_offset = self.runs[place]
        return first_offset + sequence - first_sequence

    def add_known(self, runs: Runs, sequence: int, count: int) -> None:
        """Add the verdict on numbers whose messages are deleted: known, each at its offset."""
        end = sequence + count
        following = (first for first, _ in self.runs if sequence < first < end)
        for stop in [*following, end]:
            runs.add(stop - sequence, DUPLICATE, self.offset_of(sequence))
            sequence = stop

    def floor(self, sequence: int) -> int:
        """Return a position at or before the batch that holds `sequence`, if it is known at all."""
        assert 0 <= sequence < self.next_sequence
        if not self.positions:
            return 0  # of a time before the name was retired
        return self.positions[max(0, bisect_right(self.sequences, sequence) - 1)]


@dataclass(slots=True)
class Producer:
    name: str
    # The live epoch. Invariant: never decreases; 0 before the first grant.
    epoch: int = 0
    # Host and pid of the owner, for messages to people.
    label: str = ""
    # Nonces of the last grants and their epochs. Invariant: bounded, epochs rising.
    nonces: dict[bytes, int] = field(default_factory=dict)
    rows: dict[RowKey, Row] = field(default_factory=dict)
    # Time of the latest record that names it.
    last_at_ms: int = 0
    # Next number and digest of each row of a retired name, whose `rows` are empty; None: not retired.
    kept: dict[RowKey, tuple[int, bytes]] | None = None

    def retire(self) -> None:
        self.kept = self.numbers_and_digests()
        self.rows = {}

    def unretire(self) -> None:
        if self.kept is not None:
            self.rows = {key: Row(number, digest) for key, (number, digest) in self.kept.items()}
            self.kept = None

    def numbers_and_digests(self) -> dict[RowKey, tuple[int, bytes]]:
        """Return the next number and the digest of each row."""
        if self.kept is not None:
            return self.kept
        return {key: (row.next_sequence, row.digest) for key, row in self.rows.items()}

    def memory_bytes(self) -> int:
        """Return about how many bytes of memory it takes."""
        places = sum(
            _PLACE_BYTES * (len(row.positions) + len(row.runs)) for row in self.rows.values()
        )
        rows = len(self.rows) * _ROW_BYTES + len(self.kept or ()) * _KEPT_BYTES
        return _NAME_BYTES + len(self.nonces) * _NONCE_BYTES + rows + places

    def check(self, epoch: int) -> None:
        """Raises Fenced, UnknownProducer, RetiredProducer unless `epoch` is the live one."""
        if epoch == self.epoch:
            if self.kept is not None:
                raise RetiredProducer(f"producer {self.name} was idle for long and is retired")
            return
        if epoch > self.epoch:
            raise UnknownProducer(f"producer {self.name} never had epoch {epoch}")
        raise Fenced(
            f"producer {self.name} was taken over by {self.label or 'another process'}: "
            f"epoch {epoch} ended, epoch {self.epoch} lives",
            hint="give each worker its own name, or send with id= and no producer name",
        )

    def next_sequence(self, key: RowKey) -> int:
        row = self.rows.get(key)
        return 0 if row is None else row.next_sequence


class ProducerTable:
    """All producer names. Hard state."""

    def __init__(self, limits: Limits) -> None:
        self._nonces_kept = limits.producer_nonces_kept
        self._places_max = limits.producer_index_entries_max
        self.by_name: dict[str, Producer] = {}
        self.retired = 0  # how many of them are

    def __len__(self) -> int:
        """How many names are not retired: those have a bound of their own."""
        return len(self.by_name) - self.retired

    def checked(self, name: str, epoch: int) -> Producer:
        """Return the producer if `epoch` is its live one. Raises what its `check` raises."""
        producer = self.by_name.get(name)
        if producer is None:
            raise UnknownProducer(f"producer {name} was never granted")
        producer.check(epoch)
        return producer

    def granted_epoch(self, name: str, nonce: bytes) -> int | None:
        """Return the live epoch if `nonce` holds it, None if it never held one.

        Raises Fenced, RetiredProducer.
        """
        producer = self.by_name.get(name)
        epoch = None if producer is None else producer.nonces.get(nonce)
        if producer is not None and epoch is not None:
            producer.check(epoch)
        return epoch

    def apply_granted(self, record: ProducerGranted) -> None:
        producer = self._get(record.producer)
        assert record.epoch > producer.epoch, "epochs rise"
        self.retired -= producer.kept is not None
        producer.unretire()
        producer.last_at_ms = record.at_ms
        producer.epoch = record.epoch
        producer.label = record.label
        producer.nonces[record.nonce] = record.epoch
        while len(producer.nonces) > self._nonces_kept:
            del producer.nonces[next(iter(producer.nonces))]

    def apply_retired(self, record: ProducerRetired) -> None:
        self.by_name[record.producer].retire()
        self.retired += 1

    def apply_group(self, record: GroupGranted) -> None:
        """Give the output producer of a grant the grant's epoch: they are fenced as one."""
        producer = self._get(output_producer(record.group, record.topic, record.partition))
        assert record.epoch > producer.epoch, "epochs rise"
        producer.epoch = record.epoch
        producer.label = record.label
        producer.nonces = {record.incarnation: record.epoch}
        producer.last_at_ms = record.at_ms

    def apply_batch(self, record: BatchStored, position: int) -> None:
        producer = self.by_name[record.producer]
        producer.last_at_ms = record.at_ms
        rows = producer.rows
        key = (record.topic_number, record.partition)
        row = rows.get(key)
        if row is None:
            row = rows[key] = Row()
        if len(row.sequences) >= self._places_max:
            row.thin()
        row.apply(record, position)
        if len(row.runs) > self._places_max:
            del row.runs[0]

    def forget_topic(self, topic_number: int) -> None:
        """Numbers belong to a topic. Epochs stay, so that no owner of before ever counts again."""
        for producer in self.by_name.values():
            for rows in (producer.rows, producer.kept or {}):
                for key in [key for key in rows if key[0] == topic_number]:
                    del rows[key]

    def _get(self, name: str) -> Producer:
        producer = self.by_name.get(name)
        if producer is None:
            producer = self.by_name[name] = Producer(name)
        return producer

    def freeze(self, name: str) -> Plain:
        """Return a producer as a row of a snapshot. The row shares nothing with it."""
        producer = self.by_name[name]
        return [
            producer.name,
            producer.epoch,
            producer.label,
            [[nonce, epoch] for nonce, epoch in producer.nonces.items()],
            [
                [
                    *key,
                    row.next_sequence,
                    row.digest,
                    [*row.sequences],
                    [*row.positions],
                    [*row.runs],
                ]
                for key, row in sorted(producer.rows.items())
            ]
            or [
                [*key, number, digest, [], [], []]
                for key, (number, digest) in sorted((producer.kept or {}).items())
            ],
            producer.last_at_ms,
            producer.kept is not None,
        ]

    def restore(self, part: Plain) -> None:
        for name, epoch, label, nonces, rows, last_at_ms, retired in part:
            producer = self.by_name[name] = Producer(name, epoch, label)
            producer.nonces, producer.last_at_ms = dict(map(tuple, nonces)), last_at_ms
            for topic_number, partition, next_sequence, digest, sequences, positions, runs in rows:
                producer.rows[topic_number, partition] = Row(
                    next_sequence,
                    digest,
                    list(sequences),
                    list(positions),
                    [(first, offset) for first, offset in runs],
                )
            if retired:
                producer.retire()
                self.retired += 1
