"""What a handler may do with a sink: its statements and the offset are one commit."""

from __future__ import annotations

from functools import lru_cache

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session
from sqlalchemy.pool import StaticPool

from oncemq import App, Harness
from oncemq.errors import (
    HandlerFailed,
    NoSink,
    NotSupported,
    OnceMQError,
    SinkUnavailable,
    TransactionControl,
)
from oncemq.library.testkit.crash_steps import Crash
from oncemq.library.testkit.system import LocalSystem
from oncemq.shells.tables.session import IDLE
from tests.sql.client import rows, run
from tests.sql.conftest import Shop, table


def test_statements_state_outputs_and_offset_are_one_commit(sink: str, shop: Shop) -> None:
    """Rows of the user, tx.state and outgoing messages are all there once, also after a crash."""
    insert = table(sink)

    def handler(order, tx):
        tx.sql(insert, order.id, order.value)
        tx.state["sum"] = tx.state.get("sum", 0) + order.value
        tx.send("out", order.value)

    harness = shop(handler)
    for number in range(5):
        harness.send("orders", number, id=f"o-{number}")
        harness.drain()
        if number % 2:
            harness.crash()
    harness.send("orders", 1, id="o-1")
    harness.drain()
    assert rows(sink, "SELECT count(*), sum(cents) FROM paid") == [(5, 10)]
    assert harness.state("g") == {"sum": 10}
    assert [m.value for m in harness.sent("out")] == [0, 1, 2, 3, 4]


def test_a_handler_that_raises_has_done_nothing_and_its_neighbours_stay(
    sink: str, shop: Shop
) -> None:
    """Each message has a savepoint: of three in a batch the one that raises leaves no trace."""
    insert = table(sink)
    raised = []

    def handler(order, tx):
        tx.sql(insert, order.id, order.value)
        if order.value == 1 and len(raised) < 2:
            raised.append(order.attempt)
            raise LookupError("not yet")

    harness = shop(handler, retries=2)
    for number in range(3):
        harness.send("orders", number, id=f"o-{number}")
    harness.drain()
    assert raised == [1, 2]
    assert rows(sink, "SELECT id FROM paid ORDER BY id") == [("o-0",), ("o-1",), ("o-2",)]


def test_an_error_of_the_database_is_the_handlers_own(sink: str, shop: Shop) -> None:
    """A constraint that fails can be caught, or fails the message; earlier ones are committed."""
    insert = table(sink)

    def handler(order, tx):
        tx.sql(insert, order.id, order.value)

    harness = shop(handler)
    harness.send("orders", 5, id="good")
    harness.send("orders", -5, id="bad")
    with pytest.raises(HandlerFailed, match=r"(?i)check|constraint"):
        harness.drain()
    assert rows(sink, "SELECT id FROM paid") == [("good",)]


def test_named_parameters_and_reading_back(sink: str, shop: Shop) -> None:
    """One mapping is named parameters, and the cursor is the driver's."""
    insert = table(sink)
    named = ":id" if sink.startswith("sqlite") else "%(id)s"
    seen = []

    def handler(order, tx):
        tx.sql(insert, order.id, order.value)
        cursor = tx.sql(f"SELECT cents FROM paid WHERE id = {named}", {"id": order.id})
        seen.append(cursor.fetchone()[0])
        assert tx.sql("SELECT 1").fetchall()[0][0] == 1

    harness = shop(handler)
    harness.send("orders", 7, id="o-7")
    harness.drain()
    assert seen == [7]


@pytest.mark.parametrize(
    "text",
    [
        "COMMIT",
        " /* a */ rollback",
        "BEGIN",
        "SAVEPOINT mine",
        "RELEASE SAVEPOINT oncemq_message",
        "ROLLBACK TO SAVEPOINT oncemq_message",
    ],
)
def test_transaction_control_is_refused_before_it_happens(sink: str, shop: Shop, text: str) -> None:
    """By tx.sql and by tx.connection: a typed error, and nothing of the message stays."""
    insert = table(sink)
    by_connection = []

    def handler(order, tx):
        tx.sql(insert, order.id, order.value)
        if order.value == 0:
            return
        if by_connection:
            tx.connection.execute(text)
        else:
            tx.sql(text)

    for way in range(2):
        by_connection[:] = [True] * way
        harness = shop(handler)
        harness.send("orders", 0, id=f"good-{way}")
        harness.send("orders", 1, id=f"bad-{way}")
        with pytest.raises(HandlerFailed, match="refused in a handler") as caught:
            harness.drain()
        assert isinstance(caught.value.__cause__, TransactionControl)
        run(sink, "DELETE FROM oncemq_ledger")  # the next harness has a broker of its own
    assert rows(sink, "SELECT id FROM paid ORDER BY id") == [("good-0",), ("good-1",)]


