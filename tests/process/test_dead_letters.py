"""Real processes: a message that kills its process, and dead letters that come back once."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from oncemq.chaos.programs import wait_until
from tests.process.house import ROOT, START_S, House

pytestmark = pytest.mark.process

APP = """
import os
from pathlib import Path
from oncemq import App, Reject
app = App()
HERE = Path({directory!r})

def note(group, message, tx):
    tx.state.setdefault("log", []).append(message.value)
    with open(HERE / "calls", "a") as calls:
        calls.write(f"{{group}} {{message.value}}\\n")

@app.consumer("orders", group="g", retries=1, crash_retries=1)
def handler(message, tx):
    note("g", message, tx)
    if (HERE / "fixed").exists():
        return
    if message.value == "killer":
        os._exit(9)
    if message.value == "exit":
        raise SystemExit(0)
    if message.value == "interrupt":
        raise KeyboardInterrupt
    if message.value == "broken":
        raise ValueError("a broken part")
    if message.value == "bad":
        raise Reject("not for us")

@app.consumer("orders", group="other")
def other(message, tx):
    note("other", message, tx)
"""


class Shop:
    """An application whose handler dies of one message and rejects another."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.directory = house.directory
        (self.directory / "shopapp.py").write_text(APP.format(directory=str(self.directory)))

    def send(self, *values: str) -> None:
        path = self.directory / "lines.txt"
        with path.open("a") as file:
            file.writelines(f"{value}\n" for value in values)
        self.house.producer("--topic=orders", "--name=p", str(path)).wait(START_S, 0)

    def consume(self, group: str = "g") -> dict[str, Any]:
        """Run a group until it has nothing more to do; return its summary."""
        consumer = self.house.consumer("shopapp:app", f"--group={group}", "--until-idle=0.5")
        consumer.wait(2 * START_S, 0, 4)
        summary = dict(consumer.summary())
        assert consumer.exit_code == (4 if summary["parked"] else 0)
        return summary

    def dlq(self, *argv: str, code: int = 0) -> dict[str, Any]:
        return self.house.command("dlq", *argv, "--topic=orders", code=code)

    def letters(self) -> list[dict[str, Any]]:
        return list(self.dlq("list", f"--state={self.house.state}")["letters"])

    def calls(self, group: str = "g") -> list[str]:
        lines = (self.directory / "calls").read_text().splitlines()
        return [value for name, value in map(str.split, lines) if name == group]

    def log(self, group: str = "g") -> list[str]:
        state = self.house.command("state", f"--state={self.house.state}", f"--group={group}")
        return list(state["log"])

    def fix(self) -> None:
        (self.directory / "fixed").write_text("")

    def verify(self) -> dict[str, Any]:
        state, data = f"--state={self.house.state}", f"--data={self.house.data}"
        return self.house.command("verify", state, data)


@pytest.fixture
def shop(house: House) -> Shop:
    house.broker()
    return Shop(house)


@pytest.mark.timeout(240)
def test_a_message_that_kills_its_process_is_parked(shop: Shop) -> None:
    """Under `oncemq supervise` it dies crash_retries + 2 times; its neighbours are handled once."""
    shop.send("a", "killer", "b", "bad", "c")
    supervise = shop.house.start(
        "supervise",
        *("-m", "oncemq", "supervise", "--backoff-max=0.2", "--"),
        *(sys.executable, str(ROOT / "consumer.py"), "shopapp:app", "--group=g"),
        *(f"--state={shop.house.state}", "--until-idle=0.5"),
    )
    supervise.wait(6 * START_S, 4)
    assert shop.log() == ["a", "b", "c"]
    calls = shop.calls()
    assert calls.count("killer") == 3
    assert (calls.count("b"), calls.count("bad"), calls.count("c")) == (1, 1, 1)
    killer, bad = shop.letters()
    assert (killer["kind"], killer["attempts"], killer["status"]) == ("crashed", 2, "pending")
    assert (bad["kind"], bad["attempts"]) == ("rejected", 1)
    assert bad["error"] == "Reject: not for us"
    report = shop.verify()
    assert report["ok"], report
    counts = report["topics"]["orders"]["groups"]["g"]
    assert (counts["processed"], counts["parked"], counts["pending"]) == (3, 2, 0)


def test_a_handler_that_ends_the_process_ends_its_message(shop: Shop) -> None:
    """sys.exit and a KeyboardInterrupt of code: parked after the retries, and never status 0 or 130."""
    shop.send("a", "exit", "b", "interrupt", "c")
    assert shop.consume()["parked"] == 2
    assert shop.log() == ["a", "b", "c"]
    assert [letter["error"] for letter in shop.letters()] == [
        "SystemExit: 0",
        "KeyboardInterrupt: ",
    ]


