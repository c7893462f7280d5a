"""A sink that cannot be is wrong usage: one sentence and status 2, however long one would wait."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from oncemq.chaos.programs import wait_until
from oncemq.cli.output import ExitCode, exit_code_of
from oncemq.errors import BadSink, SinkConflict, SinkLocked, SinkUnavailable, StorageError
from oncemq.library.outbox.database import open_database
from oncemq.library.outbox.refusals import is_for_good
from oncemq.library.sinks import reading
from oncemq.library.sinks.opening import open_sink
from oncemq.runtime.settings import BadSetting
from tests.postgres import Server
from tests.process.house import START_S, House
from tests.sql.client import outside, run
from tests.sql.conftest import Shop

APP = """
from oncemq import App
app = App()

@app.consumer("orders", group="g", sink="env:SHOP_DB")
def take(message, tx):
    tx.sql("SELECT 1")
"""


def peek(sink: str) -> None:
    ledger = open_sink(sink, ("g", "t", 0))
    try:
        ledger.peek()
    finally:
        ledger.close()


def missing_directory(home: Path) -> str:
    return f"{home}/nowhere/shop.db"


def a_directory(home: Path) -> str:
    (home / "shop.db").mkdir()
    return f"{home}/shop.db"


def no_database(home: Path) -> str:
    (home / "shop.db").write_text("name,cents\n" * 1000)
    return f"{home}/shop.db"


SQLITE = [
    (missing_directory, "there is no directory .*nowhere"),
    (a_directory, "is a directory, not a database"),
    (no_database, "is no SQLite database"),
]


@pytest.mark.parametrize(("make", "says"), SQLITE)
def test_a_file_that_cannot_be_a_sink(
    tmp_path: Path, make: Callable[[Path], str], says: str
) -> None:
    """BadSink at the first look, with a sentence about the file."""
    with pytest.raises(BadSink, match=says):
        peek(f"sqlite:///{make(tmp_path)}")
    assert exit_code_of(BadSink()) == ExitCode.USAGE == 2


@pytest.mark.parametrize("where", ["file", "directory"])
def test_a_file_that_this_user_may_not_write(
    tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """WAL needs the directory too. Root may write anywhere, so the answer of the system is played."""
    path = tmp_path / "shop.db"
    sqlite3.connect(path).close()
    access = os.access
    locked = str(path if where == "file" else tmp_path)
    monkeypatch.setattr(os, "access", lambda name, mode: name != locked and access(name, mode))
    with pytest.raises(BadSink, match="may not write"):
        peek(f"sqlite:///{path}")


def test_what_the_driver_reports_later_has_its_class(tmp_path: Path) -> None:
    """Damage and a write protection are no outage; a full disk and a failed read are one."""
    session = open_sink(f"sqlite:///{tmp_path}/shop.db", ("g", "t", 0)).session
    kinds = {
        "SQLITE_CORRUPT_INDEX": StorageError,
        "SQLITE_NOTADB": BadSink,
        "SQLITE_READONLY": BadSink,
        "SQLITE_FULL": SinkUnavailable,
        "SQLITE_IOERR_READ": SinkUnavailable,
        "SQLITE_CANTOPEN": SinkUnavailable,
        "SQLITE_CONSTRAINT_UNIQUE": type(None),
        "SQLITE_ERROR": type(None),
    }
    found = {}
    for name in kinds:
        error = sqlite3.DatabaseError("told")
        error.sqlite_errorname = name
        found[name] = type(session._translated(error))
    assert found == kinds
    assert session._translated(ValueError("x")) is None


@pytest.mark.parametrize("sink", ["postgresql"], indirect=True)
def test_what_the_server_reports_later_has_its_class(sink: str) -> None:
    """Damage stops, a right that is missing is wrong usage, a full disk is an outage."""
    ledger = open_sink(sink, ("g", "t", 0))
    with contextlib.closing(ledger):
        ledger.peek()
        kinds = {
            psycopg.errors.DataCorrupted: StorageError,
            psycopg.errors.IndexCorrupted: StorageError,
            psycopg.errors.InsufficientPrivilege: BadSink,
            psycopg.errors.InvalidSchemaName: BadSink,
            psycopg.errors.DiskFull: SinkUnavailable,
            psycopg.errors.IoError: SinkUnavailable,
            psycopg.errors.SerializationFailure: SinkConflict,
            psycopg.errors.DeadlockDetected: SinkConflict,
            psycopg.errors.LockNotAvailable: SinkLocked,
            psycopg.errors.UniqueViolation: type(None),
            psycopg.errors.UndefinedTable: type(None),
        }
        assert {kind: type(ledger.session._translated(kind("told"))) for kind in kinds} == kinds


@pytest.mark.parametrize("sink", ["sqlite"], indirect=True)
def test_a_damaged_database_stops_its_consumer(tmp_path: Path, shop: Shop, sink: str) -> None:
    """It is told as damage, and never retried as an outage nor blamed on a message."""
    run(sink, "CREATE TABLE t (n TEXT)", f"INSERT INTO t VALUES ('{'x' * 200_000}')")
    path = tmp_path / "shop.db"
    size = path.stat().st_size
    with path.open("r+b") as file:  # the rest of the long row points to pages of nonsense
        file.seek(8192)
        file.write(b"\xff" * (size - 8192))
    harness = shop(lambda order, tx: tx.sql("SELECT sum(length(n)), max(n) FROM t").fetchall())
    harness.send("orders", 1, id="1")
    with pytest.raises(StorageError, match="is damaged"):
        harness.drain()


def test_without_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """What to install, and status 2, for consumers and for commands that look."""
    monkeypatch.setitem(sys.modules, "psycopg", None)
    for name in [name for name in sys.modules if name.startswith("oncemq.library.sinks.postgres")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(BadSink, match=r"pip install 'oncemq\[postgres\]'"):
        open_sink("postgresql://u@h/d", ("g", "t", 0))
    with (
        pytest.raises(BadSink, match=r"pip install 'oncemq\[postgres\]'"),
        reading.looking(reading.address_of("postgresql://u@h/d")),
    ):
        pass


@pytest.mark.parametrize(
    "text",
    [
        "Connection refused\n\tIs the server running on that host?",
        "FATAL:  the database system is starting up",
        "FATAL:  the database system is shutting down",
        "FATAL:  the database system is in recovery mode",
        "FATAL:  sorry, too many clients already",
        'FATAL:  too many connections for role "lim"',
        'FATAL:  database "d" is not currently accepting connections',
        "failed to resolve host 'db': [Errno -3] Temporary failure in name resolution",
        "session is not read-only",
        "timeout expired",
        "server closed the connection unexpectedly",
    ],
)
def test_a_true_outage_is_retried(text: str) -> None:
    """A server that is away, full or not ready yet."""
    assert not is_for_good(psycopg.OperationalError(text))


# --- a real server -------------------------------------------------------------------------------


@pytest.fixture
def roles(postgres_server: Server) -> str:
    """Host and port of a server with roles that may not do all."""
    with psycopg.connect(postgres_server.url(), autocommit=True) as connection:
        if connection.execute("SELECT 1 FROM pg_roles WHERE rolname = 'ann'").fetchone() is None:
            for text in (
                "CREATE ROLE ann LOGIN PASSWORD 'right'",
                "CREATE ROLE guest LOGIN",
                "CREATE ROLE nologin NOLOGIN",
                "CREATE DATABASE closed",
                "REVOKE CONNECT ON DATABASE closed FROM public",
            ):
                connection.execute(text)
            rules = postgres_server.directory / "data" / "pg_hba.conf"
            ann = "host all ann 127.0.0.1/32 scram-sha-256\nhost all hidden all reject\n"
            rules.write_text(ann + rules.read_text())
            connection.execute("SELECT pg_reload_conf()")
    url = f"postgresql://ann@127.0.0.1:{postgres_server.port}/postgres"
    wait_until(lambda: "no password" in refused(url), START_S, "the new rules of the server")
    return f"127.0.0.1:{postgres_server.port}"


def refused(url: str) -> str:
    try:
        psycopg.connect(url, connect_timeout=5).close()
    except psycopg.OperationalError as error:
        return str(error)
    return ""


POSTGRES = [
    ("tests@{}/nosuch", 'database "nosuch" does not exist'),
    ("absent@{}/postgres", 'role "absent" does not exist'),
    ("ann:wrong@{}/postgres", "password authentication failed"),
    ("ann@{}/postgres", "no password supplied"),
    ("nologin@{}/postgres", "not permitted to log in"),
    ("hidden@{}/postgres", "pg_hba.conf rejects"),
    ("guest@{}/closed", "permission denied for database"),
    ("guest@{}/postgres", "permission denied for schema"),  # it cannot make the tables
    ("tests@{}/postgres?sslmode=bogus", "invalid sslmode value"),
    ("tests@{}/postgres?sslmode=require", "does not support SSL"),
    ("tests@{}/postgres?options=-cbogus%3D1", "unrecognized configuration parameter"),
    ("tests@{}/postgres?options=-csearch_path%3Dnosuch", "no schema has been selected"),
    ("tests@{}/postgres?service=nosuch", "definition of service"),
    ("tests@{}/postgres?bogus=1", "cannot be parsed"),
]


@pytest.mark.process
@pytest.mark.parametrize(("url", "says"), POSTGRES)
def test_a_server_that_refuses(roles: str, url: str, says: str) -> None:
    """BadSink at the first look; no password is shown."""
    sink = f"postgresql://{url.format(roles)}"
    with pytest.raises(BadSink, match=re.escape(says)) as caught:
        peek(sink)
    assert "wrong" not in str(caught.value)
    if says.endswith(("schema", "selected")):
        return  # it could read, if there were something
    with pytest.raises(BadSink), reading.looking(reading.address_of(sink)):
        pass
    with pytest.raises(BadSetting) as of_relay:
        open_database(sink).read()
    assert "wrong" not in str(of_relay.value)


@pytest.mark.process
@pytest.mark.timeout(240)
def test_a_consumer_with_a_wrong_sink_ends_with_2(house: House, roles: str) -> None:
    """Also with --until-idle, also without a broker; one line tells, and no outage is reported."""
    (house.directory / "wrongapp.py").write_text(APP)
    wrong: dict[str, Any] = {
        f"sqlite:///{house.directory}/nowhere/shop.db": "there is no directory",
        f"postgresql://ann:wrong@{roles}/postgres": "password authentication failed",
        f"postgresql://tests@{roles}/nosuch": "does not exist",
        "mysql://u@h/d": "no sink of kind",
        "": "SHOP_DB, which is not set",
    }
    started = {
        sink: house.consumer("wrongapp:app", "--until-idle=1", SHOP_DB=sink) for sink in wrong
    }
    for sink, consumer in started.items():
        consumer.wait(START_S, 2)
        assert wrong[sink] in consumer.stderr()
        house.refresh()
        assert house.history.of(consumer.pid)["sink.unavailable"] == 0


@pytest.mark.process
@pytest.mark.timeout(240)
def test_a_directory_that_vanishes_under_a_consumer_stops_it(house: House) -> None:
    """The watch of the files meets it first: status 1, not an outage."""
    (house.directory / "wrongapp.py").write_text(APP)
    home = house.directory / "databases"
    home.mkdir()
    house.broker()
    consumer = house.consumer("wrongapp:app", SHOP_DB=f"sqlite:///{home}/shop.db")
    house.wait_for(consumer, "consumer.granted")
    shutil.rmtree(home)
    consumer.wait(START_S, 1)
    assert "was deleted or replaced" in consumer.stderr()


def test_a_table_of_the_ledger_is_missing_for_a_look(tmp_path: Path) -> None:
    """Commands say that there is no ledger; they do not wait for one."""
    sink = f"sqlite:///{tmp_path}/shop.db"
    with outside(sink) as connection:
        connection.execute("CREATE TABLE t (n)")
    with pytest.raises(BadSink, match="there is no ledger"):
        reading.read_sink_group(sink, "g")