@pytest.mark.parametrize("method", ["commit", "rollback", "close"])
def test_the_connection_does_not_end_the_transaction(sink: str, shop: Shop, method: str) -> None:
    """commit, rollback and close of tx.connection are refused."""
    insert = table(sink)

    def handler(order, tx):
        tx.connection.execute(insert, (order.id, order.value))
        if order.value:
            getattr(tx.connection, method)()

    harness = shop(handler)
    harness.send("orders", 0, id="good")
    harness.send("orders", 1, id="bad")
    with pytest.raises(HandlerFailed, match=rf"{method}\(\)"):
        harness.drain()
    assert rows(sink, "SELECT id FROM paid") == [("good",)]


def test_without_a_sink_there_is_no_sql() -> None:
    """NoSink says what to write."""
    app = App()

    @app.consumer("orders", group="g", retries=0, park=False)
    def handler(order, tx):
        with pytest.raises(NoSink):
            tx.connection
        tx.sql("SELECT 1")

    harness = Harness(app)
    harness.send("orders", 1, id="1")
    with pytest.raises(HandlerFailed) as caught:
        harness.drain()
    assert isinstance(caught.value.__cause__, NoSink)


def test_a_handler_that_uses_no_sql_commits_all_the_same(sink: str, shop: Shop) -> None:
    """The ledger lives in the database whether or not a message used it."""

    def handler(order, tx):
        tx.state["n"] = tx.state.get("n", 0) + 1

    harness = shop(handler, partitions=3)
    for number in range(9):
        harness.send("orders", number, key=str(number))
    harness.drain()
    harness.crash()
    assert rows(sink, "SELECT count(*), sum(commit_no) > 0 FROM oncemq_ledger")[0][0] == 3


def test_a_tx_is_over_when_its_handler_has_returned(sink: str, shop: Shop) -> None:
    """A Tx kept for later is refused."""
    kept = []
    harness = shop(lambda order, tx: kept.append(tx))
    harness.send("orders", 1, id="1")
    harness.drain()
    with pytest.raises(OnceMQError, match="this Tx is over"):
        kept[0].sql("SELECT 1")


