"""Real processes: an HTTP call whose process dies between the call and the record of its result."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest

from oncemq.chaos.programs import Running, wait_until
from oncemq.library.operating.client import AdminClient
from tests.process.house import START_S, House

pytestmark = [pytest.mark.process, pytest.mark.timeout(240)]

APP = """
import os
import urllib.request
from pathlib import Path
from oncemq import App
app = App()
HERE = Path({directory!r})

def charge(order, key):
    request = urllib.request.Request({url!r}, data=order["id"].encode(), headers={{"Key": key}})
    with urllib.request.urlopen(request, timeout=30) as answer:
        receipt = answer.read().decode()
    deadly = HERE / f"die-{{order['id']}}"
    if deadly.exists():
        deadly.unlink()
        os._exit(9)
    return receipt

@app.consumer("orders", group="billing")
def bill(message, tx):
    order = message.value
    policy = (HERE / "policy").read_text()
    key = tx.effect_key("charge")
    receipt = tx.effect("charge", charge, order, key=key, policy=policy)
    tx.state[order["id"]] = receipt
    tx.send("receipts", [order["id"], receipt])
"""


ASYNC_APP = """
import asyncio
from effectapp import HERE, charge
from oncemq import App
app = App()

async def charge_later(order, key):
    return await asyncio.to_thread(charge, order, key)

@app.consumer("orders", group="later")
async def bill(message, tx):
    order = message.value
    receipt = await tx.effect("charge", charge_later, order, key=tx.effect_key("charge"))
    tx.state[order["id"]] = receipt
"""


KEYED_APP = """
from effectapp import HERE, charge
from oncemq import App
app = App()

@app.consumer("orders", group="keyed", state_by="key", concurrency=4)
def bill(message, tx):
    order = message.value
    receipt = tx.effect("charge", charge, order, key=tx.effect_key("charge"))
    tx.state[order["id"]] = receipt
