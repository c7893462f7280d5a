"""Messages as handlers see them: the quick way for plain bytes says what the bodies say."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from oncemq import App, Harness
from oncemq.codec import batch as batch_codec
from oncemq.codec.values import decode_value, encode_letter_headers, encode_value
from oncemq.core.consumer.window import Piece
from oncemq.library.handling.letters import Origin, Replayed
from oncemq.library.messages.message import Lot, Message, PlainMessage, idempotency_key
from oncemq.records import BatchStored

FIRST = 40  # an offset


def lot_of(encoded: list[tuple[int, bytes]], keys: list[bytes | None] | None) -> Lot:
    built = batch_codec.build(
        [data for _, data in encoded], encodings=[kind for kind, _ in encoded], keys=keys
    )
    count = len(encoded)
    place = (1, 0, FIRST, count, 0, "importer", 1, 7, b"", b"")
    stored = BatchStored(*place, memoryview(bytes(built.raw)), built.crc, count)
    stored.batch = batch_codec.parse(stored.raw, built.crc, check=True)
    piece = Piece(stored, range(count), range(FIRST, FIRST + count))
    return Lot(piece, "group", "topic", 0)


values = st.lists(st.binary(max_size=3) | st.text(max_size=2) | st.integers(0, 9), min_size=1)
same_size = st.integers(1, 3).flatmap(
    lambda size: st.lists(st.binary(min_size=size, max_size=size), min_size=1)
)


@given(values | same_size, st.data())
@example([b"\x01", b"\x02", "\x03"], None)
@example([b"", b""], None)
def test_values_and_places_are_those_of_the_bodies(sent, data) -> None:
    """Whatever was sent, in whatever mixture and of whatever sizes, is what comes out, in place."""
    keys = None
    if data is not None and data.draw(st.booleans()):
        keys = data.draw(st.lists(st.none() | st.binary(), min_size=len(sent), max_size=len(sent)))
    encoded = [encode_value(value) for value in sent]
    lot = lot_of(encoded, keys)
    kept = [index for index in range(len(sent)) if data is None or data.draw(st.booleans())]
    piece = Piece(lot.stored, kept, [FIRST + index for index in kept])

    messages = list(lot.messages(piece, Message))

    assert [message.value for message in messages] == [sent[index] for index in kept]
    assert [type(message.value) for message in messages] == [type(sent[index]) for index in kept]
    assert [message.offset for message in messages] == list(piece.offsets)
    assert [message.id for message in messages] == [f"topic/importer:0:{7 + n}" for n in kept]
    plain = keys is None or not any(key is not None for key in keys)
    plain = plain and all(kind == 0 for kind, _ in encoded)
    assert all(isinstance(message, PlainMessage) == plain for message in messages)
    for message, index in zip(messages, kept, strict=True):
        alone = lot.message(index, FIRST + index)
        assert (alone.value, alone.key, alone.id) == (message.value, message.key, message.id)


def test_a_decoded_value_is_the_same_object_every_time() -> None:
    """A handler may change what it got without the next look undoing it."""
    lot = lot_of([encode_value({"a": [1]})], None)
    (message,) = lot.messages(Piece(lot.stored, [0], [FIRST]), Message)
    message.value["a"].append(2)
    assert message.value == {"a": [1, 2]}
    assert decode_value(*encode_value({"a": [1]})) == {"a": [1]}


@dataclass(frozen=True)
class Order:
    """A payload of a typed handler."""

    item: str
    cents: int


def copies(message: Message) -> list[Any]:
    made = [ForkingPickler.loads(ForkingPickler.dumps(message, n)) for n in range(2, 6)]
    return [*made, copy.copy(message), copy.deepcopy(message)]


def faces(message: Message) -> tuple[Any, ...]:
    """All that a handler can ask a message for."""
    place = (message.topic, message.partition, message.offset, message.attempt)
    times = (message.appended_at_ms, message.created_at_ms)
    content = (message.id, message.key, message.value, message.headers, idempotency_key(message))
    return (*place, *times, *content, repr(message))


def test_a_message_can_be_pickled_and_is_equal_then() -> None:
    """Plain bytes, values, keys, headers, explicit ids and retries; without the rest of its batch."""
    app, seen = App(), []

    @app.consumer("t", group="g", retries=1)
    def handle(message: Message, tx: Any) -> None:
        if message.value == "again" and message.attempt == 1:
            raise ValueError
        seen.append(message)

    harness = Harness(app)
    for value in (b"plain", {"n": [1, 2.5, None]}, "again"):
        harness.send("t", value)
        harness.send("t", value, id=f"id-{value!r}", key="k", headers={"h": b"1"})
    harness.send("t", b"x" * 100_000, id=b"\xff\x00", key=b"\xfe")
    harness.drain()
    assert len(seen) == 7
    for message in seen:
        for made in copies(message):
            assert faces(made) == faces(message)
            assert made == message
            assert hash(made) == hash(message)
            assert (
                len(ForkingPickler.dumps(made)) < len(ForkingPickler.dumps(message.value)) + 1_000
            )
    assert len(set(seen)) == len({*seen, *map(copy.copy, seen)}) == 7
    assert seen[0] != seen[1]
    assert seen[0] != "plain"


def test_a_typed_message_keeps_its_object() -> None:
    """Its decoder does not travel; the object that it made does."""
    app, seen = App(), []

    @app.consumer("t", group="g", typed=Order)
    def handle(message: Message[Order], tx: Any) -> None:
        seen.append(message)

    harness = Harness(app)
    harness.send("t", {"item": "tea", "cents": 250}, id="1")
    harness.drain()
    for made in copies(seen[0]):
        assert made.value == Order("tea", 250)
        assert made == seen[0]


def test_a_replayed_message_is_still_the_one_that_it_stands_for() -> None:
    """Topic, offset and id are those of the original; the copy's own place makes it equal."""
    letter = encode_letter_headers(
        {}, Origin("orders", 3, 17, 5, "o-1", "text").headers() | {"oncemq-kind": b"raised"}
    )
    built = batch_codec.build([b"x"], encodings=0, ids=[b"sreplay"], headers=[letter])
    stored = BatchStored(1, 3, 0, 1, 9, "", 0, -1, b"", b"", built.raw, built.crc, 1, built)
    lot = Lot(Piece(stored, range(1), [0]), "g", "orders@g", 3)
    message = lot.message(0, 0, Replayed)
    assert (message.topic, message.offset, message.id) == ("orders", 17, "o-1")
    for made in copies(message):
        assert type(made) is Replayed
        assert faces(made) == faces(message)
        assert made == message
