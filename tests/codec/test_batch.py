"""The bytes of a batch."""

from __future__ import annotations

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oncemq.codec import batch as codec
from oncemq.codec.values import encode_headers
from oncemq.errors import Malformed, TooLarge
from oncemq.ids import tagged_id
from oncemq.limits import BATCH_MESSAGES_MAX, MESSAGE_BYTES_MAX


@st.composite
def batches(draw):
    """Arguments of `build` with any choice of columns."""
    n = draw(st.integers(1, 8))

    def column(item, optional=True):
        listed = st.lists(item, min_size=n, max_size=n)
        return draw(st.none() | listed if optional else listed)

    return {
        "values": column(st.binary(max_size=40), optional=False),
        "encodings": draw(st.just(0) | st.lists(st.integers(0, 2), min_size=n, max_size=n)),
        "keys": column(st.none() | st.binary(max_size=10)),
        "ids": column((st.text(min_size=1, max_size=9) | st.binary(min_size=1)).map(tagged_id)),
        "headers": column(st.sampled_from([b"", encode_headers({"a": b"1"})])),
        "created_at_ms": column(st.integers(0, 2**50)),
    }


@given(batches())
def test_a_parsed_batch_equals_the_built_one(arguments):
    """Every column and every body survives the way over the wire."""
    built = codec.build(**arguments)
    parsed = codec.parse(built.raw, built.crc, check=True)

    kinds = arguments["encodings"]
    for i, value in enumerate(arguments["values"]):
        encoding, key, carried = codec.split_body(parsed.body(i))
        assert carried == value
        assert key == (arguments["keys"] or [None] * 8)[i]
        assert encoding == (kinds if isinstance(kinds, int) else kinds[i])
    assert parsed.ids == arguments["ids"]
    assert parsed.hashes == built.hashes
    assert list(parsed.created_at_ms or []) == (arguments["created_at_ms"] or [])
    assert parsed.headers == built.headers


@pytest.mark.parametrize("ids", [[b"sa", b"xb", b"sc"], [b"sa", b"xbc", b"sc"]])
def test_an_id_of_an_unknown_type_is_malformed(ids):
    """Wherever it stands, whether all ids are of one size or not."""
    built = codec.build([b"1", b"2", b"3"], encodings=0, ids=ids)
    with pytest.raises(Malformed, match="unknown type"):
        codec.parse(built.raw, built.crc, check=True)


@given(batches(), st.data())
def test_a_changed_byte_is_malformed(arguments, data):
    """No flipped byte gets past the CRC made by the sender."""
    built = codec.build(**arguments)
    at = data.draw(st.integers(0, len(built.raw) - 1))
    flip = data.draw(st.integers(1, 255))
    changed = bytearray(built.raw)
    changed[at] ^= flip

    with pytest.raises(Malformed):
        codec.parse(bytes(changed), built.crc, check=True)


@given(batches(), st.data())
def test_a_hostile_batch_is_malformed_or_consistent(arguments, data):
    """With a CRC that matches, any bytes either are refused or have lengths that add up."""
    raw = bytearray(codec.build(**arguments).raw)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.integers(0, len(raw)))]

    try:
        parsed = codec.parse(bytes(raw), zlib.crc32(raw), check=True)
    except Malformed:
        return
    assert parsed.ends[-1] == len(raw)
    assert len(parsed.ids or parsed.lengths) == parsed.count


def test_the_hash_covers_key_encoding_and_value():
    """Two bodies are the same only if key, encoding and value are."""

    def hashes(**columns):
        built = codec.build([b"v"], ids=[b"si"], **columns).hashes
        assert built is not None
        return built[0]

    plain = hashes(encodings=0)

    assert plain == hashes(encodings=0)
    assert plain != hashes(encodings=1)
    assert plain != hashes(encodings=0, keys=[b"k"])
    assert hashes(encodings=0, keys=[b""]) != plain


def test_limits_are_refused_before_anything_is_numbered():
    """An over-long message or batch never becomes a batch."""
    with pytest.raises(TooLarge):
        codec.build([b"x" * (MESSAGE_BYTES_MAX + 1)], encodings=0)
    with pytest.raises(TooLarge):
        codec.build([b""] * (BATCH_MESSAGES_MAX + 1), encodings=0)
    with pytest.raises(TooLarge):
        codec.build([], encodings=0)
    with pytest.raises(TooLarge):
        codec.build([b"x" * MESSAGE_BYTES_MAX] * 5, encodings=0)


def test_a_body_that_lies_about_its_key_is_malformed():
    """A key longer than the message is not read beyond it."""
    with pytest.raises(Malformed):
        codec.split_body(b"\x00\xff\x00ab")
    with pytest.raises(Malformed):
        codec.split_body(b"\x00")
