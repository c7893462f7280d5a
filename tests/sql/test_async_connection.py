"""`tx.connection` of async handlers: the async driver, on the connection and in the one commit."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import aiosqlite
import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.pool import StaticPool

from oncemq.chaos.programs import wait_until
from oncemq.errors import HandlerFailed, OnceMQError, SinkUnavailable, TransactionControl
from tests.process.house import START_S, House
from tests.sql.client import mark, outside, rows
from tests.sql.conftest import Shop, table
from tests.sql.test_async_handlers import AsyncShop
from tests.sql.test_processes import around_the_commit, check_killed_once, check_storm

on_sqlite = pytest.mark.parametrize("sink", ["sqlite"], indirect=True)
on_postgres = pytest.mark.parametrize(
    "sink", [pytest.param("postgresql", marks=pytest.mark.process)], indirect=True
)
LATE = "somebody who came late"
DEAF_ONCE = """DO $$ BEGIN PERFORM pg_sleep(300);
    EXCEPTION WHEN query_canceled THEN PERFORM pg_sleep(300); END $$"""


def end_session(sink: str, sql: str) -> None:
    """End the session that executes a statement with `sql` in it, once there is one."""
    query = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE pid <> pg_backend_pid() AND state = 'active' AND query LIKE %s"
    )
    with outside(sink) as connection:
        wait_until(lambda: connection.execute(query, (f"%{sql}%",)).fetchall(), 30, sql)


# --- one commit -----------------------------------------------------------------------------------


def test_it_is_the_async_drivers_and_in_the_one_commit(sink: str, shop: Shop) -> None:
    """Rows, state, outputs and offset are there once, whatever step of the commit a crash hits."""
    insert = table(sink)
    driver: Any = aiosqlite.Connection if sink.startswith("sqlite") else psycopg.AsyncConnection
    seen: set[bool] = set()

    async def handler(order: Any, tx: Any) -> None:
        connection = tx.connection
        seen.add(isinstance(connection, driver))
        await connection.execute(insert, (order.id, order.value))
        cursor = await tx.sql("SELECT count(*) FROM paid")  # one connection: it sees the row
        tx.state["count"] = (await cursor.fetchone())[0]
        tx.send("out", order.value)

    harness = shop(handler)
    for number in range(6):
        harness.send("orders", number, id=f"o-{number}")
    harness.assert_exactly_once()
    assert seen == {True}
    assert harness.state("g") == {"count": 6}
    assert rows(sink, "SELECT count(*), sum(cents) FROM paid") == [(6, 15)]


def test_a_message_that_raises_leaves_no_row(sink: str, shop: Shop) -> None:
    """Each message has its savepoint; lists are all or nothing."""
    insert = table(sink)

    async def handler(orders: Any, tx: Any) -> None:
        for order in orders:
            await tx.connection.execute(insert, (order.id, order.value))
        if any(order.value == 1 for order in orders):
            raise LookupError("not with this one")

    harness = shop(handler, park=True, batch=True)
    for number in range(4):
        harness.send("orders", number, id=f"o-{number}")
    harness.drain()
    assert rows(sink, "SELECT id FROM paid ORDER BY id") == [("o-0",), ("o-2",), ("o-3",)]


def test_it_is_the_same_object_from_message_to_message(sink: str, shop: Shop) -> None:
    """An engine can be kept for it: one for each connection, in all calls."""
    table(sink)
    seen: set[int] = set()

    async def handler(order: Any, tx: Any) -> None:
        seen.add(id(tx.connection))

    harness = shop(handler)
    for number in range(3):
        harness.send("orders", number)
        harness.drain()
    assert len(seen) == 1


# --- what the drivers give ------------------------------------------------------------------------


@on_postgres
def test_all_of_psycopg(sink: str, shop: Shop) -> None:
    """executemany, COPY both ways, streams, named cursors, pipelines, and rows by iteration."""
    insert = table(sink)
    seen: list[Any] = []

    async def handler(order: Any, tx: Any) -> None:
        connection = tx.connection
        cursor = connection.cursor()
        await cursor.executemany(insert, [(f"{order.id}-{n}", n) for n in range(5)])
        async with cursor.copy("COPY paid (id, cents) FROM STDIN") as copy:
            for number in range(3):
                await copy.write_row((f"{order.id}-copied-{number}", number))
        async with cursor.copy("COPY paid TO STDOUT") as copy:
            seen.append(len([row async for row in copy.rows()]))
        seen.append(len([row async for row in cursor.stream("SELECT * FROM paid")]))
        async with connection.cursor("named") as named:
            await named.execute("SELECT cents FROM paid")
            seen.append(sum([cents async for (cents,) in named]))
        async with connection.pipeline():
            one = await connection.execute("SELECT 1")
            two = await connection.execute("SELECT 2")
            seen.append((await one.fetchone(), await two.fetchone()))
        many = await tx.sql("SELECT n FROM generate_series(1, %s) AS n", 600)
        seen.append([many.rowcount, len([row async for row in many]), many.raw is many])

    harness = shop(handler)
    harness.send("orders", 1, id="o")
    harness.drain()
    assert seen == [8, 8, 13, ((1,), (2,)), [600, 600, True]]
    assert rows(sink, "SELECT count(*) FROM paid") == [(8,)]


@on_sqlite
def test_all_of_aiosqlite(sink: str, shop: Shop) -> None:
    """Cursors, shortcuts, functions, and settings of rows; no thread of aiosqlite is started."""
    insert = table(sink)
    seen: list[Any] = []

    async def handler(order: Any, tx: Any) -> None:
        connection = await tx.connection
        await connection.create_function("twice", 1, lambda number: 2 * number)
        await connection.executemany(insert, [(f"{order.id}-{n}", n) for n in range(300)])
        seen.append(await connection.execute_fetchall("SELECT twice(21)"))
        seen.append((await connection.execute_insert(insert, ("last", 1)))[0])
        async with connection.execute("SELECT cents FROM paid ORDER BY cents") as cursor:
            seen.append(len([row async for row in cursor]))
        async with connection.cursor() as cursor:
            await cursor.execute("SELECT max(cents) FROM paid")
            seen.append(await cursor.fetchone())
        seen.append((connection.in_transaction, connection.isolation_level))
        seen.append(connection.stop())
        seen.append(getattr(connection, "_thread", connection).is_alive())

    harness = shop(handler)
    harness.send("orders", 1, id="o")
    harness.drain()
    assert seen == [[(42,)], 301, 301, (299,), (True, None), None, False]


@on_postgres
def test_statements_run_in_the_loop_and_need_no_thread(sink: str, shop: Shop) -> None:
    """With every thread of the loop's executor busy they go on all the same."""
    insert = table(sink)

    async def handler(order: Any, tx: Any) -> None:
        loop, let_go = asyncio.get_running_loop(), asyncio.Event()
        pool = ThreadPoolExecutor(1)
        loop.set_default_executor(pool)
        wait = asyncio.run_coroutine_threadsafe
        busy = asyncio.ensure_future(asyncio.to_thread(lambda: wait(let_go.wait(), loop).result()))
        async with asyncio.timeout(20):
            await tx.sql(insert, order.id, order.value)
            await tx.connection.execute("SELECT 1")
        let_go.set()
        await busy

    harness = shop(handler)
    harness.send("orders", 1, id="o")
    harness.drain()
    assert rows(sink, "SELECT count(*) FROM paid") == [(1,)]


