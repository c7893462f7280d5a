"""A SQLite file as sink: write-ahead log, synchronous=FULL, and an authorizer over handlers.

A commit is durable when it returns only with `synchronous=FULL` *and* WAL: the rollback journal
can lose an acknowledged commit at a power cut, because the removal of the journal is not synced.
Both are set and read back.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from ...errors import (
    BadSink,
    Fenced,
    LogInUse,
    SinkLocked,
    SinkUnavailable,
    StorageError,
    TransactionControl,
)
from ...runtime.os_disk import OsDisk
from ...runtime.process import end_frozen_owner, owner_alive, owner_facts
from ...shells.tables.gate import gate_of
from ...shells.tables.session import Session
from ...shells.tables.sql_text import first_line
from ...storage.disk import Lock
from ..outbox.sqlite_files import sync_committed

BUSY_MS = 5_000  # a handler waits so long for another process that writes
_WRITER_BYTE = 120  # of the file `-shm`
IO_BUSY_MS = 200  # the I/O thread: it comes again, and leases of others must not wait

# PRAGMAs that would change what a commit promises.
_PROMISES = frozenset({"journal_mode", "synchronous", "locking_mode", "writable_schema"})
_LOST = ("disk I/O error", "database or disk is full", "unable to open", "malformed", "readonly")


class SinkConnection(sqlite3.Connection):
    """What handlers get: all of sqlite3's connection but the end of the transaction."""

    def commit(self) -> None:
        """Refuse: the commit comes when the handler has returned."""
        raise TransactionControl("commit() of the sink's connection is refused")

    def rollback(self) -> None:
        """Refuse: a handler that raises has done nothing."""
        raise TransactionControl("rollback() of the sink's connection is refused")

    def executescript(self, _script: str) -> sqlite3.Cursor:
        """Refuse: it would commit first."""
        raise TransactionControl("executescript() commits; use execute() for each statement")

    def close(self) -> None:
        """Refuse: the connection belongs to the consumer."""
        raise TransactionControl("close() of the sink's connection is refused")


