"""A ledger that moves to another directory as one file: real consumers go on exactly where it ends."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from oncemq.chaos import read_topic
from oncemq.chaos.programs import wait_until
from tests.process.house import START_S, House

pytestmark = [pytest.mark.process, pytest.mark.timeout(240)]

APP = """
import os
from oncemq import App
app = App()

@app.consumer("orders", group="g")
def handler(message, tx):
    number = int(message.value)
    with open(os.environ["HANDLED"], "a") as file:
        file.write(f"{number}\\n")
    tx.state["sum"] = tx.state.get("sum", 0) + number
    tx.send("out", number)
"""
EACH = 20


class Town:
    """A house with consumers in several state directories."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.sent = 0
        self.handled = house.directory / "handled.txt"
        self.handled.touch()
        house.environ["HANDLED"] = str(self.handled)
        (house.directory / "ledgerapp.py").write_text(APP)
        self.broker = house.broker()

    def send(self) -> None:
        self.sent += EACH
        path = self.house.directory / "orders.txt"
        path.write_text("".join(f"{number}\n" for number in range(self.sent)))
        self.house.producer("--topic=orders", "--name=p", str(path)).wait(START_S, 0)

    def consume(self, state: str, expected: int = 0) -> str:
        """Run a consumer until it is idle; return what it said on stderr."""
        self.house.state = self.house.directory / state
        consumer = self.house.consumer("ledgerapp:app", "--until-idle=0.5")
        consumer.wait(START_S, expected)
        return consumer.stderr()

    def command(self, *argv: str, expected: int = 0) -> str:
        """Run a command; return what it said."""
        command = self.house.start("command", "-m", "oncemq", *argv)
        command.wait(START_S, expected)
        return command.stdout() + command.stderr()

    def export(self, state: str, file: str) -> str:
        """Write the ledger to a file; return its path."""
        path = str(self.house.directory / file)
        self.command(
            "ledger", "export", f"--state={self.house.directory / state}", "g/orders/0", path
        )
        return path

    def import_(self, file: str, state: str) -> None:
        self.command("ledger", "import", file, f"--state={self.house.directory / state}")

    def numbers(self) -> list[int]:
        return [int(line) for line in self.handled.read_text().split()]

    def committed(self) -> int:
        told = json.loads(self.command("groups", "show", "g", "--json").splitlines()[0])
        return int(told["partitions"][0]["committed"])

    def check(self, state: str) -> None:
        """Each message was handled once, in order; state, outputs and proof agree."""
        numbers = list(range(self.sent))
        assert self.numbers() == numbers
        assert [message.value for message in read_topic(self.house.endpoint, "out")] == numbers
        place = f"--state={self.house.directory / state}"
        assert json.loads(self.command("state", place, "--group=g", "--json").splitlines()[0]) == {
            "sum": sum(numbers)
        }
        proof = self.command(
            "verify", f"--data={self.house.data}", place, "--topic=orders", "--json"
        )
        group = json.loads(proof)["topics"]["orders"]["groups"]["g"]
        assert (group["processed"], group["pending"]) == (self.sent, 0)


@pytest.fixture
def town(tmp_path: Path) -> Iterator[Town]:
    house = House(tmp_path)
    try:
        yield Town(house)
    finally:
        house.close()


def test_a_moved_ledger_goes_on_where_it_ended(town: Town) -> None:
    """Stopped, exported, imported, started: no message is handled twice and none is missed."""
    town.send()
    town.consume("first")
    file = town.export("first", "g.ledger")
    town.import_(file, "second")
    town.check("second")
    town.send()
    town.consume("second")
    town.check("second")
    town.consume("second")
    town.check("second")
    assert "is an older state of its ledger" in town.consume("first", 1)
    town.check("second")


def test_an_export_from_before_later_commits_is_refused(town: Town) -> None:
    """The broker knows what was reported, also after it was restarted: zero handler calls."""
    town.send()
    town.consume("first")
    old = town.export("first", "old.ledger")
    town.send()
    town.consume("first")
    town.import_(old, "second")
    assert "is an older state of its ledger" in town.consume("second", 1)
    town.consume("first")  # its join is what a broker keeps for good
    town.broker.stop(START_S, 0)
    town.broker = town.house.broker()
    assert "is an older state of its ledger" in town.consume("second", 1)
    town.check("first")
    town.import_(town.export("first", "new.ledger"), "third")
    town.send()
    town.consume("third")
    town.check("third")


def test_the_lease_of_a_living_owner_is_waited_for(town: Town) -> None:
    """An import beside a consumer at work takes nothing from it: the lock here proves nothing."""
    town.send()
    town.house.state = town.house.directory / "first"
    owner = town.house.consumer("ledgerapp:app")
    town.house.wait_for_committed("g", "orders", EACH)
    file = town.export("first", "g.ledger")
    town.import_(file, "second")
    assert "standing by" in town.consume("second")
    town.send()
    town.house.wait_for_committed("g", "orders", 2 * EACH)
    assert owner.exit_code is None
    owner.stop(START_S, 0)
    assert "is an older state of its ledger" in town.consume("second", 1)
    town.check("first")


def test_a_killed_owner_is_followed_after_its_lease(town: Town) -> None:
    """Its lock is elsewhere and proves nothing here, so its time is waited out; then work goes on."""
    town.send()
    town.house.state = town.house.directory / "first"
    owner = town.house.consumer("ledgerapp:app")
    town.house.wait_for_committed("g", "orders", EACH)
    owner.kill()
    town.import_(town.export("first", "g.ledger"), "second")
    town.send()
    town.house.state = town.house.directory / "second"
    started = time.monotonic()
    heir = town.house.consumer("ledgerapp:app")
    town.house.wait_for_committed("g", "orders", 2 * EACH)
    assert time.monotonic() - started > 2.0, "a lock that nobody ever held was taken for proof"
    heir.stop(START_S, 0)
    town.check("second")


def test_what_a_killed_owner_had_told_counts_too(town: Town) -> None:
    """Killed after commits that only its renewals told of: an export from before is refused."""
    town.send()
    town.house.state = town.house.directory / "first"
    owner = town.house.consumer("ledgerapp:app")
    town.house.wait_for_committed("g", "orders", EACH)
    old = town.export("first", "old.ledger")
    town.send()
    town.house.wait_for_committed("g", "orders", 2 * EACH)
    wait_until(lambda: town.committed() == 2 * EACH, START_S, "a renewal")
    owner.kill()
    town.import_(old, "second")
    assert "is an older state of its ledger" in town.consume("second", 1)
    town.import_(town.export("first", "new.ledger"), "third")
    town.send()
    town.house.state = town.house.directory / "third"
    heir = town.house.consumer("ledgerapp:app")
    town.house.wait_for_committed("g", "orders", 3 * EACH)
    heir.stop(START_S, 0)
    town.check("third")
