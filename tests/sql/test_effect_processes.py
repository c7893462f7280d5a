"""Real processes with a database and a bank: an HTTP call whose process dies before its record."""

from __future__ import annotations

import json
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from typing import Any

import pytest

from oncemq.chaos.programs import Running, wait_until
from oncemq.library.operating.client import AdminClient
from tests.process.house import START_S, House
from tests.process.test_effects import Bank
from tests.sql.client import mark, rows, run

pytestmark = [pytest.mark.process, pytest.mark.timeout(240)]

APP = """
import asyncio
import os
import urllib.request
from pathlib import Path
from oncemq import App
app, later = App(), App()
HERE = Path({directory!r})
INSERT = "INSERT INTO paid VALUES ({mark}, {mark})"

def charge(order, key):
    request = urllib.request.Request({url!r}, data=order.encode(), headers={{"Key": key}})
    with urllib.request.urlopen(request, timeout=30) as answer:
        receipt = answer.read().decode()
    deadly = HERE / f"die-{{order}}"
    if deadly.exists():
        deadly.unlink()
        os._exit(9)
    return receipt

@app.consumer("orders", group="g", sink="env:SHOP_DB")
def bill(message, tx):
    tx.sql(INSERT, message.id, "begun")
    receipt = tx.effect("charge", charge, message.id, tx.effect_key("charge"))
    tx.sql(INSERT, message.id, receipt)

@later.consumer("orders", group="g", sink="env:SHOP_DB")
async def bill_later(message, tx):
    await tx.sql(INSERT, message.id, "begun")
    key = tx.effect_key("charge")
    receipt = await tx.effect("charge", asyncio.to_thread, charge, message.id, key)
    await tx.sql(INSERT, message.id, receipt)
"""


class Shop:
    """One partition of orders, a table, and a bank that is called for each."""

    def __init__(self, house: House, sink: str, url: str) -> None:
        self.house, self.sink, self.directory = house, sink, house.directory
        house.environ["SHOP_DB"] = sink
        text = APP.format(directory=str(self.directory), mark=mark(sink), url=url)
        (self.directory / "effectsql.py").write_text(text)
        run(sink, "CREATE TABLE paid (id TEXT, receipt TEXT)")  # no key: a double row shows
        house.broker()
        self._sent = 0

    def send(self, *orders: str) -> None:
        self._sent += 1
        path = self.directory / f"orders-{self._sent}.jsonl"
        path.write_text("".join(json.dumps({"id": one}) + "\n" for one in orders))
        more = ("--topic=orders", "--format=jsonl", "--id-field=id")
        self.house.producer(*more, str(path)).wait(START_S, 0)

    def consumer(self, *more: str, app: str = "app") -> Running:
        return self.house.consumer(f"effectsql:{app}", *more)

    def dies_of(self, order: str, app: str = "app") -> None:
        """Run the consumer until the call of this order has killed it."""
        (self.directory / f"die-{order}").touch()
        self.consumer(app=app).wait(START_S, 9)

    def effects(self) -> list[dict[str, Any]]:
        return list(self.house.command("effects", "list", f"--sink={self.sink}")["effects"])

    def resolve(self, effect_id: str, *word: str, code: int = 0) -> dict[str, Any]:
        return self.house.command(
            "effects", "resolve", effect_id, f"--sink={self.sink}", *word, code=code
        )

    def paid(self) -> dict[str, int]:
        return dict(rows(self.sink, "SELECT id, count(*) FROM paid GROUP BY id"))

    def receipt(self, order: str) -> str:
        [(told,)] = rows(
            self.sink, f"SELECT receipt FROM paid WHERE id = '{order}' AND receipt <> 'begun'"
        )
        return str(told)

    def check(self, *orders: str, twice: tuple[str, ...] = ()) -> None:
        """All is handled once, charged once or as often as somebody said, and proved."""
        assert self.paid() == dict.fromkeys(orders, 2)
        charged = {order: count for (order, _), count in Bank.charges.items()}
        assert charged == {order: 2 if order in twice else 1 for order in orders}
        assert self.effects() == []
        where = (f"--data={self.house.data}", f"--sink={self.sink}")
        proof = self.house.command("verify", *where)
        assert proof["violations"] == 0
        group = proof["topics"]["orders"]["groups"]["g"]
        assert (group["effect_calls"], group["effects_unknown"]) == (len(orders) + len(twice), 0)


