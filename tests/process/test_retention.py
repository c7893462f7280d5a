"""Retention and `oncemq topics show | delete` against real processes."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from tests.process.house import START_S, House

pytestmark = [pytest.mark.process, pytest.mark.timeout(180)]

APP = """
from oncemq import App
app = App()

@app.consumer("orders", group="g")
def handler(message, tx):
    tx.state.setdefault("log", []).append(message.value)
    tx.send("out", message.value)
"""


class Shop:
    """A broker, an application, and the command."""

    def __init__(self, house: House) -> None:
        self.house = house
        (house.directory / "shopapp.py").write_text(APP)
        house.broker()

    def send(self, *values: str, topic: str = "orders") -> dict[str, Any]:
        path = self.house.directory / f"{topic}.txt"
        with path.open("a") as file:
            file.writelines(f"{value}\n" for value in values)
        running = self.house.producer(f"--topic={topic}", "--name=p", str(path))
        running.wait(START_S, 0)
        return dict(running.summary())

    def consume(self, code: int = 0) -> Any:
        running = self.house.consumer("shopapp:app", "--until-idle=0.5")
        running.wait(START_S, code)
        return running.summary() if code == 0 else running.stderr()

    def command(self, *arguments: str, code: int = 0) -> Any:
        running = self.house.start("command", "-m", "oncemq", *arguments)
        running.wait(START_S, code)
        return json.loads(running.stdout()) if code == 0 else running.stderr()

    def log(self) -> list[str]:
        state = self.command("state", f"--state={self.house.state}", "--group=g", "--json")
        return list(state.get("log", []))


@pytest.fixture
def shop(house: House) -> Shop:
    return Shop(house)


def test_a_group_that_lost_messages_stops_and_goes_on_by_an_operators_act(shop: Shop) -> None:
    """The consumer ends with OffsetTrimmed and calls no handler; `seek --to earliest` passes them."""
    shop.send("a")
    shop.consume()
    shop.send("b", "c")
    shop.command("topics", "set", "orders", "--retain=1s", "--json")
    deadline = time.monotonic() + 30
    while shop.command("topics", "show", "orders", "--json")["messages"]:
        assert time.monotonic() < deadline, "nothing was deleted"
        time.sleep(0.5)
    told = shop.consume(code=1)
    assert "messages 1 to 2" in told
    assert "oncemq groups seek g orders --to earliest" in told
    assert shop.log() == ["a"]
    state = f"--state={shop.house.state}"
    shop.command("groups", "seek", "g", "orders", "--to=earliest", "--reason=lost", state, "--json")
    shop.command("topics", "set", "orders", "--retain=forever", "--json")
    assert shop.send("d")["appended"] == 1, "numbers outlive their messages"
    shop.consume()
    assert shop.log() == ["a", "d"]
    report = shop.command("verify", f"--data={shop.house.data}", state, "--json")
    assert report["topics"]["orders"]["deleted"] == 3
    assert report["topics"]["orders"]["groups"]["g"]["skipped_by_operator"] == 2


def test_a_topic_is_deleted_after_its_groups_were_named(shop: Shop) -> None:
    """Without a terminal it takes --yes; a later topic of the name is told from it."""
    shop.send("a", "b")
    shop.consume()
    shop.send("c")
    shown = shop.command("topics", "show", "orders", "--json")
    assert (shown["messages"], shown["groups"][0]["lag"]) == (3, 1)
    assert shown["oldest_at_ms"] <= shown["newest_at_ms"]
    refused = shop.command("topics", "delete", "orders", code=2)
    assert "group g has not processed 1 message(s)" in refused
    assert "--yes" in refused
    shop.command("topics", "delete", "orders", "--yes", "--json")
    assert "there is no topic" in shop.command("topics", "show", "orders", code=1)
    assert shop.send("a", "b", "c")["appended"] > 0, "its numbers went with it"
    assert "another topic orders" in shop.consume(code=1)
    state = f"--state={shop.house.state}"
    report = shop.command("verify", f"--data={shop.house.data}", state, "--json")
    assert report["ok"]
    assert any("its topic was deleted" in note for note in report["notes"])
