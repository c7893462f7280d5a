"""PostgreSQL as sink, by psycopg 3: a session advisory lock proves owners, commits are synchronous.

Idle moments. `idle_in_transaction_session_timeout` is below the lease, so that a process that
froze between a call and its commit does not keep the rows of its successor locked. While a handler
has the connection it is off (SET LOCAL): a handler may well take a minute between two statements.
What a process that froze there has locked is freed by the taker, which ends the session of the
owner that it replaces (pg_terminate_backend): its epoch is fenced, it could not commit any more.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import psycopg
from psycopg.pq import TransactionStatus

from ...errors import (
    BadSink,
    Fenced,
    OnceMQError,
    SinkConflict,
    SinkLocked,
    SinkUnavailable,
    StorageError,
    TransactionControl,
)
from ...runtime.process import owner_facts
from ...shells.tables.session import LENT, Session
from ...shells.tables.sql_text import first_line, refused
from ..outbox.refusals import is_for_good

IDLE_TIMEOUT_MS = 8_000  # below the lease
LOCK_TIMEOUT_MS = 2_000  # of our own statements
CONNECT_TIMEOUT_S = 5
INTERRUPT_TIMEOUT_S = 5.0  # of one request to end a statement
TCP_TIMEOUT_MS = 8_000  # an answer that does not come for so long is a lost connection
_GONE_WAIT_S = 2.0
_LOOK_AGAIN_S = 0.02
_TABLES_LOCK = 0x6F6E6365  # nobody else makes the tables in the same moment

# The server's trouble, whatever was asked of it. Others of its classes may follow from the text.
_NO_STATEMENTS_FAULT = (psycopg.errors.DiskFull, psycopg.errors.IoError)

# "Run the transaction again": the server has rolled it back because of another session.
_CONFLICTS = (psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected)
_DAMAGE = (psycopg.errors.DataCorrupted, psycopg.errors.IndexCorrupted)
# Of statements of ours: the role may not, or has no schema to make the tables in.
_MAY_NOT = (psycopg.errors.InsufficientPrivilege, psycopg.errors.InvalidSchemaName)

_STRICT = frozenset({"on", "remote_apply"})


def check_refused(shown: str, error: psycopg.OperationalError) -> None:
    """Raise BadSink if a connection failed because of what no waiting mends."""
    if is_for_good(error):
        raise BadSink(
            f"{shown} cannot be the sink: {first_line(error)}",
            hint="correct the address, or set the server up for it",
        ) from None


class SinkCursor(psycopg.Cursor[Any]):
    """A cursor of handlers: it looks at what it sends, and notes what the server says to it."""

    def execute(self, query: Any, *arguments: Any, **options: Any) -> SinkCursor:
        """Raises TransactionControl."""
        check_text(query, self)
        with self._noted():
            super().execute(query, *arguments, **options)
        return self

    def stream(self, query: Any, *arguments: Any, **options: Any) -> Iterator[Any]:
        """Rows come one by one. Raises TransactionControl."""
        check_text(query, self)
        return self._stream(super().stream(query, *arguments, **options))

    def _stream(self, rows: Iterator[Any]) -> Iterator[Any]:
        with self._noted():
            yield from rows

    def executemany(self, query: Any, *arguments: Any, **options: Any) -> None:
        """Raises TransactionControl."""
        check_text(query, self)
        with self._noted():
            super().executemany(query, *arguments, **options)

    @contextlib.contextmanager
    def copy(self, statement: Any, *arguments: Any, **options: Any) -> Iterator[psycopg.Copy]:
        """As psycopg's."""
        with self._noted(), super().copy(statement, *arguments, **options) as copy:
            yield copy

    @contextlib.contextmanager
    def _noted(self) -> Iterator[None]:
        try:
            yield
        except psycopg.Error as error:
            connection = self.connection
            if isinstance(connection, SinkConnection):
                connection.note(error)
            raise


def check_text(query: Any, cursor: psycopg.Cursor[Any]) -> None:
    """Raises TransactionControl if a handler may not send it."""
    text = query if isinstance(query, str | bytes) else query.as_string(cursor)
    found = refused(text.decode() if isinstance(text, bytes) else text)
    if found is not None:
        raise TransactionControl(f"{found} is refused in a handler")


class SinkConnection(psycopg.Connection[Any]):
    """What handlers get: all of psycopg's connection but the end of the transaction."""

    note: Callable[[BaseException], None]  # of its session

    def commit(self) -> None:
        """Refuse: the commit comes when the handler has returned."""
        raise TransactionControl("commit() of the sink's connection is refused")

    def rollback(self) -> None:
        """Refuse: a handler that raises has done nothing."""
        raise TransactionControl("rollback() of the sink's connection is refused")

    def transaction(self, *_arguments: Any, **_options: Any) -> Any:
        """Refuse: a message is one savepoint already."""
        raise TransactionControl("transaction() of the sink's connection is refused")

    def close(self) -> None:
        """Refuse: the connection belongs to the consumer."""
        raise TransactionControl("close() of the sink's connection is refused")


