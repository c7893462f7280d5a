"""Backups of a system under load, by real processes: restored, proved, and the original fenced."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

from oncemq.chaos.programs import Running, wait_until
from tests.process.house import START_S, House

pytestmark = [pytest.mark.process, pytest.mark.timeout(600)]

ROUNDS = int(os.environ.get("ONCEMQ_TEST_ROUNDS", "5"))  # of the chaos test
LOADED = 100  # messages in the log before the first backup

APP = """
import os
from oncemq import App
app = App()
SINK = os.environ.get("SHOP_DB")

@app.consumer("orders", group="g", **({"sink": SINK} if SINK else {}))
def handler(message, tx):
    tx.state["count"] = tx.state.get("count", 0) + 1
    tx.send("out", f"{message.value} is number {tx.state['count']}")
    if SINK:
        tx.sql("INSERT INTO paid VALUES (?)", message.value)

@app.consumer("out", group="h")
def second(message, tx):
    tx.state["last"] = message.value
"""

# Values are numbered across restarts of the sender by the ids that it has used: `START` of each.
SENDER = """
import sys
from oncemq import App
start, count = int(sys.argv[1]), int(sys.argv[2])
with App().producer() as producer:
    for number in range(start, start + count):
        producer.send("orders", f"m{number}", id=f"id-{number}")
        if number % 10 == 0:
            producer.flush()
