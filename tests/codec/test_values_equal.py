"""What is accepted comes back equal, or is refused at send with its path: subclasses and edges."""

from __future__ import annotations

import collections
import datetime as dt
import enum
import math
import zoneinfo
from typing import NamedTuple

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oncemq.codec import values
from oncemq.errors import Malformed, ValueNotEncodable


class Colour(str, enum.Enum):  # noqa: UP042 - the older form prints its name, which is the point
    RED = "red"


class Loud(str):
    """Text whose methods say something else than it holds."""

    __slots__ = ()

    def __str__(self) -> str:
        return "loud"

    def encode(self, *_: object) -> bytes:
        return b"loud"


class Size(enum.IntEnum):
    BIG = 7


class Odd(int):
    """A number whose methods say something else than it holds."""

    def __int__(self) -> int:
        return 99

    def __index__(self) -> int:
        return 99


class Ratio(float):
    def __float__(self) -> float:
        return 99.0


class Blob(bytes):
    def __bytes__(self) -> bytes:
        return b"other"


class Listed(list):
    def __iter__(self):
        return iter(["other"])


class Mapped(dict):
    def items(self):
        return [("other", 1)]


class Frozen(dt.datetime):
    """As a library for tests or for tables makes them."""


class Point(NamedTuple):
    x: int
    y: int


class Picky(int):
    """It never equals the number that it holds."""

    __hash__ = int.__hash__

    def __eq__(self, other: object) -> bool:
        return False


BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")
WEST, EAST = dt.timezone(-dt.timedelta(hours=5)), dt.timezone(dt.timedelta(hours=5))
NOON = (2024, 1, 1, 12)

MEMBERS = [
    (Colour.RED, "red"),
    (Loud("quiet"), "quiet"),
    (Size.BIG, 7),
    (Odd(5), 5),
    (Ratio(1.5), 1.5),
    (Blob(b"own"), b"own"),
    (Listed([1, 2]), [1, 2]),
    (Mapped(a=2), {"a": 2}),
    (collections.OrderedDict(b=1, a=2), {"a": 2, "b": 1}),
    (collections.Counter("aab"), {"a": 2, "b": 1}),
    (collections.defaultdict(list, a=[1]), {"a": [1]}),
    (Point(1, Size.BIG), [1, 7]),
    (bytearray(b"x"), b"x"),
    (Frozen(*NOON, tzinfo=dt.UTC), dt.datetime(*NOON, tzinfo=dt.UTC)),
    (Frozen(*NOON, tzinfo=BERLIN), dt.datetime(*NOON, tzinfo=BERLIN)),
    (dt.datetime.max.replace(tzinfo=dt.UTC), dt.datetime.max.replace(tzinfo=dt.UTC)),
    (dt.datetime.min.replace(tzinfo=WEST), dt.datetime.min.replace(tzinfo=WEST)),
]


@pytest.mark.parametrize(("value", "back"), MEMBERS)
def test_a_subclass_comes_back_equal_and_built_in(value, back):
    """Alone, in a list and in a map; methods that a subclass overrides are not asked."""
    found, listed, mapped = (
        values.decode_value(*values.encode_value(sent, canonical=True))
        for sent in (value, [value], {"k": value})
    )
    assert found == listed[0] == mapped["k"] == back
    assert type(found) is type(back)


def test_an_hour_that_comes_twice_keeps_its_instant():
    """Of both half past two when summer time ends, each comes back as the instant that it was."""
    for fold in (0, 1):
        moment = dt.datetime(2024, 10, 27, 2, 30, tzinfo=BERLIN, fold=fold)
        back = values.decode_value(*values.encode_value([moment]))[0]
        assert back.timestamp() == moment.timestamp()


