"""The parts of sinks by themselves: addresses, texts of SQL, the gate of a SQLite file, locks."""

from __future__ import annotations

import os
import sqlite3
import threading
from pathlib import Path

import pytest

from oncemq import App
from oncemq.errors import BadSink, SinkLocked, StorageError
from oncemq.library.sinks import sqlite
from oncemq.library.sinks.address import check_sink, resolve_sink
from oncemq.library.sinks.opening import open_sink
from oncemq.library.sinks.sqlite import sync_file, writer_of
from oncemq.shells.tables import statements
from oncemq.shells.tables.gate import Gate, gate_of
from oncemq.shells.tables.sql_text import refused


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "postgresql://ann:p%40ss@db.example:5433/shop?sslmode=require",
            "ann@db.example:5433/shop",
        ),
        ("postgres://db/shop?password=geheim", "db/shop"),
        ("postgresql://:word@db/shop", "db/shop"),
        ("postgresql:///shop", "/shop"),
    ],
)
def test_an_address_is_shown_without_its_secrets(text: str, shown: str) -> None:
    """User, host, port and database stand in messages; passwords and parameters do not."""
    address = resolve_sink(text, host="here")
    assert address.shown == f"postgresql://{shown}"
    for secret in ("p%40ss", "p@ss", "geheim", "word@"):
        assert secret not in repr(address)


def test_relative_and_absolute_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three slashes are relative to the working directory, four absolute; links are followed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.db").symlink_to(tmp_path / "shop.db")
    texts = ("sqlite:///shop.db", f"sqlite:///{tmp_path}/shop.db", "sqlite:///link.db")
    assert {resolve_sink(text, host="h").target for text in texts} == {f"{tmp_path}/shop.db"}


def test_a_variable_names_the_sink_when_it_is_used() -> None:
    """`env:` is resolved late, and a variable that is not set is named."""
    assert check_sink("env:SHOP_DB") == "env:SHOP_DB"
    environ = {"SHOP_DB": "sqlite:////x/y.db"}
    assert resolve_sink("env:SHOP_DB", host="h", environ=environ).target == "/x/y.db"
    with pytest.raises(BadSink, match="SHOP_DB"):
        resolve_sink("env:SHOP_DB", host="h", environ={})


@pytest.mark.parametrize(
    "text",
    [
        "shop.db",
        "mysql://u:geheim@h/d",
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite:///a?mode=ro",
        "env:",
        "postgresql://u:geheim@h:port/d",
        "postgresql://u:gehe[im@h/d",
        7,
    ],
)
def test_what_is_no_address_is_refused_where_it_is_written(text: object) -> None:
    """BadSink at decoration, without any part of the address that may hold a password."""
    with pytest.raises(BadSink) as caught:
        App().consumer("orders", group="g", sink=text)  # type: ignore[arg-type]
    assert "geheim" not in str(caught.value)
    assert "gehe" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "commit",
        "  -- a comment\nCOMMIT",
        "/* a /* nested */ one */ Rollback",
        "INSERT INTO t VALUES (1); COMMIT",
        "SELECT 'it''s; fine'; begin",
        "SELECT $a$ ; $a$; end",
        "SELECT E'\\'; ' ; abort",
        "start transaction",
        "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
        "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
        "set local synchronous_commit = off",
        "SET synchronous_commit TO off",
        "PREPARE TRANSACTION 'x'",
        "ROLLBACK TO SAVEPOINT x",
        "discard all",
    ],
)
def test_texts_that_control_the_transaction_are_found(text: str) -> None:
    """Whatever stands before them: comments, other statements, quotes of every kind."""
    assert refused(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "SELECT 'COMMIT'",
        "SELECT 1 -- ; COMMIT",
        'SELECT "begin" FROM t',
        "INSERT INTO t VALUES ('; ROLLBACK')",
        "SELECT $$; COMMIT $$",
        "UPDATE savepoint SET begin = 1",
        "WITH a AS (SELECT 1) SELECT * FROM a",
        "SET LOCAL work_mem = '64MB'",
        "PREPARE q AS SELECT 1",
        "SELECT * FROM transaction WHERE synchronous_commit",
    ],
)
def test_other_texts_pass(text: str) -> None:
    """Words inside quotes, comments and names are no statements."""
    assert refused(text) is None


def test_the_io_thread_never_waits_at_the_gate_and_goes_first() -> None:
    """It is told no at once; then a handler that waits does not pass it."""
    gate, order = Gate(), []
    assert gate.wait("a", 0)
    assert not gate.take("io")
    waiting = threading.Thread(target=lambda: order.append(gate.wait("b", 30)))
    waiting.start()
    gate.free("a")
    assert gate.take("io")
    assert order == []
    assert not gate.wait("c", 0)
    gate.free("io")
    waiting.join(30)
    assert order == [True]
    gate.free("b")


