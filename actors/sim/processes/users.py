"""Who sends what: the intents of users, which no crash of a process touches.

A user outlives the processes of its producers. It knows what it wants to be stored, hears every
verdict, checks it against the oracle, and says when it is content.
"""

from __future__ import annotations

import random

from ...batch import Batch
from ...codec import batch as batch_codec
from ...codec.values import BYTES, encode_headers
from ...core.client.producer import Opened, Submit
from ...core.client.send_window import Settled
from ...ids import partition_of, sequence_id
from ...protocol import CONFLICT, UNKNOWN_OFFSET
from ..oracles.log import BrokerOracle, StoredMessage
from ..trace import Violation

BATCH_MESSAGES = 6


class User:
    """One sender of messages to one topic. `name` "" is anonymous."""

    def __init__(self, name: str, topic: str, quota: int, oracle: BrokerOracle) -> None:
        self.name = name
        self.topic = topic
        self.quota = quota
        self.oracle = oracle
        self._batches = 0  # made so far: a header carries the number of each

    @property
    def content(self) -> bool:
        raise AssertionError(f"{self.name} never says")

    def opened(self, opened: Opened, memory: dict[str, int]) -> None:
        """A producer process may send now; `memory` is that process's own."""

    def next_submit(
        self, process: str, rng: random.Random, memory: dict[str, int]
    ) -> Submit | None:
        """Return what a producer process shall send next; None: nothing now."""
        raise AssertionError(f"{process} has nothing to send: {memory} {rng}")

    def settled(self, settled: Settled) -> None:
        batch: Batch = settled.token
        if settled.error is not None:
            raise Violation("refused", f"{self.name or 'anonymous'}: {settled.error}")
        number = 0
        for count, verdict, offset in settled.runs:
            for step in range(count):
                at = offset if offset == UNKNOWN_OFFSET else offset + step
                self._verdict(settled, batch, number, verdict, at)
                number += 1
        if number != batch.count:
            raise Violation("verdicts", f"{number} for {batch.count} messages")

    def _verdict(
        self, settled: Settled, batch: Batch, number: int, verdict: int, offset: int
    ) -> None:
        identity, body = self._identity(settled, batch, number), batch.body(number)
        known = self.oracle.by_identity.get(identity)
        if known is None:
            raise Violation("ack not durable", f"{identity!r} was acknowledged and is not stored")
        partition, stored = known
        if offset != UNKNOWN_OFFSET:
            log = self.oracle.messages[self.topic, settled.partition]
            if offset >= len(log) or log[offset] is not stored:
                raise Violation("ack offset", f"{identity!r} is not at {offset}")
        elif partition == settled.partition:
            raise Violation("ack offset", f"{identity!r} was acknowledged without its offset")
        if (verdict == CONFLICT) != (stored.body != body):
            raise Violation(
                "ack content", f"{identity!r}: verdict {verdict}, stored {stored.body!r}"
            )
        if verdict == CONFLICT:
            self._conflict(identity)
        else:
            self._stored(identity, stored)

    def _identity(self, settled: Settled, batch: Batch, number: int) -> bytes:
        if batch.ids is not None:
            return self.topic.encode() + b"?" + batch.ids[number]
        sequence = settled.first_sequence + number
        return sequence_id(self.topic, self.name, settled.partition, sequence).encode()

    def _stored(self, identity: bytes, stored: StoredMessage) -> None:
        """Note that a message of ours is acknowledged."""

    def _conflict(self, identity: bytes) -> None:
        """Another message has one of these ids."""
        raise Violation("conflict", f"{identity!r} is taken")

    def _batch(
        self,
        process: str,
        messages: list[tuple[bytes | None, bytes]],
        ids: list[bytes] | None = None,
        created_at_ms: list[int] | None = None,
    ) -> Batch:
        """Make a batch of what `process` sends; a header makes it unlike any other."""
        self._batches += 1
        header = encode_headers({"batch": b"%d of %s" % (self._batches, process.encode())})
        batch = batch_codec.build(
            [value for _, value in messages],
            encodings=BYTES,
            keys=[key for key, _ in messages],
            ids=ids,
            headers=[header] + [b""] * (len(messages) - 1),
            created_at_ms=created_at_ms,
        )
        self.oracle.sent.update(batch.body(index) for index in range(batch.count))
        self.oracle.submitted[bytes(batch.raw)] = (process, self._batches)
        return batch


