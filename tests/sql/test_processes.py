"""Real consumers on real databases: killed, frozen, replaced, and with the database gone."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from oncemq.chaos import read_topic
from oncemq.chaos.programs import wait_until
from tests.postgres import Server
from tests.process.house import START_S, House
from tests.sql.client import mark, outside, rows, run

pytestmark = [pytest.mark.process, pytest.mark.timeout(240)]

APP = """
import os, time
from pathlib import Path
from oncemq import App
app = App()
HERE = Path({directory!r})

crash_retries = int(os.environ.get("CRASH_RETRIES", "6"))

@app.consumer("orders", group="g", retries=1, crash_retries=crash_retries, sink="env:SHOP_DB")
def handler(message, tx):
    number = int(message.value.split()[0])
    if "gone" in message.value:
        with (HERE / "gone.times").open("a+") as times:
            times.write("x")
            if times.tell() <= 4:
                tx.sql("SELECT pg_terminate_backend(pg_backend_pid())")
    if "early" in message.value:
        wait("early")
    tx.sql("INSERT INTO paid VALUES ({mark}, {mark})", str(message.id), number)
    tx.state["sum"] = tx.state.get("sum", 0) + number
    tx.send("out", number)
    if "slow" in message.value:
        wait("slow")

def wait(what):
    (HERE / f"{{what}}.here").touch()
    deadline = time.monotonic() + 120
    while not (HERE / f"{{what}}.go").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