class Nowhere(dt.tzinfo):
    def utcoffset(self, when: dt.datetime | None) -> None:
        return None


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"until": [dt.datetime.max.replace(tzinfo=WEST)]}, "value['until'][0]: 9999"),
        ([dt.datetime.min.replace(tzinfo=EAST)], "value[0]: 0001"),
        ([dt.datetime(*NOON, tzinfo=Nowhere())], "value[0]: a datetime without a time zone"),
        ([Frozen(*NOON)], "value[0]: a datetime without a time zone"),
        ({"n": [2**64]}, "value['n'][0]: a whole number beyond 64 bits"),
        ({"n": -(2**63) - 1}, "value['n']: a whole number beyond 64 bits"),
        ([Odd(2**64)], "value[0]: a whole number beyond 64 bits"),
        ({"a": ["\ud800"]}, "value['a'][0]: text holds a lone surrogate"),
        ([{"\ud800": 1}], "value[0]: map key '\\ud800': text holds a lone surrogate"),
        ([{Colour.RED: 1}], "value[0]: map key"),
        ([Picky(3)], "value[0]: Picky differs from the int that it holds"),
    ],
)
def test_what_would_not_come_back_is_refused_with_its_path(value, reason):
    """The sender learns which part is at fault, however deep it lies."""
    with pytest.raises(ValueNotEncodable) as caught:
        values.encode_value(value)
    assert caught.value.reason.startswith(reason)


@pytest.mark.parametrize(
    "value", [dt.date(2024, 1, 1), dt.timedelta(1), {1, 2}, enum.Enum("E", "A").A]
)
def test_a_refusal_says_what_to_write(value):
    """Types that have an obvious form are refused with that form."""
    with pytest.raises(ValueNotEncodable, match="write: "):
        values.encode_value({"v": value})


def encode(value: object) -> tuple[tuple[int, bytes], str | None]:
    """Return a value encoded, or the reason why it is refused."""
    try:
        return values.encode_value(value, canonical=True), None
    except ValueNotEncodable as error:
        return (0, b""), error.reason


aware = st.datetimes(timezones=st.timezones() | st.just(dt.UTC) | st.just(WEST) | st.just(EAST))


@given(aware, st.booleans())
def test_an_aware_datetime_comes_back_as_the_same_instant_or_is_refused(moment, subclassed):
    """Over all years and zones, as a subclass too; nothing is accepted that cannot be read."""
    sent = moment
    if subclassed:
        sent = Frozen.combine(moment.date(), moment.time(), moment.tzinfo).replace(fold=moment.fold)
    encoded, refused = encode({"at": sent})
    if refused is not None:
        assert refused.startswith("value['at']: ")
        return
    back = values.decode_value(*encoded)["at"]
    assert back - moment == dt.timedelta(0)
    assert back.tzinfo is dt.UTC


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.binary()
    | st.sampled_from([value for value, _ in MEMBERS])
    | aware,
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)


def same(back: object, sent: object) -> bool:
    """Whether a value came back equal: a tuple as a list, NaN as NaN, a time as its instant."""
    if isinstance(sent, Mapped | Listed):
        return dict.__eq__(back, sent) if isinstance(sent, dict) else list.__eq__(back, sent)
    if isinstance(sent, dict):
        return back.keys() == sent.keys() and all(same(back[key], sent[key]) for key in sent)
    if isinstance(sent, list | tuple):
        return len(back) == len(sent) and all(map(same, back, sent))
    if isinstance(sent, dt.datetime):
        return back - sent == dt.timedelta(0)
    return back == sent or (math.isnan(back) and math.isnan(sent))


@given(anything)
def test_whatever_is_accepted_comes_back_equal(value):
    """The rule itself, over nested values of all kinds."""
    encoded, refused = encode(value)
    if refused is not None:
        assert refused.startswith("value")
        return
    assert same(values.decode_value(*encoded), value)


def test_a_stored_time_out_of_range_is_malformed():
    """A program other than OnceMQ may write any timestamp; reading it is the typed error."""
    data = msgpack.packb([msgpack.Timestamp(10**17, 0)])
    with pytest.raises(Malformed):
        values.decode_value(values.MSGPACK, data)


def test_keys_are_the_text_they_hold():
    """A member of an enum is the key that its text is."""
    assert values.encode_key(Colour.RED) == b"red"
    assert values.encode_key(Loud("quiet")) == b"quiet"
    assert values.encode_key(Blob(b"own")) == b"own"
