"""Async handlers with a sink: `await tx.sql(...)` runs beside the loop, inside the same one commit."""

from __future__ import annotations

import asyncio
import random
import threading
from typing import Any

import psycopg
import pytest

from oncemq.chaos.programs import wait_until
from oncemq.errors import (
    HandlerFailed,
    NotAHandler,
    OnceMQError,
    SinkUnavailable,
    TransactionControl,
)
from oncemq.library.sinks.awaited import Statements
from tests.process.house import START_S, House
from tests.sql.client import outside, rows, run
from tests.sql.conftest import Shop, table
from tests.sql.test_processes import Shop as ProcessShop
from tests.sql.test_processes import around_the_commit, check_killed_once, check_storm

on_postgres = pytest.mark.parametrize(
    "sink", [pytest.param("postgresql", marks=pytest.mark.process)], indirect=True
)
DEAF_ONCE = """DO $$ BEGIN PERFORM pg_sleep(300);
    EXCEPTION WHEN query_canceled THEN PERFORM pg_sleep(300); END $$"""


def test_rows_state_outputs_and_offset_are_one_commit(sink: str, shop: Shop) -> None:
    """The same promise as for plain handlers: everything dies once at each step of the commit."""
    insert = table(sink)

    async def handler(order: Any, tx: Any) -> None:
        await tx.sql(insert, order.id, order.value)
        tx.state["sum"] = tx.state.get("sum", 0) + order.value
        tx.send("out", order.value)

    harness = shop(handler)
    for number in range(8):
        harness.send("orders", number, id=f"o-{number}")
    harness.assert_exactly_once()
    assert len(harness.crashes) == 6
    assert rows(sink, "SELECT count(*), sum(cents) FROM paid") == [(8, 28)]
    assert harness.state("g") == {"sum": 28}
    assert [message.value for message in harness.sent("out")] == list(range(8))


def test_what_a_cursor_gives(sink: str, shop: Shop) -> None:
    """Rows one by one, some, all, and by iteration; names and counts; one mapping names values."""
    insert = table(sink)
    named = ":low" if sink.startswith("sqlite") else "%(low)s"
    seen: list[Any] = []

    async def handler(order: Any, tx: Any) -> None:
        for number in range(600):
            inserted = await tx.sql(insert, f"{order.id}-{number}", number)
        seen.append(inserted.rowcount)
        query = f"SELECT id, cents FROM paid WHERE cents >= {named} ORDER BY cents"
        cursor = await tx.sql(query, {"low": 10})
        seen.append([column[0] for column in cursor.description])
        seen.append((await cursor.fetchone())[1])
        seen.append([row[1] for row in await cursor.fetchmany(2)])
        seen.append(len(await cursor.fetchall()))
        seen.append(await cursor.fetchone())
        seen.append([row[1] async for row in await tx.sql(query, {"low": 1})])

    harness = shop(handler)
    harness.send("orders", 1, id="o")
    harness.drain()
    assert seen == [1, ["id", "cents"], 10, [11, 12], 587, None, list(range(1, 600))]


def test_a_message_that_raises_has_no_rows(sink: str, shop: Shop) -> None:
    """Each message has its savepoint, also when the driver refuses its statement."""
    insert = table(sink)

    async def handler(order: Any, tx: Any) -> None:
        await tx.sql(insert, f"{order.id}-first", 1)
        await tx.sql(insert, order.id, order.value)
        if order.value == 2:
            raise LookupError("not this one")

    harness = shop(handler, park=True)
    for number in (0, -1, 2, 3):  # -1: refused by a CHECK
        harness.send("orders", number, id=f"o{number}")
    harness.drain()
    assert len(harness.sent("orders.dead")) == 2
    assert rows(sink, "SELECT id FROM paid ORDER BY id") == [
        ("o0",), ("o0-first",), ("o3",), ("o3-first",),
    ]  # fmt: skip


def test_lists_are_all_or_nothing(sink: str, shop: Shop) -> None:
    """A list whose handler raises leaves nothing; its messages come alone."""
    insert = table(sink)

    async def handler(orders: Any, tx: Any) -> None:
        for order in orders:
            await tx.sql(insert, order.id, order.value)
        if any(order.value == 1 for order in orders):
            raise LookupError("not with this one")

    harness = shop(handler, park=True, batch=True)
    for number in range(3):
        harness.send("orders", number, id=f"o-{number}")
    harness.drain()
    assert rows(sink, "SELECT id FROM paid ORDER BY id") == [("o-0",), ("o-2",)]


