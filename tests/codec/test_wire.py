"""Wire messages, and bytes that only look like them."""

from __future__ import annotations

from dataclasses import replace

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oncemq.codec import batch, wire
from oncemq.errors import Malformed, TooLarge
from oncemq.limits import FRAME_BYTES_MAX
from oncemq.protocol import (
    KINDS,
    Failure,
    Fetched,
    Granted,
    Hello,
    Join,
    Ping,
    Produce,
    Produced,
    Renew,
    Renewed,
    Standby,
)
from oncemq.records import BatchStored

HELLO = Hello(1, 1, 1, "producer", b"i" * 16, b"", 0)


def stored(raw_batch, **changes):
    fields = {
        "topic_number": 0,
        "partition": 2,
        "first_offset": 7,
        "kept": 2,
        "at_ms": 5,
        "producer": "p",
        "epoch": 3,
        "first_sequence": 9,
        "mask": b"\x05",
        "digest": b"d" * 16,
        "raw": raw_batch.raw,
        "crc": raw_batch.crc,
        "count": raw_batch.count,
    }
    return BatchStored(**{**fields, **changes})


def test_every_kind_has_a_number_of_its_own():
    """Each kind of message has its own number on the wire."""
    assert len(set(KINDS.values())) == len(KINDS)


@pytest.mark.parametrize(
    "message",
    [
        HELLO,
        Ping(5),
        Produced(2, 10, ((3, 0, 0), (1, 1, -1))),
        Failure(1, "gap", "reason", "hint", -1),
    ],
)
def test_a_message_comes_back_as_it_was(message):
    """Encoding and decoding are inverse."""
    assert wire.decode(b"x", wire.encode(message, None)).message == message


@pytest.mark.parametrize("request_number", [0, 127, 128, 255, 256, 2**16, 2**32, 2**63 - 1])
def test_kind_and_number_are_read_without_the_rest(request_number):
    """They are what the whole message says, in short arrays and in long ones."""
    messages = [
        replace(HELLO, request=request_number),
        Ping(request_number),
        Failure(request_number, "gap", "reason", "hint", -1),
        Join(request_number, "g", "t", 0, b"i", b"l", b"", b"", 0, 0, False, "h", "/", "m", b"p"),
    ]
    for message in messages:
        frames = wire.encode(message, None)
        assert wire.peek(frames) == (type(message), request_number)
        assert wire.peek([memoryview(frames[0])]) == (type(message), request_number)
        assert wire.request_number([bytes(frames[0])]) == request_number


@given(st.binary(max_size=24))
def test_a_number_that_cannot_be_read_is_none(header):
    """Whatever came: a kind that exists or None, and a number, or nothing; never an error."""
    head = wire.peek([header])
    assert head is None or (head[0] is None or head[0] in KINDS.values(), head[1] >= 0) == (
        True,
        True,
    )


