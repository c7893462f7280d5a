"""A database that says "run it again" (40001, 40P01): the call runs again, and no message has failed."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from oncemq.chaos.programs import Running
from oncemq.errors import HandlerFailed, SinkConflict, SinkUnavailable, TransactionControl
from tests.process.house import START_S, House
from tests.sql.client import outside, rows, run
from tests.sql.conftest import Shop, table

SAYS = "DO $$ BEGIN RAISE EXCEPTION 'run it again' USING ERRCODE = '{}'; END $$"
CODES = ("40001", "40P01")


@pytest.fixture
def sink(request: pytest.FixtureRequest) -> str:
    """PostgreSQL alone: SQLite's writers wait for each other before they begin."""
    make: Callable[[], str] = request.getfixturevalue("postgres_sink")
    return make()


server = pytest.mark.process


def by_itself(tx: Any, text: str) -> None:
    tx.sql(text)


def swallowed(tx: Any, text: str) -> None:
    """It goes on as if nothing was."""
    with contextlib.suppress(psycopg.Error):
        tx.sql(text)


def swallowed_anyhow(tx: Any, text: str) -> None:
    with contextlib.suppress(Exception):
        tx.sql(text)


def wrapped(tx: Any, text: str) -> None:
    try:
        tx.sql(text)
    except (psycopg.Error, sqlite3.Error):
        wrong = RuntimeError("of the program's own")
    raise wrong


def by_connection(tx: Any, text: str) -> None:
    tx.connection.cursor().execute(text)


def by_stream(tx: Any, text: str) -> None:
    list(tx.connection.cursor().stream(text))


def by_copy(tx: Any, text: str) -> None:
    """An error of the server in the middle of a COPY."""
    tx.sql("CREATE TABLE IF NOT EXISTS copied (n INTEGER)")
    tx.sql(
        "CREATE OR REPLACE FUNCTION again() RETURNS trigger LANGUAGE plpgsql AS $f$"
        f" BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '{text.split(chr(39))[3]}'; END $f$"
    )
    tx.sql("CREATE OR REPLACE TRIGGER t BEFORE INSERT ON copied EXECUTE FUNCTION again()")
    with tx.connection.cursor().copy("COPY copied FROM STDIN") as copy:
        copy.write_row((1,))


WAYS = (by_itself, swallowed, wrapped, by_connection, by_stream, by_copy)


@server
@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("way", WAYS)
def test_a_conflict_is_no_failure_however_the_handler_takes_it(
    sink: str, shop: Shop, way: Callable[[Any, str], None], code: str
) -> None:
    """With no retries at all nothing is parked; attempts stay at 1; each row is there once."""
    insert = table(sink)
    seen: list[tuple[Any, int]] = []
    conflicts = 3

    def handler(order: Any, tx: Any) -> None:
        nonlocal conflicts
        seen.append((order.value, order.attempt))
        tx.sql(insert, order.id, order.value)
        tx.state["sum"] = tx.state.get("sum", 0) + order.value
        tx.send("out", order.value)
        if order.value == 1 and conflicts:
            conflicts -= 1
            way(tx, SAYS.format(code))

    harness = shop(handler, park=True)
    for number in range(3):
        harness.send("orders", number, id=f"o-{number}")
    harness.drain()
    assert seen.count((1, 1)) == 4
    assert {attempt for _, attempt in seen} == {1}
    assert rows(sink, "SELECT id FROM paid ORDER BY id") == [("o-0",), ("o-1",), ("o-2",)]
    assert harness.state("g") == {"sum": 3}
    assert [message.value for message in harness.sent("out")] == [0, 1, 2]
    assert harness.sent("orders.dead") == []


