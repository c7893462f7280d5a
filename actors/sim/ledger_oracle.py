"""What a ledger has promised: a dumb model that is fed with the broker's log in order.

For each durable commit the model handles the messages from its own offset up to the committed one,
with a full set of ids and nothing clever, and compares: state changes, outputs, ids, offset.
"""

from __future__ import annotations

from itertools import groupby

from ..codec import batch as batch_codec
from ..core.processed import FINGERPRINT_BYTES
from ..ids import output_producer
from ..records import Committed, LedgerStarted, Record
from .handler import Group, Target, handle
from .oracle import BrokerOracle, RecordOracle, StoredMessage
from .trace import Violation


class LedgerOracle(RecordOracle):
    """One ledger directory."""

    def __init__(self, name: str, group: Group, partition: int, broker: BrokerOracle) -> None:
        super().__init__(f"ledger {name}")
        self.group = group
        self.partition = partition
        self.broker = broker
        self.started: LedgerStarted | None = None
        self.next_offset = 0
        self.commit_no = 0
        self.epoch = 0
        self.state: dict[str, bytes] = {}
        self.ids: set[bytes] = set()
        self.next_sequence: dict[Target, int] = {}
        self.producer = output_producer(group.name, group.topic, partition)

    def copy(self, name: str) -> LedgerOracle:
        """Return the oracle of a directory into which this one was copied just now."""
        other = LedgerOracle(name, self.group, self.partition, self.broker)
        for position, raw in self.records.items():
            other.durable(position, raw)
        return other

    def observe(self, record: Record, position: int) -> None:
        """See the base class."""
        if isinstance(record, LedgerStarted):
            topic_ids = {created.topic: created.topic_id for created in self.broker.topics}
            place = (record.group, record.topic, record.partition)
            if self.started is not None or record.topic_id != topic_ids[self.group.topic]:
                raise Violation("ledger start", f"{self.name} at {position}")
            if place != (self.group.name, self.group.topic, self.partition):
                raise Violation("ledger start", f"{self.name} holds the ledger of {place}")
            self.started = record
            self.next_offset = record.start_offset
        elif isinstance(record, Committed):
            self._commit(record)
        else:
            raise Violation("foreign record", f"{record} in {self.name}")

    def _commit(self, record: Committed) -> None:
        if self.started is None or record.commit_no != self.commit_no + 1:
            raise Violation("commit number", f"{self.name}: {record.commit_no}")
        if record.epoch < self.epoch:
            raise Violation("zombie commit", f"{self.name}: {record.epoch} after {self.epoch}")
        self.commit_no = record.commit_no
        self.epoch = record.epoch
        fresh: list[StoredMessage] = []
        for _, next_offset in record.inputs:
            fresh = self._take(next_offset)
        changes, outputs = self._handle(fresh)
        if record.state != changes:
            raise Violation("wrong effects", f"{self.name}: {record.state} instead of {changes}")
        self._compare_outputs(record, outputs)
        self._compare_ids(record, fresh)
        for topic, partition, sequence in record.acked:
            stored = self.broker.next_sequence.get((self.producer, topic, partition), 0)
            if sequence > stored:
                raise Violation("ack not durable", f"{self.name}: {topic} {sequence} > {stored}")

    def _take(self, next_offset: int) -> list[StoredMessage]:
        """Move to `next_offset`; return the messages that were never handled before."""
        log = self.broker.messages[self.group.topic, self.partition]
        if next_offset < self.next_offset:
            raise Violation("offset goes back", f"{self.name}: {next_offset}")
        if next_offset > len(log):
            raise Violation("commit ahead", f"{self.name}: {next_offset}, the log has {len(log)}")
        fresh = []
        for message in log[self.next_offset : next_offset]:
            if message.identity not in self.ids:
                self.ids.add(message.identity)
                fresh.append(message)
        self.next_offset = next_offset
        return fresh

    def _handle(
        self, messages: list[StoredMessage]
    ) -> tuple[dict[str, bytes | None], list[tuple[Target, bytes | None, bytes]]]:
        before = dict(self.state)
        outputs: list[tuple[Target, bytes | None, bytes]] = []
        partitions = self.broker.partitions()
        touched: set[str] = set()
        for message in messages:
            effects = handle(
                self.group,
                self.partition,
                message.identity,
                message.body,
                self.state.get,
                partitions,
            )
            outputs += effects.outputs
            touched.update(effects.state)
            for name, value in effects.state.items():
                if value is None:
                    self.state.pop(name, None)
                else:
                    self.state[name] = value
        changes = {name: self.state.get(name) for name in touched}
        return {n: v for n, v in changes.items() if v != before.get(n)}, outputs

    def _compare_outputs(
        self, record: Committed, outputs: list[tuple[Target, bytes | None, bytes]]
    ) -> None:
        found: list[tuple[Target, bytes]] = []
        for output in record.outputs:
            target = (output.topic, output.partition)
            if output.first_sequence != self.next_sequence.get(target, 0):
                raise Violation("output numbers", f"{self.name}: {output.first_sequence}")
            batch = batch_codec.parse(output.raw, output.crc, check=True)
            found += [(target, batch.body(index)) for index in range(batch.count)]
            self.next_sequence[target] = output.first_sequence + output.count
        expected = sorted(outputs, key=lambda one: one[0])
        found.sort(key=lambda one: one[0])
        numbers = {
            target: self.next_sequence.get(target, 0) - len(list(of_target))
            for target, of_target in groupby(expected, key=lambda one: one[0])
        }
        if [t for t, _, _ in expected] != [t for t, _ in found]:
            raise Violation("wrong outputs", f"{self.name}: {len(found)}, not {len(expected)}")
        for (target, key, value), (_, body) in zip(expected, found, strict=True):
            self.broker.committed_output(self.producer, target, numbers[target], key, value)
            if self.broker.outputs[self.producer, *target][numbers[target]] != body:
                raise Violation("wrong outputs", f"{self.name}: {value!r} expected")
            numbers[target] += 1

    def _compare_ids(self, record: Committed, fresh: list[StoredMessage]) -> None:
        explicit = sum(message.sequence < 0 for message in fresh)
        if len(record.fingerprints) != explicit * FINGERPRINT_BYTES:
            raise Violation("processed ids", f"{self.name}: not {explicit} explicit ids")
        numbers = {(m.producer, m.sequence) for m in fresh if m.sequence >= 0}
        told = {
            (producer, first + step)
            for producer, first, count in record.ranges
            for step in range(count)
        }
        if numbers != told:
            raise Violation("processed ids", f"{self.name}: {sorted(numbers ^ told)[:4]}")