@pytest.fixture
def shop(house: House, sink: str) -> Iterator[Shop]:
    Bank.charges = Counter()
    Bank.may_answer.set()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Bank)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield Shop(house, sink, f"http://127.0.0.1:{server.server_port}/")
    finally:
        Bank.may_answer.set()
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize("app", ["app", "later"])
def test_a_call_that_dies_is_unknown_and_an_operator_says_it_was_done(shop: Shop, app: str) -> None:
    """Listed, not repeated, nothing of its message committed; taken while the consumer waits."""
    shop.send("a", "b", "c")
    shop.dies_of("b", app)
    [effect] = shop.effects()
    assert (effect["state"], effect["policy"], effect["offset"]) == ("unknown", "ask", 1)
    assert effect["message"] == "g@orders:s:b"
    assert shop.paid() == {"a": 2}
    beside = shop.house.command("effects", "list")
    assert beside["effects"] == []
    assert [where.partition(":")[0] for where in beside["databases"]] == [
        shop.sink.partition(":")[0]
    ]

    running = shop.consumer(app=app)
    wait_until(lambda: effect["id"] in running.stderr(), START_S, "the held effect")
    assert f"resolve '{effect['id']}' --sink '" in running.stderr()
    assert shop.resolve(effect["id"], "--done", '"by hand"')["duplicate"] is False
    wait_until(lambda: len(shop.paid()) == 3, START_S, "all orders")
    running.stop(START_S, 0)
    assert shop.receipt("b") == "by hand"
    shop.check("a", "b", "c")
    late = shop.resolve(effect["id"], "--retry", code=1)
    assert "no effect" in late["error"]


def test_an_operator_wants_the_call_again(shop: Shop) -> None:
    """Said while nobody runs: it is called once more, and never again."""
    shop.send("a", "b")
    shop.dies_of("a")
    [effect] = shop.effects()
    assert shop.resolve(effect["id"], "--retry")["how"] == "again"
    assert shop.resolve(effect["id"], "--retry")["duplicate"] is True
    other = shop.resolve(effect["id"], "--done", "1", code=1)
    assert "is already resolved: called again" in other["error"]
    [said] = shop.effects()
    assert (said["state"], said["order"]) == ("resolved", "again")
    shop.consumer("--until-idle=1").wait(START_S, 0)
    shop.check("a", "b", twice=("a",))
    assert rows(shop.sink, "SELECT * FROM oncemq_effect_order") == []


def test_a_process_that_is_killed_in_the_call(shop: Shop) -> None:
    """While it lives nobody may speak about its call; others use the database meanwhile."""
    shop.send("a", "b")
    Bank.may_answer.clear()
    consumer = shop.consumer()
    wait_until(lambda: sum(Bank.charges.values()) == 1, START_S, "the call")
    [effect] = shop.effects()
    assert effect["state"] == "running"
    early = shop.resolve(effect["id"], "--retry", code=1)
    assert "is running right now" in early["error"]
    run(shop.sink, "CREATE TABLE other (n INTEGER)")  # no transaction is open
    consumer.kill()
    [after] = shop.effects()
    assert (after["id"], after["state"]) == (effect["id"], "unknown")
    Bank.may_answer.set()
    held = shop.consumer("--until-idle=1")
    held.wait(START_S, 4)
    assert held.summary()["held"] == [effect["id"]]
    assert (sum(Bank.charges.values()), shop.paid()) == (1, {})
    shop.resolve(effect["id"], "--done", "found it")
    shop.consumer("--until-idle=1").wait(START_S, 0)
    shop.check("a", "b")
    where = (f"--data={shop.house.data}", f"--sink={shop.sink}", "--topic=orders")
    [group] = shop.house.command("explain", "a", *where)["groups"]
    assert [(one["number"], one["how"]) for one in group["effects"]] == [(1, "answered")]


def test_an_owner_that_was_frozen_in_the_call(shop: Shop) -> None:
    """Its successor holds the message; what it tells when it wakes up counts for nothing."""
    shop.send("a")
    Bank.may_answer.clear()
    frozen = shop.consumer()
    wait_until(lambda: sum(Bank.charges.values()) == 1, START_S, "the call")
    frozen.freeze()
    Bank.may_answer.set()
    [effect] = shop.effects()
    other = shop.consumer()
    wait_until(lambda: effect["id"] in other.stderr(), START_S, "the held effect")
    frozen.thaw()
    frozen.wait(START_S, 3)
    [still] = shop.effects()
    assert (still["id"], still["state"]) == (effect["id"], "unknown")
    shop.resolve(effect["id"], "--done", '"looked it up"')
    wait_until(lambda: shop.paid() == {"a": 2}, START_S, "the commit")
    assert shop.receipt("a") == "looked it up"
    other.stop(START_S, 0)
    shop.check("a")


