"""`oncemq groups` and `consumer --rerun` against real processes: lag, members, seek, reset, re-runs."""

from __future__ import annotations

import datetime as dt
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from oncemq.chaos import read_topic
from oncemq.chaos.programs import wait_until
from oncemq.library.operating.client import AdminClient
from tests.process.house import START_S, House
from tests.process.shop import APP, Shop

pytestmark = [pytest.mark.process, pytest.mark.timeout(180)]


class GroupShop(Shop):
    """Its group is moved by commands."""

    def seek(self, *arguments: str, code: int = 0) -> Any:
        state = f"--state={self.house.state}"
        return self.command("groups", "seek", "g", "orders", *arguments, state, "--json", code=code)

    def show(self) -> Any:
        return self.command("groups", "show", "g", "--json")

    def verify(self) -> Any:
        return self.command(
            "verify", f"--data={self.house.data}", f"--state={self.house.state}", "--json"
        )

    def out(self) -> list[str]:
        return [message.value for message in read_topic(self.house.endpoint, "out")]


@pytest.fixture
def shop(house: House) -> GroupShop:
    return GroupShop(house)


def test_seeking_forward_skips_and_says_so(shop: GroupShop) -> None:
    """What is jumped over is recorded, with the reason; `verify` and `explain` account for it."""
    shop.send("a", "b", "c", "d")
    assert shop.consume()["processed"] == 4
    shop.send("e", "f", "g")
    before = shop.show()
    assert [(p["committed"], p["end"], p["lag"]) for p in before["partitions"]] == [(4, 7, 3)]
    moved = shop.seek("--to=6", "--reason=bad batch")
    assert moved["moved"] == [{"partition": 0, "from": 4, "to": 6}]
    (partition,) = shop.show()["partitions"]
    assert partition["skipped"] == [{"from": 4, "to": 6, "reason": "bad batch (to 6)"}]
    assert partition["lag"] == 1
    assert shop.consume()["processed"] == 1
    assert shop.log() == ["a", "b", "c", "d", "g"]
    report = shop.verify()
    assert report["ok"]
    row = report["topics"]["orders"]["groups"]["g"]
    assert (row["processed"], row["skipped_by_operator"], row["pending"]) == (5, 2, 0)
    told = shop.command(
        "explain", "orders/p:0:4", "--topic=orders", f"--data={shop.house.data}", f"--state={shop.house.state}",
        "--json",
    )  # fmt: skip
    assert told["groups"][0]["status"] == "skipped by an operator"
    assert told["groups"][0]["reason"] == "bad batch (to 6)"


def test_going_back_handles_what_was_skipped_and_nothing_twice(shop: GroupShop) -> None:
    """The processed set stays: only the skipped messages are new; a broker restart changes nothing."""
    shop.send("a", "b", "c", "d")
    shop.seek("--to=2")
    assert shop.consume()["processed"] == 2
    assert shop.seek("--to=earliest")["moved"] == [{"partition": 0, "from": 4, "to": 0}]
    assert shop.verify()["ok"]
    assert shop.show()["partitions"][0]["skipped"] == []
    shop.house.running[0].stop(START_S, 0)
    shop.house.broker()
    summary = shop.consume()
    assert (summary["processed"], summary["skipped"]) == (2, 2)
    assert shop.log() == ["c", "d", "a", "b"]
    assert shop.out() == ["c", "d", "a", "b"]
    report = shop.verify()
    assert report["ok"]
    row = report["topics"]["orders"]["groups"]["g"]
    assert (row["processed"], row["pending"]) == (4, 0)
    assert "skipped_by_operator" not in row


def test_a_group_in_use_is_not_moved(shop: GroupShop) -> None:
    """While a consumer owns one partition none is moved, and the command says who it is."""
    with AdminClient(shop.house.endpoint) as client:
        client.create_topic("orders", 3)
    consumer = shop.house.consumer("shopapp:app")
    shop.house.wait_for(consumer, "consumer.granted", times=3)
    told = shop.seek("--to=latest", code=1)
    assert "is held by" in told
    assert "nothing was moved" in told
    consumer.stop(START_S, 0)
    assert len(shop.seek("--to=latest")["moved"]) == 3


