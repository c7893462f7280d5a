"""A broker and producers without sockets and threads, for a `LocalLoop`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ...codec import batch as batch_codec
from ...codec import records as record_codec
from ...codec import wire
from ...core.broker.core import BrokerCore, CheckFence
from ...core.client.connection import Reconnect
from ...core.client.producer import (
    Describe,
    Opened,
    ProducerCore,
    Start,
    Submit,
    TopicKnown,
    TopicRefused,
)
from ...core.client.send_window import Settled
from ...driver import Driver
from ...errors import IdConflict, OnceMQError, from_code
from ...ids import partition_of
from ...outcome import Stop
from ...ports import Events, Transport
from ...protocol import (
    CONFLICT,
    DUPLICATE,
    UNKNOWN_OFFSET,
    VERSION_MAX,
    VERSION_MIN,
    CreateTopic,
    Failure,
    Hello,
)
from ...records import BatchStored
from ...storage.disk import Disk
from ...storage.document import Owner
from ...storage.log import FencedLog
from ..producing.acks import Ack
from ..producing.parcel import checked_message
from .network import LocalClock, LocalLoop, LocalNetwork, draw


class LocalBroker:
    """A broker on any disk; its turns never wait."""

    def __init__(
        self,
        disk: Disk,
        directory: str,
        transport: Transport,
        clock: LocalClock,
        events: Events,
        *,
        owner: Owner,
        snapshot_every_bytes: int | None = None,
    ) -> None:
        """Recover the log in `directory`, or make one. Raises CorruptLog, LogInUse, OSError."""
        self.log = FencedLog.open(
            disk, directory, generation=None, owner=owner, create_log_id=draw()
        )
        self.core = BrokerCore(self.log.log_id, self.log.lineage, entropy=draw)
        self._driver = Driver(
            self.core,
            transport,
            clock,
            events,
            perform=self._perform,
            snapshot_every_bytes=snapshot_every_bytes,
        )
        self._driver.open_log(self.log)

    def turn(self, timeout_ms: int | None = 0, /) -> bool:
        """Answer what waits."""
        return self._driver.turn(timeout_ms)

    def time_left_ms(self) -> int:
        """Return how long the next turn may wait."""
        return self._driver.time_left_ms()

    def stored(self, topic_number: int) -> Iterator[BatchStored]:
        """Yield the stored batches of a topic, columns parsed, in log order."""
        for stored in self.log.replay(self.log.start):
            if stored.type != record_codec.BATCH_STORED:
                continue
            record = record_codec.decode(
                stored.type, stored.meta, stored.body, stored.body_crc, columns=True
            )
            if isinstance(record, BatchStored) and record.topic_number == topic_number:
                yield record

    def kill(self) -> None:
        """End as a crash would: only the lock is let go."""
        self._driver.close(clean=False)

    def close(self) -> None:
        """End in good order."""
        self._driver.close(clean=True)

    def _perform(self, item: Any) -> None:
        assert isinstance(item, CheckFence), f"not work of a broker: {item!r}"
        self.log.check_fence()


class LocalProducer:
    """A producer that sends one message and waits for its verdict."""

    def __init__(self, name: str, network: LocalNetwork, clock: LocalClock, events: Events) -> None:
        """`name` "" is an anonymous producer."""
        self._endpoint = network.connect()
        self._core = ProducerCore(
            name, incarnation=draw(), label="local", endpoint="memory", entropy=draw
        )
        self._driver = Driver(self._core, self._endpoint, clock, events, perform=self._perform)
        self._driver.post(Start())
        self._opened = False
        self._topics: dict[str, int] = {}
        self._refused: dict[str, OnceMQError] = {}
        self._settled: list[Settled] = []
        self._keyless: dict[str, int] = {}
        self.error: BaseException | None = None

    def turn(self, timeout_ms: int | None = 0, /) -> bool:
        """Take answers, send what may be sent."""
        return self._driver.turn(timeout_ms)

    def time_left_ms(self) -> int:
        """Return how long the next turn may wait."""
        return self._driver.time_left_ms()

    def send(
        self,
        loop: LocalLoop,
        topic: str,
        value: Any,
        *,
        id: str | bytes | None = None,  # noqa: A002 - the name that users know
        key: str | bytes | None = None,
        headers: Mapping[str, bytes] | None = None,
    ) -> Ack:
        """Send one message, turn `loop` until its verdict is there and return that.

        Raises ValueNotEncodable, TooLarge, InvalidName, IdConflict, Fenced, UnknownTopic.
        """
        message = checked_message(value, id=id, key=key, headers=headers)
        partitions = self._find_topic(loop, topic)
        count = self._keyless.get(topic, 0)
        if message.key is None and message.id is None:
            self._keyless[topic] = count + 1
        partition = partition_of(message.key, message.id, count, partitions)
        batch = batch_codec.build(
            [message.value],
            encodings=message.encoding,
            keys=None if message.key is None else [message.key],
            ids=None if message.id is None else [message.id],
            headers=[message.headers] if message.headers else None,
        )
        self._settled.clear()
        self._driver.post(Submit(topic, partition, batch, None))
        self._wait(loop, lambda: bool(self._settled))
        return _ack(self._settled[0])

    def _find_topic(self, loop: LocalLoop, topic: str) -> int:
        if topic not in self._topics:
            self._driver.post(Describe(topic))
            self._wait(loop, lambda: topic in self._topics or topic in self._refused)
            refused = self._refused.pop(topic, None)
            if refused is not None:
                raise refused
        return self._topics[topic]

    def _wait(self, loop: LocalLoop, done: Any) -> None:
        loop.run_until(lambda: self.error is not None or (self._opened and done()))
        if self.error is not None:
            raise self.error

    def _perform(self, item: Any) -> None:
        match item:
            case Opened():
                self._opened = True
            case TopicKnown():
                self._topics[item.topic] = item.partitions
            case TopicRefused():
                self._refused[item.topic] = item.error
            case Settled():
                self._settled.append(item)
            case Reconnect():
                self._endpoint.reopen()
            case Stop():
                self.error = item.error or OnceMQError("the producer was stopped")
            case _:
                raise AssertionError(f"unknown work {item!r}")


def _ack(settled: Settled) -> Ack:
    if settled.error is not None:
        raise settled.error
    _, verdict, offset = settled.runs[0]
    place = f"{settled.topic}/{settled.partition}"
    if verdict == CONFLICT:
        raise IdConflict(f"{place} holds another message under this id, at offset {offset}")
    return Ack(
        settled.topic,
        settled.partition,
        None if offset == UNKNOWN_OFFSET else offset,
        verdict == DUPLICATE,
        "fsync",
    )


def create_topic(network: LocalNetwork, loop: LocalLoop, topic: str, partitions: int) -> None:
    """Make a topic with several partitions. Raises TopicExists, InvalidName, ..."""
    endpoint = network.connect()
    for message in (
        Hello(1, VERSION_MIN, VERSION_MAX, "admin", draw(), b"", 0),
        CreateTopic(2, topic, partitions),
    ):
        endpoint.send(b"", wire.encode(message, None))
    answers: list[Any] = []

    def answered() -> bool:
        answers.extend(wire.decode(*envelope).message for envelope in endpoint.poll(0))
        return len(answers) >= 2

    try:
        loop.run_until(answered)
    finally:
        endpoint.close()
    for answer in answers:
        if isinstance(answer, Failure):
            raise from_code(answer.code, answer.reason, answer.hint)