"""


class Shop:
    """A broker, a consumer of two groups and a sender that goes on until it is stopped."""

    def __init__(self, house: House, *, sink: bool = False) -> None:
        self.house = house
        self.backups = house.directory / "backups"
        (house.directory / "backapp.py").write_text(APP)
        (house.directory / "backsend.py").write_text(SENDER)
        self.database = house.directory / "shop.db"
        self.sink = [f"--sink=sqlite:///{self.database}"] if sink else []
        if sink:
            house.environ["SHOP_DB"] = f"sqlite:///{self.database}"
            with sqlite3.connect(self.database) as connection:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("CREATE TABLE paid (value TEXT)")
            connection.close()
        self.sent = 0
        self.broker = house.broker()

    def send(self, count: int) -> Running:
        start, self.sent = self.sent, self.sent + count
        script = str(self.house.directory / "backsend.py")
        return self.house.start("sender", script, str(start), str(count))

    def consume(self, *more: str) -> Running:
        return self.house.consumer("backapp:app", *more)

    def back_up(self, *more: str) -> dict[str, object]:
        where = [f"--data={self.house.data}", f"--state={self.house.state}"]
        return self.house.command("backup", str(self.backups), *where, *self.sink, *more)

    def restore(self, backup: object, name: str) -> House:
        """Restore into directories of a house of its own, with the same endpoint and application."""
        directory = self.house.directory / name
        directory.mkdir()
        other = House(directory)
        other.endpoint = self.house.endpoint
        other.environ |= {"ONCEMQ_BROKER": other.endpoint}
        other.environ["PYTHONPATH"] += os.pathsep + str(self.house.directory)
        where = [f"--data={other.data}", f"--state={other.state}"]
        if self.sink:
            where.append(f"--sink=sqlite:///{directory / 'shop.db'}")
            other.environ["SHOP_DB"] = f"sqlite:///{directory / 'shop.db'}"
        other.command("restore", str(backup), *where)
        return other

    def sink_of(self, other: House) -> list[str]:
        return [f"--sink=sqlite:///{other.directory / 'shop.db'}"] if self.sink else []


def check_restored(shop: Shop, other: House, acknowledged: int) -> None:
    """The copy is whole, proved, holds what was acknowledged, and goes on to the end of its work."""
    where = [f"--data={other.data}", f"--state={other.state}"]
    assert other.command("fsck", *where)["ok"]
    report = other.command("verify", *where, *shop.sink_of(other))
    assert report["accepted"] >= acknowledged  # of both topics, before the backup began
    accepted = report["topics"]["orders"]["accepted"]
    broker = other.broker()
    consumer = other.consumer("backapp:app", "--until-idle=0.5")
    consumer.wait(START_S, 0)
    broker.stop(START_S, 0)
    report = other.command("verify", *where, *shop.sink_of(other))
    groups = report["topics"]["orders"]["groups"]["g"]
    assert (groups["processed"], groups["pending"]) == (accepted, 0)
    out = report["topics"]["out"]
    assert (out["accepted"], out["groups"]["h"]["processed"]) == (accepted, accepted)
    if shop.sink:
        with sqlite3.connect(other.directory / "shop.db") as connection:
            rows = connection.execute("SELECT value FROM paid").fetchall()
        connection.close()
        assert len(rows) == len(set(rows)) == accepted


def check_backups_under_load(house: House, rounds: int, *, sink: bool = False) -> None:
    """Back up under load, and restore and prove each backup after the system has ended."""
    shop = Shop(house, sink=sink)
    shop.send(LOADED).wait(START_S, 0)
    consumer = shop.consume()
    sender = shop.send(10_000_000)
    made: list[tuple[dict[str, object], int]] = []
    for number in range(rounds):
        seen = house.appended()
        wait_until(lambda seen=seen: house.appended() > seen + 100, START_S, "more messages")
        if number % 3 == 1:  # a takeover on the way
            consumer.kill()
            consumer = shop.consume()
        live = house.command("fsck", f"--data={house.data}", f"--state={house.state}")
        assert live["ok"], live
        acknowledged = house.appended()
        made.append((shop.back_up(*(["--copy"] if number % 4 == 3 else [])), acknowledged))
    for running in (sender, consumer, shop.broker):
        running.kill()
    checked = house.command("fsck", str(shop.backups))
    assert checked["ok"], checked
    for number, (backup, acknowledged) in enumerate(made):
        other = shop.restore(backup["backup"], f"restored-{number}")
        try:
            check_restored(shop, other, acknowledged)
        finally:
            other.close()


@pytest.mark.parametrize("sink", [False, True], ids=["files", "sqlite"])
def test_a_backup_under_load_is_restored_and_proved(house: House, sink: bool) -> None:
    """Twice while producer and consumers work; each goes on as if nothing had been."""
    check_backups_under_load(house, 2, sink=sink)


@pytest.mark.chaos
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("sink", [False, True], ids=["files", "sqlite"])
def test_twenty_backups_under_load(tmp_path: Path, sink: bool) -> None:
    """As often as ONCEMQ_TEST_ROUNDS says."""
    house = House(tmp_path)
    try:
        check_backups_under_load(house, ROUNDS, sink=sink)
    finally:
        house.close()


def test_the_original_that_comes_back_is_fenced(house: House) -> None:
    """Clients that live on prove to it that a copy of its log is its successor: it ends with 3.

    Whoever relied on what only the original has is refused by the copy, and says so.
    """
    shop = Shop(house)
    shop.send(LOADED).wait(START_S, 0)
    shop.consume("--until-idle=0.5").wait(START_S, 0)
    backup = shop.back_up()
    shop.broker.kill()
    other = shop.restore(backup["backup"], "restored")
    try:
        copy = other.broker()
        consumer = other.consumer("backapp:app")
        other.wait_for(consumer, "client.connected")
        copy.kill()
        original = house.broker(ready=False)
        original.wait(START_S, 3)
        assert "was restored from a backup elsewhere" in original.stderr()
        again = other.broker()
        shop.send(10).wait(START_S, 0)
        other.wait_for_committed("g", "orders", LOADED + 10)
        consumer.stop(START_S, 0)
        again.stop(START_S, 0)
    finally:
        other.close()


def test_who_relied_on_the_original_after_the_backup_is_told(house: House) -> None:
    """Nobody has met the copy yet when the original goes on: its ledger is refused by the copy."""
    shop = Shop(house)
    shop.send(LOADED).wait(START_S, 0)
    shop.consume("--until-idle=0.5").wait(START_S, 0)
    backup = shop.back_up()
    shop.send(10).wait(START_S, 0)  # the original goes on, and nothing can tell it of the copy
    shop.consume("--until-idle=0.5").wait(START_S, 0)
    shop.broker.kill()
    other = shop.restore(backup["backup"], "restored")
    try:
        copy = other.broker()
        ahead = shop.consume("--until-idle=0.5")
        ahead.wait(START_S, 1)
        assert "relies on position" in ahead.stderr()
        assert "oncemq groups seek" in ahead.stderr()
        for group, topic in (("g", "orders"), ("h", "out")):  # an operator accepts the loss
            seek = ["groups", "seek", group, topic, "--to=latest", f"--state={house.state}"]
            house.start("seek", "-m", "oncemq", *seek).wait(START_S, 0)
        shop.send(10).wait(START_S, 0)
        shop.consume("--until-idle=0.5").wait(START_S, 0)
        copy.stop(START_S, 0)
    finally:
        other.close()