def test_a_replay_after_a_fix_happens_once_and_in_its_group_only(shop: Shop) -> None:
    """Parked, mended, replayed twice: handled once by its group, never by another."""
    shop.send("a", "bad", "b")
    consumer = shop.house.consumer("shopapp:app", "--group=g", "--until-idle=0.5")
    consumer.wait(2 * START_S, 4)
    summary = consumer.summary()
    assert (
        "waiting for you: 1 message was parked in this run (oncemq dlq list --topic orders)"
        in consumer.stderr()
    )
    assert (summary["processed"], summary["parked"]) == (2, 1)
    assert 'raise Reject("not for us")' in consumer.stderr(), "the user's own traceback"
    shop.consume("other")
    shop.fix()
    [letter] = shop.letters()
    assert letter["id"] == "orders.dead:0:0"
    assert letter["message_id"] == "orders/p:0:1"
    first = shop.dlq("replay", letter["id"], "--group=g")
    second = shop.dlq("replay", letter["id"], "--group=g")
    assert (first["sent"], second["sent"], second["duplicates"]) == (1, 0, 1)
    assert shop.consume()["processed"] == 1
    assert shop.consume()["processed"] == 0
    assert shop.consume("other")["processed"] == 0
    assert shop.log() == ["a", "b", "bad"]
    assert shop.log("other") == ["a", "bad", "b"]
    assert shop.letters()[0]["status"] == "processed"
    counts = shop.verify()["topics"]["orders"]["groups"]
    assert counts["g"] == {
        "processed": 3, "parked": 0, "skipped": 0, "pending": 0, "partitions": 1,
    }  # fmt: skip


def test_a_running_consumer_takes_a_replay(shop: Shop) -> None:
    """It looks for the private topic now and then; nobody has to start it again."""
    shop.send("bad")
    consumer = shop.house.consumer("shopapp:app", "--group=g")
    shop.house.wait_for(consumer, "message.parked")
    shop.fix()
    shop.dlq("replay", "--all", "--kind=rejected", "--group=g")
    wait_until(lambda: shop.calls().count("bad") == 2, START_S, "the replay in the handler")
    consumer.stop(START_S, 4)
    assert shop.log() == ["bad"]


def test_letters_are_chosen_by_kind_and_error(shop: Shop) -> None:
    """Filters and counts; a handler rejected a letter for good, so `replay --all` leaves it alone."""
    shop.send("bad", "broken", "broken")
    shop.consume()
    counts = shop.dlq("list", "--count")["counts"]
    assert [(row["kind"], row["error"], row["letters"]) for row in counts] == [
        ("raised", "ValueError", 2),
        ("rejected", "Reject", 1),
    ]
    assert len(shop.dlq("list", "--kind=raised", "--error=broken part")["letters"]) == 2
    assert shop.dlq("list", "--kind=rejected", "--error=broken part")["letters"] == []
    assert shop.dlq("replay", "--all", "--error=not for", "--group=g")["sent"] == 0
    assert shop.dlq("replay", "--all", "--group=g")["sent"] == 2
    statuses = {letter["kind"]: letter["status"] for letter in shop.letters()}
    assert statuses == {"raised": "replayed", "rejected": "pending"}
    assert shop.dlq("replay", "--all", "--kind=rejected", "--group=g")["sent"] == 1


def test_dropped_or_replayed_whatever_comes_first(shop: Shop) -> None:
    """A dropped letter cannot be replayed: exit 1, and no handler sees it."""
    shop.send("bad", "a")
    shop.consume()
    shop.fix()
    name = shop.letters()[0]["id"]
    assert shop.dlq("drop", name, "--group=g")["sent"] == 1
    refused = shop.dlq("replay", name, "--group=g", code=1)
    assert (refused["sent"], refused["letters"][0]["status"]) == (0, "dropped")
    assert shop.consume()["skipped"] == 1
    assert shop.log() == ["a"]
    counts = shop.verify()["topics"]["orders"]["groups"]["g"]
    assert (counts["processed"], counts["parked"], counts["skipped"]) == (1, 0, 1)


@pytest.mark.timeout(240)
def test_a_replay_that_is_killed_and_repeated_happens_once(shop: Shop) -> None:
    """kill -9 of the command at any moment, then again: each letter is handled once."""
    shop.send(*["bad"] * 40)
    assert shop.consume()["parked"] == 40
    shop.fix()
    before = shop.house.appended()

    def made() -> bool:
        shop.house.refresh()
        return shop.house.history.events["topic.created"] > topics

    topics = shop.house.history.events["topic.created"]
    for moment in (lambda: True, made, lambda: shop.house.appended() > before):
        command = shop.house.start(
            "dlq",
            "-m",
            "oncemq",
            "dlq",
            "replay",
            "--all",
            "--kind=rejected",
            "--topic=orders",
            "--group=g",
        )
        wait_until(lambda m=moment, c=command: m() or c.exit_code == 0, START_S, "the moment")
        command.kill()
    shop.dlq("replay", "--all", "--kind=rejected", "--group=g")
    shop.dlq("replay", "--all", "--kind=rejected", "--group=g")
    assert shop.consume()["processed"] == 40
    assert shop.log() == ["bad"] * 40
    assert {letter["status"] for letter in shop.letters()} == {"processed"}
    assert shop.verify()["ok"]


def test_wrong_letters_are_refused_by_name(shop: Shop) -> None:
    """No such letter, another group's letter, neither ids nor --all."""
    shop.send("bad")
    shop.consume()
    for argv, code in (
        (("replay", "orders.dead:0:7", "--group=g"), 1),
        (("replay", "orders.dead:0:0", "--group=other"), 1),
        (("replay", "--group=g"), 2),
    ):
        command = shop.house.start("dlq", "-m", "oncemq", "dlq", *argv, "--topic=orders")
        command.wait(START_S, code)
    shown = shop.dlq("show", "orders.dead:0:0")["letters"][0]
    assert (shown["value"], shown["group"]) == ("bad", "g")