def test_an_operator_passes_over_a_held_message(shop: Shop) -> None:
    """Its effect is forgotten, and so is a word about it that nobody took."""
    shop.send("a", "b")
    shop.dies_of("a")
    [effect] = shop.effects()
    shop.resolve(effect["id"], "--done", "1")
    sink = f"--sink={shop.sink}"
    assert len(shop.house.command("groups", "seek", "g", "orders", sink, "--to=1")["moved"]) == 1
    assert shop.effects() == []
    shop.consumer("--until-idle=1").wait(START_S, 0)
    assert shop.paid() == {"b": 2}
    assert rows(shop.sink, "SELECT * FROM oncemq_effect_order") == []


STORM_APP = """
import os, time
from pathlib import Path
from oncemq import App
app = App()
HERE = Path({directory!r})
INSERT = "INSERT INTO paid VALUES ({mark}, {mark})"

def call(key):
    file = os.open(HERE / "calls", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{{key}}\\n".encode())
    os.close(file)
    time.sleep(0.002)
    return key

@app.consumer("orders", group="g", sink="env:SHOP_DB")
def bill(message, tx):
    if message.offset % 3:
        tx.sql(INSERT, message.id, "begun")
    receipt = tx.effect("call", call, message.id)
    tx.sql(INSERT, message.id, receipt)
    tx.state[message.id] = receipt
"""


def check_storm(shop: Shop, count: int, kills: int, rng: random.Random) -> None:
    """Two members are killed at any moment; an operator looks at the other side and says what was."""
    (shop.directory / "stormsql.py").write_text(
        STORM_APP.format(directory=str(shop.directory), mark=mark(shop.sink))
    )
    with AdminClient(shop.house.endpoint) as client:
        client.create_topic("orders", 3)
    ids = [f"o{number}" for number in range(count)]
    shop.send(*ids)
    (shop.directory / "calls").touch()  # on a busy machine kills come before the first call
    told: set[str] = set()

    def say() -> None:
        made = (shop.directory / "calls").read_text().split()
        for effect in shop.effects():
            order = effect["message"].rpartition(":")[2]
            if effect["state"] == "unknown" and effect["id"] not in told:
                told.add(effect["id"])
                word = ("--done", order) if order in made else ("--retry",)
                shop.resolve(effect["id"], *word)

    members = [shop.house.consumer("stormsql:app") for _ in range(2)]
    for number in range(kills):
        time.sleep(rng.uniform(0.3, 1.5))
        members[number % 2].kill()
        members[number % 2] = shop.house.consumer("stormsql:app")
        if number % 3 == 2:
            say()

    def over() -> bool:
        say()
        found = rows(shop.sink, "SELECT count(DISTINCT id) FROM paid WHERE receipt <> 'begun'")
        return found == [(count,)]

    wait_until(over, 200, "all orders")
    for member in members:  # the last one may be starting yet, and has no handler of the signal
        member.stop(START_S, 0, -signal.SIGTERM)
    made = (shop.directory / "calls").read_text().split()
    assert sorted(made) == sorted(ids), "each call was made once, since somebody looked"
    assert rows(shop.sink, "SELECT count(*) FROM paid WHERE receipt <> 'begun'") == [(count,)]
    assert rows(shop.sink, "SELECT id FROM paid WHERE receipt NOT IN (id, 'begun')") == []
    begun = "SELECT count(*), count(DISTINCT id) FROM paid WHERE receipt = 'begun'"
    [(all_rows, different)] = rows(shop.sink, begun)
    assert all_rows == different
    proof = shop.house.command("verify", f"--data={shop.house.data}", f"--sink={shop.sink}")
    assert proof["violations"] == 0


def test_an_operator_who_looks_makes_it_once(shop: Shop, rng: random.Random) -> None:
    """Killed around calls and commits, on one database: every call and every row is there once."""
    check_storm(shop, 120, 4, rng)


@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_forty_kills_with_effects(shop: Shop, rng: random.Random) -> None:
    """The same at full size."""
    check_storm(shop, 3_000, 40, rng)
