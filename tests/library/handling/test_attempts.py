"""Every attempt sees the message as it was sent, whatever an attempt before it did to its objects."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import msgspec
import pydantic
import pytest

from oncemq import App, Harness, Message, Tx


@dataclasses.dataclass
class Order:
    cents: int | None = None
    bad: bool = False
    tags: list[str] = dataclasses.field(default_factory=list)


class StructOrder(msgspec.Struct):
    cents: int | None = None
    bad: bool = False
    tags: list[str] = []


class ModelOrder(pydantic.BaseModel):
    cents: int | None = None
    bad: bool = False
    tags: list[str] = []


SENT = [{"cents": 10}, {"cents": 20}, {"bad": True}]


def spoil(message: Message) -> int:
    """Take the amount out of a message's value, as a handler may that owns what it was given."""
    value = message.value
    if isinstance(value, dict):
        return value.pop("cents", 0)
    assert value.tags == []
    value.tags.append("seen")
    cents, value.cents = value.cents or 0, None
    return cents


def is_bad(message: Message) -> bool:
    value = message.value
    return value.get("bad", False) if isinstance(value, dict) else value.bad


def drained(handler: Any, **options: Any) -> Harness:
    app = App()
    app.consumer("pay", group="sum", **{"retries": 2, **options})(handler)
    harness = Harness(app)
    for number, value in enumerate(SENT):
        harness.send("pay", value, id=f"m{number}", key="k", headers={"h": b"1"})
    harness.drain()
    return harness


def add_list(messages: list[Message], tx: Tx) -> None:
    for message in messages:
        assert message.headers.pop("h") == b"1"
        tx.state["cents"] = tx.state.get("cents", 0) + spoil(message)
    if any(map(is_bad, messages)):
        raise ValueError("bad neighbour")


async def add_list_later(messages: list[Message], tx: Tx) -> None:
    await asyncio.sleep(0)
    add_list(messages, tx)


@pytest.mark.parametrize("handler", [add_list, add_list_later])
@pytest.mark.parametrize("typed", [None, Order, StructOrder, ModelOrder])
def test_neighbours_of_a_bad_message_are_handed_over_as_they_were_sent(handler, typed):
    """A list that failed is handed over message by message, each with its own amount."""
    harness = drained(handler, batch=True, typed=typed, retries=0)
    assert harness.state("sum") == {"cents": 30}
    assert len(harness.sent("pay.dead")) == 1


def test_neighbours_of_plain_bytes_are_handed_over_anew():
    """A handler may set the value of a message of bytes; the next attempt has the bytes sent."""
    app = App()
    seen = []

    @app.consumer("t", group="g", batch=True, retries=0)
    def take(messages, tx):
        seen.extend(message.value for message in messages)
        for message in messages:
            message.value = b"changed"
        if len(messages) > 1:
            raise ValueError("together")

    harness = Harness(app)
    for value in (b"one", b"two"):
        harness.send("t", value)
    harness.drain()
    assert seen == [b"one", b"two", b"one", b"two"]


@pytest.mark.parametrize("fails", [False, True])
def test_a_handler_may_empty_its_list(fails):
    """The list belongs to the handler: no message is passed over, and none is handled twice."""
    app = App()

    @app.consumer("t", group="g", batch=True, retries=0)
    def take(messages, tx):
        many = len(messages)
        while messages:
            tx.state["sum"] = tx.state.get("sum", 0) + messages.pop().value
        if fails and many > 1:
            raise ValueError("together")

    harness = Harness(app)
    for value in (1, 2, 4):
        harness.send("t", value)
    harness.drain()
    assert harness.state("g") == {"sum": 7}


def one(message: Message, tx: Tx) -> None:
    """It spoils a message, and fails at the first two attempts."""
    assert message.headers.pop("h") == b"1"
    amount = spoil(message)
    kept = tx.state.get("kept", [])
    kept.append(amount)
    tx.state["kept"] = kept
    if message.attempt < 3:
        kept.append("spoilt")
        raise ValueError("again")


async def one_later(message: Message, tx: Tx) -> None:
    await asyncio.sleep(0)
    one(message, tx)


SINGLE = [
    (one, {}),
    (one_later, {}),
    (one, {"state_by": "key"}),
    (one, {"state_by": "key", "concurrency": 3}),
    (one_later, {"state_by": "key", "concurrency": 3}),
]


@pytest.mark.parametrize(("handler", "options"), SINGLE)
@pytest.mark.parametrize("typed", [None, Order, StructOrder, ModelOrder])
def test_a_retry_sees_value_headers_and_state_as_they_were(handler, options, typed):
    """In handlers of all other shapes."""
    harness = drained(handler, typed=typed, **options)
    state = harness.state("sum")
    assert state.get("k", state) == {"kept": [10, 20, 0]}


def test_a_handler_that_starts_again_after_an_effect_sees_all_anew(tmp_path: Path):
    """With a sink a handler is left for an effect; what it and the effect changed does not stay."""
    app = App()
    calls = []

    def pay(order: dict[str, int], *, fail: bool) -> list[int]:
        calls.append(order.pop("cents"))
        if fail:
            raise ValueError("refused")
        return [5]

    @app.consumer("pay", group="g", sink=f"sqlite:///{tmp_path / 'db'}")
    def take(message, tx):
        tx.sql("create table if not exists t (a)")
        result = tx.effect("pay", pay, message.value, fail=False, policy="retry")
        result.append(message.value["cents"])
        if message.attempt == 1:
            raise ValueError("again")
        tx.state["result"] = result

    with Harness(app) as harness:
        harness.send("pay", {"cents": 10})
        harness.drain()
        assert harness.state("g") == {"result": [5, 10]}
    assert calls == [10]
