"""Handlers of every shape, as a user writes them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import pydantic

from oncemq import App, EffectNotDone, IdConflict, Message, Reject, Tx

app = App("tcp://127.0.0.1:7400")


@dataclass
class Order:
    customer: str
    cents: int


class Line(msgspec.Struct):
    cents: int


class Parcel(pydantic.BaseModel):
    weight: float


def charge(order: str | bytes, cents: int, *, key: str = "") -> str:
    if cents < 0:
        raise EffectNotDone("nothing to charge")
    return f"{order!r} {key}"


async def call(cents: int) -> int:
    return cents


@app.consumer("orders", group="plain", retries=2, crash_retries=1, no_retry=(KeyError, ValueError))
def plain(order: Message, tx: Tx) -> None:
    tx.state["sum"] = tx.state.get("sum", 0) + order.value["cents"]
    tx.send("out", order.value, key=order.key, headers=order.headers)
    if order.created_at_ms is None:
        raise Reject("no time", hint="send one")


@app.consumer("orders", group="typed", no_retry=IdConflict, park=False)
def typed(order: Message[Order], tx: Tx) -> None:
    receipt = tx.effect("charge", charge, order.id, order.value.cents, key=tx.effect_key("charge"))
    again = tx.effect("again", charge, order.id, cents=5, policy="retry")
    tx.state[order.value.customer] = receipt.upper() + again.upper()
    order.value.custmer  # error
    tx.effect("charge", charge, order.id, "5")  # error
    tx.effect("charge", charge, order.id, 5, policy="often")  # error
    receipt.uper()  # error
    tx.commit()  # error
    tx.state[5] = 1  # error


@app.consumer("lines", group="structs", sink="sqlite:///shop.db")
def structs(line: Message[Line], tx: Tx) -> None:
    tx.sql("INSERT INTO lines VALUES (?, ?)", tx.key, line.value.cents)
    for (cents,) in tx.sql("SELECT cents FROM lines"):
        tx.state["last"] = cents
    tx.connection.execute("SELECT 1")


@app.consumer("parcels", group="models", state_by="key", concurrency=8)
def models(parcel: Message[Parcel], tx: Tx) -> None:
    tx.state["weight"] = parcel.value.weight
    del tx.state["weight"]


@app.consumer("orders", group="lists", batch=True, batch_size=100)
def lists(orders: list[Message[Order]], tx: Tx) -> None:
    for order in orders:
        tx.send("out", order.value.cents, key=tx.key_of(order))


@app.consumer("orders", group="sequences", batch=True, typed=Order)
def sequences(orders: Sequence[Message[Any]], tx: Tx) -> None:
    tx.state["count"] = tx.state.get("count", 0) + len(orders)


@app.consumer("orders", group="awaited")
async def awaited(order: Message[Order], tx: Tx) -> None:
    cents = await tx.effect("call", call, order.value.cents)
    cursor = await tx.sql("SELECT 1")
    tx.state["sum"] = cents + (await cursor.fetchone())[0]


@app.consumer("orders", group="awaited-lists", batch=True)
async def awaited_lists(orders: list[Message[Order]], tx: Tx) -> None:
    for order in orders:
        tx.state[order.value.customer] = await call(order.value.cents)


class Bill:
    def __call__(self, order: Message[Order], tx: Tx) -> None:
        tx.state["total"] = order.value.cents


app.consumer("orders", group="object")(Bill())
kept: int = len([one.topic for one in app.consumers])


@app.consumer("orders", group="misspelt", retires=2)  # error
def misspelt(order: Message, tx: Tx) -> None:
    plain(order, tx)


@app.consumer("orders", group="by", state_by="customer")  # error
def by(order: Message, tx: Tx) -> None:
    plain(order, tx)


@app.consumer("orders", group="without-tx")  # error
def without_tx(order: Message) -> None:
    order.topic.upper()


@app.consumer("orders", group="strings")  # error
def strings(order: str, tx: Tx) -> None:
    order.upper()
