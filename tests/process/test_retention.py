"""Retention and `oncemq topics show | delete` against real processes."""

from __future__ import annotations

import time

import pytest

from tests.process.house import House
from tests.process.shop import Shop

pytestmark = [pytest.mark.process, pytest.mark.timeout(180)]


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