class PostgresSession(Session):
    """A consumer's connection to PostgreSQL."""

    types: ClassVar[Mapping[str, str]] = {"text": "TEXT", "int": "BIGINT", "bytes": "BYTEA"}
    interrupts: ClassVar[bool] = True
    before_tables: ClassVar[str] = f"SELECT pg_advisory_xact_lock({_TABLES_LOCK})"

    def __init__(self, url: str, shown: str, name: str) -> None:
        """`url` with its secrets; `name` is what the server shows of us."""
        super().__init__(shown)
        try:
            self._parameters: dict[str, Any] = dict(psycopg.conninfo.conninfo_to_dict(url))
        except psycopg.Error:  # its text may quote the password
            raise BadSink("the PostgreSQL address cannot be parsed") from None
        self._parameters.setdefault("application_name", name[:60])
        self._parameters.setdefault("connect_timeout", CONNECT_TIMEOUT_S)
        self._parameters.setdefault("tcp_user_timeout", TCP_TIMEOUT_MS)
        for option, value in (("idle", 5), ("interval", 2), ("count", 2)):
            self._parameters.setdefault(f"keepalives_{option}", value)
        self._raw: SinkConnection | None = None
        self._synchronous = "on"

    def permitted(self, statement: str, values: Sequence[Any]) -> list[tuple[Any, ...]] | None:
        """None if this role may not execute the statement."""
        try:
            return [tuple(row) for row in self._run(statement, values)]
        except psycopg.errors.InsufficientPrivilege:
            return None
        except psycopg.Error as error:
            raise SinkUnavailable(f"{self.shown}: {first_line(error)}") from error

    def has_table(self, name: str) -> bool:
        return self.rows("SELECT to_regclass(?) IS NOT NULL", (name,)) == [(True,)]

    def has_column(self, table: str, name: str) -> bool:
        query = "SELECT 1 FROM pg_attribute WHERE attrelid = to_regclass(?) AND attname = ?"
        return bool(self.rows(query + " AND NOT attisdropped", (table, name)))

    def _connect(self) -> None:
        try:
            raw = SinkConnection.connect(
                **self._parameters, autocommit=True, cursor_factory=SinkCursor
            )
        except psycopg.OperationalError as error:
            check_refused(self.shown, error)
            raise
        raw.note = self.note
        self._raw = raw
        try:
            ((level,),) = self._run("SHOW synchronous_commit").fetchall()
            self._synchronous = level if level in _STRICT else "on"
            self._run(f"SET synchronous_commit = {self._synchronous}")
            self._run(f"SET idle_in_transaction_session_timeout = {IDLE_TIMEOUT_MS}")
        except BaseException:
            self._disconnect()
            raise

    def _disconnect(self) -> None:
        raw, self._raw = self._raw, None
        if raw is not None:
            psycopg.Connection.close(raw)

    @property
    def broken(self) -> bool:
        """Whether the server has ended the connection, or cannot be reached over it."""
        return self._raw is not None and (self._raw.closed or self._raw.broken)

    @property
    def _handed_out(self) -> SinkConnection:
        assert self._raw is not None
        return self._raw

    def _run(self, statement: str, values: Sequence[Any] = ()) -> psycopg.Cursor[Any]:
        cursor = psycopg.Cursor(self._handed_out)
        # Every text comes from statements.py or from here: none is put together from data.
        return cursor.execute(statement.replace("?", "%s").encode(), values or None)

    def _begin(self, *, waits: bool) -> None:
        limits = "SET LOCAL idle_in_transaction_session_timeout = 0"
        if not waits:
            limits = f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}"
        self._run(f"BEGIN; {limits}")

    def _interrupt(self) -> None:
        with contextlib.suppress(psycopg.Error):  # the statement may end by itself meanwhile
            self._handed_out.cancel_safe(timeout=INTERRUPT_TIMEOUT_S)

    def _settle(self) -> None:
        self._run("SET CONSTRAINTS ALL IMMEDIATE")

    def _hand_over(self) -> None:
        self._run(
            f"SET LOCAL synchronous_commit = {self._synchronous};"
            f" SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS};"
            f" SET LOCAL idle_in_transaction_session_timeout = {IDLE_TIMEOUT_MS}"
        )

    def _end(self, verb: str) -> None:
        self._run(verb)

    def _in_transaction(self) -> bool:
        status = self._handed_out.info.transaction_status
        return status in {TransactionStatus.INTRANS, TransactionStatus.INERROR}

    def _is_of_driver(self, error: BaseException) -> bool:
        return isinstance(error, psycopg.Error)

    def accept(self) -> None:
        """As for any database. Raises TransactionControl, too, for an error that nobody looked at."""
        aborted = TransactionStatus.INERROR
        swallowed = self._marked and self._handed_out.info.transaction_status == aborted
        if swallowed and self._trouble is None:
            raise TransactionControl(
                "the handler has caught an error of PostgreSQL, which keeps nothing of the message"
                " after it",
                hint="let the error through, or avoid it: INSERT ... ON CONFLICT DO NOTHING",
            )
        super().accept()

    def _left_handler(self, error: BaseException) -> OnceMQError | None:
        """Of this connection's own errors those of server-side cursors are not noted."""
        if isinstance(error, _CONFLICTS):
            status = None if self._raw is None else self._raw.info.transaction_status
            if status != TransactionStatus.INERROR:
                return None  # of a connection of the handler's own
        return self._translated(error)

    def _translated(self, error: BaseException) -> OnceMQError | None:
        if isinstance(error, _CONFLICTS):
            return SinkConflict(f"{self.shown}: {first_line(error)}")
        if isinstance(error, _DAMAGE):
            return StorageError(f"{self.shown} is damaged: {first_line(error)}", hint="")
        if isinstance(error, _MAY_NOT) and self._place != LENT:
            reason = f"{self.shown} cannot be the sink: {first_line(error)}"
            return BadSink(reason, hint="grant the role what docs/SQL.md, Settings, asks for")
        if isinstance(error, psycopg.errors.LockNotAvailable) and self._place != LENT:
            return SinkLocked(f"{self.shown}: another session has locked the row of this ledger")
        if not isinstance(error, psycopg.Error):
            return None
        if self._raw is None or self.broken or isinstance(error, _NO_STATEMENTS_FAULT):
            return SinkUnavailable(f"{self.shown}: {first_line(error)}")
        return None


