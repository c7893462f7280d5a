"""`outbox.create` and `outbox.send` through every kind of connection."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

import oncemq
from oncemq import outbox
from oncemq.codec.values import decode_headers, decode_value
from oncemq.errors import (
    IdConflict,
    IdRequired,
    InvalidName,
    NotSupported,
    TooLarge,
    TransactionRequired,
    ValueNotEncodable,
)
from tests.library.outbox.users import (
    ALL_KINDS,
    POSTGRES_KINDS,
    SQLITE_KINDS,
    User,
    ids_of,
    rows_of,
    sqlite_url,
    use_psycopg,
    use_sqlite3,
)


@pytest.fixture
def user(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[User]:
    dialect, kind = request.param
    if dialect == "sqlite":
        users = SQLITE_KINDS[kind](sqlite_url(tmp_path))
    else:
        users = POSTGRES_KINDS[kind](request.getfixturevalue("postgres_url"))
    user = next(users)
    outbox.create(user.connection)
    user.execute("CREATE TABLE orders (id TEXT PRIMARY KEY)")
    user.commit()
    yield user
    user.rollback()
    assert next(users, None) is None


every_kind = pytest.mark.parametrize("user", ALL_KINDS, indirect=True)


@every_kind
def test_a_committed_transaction_leaves_its_messages(user: User) -> None:
    """What was sent is in the table as it was given, in the order of send, once committed."""
    assert outbox.send(
        user.connection, "orders", {"b": 1, "a": None}, id="o-1", key="alice", headers={"h": b"x"}
    )
    assert outbox.send(user.connection, "orders", b"\0\xff", id=b"\xfe")
    assert rows_of(user.url) == []
    user.commit()

    first, second = rows_of(user.url)
    assert first[1:4] == ("orders", b"so-1", b"alice")
    assert decode_value(first.encoding, first.value) == {"a": None, "b": 1}
    assert decode_headers(first.headers) == {"h": b"x"}
    assert second[1:-1] == ("orders", b"b\xfe", None, 0, b"\0\xff", b"")
    assert first.created_at_ms <= second.created_at_ms
    assert first.place < second.place


@every_kind
def test_a_transaction_rolled_back_leaves_nothing(user: User) -> None:
    """Message and order share one fate."""
    user.execute("INSERT INTO orders (id) VALUES ('o-1')")
    outbox.send(user.connection, "orders", "x", id="o-1")
    user.rollback()
    user.execute("INSERT INTO orders (id) VALUES ('o-1')")  # it is not there
    assert outbox.send(user.connection, "orders", "y", id="o-1"), "it never was there"
    user.commit()
    assert ids_of(user.url) == ["o-1"]


@every_kind
def test_the_same_message_again_is_there_already(user: User) -> None:
    """An id with the same body is one row, in the same transaction and in a later one."""
    same = ({"a": 1, "b": 2}, {"b": 2, "a": 1})
    told = [outbox.send(user.connection, "orders", value, id="o-1", key="k") for value in same]
    user.commit()
    told.append(outbox.send(user.connection, "orders", {"a": 1, "b": 2}, id="o-1", key=b"k"))
    told.append(outbox.send(user.connection, "other", {"a": 1, "b": 2}, id="o-1", key="k"))
    user.commit()
    assert told == [True, False, False, True]
    assert len(rows_of(user.url)) == 2


@every_kind
@pytest.mark.parametrize(
    ("value", "key"), [("other", "k"), ("value", "l"), ("value", None), (b"value", "k")]
)
def test_an_id_with_another_body_is_refused(user: User, value: Any, key: str | None) -> None:
    """IdConflict names the id; the transaction is not broken by it."""
    outbox.send(user.connection, "orders", "value", id="o-1", key="k")
    user.commit()
    user.execute("INSERT INTO orders (id) VALUES ('o-2')")
    with pytest.raises(IdConflict, match="'o-1'"):
        outbox.send(user.connection, "orders", value, id="o-1", key=key)
    assert outbox.send(user.connection, "orders", "value", id="o-2")
    user.commit()
    assert ids_of(user.url) == ["o-1", "o-2"]


@every_kind
def test_create_is_idempotent(user: User) -> None:
    """A second `create` keeps the rows."""
    outbox.send(user.connection, "orders", "x", id="o-1")
    user.commit()
    outbox.create(user.connection)
    user.commit()
    assert ids_of(user.url) == ["o-1"]


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"topic": "a/b"}, InvalidName),
        ({"topic": "a.dead"}, InvalidName),
        ({"id": None}, IdRequired),
        ({"id": ""}, InvalidName),
        ({"id": 7}, InvalidName),
        ({"id": "x" * 129}, TooLarge),
        ({"key": "x" * 1025}, TooLarge),
        ({"value": b"x" * (1024 * 1024 + 1)}, TooLarge),
        ({"value": {1: "x"}}, ValueNotEncodable),
        ({"value": object()}, ValueNotEncodable),
        ({"value": "\ud800"}, ValueNotEncodable),
        ({"headers": {"oncemq-x": b""}}, ValueNotEncodable),
        ({"headers": {"x": b"x" * 9000}}, TooLarge),
    ],
)
def test_what_could_not_be_sent_is_not_written(
    given: dict[str, Any], error: type[Exception], tmp_path: Path
) -> None:
    """Whatever a producer refuses is refused before a row is written."""
    for user in use_sqlite3(sqlite_url(tmp_path)):
        outbox.create(user.connection)
        arguments: dict[str, Any] = {"topic": "t", "value": "x", "id": "i", **given}
        topic, value = arguments.pop("topic"), arguments.pop("value")
        with pytest.raises(error):
            outbox.send(user.connection, topic, value, **arguments)
        user.commit()
        assert rows_of(user.url) == []


def test_a_connection_without_transaction_is_refused(tmp_path: Path) -> None:
    """A row that is committed by itself would be the very thing an outbox is there to prevent."""
    path = str(tmp_path / "shop.db")
    plain = sqlite3.connect(path, isolation_level=None)
    engine = sqlalchemy.create_engine(f"sqlite:///{path}", isolation_level="AUTOCOMMIT")
    with contextlib.closing(plain), engine.connect() as connection:
        outbox.create(plain)
        for alone in (plain, connection):
            with pytest.raises(TransactionRequired, match="begin a transaction"):
                outbox.send(alone, "t", "x", id="i")
        plain.execute("BEGIN")
        assert outbox.send(plain, "t", "x", id="i")
        plain.execute("ROLLBACK")
    engine.dispose()
    assert rows_of(sqlite_url(tmp_path)) == []


@pytest.mark.process
def test_a_postgres_connection_without_transaction_is_refused(postgres_url: str) -> None:
    """Autocommit is refused, a block of `connection.transaction()` in it is not."""
    engine = sqlalchemy.create_engine(
        postgres_url.replace("postgresql:", "postgresql+psycopg:"), isolation_level="AUTOCOMMIT"
    )
    with psycopg.connect(postgres_url, autocommit=True) as plain, engine.connect() as connection:
        outbox.create(plain)
        for alone in (plain, connection):
            with pytest.raises(TransactionRequired):
                outbox.send(alone, "t", "x", id="i")
        with plain.transaction():
            assert outbox.send(plain, "t", "x", id="i")
    engine.dispose()
    assert ids_of(postgres_url) == ["i"]


def test_a_sqlalchemy_begin_of_ones_own_counts(tmp_path: Path) -> None:
    """The usual recipe for SQLite (driver in autocommit, BEGIN by an event) is a transaction."""
    engine = sqlalchemy.create_engine(sqlite_url(tmp_path))

    @sqlalchemy.event.listens_for(engine, "connect")
    def on_connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None

    @sqlalchemy.event.listens_for(engine, "begin")
    def on_begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    with engine.begin() as connection:
        outbox.create(connection)
    with engine.connect() as connection:
        assert outbox.send(connection, "t", "x", id="i")
        connection.rollback()
        assert outbox.send(connection, "t", "x", id="j")
        connection.commit()
    engine.dispose()
    assert ids_of(sqlite_url(tmp_path)) == ["j"]


def test_other_connections_are_told_apart() -> None:
    """What is no known connection is refused by its type; async ones with the way to do it."""
    with pytest.raises(NotSupported, match="object") as plain:
        outbox.create(object())
    assert "sqlite3, psycopg 3" in plain.value.hint
    session = AsyncSession()
    with pytest.raises(NotSupported, match="AsyncSession") as without_await:
        outbox.send(session, "t", "x", id="i")
    assert "run_sync(outbox.send" in without_await.value.hint


def test_an_async_session_sends_by_run_sync(tmp_path: Path) -> None:
    """The hint for async users is true."""
    url = sqlite_url(tmp_path)

    async def use() -> None:
        engine = create_async_engine(url.replace("sqlite:", "sqlite+aiosqlite:"))
        async with AsyncSession(engine) as session:
            await session.run_sync(outbox.create)
            await session.commit()
            assert await session.run_sync(outbox.send, "t", "x", id="i")
            await session.rollback()
            assert await session.run_sync(outbox.send, "t", "x", id="j")
            await session.commit()
        await engine.dispose()

    asyncio.run(use())
    assert ids_of(url) == ["j"]


@pytest.mark.process
def test_two_transactions_with_one_id_wait_for_each_other(postgres_url: str) -> None:
    """The second learns what became of the first: a copy of it is no-op, or a row of its own."""
    for commit, expected in ((True, False), (False, True)):
        told: list[bool] = []
        message_id = f"i-{commit}"
        users = [next(use_psycopg(postgres_url)) for _ in range(2)]
        first, second = users
        outbox.create(first.connection)
        first.commit()
        outbox.send(first.connection, "t", "x", id=message_id)

        def send(user: User = second, name: str = message_id, to: list[bool] = told) -> None:
            to.append(outbox.send(user.connection, "t", "x", id=name))
            user.commit()

        thread = threading.Thread(target=send)
        thread.start()
        with psycopg.connect(postgres_url, autocommit=True) as watcher:
            waiting = "SELECT 1 FROM pg_locks WHERE NOT granted"
            while not watcher.execute(waiting).fetchall():
                assert thread.is_alive(), "it did not wait"
        (first.commit if commit else first.rollback)()
        thread.join()
        assert told == [expected]
        assert message_id in ids_of(postgres_url)
        for user in users:
            user.connection.close()


@pytest.mark.process
def test_workers_may_create_together(postgres_url: str) -> None:
    """Programs that start at the same time make one table, and none of them fails."""
    failures: list[BaseException] = []
    gate = threading.Barrier(8)

    def work() -> None:
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            gate.wait()
            try:
                outbox.create(connection)
            except psycopg.Error as error:
                failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert rows_of(postgres_url) == []


def test_it_is_found_where_the_page_says() -> None:
    """`from oncemq import outbox` and `oncemq.outbox` are one module."""
    assert oncemq.outbox is outbox
    assert outbox.__all__ == ["create", "send"]