@on_postgres
def test_prepared_statements_are_kept_in_one_book(sink: str, shop: Shop) -> None:
    """A rollback makes psycopg deallocate all: what the other side has prepared is known to both."""
    insert = table(sink)

    async def handler(order: Any, tx: Any) -> None:
        for number in range(12):
            await tx.sql(insert, f"{order.id}-{order.attempt}-{number}", number)
        if order.attempt == 1:
            raise LookupError("roll back what has prepared it")

    harness = shop(handler, retries=1)
    for number in range(3):
        harness.send("orders", number, id=f"o-{number}")
    harness.drain()
    assert rows(sink, "SELECT count(*) FROM paid") == [(36,)]


def engine_for(connection: Any, sink: str) -> Any:
    """An async engine of SQLAlchemy over the connection of a handler."""

    async def given() -> Any:
        return connection

    more = {} if sink.startswith("sqlite") else {"use_native_hstore": False}
    return create_async_engine(
        "sqlite+aiosqlite://" if sink.startswith("sqlite") else "postgresql+psycopg://",
        async_creator=given,
        poolclass=StaticPool,
        pool_reset_on_return=None,
        skip_autocommit_rollback=True,
        **more,
    )


def test_sqlalchemys_async_engine_writes_in_the_commit(sink: str, shop: Shop) -> None:
    """One engine for each connection; flush() writes, commit() is refused."""
    table(sink)
    engines = lru_cache(engine_for)
    refused: list[str] = []

    async def handler(order: Any, tx: Any) -> None:
        async with AsyncSession(engines(tx.connection, sink)) as session:
            await session.execute(text("INSERT INTO paid VALUES (:id, 1)"), {"id": order.id})
            await session.flush()
            if order.value == 1:
                raise LookupError("not this one")
            if order.value == 2:
                try:
                    await session.commit()
                except TransactionControl as error:
                    refused.append(error.reason)

    harness = shop(handler, park=True)
    for number in range(4):
        harness.send("orders", number, id=f"o-{number}")
    harness.drain()
    assert engines.cache_info().misses == 1
    assert refused == ["commit() of the sink's connection is refused"]
    assert rows(sink, "SELECT id FROM paid ORDER BY id") == [("o-0",), ("o-2",), ("o-3",)]