def test_operators_read_results_and_no_events(shop: GroupShop) -> None:
    """A group that is not there is an error that names its like; a move prints no JSON lines."""
    shop.send("a")
    shop.consume()
    missing = shop.house.start("show", "-m", "oncemq", "groups", "show", "gg")
    missing.wait(START_S, 1)
    assert missing.stdout() == ""
    assert "there is no group 'gg'; did you mean 'g'?" in missing.stderr()
    state = f"--state={shop.house.state}"
    command = ("-m", "oncemq", "groups", "seek", "g", "orders", "--to=0", state)
    moved = shop.house.start("seek", *command, ONCEMQ_LOG_DIR="")
    moved.wait(START_S, 0)
    assert (moved.stdout(), moved.stderr()) == ("PARTITION\tFROM\tTO\n0\t1\t0\n", "")


def test_a_seek_in_the_wrong_directory_changes_nothing(shop: GroupShop) -> None:
    """The ledger is known: another one is refused, and the right place is named."""
    shop.send("a")
    shop.consume()
    elsewhere = f"--state={shop.house.directory / 'elsewhere'}"
    told = shop.command("groups", "seek", "g", "orders", "--to=0", elsewhere, code=1)
    assert str(shop.house.state) in told
    assert shop.show()["partitions"][0]["committed"] == 1


def test_seeking_to_a_time(shop: GroupShop) -> None:
    """The first message that was appended then or later; behind the last one it is the end."""
    shop.send("a", "b")
    times = [m.appended_at_ms for m in read_topic(shop.house.endpoint, "orders")]
    wait_until(lambda: time.time() * 1000 > max(times) + 20, START_S, "time passes")
    shop.send("c", "d")
    for offset in (0, 2):
        at_ms = [m.appended_at_ms for m in read_topic(shop.house.endpoint, "orders")][offset]
        at = dt.datetime.fromtimestamp(at_ms / 1000, dt.UTC).isoformat(timespec="milliseconds")
        assert shop.seek(f"--to={at}")["moved"][0]["to"] == offset
    later = (dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)).isoformat()
    assert shop.seek(f"--to={later}")["moved"][0]["to"] == 4


@pytest.mark.parametrize("to", ["5", "-1", "yesterday"])
def test_impossible_places_are_refused(shop: GroupShop, to: str) -> None:
    """An offset beyond the end, and what is neither offset nor time."""
    shop.send("a")
    told = shop.seek(f"--to={to}", code=1 if to == "5" else 2)
    assert to in told


def test_reset_moves_every_partition(shop: GroupShop) -> None:
    """All partitions to an end, in one command."""
    with AdminClient(shop.house.endpoint) as client:
        client.create_topic("orders", 3)
    shop.send(*"abcdef")
    state = f"--state={shop.house.state}"
    moved = shop.command("groups", "reset", "g", "orders", "--to=latest", state, "--json")
    assert sum(row["to"] for row in moved["moved"]) == 6
    assert shop.consume()["processed"] == 0
    shop.command("groups", "reset", "g", "orders", "--to=earliest", state, "--json")
    assert shop.consume()["processed"] == 6
    assert shop.verify()["ok"]


class Loss:
    """A group that has handled a, b and c, and lost its ledger."""

    def __init__(self, shop: GroupShop) -> None:
        self.shop = shop
        shop.send("a", "b")
        shop.consume()
        self.backup = shop.house.directory / "backup"
        shutil.copytree(shop.house.state, self.backup)
        shop.send("c")
        shop.consume()
        self.lost = shop.house.state.rename(shop.house.directory / "lost")
        refused = shop.house.consumer("shopapp:app", "--until-idle=0.5")
        refused.wait(START_S, 1)
        assert "oncemq groups reset g orders --to earliest --new-ledger" in refused.stderr()

    def reset(self, *more: str, state: Path | None = None, code: int = 0) -> str:
        """Return what the command says; stdin is no terminal."""
        where = f"--state={state or self.shop.house.state}"
        command = ("groups", "reset", "g", "orders", where, *more)
        running = self.shop.house.start("reset", "-m", "oncemq", *command)
        running.wait(START_S, code)
        return running.stderr()


@pytest.fixture
def loss(shop: GroupShop) -> Loss:
    return Loss(shop)


def test_a_group_whose_ledger_was_deleted_starts_over(shop: GroupShop, loss: Loss) -> None:
    """In its own place no more is asked for: it says what is gone and what is handled again."""
    told = loss.reset("--to=earliest")
    assert "at offset 3 or above, is lost" in told
    assert "3 messages may be handled again" in told
    assert "gone with it: tx.state of group g" in told
    assert shop.consume()["processed"] == 3
    shop.send("d")
    assert shop.consume()["processed"] == 1
    assert shop.out() == [*"abc", *"abc", "d"], "outputs go on behind those of the lost ledger"
    assert shop.log() == list("abcd")
    assert shop.verify()["ok"]
    shutil.rmtree(shop.house.state)
    loss.lost.rename(shop.house.state)
    back = shop.house.consumer("shopapp:app", "--until-idle=0.5")
    back.wait(START_S, 1)
    assert "this is another ledger" in back.stderr()


