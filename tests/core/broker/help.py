"""A broker core on a real driver and log in memory, driven turn by turn, for the broker's tests."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from oncemq import protocol
from oncemq.batch import Batch
from oncemq.codec import batch as batch_codec
from oncemq.codec import wire
from oncemq.core.broker.core import BrokerCore
from oncemq.driver import Driver
from oncemq.errors import DiskFull
from oncemq.ids import tagged_id
from oncemq.limits import LIMITS, SEGMENT_BYTES, Limits
from oncemq.protocol import Hello, Produce, Produced
from oncemq.storage.log import FencedLog
from oncemq.storage.memory import MemoryDisk

LOG_ID = b"L" * 16
PEER = b"peer-aaaaaaaaaaa"
OTHER = b"peer-bbbbbbbbbbb"


def refuse(nbytes: int) -> None:
    """What `Log.reserve` does on a full disk."""
    raise DiskFull("no room")


class Clock:
    """Time that only the test moves."""

    def __init__(self) -> None:
        self.ms = 1_000_000

    def now_ms(self) -> int:
        return self.ms


class Wire:
    """A transport whose input is put in and whose output is taken out by the test."""

    def __init__(self) -> None:
        self.waiting: list[tuple[bytes, list[bytes]]] = []
        self.sent: list[tuple[bytes, Any]] = []

    def poll(self, timeout_ms: int) -> list[tuple[bytes, list[bytes]]]:
        waiting, self.waiting = self.waiting, []
        return waiting

    def send(self, peer: bytes, frames: list[bytes | memoryview]) -> bool:
        received = wire.decode(b"", [bytes(frame) for frame in frames])
        self.sent.append((peer, received))
        return True


class Events:
    """Collects structured events."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, Any]]] = []

    def emit(self, event: str, **fields: Any) -> None:
        self.seen.append((event, fields))

    def named(self, name: str) -> list[dict[str, Any]]:
        return [fields for event, fields in self.seen if event == name]


def entropy() -> Iterator[bytes]:
    """Sixteen bytes at a time that differ."""
    return (number.to_bytes(16, "big") for number in itertools.count(1))