def test_transaction_control_is_refused(sink: str, shop: Shop) -> None:
    """The transaction belongs to the commit, awaited or not."""
    table(sink)
    refused: list[str] = []

    async def handler(order: Any, tx: Any) -> None:
        for text in ("COMMIT", "ROLLBACK", "BEGIN", "SAVEPOINT mine"):
            try:
                await tx.sql(text)
            except TransactionControl as error:
                refused.append(error.reason)

    harness = shop(handler)
    harness.send("orders", 1, id="o")
    harness.drain()
    assert len(refused) == 4


def test_the_loop_goes_on_while_a_statement_waits(sink: str, shop: Shop) -> None:
    """A row that somebody else has locked holds up the handler, and nothing else of the loop."""
    insert = table(sink)
    run(sink, "INSERT INTO paid VALUES ('x', 1)")
    ticks: list[int] = []

    async def tick(let_go: threading.Event) -> None:
        while True:
            ticks.append(1)
            if len(ticks) == 5:
                let_go.set()
            await asyncio.sleep(0.01)

    async def handler(order: Any, tx: Any) -> None:
        let_go, locked = threading.Event(), threading.Event()
        other = threading.Thread(target=lock, args=(sink, locked, let_go))
        other.start()
        await asyncio.to_thread(locked.wait, 30)
        ticker = asyncio.ensure_future(tick(let_go))
        await tx.sql("UPDATE paid SET cents = cents + 1 WHERE id = 'x'")
        ticker.cancel()
        await asyncio.to_thread(other.join)
        await tx.sql(insert, order.id, order.value)

    harness = shop(handler)
    harness.send("orders", 1, id="o")
    harness.drain()
    assert len(ticks) >= 5
    assert rows(sink, "SELECT id, cents FROM paid ORDER BY id") == [("o", 1), ("x", 12)]


def lock(sink: str, locked: threading.Event, let_go: threading.Event) -> None:
    """Hold a row until told to let it go."""
    with outside(sink) as connection:
        connection.execute("BEGIN")
        connection.execute("UPDATE paid SET cents = cents + 10 WHERE id = 'x'")
        locked.set()
        let_go.wait(30)
        connection.execute("COMMIT")


def test_statements_side_by_side_follow_each_other(sink: str, shop: Shop) -> None:
    """gather() is fine: one connection, one statement at a time, in the order of the awaits."""
    insert = table(sink)

    async def handler(order: Any, tx: Any) -> None:
        await asyncio.gather(*(tx.sql(insert, f"{order.id}-{n}", n) for n in range(20)))
        cursor = await tx.sql("SELECT count(*) FROM paid")
        assert (await cursor.fetchone())[0] == 20 * (order.value + 1)

    harness = shop(handler)
    for number in range(3):
        harness.send("orders", number, id=f"o-{number}")
    harness.drain()
    assert rows(sink, "SELECT count(*) FROM paid") == [(60,)]


def test_a_statement_that_nobody_awaits_stops_the_consumer(sink: str, shop: Shop) -> None:
    """It would not be executed: told at once, with what to write, and nothing is committed."""
    insert = table(sink)

    async def handler(order: Any, tx: Any) -> None:
        tx.sql(insert, order.id, order.value)

    harness = shop(handler, park=True)
    harness.send("orders", 1, id="o")
    with pytest.raises((HandlerFailed, OnceMQError), match="not awaited"):
        harness.drain()
    assert rows(sink, "SELECT count(*) FROM paid") == [(0,)]


def test_a_statement_that_is_given_up_fails_its_message(sink: str, shop: Shop) -> None:
    """Nobody knows what it did when its wait was cancelled: the message is tried again."""
    insert = table(sink)
    run(sink, "INSERT INTO paid VALUES ('x', 1)")
    attempts: list[int] = []

    async def handler(order: Any, tx: Any) -> None:
        attempts.append(order.attempt)
        if order.attempt == 1:
            let_go, locked = threading.Event(), threading.Event()
            other = threading.Thread(target=lock, args=(sink, locked, let_go))
            other.start()
            await asyncio.to_thread(locked.wait, 30)
            try:
                update = tx.sql("UPDATE paid SET cents = cents + 100 WHERE id = 'x'")
                await asyncio.wait_for(update, 0.05)
            except TimeoutError:
                let_go.set()
                return  # as if nothing had happened
        await tx.sql(insert, order.id, order.value)

    harness = shop(handler, retries=1)
    harness.send("orders", 1, id="o")
    harness.drain()
    assert attempts == [1, 2]
    assert rows(sink, "SELECT id, cents FROM paid ORDER BY id") == [("o", 1), ("x", 11)]


def test_a_statement_is_awaited_once(sink: str, shop: Shop) -> None:
    """Kept and awaited again, it is refused: it is no query object."""
    insert = table(sink)
    told: list[str] = []

    async def handler(order: Any, tx: Any) -> None:
        statement = tx.sql(insert, order.id, order.value)
        await statement
        try:
            await statement
        except TransactionControl as error:
            told.append(error.reason)

    harness = shop(handler)
    harness.send("orders", 1, id="o")
    harness.drain()
    assert len(told) == 1
    assert rows(sink, "SELECT count(*) FROM paid") == [(1,)]