"""


class Bank(BaseHTTPRequestHandler):
    """Counts the charges by order and idempotency key."""

    charges: ClassVar[Counter[tuple[str, str]]] = Counter()
    may_answer: ClassVar[threading.Event] = threading.Event()

    def do_POST(self) -> None:
        order = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.charges[order, self.headers["Key"]] += 1
        self.may_answer.wait(START_S)
        answer = f"receipt {sum(self.charges.values())} of {order}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args: Any) -> None:
        """Nothing on stderr."""


class Shop:
    """Two partitions of orders, and a bank that is called for each."""

    def __init__(self, house: House, url: str) -> None:
        self.house = house
        self.directory = house.directory
        text = APP.format(directory=str(self.directory), url=url)
        (self.directory / "effectapp.py").write_text(text)
        (self.directory / "asyncapp.py").write_text(ASYNC_APP)
        (self.directory / "keyedapp.py").write_text(KEYED_APP)
        self.policy("ask")
        house.broker()
        with AdminClient(house.endpoint) as client:
            client.create_topic("orders", 2)

    def policy(self, name: str) -> None:
        (self.directory / "policy").write_text(name)

    def send(self, *ids: str) -> None:
        """Keys "a" and "d" lie in different partitions."""
        path = self.directory / f"orders-{ids[0]}.jsonl"
        rows = [{"id": one, "key": one[0]} for one in ids]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        more = ("--topic=orders", "--format=jsonl", "--id-field=id", "--key-field=key")
        self.house.producer(*more, str(path)).wait(START_S, 0)

    def dies_of(self, order: str) -> Running:
        """Run the consumer until the call of this order has killed it."""
        (self.directory / f"die-{order}").touch()
        consumer = self.house.consumer("effectapp:app")
        consumer.wait(START_S, 9)
        return consumer

    def effects(self) -> list[dict[str, Any]]:
        return list(self.house.command("effects", "list")["effects"])

    def state(self) -> dict[str, Any]:
        return self.house.command("state", f"--state={self.house.state}", "--group=billing")

    def consume(self) -> Running:
        """Run until idle; a held partition does not keep it."""
        consumer = self.house.consumer("effectapp:app", "--until-idle=1")
        consumer.wait(START_S, 0, 4)
        summary = consumer.summary()
        assert consumer.exit_code == (4 if summary["parked"] or "held" in summary else 0)
        return consumer

    def verify(self) -> dict[str, Any]:
        where = (f"--state={self.house.state}", f"--data={self.house.data}")
        return self.house.command("verify", *where)


@pytest.fixture
def shop(house: House) -> Iterator[Shop]:
    Bank.charges = Counter()
    Bank.may_answer.set()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Bank)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield Shop(house, f"http://127.0.0.1:{server.server_port}/")
    finally:
        Bank.may_answer.set()
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_call_that_dies_is_unknown_and_an_operator_says_it_was_done(shop: Shop) -> None:
    """It is listed, not repeated, holds its own partition only, and the handler gets the value."""
    shop.send("a1", "a2", "d1", "d2")
    shop.dies_of("a1")
    [effect] = shop.effects()
    assert (effect["state"], effect["policy"], effect["name"]) == ("unknown", "ask", "charge")
    assert (effect["group"], effect["topic"], effect["offset"]) == ("billing", "orders", 0)
    assert effect["message"] == "billing@orders:s:a1"

    table = shop.house.start("effects", "-m", "oncemq", "effects", "list", "--group=billing")
    table.wait(START_S, 0)
    head, row = table.stdout().splitlines()
    assert head.startswith("ID\tKEY\tSTATE\tPOLICY\tCALLS\tSINCE\tWHY")
    assert row.startswith(f"{effect['id']}\tbilling@orders:s:a1:charge\tunknown\task\t1\t")

    first = shop.consume()  # the other partition goes on
    assert f"resolve '{effect['id']}' --done VALUE" in first.stderr()
    assert first.summary()["held"] == [effect["id"]]
    assert set(shop.state()) == {"d1", "d2"}
    [still] = shop.effects()
    assert still["id"] == effect["id"]
    assert "ended between the call and the record" in still["why"]
    assert {order: count for (order, _), count in Bank.charges.items()} == {
        "a1": 1,
        "d1": 1,
        "d2": 1,
    }

    running = shop.house.consumer("effectapp:app")  # and now while it runs
    wait_until(lambda: effect["id"] in running.stderr(), START_S, "the held effect")
    told = shop.house.command("effects", "resolve", effect["id"], "--done", '{"by": "hand"}')
    assert told == {"id": effect["id"], "how": "answered", "duplicate": False}
    wait_until(lambda: len(shop.state()) == 4, START_S, "all in the state")
    running.stop(START_S, 0)
    assert shop.state()["a1"] == {"by": "hand"}
    assert all(count == 1 for count in Bank.charges.values()), Bank.charges
    assert shop.effects() == []
    late = shop.house.command("effects", "resolve", effect["id"], "--retry", code=1)
    assert "no effect" in late["error"]
    assert shop.verify()["violations"] == 0


def test_an_operator_wants_the_call_again(shop: Shop) -> None:
    """Said while nobody runs: it is called once more, under the same key, and never again."""
    shop.send("a1", "d1")
    shop.dies_of("a1")
    [effect] = shop.effects()
    assert shop.house.command("effects", "resolve", effect["id"], "--retry")["how"] == "again"
    assert shop.house.command("effects", "resolve", effect["id"], "--retry")["duplicate"] is True
    other = shop.house.command("effects", "resolve", effect["id"], "--done", "1", code=1)
    assert "is already resolved: called again" in other["error"]
    [said] = shop.effects()
    assert (said["state"], said["order"]) == ("resolved", "again")
    assert "held" not in shop.consume().summary()
    assert set(shop.state()) == {"a1", "d1"}
    assert Bank.charges["a1", "billing@orders:s:a1:charge"] == 2
    assert Bank.charges["d1", "billing@orders:s:d1:charge"] == 1
    assert shop.effects() == []
    assert not list(shop.house.state.rglob("*.order"))
    assert shop.verify()["violations"] == 0


def test_it_is_parked_or_called_again_where_the_handler_says_so(shop: Shop) -> None:
    """`park` makes a dead letter in the same commit, `retry` calls under the same key."""
    shop.policy("park")
    shop.send("a1", "d1")
    shop.dies_of("a1")
    [effect] = shop.effects()
    vain = shop.house.command("effects", "resolve", effect["id"], "--retry", code=1)
    assert "its policy is park" in vain["error"]
    shop.consume()
    assert set(shop.state()) == {"d1"}
    [letter] = shop.house.command("dlq", "list", "--topic=orders")["letters"]
    assert (letter["kind"], letter["message_id"]) == ("unknown effect", "a1")
    shop.policy("retry")
    shop.send("a2")
    shop.dies_of("a2")
    shop.consume()
    assert set(shop.state()) == {"d1", "a2"}
    assert Bank.charges["a1", "billing@orders:s:a1:charge"] == 1
    assert Bank.charges["a2", "billing@orders:s:a2:charge"] == 2
    assert shop.verify()["violations"] == 0


def test_a_process_that_is_killed_in_the_call(shop: Shop) -> None:
    """While it lives its call is running and nobody may speak about it; then it is unknown."""
    shop.send("a1", "d1")
    Bank.may_answer.clear()
    consumer = shop.house.consumer("effectapp:app")
    wait_until(lambda: sum(Bank.charges.values()) == 1, START_S, "the call")
    [effect] = shop.effects()
    assert effect["state"] == "running"
    early = shop.house.command("effects", "resolve", effect["id"], "--retry", code=1)
    assert "is running right now" in early["error"]
    assert not list(shop.house.state.rglob("*.order"))
    consumer.kill()
    [after] = shop.effects()
    assert (after["id"], after["state"]) == (effect["id"], "unknown")
    Bank.may_answer.set()
    shop.consume()
    order = effect["message"].rpartition(":")[2]
    assert Bank.charges[order, f"{effect['message']}:charge"] == 1
    assert sum(Bank.charges.values()) == 2  # the other partition
    shop.house.command("effects", "resolve", effect["id"], "--done", "found it")
    shop.consume()
    assert shop.state()[order] == "found it"
    where = (f"--state={shop.house.state}", f"--data={shop.house.data}")
    story = shop.house.command("explain", order, "--topic=orders", *where)
    [group] = story["groups"]
    assert [(one["number"], one["how"]) for one in group["effects"]] == [(1, "answered")]
    assert shop.verify()["topics"]["orders"]["groups"]["billing"]["effects_unknown"] == 0


def test_an_owner_that_was_frozen_in_the_call(shop: Shop) -> None:
    """Its successor holds the message; what it tells when it wakes up counts for nothing."""
    shop.send("a1")
    Bank.may_answer.clear()
    frozen = shop.house.consumer("effectapp:app")
    wait_until(lambda: sum(Bank.charges.values()) == 1, START_S, "the call")
    frozen.freeze()
    Bank.may_answer.set()
    [effect] = shop.effects()
    other = shop.house.consumer("effectapp:app")
    wait_until(lambda: effect["id"] in other.stderr(), START_S, "the held effect")
    frozen.thaw()

    def fenced() -> bool:
        shop.house.refresh()
        return bool(shop.house.history.of(frozen.pid)["consumer.fenced"])

    wait_until(fenced, START_S, "the fenced owner")
    [still] = shop.effects()
    assert (still["id"], still["state"]) == (effect["id"], "unknown")
    shop.house.command("effects", "resolve", effect["id"], "--done", '"looked it up"')
    wait_until(lambda: shop.state() == {"a1": "looked it up"}, START_S, "the commit")
    other.stop(START_S, 0)
    frozen.end()
    assert sum(Bank.charges.values()) == 1
    assert shop.verify()["violations"] == 0


def test_async_handlers_await_their_effects(shop: Shop) -> None:
    """The same in an event loop: held after a death, resolved, and once for each of the others."""
    shop.send("a1", "a2", "d1")
    (shop.directory / "die-a1").touch()
    shop.house.consumer("asyncapp:app").wait(START_S, 9)
    [effect] = shop.effects()
    assert (effect["group"], effect["state"]) == ("later", "unknown")
    shop.house.command("effects", "resolve", effect["id"], "--done", "[1]")
    shop.house.consumer("asyncapp:app", "--until-idle=1").wait(START_S, 0)
    state = shop.house.command("state", f"--state={shop.house.state}", "--group=later")
    assert state["a1"] == [1]
    assert set(state) == {"a1", "a2", "d1"}
    assert all(count == 1 for count in Bank.charges.values()), Bank.charges
    assert shop.verify()["violations"] == 0


def test_several_calls_of_one_partition_die_together(shop: Shop) -> None:
    """Each that was under way is unknown and waits for a word of its own; no other is touched."""
    ids = [f"{key}{number}" for number in range(2) for key in "abch"]  # in one partition
    shop.send(*ids)
    Bank.may_answer.clear()
    consumer = shop.house.consumer("keyedapp:app")
    wait_until(lambda: sum(Bank.charges.values()) == 4, START_S, "four calls")
    assert {effect["state"] for effect in shop.effects()} == {"running"}
    consumer.kill()
    Bank.may_answer.set()
    effects = sorted(shop.effects(), key=lambda effect: int(effect["offset"]))
    assert {effect["state"] for effect in effects} == {"unknown"}
    assert [effect["message"].rpartition(":")[2] for effect in effects] == ids[:4]
    shop.house.command("effects", "resolve", effects[0]["id"], "--done", "by hand")
    waiting = [effect["id"] for effect in effects[1:]]
    vain = shop.house.command(
        "effects", "resolve", "keyed:orders:0:99:charge:1", *waiting, "--retry", code=1
    )
    assert vain["id"] == waiting[-1]  # all but the one that does not exist
    shop.house.consumer("keyedapp:app", "--until-idle=1").wait(START_S, 0)
    state = shop.house.command("state", f"--state={shop.house.state}", "--group=keyed")
    told = {name: value for entry in state.values() for name, value in entry.items()}
    assert set(told) == set(ids)
    assert told["a0"] == "by hand"
    charged = {order: count for (order, _), count in Bank.charges.items()}
    assert charged == {one: 2 if one in ids[1:4] else 1 for one in ids}
    assert shop.effects() == []
    assert shop.verify()["violations"] == 0