class World:
    """One broker with its disk; `crash` starts it again from the disk."""

    def __init__(
        self,
        *,
        disk: Any = None,
        snapshot_every: int | None = None,
        message_events: bool = False,
        create_topics: bool = True,
        limits: Limits = LIMITS,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        self.segment_bytes = segment_bytes
        self.directory = "data"
        self.create_topics = create_topics
        self.disk = MemoryDisk() if disk is None else disk
        self.clock = Clock()
        self.events = Events()
        self.work: list[Any] = []
        self.numbers = itertools.count(1)
        self.draw = entropy()
        self.snapshot_every = snapshot_every
        self.message_events = message_events
        self.limits = limits
        self.start()

    def start(self) -> None:
        self.wire = Wire()
        self.log = FencedLog.open(
            self.disk,
            self.directory,
            generation=None,
            owner={"pid": 1},
            create_log_id=LOG_ID,
            segment_bytes=self.segment_bytes,
        )
        self.core = BrokerCore(
            self.log.log_id,
            self.log.lineage,
            secret=b"S" * 32,
            entropy=lambda: next(self.draw),
            message_events=self.message_events,
            create_topics=self.create_topics,
            limits=self.limits,
        )
        self.driver = Driver(
            self.core,
            self.wire,
            self.clock,
            self.events,
            perform=self.work.append,
            snapshot_every_bytes=self.snapshot_every,
            files=self.core.state,
            needed_from=lambda: self.core.state.needed_from,
            turn_read_bytes=self.limits.turn_read_bytes_max,
            turn_freeze_bytes=self.limits.turn_freeze_bytes,
        )
        self.driver.open_log(self.log, self.directory)
        self.turn()

    def crash(self, *, clean: bool = False) -> None:
        """End the process; what was not synced is gone."""
        self.driver.close(clean=clean)
        self.disk.drop_locks()
        self.start()

    def turn(self) -> None:
        self.driver.turn(0)

    def settle(self) -> None:
        """Run turns until nothing is left to do now."""
        for _ in range(100):
            if not self.driver.turn(0):
                return
        raise AssertionError("the broker does not come to rest")

    def put(self, message: Any, body: Any = None, peer: bytes = PEER) -> int:
        """Let a message wait for the next turn; return its request number."""
        frames = [bytes(frame) for frame in wire.encode(message, body)]
        self.wire.waiting.append((peer, frames))
        return message.request  # type: ignore[no-any-return]

    def take(self, peer: bytes = PEER) -> list[Any]:
        """Return and forget the messages sent to `peer`."""
        mine = [received for to, received in self.wire.sent if to == peer]
        self.wire.sent = [(to, received) for to, received in self.wire.sent if to != peer]
        return [received.message for received in mine]

    def ask(self, message: Any, body: Any = None, peer: bytes = PEER) -> Any:
        received = self.ask_received(message, body, peer)
        return received.message

    def ask_received(self, message: Any, body: Any = None, peer: bytes = PEER) -> Any:
        self.wire.sent.clear()
        self.put(message, body, peer)
        self.turn()
        answers = [received for to, received in self.wire.sent if to == peer]
        assert len(answers) == 1, answers
        assert answers[0].message.request == message.request
        self.take(peer)
        self.settle()
        return answers[0]

    # --- shorthands ------------------------------------------------------------------------------

    @property
    def n(self) -> int:
        return next(self.numbers)

    def hello(self, peer: bytes = PEER, **changes: Any) -> Any:
        hello = Hello(self.n, 1, 1, "test", b"i" * 16, b"", 0)
        return self.ask(replace(hello, **changes), peer=peer)

    def topic(self, name: str = "t", partitions: int = 1) -> Any:
        return self.ask(protocol.CreateTopic(self.n, name, partitions))

    def producer(self, name: str = "p", nonce: bytes = b"n" * 16, label: str = "me") -> Any:
        return self.ask(protocol.InitProducer(self.n, name, nonce, label))

    def numbered(self, first: int, batch: Batch, **changes: Any) -> Produce:
        produce = Produce(self.n, "t", 0, "p", 1, first, b"", 0, b"", batch.crc)
        return replace(produce, **changes)

    def explicit(self, counter: int, batch: Batch, **changes: Any) -> Produce:
        produce = Produce(self.n, "t", 0, "", 0, -1, b"S" * 16, counter, b"", batch.crc)
        return replace(produce, **changes)

    def send(self, first: int, *values: str, **changes: Any) -> Any:
        batch = batch_of(*values)
        return self.ask(self.numbered(first, batch, **changes), batch.raw)

    def send_ids(self, counter: int, values: dict[str, str], **changes: Any) -> Any:
        batch = batch_with_ids(list(values.items()))
        return self.ask(self.explicit(counter, batch, **changes), batch.raw)

    def fetch(self, offset: int = 0, max_bytes: int = 1 << 20, **changes: Any) -> Any:
        fetch = protocol.Fetch(self.n, "", "t", 0, 0, offset, max_bytes, 0)
        return self.ask_received(replace(fetch, **changes))

    def stored(self, topic: str = "t", partition: int = 0) -> list[str]:
        values: list[str] = []
        while True:
            received = self.fetch(len(values), topic=topic, partition=partition)
            if not received.stored:
                assert received.message.end_offset == len(values)
                return values
            for record in received.stored:
                values += values_of(record)
            assert received.message.next_offset == len(values)


def batch_of(*values: str, **columns: Any) -> Batch:
    return batch_codec.build([value.encode() for value in values], encodings=1, **columns)


def batch_with_ids(items: list[tuple[str, str]], **columns: Any) -> Batch:
    return batch_of(*[v for _, v in items], ids=[tagged_id(i) for i, _ in items], **columns)


def values_of(record: Any) -> list[str]:
    """The values of a stored batch that have offsets."""
    bits = int.from_bytes(record.mask, "little") if record.mask else -1
    return [
        batch_codec.split_body(record.batch.body(number))[2].decode()
        for number in range(record.count)
        if bits >> number & 1
    ]


def runs(answer: Any) -> list[tuple[int, str, int]]:
    assert isinstance(answer, Produced), answer
    names = {0: "stored", 1: "duplicate", 2: "conflict"}
    return [(count, names[verdict], offset) for count, verdict, offset in answer.runs]
