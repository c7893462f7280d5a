"""What a ledger has promised: a dumb model that is fed with the broker's log in order.

For each durable commit the model handles the messages from its own offset up to the committed one,
with a full set of ids and nothing clever, and compares: state changes, outputs, ids, offset.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

from ...codec import batch as batch_codec
from ...core.consumer.processed import FINGERPRINT_BYTES, Processed
from ...core.consumer.work import CRASHED, RAISED, REJECTED, UNKNOWN_EFFECT
from ...history import NO_PLACE
from ...ids import dead_topic, output_producer, private_topic, sequence_id
from ...records import (
    AttemptMarked,
    Committed,
    EffectEnded,
    EffectIntended,
    LedgerEnded,
    LedgerStarted,
    Record,
)
from ..processes.handler import Group, Target, fate_of, handle
from ..trace import Violation
from .effects import EffectModel, name_of, wish_of
from .keyed_model import KeyedModel
from .log import BrokerOracle, RecordOracle, StoredMessage

RETRIES = 2  # of simulated consumers


@dataclass(frozen=True, slots=True)
class Handled:
    """A message that a commit passes, whatever became of it."""

    topic_id: bytes
    offset: int
    identity: bytes  # of the original; b"" for what drops a letter
    message: StoredMessage
    private: bool

    @property
    def place(self) -> tuple[bytes, int]:
        return self.topic_id, self.offset

    @property
    def dropped(self) -> bool:
        return self.private and not self.identity


class Deaths:
    """Who died in which message alone, counted from marks: one that nothing answers is a death.

    Of each input only the message that was marked last counts.
    """

    def __init__(self) -> None:
        self._deaths: dict[bytes, tuple[int, int]] = {}  # by topic_id: offset and count
        self._open: AttemptMarked | None = None
        # Epochs that ended while their process went on: nobody died in what it was at.
        self.outlived: set[int] = set()

    def of(self, place: tuple[bytes, int]) -> int:
        offset, count = self._deaths.get(place[0], (-1, 0))
        return count if offset == place[1] else 0

    def _settle(self, epoch: int) -> AttemptMarked | None:
        """Close the open mark: an older process died in it. Returns that of this one."""
        mark, self._open = self._open, None
        if mark is not None and mark.epoch != epoch:
            count = self.of((mark.topic_id, mark.offset)) + 1
            self._deaths[mark.topic_id] = (mark.offset, count)
            return None
        return mark

    def mark(self, record: AttemptMarked) -> bool:
        """Take a mark; return whether it counts the deaths before it right."""
        mark = self._open
        if mark is not None and mark.epoch in self.outlived and record.returned:
            same = (mark.topic_id, mark.offset) == (record.topic_id, record.offset)
            self._open = None if same else mark
        self._settle(record.epoch)
        self._open = None if record.returned else record
        right = record.deaths == self.of((record.topic_id, record.offset))
        self._deaths[record.topic_id] = (record.offset, record.deaths)
        return right

    def commit(self, record: Committed, inputs: dict[bytes, int]) -> None:
        """A commit that passes the message of the open mark answers it."""
        mark = self._settle(record.epoch)
        if mark is not None and inputs.get(mark.topic_id, 0) <= mark.offset:
            self._open = mark

    def passed(self, inputs: dict[bytes, int]) -> None:
        for topic_id, next_offset in inputs.items():
            if self._deaths.get(topic_id, (next_offset, 0))[0] < next_offset:
                del self._deaths[topic_id]

    def end(self, record: LedgerEnded) -> None:
        """No process dies in a generation that ends well."""
        self._settle(record.epoch)


class LedgerOracle(RecordOracle):
    """One ledger directory."""

    def __init__(
        self, name: str, group: Group, partition: int, broker: BrokerOracle, crash_retries: int
    ) -> None:
        super().__init__(f"ledger {name}")
        self.group = group
        self.partition = partition
        self.broker = broker
        self.started: LedgerStarted | None = None
        self.next_offset = 0
        self.private_offset = 0
        self.crash_retries = crash_retries
        self.deaths = Deaths()
        self.effects: EffectModel | None = None  # None: handlers have none
        self.commit_no = 0
        self.epoch = 0
        # What it says that it relies on, and the position of the furthest record that it does rely on.
        self.seen = NO_PLACE
        self.relied = -1
        self.state: dict[str, bytes] = {}
        self.ids: set[bytes] = set()
        self.fingerprints = b""  # of explicit ids, as commits have them
        self.next_sequence: dict[Target, int] = {}
        self.healthy: list[bytes] = []  # messages that handlers have handled, in order
        self.producer = output_producer(group.name, group.topic, partition)

    def copy(self, name: str) -> LedgerOracle:
        """Return the oracle of a directory into which this one was copied just now."""
        other = LedgerOracle(name, self.group, self.partition, self.broker, self.crash_retries)
        other.deaths.outlived |= self.deaths.outlived
        for position, raw in self.records.items():
            other.durable(position, raw)
        return other

    def observe(self, record: Record, position: int) -> None:
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
        elif isinstance(record, AttemptMarked):
            self._epoch(record.epoch)
            self._named(record.topic_id, record.offset)
            if not self.deaths.mark(record):
                raise Violation("deaths", f"{self.name}: {record}")
        elif isinstance(record, LedgerEnded):
            self._epoch(record.epoch)
            self.deaths.end(record)
        elif isinstance(record, EffectIntended | EffectEnded) and self.effects is not None:
            self._epoch(record.epoch)
            topic = self._topic_of(record.topic_id)
            if isinstance(record, EffectIntended):
                self._named(record.topic_id, record.offset)
                self.effects.intended(record, private=topic != self.group.topic)
            else:
                place = (self.group.name, self.group.topic, self.partition)
                called = name_of(place, topic, record.offset, record.number)
                self.effects.ended(record, called)
        else:
            raise Violation("foreign record", f"{record} in {self.name}")

    def _commit(self, record: Committed) -> None:
        if self.started is None or record.commit_no != self.commit_no + 1:
            raise Violation("commit number", f"{self.name}: {record.commit_no}")
        self._epoch(record.epoch)
        self.commit_no = record.commit_no
        self.fingerprints += record.fingerprints
        self._compare_seen(record)
        if self._moved(record):
            return
        fresh: list[Handled] = []
        for topic_id, next_offset in record.inputs:
            fresh += self._take(topic_id, next_offset)
        self.deaths.commit(record, dict(record.inputs))
        self._compare_parked(record, fresh)
        self.deaths.passed(dict(record.inputs))
        parked = {(one.topic_id, one.offset) for one in record.parked}
        healthy = [one for one in fresh if one.place not in parked and not one.dropped]
        letters = [one for one in fresh if one.place in parked]
        self.healthy += [one.identity for one in healthy]
        changes, outputs = self._handle(healthy)
        outputs += [self._letter(one) for one in letters]
        if record.state != changes:
            raise Violation("wrong effects", f"{self.name}: {record.state} instead of {changes}")
        if self.effects is not None:
            for topic_id, next_offset in record.inputs:
                self.effects.passed(topic_id, next_offset)
        self._compare_outputs(record, outputs)
        self._compare_ids(record, fresh)
        for topic, partition, sequence in record.acked:
            stored = self.broker.next_sequence.get((self.producer, topic, partition), 0)
            if sequence > stored:
                raise Violation("ack not durable", f"{self.name}: {topic} {sequence} > {stored}")

    def _moved(self, record: Committed) -> bool:
        """Take an operator's move of the offset, which is all that its commit holds."""
        orders = [one for one in record.skipped if self._topic_of(one.topic_id) == self.group.topic]
        if not orders:
            return False
        (order,) = orders
        nothing = Committed(record.epoch, record.commit_no, record.inputs, [], b"", {})
        nothing.skipped, nothing.seen = [order], record.seen
        right = order.first_offset == self.next_offset and nothing == record
        if not right or record.inputs != [(order.topic_id, order.next_offset)]:
            raise Violation("moved", f"{self.name} at {self.next_offset}: {record}")
        log = self.broker.messages[self.group.topic, self.partition]
        if not 0 <= order.next_offset <= len(log):
            raise Violation("commit ahead", f"{self.name}: {order}, the log has {len(log)}")
        self.next_offset = order.next_offset
        self.deaths.commit(record, dict(record.inputs))
        self.deaths.passed(dict(record.inputs))
        if self.effects is not None:
            self.effects.forgotten(order.topic_id, order.next_offset)
        return True

    def _named(self, topic_id: bytes, offset: int) -> None:
        """A record speaks of a message by its offset: the ledger relies on it from then on."""
        log = self.broker.messages[self._topic_of(topic_id), self.partition]
        self.relied = max(self.relied, log[offset].position)
        self._compare_relied()

    def _compare_relied(self) -> None:
        if self.relied >= self.seen.position > 0 or (self.relied >= 0 and not self.seen.mark):
            raise Violation("place behind", f"{self.name}: {self.seen}, it relies on {self.relied}")

    def _compare_seen(self, record: Committed) -> None:
        """The place that a ledger relies on lies behind all that it has passed or knows as stored."""
        broker = self.broker
        for topic_id, next_offset in record.inputs:
            log = broker.messages[self._topic_of(topic_id), self.partition]
            if next_offset > len(log):
                raise Violation("commit ahead", f"{self.name}: {next_offset}, not {len(log)}")
            if next_offset:
                self.relied = max(self.relied, log[next_offset - 1].position)
        for topic, partition, sequence in record.acked:
            identity = sequence_id(topic, self.producer, partition, sequence - 1).encode()
            if identity in broker.by_identity:  # else it is told below
                self.relied = max(self.relied, broker.by_identity[identity][1].position)
        self.seen = record.seen if record.seen.mark else self.seen
        self._compare_relied()
        if self.seen.mark and self.seen.position > broker.history_end(self.seen.mark):
            raise Violation("place unknown", f"{self.name}: {self.seen}")

    def _epoch(self, epoch: int) -> None:
        if epoch < self.epoch:
            raise Violation("zombie commit", f"{self.name}: {epoch} after {self.epoch}")
        self.epoch = epoch

    def knows_the_ids_of(self, processed: Processed) -> bool:
        """Return whether a processed set has exactly the explicit ids of all commits."""
        prints = self.fingerprints
        if processed.explicit_count != len(prints) // FINGERPRINT_BYTES:
            return False
        fresh = processed.explicit.fresh(prints, b"") if prints else b""
        return fresh is not None and not any(fresh)

    def fence(self, epoch: int) -> None:
        """From now on no record of an older epoch may come."""
        self._epoch(epoch)

    def _topic_of(self, topic_id: bytes) -> str:
        return {created.topic_id: created.topic for created in self.broker.topics}[topic_id]

    def _take(self, topic_id: bytes, next_offset: int) -> list[Handled]:
        """Move an input to `next_offset`; return the messages that were never passed before."""
        topic = self._topic_of(topic_id)
        private = topic == private_topic(self.group.topic, self.group.name)
        if not private and topic != self.group.topic:
            raise Violation("foreign input", f"{self.name} reads {topic}")
        log = self.broker.messages[topic, self.partition]
        offset = self.private_offset if private else self.next_offset
        if next_offset < offset:
            raise Violation("offset goes back", f"{self.name}: {next_offset}")
        if next_offset > len(log):
            raise Violation("commit ahead", f"{self.name}: {next_offset}, the log has {len(log)}")
        fresh = []
        for number, message in enumerate(log[offset:next_offset], offset):
            if message.identity not in self.ids:
                self.ids.add(message.identity)
                identity = message.original if private else message.identity
                fresh.append(Handled(topic_id, number, identity, message, private))
        if private:
            self.private_offset = next_offset
        else:
            self.next_offset = next_offset
        return fresh

    def _compare_parked(self, record: Committed, fresh: list[Handled]) -> None:
        """Exactly those are parked that cannot be handled, each for its reason."""
        parked = {(one.topic_id, one.offset): one for one in record.parked}
        for one in fresh:
            entry = parked.pop(one.place, None)
            fate = "" if one.dropped else fate_of(one.identity, replayed=one.private)
            if entry is None:
                if fate:
                    raise Violation("poison handled", f"{self.name}: {one.identity!r} is {fate}")
                continue
            right = {RAISED: RETRIES + 1, REJECTED: 1}.get(entry.kind)
            deaths = self.deaths.of(one.place)
            if entry.kind == UNKNOWN_EFFECT:
                if self.effects is None or not self.effects.parks(one.place):
                    raise Violation("wrongly parked", f"{self.name}: {entry}, its effect is known")
            elif entry.kind == CRASHED:
                if deaths <= self.crash_retries or entry.attempts != deaths:
                    raise Violation("healthy blamed", f"{self.name}: {one.identity!r}, {deaths}")
            elif entry.kind != fate or entry.attempts != right:
                raise Violation("wrongly parked", f"{self.name}: {entry}, its fate is {fate!r}")
        if parked:
            raise Violation("parked, not passed", f"{self.name}: {sorted(parked)}")
        skipped = [(one.topic_id, one.first_offset) for one in record.skipped]
        if skipped != [one.place for one in fresh if one.dropped]:
            raise Violation("dropped", f"{self.name}: {skipped}")

    def _letter(self, one: Handled) -> tuple[Target, bytes | None, bytes]:
        _, key, value = batch_codec.split_body(one.message.body)
        return (dead_topic(self.group.topic), self.partition), key, value

    def _handle(
        self, messages: list[Handled]
    ) -> tuple[dict[str, bytes | None], list[tuple[Target, bytes | None, bytes]]]:
        before = dict(self.state)
        outputs: list[tuple[Target, bytes | None, bytes]] = []
        partitions = self.broker.partitions()
        touched: set[str] = set()
        for message in messages:
            if self.group.concurrency:
                keyed = KeyedModel(self.state, message.message.body)
                touched.add(keyed.name)
                outputs += keyed.handle(self.group, self.partition, message.identity, partitions)
                continue
            called = None
            if self.effects is not None and wish_of(message.identity, replayed=message.private):
                called = self.effects.result_of(message.place)
            effects = handle(
                self.group,
                self.partition,
                message.identity,
                message.message.body,
                self.state.get,
                partitions,
                called,
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

    def _compare_ids(self, record: Committed, handled: list[Handled]) -> None:
        fresh = [one.message for one in handled]
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
