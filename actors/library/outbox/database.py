"""The relay's side of an outbox: reading committed rows, and removing rows that the broker has.

`read` returns durable rows, not only committed ones. A database may show a transaction to others
before it has synced it (`synchronous_commit=off`, a WAL with `synchronous=NORMAL`), and a message
must not be sent if a power cut can still undo the transaction behind it. So both kinds make the
rows durable before they return them.

No row is claimed or locked between reading and removing. Several relays may read the same rows and
send them twice; the broker recognizes the ids. Each relay starts at the lowest waiting row, so the
order is kept. Rows shared out among relays (SKIP LOCKED) would overtake each other.
"""

from __future__ import annotations

import os
import sqlite3
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol
from urllib.parse import quote

from ...errors import DatabaseAway, DatabaseRefused
from ...limits import RELAY_ROUND_BYTES, RELAY_ROUND_MESSAGES
from ...runtime.crash_points import RELAY_BEFORE_COMMIT
from ...runtime.settings import BadSetting, without_password
from .refusals import is_for_good
from .sqlite_files import sync_committed
from .table import (
    FAIL,
    KEEP,
    KEEP_MANY,
    READ,
    READ_FAILED,
    READ_SIZED,
    REMOVE,
    REMOVE_MANY,
    RETRY,
    FailedRow,
    Row,
    percent,
)

_LOCK_S = 1.0  # how long SQLite waits for a lock; then the relay reports it and retries
_CREATE_HINT = "create the table: outbox.create(connection)"

Failed = Sequence[tuple[Row, str]]  # and why
Visit = Callable[[str], None]


class OutboxDatabase(Protocol):
    """An outbox as a relay sees it. It connects at first use and again after any error.

    Every method raises DatabaseAway (wait and call again) or DatabaseRefused.
    """

    name: str  # for people, without a password

    def read(self) -> list[Row]:
        """Return the first waiting rows, in order; all of them are durable."""
        ...

    def settle(self, acked: Sequence[Row], failed: Failed, *, keep: bool) -> int:
        """Remove (or mark as sent) acknowledged rows, mark failed ones; return how many changed."""
        ...

    def failed(self) -> list[FailedRow]:
        """Return the rows that were refused for good, in order."""
        ...

    def retry_failed(self) -> int:
        """Set refused rows back to waiting; return how many."""
        ...

    def close(self) -> None: ...


def open_database(url: str, visit: Visit = lambda _: None) -> OutboxDatabase:
    """Return the outbox behind a URL; nothing is opened yet.

    Raises BadSetting for an impossible URL, and if its driver is not installed.

    `visit` is called between the deletion of rows and its commit, for tests of crashes.
    """
    scheme, _, rest = url.partition(":///") if url.startswith("sqlite") else url.partition("://")
    if scheme == "sqlite":
        return SqliteOutbox(rest, visit)
    try:
        return PostgresOutbox(url, visit)
    except ImportError:
        raise BadSetting(
            "sink: PostgreSQL needs the driver psycopg 3", hint="pip install 'oncemq[postgres]'"
        ) from None


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def sync_files(path: str, fsync: Callable[[int], None] = os.fsync) -> None:
    """Make all that SQLite has committed to `path` durable. Raises DatabaseRefused."""
    try:
        sync_committed(path, fsync)
    except OSError as error:
        raise DatabaseRefused(f"what {path} has committed cannot be synced: {error}") from None


