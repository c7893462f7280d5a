"""The test kit that users get: their handlers against real cores, in memory."""

from __future__ import annotations

import pytest

from oncemq import App, Harness
from oncemq.errors import HandlerFailed, IdConflict, OnceMQError, ValueNotEncodable


def shop() -> App:
    app = App()

    @app.consumer("orders", group="billing")
    def bill(order, tx):
        tx.state[order.key] = tx.state.get(order.key, 0) + order.value["cents"]
        tx.send("invoices", {"order": order.id, "cents": order.value["cents"]}, key=order.key)

    @app.consumer("invoices", group="ledger")
    def book(invoice, tx):
        tx.state["total"] = tx.state.get("total", 0) + invoice.value["cents"]

    return app


def test_one_handler_feeds_the_next() -> None:
    """`drain` runs until outputs of outputs are handled too."""
    harness = Harness(shop())
    assert harness.send("orders", {"cents": 250}, id="o-1", key="alice").offset == 0
    assert harness.send("orders", {"cents": 250}, id="o-1", key="alice").duplicate
    harness.send("orders", {"cents": 50}, key="bob")
    assert harness.state("billing") == {}
    harness.drain()
    assert harness.state("billing") == {"alice": 250, "bob": 50}
    assert harness.state("ledger") == {"total": 300}
    assert [m.value["cents"] for m in harness.sent("invoices")] == [250, 50]
    assert [m.key for m in harness.sent("invoices")] == ["alice", "bob"]
    assert harness.sent("nothing") == []


def test_a_crash_doubles_and_loses_nothing() -> None:
    """After a crash at any time between two drains, everything counts once."""
    harness = Harness(shop())
    for number in range(12):
        harness.send("orders", {"cents": 1}, id=f"o-{number}", key="alice")
        if number % 3 == 0:
            harness.crash()
        if number % 2 == 0:
            harness.drain()
    harness.drain()
    harness.crash()
    assert harness.state("billing") == {"alice": 12}
    assert harness.state("ledger") == {"total": 12}
    assert len(harness.sent("invoices")) == 12


def test_several_partitions() -> None:
    """Each partition has a state of its own; `state` merges them and refuses the same key twice."""
    app = App()

    @app.consumer("clicks", group="g")
    def count(click, tx):
        tx.state[click.key or "none"] = tx.state.get(click.key or "none", 0) + 1

    harness = Harness(app, partitions={"clicks": 3})
    for number in range(30):
        harness.send("clicks", None, key=f"k{number % 10}")
    harness.drain()
    assert harness.state("g") == {f"k{number}": 3 for number in range(10)}
    assert len({m.partition for m in harness.sent("clicks")}) == 3
    for _ in range(3):
        harness.send("clicks", None)
    harness.drain()
    with pytest.raises(OnceMQError, match="several partitions"):
        harness.state("g")


def test_a_failing_handler_is_raised_with_its_cause() -> None:
    """`drain` raises HandlerFailed from the handler's own error; mended, the next one goes on."""
    app = App()
    broken = [True]
    attempts = []

    @app.consumer("t", group="g", retries=2, park=False)
    def handler(message, tx):
        attempts.append(message.attempt)
        tx.state["n"] = tx.state.get("n", 0) + 1
        if broken[0] and message.value == 1:
            raise LookupError("broken")

    harness = Harness(app)
    for value in range(3):
        harness.send("t", value)
    with pytest.raises(HandlerFailed, match="offset 1") as caught:
        harness.drain()
    assert isinstance(caught.value.__cause__, LookupError)
    assert attempts == [1, 1, 2, 3]
    broken[0] = False
    harness.drain()
    assert harness.state("g") == {"n": 3}


def test_errors_of_send_come_back() -> None:
    """What a producer would raise, `send` raises."""
    harness = Harness(App())
    harness.send("t", 1, id="a")
    with pytest.raises(IdConflict):
        harness.send("t", 2, id="a")
    with pytest.raises(ValueNotEncodable):
        harness.send("t", object())


def test_topics_are_made_by_the_first_send_of_a_handler() -> None:
    """tx.send waits for the facts of a topic it meets first; impossible names fail in the handler."""
    app = App()

    @app.consumer("t", group="g", retries=0, park=False)
    def handler(message, tx):
        tx.send(message.value, "hello")

    harness = Harness(app)
    harness.send("t", "fresh")
    harness.drain()
    assert [m.value for m in harness.sent("fresh")] == ["hello"]
    harness.send("t", "no/good")
    with pytest.raises(HandlerFailed, match="InvalidName"):
        harness.drain()


def test_a_coroutine_in_disguise_is_found_at_its_first_message() -> None:
    """A handler that returns a coroutine would never run: the message fails instead."""
    app = App()

    async def real(message, tx): ...

    @app.consumer("t", group="g", retries=0)
    def handler(message, tx):
        return real(message, tx)

    harness = Harness(app)
    harness.send("t", 1)
    with pytest.raises(HandlerFailed, match="coroutine that is never run"):
        harness.drain()


def test_unknown_topics_are_told() -> None:
    """The broker's refusal of a topic reaches the handler as its own error."""
    app = App()
    seen = []

    @app.consumer("t", group="g")
    def handler(message, tx):
        try:
            tx.send("x" * 128 + "y", 1)
        except OnceMQError as error:
            seen.append(error.code)

    harness = Harness(app)
    harness.send("t", 1)
    harness.drain()
    assert seen == ["invalid_name"]