def test_there_is_no_connection_for_async_handlers(sink: str, shop: Shop) -> None:
    """It stops the consumer, which says what to write instead; what came before is committed."""
    insert = table(sink)

    async def handler(order: Any, tx: Any) -> None:
        await tx.sql(insert, order.id, order.value)
        if order.value:
            tx.connection.execute("SELECT 1")

    harness = shop(handler, park=True)
    harness.send("orders", 0, id="good")
    harness.send("orders", 1, id="bad")
    with pytest.raises((HandlerFailed, OnceMQError), match=r"async handlers have none") as caught:
        harness.drain()
    cause = caught.value.__cause__
    assert isinstance(cause, NotAHandler)
    assert "await tx.sql" in cause.hint
    assert rows(sink, "SELECT id FROM paid") == [("good",)]


def test_a_cursor_is_for_the_handler_that_made_it(sink: str, shop: Shop) -> None:
    """Kept for the next message it is refused, and nothing of that message is written."""
    insert = table(sink)
    kept: list[Any] = []

    async def handler(order: Any, tx: Any) -> None:
        kept.append(await tx.sql(insert, order.id, order.value))
        await kept[0].fetchall() if len(kept) > 1 else None

    harness = shop(handler, park=True)
    for number in range(2):
        harness.send("orders", number, id=f"o-{number}")
    harness.drain()
    assert rows(sink, "SELECT id FROM paid") == [("o-0",)]
    (letter,) = harness.sent("orders.dead")
    assert "until it returns" in str(letter.headers)


def test_a_task_of_an_earlier_message_is_refused(sink: str, shop: Shop) -> None:
    """Its rows would be those of the message at hand."""
    insert = table(sink)
    told: list[str] = []
    waits: list[Any] = []
    second = asyncio.Event()

    async def late(tx: Any) -> None:
        await second.wait()
        try:
            await tx.sql(insert, "late", 1)
        except TransactionControl as error:
            told.append(error.reason)

    async def handler(order: Any, tx: Any) -> None:
        await tx.sql(insert, order.id, order.value)
        if order.value == 0:
            waits.append(asyncio.ensure_future(late(tx)))
        else:
            second.set()
            await waits[0]

    harness = shop(handler)
    for number in range(2):
        harness.send("orders", number, id=f"o-{number}")
    harness.drain()
    assert len(told) == 1
    assert rows(sink, "SELECT id FROM paid ORDER BY id") == [("o-0",), ("o-1",)]


def test_what_a_task_left_running_fails_the_message(sink: str, shop: Shop) -> None:
    """It is over before the rollback, and what the task does later is refused, not committed."""
    insert = table(sink)
    run(sink, "INSERT INTO paid VALUES ('x', 1)")
    next_one, late = asyncio.Event(), asyncio.Event()
    tasks: set[Any] = set()
    told: list[str] = []

    async def leftover(tx: Any, let_go: threading.Event) -> None:
        asyncio.get_running_loop().call_later(0.3, let_go.set)
        try:
            await tx.sql("UPDATE paid SET cents = cents + 100 WHERE id = 'x'")
        except psycopg.errors.QueryCanceled:
            let_go.set()
        await asyncio.wait_for(next_one.wait(), 30)
        try:
            await tx.sql(insert, "late", 1)
        except OnceMQError as error:
            told.append(error.reason)
        late.set()

    async def handler(order: Any, tx: Any) -> None:
        if order.value == 0:
            let_go, locked = threading.Event(), threading.Event()
            threads.append(threading.Thread(target=lock, args=(sink, locked, let_go)))
            threads[-1].start()
            await asyncio.to_thread(locked.wait, 30)
            tasks.add(asyncio.ensure_future(leftover(tx, let_go)))
            await asyncio.sleep(0.1)
        else:
            next_one.set()
            await late.wait()
            await tx.sql(insert, order.id, order.value)

    threads: list[threading.Thread] = []
    harness = shop(handler, park=True)
    for number in range(2):
        harness.send("orders", number, id=f"o-{number}")
    harness.drain()
    threads[0].join()
    (letter,) = harness.sent("orders.dead")
    assert "while one of its tasks" in str(letter.headers)
    assert len(told) == 1
    assert rows(sink, "SELECT id, cents FROM paid ORDER BY id") == [("o-1", 1), ("x", 11)]


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
        pid = await (await tx.sql("SELECT pg_backend_pid()")).fetchone()
        seen.append((order.attempt, pid))
        await tx.sql(insert, f"{order.id}-{order.attempt}", order.value)
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
def test_statements_side_by_side_end_with_the_first_that_fails(sink: str, shop: Shop) -> None:
    """gather() raises while the others run or wait: that is over before the rollback."""
    insert = table(sink)

    async def handler(order: Any, tx: Any) -> None:
        await tx.sql(insert, order.id, order.value)
        slow = [tx.sql("SELECT pg_sleep(300)") for _ in range(2)] if order.value == 0 else []
        await asyncio.gather(tx.sql(f"SELECT 1 / {order.value}"), *slow)

    harness = shop(handler, park=True)
    for number in range(2):
        harness.send("orders", number, id=f"o-{number}")
    harness.drain()
    (letter,) = harness.sent("orders.dead")
    assert "DivisionByZero" in str(letter.headers)
    assert rows(sink, "SELECT id FROM paid") == [("o-1",)]