class _Outbox(ABC):
    """What all databases share: the statements, and a single connection."""

    _connection: Any = None

    @abstractmethod
    def _connected(self) -> AbstractContextManager[Any]:
        """Return the connection, opened if need be.

        Errors of the driver close it and become DatabaseAway or DatabaseRefused.
        """

    def failed(self) -> list[FailedRow]:
        with self._connected() as connection:
            return [FailedRow(*found) for found in connection.execute(READ_FAILED)]

    def retry_failed(self) -> int:
        with self._connected() as connection:
            changed: int = connection.execute(RETRY).rowcount
            return changed

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class SqliteOutbox(_Outbox):
    """An outbox in a SQLite file."""

    _connection: sqlite3.Connection | None = None

    def __init__(self, path: str, visit: Visit, fsync: Callable[[int], None] = os.fsync) -> None:
        self.name = f"sqlite:///{path}"
        self._path = os.path.realpath(path)  # where SQLite keeps the files beside it
        self._visit = visit
        self._fsync = fsync
        self._file: tuple[int, int] | None = None  # device and inode of the open file

    def read(self) -> list[Row]:
        """Stops at RELAY_ROUND_BYTES to bound the memory."""
        rows: list[Row] = []
        with self._connected() as connection:
            size = 0
            cursor = connection.execute(READ, (RELAY_ROUND_MESSAGES,))
            for found in cursor:
                rows.append(Row(*found))
                size += len(found[5]) if isinstance(found[5], bytes | str) else 0
                if size >= RELAY_ROUND_BYTES:
                    break
            cursor.close()  # ends the read transaction
            if rows:
                sync_files(self._path, self._fsync)
        return rows

    def settle(self, acked: Sequence[Row], failed: Failed, *, keep: bool) -> int:
        now_ms = _now_ms()
        with self._connected() as connection, _transaction(connection):
            before = connection.total_changes
            names = [(row.place, row.message_id) for row in acked]
            if keep:
                connection.executemany(KEEP, [(now_ms, *name) for name in names])
            else:
                connection.executemany(REMOVE, names)
            refused = [(error, now_ms, row.place, row.message_id) for row, error in failed]
            connection.executemany(FAIL, refused)
            changed = connection.total_changes - before
            self._visit(RELAY_BEFORE_COMMIT)
        return changed

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        try:
            yield self._open()
        except sqlite3.OperationalError as error:  # absent, locked, full, without the table
            self.close()
            hint = _CREATE_HINT if "no such table" in str(error) else ""
            raise DatabaseAway(f"{self.name}: {error}", hint=hint) from None
        except OSError as error:
            self.close()
            raise DatabaseAway(f"{self.name}: {(error.strerror or str(error)).lower()}") from None
        except sqlite3.Error as error:
            self.close()
            if getattr(error, "sqlite_errorname", "") == "SQLITE_NOTADB":
                raise BadSetting(f"sink: {self.name} is no SQLite database", hint="") from None
            raise DatabaseRefused(f"{self.name}: {error}") from None

    def _open(self) -> sqlite3.Connection:
        """Open it again if another file has taken the place of the first.

        The application may make the file later, but not its directory. Raises BadSetting.
        """
        home = os.path.dirname(self._path)
        if not os.path.isdir(home):
            raise BadSetting(f"sink: {self.name}: there is no directory {home}", hint="")
        status = os.stat(self._path)
        if self._connection is None or self._file != (status.st_dev, status.st_ino):
            self.close()
            self._file = (status.st_dev, status.st_ino)
            self._connection = sqlite3.connect(
                f"file:{quote(self._path)}?mode=rw",  # never makes an empty database
                uri=True,
                isolation_level=None,
                timeout=_LOCK_S,
            )
        return self._connection


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


# A host that is gone is noticed in some ten seconds; the URL may say otherwise.
_OPTIONS = {
    "connect_timeout": "10",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
    "application_name": "oncemq relay",
}


class PostgresOutbox(_Outbox):
    """An outbox in a PostgreSQL database, by psycopg 3."""

    def __init__(self, url: str, visit: Visit) -> None:
        """Raises ImportError without the driver."""
        import psycopg

        self.name = without_password(url)
        self._driver = psycopg
        self._visit = visit
        try:
            given = psycopg.conninfo.conninfo_to_dict(url)
        except psycopg.ProgrammingError as error:
            raise BadSetting(f"sink: {self.name}", hint=_line(error)) from None
        self._options: dict[str, Any] = {**_OPTIONS, **given}

    def read(self) -> list[Row]:
        with self._connected() as connection:
            values = (RELAY_ROUND_MESSAGES, RELAY_ROUND_BYTES)
            rows = [Row(*found) for found in connection.execute(percent(READ_SIZED), values)]
            if rows:
                # A commit that writes something flushes all commits before it and waits for the
                # synchronous standbys. What it writes has no meaning.
                connection.execute("SELECT pg_logical_emit_message(true, 'oncemq', '')")
        return rows

    def settle(self, acked: Sequence[Row], failed: Failed, *, keep: bool) -> int:
        now_ms = _now_ms()
        changed: int = 0
        with self._connected() as connection, connection.transaction():
            names = ([row.place for row in acked], [row.message_id for row in acked])
            if keep:
                changed += connection.execute(percent(KEEP_MANY), (now_ms, *names)).rowcount
            else:
                changed += connection.execute(percent(REMOVE_MANY), names).rowcount
            for row, error in failed:
                values = (error.replace("\0", "\\0"), now_ms, row.place, row.message_id)
                changed += connection.execute(percent(FAIL), values).rowcount
            self._visit(RELAY_BEFORE_COMMIT)
        return changed

    def _connect(self) -> Any:
        """Raises BadSetting for what no waiting mends."""
        try:
            return self._driver.connect(**self._options, autocommit=True)
        except self._driver.OperationalError as error:
            if not is_for_good(error):
                raise
            hint = "correct the address, or set the server up for it"
            raise BadSetting(f"sink: {self.name}: {_line(error)}", hint=hint) from None

    @contextmanager
    def _connected(self) -> Iterator[Any]:
        errors = self._driver.errors
        away = (
            self._driver.OperationalError,
            self._driver.InterfaceError,
            errors.UndefinedTable,
            errors.ReadOnlySqlTransaction,  # a standby that is not promoted yet
        )
        try:
            if self._connection is None:
                self._connection = self._connect()
                self._connection.execute("SET synchronous_commit = on")
            yield self._connection
        except away as error:
            self.close()
            hint = _CREATE_HINT if isinstance(error, errors.UndefinedTable) else ""
            raise DatabaseAway(f"{self.name}: {_line(error)}", hint=hint) from None
        except self._driver.Error as error:
            self.close()
            raise DatabaseRefused(f"{self.name}: {_line(error)}") from None


def _line(error: BaseException) -> str:
    """The first line: the rest repeats the statement."""
    return (str(error).splitlines() or [type(error).__name__])[0]