# --- what is refused ------------------------------------------------------------------------------


def test_the_transaction_belongs_to_the_commit(sink: str, shop: Shop) -> None:
    """Neither a method nor a text ends, divides or changes it; nothing of the message stays."""
    insert = table(sink)
    methods = ["commit", "rollback", "close"]
    ways: dict[str, Any] = {}
    if sink.startswith("sqlite"):
        ways["executescript"] = lambda c: c.executescript("SELECT 1")
        ways["isolation_level"] = lambda c: setattr(c, "isolation_level", "DEFERRED")
        ways["set_authorizer"] = lambda c: c.set_authorizer(None)
    else:
        methods.append("transaction")
        ways["COMMIT"] = lambda c: c.cursor().executemany("COMMIT", [()])
        ways["ROLLBACK"] = lambda c: c.cursor().stream("ROLLBACK")
        ways["RELEASE"] = lambda c: c.cursor().copy("COPY paid FROM STDIN; RELEASE oncemq_message")
    for method in methods:
        ways[f"{method}()"] = lambda c, method=method: getattr(c, method)()
    for statement in ("COMMIT", "SAVEPOINT mine", "ROLLBACK TO SAVEPOINT oncemq_message"):
        ways[statement.split()[0]] = lambda c, statement=statement: c.execute(statement)
    told: dict[str, str] = {}

    async def handler(order: Any, tx: Any) -> None:
        await tx.sql(insert, order.id, 1)
        if order.value is None:
            return
        try:
            done = ways[order.value](tx.connection)
            if done is not None:
                await done
        except TransactionControl as error:
            told[order.value] = error.reason
            raise

    harness = shop(handler, park=True)
    harness.send("orders", None, id="good")
    for way in ways:
        harness.send("orders", way, id=way)
    harness.drain()
    assert sorted(told) == sorted(ways)
    assert [way for way, reason in told.items() if way not in reason] == []
    assert rows(sink, "SELECT id FROM paid") == [("good",)]