class FileUser(User):
    """Sends numbered rows, as a file does; after a restart it goes on at the broker's number."""

    def __init__(self, name: str, topic: str, quota: int, oracle: BrokerOracle) -> None:
        super().__init__(name, topic, quota, oracle)
        self.acked: dict[int, int] = {}  # partition: number below which all is acknowledged

    @property
    def content(self) -> bool:
        counts = self.oracle.partitions()[self.topic]
        return all(self.acked.get(partition, 0) >= self.quota for partition in range(counts))

    def opened(self, opened: Opened, memory: dict[str, int]) -> None:
        """The broker's number and digest must fit what was acknowledged."""
        memory.clear()
        for topic, partition, number, digest in opened.partitions:
            if topic != self.topic:
                continue
            memory[str(partition)] = number
            if digest != b"%d" % number:
                raise Violation("digest", f"{self.name}: {digest!r} with number {number}")
            if number < self.acked.get(partition, 0):
                raise Violation("lost", f"{self.name}: {number} is next in {partition}")
            self.acked[partition] = number

    def next_submit(
        self, process: str, rng: random.Random, memory: dict[str, int]
    ) -> Submit | None:
        counts = self.oracle.partitions()[self.topic]
        open_ones = [p for p in range(counts) if memory.get(str(p), 0) < self.quota]
        if not open_ones:
            return None
        partition = rng.choice(open_ones)
        first = memory.get(str(partition), 0)
        count = min(self.quota - first, rng.randint(1, BATCH_MESSAGES))
        memory[str(partition)] = first + count
        rows = [self._row(partition, number) for number in range(first, first + count)]
        return Submit(
            self.topic,
            partition,
            (batch := self._batch(process, rows)),
            batch,
            b"%d" % (first + count),
        )

    def _row(self, partition: int, number: int) -> tuple[bytes | None, bytes]:
        key = b"k%d" % (number % 5) if number % 3 else None
        return key, b"row %d of %s/%d" % (number, self.name.encode(), partition)

    def _stored(self, identity: bytes, stored: StoredMessage) -> None:
        partition = int(identity.split(b":")[1])
        if stored.sequence > self.acked.get(partition, 0):
            raise Violation("order", f"{identity!r} was acknowledged before those in front of it")
        self.acked[partition] = max(self.acked.get(partition, 0), stored.sequence + 1)


class RivalUser(User):
    """Processes that fight for one name; each sends rows of its own, never the same again."""

    def __init__(self, name: str, topic: str, quota: int, oracle: BrokerOracle) -> None:
        super().__init__(name, topic, quota, oracle)
        self.made = 0
        self.acked: set[bytes] = set()

    @property
    def content(self) -> bool:
        """What a fenced process has not heard of stays unknown."""
        return len(self.acked) >= self.quota

    def next_submit(
        self, process: str, rng: random.Random, memory: dict[str, int]
    ) -> Submit | None:
        del memory
        if self.made >= self.quota and self.content:
            return None
        partition = rng.randrange(self.oracle.partitions()[self.topic])
        count = rng.randint(1, BATCH_MESSAGES)
        rows: list[tuple[bytes | None, bytes]] = []
        for _ in range(count):
            rows.append((b"k%d" % (self.made % 5), b"%s row %d" % (self.name.encode(), self.made)))
            self.made += 1
        return Submit(self.topic, partition, (batch := self._batch(process, rows)), batch)

    def _stored(self, identity: bytes, stored: StoredMessage) -> None:
        del identity
        self.acked.add(stored.body)


class WebUser(User):
    """Workers that share explicit ids and send each until somebody hears that it is stored."""

    def __init__(self, name: str, topic: str, quota: int, oracle: BrokerOracle) -> None:
        super().__init__(name, topic, quota, oracle)
        self.acked: set[int] = set()
        self.resends = 0.2  # odds of sending again what is acknowledged
        self.lies = 0.05  # odds of another body under the same id

    @property
    def content(self) -> bool:
        return len(self.acked) >= self.quota

    def next_submit(
        self, process: str, rng: random.Random, memory: dict[str, int]
    ) -> Submit | None:
        del memory
        if self.content:
            return None
        chosen = [n for n in range(self.quota) if n not in self.acked or rng.random() < 0.02]
        picked = rng.sample(chosen, min(len(chosen), rng.randint(1, BATCH_MESSAGES)))
        if rng.random() < self.resends:
            picked.append(rng.randrange(self.quota))
        partition = -1
        rows: list[tuple[bytes | None, bytes]] = []
        ids: list[bytes] = []
        for number in picked:
            tagged = b"s%s-%d" % ((self.name or "web").encode(), number)
            key = b"k%d" % (number % 7) if number % 2 else None
            at = partition_of(key, tagged, 0, self.oracle.partitions()[self.topic])
            if partition in {-1, at}:
                partition = at
                lie = b"!" if rng.random() < self.lies else b""
                rows.append((key, b"order %d%s" % (number, lie)))
                ids.append(tagged)
        return Submit(self.topic, partition, (batch := self._batch(process, rows, ids)), batch)

    def _stored(self, identity: bytes, stored: StoredMessage) -> None:
        del stored
        self.acked.add(int(identity.rpartition(b"-")[2]))

    def _conflict(self, identity: bytes) -> None:
        """A refusal of the lie, or of the truth after the lie."""
        self.acked.add(int(identity.rpartition(b"-")[2]))
