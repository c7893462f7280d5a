"""Messages as handlers see them: the quick way for plain bytes says what the bodies say."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from oncemq.codec import batch as batch_codec
from oncemq.codec.values import decode_value, encode_value
from oncemq.core.consumer.window import Piece
from oncemq.library.messages.message import Lot, Message, PlainMessage
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