def test_a_connection_is_asked_for_in_each_handler(sink: str, shop: Shop) -> None:
    """One that was kept has no savepoint of the message at hand: refused, and nothing is written."""
    insert = table(sink)
    kept: list[Any] = []

    async def handler(order: Any, tx: Any) -> None:
        if not kept:
            kept.append(tx.connection)
        await kept[0].execute(insert, (order.id, order.value))

    harness = shop(handler, park=True)
    for number in range(2):
        harness.send("orders", number, id=f"o-{number}")
    harness.drain()
    assert rows(sink, "SELECT id FROM paid") == [("o-0",)]
    (letter,) = harness.sent("orders.dead")
    assert "until it returns" in str(letter.headers)


@on_sqlite
def test_without_aiosqlite(sink: str, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """tx.sql goes on; tx.connection stops the consumer and says what to install."""
    insert = table(sink)
    monkeypatch.delitem(sys.modules, "oncemq.library.sinks.awaited_aiosqlite", raising=False)
    monkeypatch.setitem(sys.modules, "aiosqlite", None)

    async def handler(order: Any, tx: Any) -> None:
        await tx.sql(insert, order.id, order.value)
        if order.value:
            await tx.connection.execute("SELECT 1")

    harness = shop(handler, park=True)
    harness.send("orders", 0, id="good")
    harness.send("orders", 1, id="bad")
    with pytest.raises((HandlerFailed, OnceMQError), match=r"aiosqlite") as caught:
        harness.drain()
    assert "oncemq[async]" in str(caught.value.__cause__)
    assert rows(sink, "SELECT id FROM paid") == [("good",)]


# --- what is not over -----------------------------------------------------------------------------


def test_what_a_task_left_running_fails_the_message(sink: str, shop: Shop) -> None:
    """It is over before the rollback, and what the task does later is refused, not committed."""
    insert = table(sink)
    told: list[str] = []
    begun, next_one, late = asyncio.Event(), asyncio.Event(), asyncio.Event()
    tasks: set[Any] = set()
    ended: list[int] = []
    loops: list[Any] = []

    def busy() -> None:  # in the thread of a statement, which cannot be cancelled
        loops[0].call_soon_threadsafe(begun.set)
        time.sleep(0.1)
        ended.append(1)

    async def leftover(connection: Any) -> None:
        try:
            if sink.startswith("sqlite"):
                loops.append(asyncio.get_running_loop())
                await connection.create_function("busy", 0, busy)
                await connection.execute("SELECT busy()")
            else:
                begun.set()
                await connection.execute("SELECT pg_sleep(300)")
        except asyncio.CancelledError:
            ended.append(1)
        async with asyncio.timeout(30):
            await next_one.wait()
        try:
            await connection.execute(insert, (LATE, 1))
        except TransactionControl as error:
            told.append(error.reason)
        late.set()

    async def handler(order: Any, tx: Any) -> None:
        connection = tx.connection
        await connection.execute(insert, (order.id, order.value))
        if order.value == 0:
            tasks.add(asyncio.ensure_future(leftover(connection)))
            await begun.wait()
        else:
            assert ended, "the next message has come while a statement was at work"
            next_one.set()
            await late.wait()

    harness = shop(handler, park=True)
    for number in range(2):
        harness.send("orders", number, id=f"o-{number}")
    harness.drain()
    (letter,) = harness.sent("orders.dead")
    assert "while one of its tasks" in str(letter.headers)
    assert len(told) == 1
    assert rows(sink, "SELECT id FROM paid") == [("o-1",)]


@on_postgres
@pytest.mark.parametrize("swallows", [False, True])
@pytest.mark.parametrize("statement", ["SELECT pg_sleep(300)", DEAF_ONCE])
def test_a_statement_that_is_cancelled_leaves_a_usable_session(
    sink: str, shop: Shop, swallows: bool, statement: str
) -> None:
    """It ends in the server at once; its message is tried again on the same connection.

    Also if the server passes over the first request, as it does before the statement has begun.
    """
    insert = table(sink)
    seen: list[tuple[int, int]] = []

    async def handler(order: Any, tx: Any) -> None:
        connection = tx.connection
        seen.append((order.attempt, connection.info.backend_pid))
        await connection.execute(insert, (f"{order.id}-{order.attempt}", order.value))
        if order.attempt == 1:
            try:
                async with asyncio.timeout(0.05):
                    await tx.sql(statement)
            except TimeoutError:
                if not swallows:
                    raise

    harness = shop(handler, retries=1)
    for number in range(2):
        harness.send("orders", number, id=f"o-{number}")
    harness.drain()
    assert [attempt for attempt, _ in seen] == [1, 2, 1, 2]
    assert len({pid for _, pid in seen}) == 1
    assert rows(sink, "SELECT id FROM paid ORDER BY id") == [("o-0-2",), ("o-1-2",)]


@on_postgres
def test_a_server_that_does_not_cancel_in_time_loses_the_connection(
    sink: str, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not used in the middle of a statement: SinkUnavailable, and no attempt is counted."""
    monkeypatch.setattr("oncemq.library.sinks.awaited_postgres.CANCEL_S", 0.0)
    insert = table(sink)
    attempts: list[int] = []

    async def handler(order: Any, tx: Any) -> None:
        attempts.append(order.attempt)
        await tx.sql(insert, order.id, order.value)
        if len(attempts) == 1:
            async with asyncio.timeout(0.05):
                await tx.sql("SELECT pg_sleep(300)")

    harness = shop(handler)
    harness.send("orders", 1, id="o")
    with pytest.raises(SinkUnavailable, match="is lost"):
        harness.drain()
    harness.crash()
    harness.drain()
    assert attempts == [1, 1]
    assert rows(sink, "SELECT id FROM paid") == [("o",)]


@on_postgres
def test_statements_side_by_side_end_with_the_first_that_fails(sink: str, shop: Shop) -> None:
    """gather() raises while the other one runs: that is over before the rollback."""
    insert = table(sink)

    async def handler(order: Any, tx: Any) -> None:
        connection = tx.connection
        await connection.execute(insert, (order.id, order.value))
        if order.value == 0:
            await asyncio.gather(tx.sql("SELECT 1 / 0"), connection.execute("SELECT pg_sleep(300)"))
        else:
            one, two = await asyncio.gather(tx.sql("SELECT 1"), connection.execute("SELECT 2"))
            assert (await one.fetchone(), await two.fetchone()) == ((1,), (2,))

    harness = shop(handler, park=True)
    for number in range(2):
        harness.send("orders", number, id=f"o-{number}")
    harness.drain()
    (letter,) = harness.sent("orders.dead")
    assert "DivisionByZero" in str(letter.headers)
    assert rows(sink, "SELECT id FROM paid") == [("o-1",)]


@on_postgres
def test_a_stream_that_was_broken_off_is_over_before_the_commit(sink: str, shop: Shop) -> None:
    """psycopg reads what is left in a task of the loop: that is waited for, and is no fault."""
    insert = table(sink)

    async def handler(order: Any, tx: Any) -> None:
        await tx.sql(insert, order.id, order.value)
        async for _ in tx.connection.cursor().stream("SELECT * FROM generate_series(1, 100)"):
            break

    harness = shop(handler)
    for number in range(3):
        harness.send("orders", number, id=f"o-{number}")
    harness.drain()
    assert rows(sink, "SELECT count(*) FROM paid") == [(3,)]


@on_postgres
@pytest.mark.parametrize("what", ["stream", "copy", "pipeline"])
def test_what_a_handler_left_open_stops_the_consumer(
    sink: str, shop: Shop, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection cannot be brought to rest: nothing of the call is committed, and it is told."""
    monkeypatch.setattr("oncemq.library.sinks.awaited_postgres.REST_S", 0.05)
    insert = table(sink)
    kept: list[Any] = []

    async def handler(order: Any, tx: Any) -> None:
        connection = tx.connection
        await connection.execute(insert, (order.id, order.value))
        if what == "stream":
            kept.append(connection.cursor().stream("SELECT * FROM generate_series(1, 100000)"))
            await anext(kept[0])
        elif what == "copy":
            kept.append(connection.cursor().copy("COPY paid FROM STDIN"))
            await kept[0].__aenter__()
        else:
            kept.append(connection.pipeline())
            await kept[0].__aenter__()

    harness = shop(handler, park=True)
    harness.send("orders", 1, id="o")
    with pytest.raises(TransactionControl, match="returned with an open COPY, stream or pipeline"):
        harness.drain()
    assert rows(sink, "SELECT count(*) FROM paid") == [(0,)]
    kept.clear()


@on_postgres
@pytest.mark.parametrize("swallows", [False, True])
def test_a_connection_lost_in_a_statement_is_no_fault_of_the_message(
    sink: str, shop: Shop, swallows: bool
) -> None:
    """As for plain handlers: SinkUnavailable, and with a new connection the same attempt again."""
    insert = table(sink)
    attempts: list[int] = []

    async def handler(order: Any, tx: Any) -> None:
        attempts.append(order.attempt)
        await tx.sql(insert, order.id, order.value)
        if len(attempts) == 1:
            end = asyncio.ensure_future(asyncio.to_thread(end_session, sink, "AS mine"))
            try:
                await tx.connection.execute("SELECT pg_sleep(300) AS mine")
            except psycopg.OperationalError:
                if not swallows:
                    raise
            finally:
                await end

    harness = shop(handler)
    harness.send("orders", 1, id="o")
    with pytest.raises(SinkUnavailable) as caught:
        harness.drain()
    assert caught.value.__cause__ is not caught.value
    harness.crash()
    harness.drain()
    assert attempts == [1, 1]
    assert rows(sink, "SELECT id FROM paid") == [("o",)]


# --- real processes -------------------------------------------------------------------------------


class ConnectionShop(AsyncShop):
    """The same application by tx.connection."""

    def __init__(self, house: House, sink: str) -> None:
        super().__init__(house, sink)
        app = self.directory / "sqlapp.py"
        old = f'await tx.sql("INSERT INTO paid VALUES ({mark(sink)}, {mark(sink)})", '
        text = app.read_text()
        assert old in text
        new = old.replace("tx.sql(", "tx.connection.execute(") + "("
        app.write_text(
            text.replace(old, new).replace("number)\n    tx.state", "number))\n    tx.state")
        )


@pytest.mark.process
@pytest.mark.timeout(240)
@around_the_commit
def test_a_real_consumer_killed_around_its_commit(house: House, sink: str, place: str) -> None:
    """Killed before COMMIT, after it, or with its outputs unsent: each effect is there once."""
    house.broker()
    check_killed_once(ConnectionShop(house, sink), place)


@pytest.mark.timeout(240)
@on_postgres
def test_a_real_consumer_whose_session_ends_in_a_statement(house: House, sink: str) -> None:
    """It says so, lives on, and goes on by itself; nothing is lost or doubled."""
    house.broker()
    shop = ConnectionShop(house, sink)
    app = shop.directory / "sqlapp.py"
    wait = """if number == 2 and not (HERE / "was.here").exists():
        (HERE / "was.here").touch()
        await tx.connection.execute("SELECT pg_sleep(300) AS mine")
    """
    app.write_text(app.read_text().replace('tx.state["sum"]', wait + 'tx.state["sum"]', 1))
    shop.send("1", "2", "3")
    consumer = shop.consumer()
    end_session(sink, "AS mine")
    house.wait_for(consumer, "sink.unavailable")
    house.wait_for_committed("g", "orders", 3)
    consumer.stop(START_S, 0)
    shop.check([1, 2, 3])


@pytest.mark.process
@pytest.mark.timeout(240)
def test_kills_of_consumer_and_server(
    house: House, sink: str, request: pytest.FixtureRequest, rng: random.Random
) -> None:
    """Killed again and again, between statements and in commits: count and sum are exact."""
    house.broker()
    server = None if sink.startswith("sqlite") else request.getfixturevalue("postgres_server")
    check_storm(ConnectionShop(house, sink), server, 2_000, 4, rng)