@server
@pytest.mark.parametrize("batch", [False, True])
def test_async_handlers_and_lists_run_again_too(sink: str, shop: Shop, batch: bool) -> None:
    """The list comes again as a list: no message of it is handed over alone for a conflict."""
    insert = table(sink)
    lists: list[int] = []

    async def handler(order: Any, tx: Any) -> None:
        lists.append(1)
        await tx.sql(insert, order.id, order.value)
        if len(lists) == 1:
            await tx.sql(SAYS.format("40001"))

    def of_lists(orders: Any, tx: Any) -> None:
        lists.append(len(orders))
        for order in orders:
            tx.sql(insert, order.id, order.value)
        if len(lists) == 1:
            tx.sql(SAYS.format("40001"))

    harness = shop(of_lists if batch else handler, park=True, **({"batch": True} if batch else {}))
    for number in range(2):
        harness.send("orders", number, id=f"o-{number}")
    harness.drain()
    assert lists == ([2, 2] if batch else [1, 1, 1])
    assert rows(sink, "SELECT count(*) FROM paid") == [(2,)]


@server
def test_a_real_conflict_of_two_transactions(sink: str, shop: Shop) -> None:
    """Another session changes what the handler has read, at a stricter isolation level."""
    run(
        sink,
        "CREATE TABLE acc (id INTEGER PRIMARY KEY, v INTEGER)",
        "INSERT INTO acc VALUES (1, 0)",
    )
    calls: list[int] = []

    def handler(order: Any, tx: Any) -> None:
        tx.connection.cursor().execute("SELECT 1")
        tx.sql("SELECT v FROM acc WHERE id = 1").fetchone()
        calls.append(order.attempt)
        if len(calls) == 1:
            run(sink, "UPDATE acc SET v = v + 100 WHERE id = 1")
        tx.sql("UPDATE acc SET v = v + 1 WHERE id = 1")

    with outside(sink) as connection:
        connection.execute("ALTER ROLE tests SET default_transaction_isolation = 'repeatable read'")
    try:
        harness = shop(handler)
        harness.send("orders", 1, id="1")
        harness.drain()
    finally:
        with outside(sink) as connection:
            connection.execute("ALTER ROLE tests RESET default_transaction_isolation")
    assert calls == [1, 1]
    assert rows(sink, "SELECT v FROM acc") == [(101,)]