def test_a_wish_ends_with_who_had_it() -> None:
    """A log that is closed while it waits keeps nobody from writing."""
    gate = Gate()
    assert gate.wait("a", 0)
    assert not gate.take("io")
    gate.free("io")
    gate.free("a")
    assert gate.wait("b", 0)


def test_a_wish_to_write_ends_when_the_connection_is_lent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A snapshot that must wait keeps neither the call that comes first nor others from the file."""
    monkeypatch.setattr(sqlite, "BUSY_MS", 0)
    sessions = []
    for partition in range(3):
        ledger = open_sink(f"sqlite:///{tmp_path}/a.db", ("g", "t", partition))
        ledger.peek()
        sessions.append(ledger.session)
    writer, wishing, other = sessions
    writer.start_call((1, False, 0))
    writer.use()
    assert wishing.must_wait(None)  # its log would write a snapshot
    wishing.start_call((1, False, 0))
    assert wishing.must_wait(None)  # from now on until its call is over
    writer.abandon()
    other.start_call((1, False, 0))
    other.use()
    other.end_call(keep=False)
    wishing.use()
    for session in (wishing, other):
        session.abandon()
        session.close()


def test_a_wish_to_make_a_ledger_ends_when_another_process_made_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The refused look kept all handlers of the process waiting; a later one has nothing to write."""
    monkeypatch.setattr(sqlite, "BUSY_MS", 0)
    first, second = (open_sink(f"sqlite:///{tmp_path}/a.db", ("g", "t", n)) for n in (0, 1))
    first.peek()
    session = first.session
    session.start_call((1, False, 0))
    session.use()
    with pytest.raises(SinkLocked):
        second.peek()
    session.end_call(keep=False)
    outside = sqlite3.connect(tmp_path / "a.db")
    made = ("g", "t", 1, statements.FORMAT, b"i" * 16, b"", b"")
    with outside:
        outside.execute(statements.MAKE_LEDGER, made)
    outside.close()
    assert second.peek().ledger_id == b"i" * 16
    session.start_call((1, False, 0))
    session.use()
    session.abandon()
    first.close()
    second.close()


def test_a_file_has_one_gate() -> None:
    """All consumers of a file meet at it."""
    assert gate_of("/x.db") is gate_of("/x.db") is not gate_of("/y.db")


def test_the_writer_of_a_file_is_named(tmp_path: Path) -> None:
    """The kernel's table of locks tells who holds the place of the writer."""
    path = str(tmp_path / "a.db")
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("CREATE TABLE t (n)")
    assert writer_of(path) == 0
    connection.execute("BEGIN IMMEDIATE")
    assert writer_of(path) == os.getpid()
    connection.execute("COMMIT")
    assert writer_of(path) == 0
    connection.close()


def test_sqlite_is_durable_or_refused(tmp_path: Path) -> None:
    """WAL with synchronous=FULL, read back on the connection that commits."""
    ledger = open_sink(f"sqlite:///{tmp_path}/a.db", ("g", "t", 0))
    ledger.peek()
    raw = ledger.session._raw
    assert raw.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert raw.execute("PRAGMA synchronous").fetchone() == (2,)
    for text in ("PRAGMA journal_mode=DELETE", "PRAGMA synchronous=OFF", "ATTACH 'b.db' AS b"):
        with pytest.raises(sqlite3.DatabaseError, match="not authorized"):
            raw.execute(text)
    ledger.close()


def test_tables_that_cannot_be_made_now_are_made_later(tmp_path: Path) -> None:
    """A lock that is met at the very first look is waited out."""
    path = tmp_path / "a.db"
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("PRAGMA journal_mode=WAL")
    other.execute("BEGIN IMMEDIATE")
    ledger = open_sink(f"sqlite:///{path}", ("g", "t", 0))
    for _ in range(2):
        with pytest.raises(SinkLocked):
            ledger.peek()
    other.execute("ROLLBACK")
    other.close()
    assert ledger.peek().highest_generation == 0
    ledger.close()


def test_a_lock_that_stays_is_an_error_of_its_own(tmp_path: Path) -> None:
    """SinkLocked, after a bounded wait, naming the process."""
    path = tmp_path / "a.db"
    ledger = open_sink(f"sqlite:///{path}", ("g", "t", 0))
    ledger.peek()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    for _ in range(2):
        with pytest.raises(SinkLocked, match=f"process {os.getpid()}"):
            ledger.open(1)
    other.execute("ROLLBACK")
    other.close()
    assert ledger.open(1).generation == 1
    ledger.close()


def test_what_cannot_be_synced_is_told_to_nobody(tmp_path: Path) -> None:
    """A failed sync is no outage that is tried again: the next one may say yes to lost pages."""
    file = tmp_path / "shop.db"
    sync_file(str(file), "shop")
    with pytest.raises(StorageError, match="what shop has committed cannot be synced"):
        sync_file(str(tmp_path / "gone" / "shop.db"), "shop")
