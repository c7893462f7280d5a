"""`oncemq relay` as a real process, against real databases and a real broker."""

from __future__ import annotations

import json
import random
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from oncemq import outbox
from oncemq.chaos.programs import CRASHED, Running, wait_until
from oncemq.chaos.reader import StoredMessage, read_topic
from oncemq.cli.main import run
from oncemq.library.outbox.database import open_database
from oncemq.limits import RELAY_ROUND_BYTES
from oncemq.runtime.crash_points import NAMES
from tests.library.outbox.users import ids_of, rows_of, sqlite_url
from tests.postgres import Server, new_server
from tests.process import shop_writer
from tests.process.house import ROOT, START_S, House

pytestmark = pytest.mark.process
BOTH = pytest.mark.parametrize("sink", ["sqlite", "postgres"], indirect=True)


@pytest.fixture
def sink(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    url: str = (
        sqlite_url(tmp_path)
        if request.param == "sqlite"
        else request.getfixturevalue("postgres_url")
    )
    shop_writer.create(url)
    return url


def relay(house: House, url: str, *more: str, **environ: str) -> Running:
    return house.start("relay", "-m", "oncemq", "relay", "--sink", url, *more, **environ)


def relay_once(house: House, url: str) -> dict[str, Any]:
    """Relay all that waits; return the summary."""
    relaying = relay(house, url, "--once")
    relaying.wait(START_S, 0)
    return relaying.summary()


def take_orders(url: str, *ids: str) -> None:
    engine = shop_writer.open_engine(url)
    with engine.begin() as connection:
        for order_id in ids:
            shop_writer.take(connection, order_id)
    engine.dispose()


def log_of(house: House) -> list[StoredMessage]:
    return list(read_topic(house.endpoint, "orders", timeout_s=START_S))


def order_ids(url: str) -> list[str]:
    engine = shop_writer.open_engine(url)
    with engine.connect() as connection:
        found = [row[0] for row in connection.execute(sa.text("SELECT id FROM orders"))]
    engine.dispose()
    return found


def ids_in(log: list[StoredMessage]) -> list[str | bytes]:
    return [message.message_id for message in log]


@BOTH
@pytest.mark.parametrize("place", sorted(name for name in NAMES if name.startswith("relay")))
def test_a_crash_at_each_step(house: House, sink: str, place: str) -> None:
    """A relay that dies before or after sending, deleting or committing repeats, never doubles."""
    house.broker()
    ids = [f"o-{number}" for number in range(20)]
    take_orders(sink, *ids)
    relay(house, sink, "--once", ONCEMQ_CRASH_AT=f"{place}:1").wait(START_S, CRASHED)
    summary = relay_once(house, sink)
    again = {"relay_after_read": 0, "relay_after_commit": None}.get(place, 20)
    sent = 0 if again is None else 20
    assert summary == {
        "sent": sent,
        "appended": sent - (again or 0),
        "duplicates": again or 0,
        "failed": 0,
    }
    assert ids_in(log_of(house)) == ids
    assert rows_of(sink) == []


@BOTH
@pytest.mark.timeout(300)
def test_kills_of_everybody_lose_and_double_nothing(
    house: House, sink: str, rng: random.Random
) -> None:
    """Writers roll back, commit late and are killed; relays and the broker are killed: each
    committed order is in the log once, no other is, and a transaction's messages keep their order.
    """
    broker = house.broker()
    relays = [relay(house, sink) for _ in range(2)]
    script = str(ROOT / "tests" / "process" / "shop_writer.py")
    writers = [
        house.start(f"writer-{name}", script, sink, f"w{name}", str(rng.randint(0, 999)), "150")
        for name in range(3)
    ]
    victim = rng.randrange(3)
    for step in range(6):
        house.wait_for_appended(1 + step * 25)
        relays[step % 2].kill()
        relays[step % 2] = relay(house, sink)
        if step == 2:
            broker.kill()
            broker = house.broker()
        if step == 4:
            writers[victim].kill()
    for number, writer in enumerate(writers):
        writer.wait(120, 0, *([-signal.SIGKILL] if number == victim else []))
    wait_until(lambda: not rows_of(sink), 60, "an empty outbox")
    for relaying in relays:
        house.wait_for(relaying, "client.connected")  # up: it ends in good order when asked to
        relaying.stop(START_S, 0)
    assert relay_once(house, sink)["sent"] == 0
    log = log_of(house)
    assert sorted(map(str, ids_in(log))) == sorted(order_ids(sink))
    for transaction in {str(message.message_id)[:-2] for message in log}:
        parts = [str(m.message_id) for m in log if str(m.message_id).startswith(f"{transaction}-")]
        assert parts == sorted(parts), "the order of send inside one transaction"


def test_a_transaction_that_commits_late_is_not_passed_over(
    house: House, postgres_url: str
) -> None:
    """A lower place that is committed after higher ones were sent is sent then."""
    house.broker()
    shop_writer.create(postgres_url)
    engine = shop_writer.open_engine(postgres_url)
    relaying = relay(house, postgres_url, "--keep")
    with engine.connect() as early:
        shop_writer.take(early, "early")
        take_orders(postgres_url, "late-1", "late-2")
        house.wait_for_appended(2)
        early.commit()
    house.wait_for_appended(3)
    engine.dispose()
    wait_until(lambda: not rows_of(postgres_url), START_S, "all marked as sent")
    relaying.stop(START_S, 0)
    assert relaying.summary()["appended"] == 3
    assert ids_in(log_of(house)) == ["late-1", "late-2", "early"]
    with psycopg.connect(postgres_url) as connection:
        found = connection.execute("SELECT state FROM oncemq_outbox").fetchall()
    assert found == [("sent",)] * 3


@BOTH
def test_two_relays_share_an_outbox_without_harm(house: House, sink: str) -> None:
    """Both may send the same rows; the log has each once, in the order of the transactions."""
    house.broker()
    relays = [relay(house, sink) for _ in range(2)]
    expected = []
    for number in range(60):
        ids = [f"o-{number}-{part}" for part in range(10)]
        take_orders(sink, *ids)
        expected += ids
    wait_until(lambda: not rows_of(sink), START_S, "an empty outbox")
    for relaying in relays:
        house.wait_for(relaying, "client.connected")  # up: it ends in good order when asked to
        relaying.stop(START_S, 0)
    assert sum(relaying.summary()["appended"] for relaying in relays) == len(expected)
    assert ids_in(log_of(house)) == expected


@BOTH
def test_a_rolled_back_transaction_sends_nothing(house: House, sink: str) -> None:
    """An order that never was has no message, also if its writer died with it."""
    house.broker()
    engine = shop_writer.open_engine(sink)
    with engine.connect() as connection:
        shop_writer.take(connection, "rolled-back")
        connection.rollback()
        shop_writer.take(connection, "never-ended")
    engine.dispose()
    take_orders(sink, "committed")
    assert relay_once(house, sink)["appended"] == 1
    assert ids_in(log_of(house)) == ["committed"]


@BOTH
def test_an_absent_broker_is_waited_for(house: House, sink: str) -> None:
    """The relay says who does not answer, goes on when it comes, and outlives its restart."""
    take_orders(sink, "a")
    relaying = relay(house, sink, "--until-idle", "3")
    house.wait_for(relaying, "client.waiting")
    wait_until(
        lambda: f"no broker answers at {house.endpoint}; still retrying" in relaying.stderr(),
        START_S,
        "a word about the broker",
    )
    assert ids_of(sink) == ["a"]
    broker = house.broker()
    house.wait_for(relaying, "relay.settled")
    broker.kill()
    take_orders(sink, "b")
    house.broker()
    house.wait_for(relaying, "relay.settled", times=2)
    relaying.wait(START_S, 0)
    assert relaying.summary() == {"sent": 2, "appended": 2, "duplicates": 0, "failed": 0}


@pytest.fixture
def own_server() -> Iterator[Server]:
    """A PostgreSQL that a test may kill."""
    yield from new_server()


@pytest.mark.timeout(180)
def test_a_killed_postgres_is_waited_for(house: House, own_server: Server) -> None:
    """The relay says that the database is away, goes on after its recovery, and loses nothing."""
    house.broker()
    url = own_server.make_schema()
    shop_writer.create(url)
    take_orders(url, "a")
    relaying = relay(house, url)
    house.wait_for(relaying, "relay.settled")
    for number in range(1, 4):
        own_server.kill()
        house.wait_for(relaying, "relay.database_away", times=number)
        own_server.start()
        house.wait_for(relaying, "relay.database_back", times=number)
        take_orders(url, f"b-{number}")
        house.wait_for(relaying, "relay.settled", times=1 + number)
    assert "the database is not available: postgresql://" in relaying.stderr()
    relaying.stop(START_S, 0)
    assert ids_in(log_of(house)) == ["a", "b-1", "b-2", "b-3"]
    assert rows_of(url) == []


def test_only_what_survives_a_crash_of_postgres_is_sent(own_server: Server) -> None:
    """A commit that the server shows but has not written is made durable before it is sent.

    With `synchronous_commit=off` it would be gone after a crash, and its message would not.
    """
    url = own_server.make_schema()
    shop_writer.create(url)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET wal_writer_delay = '10s'")
        connection.execute("SELECT pg_reload_conf()")
    for number in range(3):
        with psycopg.connect(url) as connection:
            connection.execute("SET synchronous_commit = off")
            outbox.send(connection, "orders", "x", id=f"o-{number}")
            connection.commit()
            database = open_database(url)
            read = [row.message_id for row in database.read()]
            own_server.kill()
            database.close()
        own_server.start()
        assert read == [b"so-%d" % earlier for earlier in range(number + 1)]
        assert [row.message_id for row in rows_of(url)] == read


def test_a_long_outbox_in_postgres_is_read_in_bounded_rounds(postgres_url: str) -> None:
    """One read stops at its bound of bytes: the row that reaches it is the last."""
    value = b"x" * (RELAY_ROUND_BYTES // 8)
    database = open_database(postgres_url)
    with psycopg.connect(postgres_url) as connection:
        outbox.create(connection)
        for number in range(20):
            outbox.send(connection, "t", value, id=f"o-{number}")
    for expected in (8, 8, 4, 0):
        rows = database.read()
        assert len(rows) == expected
        assert database.settle(rows, (), keep=True) == expected
    database.close()


@BOTH
def test_a_refused_row_is_kept_and_shown(
    house: House, sink: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """IdConflict marks the row, others pass, the run ends with 1; the row can be shown and retried."""
    house.broker()
    take_orders(sink, "a")
    relay_once(house, sink)
    connection: Any
    if sink.startswith("sqlite"):
        connection = sqlite3.connect(sink.removeprefix("sqlite:///"))
    else:
        connection = psycopg.connect(sink)
    outbox.send(connection, "orders", {"id": "other"}, id="a")
    outbox.send(connection, "orders", {"id": "b"}, id="b")
    connection.commit()
    connection.close()
    for more in ([], ["--retry-failed"]):
        relaying = relay(house, sink, "--once", *more)
        relaying.wait(START_S, 1)
        assert relaying.summary()["failed"] == 1
        assert "1 rows were refused; list them: oncemq relay --show-failed" in relaying.stderr()
    assert ids_in(log_of(house)) == ["a", "b"]
    capfd.readouterr()
    assert run("relay", ["--sink", sink, "--show-failed", "--json"]) == 0
    (shown,) = json.loads(capfd.readouterr().out)["failed"]
    assert (shown["topic"], shown["id"]) == ("orders", "a")
    assert shown["error"].startswith("id_conflict: ")
    assert run("relay", ["--sink", sink, "--show-failed"]) == 0
    assert "id_conflict" in capfd.readouterr().out


@pytest.mark.parametrize(("more", "code"), [(["--once"], 130), ([], 0)])
def test_an_interrupted_relay_ends_cleanly(
    house: House, tmp_path: Path, more: list[str], code: int
) -> None:
    """Ctrl-C: a summary, no traceback; 130 only where the run had an end of its own."""
    url = sqlite_url(tmp_path)
    shop_writer.create(url)
    take_orders(url, "a")
    relaying = relay(house, url, *more)
    house.wait_for(relaying, "client.waiting")
    relaying.send_signal(signal.SIGINT)
    relaying.wait(START_S, code)
    assert relaying.summary() == {"sent": 0, "appended": 0, "duplicates": 0, "failed": 0}
    assert "Traceback" not in relaying.stderr()
    assert ids_of(url) == ["a"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "no database given"),
        (["--sink", "shop.db"], "sqlite:///PATH"),
        (["--sink", "postgresql://h/d?no_such_option=1"], "no_such_option"),
        (["--sink", "sqlite:///x", "--once", "--until-idle", "1"], "exclude each other"),
        (["--sink", "sqlite:///x", "--json"], "--show-failed"),
        (["--sink", "sqlite:///x", "--poll", "0"], "--poll"),
    ],
)
def test_wrong_usage_is_told_at_once(
    arguments: list[str], reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Wrong arguments exit 2 with the reason, before anything is opened."""
    assert run("relay", arguments) == 2
    printed = capfd.readouterr()
    assert reason in printed.err
    assert printed.out == ""


def test_no_password_is_written_to_the_events(house: House) -> None:
    """The first event tells arguments and settings, but not the secret in them."""
    url = "postgresql://shop:s3cret@127.0.0.1:1/shop"
    relaying = relay(house, url)
    house.wait_for(relaying, "relay.database_away")
    relaying.stop(START_S, 0)
    told = "".join(path.read_text("utf-8") for path in house.events.iterdir())
    assert "postgresql://shop:***@127.0.0.1:1/shop" in told
    assert "s3cret" not in told + relaying.stderr() + relaying.stdout()
