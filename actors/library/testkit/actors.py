"""A broker and producers without sockets and threads, for a `LocalLoop`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ...batch import Batch
from ...codec import batch as batch_codec
from ...codec import records as record_codec
from ...codec import wire
from ...core.client.producer import Submit
from ...core.client.send_window import Settled
from ...errors import IdConflict, from_code
from ...ids import check_name, partition_of
from ...ports import Events
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
from ...runtime.process import draw
from ...shells.broker import BrokerShell
from ...shells.producer import ProducerShell
from ..messages.payloads import Serializer
from ..producing.acks import Ack
from ..producing.parcel import checked_message
from .network import LocalClock, LocalLoop, LocalNetwork


def stored_batches(broker: BrokerShell, topic_number: int) -> Iterator[BatchStored]:
    """Columns parsed, in log order."""
    for stored in broker.log.replay(broker.log.start):
        if stored.type != record_codec.BATCH_STORED:
            continue
        record = record_codec.decode(
            stored.type, stored.meta, stored.body, stored.body_crc, columns=True
        )
        if isinstance(record, BatchStored) and record.topic_number == topic_number:
            yield record


class LocalProducer:
    """A producer that sends one message and waits for its verdict."""

    def __init__(self, name: str, network: LocalNetwork, clock: LocalClock, events: Events) -> None:
        """`name` "" is an anonymous producer."""
        self._shell = ProducerShell(
            name,
            endpoint="memory",
            transport=network.connect(),
            clock=clock,
            events=events,
            entropy=draw,
            label="local",
        )
        self._keyless: dict[str, int] = {}

    def turn(self, timeout_ms: int | None = 0, /) -> bool:
        return self._shell.turn(timeout_ms)

    def time_left_ms(self) -> int:
        return self._shell.time_left_ms()

    def send(
        self,
        loop: LocalLoop,
        topic: str,
        value: Any,
        *,
        id: str | bytes | None = None,  # noqa: A002 - the name that users know
        key: str | bytes | None = None,
        headers: Mapping[str, bytes] | None = None,
        serializer: Serializer | None = None,
    ) -> Ack:
        """Send one message, turn `loop` until its verdict is there and return that.

        Raises ValueNotEncodable, TooLarge, InvalidName, IdConflict, Fenced, UnknownTopic.
        """
        if type(topic) is not str:
            topic = check_name(topic, "topic")
        message = checked_message(value, id=id, key=key, headers=headers, serializer=serializer)
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
        return _ack(self.store(loop, topic, partition, batch))

    def store(self, loop: LocalLoop, topic: str, partition: int, batch: Batch) -> Settled:
        """Turn `loop` until the verdict is there; the topic exists."""
        self._wait(loop, lambda: True)
        mine: list[Settled] = []
        token = object()  # a call that was interrupted may have left a batch on its way

        def settled() -> bool:
            mine.extend(one for one in self._shell.take_settled() if one.token is token)
            return bool(mine)

        self._shell.submit(Submit(topic, partition, batch, token))
        self._wait(loop, settled)
        return mine[0]

    def _find_topic(self, loop: LocalLoop, topic: str) -> int:
        shell = self._shell
        if topic not in shell.topics:
            shell.ask(topic)
            self._wait(loop, lambda: topic in shell.topics or topic in shell.refused)
            if topic in shell.refused:
                raise shell.refused[topic]
        return shell.topics[topic].partitions

    def _wait(self, loop: LocalLoop, done: Callable[[], bool]) -> None:
        shell = self._shell
        loop.run_until(lambda: shell.error is not None or (shell.opened is not None and done()))
        if shell.error is not None:
            raise shell.error


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
    """Raises TopicExists, InvalidName, ..."""
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