"""


class Shop:
    """A house with a sink, an application and helpers."""

    def __init__(self, house: House, sink: str) -> None:
        self.house, self.sink = house, sink
        self.directory = house.directory
        house.environ["SHOP_DB"] = sink
        (self.directory / "sqlapp.py").write_text(
            APP.format(directory=str(self.directory), mark=mark(sink))
        )
        run(sink, "CREATE TABLE paid (id TEXT, cents INTEGER)")  # no key: a double row shows

    def send(self, *values: str, partitions: int = 0) -> None:
        """Send lines, numbered by one producer name over all calls."""
        path = self.directory / "lines.txt"
        with path.open("a") as file:
            file.writelines(f"{value}\n" for value in values)
        self.house.producer("--topic=orders", "--name=p", str(path)).wait(60, 0)

    def consumer(self, *more: str, **environ: str) -> Any:
        """Start a consumer; each has a state directory of its own, as on another machine."""
        number = len(self.house.running)
        return self.house.start(
            "consumer",
            str(Path(__file__).resolve().parents[2] / "consumer.py"),
            "sqlapp:app",
            f"--state={self.directory / f'state-{number}'}",
            *more,
            **environ,
        )

    def paid(self) -> tuple[int, int, int]:
        ((count, different, total),) = rows(
            self.sink, "SELECT count(*), count(DISTINCT id), coalesce(sum(cents), 0) FROM paid"
        )
        return count, different, int(total)

    def check(self, values: list[int]) -> None:
        """Each value was applied once: rows, state and outgoing topic."""
        assert self.paid() == (len(values), len(values), sum(values))
        assert sorted(m.value for m in read_topic(self.house.endpoint, "out")) == sorted(values)
        state = self.house.command("state", f"--sink={self.sink}", "--group=g")
        assert state == {"sum": sum(values)}
        where = (f"--data={self.house.data}", f"--sink={self.sink}")
        proof = self.house.command("verify", *where, "--topic=orders")
        group = proof["topics"]["orders"]["groups"]["g"]
        assert (group["processed"], group["pending"]) == (len(values), 0)

    def there(self, what: str) -> bool:
        """Whether a handler has come to a place where it waits."""
        return (self.directory / f"{what}.here").exists()

    def let_go(self, what: str) -> None:
        (self.directory / f"{what}.go").touch()

    def forget(self, what: str) -> None:
        for name in (f"{what}.here", f"{what}.go"):
            (self.directory / name).unlink()


@pytest.fixture
def shop(house: House, sink: str) -> Shop:
    house.broker()
    return Shop(house, sink)


def test_an_operator_moves_a_group_whose_ledger_is_in_a_database(shop: Shop) -> None:
    """What is jumped over is skipped for good and told; the group goes on behind it, exactly once."""
    shop.send(*map(str, range(10)))
    shop.consumer("--until-idle=0.5").wait(START_S, 0)
    shop.send(*map(str, range(10, 30)))
    sink = f"--sink={shop.sink}"
    moved = shop.house.command(
        "groups", "seek", "g", "orders", sink, "--to=25", "--reason=bad batch"
    )
    assert moved["moved"] == [{"partition": 0, "from": 10, "to": 25}]
    shop.consumer("--until-idle=0.5").wait(START_S, 0)
    assert shop.paid() == (15, 15, sum([*range(10), *range(25, 30)]))
    where = (f"--data={shop.house.data}", sink)
    report = shop.house.command("verify", *where, "--topic=orders")
    group = report["topics"]["orders"]["groups"]["g"]
    assert (group["processed"], group["skipped_by_operator"], report["violations"]) == (15, 15, 0)
    told = {
        number: shop.house.command("explain", f"orders/p:0:{number}", "--topic=orders", *where)
        for number in (3, 12)
    }
    assert [its["groups"][0]["status"] for its in told.values()] == [
        "processed",
        "skipped by an operator",
    ]
    assert "bad batch" in told[12]["groups"][0]["reason"]
    back = shop.house.command("groups", "seek", "g", "orders", sink, "--to=earliest")
    assert back["moved"] == [{"partition": 0, "from": 30, "to": 0}]
    shop.consumer("--until-idle=0.5").wait(START_S, 0)
    shop.check(list(range(30)))


def test_a_group_at_work_is_not_moved(shop: Shop) -> None:
    """Its owner is named, and the ledger in the database stays as it is."""
    shop.send("1 slow")
    consumer = shop.consumer()
    wait_until(lambda: shop.there("slow"), START_S, "the handler")
    command = ("-m", "oncemq", "groups", "seek", "g", "orders", f"--sink={shop.sink}", "--to=0")
    refused = shop.house.start("seek", *command)
    refused.wait(START_S, 1)
    assert f"is held by pid {consumer.pid}" in refused.stderr()
    shop.let_go("slow")
    shop.house.wait_for_committed("g", "orders", 1)
    consumer.stop(START_S, 0)
    shop.check([1])


def test_a_run_until_idle(shop: Shop) -> None:
    """Started twice, in two state directories: the second goes on where the first ended."""
    shop.send(*map(str, range(50)))
    shop.consumer("--until-idle=0.5").wait(START_S, 0)
    shop.send(*map(str, range(50, 60)))
    last = shop.consumer("--until-idle=0.5")
    last.wait(START_S, 0)
    assert last.summary()["processed"] == 10
    shop.check(list(range(60)))


around_the_commit = pytest.mark.parametrize(
    "place",
    ["after_append_before_sync:2", "after_sync_before_reply:2", "after_commit_before_output:2"],
)


def check_killed_once(shop: Shop, place: str) -> None:
    """Let the consumer die at `place`, and another one finish: each effect is there once."""
    shop.send("1", "2", "3")
    shop.consumer("--until-idle=0.5", ONCEMQ_CRASH_AT=place).wait(START_S, 137)
    shop.consumer("--until-idle=0.5").wait(START_S, 0)
    shop.check([1, 2, 3])


@around_the_commit
def test_killed_around_the_commit_it_counts_once(shop: Shop, place: str) -> None:
    """Killed before COMMIT, after it, or with its outputs unsent: each effect is there once."""
    check_killed_once(shop, place)


def test_a_follower_goes_on_within_seconds_of_a_kill(shop: Shop) -> None:
    """The lock of the dead owner is proof: the lease is not waited for."""
    shop.send("1")
    first = shop.consumer()
    shop.house.wait_for(first, "commit.synced")
    second = shop.consumer()
    shop.house.wait_for(second, "consumer.standby")
    first.kill()
    killed_at = time.monotonic()
    shop.house.wait_for(second, "consumer.granted")
    assert time.monotonic() - killed_at < 6.0
    shop.send("2")
    shop.house.wait_for(second, "commit.synced")
    second.stop(START_S, 0)
    shop.check([1, 2])


def frozen_in_transaction(shop: Shop, number: int) -> None:
    """SIGSTOP with rows written and locks held; takeover; SIGCONT."""
    shop.send(str(2 * number), f"{2 * number + 1} slow")
    frozen = shop.consumer()
    wait_until(lambda: shop.there("slow"), START_S, "the slow call")
    assert frozen.freeze()
    shop.let_go("slow")
    shop.consumer("--until-idle=1").wait(90, 0)
    frozen.thaw()
    # A frozen SQLite writer is ended by its taker, for nobody else could write.
    frozen.wait(START_S, -signal.SIGKILL if shop.sink.startswith("sqlite") else 3)
    shop.check(list(range(2 * number + 2)))
    shop.forget("slow")


def frozen_before_transaction(shop: Shop, number: int) -> None:
    """SIGSTOP before the first statement; takeover; SIGCONT: its commit finds another epoch."""
    shop.send(f"{number} early")
    frozen = shop.consumer()
    wait_until(lambda: shop.there("early"), START_S, "the early call")
    assert frozen.freeze()
    shop.let_go("early")
    shop.consumer("--until-idle=1").wait(90, 0)
    frozen.thaw()
    frozen.wait(START_S, 3)
    shop.check(list(range(number + 1)))
    shop.forget("early")


def test_a_zombie_frozen_in_its_transaction_has_no_effect(shop: Shop) -> None:
    """Each effect is there once, in the database, the state and the outgoing topic."""
    frozen_in_transaction(shop, 0)
    assert shop.paid() == (2, 2, 1)


def test_a_zombie_frozen_before_its_transaction_ends_fenced(shop: Shop) -> None:
    """It wakes, writes, and is rolled back: status 3."""
    frozen_before_transaction(shop, 0)
    assert shop.paid() == (1, 1, 0)


@pytest.mark.chaos
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("zombie", [frozen_in_transaction, frozen_before_transaction])
def test_twenty_zombies(shop: Shop, zombie: Callable[[Shop, int], None]) -> None:
    """The same twenty times, on one database: no effect is doubled."""
    for number in range(20):
        zombie(shop, number)
        count, different, _ = shop.paid()
        assert count == different


def test_no_password_is_written_anywhere(house: House, postgres_sink) -> None:
    """Neither events nor output nor the broker's grants hold it, also while the server is away."""
    sink = postgres_sink()
    house.broker()
    shop = Shop(house, sink)
    shop.send("1")
    wrong = re.sub(r":\d+/", ":1/", sink)
    away = shop.consumer(SHOP_DB=wrong)
    shop.house.wait_for(away, "sink.unavailable")
    away.stop(START_S, 0, 1)
    shop.consumer("--until-idle=0.5").wait(START_S, 0)
    files = [*shop.house.events.iterdir(), *shop.house.printed.iterdir()]
    files += [path for path in shop.house.data.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert [path for path in files if b"s3cret" in path.read_bytes()] == []


def test_the_server_goes_away_and_comes_back(
    house: House, postgres_server: Server, postgres_sink
) -> None:
    """The consumer says so, lives on, and goes on by itself; nothing is lost or doubled."""
    sink = postgres_sink()
    house.broker()
    shop = Shop(house, sink)
    shop.send("1")
    consumer = shop.consumer()
    shop.house.wait_for(consumer, "commit.synced")
    postgres_server.kill()
    shop.send("2")
    shop.house.wait_for(consumer, "sink.unavailable", 2)
    assert consumer.exit_code is None
    postgres_server.start()
    shop.house.wait_for(consumer, "commit.synced", 2)
    consumer.stop(START_S, 0)
    shop.check([1, 2])


def test_a_standby_whose_connection_broke_takes_over(house: House, postgres_sink) -> None:
    """It owns nothing, but what it tells of the ledger it reads through a connection."""
    sink = postgres_sink()
    house.broker()
    shop = Shop(house, sink)
    shop.send("1")
    owner = shop.consumer()
    shop.house.wait_for(owner, "commit.synced")
    standby = shop.consumer()
    shop.house.wait_for(standby, "consumer.standby")
    run(
        sink,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE"
        " 'oncemq %' ORDER BY backend_start DESC LIMIT 1",
    )
    shop.house.wait_for(standby, "sink.unavailable")
    owner.kill()
    shop.send("2")
    shop.house.wait_for(standby, "commit.synced")
    standby.stop(START_S, 0)
    shop.check([1, 2])


def test_a_database_that_fails_again_and_again_is_no_messages_fault(
    house: House, postgres_sink
) -> None:
    """The process lives on each time: nobody died in the message that was at hand."""
    house.broker()
    shop = Shop(house, postgres_sink())
    shop.send("1 gone", "2")
    shop.consumer("--until-idle=1", CRASH_RETRIES="1").wait(START_S, 0)
    assert (shop.directory / "gone.times").read_text() == "xxxxx"
    shop.check([1, 2])


def test_a_lock_of_somebody_else_is_named_and_waited_for(house: House, tmp_path: Path) -> None:
    """SinkLocked names the process that writes; when it has ended its transaction all goes on."""
    sink = f"sqlite:///{tmp_path}/locked.db"
    house.broker()
    shop = Shop(house, sink)
    shop.send("1")
    with outside(sink) as other:
        other.execute("PRAGMA journal_mode=WAL")
        other.execute("BEGIN IMMEDIATE")
        consumer = shop.consumer()
        shop.house.wait_for(consumer, "sink.unavailable")
        wait_until(lambda: f"process {os.getpid()}" in consumer.stderr(), START_S, "the name")
        assert consumer.exit_code is None
        other.execute("ROLLBACK")
    shop.house.wait_for(consumer, "commit.synced")
    consumer.stop(START_S, 0)
    shop.check([1])


def check_storm(
    shop: Shop, server: Server | None, count: int, kills: int, rng: random.Random
) -> None:
    """Insert `count` rows while consumers, and the server if there is one, are killed."""
    values = list(range(count))
    path = shop.directory / "lines.txt"
    path.write_text("".join(f"{value}\n" for value in values))
    shop.consumer("--until-idle=0").wait(START_S, 0)  # makes the tables
    producer = shop.house.producer("--topic=orders", "--name=p", str(path))
    done = 0
    for number in range(kills):
        consumer = shop.consumer()
        goal = min(count - 1, done + max(1, count // (kills + 2)))
        pause = time.monotonic() + rng.uniform(0.0, 0.6)
        wait_until(lambda goal=goal: _count(shop) >= goal, 120, f"{goal} messages")
        wait_until(lambda until=pause: time.monotonic() >= until, 10, "the drawn moment")
        if server is not None and number % 2:
            server.kill()
            server.start()
        consumer.kill()
        done = _count(shop)
    producer.wait(120, 0)
    shop.consumer("--until-idle=1").wait(200, 0)
    shop.check(values)


def _count(shop: Shop) -> int:
    """How many messages are committed; asked twenty times a second, for each look connects anew."""
    time.sleep(0.05)
    found = rows(shop.sink, "SELECT inputs FROM oncemq_ledger")
    return max([0, *json.loads(found[0][0]).values()]) if found else 0


def test_kills_of_consumer_and_server(house: House, sink: str, request, rng) -> None:
    """Killed again and again while rows are inserted: count and sum are exact."""
    house.broker()
    server = None if sink.startswith("sqlite") else request.getfixturevalue("postgres_server")
    check_storm(Shop(house, sink), server, 3_000, 5, rng)


@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_fifty_kills_during_100_000_inserts(house: House, sink: str, request, rng) -> None:
    """The same at full size."""
    house.broker()
    server = None if sink.startswith("sqlite") else request.getfixturevalue("postgres_server")
    check_storm(Shop(house, sink), server, 100_000, 50, rng)