class SqliteSession(Session):
    """A consumer's connection to a SQLite file."""

    def __init__(self, path: str, shown: str) -> None:
        """Nothing is opened before `connect`."""
        super().__init__(shown)
        self.path = path
        self._gate = gate_of(path)
        self._raw: SinkConnection | None = None
        # Statements of ours carry it. The driver keeps compiled statements by their text, and one
        # that was compiled for us must not be found by a handler that writes the same text.
        self._ours = f" /* {secrets.token_hex(8)} */"
        self._guarded = True

    types: ClassVar[Mapping[str, str]] = {"text": "TEXT", "int": "INTEGER", "bytes": "BLOB"}

    def _may_begin(self) -> bool:
        return self._gate.take(self)

    def has_table(self, name: str) -> bool:
        return bool(self.rows("SELECT 1 FROM sqlite_master WHERE type='table' AND name=?", (name,)))

    def _connect(self) -> None:
        fresh = not os.path.exists(self.path)
        raw = sqlite3.connect(
            self.path,
            timeout=BUSY_MS / 1000,
            isolation_level=None,
            check_same_thread=False,  # session.py says why this is safe
            factory=SinkConnection,
        )
        try:
            mode = raw.execute("PRAGMA journal_mode=WAL").fetchone()[0]
            if mode != "wal":
                raise BadSink(
                    f"{self.shown} stays in journal mode {mode}; without WAL a power cut can undo "
                    "a commit",
                    hint="put the file on a local file system",
                )
            raw.execute("PRAGMA synchronous=FULL")
            level = raw.execute("PRAGMA synchronous").fetchone()[0]
            if level < 2:
                raise BadSink(f"{self.shown} does not accept synchronous=FULL")
            raw.set_authorizer(self._authorize)
        except BaseException:
            sqlite3.Connection.close(raw)
            raise
        if fresh:
            OsDisk().sync_directory(os.path.dirname(self.path))
        self._raw = raw

    def sync_read(self) -> None:
        """A commit whose process was killed before its sync is read here, and may be lost yet."""
        sync_file(self.path, self.shown)

    def _disconnect(self) -> None:
        raw, self._raw = self._raw, None
        if raw is not None:
            sqlite3.Connection.close(raw)

    @property
    def _handed_out(self) -> SinkConnection:
        assert self._raw is not None
        return self._raw

    def _run(self, statement: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        self._guarded = False
        try:
            return self._handed_out.execute(statement + self._ours, values)
        finally:
            self._guarded = True

    def _begin(self, *, waits: bool) -> None:
        if not (self._gate.wait(self, BUSY_MS / 1000) if waits else self._gate.take(self)):
            raise SinkLocked(f"{self.shown}: another partition of this process is writing")
        try:
            self._run(f"PRAGMA busy_timeout={BUSY_MS if waits else IO_BUSY_MS}")
            self._run("BEGIN IMMEDIATE")
        except BaseException:
            self._gate.free(self)
            raise

    def _end(self, verb: str) -> None:
        self._run(verb)

    def _ended(self) -> None:
        self._gate.free(self)

    def _in_transaction(self) -> bool:
        return self._handed_out.in_transaction

    def _authorize(
        self, action: int, one: str | None, two: str | None, _database: str | None, _by: str | None
    ) -> int:
        """Called at the moment a statement is compiled."""
        if not self._guarded:
            return sqlite3.SQLITE_OK
        refused = None
        if action == sqlite3.SQLITE_TRANSACTION:
            refused = str(one)
        elif action == sqlite3.SQLITE_SAVEPOINT:
            refused = "ROLLBACK TO" if one == "ROLLBACK" else "SAVEPOINT" if one == "BEGIN" else one
        elif action == sqlite3.SQLITE_PRAGMA and two is not None and str(one).lower() in _PROMISES:
            refused = f"PRAGMA {one}"
        elif action == sqlite3.SQLITE_ATTACH:  # in WAL mode two files are not committed as one
            refused = "ATTACH"
        if refused is None:
            return sqlite3.SQLITE_OK
        self._refused = refused
        return sqlite3.SQLITE_DENY

    def _execute(self, query: Any, parameters: Sequence[Any]) -> Any:
        """Raises TransactionControl."""
        try:
            return super()._execute(query, parameters)
        except sqlite3.DatabaseError as error:
            refused, self._refused = self._refused, None
            if refused is not None:
                raise TransactionControl(f"{refused} is refused in a handler") from error
            raise

    def _is_of_driver(self, error: BaseException) -> bool:
        return isinstance(error, sqlite3.Error)

    def _translated(self, error: BaseException) -> SinkUnavailable | None:
        if not isinstance(error, sqlite3.OperationalError | sqlite3.DatabaseError):
            return None
        name = getattr(error, "sqlite_errorname", "") or ""
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            pid = writer_of(self.path)
            who = f"process {pid}" if pid else "another process"
            return SinkLocked(f"{self.shown} is locked: {who} is writing to it")
        if name.startswith(
            ("SQLITE_IOERR", "SQLITE_FULL", "SQLITE_CANTOPEN", "SQLITE_CORRUPT", "SQLITE_NOTADB")
        ):
            return SinkUnavailable(f"{self.shown}: {first_line(error)}")
        return None


def sync_file(path: str, shown: str) -> None:
    """Raises StorageError: do not try again."""
    try:
        sync_committed(os.path.realpath(path))
    except OSError as error:
        raise StorageError(f"what {shown} has committed cannot be synced: {error}") from None


def writer_of(path: str) -> int:
    """Return the id of the process that writes to the database in file `path`; 0: not known.

    In WAL mode the writer holds byte 120 of the file `-shm` (sqlite.org/walformat.html). The lock is
    looked up in /proc/locks and not with fcntl: closing a descriptor of that file would drop the
    locks that SQLite itself holds on it in this process.
    """
    try:
        found = os.stat(f"{path}-shm")
        with open("/proc/locks", encoding="ascii", errors="replace") as table:
            lines = table.read().splitlines()
    except OSError:
        return 0
    file = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    for line in lines:
        # 1: POSIX  ADVISORY  WRITE 1234 08:01:5678 120 120
        words = line.split()
        if len(words) < 8 or words[1] != "POSIX" or words[3] != "WRITE" or words[5] != file:
            continue
        last = words[7]
        if int(words[6]) <= _WRITER_BYTE and (last == "EOF" or int(last) >= _WRITER_BYTE):
            return max(0, int(words[4]))
    return 0


class SqliteHost:
    """What a ledger in a SQLite file needs of this machine: proof that an owner is dead.

    The owner holds the flock of a file beside the database for as long as it lives; its row names
    the file by path, device and number, and the host and its boot. The lock proves something only
    about that very file: a copy of the database, with its lock files, may have taken its place.
    """

    def __init__(self, session: SqliteSession) -> None:
        self._session = session
        self._disk = OsDisk()
        self._facts = owner_facts()
        self._lock: Lock | None = None  # ours, as owner
        self._held: Lock | None = None  # the dead owner's

    def facts(self) -> dict[str, Any]:
        return dict(self._facts)

    def prove_dead(self, _ledger_id: bytes, _epoch: int, owner: Mapping[str, Any]) -> bool:
        """If so, the owner's lock is held from here on."""
        self.let_go()
        if not owner:
            return True
        here = all(owner.get(name) == self._facts[name] for name in ("host", "boot_id"))
        if here and self._facts["boot_id"]:
            try:
                self._held = self._disk.lock(owner.get("lock", ""))
            except FileNotFoundError:
                return not owner_alive(owner)
            if self._held is None:
                return False
            if list(self._held.identity()) == owner.get("lock_file"):
                return True
            self.let_go()
        return not owner_alive(owner)

    def let_go(self) -> None:
        if self._held is not None:
            self._held.release()
            self._held = None

    def hold(self, ledger_id: bytes, epoch: int) -> dict[str, Any]:
        """Return what the row of the owner says of its lock."""
        if self._lock is not None:
            self._lock.release()
        home = f"{self._session.path}-oncemq"
        os.makedirs(home, exist_ok=True)
        path = f"{home}/{ledger_id.hex()}-{epoch}.lock"
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666))
        self._lock = self._disk.lock(path)
        if self._lock is None:
            raise Fenced(f"another process holds epoch {epoch}")
        return {"lock": path, "lock_file": list(self._lock.identity())}

    def make_way(self, owner: Mapping[str, Any], error: SinkLocked) -> None:
        """End the replaced owner if it is frozen with the lock of the writer. Raises SinkLocked."""
        pid = writer_of(self._session.path)
        if not pid or pid != owner.get("pid"):
            raise error
        try:
            end_frozen_owner(owner)
        except LogInUse as refused:
            raise SinkLocked(f"{error.reason}; {refused.reason}") from error

    def superseded(self, owner: Mapping[str, Any]) -> None:
        """The lock of the replaced owner is of no use any more."""
        self.let_go()
        path = str(owner.get("lock", ""))
        if os.path.dirname(path) == f"{self._session.path}-oncemq" and os.path.exists(path):
            self._disk.unlink(path)

    def close(self) -> None:
        self.let_go()
        if self._lock is not None:
            self._lock.release()
            self._lock = None
