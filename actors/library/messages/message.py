"""The message that a handler gets: a place in a stored batch, decoded at first use."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any, Generic

from ...batch import BODY_PREFIX_BYTES
from ...codec.batch import build, split_body
from ...codec.values import BYTES, decode_headers, decode_value
from ...core.consumer.window import Piece, kept_indices
from ...ids import TEXT_TAG, sequence_id, untagged_id
from ...records import BatchStored

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    Payload = TypeVar("Payload", default=Any)
else:
    from typing import TypeVar

    Payload = TypeVar("Payload")

# Return the value of (encoding, bytes).
Decode = Callable[[int, bytes], Any]

_UNSET: Any = object()
_BYTES_WITHOUT_KEY = bytes([BYTES, 0, 0])


@dataclass(frozen=True, slots=True)
class Recorded:
    """The result of an effect, as it is recorded."""

    encoding: int
    value: bytes

    def decoded(self) -> Any:
        """Return the value that the handler gets. Raises Malformed."""
        return decode_value(self.encoding, self.value)


class Lot:
    """What all messages of a stored batch share. Made once for each batch, never by users."""

    __slots__ = (
        "attempt",
        "batch",
        "decode",
        "ends",
        "group",
        "lengths",
        "partition",
        "raw",
        "retried_offset",
        "stored",
        "topic",
        "values",
    )

    def __init__(
        self,
        piece: Piece,
        group: str,
        topic: str,
        partition: int,
        attempt: int = 1,
        decode: Decode = decode_value,
    ) -> None:
        """`attempt` is that of the first message; all others are at their first."""
        batch = piece.stored.batch
        assert batch is not None, "fetched batches come parsed"
        self.stored = piece.stored
        self.batch = batch
        self.raw = bytes(batch.raw)  # one copy a batch makes every slice below a bytes object
        self.ends = batch.ends
        self.lengths = batch.lengths
        self.attempt = attempt
        self.decode = decode
        self.retried_offset = piece.offsets[0]
        self.group = group
        self.topic = topic
        self.partition = partition
        # Decoded values by index in the batch; _UNSET where not decoded yet. None: no value was
        # read yet.
        self.values: list[Any] | None = None

    def message(self, index: int, offset: int, kind: type[Message] | None = None) -> Message:
        """Return message `index` of the batch, which lies at `offset`."""
        made = (kind or Message)()
        made._lot, made._index, made.offset = self, index, offset  # noqa: SLF001 - one module
        made._begin()  # noqa: SLF001
        return made

    def messages(self, piece: Piece, kind: type[Message]) -> Iterator[Message]:
        """The loop that every message passes."""
        values = self.plain_values() if kind is Message else None
        if values is None:
            yield from map(self.message, piece.indices, piece.offsets, repeat(kind))
            return
        if len(piece.indices) < len(values):
            values = [values[index] for index in piece.indices]
        for index, offset, value in zip(piece.indices, piece.offsets, values, strict=True):
            made = PlainMessage()
            made._lot = self  # noqa: SLF001
            made._index = index  # noqa: SLF001
            made.offset = offset
            made.value = value
            yield made

    def plain_values(self) -> list[bytes] | None:
        """None unless all values are bytes, without keys and of no type."""
        if self.decode is not decode_value:
            return None
        raw, start, size = self.raw, self.batch.payload_start, self.lengths[0]
        head = _BYTES_WITHOUT_KEY
        if size and self.batch.uniform:  # messages of one size, the usual case: no call a message
            step, count = len(head) + size, len(self.ends)
            if any(raw[start + at :: step] != head[at : at + 1] * count for at in range(len(head))):
                return None
            whole = struct.iter_unpack(f"{len(head)}x{size}s", memoryview(raw)[start:])
            return list(chain.from_iterable(whole))
        if raw[start : start + len(head)] != head:
            return None
        values = [
            raw[end - length : end] for end, length in zip(self.ends, self.lengths, strict=True)
        ]
        return values if head + head.join(values) == raw[start:] else None

    def body(self, index: int) -> bytes:
        end = self.ends[index]
        return self.raw[end - self.lengths[index] - BODY_PREFIX_BYTES : end]


class Message(Generic[Payload]):
    """One message of a topic, as a handler sees it. Fields are decoded at first use.

    `Message[Order]` as annotation of a handler makes `value` an Order (payloads.py). The object is
    valid while its handler runs and after; it never changes. A Lot makes it: there is no `__init__`,
    whose call would cost as much as all the rest.
    """

    __slots__ = ("_index", "_lot", "offset")

    _lot: Lot
    _index: int
    #: The place in the partition: 0, 1, 2 ... without holes.
    offset: int

    def _begin(self) -> None:
        """Called when lot and place are set, for kinds of messages that decode at once."""

    @property
    def attempt(self) -> int:
        """1 at the first call for this message in this process, 2 at the first retry."""
        lot = self._lot
        return lot.attempt if self.offset == lot.retried_offset else 1

    @property
    def topic(self) -> str:
        """The topic to which the message was sent."""
        return self._lot.topic

    @property
    def partition(self) -> int:
        """The partition of the topic."""
        return self._lot.partition

    @property
    def value(self) -> Payload:
        """The value as it was sent: bytes, text, or what msgpack carries (tuples as lists).

        For a handler of typed payloads it is the object made of that.

        The same object every time; changing it changes nothing but this object. Raises Malformed
        if a program other than OnceMQ made the bytes.
        """
        lot, index = self._lot, self._index
        values = lot.values
        if values is None:
            values = lot.values = [_UNSET] * len(lot.ends)
        value = values[index]
        if value is _UNSET:
            encoding, _, data = split_body(lot.body(index))
            value = values[index] = lot.decode(encoding, data)
        return value  # type: ignore[no-any-return]

    @property
    def key(self) -> str | bytes | None:
        """The key, None without one. Text where it is UTF-8, else bytes."""
        key = split_body(self._lot.body(self._index))[1]
        if key is None:
            return None
        try:
            return key.decode()
        except UnicodeDecodeError:
            return key

    @property
    def id(self) -> str | bytes:
        """The message id: as the sender gave it, or `topic/producer:partition:number`."""
        lot = self._lot
        if lot.batch.ids is not None:
            return untagged_id(lot.batch.ids[self._index])
        stored = lot.stored
        number = stored.first_sequence + self._index
        return sequence_id(lot.topic, stored.producer, lot.partition, number)

    @property
    def headers(self) -> dict[str, bytes]:
        """The headers, text to bytes; a new dict every time."""
        headers = self._lot.batch.headers
        return {} if headers is None else decode_headers(headers[self._index])

    @property
    def appended_at_ms(self) -> int:
        """Time of storing at the broker: milliseconds since 1970, never decreasing in a partition."""
        return self._lot.stored.at_ms

    @property
    def created_at_ms(self) -> int | None:
        """Time of creation as the sender gave it: milliseconds since 1970; None without one."""
        created = self._lot.batch.created_at_ms
        return None if created is None else created[self._index]

    def _idempotency_key(self) -> str:
        lot = self._lot
        if lot.batch.ids is None:
            return f"{lot.group}@{self.id!s}"
        return explicit_key(lot.group, lot.topic, lot.batch.ids[self._index])

    def _recorded(self) -> dict[str, Recorded]:
        return {}

    def __eq__(self, other: object) -> bool:
        """Whether it is the same message: place, id and what was sent. Its attempt does not count."""
        if not isinstance(other, Message):
            return NotImplemented
        return self is other or _sent(self) == _sent(other)

    def __hash__(self) -> int:
        return hash((self._lot.topic, self._lot.partition, self.offset))

    def __reduce__(self) -> tuple[Any, ...]:
        """For copies, and on the way to another process: the message without the rest of its batch."""
        lot = self._lot
        kind = Message if type(self) is PlainMessage else type(self)
        # What only the decoder of this process can make of the bytes goes along as it is.
        made = (self.value,) if lot.decode is not decode_value else ()
        return _from_parts, (kind, *_sent(self), lot.group, self.attempt, made)

    def __repr__(self) -> str:
        return f"<Message {self.id!r} {self.topic}/{self.partition}@{self.offset}>"


class PlainMessage(Message[bytes]):
    """A message whose value is bytes, and there from the start: reading it is no call."""

    __slots__ = ("value",)

    value: bytes


# What makes a message: topic, partition, offset, tagged id, producer, sequence, body, headers, times.
_Sent = tuple[str, int, int, bytes | None, str, int, bytes, bytes | None, int, int | None]


def _sent(message: Message) -> _Sent:
    lot, index = message._lot, message._index  # noqa: SLF001 - one module, two faces
    batch, stored = lot.batch, lot.stored
    return (
        lot.topic,
        lot.partition,
        message.offset,
        None if batch.ids is None else batch.ids[index],
        stored.producer,
        -1 if batch.ids is not None else stored.first_sequence + index,
        lot.body(index),
        None if batch.headers is None else batch.headers[index],
        stored.at_ms,
        message.created_at_ms,
    )


def _from_parts(kind: type[Message], *parts: Any) -> Message:
    """Return a message in a batch of its own."""
    *sent, group, attempt, made = parts
    topic, partition, offset, tagged, producer, sequence, body, headers, at_ms, created = sent
    encoding, key, value = split_body(body)
    batch = build(
        [value],
        encodings=encoding,
        keys=None if key is None else [key],
        ids=None if tagged is None else [tagged],
        headers=None if headers is None else [headers],
        created_at_ms=None if created is None else [created],
    )
    place = (0, partition, offset, 1, at_ms, producer, 0, sequence, b"", b"")
    stored = BatchStored(*place, batch.raw, batch.crc, 1, batch)
    lot = Lot(Piece(stored, range(1), [offset]), group, topic, partition, attempt)
    if made:
        lot.values = [*made]
    return lot.message(0, offset, kind)


# What the runner of handlers asks of a message, and handlers do not: no part of `Message` for users.


def lot_of(message: Message) -> Lot:
    return message._lot  # noqa: SLF001 - one module, two faces


def idempotency_key(message: Message) -> str:
    """What `tx.key` is: one text for each (group, message), the same at every attempt."""
    return message._idempotency_key()  # noqa: SLF001 - one module, two faces


def as_sent(message: Message) -> Message:
    """Return the same message anew: what a handler did to the value of `message` is not in it."""
    lot, index = message._lot, message._index  # noqa: SLF001 - one module, two faces
    if lot.values is not None:
        lot.values[index] = _UNSET
    kind = type(message)
    return lot.message(index, message.offset, Message if kind is PlainMessage else kind)


def brought_by(message: Message) -> dict[str, Recorded]:
    return message._recorded()  # noqa: SLF001 - one module, two faces


def explicit_key(group: str, topic: str, tagged: bytes) -> str:
    kind = tagged[:1].decode()
    text = tagged[1:].decode() if tagged[:1] == TEXT_TAG else tagged[1:].hex()
    return f"{group}@{topic}:{kind}:{text}"


def messages_in(topic: str, stored: BatchStored, decode: Decode = decode_value) -> list[Message]:
    """Outside of any group: for tools that read a topic."""
    offsets = range(stored.first_offset, stored.first_offset + stored.kept)
    piece = Piece(stored, kept_indices(stored), offsets)
    lot = Lot(piece, "", topic, stored.partition, decode=decode)
    return list(map(lot.message, piece.indices, piece.offsets))