def test_a_call_starts_when_the_commit_before_it_is_done(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call is never given a connection that still holds the last call's transaction."""
    idle = []
    start_call = LocalSystem.start_call

    def watched(self, actor, run):
        idle.append(actor.sink._place == IDLE)
        start_call(self, actor, run)

    monkeypatch.setattr(LocalSystem, "start_call", watched)

    def handler(order, tx):
        tx.state["large"] = bytes(5 << 20)  # ends the call at this message

    harness = shop(handler)
    for number in range(3):
        harness.send("orders", number, id=f"o-{number}")
    harness.drain()
    assert idle == [True] * 3


def test_a_deferred_constraint_is_the_fault_of_its_message(sink: str, shop: Shop) -> None:
    """What PostgreSQL checks at COMMIT is checked while the handler can be told; the rest stays."""
    if sink.startswith("sqlite"):
        pytest.skip("SQLite enforces no foreign keys on a connection of ours")
    run(
        sink,
        "CREATE TABLE customer (id INTEGER PRIMARY KEY)",
        "CREATE TABLE bill (n INTEGER, customer INTEGER REFERENCES customer (id)"
        " DEFERRABLE INITIALLY DEFERRED)",
        "INSERT INTO customer VALUES (1)",
    )

    def handler(order, tx):
        tx.sql("INSERT INTO bill VALUES (%s, %s)", order.value, 9 if order.value == 2 else 1)

    harness = shop(handler)
    for number in range(4):
        harness.send("orders", number, id=f"o-{number}")
    with pytest.raises(HandlerFailed, match="message o-2"):
        harness.drain()
    assert rows(sink, "SELECT n FROM bill ORDER BY n") == [(0,), (1,)]


def test_a_transaction_that_sqlite_itself_ended_stops_the_consumer(sink: str, shop: Shop) -> None:
    """INSERT OR ROLLBACK takes all messages of the call back: nothing of it is committed."""
    if not sink.startswith("sqlite"):
        pytest.skip("PostgreSQL has no statement that ends a transaction by itself")
    insert = table(sink)

    def handler(order, tx):
        if order.value < 2:
            tx.sql(insert, order.id, order.value)
        else:
            tx.sql("INSERT OR ROLLBACK INTO paid VALUES ('o-0', 1)")

    harness = shop(handler, retries=3)
    for number in range(3):
        harness.send("orders", number, id=f"o-{number}")
    with pytest.raises(TransactionControl, match="the handler ended the transaction"):
        harness.drain()
    assert rows(sink, "SELECT count(*) FROM paid") == [(0,)]
    assert rows(sink, "SELECT commit_no FROM oncemq_ledger") == [(0,)]


def test_a_full_disk_of_the_server_is_no_fault_of_the_message(sink: str, shop: Shop) -> None:
    """Nothing is parked, however often it is tried: the database is said to be unavailable."""
    if sink.startswith("sqlite"):
        pytest.skip("SQLite says that it is full with an error that handlers cannot make")
    insert = table(sink)
    full = [True]

    def handler(order, tx):
        tx.sql(insert, order.id, order.value)
        if full[0]:
            tx.sql("DO $$ BEGIN RAISE EXCEPTION 'no room' USING ERRCODE = 'disk_full'; END $$")

    harness = shop(handler, park=True)
    harness.send("orders", 1, id="o-1")
    for _ in range(2):
        with pytest.raises(SinkUnavailable, match="no room"):
            harness.drain()
    full[0] = False
    harness.drain()
    assert rows(sink, "SELECT id FROM paid") == [("o-1",)]
    assert harness.sent("orders.dead") == []


def test_partitions_of_one_process_take_turns_at_a_file(sink: str, shop: Shop) -> None:
    """Many partitions write to one database, and all of their rows are there once."""
    insert = table(sink)
    harness = shop(lambda order, tx: tx.sql(insert, order.id, order.value), partitions=6)
    for number in range(60):
        harness.send("orders", number, id=f"o-{number}", key=str(number))
    harness.drain()
    assert rows(sink, "SELECT count(*), sum(cents) FROM paid") == [(60, 1770)]


def test_a_parked_message_leaves_no_row_and_one_letter(sink: str, shop: Shop) -> None:
    """Its dead letter and the offset are a commit of their own; its neighbours have their rows."""
    insert = table(sink)

    def handler(order, tx):
        tx.sql(insert, order.id, order.value)
        if order.value == 1:
            raise LookupError("never")

    harness = shop(handler, retries=1, park=True)
    for number in range(4):
        harness.send("orders", number, id=f"o-{number}")
    harness.drain()
    harness.crash()
    harness.drain()
    assert rows(sink, "SELECT id FROM paid ORDER BY id") == [("o-0",), ("o-2",), ("o-3",)]
    assert len(harness.sent("orders.dead")) == 1


def test_the_connection_belongs_to_a_call_from_the_moment_it_is_decided(
    sink: str, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread of handlers may take a while to begin; a snapshot that is due waits meanwhile."""
    insert = table(sink)
    seen: list[bool] = []
    original = LocalSystem.start_call

    def start_call(self: Harness, actor, run) -> None:
        seen.append(actor.sink.must_wait(None))
        original(self, actor, run)

    monkeypatch.setattr(LocalSystem, "start_call", start_call)
    harness = shop(lambda message, tx: tx.sql(insert, message.id, 1))
    harness.send("orders", 1, id="a")
    harness.drain()
    [actor] = harness._system.actors.values()
    assert (seen, actor.sink.must_wait(None)) == ([True], False)


def test_a_message_that_kills_its_process_is_parked(sink: str, shop: Shop) -> None:
    """No handler is called for it then: the connection is free for the commit all the same."""
    insert = table(sink)

    def handle(message, tx) -> None:
        tx.sql(insert, message.id, 1)
        if message.id == "a":
            raise Crash

    harness = shop(handle, park=True, crash_retries=0)
    for name in "ab":
        harness.send("orders", 1, id=name)
    harness.drain()
    [letter] = harness.sent("orders.dead")
    assert letter.headers["oncemq-kind"] == b"crashed"
    assert rows(sink, "SELECT id FROM paid") == [("b",)]


def test_a_list_is_all_or_nothing_in_the_sink_too(sink: str, shop: Shop) -> None:
    """Nothing stays of a list whose handler raised; its messages are handled one by one then."""
    insert = table(sink)
    sizes = []

    def handler(orders, tx):
        sizes.append(len(orders))
        for order in orders:
            tx.sql(insert, order.id, order.value)
        if any(order.value == 1 for order in orders):
            raise LookupError("not with this one")

    harness = shop(handler, park=True, batch=True)
    for number in range(3):
        harness.send("orders", number, id=f"o-{number}")
    harness.drain()
    assert sizes[0] == 3
    assert set(sizes[1:]) == {1}
    assert rows(sink, "SELECT id FROM paid ORDER BY id") == [("o-0",), ("o-2",)]


def test_state_by_key_is_refused(sink: str) -> None:
    """Messages that run beside each other cannot share one transaction."""
    with pytest.raises(NotSupported, match="one transaction"):
        App().consumer("orders", group="g", sink=sink, state_by="key")(lambda m, tx: None)


def test_the_test_kit_dies_at_every_step(sink: str, shop: Shop) -> None:
    """Everything dies once at each step of the commit: rows, state and outputs are there once."""
    insert = table(sink)

    def handler(order, tx):
        tx.sql(insert, order.id, order.value)
        tx.state["sum"] = tx.state.get("sum", 0) + order.value
        tx.send("out", order.value)

    harness = shop(handler)
    for number in range(8):
        harness.send("orders", number, id=f"o-{number}")
    harness.assert_exactly_once()
    assert len(harness.crashes) == 6
    assert rows(sink, "SELECT count(*), sum(cents) FROM paid") == [(8, 28)]
    assert harness.state("g") == {"sum": 28}


def test_deferred_constraints_and_a_message_that_raises(sink: str, shop: Shop) -> None:
    """A message raises behind one that the database would refuse: each is parked for itself."""
    if sink.startswith("sqlite"):
        pytest.skip("SQLite enforces no foreign keys on a connection of ours")
    run(
        sink,
        "CREATE TABLE customer (id INTEGER PRIMARY KEY)",
        "CREATE TABLE bill (n INTEGER, customer INTEGER REFERENCES customer (id)"
        " DEFERRABLE INITIALLY DEFERRED)",
    )

    def handler(order, tx):
        if order.value == 0:
            tx.sql("INSERT INTO bill VALUES (0, 9)")
        if order.value == 1:
            raise LookupError("never")

    harness = shop(handler, park=True)
    for number in range(4):
        harness.send("orders", number, id=f"o-{number}")
    harness.drain()
    assert len(harness.sent("orders.dead")) == 2
    assert rows(sink, "SELECT count(*) FROM bill") == [(0,)]


def test_sqlalchemys_engine_writes_in_the_commit(sink: str, shop: Shop) -> None:
    """As docs/SQL.md shows it, on both databases."""
    table(sink)
    more = {} if sink.startswith("sqlite") else {"use_native_hstore": False}

    @lru_cache
    def engine_of(connection):
        return create_engine(
            "sqlite://" if sink.startswith("sqlite") else "postgresql+psycopg://",
            creator=lambda: connection,
            poolclass=StaticPool,
            pool_reset_on_return=None,
            skip_autocommit_rollback=True,
            **more,
        )

    def handler(order, tx):
        with Session(engine_of(tx.connection)) as session:
            session.execute(text("INSERT INTO paid VALUES (:id, 1)"), {"id": order.id})
            session.flush()
        if order.value == 1:
            raise LookupError("not this one")

    harness = shop(handler, park=True)
    for number in range(3):
        harness.send("orders", number, id=f"o-{number}")
    harness.drain()
    assert engine_of.cache_info().misses == 1
    assert rows(sink, "SELECT id FROM paid ORDER BY id") == [("o-0",), ("o-2",)]