@pytest.mark.parametrize(
    ("message", "first_version"),
    [
        (Renew(1, "g", "t", 0, 5, b"m" * 16, 7), (11, 1, "g", "t", 0, 5)),
        (Renewed(1, 5, revoke=False, shared=True), (43, 1, 5)),
        (Standby(1, "one", 10_000, idle=True), (42, 1, "one", 10_000)),
        (
            Granted(1, 5, b"t", b"l", b"l", 10, 10_000, shared=True),
            (41, 1, 5, b"t", b"l", b"l", 10, 10_000),
        ),
        (
            Join(1, "g", "t", 0, b"i", b"l", b"", b"", 0, 0, False, "h", "/s", "one", b"m" * 16),
            (10, 1, "g", "t", 0, b"i", b"l", b"", b"", 0, 0, False, "h", "/s", "one"),
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_headers_of_version_1_are_headers_of_version_2(message, first_version):
    """Later fields are left off at their default, and are their default where they are missing."""
    (header,) = wire.encode(message, None)
    assert wire.decode(b"x", [header]).message == message
    old = wire.decode(b"x", [msgpack.packb(first_version)]).message
    assert old == type(message)(*first_version[1:])
    assert old != message
    assert wire.encode(old, None) == [msgpack.packb(first_version)]
    with pytest.raises(Malformed):
        wire.decode(b"x", [msgpack.packb((*msgpack.unpackb(header), 0))])
    with pytest.raises(Malformed):
        wire.decode(b"x", [msgpack.packb(first_version[:-1])])


def test_produce_brings_its_batch_checked():
    """The broker gets columns, not bytes, and nothing whose CRC is wrong."""
    built = batch.build([b"a", b"b"], encodings=0, ids=[b"s1", b"s2"])
    message = Produce(1, "t", 0, "", 0, -1, b"s" * 16, 0, b"", built.crc)
    received = wire.decode(b"x", wire.encode(message, built.raw))

    assert received.batch is not None
    assert received.batch.ids == [b"s1", b"s2"]
    with pytest.raises(Malformed):
        wire.decode(b"x", [wire.encode(message, None)[0]])
    with pytest.raises(Malformed):
        wire.decode(b"x", [wire.encode(message, None)[0], built.raw[:-1]])


def test_fetched_brings_stored_batches_checked():
    """What the broker stored arrives whole, with its verdict, or not at all."""
    built = batch.build([b"a", b"b", b"c"], encodings=0)
    record = stored(built)
    frames = [bytes(f) for f in wire.encode(Fetched(1, 1, b"", b"", 9, 9), [record, record])]
    received = wire.decode(b"", frames)

    assert received.stored is not None
    assert len(received.stored) == 2
    assert received.stored[1].mask == b"\x05"
    assert received.stored[1].batch is not None
    assert received.stored[1].batch.body(2) == built.body(2)
    for cut in range(1, len(frames[1])):
        if cut != len(frames[1]) // 2:
            with pytest.raises(Malformed):
                wire.unpack_stored(frames[1][:cut])


@pytest.mark.parametrize(
    "fields",
    [
        [],
        ["1", 2],
        [99, 1],
        [2],
        [2, 1, 1],
        [2, -1],
        [2, True],
        [2, 2**63],
        [1, 1, 1, 1, 5, b"", b"", 0],
        [1, 1, 1, 1, "r" * 5000, b"", b"", 0],
        [1, 1, 1, 1, "r", b"x" * 65, b"", 0],
        {"a": 1},
        None,
    ],
)
def test_impossible_fields_are_malformed(fields):
    """A valid msgpack header with impossible content is refused by type, range and length."""
    with pytest.raises(Malformed):
        wire.decode(b"x", [msgpack.packb(fields)])


@given(st.lists(st.binary(max_size=300), max_size=4))
def test_random_frames_end_in_a_typed_error(frames):
    """No bytes from a socket raise anything but our own error, nor hang."""
    caught = None
    try:
        wire.request_number(frames)
        wire.decode(b"x", frames)
    except Exception as error:
        caught = error
    assert caught is None or isinstance(caught, Malformed | TooLarge)


def test_bombs_are_refused():
    """Deep nesting, huge claims and oversize frames cost nothing."""
    with pytest.raises(Malformed):
        wire.decode(b"x", [b"\x91" * 5000])
    with pytest.raises(Malformed):
        wire.decode(b"x", [b"\xdd\xff\xff\xff\xff"])
    with pytest.raises(TooLarge):
        wire.decode(b"x", [b"", bytes(FRAME_BYTES_MAX + 1)])
    with pytest.raises(TooLarge):
        wire.decode(b"x", [bytes(70_000)])


def test_a_malformed_request_still_gets_its_number_in_the_answer():
    """The sender can match the refusal to its request."""
    assert wire.request_number([msgpack.packb([8, 77, "wrong"])]) == 77
    assert wire.request_number([b"\xc1"]) is None
    assert wire.request_number([]) is None
