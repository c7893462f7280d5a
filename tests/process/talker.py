"""A small client for tests of the broker process: it numbers, resends until answered, and reads."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import Any

from oncemq.codec import batch as batch_codec
from oncemq.codec import wire
from oncemq.protocol import (
    DUPLICATE,
    STORED,
    CreateTopic,
    Failure,
    Fetch,
    Hello,
    InitProducer,
    Produce,
    Produced,
)
from oncemq.runtime.zmq_transport import DealerTransport

PATIENCE_S = 120.0


class Talker:
    """One connection. `say` sends and waits for the answer; it survives restarts of the broker."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.transport = DealerTransport(endpoint)
        self.request = 0
        self.next_number = 0
        self.epoch = 0
        self.resent = 0  # requests that were sent again, because no answer came in time

    def __enter__(self) -> Talker:
        return self

    def __exit__(self, *_: object) -> None:
        self.transport.close()

    def once(self, message: Any, body: Any = None, timeout_s: float = 1.0) -> Any:
        """Send once; return what was received with that number, or None."""
        self.request += 1
        numbered = replace(message, request=self.request)
        self.transport.send(b"", wire.encode(numbered, body))
        deadline = time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > 0:
            for peer, frames in self.transport.poll(max(1, int(left * 1000))):
                received = wire.decode(peer, frames)
                if received.message.request == self.request:
                    return received
        return None

    def hello(self) -> Any:
        return self.once(Hello(0, 1, 1, "test", b"i" * 16, b"", 0))

    def say(self, message: Any, body: Any = None) -> Any:
        """Send until an answer comes that is not a call for a hello; return what was received."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            received = self.once(message, body)
            if received is None:
                self.resent += 1
                self.transport.reopen()
            elif (
                isinstance(received.message, Failure) and received.message.code == "hello_required"
            ):
                self.hello()
            else:
                return received
        raise AssertionError(f"no answer to {message} at {self.endpoint}")

    def become(self, name: str = "p", topic: str = "t") -> None:
        self.say(CreateTopic(0, topic, 1))
        ready = self.say(InitProducer(0, name, os.urandom(16), "talker")).message
        self.epoch = ready.epoch
        rows = {(row[0], row[1]): row[2] for row in ready.partitions}
        self.next_number = rows.get((topic, 0), 0)

    def send(self, *values: str, first: int | None = None, topic: str = "t") -> Any:
        """Store messages under the next numbers (or `first`) and return the verdicts."""
        number = self.next_number if first is None else first
        batch = batch_codec.build([value.encode() for value in values], encodings=1)
        produce = Produce(0, topic, 0, "p", self.epoch, number, b"", 0, b"", batch.crc)
        answer = self.say(produce, batch.raw).message
        assert isinstance(answer, Produced), answer
        self.next_number = max(self.next_number, number + len(values))
        return answer.runs

    def store(self, value: str) -> int:
        """Store one message and return its offset. A duplicate is only what was sent again."""
        before = self.resent
        ((count, verdict, offset),) = self.send(value)
        assert count == 1
        assert verdict == STORED or (verdict == DUPLICATE and self.resent > before), verdict
        return int(offset)

    def stored(self, topic: str = "t") -> list[str]:
        values: list[str] = []
        while True:
            received = self.say(Fetch(0, "", topic, 0, 0, len(values), 1 << 20, 0))
            if not received.stored:
                assert received.message.end_offset == len(values)
                return values
            for record in received.stored:
                assert record.first_offset == len(values)
                bodies = [record.batch.body(number) for number in range(record.count)]
                values += [batch_codec.split_body(body)[2].decode() for body in bodies]
