"""`send(topic, Order(...))` writes what a handler with `Message[Order]` reads, or refuses it."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import json
import sqlite3
import uuid
import zoneinfo
from typing import Any, NamedTuple

import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oncemq import App, Harness, Malformed, Message, Tx, ValueNotEncodable, outbox
from oncemq.codec.values import SERIALIZED, decode_value
from oncemq.library.messages.payloads import decoder_of, encode_payload


class Colour(enum.Enum):
    RED = "red"
    DEEP = "deep"


@dataclasses.dataclass
class Line:
    sku: uuid.UUID
    price: decimal.Decimal
    at: dt.datetime
    day: dt.date
    span: dt.timedelta
    blob: bytes
    colour: Colour
    tags: frozenset[str]
    pair: tuple[int, str]
    note: str | None = None


@dataclasses.dataclass
class Order:
    customer: str
    lines: list[Line]
    by_name: dict[str, Line] = dataclasses.field(default_factory=dict)


class StructOrder(msgspec.Struct, rename="camel", tag="order", omit_defaults=True):
    customer_name: str
    lines: list[Line] = []
    opening: dt.time | None = None


class ModelLine(pydantic.BaseModel):
    sku: uuid.UUID
    price: decimal.Decimal
    day: dt.date
    at: dt.datetime
    colour: Colour
    tags: set[str] = set()


class ModelOrder(pydantic.BaseModel):
    customer: str = pydantic.Field(alias="customerName")
    lines: list[ModelLine] = []


@dataclasses.dataclass(eq=False)
class Identity:
    """Equal to no other object: its fields are compared."""

    at: dt.datetime
    ratio: float


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
decimals = st.decimals(allow_nan=False, allow_infinity=False)
aware = st.datetimes(timezones=st.just(dt.UTC))
spans = st.timedeltas(min_value=dt.timedelta(-1000), max_value=dt.timedelta(1000))
lines = st.builds(
    Line,
    st.uuids(),
    decimals,
    aware,
    st.dates(),
    spans,
    st.binary(max_size=5),
    st.sampled_from(Colour),
    st.frozensets(text, max_size=3),
    st.tuples(st.integers(-(2**63), 2**64 - 1), text),
    st.none() | text,
)
model_lines = st.builds(
    ModelLine,
    sku=st.uuids(),
    price=decimals,
    day=st.dates(),
    at=aware,
    colour=st.sampled_from(Colour),
    tags=st.sets(text, max_size=3),
)
objects = (
    st.builds(Order, text, st.lists(lines, max_size=2), st.dictionaries(text, lines, max_size=1))
    | st.builds(StructOrder, text, st.lists(lines, max_size=2), st.none() | st.times())
    | st.builds(ModelOrder, customerName=text, lines=st.lists(model_lines, max_size=2))
)


@given(objects, st.booleans())
def test_an_object_that_is_accepted_comes_back_equal(value, canonical):
    """Dataclasses, structs and models, nested, with all types that have a form."""
    encoded = encode_payload(value, canonical=canonical)
    assert decoder_of(type(value))(*encoded) == value
    assert isinstance(decode_value(*encoded), dict)


@dataclasses.dataclass
class Loose:
    anything: Any = None
    number: int = 0


class Strict(pydantic.BaseModel, strict=True):
    day: dt.date


class Plain:
    pass


class Place(NamedTuple):
    x: int


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (Loose(uuid.uuid4()), "value['anything']: Message[Loose] would not give it back equal"),
        (Loose({"a": [dt.date(2024, 1, 1)]}), "value['anything']['a'][0]: Message[Loose]"),
        (Loose(dt.datetime(2024, 1, 1)), "value['anything']: a datetime without a time zone"),  # noqa: DTZ001
        (Loose(2**70), "value['anything']: a whole number beyond 64 bits"),
        (Loose(number="seven"), "value: Message[Loose] would refuse it: "),  # type: ignore[arg-type]
        (Loose(Plain()), "value: Loose cannot be carried"),
        (Strict(day=dt.date(2024, 1, 1)), "value: Message[Strict] would refuse it: "),
        ([Loose()], "value[0]: Loose cannot be carried (write: dataclasses.asdict(item))"),
        ({"o": StructOrder("a")}, "value['o']: StructOrder cannot be carried (write: msgspec."),
        (
            [Strict(day=dt.date(2024, 1, 1))],
            "value[0]: Strict cannot be carried (write: item.model_dump",
        ),
        (Plain(), "value: Plain cannot be carried"),
        (uuid.UUID(int=5), "value: UUID cannot be carried (write: str(id))"),
        (decimal.Decimal(5), "value: Decimal cannot be carried (write: str(amount))"),
    ],
)
def test_what_would_not_come_back_equal_is_refused(value, told):
    """With the path of the field, and what to write instead where there is a form."""
    with pytest.raises(ValueNotEncodable) as caught:
        encode_payload(value)
    assert str(caught.value).startswith(told)


def test_an_hour_that_comes_twice_and_nan_are_no_reason_to_refuse():
    """Both differ from their own copies by `==`, and yet come back as they were."""
    at = dt.datetime(2024, 10, 27, 2, 30, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin"), fold=1)
    back = decoder_of(Identity)(*encode_payload(Identity(at, float("nan"))))
    assert back.at.timestamp() == at.timestamp()
    assert back.ratio != back.ratio


LINE = Line(
    uuid.UUID(int=1), decimal.Decimal("1.50"), dt.datetime(2024, 1, 1, tzinfo=dt.UTC),
    dt.date(2024, 1, 1), dt.timedelta(seconds=1.5), b"\xff", Colour.DEEP, frozenset("ab"), (1, "a"),
)  # fmt: skip


def test_an_order_travels_from_a_sender_over_a_handler_to_the_next():
    """By `send`, by `tx.send` and into the state of none; a repeat under its id is a duplicate."""
    app = App()
    seen = []

    @app.consumer("orders", group="first")
    def take(message: Message[Order], tx: Tx) -> None:
        tx.send("lines", message.value.lines[0])
        with pytest.raises(
            ValueNotEncodable, match=r"tx\.state\['order'\]: Order cannot be carried"
        ):
            tx.state["order"] = message.value

    @app.consumer("lines", group="second", state_by="key")
    def note(message: Message[Line], tx: Tx) -> None:
        seen.append(message.value)

    harness = Harness(app)
    harness.send("orders", Order("alice", [LINE]), id="o-1")
    assert harness.send("orders", Order("alice", [LINE]), id="o-1").duplicate
    harness.drain()
    assert seen == [LINE]


def test_the_outbox_takes_objects_too():
    """What `outbox.send` accepts is what a producer would have sent."""
    with sqlite3.connect(":memory:") as database:
        outbox.create(database)
        assert outbox.send(database, "lines", LINE, id="l-1")
        assert not outbox.send(database, "lines", LINE, id="l-1")


class Money:
    """A class that OnceMQ knows nothing of."""

    def __init__(self, cents: int) -> None:
        self.cents = cents


class MoneyAsJson:
    """A serializer as a user writes it."""

    name = "money-1"

    def encode(self, value: Any) -> bytes | None:
        return json.dumps({"cents": value.cents}).encode() if isinstance(value, Money) else None

    def decode(self, data: bytes) -> Money:
        return Money(json.loads(data)["cents"])


def test_a_serializer_serves_what_oncemq_does_not_carry():
    """In `send`, `tx.send`, handlers with and without a type, and `harness.sent`."""
    app = App(serializer=MoneyAsJson())

    @app.consumer("pay", group="typed")
    def typed(message: Message[Money], tx: Tx) -> None:
        tx.state["cents"] = message.value.cents
        tx.send("paid", message.value)

    @app.consumer("pay", group="free", batch=True)
    def free(messages, tx):
        tx.state["seen"] = [
            m.value.cents if isinstance(m.value, Money) else m.value for m in messages
        ]

    harness = Harness(app)
    harness.send("pay", Money(250), id="p-1")
    assert harness.send("pay", Money(250), id="p-1").duplicate
    harness.send("pay", {"cents": 1})
    harness.drain()
    assert harness.state("typed") == {"cents": 250}
    assert harness.state("free") == {"seen": [250, {"cents": 1}]}
    assert [m.value.cents for m in harness.sent("paid")] == [250]
    assert len(harness.sent("pay.dead")) == 1


def test_a_reader_without_the_serializer_is_told_which_one_it_needs():
    """The name lies beside the bytes."""
    encoding, data = encode_payload(Money(5), serializer=MoneyAsJson())
    assert encoding == SERIALIZED
    with pytest.raises(Malformed, match=r"'money-1' wrote .*App\(serializer=\.\.\.\)"):
        decode_value(encoding, data)
    for damaged in (b"", b"\x00", b"\x05ab", b"\x02\xff\xff"):
        with pytest.raises(Malformed, match="does not name"):
            decode_value(SERIALIZED, damaged)


def test_bytes_that_the_serializer_refuses_are_parked_at_once():
    """An error of `decode` is a payload that does not fit."""

    class Broken(MoneyAsJson):
        def decode(self, data: bytes) -> Money:
            raise KeyError("cents")

    app = App(serializer=Broken())
    app.consumer("pay", group="g")(lambda message, tx: None)
    harness = Harness(app)
    harness.send("pay", Money(5))
    harness.drain()
    (letter,) = Harness.sent(harness, "pay.dead")
    error = letter.headers["oncemq-error"].decode()
    assert "PayloadInvalid" in error
    assert "serializer 'money-1': KeyError" in error


@pytest.mark.parametrize(
    ("name", "error"),
    [("", ValueError), ("n" * 65, ValueError), (5, ValueError), ("ok", TypeError)],
)
def test_a_serializer_is_checked_where_the_app_is_made(name, error):
    """A wrong one must not wait for the first message."""

    class Half:
        pass

    half: Any = Half()
    half.name = name
    with pytest.raises(error):
        App(serializer=half)
