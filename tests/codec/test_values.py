"""User values as bytes and back."""

from __future__ import annotations

import datetime as dt
import enum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oncemq.codec import values
from oncemq.errors import Malformed, TooLarge, ValueNotEncodable
from oncemq.limits import HEADERS_BYTES_MAX, KEY_BYTES_MAX

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
)
carried = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20
)


@given(carried)
def test_what_goes_in_comes_out(value):
    """Whatever msgpack carries arrives as it was sent."""
    assert values.decode_value(*values.encode_value(value)) == value


@given(st.dictionaries(st.text(), carried, min_size=2, max_size=6))
def test_canonical_form_ignores_the_order_of_maps(value):
    """Equal maps give equal bytes under explicit ids, in any order of insertion."""
    turned = dict(reversed(value.items()))

    assert values.encode_value(value, canonical=True) == values.encode_value(turned, canonical=True)


def test_aware_datetimes_arrive_in_utc_and_tuples_as_lists():
    """The two documented changes of type, and no other."""
    moment = dt.datetime(2013, 1, 1, 10, tzinfo=dt.UTC)

    assert values.decode_value(*values.encode_value({"at": moment, "pair": (1, 2)})) == {
        "at": moment,
        "pair": [1, 2],
    }


def test_subclasses_arrive_as_their_plain_type():
    """An enum of text is carried as its text."""

    class Colour(enum.StrEnum):
        RED = "red"

    assert values.decode_value(*values.encode_value({"c": Colour.RED})) == {"c": "red"}


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"a": [1, {2: 3}]}, "value['a'][1]"),
        ({"a": {"b": {1, 2}}}, "value['a']['b']"),
        ([dt.datetime(2013, 1, 1)], "value[0]"),  # noqa: DTZ001
        (object(), "value"),
        ("\ud800", "value"),
        (2**70, "value"),
    ],
)
def test_what_cannot_be_carried_is_refused_with_its_path(value, path):
    """The sender learns at send which part of the value is at fault."""
    with pytest.raises(ValueNotEncodable) as caught:
        values.encode_value(value)

    assert caught.value.reason.startswith(path)


def test_endless_nesting_is_refused():
    """A value nested deeper than its limit is an error at send, not a crash at the reader."""
    value: list = []
    value.append(value)

    with pytest.raises(ValueNotEncodable):
        values.encode_value(value)


@given(st.integers(0, 255), st.binary(max_size=200))
def test_stored_garbage_never_raises_anything_but_malformed(encoding, data):
    """Bytes that no OnceMQ wrote end in the typed error."""
    caught = None
    try:
        values.decode_value(encoding, data)
    except Exception as error:
        caught = error
    assert caught is None or type(caught) is Malformed


def test_keys_and_headers_have_bounds_and_rules():
    """Keys and headers above their limits or under a reserved name are refused at send."""
    assert values.encode_key("é") == "é".encode()
    assert values.decode_headers(values.encode_headers({"a": b"1"})) == {"a": b"1"}
    assert values.encode_headers({}) == b""
    with pytest.raises(TooLarge):
        values.encode_key(b"k" * (KEY_BYTES_MAX + 1))
    with pytest.raises(TooLarge):
        values.encode_headers({"a": b"x" * HEADERS_BYTES_MAX})
    with pytest.raises(ValueNotEncodable):
        values.encode_headers({"oncemq-x": b""})
    with pytest.raises(ValueNotEncodable):
        values.encode_headers({"a": "text"})
    with pytest.raises(ValueNotEncodable):
        values.encode_key(5)
