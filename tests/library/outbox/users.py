"""Users of an outbox: every kind of connection, opened on an empty database, as one thing."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest
import sqlalchemy
from sqlalchemy.orm import Session

from oncemq.library.outbox.table import Row


class User(NamedTuple):
    """A program with a database connection of some library, in transactions it ends itself."""

    connection: Any  # what goes to outbox.send
    commit: Callable[[], None]
    rollback: Callable[[], None]
    execute: Callable[[str], Any]  # a statement of the user's own
    url: str  # for the relay


def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'shop.db'}"


def use_sqlite3(url: str) -> Iterator[User]:
    """The standard library's module in its usual mode, with a row factory that would disturb."""
    connection = sqlite3.connect(url.removeprefix("sqlite:///"))
    connection.row_factory = lambda cursor, row: {"of": row}
    yield User(connection, connection.commit, connection.rollback, connection.execute, url)
    connection.close()


def use_psycopg(url: str) -> Iterator[User]:
    """Psycopg 3, with factories that would disturb."""
    connection: Any = psycopg.connect(
        url, row_factory=psycopg.rows.dict_row, cursor_factory=psycopg.RawCursor
    )
    yield User(connection, connection.commit, connection.rollback, connection.execute, url)
    connection.close()


def _engine(url: str) -> Any:
    return sqlalchemy.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))


def use_sqlalchemy(url: str) -> Iterator[User]:
    engine = _engine(url)
    connection = engine.connect()
    execute = lambda sql: connection.execute(sqlalchemy.text(sql))  # noqa: E731
    yield User(connection, connection.commit, connection.rollback, execute, url)
    connection.close()
    engine.dispose()


def use_session(url: str) -> Iterator[User]:
    engine = _engine(url)
    session = Session(engine)
    execute = lambda sql: session.execute(sqlalchemy.text(sql))  # noqa: E731
    yield User(session, session.commit, session.rollback, execute, url)
    session.close()
    engine.dispose()


def use_django(url: str) -> Iterator[User]:
    """A Django connection whose transactions are the user's."""
    os.environ["DJANGO_SETTINGS_MODULE"] = "examples.web_django.settings"
    import django
    from django.db.utils import ConnectionHandler

    django.setup()
    database: dict[str, Any] = {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": url.removeprefix("sqlite:///"),
    }
    if url.startswith("postgresql"):
        told = psycopg.conninfo.conninfo_to_dict(url)
        database = {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": told["dbname"],
            "USER": told["user"],
            "HOST": told["host"],
            "PORT": told["port"],
            "OPTIONS": {"options": told["options"]},
        }
    connection = ConnectionHandler({"default": database})["default"]
    connection.set_autocommit(False)

    def execute(sql: str) -> Any:
        with connection.cursor() as cursor:
            cursor.execute(sql)

    yield User(connection, connection.commit, connection.rollback, execute, url)
    connection.close()


SQLITE_KINDS: dict[str, Callable[[str], Iterator[User]]] = {
    "sqlite3": use_sqlite3,
    "sqlalchemy": use_sqlalchemy,
    "session": use_session,
    "django": use_django,
}
POSTGRES_KINDS: dict[str, Callable[[str], Iterator[User]]] = {
    "psycopg": use_psycopg,
    "sqlalchemy": use_sqlalchemy,
    "session": use_session,
    "django": use_django,
}
ALL_KINDS = [
    *(pytest.param(("sqlite", kind), id=f"sqlite-{kind}") for kind in SQLITE_KINDS),
    *(
        pytest.param(("postgres", kind), id=f"postgres-{kind}", marks=pytest.mark.process)
        for kind in POSTGRES_KINDS
    ),
]


def rows_of(url: str) -> list[Row]:
    """What is committed in an outbox and waits, read by somebody else."""
    sql = (
        "SELECT place, topic, message_id, message_key, encoding, value, headers, created_at_ms"
        " FROM oncemq_outbox WHERE state = 'waiting' ORDER BY place"
    )
    connection: Any
    if url.startswith("sqlite"):
        connection = sqlite3.connect(url.removeprefix("sqlite:///"))
    else:
        connection = psycopg.connect(url)
    try:
        return [Row(*found) for found in connection.execute(sql).fetchall()]
    finally:
        connection.close()


def ids_of(url: str) -> list[str]:
    return [row.message_id[1:].decode() for row in rows_of(url)]
