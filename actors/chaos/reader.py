"""Reads a whole partition of a running broker, without a group and without a grant.

It speaks the protocol by itself, so that what a checker believes about the log does not come
through the client that is being checked.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import zmq

from ..codec import batch as batch_codec
from ..codec import values as value_codec
from ..codec import wire
from ..errors import GapError, ResultTimeout, from_code
from ..ids import sequence_id, untagged_id
from ..limits import FRAME_BYTES_MAX, LIMITS, RESEND_MS, ROUTING_ID_BYTES
from ..outcome import Received
from ..protocol import (
    VERSION_MAX,
    VERSION_MIN,
    DescribeTopic,
    Failure,
    Fetch,
    Fetched,
    Hello,
    Request,
    TopicDescribed,
    Welcome,
)
from ..records import BatchStored
from ..runtime.zmq_transport import allow_ipv6

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """One message as the log holds it. `sequence` is -1 for an explicit id."""

    offset: int
    message_id: str | bytes
    producer: str
    epoch: int
    sequence: int
    key: bytes | None
    value: Any
    appended_at_ms: int


class _Client:
    """One request at a time, asked again until the answer comes."""

    def __init__(self, endpoint: str, timeout_s: float) -> None:
        self._endpoint = endpoint
        self._deadline = time.monotonic() + timeout_s
        self._request = 0
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self._socket.setsockopt(zmq.ROUTING_ID, b"\x01" + secrets.token_bytes(ROUTING_ID_BYTES - 1))
        self._socket.setsockopt(zmq.LINGER, 0)
        allow_ipv6(self._socket, endpoint)
        self._socket.setsockopt(zmq.MAXMSGSIZE, FRAME_BYTES_MAX)
        self._socket.connect(endpoint)

    def next_request(self) -> int:
        self._request += 1
        return self._request

    def ask(self, request: Request, kind: type[Answer]) -> tuple[Answer, Received]:
        """Raises what a Failure names, and ResultTimeout at the deadline."""
        while time.monotonic() < self._deadline:
            self._socket.send_multipart(wire.encode(request, None))
            resend_at = time.monotonic() + 3 * RESEND_MS / 1000
            while (left := resend_at - time.monotonic()) > 0:
                if not self._socket.poll(int(left * 1000) + 1):
                    break
                received = wire.decode(b"", self._socket.recv_multipart())
                message = received.message
                if message.request != request.request:
                    continue
                if isinstance(message, Failure):
                    raise from_code(message.code, message.reason, message.hint)
                assert isinstance(message, kind), f"{message} answers {request}"
                return message, received
        raise ResultTimeout(f"{self._endpoint} gave no answer to {type(request).__name__}")

    def close(self) -> None:
        self._socket.close()


def _messages(topic: str, record: BatchStored) -> Iterator[StoredMessage]:
    """Yield what a stored batch holds: the messages it kept, at dense offsets."""
    batch = record.batch
    assert batch is not None
    offset = record.first_offset
    for index in range(batch.count):
        if record.mask and not record.mask[index >> 3] >> (index & 7) & 1:
            continue
        encoding, key, value = batch_codec.split_body(batch.body(index))
        sequence = -1 if batch.ids is not None else record.first_sequence + index
        yield StoredMessage(
            offset=offset,
            message_id=untagged_id(batch.ids[index])
            if batch.ids is not None
            else sequence_id(topic, record.producer, record.partition, sequence),
            producer=record.producer,
            epoch=record.epoch,
            sequence=sequence,
            key=key,
            value=value_codec.decode_value(encoding, value),
            appended_at_ms=record.at_ms,
        )
        offset += 1


def read_topic(
    endpoint: str, topic: str, partition: int = 0, *, start: int = 0, timeout_s: float = 60.0
) -> Iterator[StoredMessage]:
    """Yield the messages from offset `start` to the durable end at the time of the call.

    Raises GapError if an offset is missing or twice there, ResultTimeout if the broker does not
    answer in time, and each error that the broker names (UnknownTopic).
    """
    with contextlib.closing(_Client(endpoint, timeout_s)) as client:
        incarnation = secrets.token_bytes(16)
        client.ask(
            Hello(client.next_request(), VERSION_MIN, VERSION_MAX, "reader", incarnation, b"", 0),
            Welcome,
        )
        described, _ = client.ask(
            DescribeTopic(client.next_request(), topic, create=False), TopicDescribed
        )
        end = described.end_offsets[partition]
        offset = start
        while offset < end:
            fetch = Fetch(
                client.next_request(),
                "",
                topic,
                partition,
                0,
                offset,
                LIMITS.fetch_bytes_default,
                1000,
            )
            _, received = client.ask(fetch, Fetched)
            for record in received.stored or []:
                for message in _messages(topic, record):
                    if message.offset < offset:
                        continue  # the batch that contains the asked offset begins below it
                    if message.offset != offset:
                        last = offset - 1 if offset else "nothing"
                        raise GapError(f"offset {message.offset} follows {last}")
                    yield message
                    offset += 1