class PostgresHost:
    """What a ledger in PostgreSQL needs to know of owners: the server tells which sessions live.

    An owner holds the advisory lock of (ledger, epoch) for as long as its session lives. Who gets
    that lock has proved that nothing can be committed under that epoch any more, if it is the lock
    of the same database in the same run of the same server: the row of the owner names all three,
    because a restored or copied database knows no session of its original.
    """

    def __init__(self, session: PostgresSession) -> None:
        self._session = session
        self._held = 0  # key of the dead owner's lock
        self._ours: int | None = None

    def facts(self) -> dict[str, Any]:
        found = self._session.rows(
            "SELECT pid, backend_start::text FROM pg_stat_activity WHERE pid = pg_backend_pid()"
        )
        backend, start = found[0]
        server = self._server()
        return {**owner_facts(), "backend": backend, "backend_start": start, "server": server}

    def _server(self) -> str:
        """Return which database this is, in which run of which server."""
        ((database, started),) = self._session.rows(
            "SELECT oid::text, pg_postmaster_start_time()::text FROM pg_database"
            " WHERE datname = current_database()"
        )
        return f"{database} since {started}"

    def prove_dead(self, ledger_id: bytes, epoch: int, owner: Mapping[str, Any]) -> bool:
        """If so, the owner's lock is held from here on."""
        self.let_go()
        if owner and owner.get("server") != self._server():
            return False
        key = _key(ledger_id, epoch)
        if self._session.rows("SELECT pg_try_advisory_lock(?)", (key,)) != [(True,)]:
            return False
        self._held = key
        return True

    def let_go(self) -> None:
        key, self._held = self._held, 0
        if key and self._session.idle:
            self._session.rows("SELECT pg_advisory_unlock(?)", (key,))

    def hold(self, ledger_id: bytes, epoch: int) -> dict[str, Any]:
        """Return what the row of the owner says of its lock."""
        key = _key(ledger_id, epoch)
        if self._ours != key:
            if self._session.rows("SELECT pg_try_advisory_lock(?)", (key,)) != [(True,)]:
                raise Fenced(f"another session holds epoch {epoch}")
            self._ours = key
        return {}

    def make_way(self, owner: Mapping[str, Any], error: SinkLocked) -> None:
        """End the session of the replaced owner. Raises SinkLocked if that is not allowed."""
        if not self._terminate(owner):
            raise error

    def superseded(self, owner: Mapping[str, Any]) -> None:
        """Rows that the replaced owner has locked must become free."""
        if not self._held:
            self._terminate(owner)
        self.let_go()

    def _terminate(self, owner: Mapping[str, Any]) -> bool:
        """Return whether the session is gone."""
        which = (owner.get("backend", 0), owner.get("backend_start", "epoch"))
        same = "FROM pg_stat_activity WHERE pid = ? AND backend_start = ?::timestamptz"
        if self._session.permitted(f"SELECT pg_terminate_backend(pid) {same}", which) is None:
            return False
        until = time.monotonic() + _GONE_WAIT_S
        while self._session.rows(f"SELECT 1 {same}", which):
            if time.monotonic() >= until:
                return False
            time.sleep(_LOOK_AGAIN_S)
        return True

    def close(self) -> None:
        """Nothing: the locks end with the session."""


def _key(ledger_id: bytes, epoch: int) -> int:
    """64 bits for the owner of a ledger under an epoch."""
    digest = hashlib.sha256(b"oncemq" + ledger_id + epoch.to_bytes(8, "big")).digest()
    return int.from_bytes(digest[:8], "big", signed=True) or 1