@server
def test_a_conflict_at_the_commit_is_followed_by_a_new_owner(
    sink: str, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The core is ahead of the database then: the consumer that follows reads what became of it."""
    insert = table(sink)
    harness = shop(lambda order, tx: tx.sql(insert, order.id, order.value))
    harness.send("orders", 1, id="first")
    harness.drain()
    [actor] = harness._system.actors.values()
    end = actor.sink._end

    def conflicting(verb: str) -> None:
        if verb == "COMMIT":
            end("ROLLBACK")
            raise psycopg.errors.SerializationFailure("could not serialize access")
        end(verb)

    monkeypatch.setattr(actor.sink, "_end", conflicting)
    harness.send("orders", 2, id="second")
    with pytest.raises(SinkConflict):
        harness.drain()
    harness.drain()
    assert rows(sink, "SELECT id FROM paid ORDER BY id") == [("first",), ("second",)]


@server
@pytest.mark.parametrize("code", CODES)
def test_a_conflict_of_a_connection_of_the_handlers_own_is_its_failure(
    sink: str, shop: Shop, code: str
) -> None:
    """Nothing is known of that transaction here: the message has its retries, and is told of."""
    insert = table(sink)

    def handler(order: Any, tx: Any) -> None:
        tx.sql(insert, order.id, order.value)
        run(sink, SAYS.format(code))

    harness = shop(handler)
    harness.send("orders", 1, id="1")
    with pytest.raises(HandlerFailed, match="run it again"):
        harness.drain()


@server
def test_an_error_that_the_handler_has_swallowed_fails_its_message_alone(
    sink: str, shop: Shop
) -> None:
    """PostgreSQL keeps nothing behind it; the message is told so, its neighbours stay."""
    insert = table(sink)

    def handler(order: Any, tx: Any) -> None:
        tx.sql(insert, order.id, order.value)
        if order.value == 1:
            with contextlib.suppress(psycopg.Error):
                tx.sql("SELECT 1 / 0")

    harness = shop(handler, park=True)
    for number in range(3):
        harness.send("orders", number, id=f"o-{number}")
    harness.drain()
    assert rows(sink, "SELECT id FROM paid ORDER BY id") == [("o-0",), ("o-2",)]
    [letter] = harness.sent("orders.dead")
    assert b"caught an error of PostgreSQL" in letter.headers["oncemq-error"]
    assert TransactionControl.code == "transaction_control"


# --- SQLite ---------------------------------------------------------------------------------------


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[str]:
    """Another database, locked for as long as the test runs."""
    path = str(tmp_path / "other.db")
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("CREATE TABLE t (n)")
    holder.execute("BEGIN IMMEDIATE")
    yield path
    holder.close()


class TestSqlite:
    """What SQLite says of locks."""

    @pytest.fixture
    def sink(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path}/shop.db"

    def test_a_lock_of_another_database_is_the_handlers_failure(
        self, sink: str, shop: Shop, locked: str
    ) -> None:
        """It was taken for a lock of the sink, and retried for ever."""

        def handler(order: Any, tx: Any) -> None:
            tx.sql("CREATE TABLE IF NOT EXISTS n (v)")
            other = sqlite3.connect(locked, timeout=0)
            try:
                other.execute("INSERT INTO t VALUES (1)")
            finally:
                other.close()

        harness = shop(handler)
        harness.send("orders", 1, id="1")
        with pytest.raises(HandlerFailed, match="database is locked"):
            harness.drain()

    @pytest.mark.parametrize("way", [by_itself, swallowed_anyhow, wrapped, by_connection])
    def test_a_full_disk_is_an_outage_however_the_handler_takes_it(
        self, sink: str, shop: Shop, way: Callable[[Any, str], None]
    ) -> None:
        """No message is parked, or counted as handled, for want of room."""
        insert = table(sink)
        run(sink, f"INSERT INTO paid VALUES ('{'x' * 200_000}', 1)")
        attempts: list[int] = []

        def handler(order: Any, tx: Any) -> None:
            attempts.append(order.attempt)
            tx.sql(insert, order.id, order.value)
            if len(attempts) == 1:
                tx.sql("PRAGMA max_page_count = 1")  # SQLite takes the present size instead
                way(tx, f"INSERT INTO paid VALUES ('{'y' * 900_000}', 1)")

        harness = shop(handler, park=True)
        harness.send("orders", 1, id="1")
        with pytest.raises(SinkUnavailable, match="full"):
            harness.drain()
        harness.drain()
        assert attempts == [1, 1]
        assert rows(sink, "SELECT count(*) FROM paid WHERE cents = 1") == [(2,)]
        assert harness.sent("orders.dead") == []

    def test_a_statement_in_the_way_of_another_one_is_the_handlers_failure(
        self, sink: str, shop: Shop
    ) -> None:
        """SQLITE_LOCKED is between statements of one connection: no waiting mends it."""

        def handler(order: Any, tx: Any) -> None:
            tx.sql("CREATE TABLE t (n)")
            tx.connection.executemany("INSERT INTO t VALUES (?)", [(1,), (2,)])
            unread = tx.sql("SELECT n FROM t")
            unread.fetchone()
            tx.sql("DROP TABLE t")

        harness = shop(handler)
        harness.send("orders", 1, id="1")
        with pytest.raises(HandlerFailed, match="table is locked"):
            harness.drain()

    @pytest.mark.parametrize("name", ["SQLITE_BUSY", "SQLITE_BUSY_TIMEOUT", "SQLITE_BUSY_SNAPSHOT"])
    def test_a_lock_of_the_sink_is_never_the_messages_failure(
        self, sink: str, shop: Shop, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A conflict runs again at once; a lock is an outage; neither counts, also if it is wrapped."""
        insert = table(sink)
        errors = [sqlite3.OperationalError("database is locked")]
        errors[0].sqlite_errorname = name
        attempts: list[int] = []

        def handler(order: Any, tx: Any) -> None:
            attempts.append(order.attempt)
            tx.sql(insert, order.id, order.value)
            if errors:
                tx.connection.cursor()._note(errors.pop())
                raise RuntimeError("of the program's own")

        harness = shop(handler)
        harness.send("orders", 1, id="1")
        if name == "SQLITE_BUSY_SNAPSHOT":
            harness.drain()
        else:
            with pytest.raises(SinkUnavailable, match="is locked"):
                harness.drain()
            harness.drain()
        assert attempts == [1, 1]
        assert rows(sink, "SELECT id FROM paid") == [("1",)]


# --- a rival session, and a real consumer --------------------------------------------------------

APP = """
import os, time
from oncemq import App
app = App()

@app.consumer("orders", group="g", sink="env:SHOP_DB", retries=0)
def add(message, tx):
    tx.sql("INSERT INTO done VALUES (%s)", message.value)
    tx.sql("SELECT sum(v) FROM acc").fetchone()
    time.sleep(0.002)
    tx.sql("UPDATE acc SET v = v + 1 WHERE id = 1")
"""


def rival(sink: str, over: threading.Event, met: list[int]) -> None:
    """Write skew against the handler, again and again."""
    with psycopg.connect(sink, autocommit=True) as connection:
        while not over.is_set():
            try:
                with connection.transaction():
                    connection.execute("SELECT sum(v) FROM acc")
                    time.sleep(0.003)
                    connection.execute("UPDATE acc SET v = v + 1 WHERE id = 2")
            except psycopg.errors.SerializationFailure:
                met.append(1)
            time.sleep(0.003)


def handled_against_a_rival(house: House, sink: str, count: int) -> Running:
    """Run one consumer over `count` messages, next to a session that is in its way."""
    run(
        sink,
        "CREATE TABLE acc (id INTEGER PRIMARY KEY, v INTEGER)",
        "INSERT INTO acc VALUES (1, 0), (2, 0)",
        "CREATE TABLE done (v TEXT)",
    )
    (house.directory / "rivalapp.py").write_text(APP)
    lines = house.directory / "lines.txt"
    lines.write_text("".join(f"{number}\n" for number in range(count)))
    house.broker()
    house.producer("--topic=orders", "--name=p", str(lines)).wait(START_S, 0)
    over, met = threading.Event(), []
    thread = threading.Thread(target=rival, args=(sink, over, met))
    thread.start()
    try:
        consumer = house.consumer("rivalapp:app", "--until-idle=1", SHOP_DB=sink)
        consumer.wait(START_S + count, 0)
    finally:
        over.set()
        thread.join(START_S)
    return consumer


def check_rival(house: House, sink: str, count: int) -> int:
    """All are processed once, none is parked; return how many conflicts there were."""
    strict = "-cdefault_transaction_isolation%3Dserializable"
    consumer = handled_against_a_rival(house, f"{sink}%20{strict}", count)
    assert consumer.summary()["parked"] == 0
    assert rows(sink, "SELECT count(*), count(DISTINCT v) FROM done") == [(count, count)]
    assert rows(sink, "SELECT v FROM acc WHERE id = 1") == [(count,)]
    house.refresh()
    told = house.history.of(consumer.pid)
    assert told["handler.raised"] == 0
    return told["handler.again"] + told["sink.unavailable"]


@server
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_rival_session_parks_nothing(house: House, sink: str) -> None:
    """100 messages without a single retry of their own, under SERIALIZABLE."""
    assert check_rival(house, sink, 100) > 0


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.timeout(3600)
def test_two_thousand_messages_against_a_rival(house: House, sink: str) -> None:
    """The same with 2,000."""
    assert check_rival(house, sink, 2_000) > 20