@on_postgres
@pytest.mark.parametrize("swallows", [False, True])
def test_a_connection_lost_in_a_statement_is_no_fault_of_the_message(
    sink: str, shop: Shop, swallows: bool
) -> None:
    """SinkUnavailable, and with a new connection the same attempt again."""
    insert = table(sink)
    attempts: list[int] = []

    async def handler(order: Any, tx: Any) -> None:
        attempts.append(order.attempt)
        await tx.sql(insert, order.id, order.value)
        if len(attempts) == 1:
            end = asyncio.ensure_future(asyncio.to_thread(end_session, sink, "AS mine"))
            try:
                await tx.sql("SELECT pg_sleep(300) AS mine")
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


def end_session(sink: str, sql: str) -> None:
    """End the session that executes a statement with `sql` in it, once there is one."""
    query = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE pid <> pg_backend_pid() AND state = 'active' AND query LIKE %s"
    )
    with outside(sink) as connection:
        wait_until(lambda: connection.execute(query, (f"%{sql}%",)).fetchall(), 30, sql)


class Held:
    """A session whose statements last until they are let go."""

    interrupts = False

    def __init__(self) -> None:
        self.begun, self.let_go = threading.Event(), threading.Event()
        self.at_work = 0
        self.most_at_work = 0

    def sql(self, query: Any, parameters: Any) -> Any:
        self.at_work += 1
        self.most_at_work = max(self.most_at_work, self.at_work)
        self.begun.set()
        self.let_go.wait(30)
        self.at_work -= 1
        return query


def test_nothing_touches_the_connection_while_a_thread_is_at_work() -> None:
    """The end of a message waits for what was given up, even if that wait is cancelled as well."""

    async def scenario() -> None:
        held = Held()
        statements = Statements(held)  # type: ignore[arg-type]
        statements.begin_message()
        both = [asyncio.ensure_future(statement(statements, n)) for n in range(2)]
        await asyncio.to_thread(held.begun.wait, 30)
        for waiter in both:
            waiter.cancel()
        await asyncio.wait(both)
        resting = asyncio.ensure_future(statements.rest())
        await asyncio.sleep(0.02)
        assert not resting.done()
        resting.cancel()
        await asyncio.sleep(0.02)
        assert not resting.done(), "a cancelled wait left a thread at work"
        held.let_go.set()
        await asyncio.wait([resting])
        assert resting.cancelled()
        assert held.at_work == 0
        assert held.most_at_work == 1, "two statements at once on one connection"
        wrong = statements.end_message()
        assert wrong is not None
        assert "cancelled a statement" in wrong.reason
        assert statements.end_message() is None

    async def statement(statements: Statements, number: int) -> None:
        await statements.statement(f"statement {number}", ())

    asyncio.run(scenario())


@pytest.mark.process
@pytest.mark.timeout(240)
@around_the_commit
def test_a_real_consumer_killed_around_its_commit(house: House, sink: str, place: str) -> None:
    """Killed before COMMIT, after it, or with its outputs unsent: each effect is there once."""
    house.broker()
    check_killed_once(AsyncShop(house, sink), place)


class AsyncShop(ProcessShop):
    """The application of the process tests, with an async handler."""

    def __init__(self, house: House, sink: str) -> None:
        super().__init__(house, sink)
        app = self.directory / "sqlapp.py"
        text = app.read_text().replace("def handler(", "async def handler(")
        app.write_text(text.replace("    tx.sql(", "    await tx.sql("))


@pytest.mark.timeout(240)
@on_postgres
def test_a_real_consumer_whose_session_ends_in_a_statement(house: House, sink: str) -> None:
    """It says so, lives on, and goes on by itself; nothing is lost or doubled."""
    house.broker()
    shop = AsyncShop(house, sink)
    app = shop.directory / "sqlapp.py"
    wait = """if number == 2 and not (HERE / "was.here").exists():
        (HERE / "was.here").touch()
        await tx.sql("SELECT pg_sleep(300) AS mine")
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
    check_storm(AsyncShop(house, sink), server, 2_000, 4, rng)
