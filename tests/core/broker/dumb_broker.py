"""A broker that is too simple to be wrong: full lists, no index, no disk, one call a request.

Tests of clients talk to it. `restart` forgets what a broker may forget (peers and sessions);
`lose_log` what it must not.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from oncemq import protocol
from oncemq.batch import Batch
from oncemq.codec import batch as batch_codec
from oncemq.codec import wire
from oncemq.outcome import Send
from oncemq.protocol import (
    CONFLICT,
    DUPLICATE,
    STORED,
    DescribeTopic,
    Failure,
    Hello,
    InitProducer,
    Ping,
    Pong,
    Produce,
    Produced,
    ProducerReady,
    TopicDescribed,
    Welcome,
)


@dataclass
class Stored:
    """One message in the log."""

    body: bytes
    id: bytes | None
    producer: str
    number: int


@dataclass
class DumbBroker:
    """Answers requests as docs/PROTOCOL.md says."""

    partitions: int = 1
    log_id: bytes = b"L" * 16
    epoch: int = 1
    peers: set[bytes] = field(default_factory=set)
    sessions: dict[bytes, int] = field(default_factory=dict)
    logs: dict[tuple[str, int], list[Stored]] = field(default_factory=dict)
    index: dict[tuple[str, int, object], int] = field(default_factory=dict)  # key: where in a log
    epochs: dict[str, tuple[int, list[bytes]]] = field(default_factory=dict)
    digests: dict[tuple[str, int, str], bytes] = field(default_factory=dict)
    topics: set[str] = field(default_factory=set)
    refusals: list[str] = field(default_factory=list)  # codes with which the next writes fail
    requests: list[Any] = field(default_factory=list)  # all that came

    def restart(self) -> None:
        self.epoch += 1
        self.peers.clear()
        self.sessions.clear()

    def lose_log(self) -> None:
        """Come back without the messages: what must never happen unnoticed."""
        self.restart()
        self.logs.clear()
        self.index.clear()

    def bodies(self, topic: str, partition: int = 0) -> list[bytes]:
        """The values stored, without the prefix of three bytes (no keys)."""
        return [message.body[3:] for message in self.logs.get((topic, partition), [])]

    def handle_frames(self, peer: bytes, frames: list[bytes]) -> list[bytes]:
        received = wire.decode(b"peer", frames)
        answer = self.handle(peer, received.message, received.batch)
        return [bytes(frame) for frame in wire.encode(answer, None)]

    def handle_send(self, peer: bytes, send: Send) -> Any:
        batch = None
        if isinstance(send.message, Produce):
            assert isinstance(send.body, bytes)
            batch = batch_codec.parse(send.body, send.message.crc, check=True)
        return self.handle(peer, send.message, batch)

    def handle(self, peer: bytes, message: Any, batch: Batch | None) -> Any:
        self.requests.append(message)
        request = message.request
        if isinstance(message, Hello):
            self.peers.add(peer)
            return Welcome(request, protocol.VERSION_MAX, self.log_id, self.log_id, self.epoch)
        if peer not in self.peers:
            return Failure(request, "hello_required", "who are you", "", -1)
        if isinstance(message, Ping):
            return Pong(request, self.epoch)
        if self.refusals:
            return Failure(request, self.refusals.pop(0), "for a test", "", -1)
        if isinstance(message, DescribeTopic):
            self.topics.add(message.topic)
            ends = tuple(len(self.logs.get((message.topic, p), [])) for p in range(self.partitions))
            return TopicDescribed(request, message.topic, b"T" * 16, self.partitions, ends)
        if isinstance(message, InitProducer):
            return self._init(message)
        assert isinstance(message, Produce)
        assert batch is not None
        return self._produce(message, batch)

    def _init(self, message: InitProducer) -> Any:
        epoch, nonces = self.epochs.get(message.producer, (0, []))
        if message.nonce in nonces[:-1]:
            return Failure(message.request, "fenced", "superseded", "", -1)
        if message.nonce not in nonces:
            epoch += 1
            self.epochs[message.producer] = (epoch, [*nonces, message.nonce])
        rows = tuple(
            (topic, partition, number, self.digests.get((topic, partition, message.producer), b""))
            for (topic, partition) in sorted(self.logs)
            if (number := self.next_number(topic, partition, message.producer))
        )
        return ProducerReady(message.request, epoch, rows)

    def next_number(self, topic: str, partition: int, producer: str) -> int:
        log = self.logs.get((topic, partition), [])
        return sum(message.producer == producer and message.number >= 0 for message in log)

    def _produce(self, message: Produce, batch: Batch) -> Any:
        log = self.logs.setdefault((message.topic, message.partition), [])
        if message.producer and message.epoch != self.epochs.get(message.producer, (0, []))[0]:
            return Failure(message.request, "fenced", "an older epoch", "", -1)
        if batch.ids is None:
            first, expected = message.first_sequence, self.next_number(*_place(message))
            if first > expected:
                return Failure(message.request, "gap", "too early", "", expected)
        else:
            first, known = -1, self.sessions.get(message.session)
            if known is None and message.counter > 0:
                return Failure(message.request, "unknown_session", "who", "", -1)
            if message.counter > (known or 0):
                return Failure(message.request, "gap", "too early", "", known or 0)
            self.sessions[message.session] = max(known or 0, message.counter + 1)
        runs: list[tuple[int, int, int]] = []
        for index in range(batch.count):
            verdict, offset = self._judge(log, message, batch, index, first)
            count, last, begin = runs[-1] if runs else (0, verdict, offset)
            if runs and last == verdict and begin + count == offset:
                runs[-1] = (count + 1, verdict, begin)
            else:
                runs.append((1, verdict, offset))
        if message.digest and any(verdict == STORED for _, verdict, _ in runs):
            self.digests[message.topic, message.partition, message.producer] = message.digest
        return Produced(message.request, 1, tuple(runs))

    def _judge(
        self, log: list[Stored], message: Produce, batch: Batch, index: int, first: int
    ) -> tuple[int, int]:
        body = batch.body(index)
        tagged = None if batch.ids is None else batch.ids[index]
        key = (message.producer, first + index) if tagged is None else tagged
        place = (message.topic, message.partition, key)
        if (offset := self.index.get(place)) is not None:
            return DUPLICATE if log[offset].body == body else CONFLICT, offset
        self.index[place] = len(log)
        number = first + index if first >= 0 else -1
        log.append(Stored(body, tagged, message.producer, number))
        return STORED, len(log) - 1


def _place(message: Produce) -> tuple[str, int, str]:
    return message.topic, message.partition, message.producer