def test_a_group_may_go_on_behind_what_its_lost_ledger_had_handled(
    shop: GroupShop, loss: Loss
) -> None:
    """--to latest handles nothing again; the ledger says what it skipped."""
    assert "0 messages may be handled again" in loss.reset("--to=latest")
    shop.send("d")
    assert shop.consume()["processed"] == 1
    assert shop.out() == list("abcd")
    assert shop.show()["partitions"][0]["skipped"][0]["to"] == 3
    assert shop.verify()["ok"]


def test_a_ledger_elsewhere_is_replaced_on_request_only(shop: GroupShop, loss: Loss) -> None:
    """The directory may be the wrong one: the option, and a yes, are needed."""
    elsewhere = shop.house.directory / "elsewhere"
    assert str(shop.house.state) in loss.reset("--to=earliest", state=elsewhere, code=1)
    more = ("--to=earliest", "--new-ledger")
    assert "--yes" in loss.reset(*more, state=elsewhere, code=2)
    loss.reset(*more, "--yes", state=elsewhere)
    shop.house.state = elsewhere
    assert shop.consume()["processed"] == 3
    assert "is lost: leave out --new-ledger" in loss.reset(*more, "--yes", code=2)


def test_a_backup_of_a_lost_ledger_goes_on(shop: GroupShop, loss: Loss) -> None:
    """What it has processed is not handled again; only what the lost one did since."""
    shutil.rmtree(shop.house.state)
    loss.backup.rename(shop.house.state)
    assert "oncemq groups reset" in loss.reset("--to=earliest", code=1), "it is no empty one"
    loss.reset("--to=earliest", "--new-ledger", "--yes")
    summary = shop.consume()
    assert (summary["processed"], summary["skipped"]) == (1, 2)
    assert shop.out() == [*"abc", "c"]
    assert shop.log() == list("abc")
    assert shop.verify()["ok"]


def test_a_lost_database_is_started_over_too(shop: GroupShop) -> None:
    """The ledger went with the database of the sink."""
    database = shop.house.directory / "shop.db"
    sink = f"sqlite:///{database}"
    (shop.house.directory / "sinkapp.py").write_text(
        APP.replace('group="g"', f'group="g", sink="{sink}"')
    )

    def consume(code: int = 0) -> Any:
        running = shop.house.consumer("sinkapp:app", "--until-idle=0.5")
        running.wait(START_S, code)
        return running.summary()["processed"] if code == 0 else running.stderr()

    shop.send("a", "b")
    assert consume() == 2
    for path in database.parent.glob("shop.db*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert "--new-ledger" in consume(1)
    reset = ("groups", "reset", "g", "orders", "--to=earliest", f"--sink={sink}", "--json")
    assert shop.command(*reset)["moved"] == [{"partition": 0, "from": 0, "to": 0}]
    assert consume() == 2
    shop.send("c")
    assert consume() == 1
    assert shop.out() == [*"ab", *"ab", "c"]


def test_a_live_group_is_not_replaced(shop: GroupShop) -> None:
    """The ledger is not lost: a consumer has it, in another directory."""
    shop.send("a")
    living = shop.house.consumer("shopapp:app")
    shop.house.wait_for(living, "commit.synced")
    elsewhere = f"--state={shop.house.directory / 'elsewhere'}"
    told = shop.command(
        *("groups", "reset", "g", "orders", "--to=earliest", elsewhere, "--new-ledger", "--yes"),
        code=1,
    )
    assert "nothing was moved" in told
    living.stop(START_S, 0)
    assert shop.log() == ["a"]


def test_a_rerun_has_state_and_outputs_of_its_own(shop: GroupShop) -> None:
    """The history once more: the group itself is as it was, downstream gets new messages."""
    shop.send("a", "b", "c")
    shop.consume()
    assert shop.consume("--rerun=june")["processed"] == 3
    assert shop.consume("--rerun=june")["processed"] == 0
    assert (shop.log(), shop.log("g~june")) == (["a", "b", "c"], ["a", "b", "c"])
    assert sorted(shop.out()) == ["a", "a", "b", "b", "c", "c"]
    producers = {message.producer for message in read_topic(shop.house.endpoint, "out")}
    assert producers == {"@g/orders/0", "@g~june/orders/0"}
    groups = {row["group"] for row in shop.command("groups", "list", "--json")["groups"]}
    assert groups == {"g", "g~june"}
    assert shop.verify()["ok"]
