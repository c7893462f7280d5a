"""A user's database connection, of any known library, behind one interface.

The class of the connection tells the library. No database library is imported here: a program that
passes a connection has loaded its library already.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ...errors import NotSupported, TransactionRequired
from .table import POSTGRESQL, SQLITE, named, percent

Rows = list[tuple[Any, ...]]
_IDLE = 0  # the transaction status of libpq: no transaction
_DIALECTS = {SQLITE: SQLITE, POSTGRESQL: POSTGRESQL}


class Door(NamedTuple):
    """The way to run a statement in the transaction of a user's connection."""

    dialect: str
    run: Callable[[str, Sequence[Any]], Rows]
    # Whether a statement would be committed by itself: there is no transaction to be part of.
    commits_alone: Callable[[], bool]


def door_of(connection: Any) -> Door:
    """Raises NotSupported for an unknown kind."""
    for module, names, make in _KINDS:
        loaded = sys.modules.get(module)
        if loaded is not None and isinstance(
            connection, tuple(getattr(loaded, name) for name in names)
        ):
            return make(connection)
    kind = type(connection)
    hint = "pass a connection of sqlite3, psycopg 3, SQLAlchemy (or its Session) or Django"
    if kind.__name__.startswith("Async") or kind.__module__.startswith("aiosqlite"):
        hint = "with SQLAlchemy: await session.run_sync(outbox.send, topic, value, id=...)"
    raise NotSupported(f"an outbox cannot use a {kind.__module__}.{kind.__qualname__}", hint=hint)


def check_transaction(door: Door) -> None:
    """Raises TransactionRequired unless a write now would wait for the user's own COMMIT."""
    if door.commits_alone():
        raise TransactionRequired("this connection is in autocommit mode")


def _dialect(name: str) -> str:
    if name not in _DIALECTS:
        raise NotSupported(f"an outbox cannot be in {name}; use SQLite or PostgreSQL")
    return _DIALECTS[name]


def _fetch(cursor: Any) -> Rows:
    return [] if cursor.description is None else [tuple(row) for row in cursor.fetchall()]


def _sqlite3(connection: Any) -> Door:
    def run(sql: str, values: Sequence[Any]) -> Rows:
        cursor = connection.cursor()
        cursor.row_factory = None  # the user's own may give anything
        try:
            return _fetch(cursor.execute(sql, tuple(values)))
        finally:
            cursor.close()

    return Door(SQLITE, run, lambda: _sqlite_commits_alone(connection))


def _sqlite_commits_alone(connection: Any) -> bool:
    """Return whether the next statement would be a transaction of its own.

    In some modes the driver begins a transaction by itself.
    """
    alone = connection.isolation_level is None
    mode = getattr(connection, "autocommit", None)  # from Python 3.12 on it may rule instead
    if isinstance(mode, bool):
        alone = mode
    return alone and not connection.in_transaction


def _psycopg(connection: Any) -> Door:
    import psycopg

    def run(sql: str, values: Sequence[Any]) -> Rows:
        # Not connection.cursor(): the user may have set factories of other cursors and rows.
        with psycopg.Cursor(connection, row_factory=psycopg.rows.tuple_row) as cursor:
            return _fetch(cursor.execute(percent(sql), tuple(values) or None))

    return Door(
        POSTGRESQL,
        run,
        lambda: connection.autocommit and connection.info.transaction_status == _IDLE,
    )


def _sqlalchemy_session(session: Any) -> Door:
    return _sqlalchemy(session.connection())


def _sqlalchemy(connection: Any) -> Door:
    from sqlalchemy import text

    dialect = _dialect(connection.dialect.name)

    def run(sql: str, values: Sequence[Any]) -> Rows:
        statement, names = named(sql)
        result = connection.execute(text(statement), dict(zip(names, values, strict=True)))
        return [tuple(row) for row in result] if result.returns_rows else []

    def commits_alone() -> bool:
        if connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT":
            return True
        if dialect == SQLITE:
            run("SELECT 1", ())  # begins the transaction; some set-ups send a BEGIN of their own
            return _sqlite_commits_alone(connection.connection.driver_connection)
        return getattr(connection.connection.driver_connection, "autocommit", False) is True

    return Door(dialect, run, commits_alone)


def _django_proxy(proxy: Any) -> Door:
    from django.db import connections  # type: ignore[import-untyped]  # it has no types

    return _django(connections[proxy.alias])


def _django(connection: Any) -> Door:
    def run(sql: str, values: Sequence[Any]) -> Rows:
        with connection.cursor() as cursor:
            cursor.execute(percent(sql), tuple(values) or None)
            return _fetch(cursor)

    return Door(
        _dialect(connection.vendor),
        run,
        lambda: not connection.in_atomic_block and connection.get_autocommit(),
    )


_KINDS: tuple[tuple[str, tuple[str, ...], Callable[[Any], Door]], ...] = (
    ("sqlite3", ("Connection",), _sqlite3),
    ("psycopg", ("Connection",), _psycopg),
    ("sqlalchemy.engine", ("Connection",), _sqlalchemy),
    ("sqlalchemy.orm", ("Session", "scoped_session"), _sqlalchemy_session),
    ("django.utils.connection", ("ConnectionProxy",), _django_proxy),
    ("django.db.backends.base.base", ("BaseDatabaseWrapper",), _django),
)
