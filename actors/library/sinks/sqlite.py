"""A SQLite file as sink: write-ahead log, synchronous=FULL, and an authorizer over handlers.

A commit is durable when it returns only with `synchronous=FULL` *and* WAL: the rollback journal
can lose an acknowledged commit at a power cut, because the removal of the journal is not synced.
Both are set and read back.

What a commit has told must be found again under the names of the files. SQLite trusts two things that
a user can take away without its notice: that the names go on naming the open files, and its POSIX
locks, which a process loses when it closes any descriptor of the file. So each commit compares the
names with the open files before and after it, and `FileWatch` holds locks that only its own
descriptors can lose.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import sqlite3
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from ...errors import (
    BadSink,
    Fenced,
    LogInUse,
    OnceMQError,
    SinkConflict,
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
# Bytes that every connection in WAL mode has locked for reading (SQLite's os.h and os_unix.c): of the
# database, and of `-shm`. Whoever locks the first ones alone deletes `-wal` when it closes; whoever
# locks the last one alone begins `-shm` anew.
_OPEN_BYTES = (0x40000002, 510)
_SHARED_BYTES = (128, 1)
IO_BUSY_MS = 200  # the I/O thread: it comes again, and leases of others must not wait

# What others hold. SQLITE_LOCKED is a statement that is in the way of another one of its own
# connection, so it is the handler's.
_LOCKS = "SQLITE_BUSY"

# PRAGMAs that would change what a commit promises.
_PROMISES = frozenset({"journal_mode", "synchronous", "locking_mode", "writable_schema"})


class SinkConnection(sqlite3.Connection):
    """What handlers get: all of sqlite3's connection but the end of the transaction."""

    note: Callable[[BaseException], None]  # of its session

    def cursor(self, factory: Any = None) -> Any:
        """As sqlite3's."""
        return super().cursor(factory or SinkCursor)

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        """As sqlite3's, which would make a plain cursor here. So below."""
        cursor: sqlite3.Cursor = self.cursor().execute(*arguments)
        return cursor

    def executemany(self, *arguments: Any) -> sqlite3.Cursor:
        """As sqlite3's."""
        cursor: sqlite3.Cursor = self.cursor().executemany(*arguments)
        return cursor

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


class SinkCursor(sqlite3.Cursor):
    """A cursor that handlers have asked for."""

    def execute(self, *arguments: Any) -> SinkCursor:
        """As sqlite3's; what the database says is noted. So below."""
        try:
            super().execute(*arguments)
        except sqlite3.Error as error:
            self._note(error)
            raise
        return self

    def executemany(self, *arguments: Any) -> SinkCursor:
        """As sqlite3's."""
        try:
            super().executemany(*arguments)
        except sqlite3.Error as error:
            self._note(error)
            raise
        return self

    def _note(self, error: sqlite3.Error) -> None:
        connection = self.connection
        if isinstance(connection, SinkConnection):
            connection.note(error)


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
        self._watch: FileWatch | None = None  # set while connected
        # Whether the system's table of locks tells that this process is the writer; None: not known.
        self._shown_as_writer: bool | None = None

    types: ClassVar[Mapping[str, str]] = {"text": "TEXT", "int": "INTEGER", "bytes": "BLOB"}

    def _may_begin(self) -> bool:
        return self._gate.take(self)

    def has_table(self, name: str) -> bool:
        return bool(self.rows("SELECT 1 FROM sqlite_master WHERE type='table' AND name=?", (name,)))

    def has_column(self, table: str, name: str) -> bool:
        return bool(self.rows("SELECT 1 FROM pragma_table_info(?) WHERE name=?", (table, name)))

    def _connect(self) -> None:
        fresh = not os.path.exists(self.path)
        self._check_possible(fresh=fresh)
        raw = sqlite3.connect(
            self.path,
            timeout=BUSY_MS / 1000,
            isolation_level=None,
            check_same_thread=False,  # session.py says why this is safe
            factory=SinkConnection,
        )
        raw.note = self.note
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
            raw.execute("SELECT count(*) FROM sqlite_master").fetchone()  # opens `-wal` and `-shm`
            raw.set_authorizer(self._authorize)
            self._watch = FileWatch.of(self.path, self.shown)
            self._watch.check()
        except BaseException:
            self._close(raw)
            raise
        self._raw = raw
        if fresh:
            OsDisk().sync_directory(os.path.dirname(self.path))

    def _check_possible(self, *, fresh: bool) -> None:
        """Raise BadSink for a file that SQLite could never write, however long it tried."""
        home = os.path.dirname(self.path)
        if not os.path.isdir(home):
            raise BadSink(
                f"there is no directory {home} for {self.shown}",
                hint="make the directory, or correct the address",
            )
        if os.path.isdir(self.path):
            raise BadSink(f"{self.path} is a directory, not a database", hint="")
        may = os.access(home, os.W_OK | os.X_OK) and (
            fresh or os.access(self.path, os.R_OK | os.W_OK)
        )
        if not may:
            raise BadSink(
                f"this user may not write {self.path} and beside it",
                hint="SQLite needs both: the database, and -wal and -shm in its directory",
            )

    def sync_read(self) -> None:
        """A commit whose process was killed before its sync is read here, and may be lost yet."""
        sync_file(self.path, self.shown)

    def _disconnect(self) -> None:
        raw, self._raw = self._raw, None
        if raw is not None:
            self._close(raw)

    def _close(self, raw: SinkConnection) -> None:
        watch, self._watch = self._watch, None
        if watch is None:
            sqlite3.Connection.close(raw)
        else:
            watch.leave(lambda: sqlite3.Connection.close(raw))

    def check_in_place(self) -> None:
        """Raise StorageError unless the names of the files still name those that are open."""
        if self._watch is not None:
            self._watch.check()

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
        if self._shown_as_writer is None:
            self._shown_as_writer = writer_of(self.path) == os.getpid()

    def _end(self, verb: str) -> None:
        """Raises StorageError for a COMMIT that is not to be relied on: it is never told."""
        if verb != "COMMIT":
            self._run(verb)
            return
        # Before it: else it could overwrite what others have committed to the same `-wal` meanwhile.
        self.check_in_place()
        if self._shown_as_writer and writer_of(self.path) != os.getpid():
            raise StorageError(
                f"this process has lost its lock of {self.shown}: it has closed a descriptor of"
                f" {self.path}-shm; the open transaction is rolled back",
                hint="open none of the database's files in a handler (docs/SQL.md, The files of a sink)",
            )
        self._run(verb)
        self.check_in_place()

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

    def _left_handler(self, error: BaseException) -> OnceMQError | None:
        """Locks that this connection has met are noted; another one may be the handler's own."""
        return None if _name_of(error).startswith(_LOCKS) else self._translated(error)

    def _translated(self, error: BaseException) -> OnceMQError | None:
        name = _name_of(error)
        if name == "SQLITE_BUSY_SNAPSHOT":
            return SinkConflict(f"{self.shown}: {first_line(error)}")
        if name.startswith(_LOCKS):
            pid = writer_of(self.path)
            who = f"process {pid}" if pid else "another process"
            return SinkLocked(f"{self.shown} is locked: {who} is writing to it")
        if name.startswith(("SQLITE_IOERR", "SQLITE_FULL", "SQLITE_CANTOPEN")):
            return SinkUnavailable(f"{self.shown}: {first_line(error)}")
        if name.startswith("SQLITE_CORRUPT"):
            return StorageError(
                f"{self.shown} is damaged: {first_line(error)}",
                hint="restore the database from a backup; OnceMQ changed nothing",
            )
        if name.startswith("SQLITE_NOTADB"):
            return BadSink(f"{self.path} is no SQLite database", hint="correct the address")
        if name.startswith("SQLITE_READONLY"):
            return BadSink(f"{self.path} cannot be written: {first_line(error)}", hint="")
        return None


def _name_of(error: BaseException) -> str:
    """Return SQLite's name of an error, "" for errors of others."""
    found = getattr(error, "sqlite_errorname", "") if isinstance(error, sqlite3.Error) else ""
    return found or ""


_Identity = tuple[int, int]  # device and inode


class FileWatch:
    """The files of one database that the connections of this process have open. Any thread may use it.

    Linux has locks that belong to an open file and not to the process (F_OFD_SETLK). Held for reading
    where SQLite's own connections hold theirs, they keep other processes from deleting `-wal` although
    this process has lost its POSIX locks. Elsewhere only the comparison of names is left.
    """

    _lock = threading.Lock()
    _watches: ClassVar[dict[_Identity, FileWatch]] = {}

    def __init__(self, path: str, shown: str, descriptor: int, identity: _Identity) -> None:
        """For `of`."""
        self._shown = shown
        self._identity = identity
        self._users = 0
        self._opened = True  # whether SQLite has opened these very files
        # To be closed after the last connection and not before: POSIX locks go with any close.
        self._descriptors = [descriptor, os.open(f"{path}-shm", os.O_RDWR | os.O_CLOEXEC)]
        self._files = {
            path: identity,
            f"{path}-wal": identity_of(os.stat(f"{path}-wal")),
            f"{path}-shm": identity_of(os.fstat(self._descriptors[1])),
        }
        _lock_open_file(descriptor, fcntl.F_RDLCK, *_OPEN_BYTES)
        _lock_open_file(self._descriptors[1], fcntl.F_RDLCK, *_SHARED_BYTES)

    @classmethod
    def of(cls, path: str, shown: str) -> FileWatch:
        """Join the watch of the file at `path`, which SQLite has just opened. Raises StorageError.

        If another file has taken its place in this moment, `check` says so.
        """
        with cls._lock:
            try:
                identity = identity_of(os.stat(path))
                watch = cls._watches.get(identity)
                if watch is None:
                    used = _open_files()
                    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                    identity = identity_of(os.fstat(descriptor))
                    watch = cls._watches[identity] = cls(path, shown, descriptor, identity)
                    watch._opened = used is None or used.issuperset(watch._files.values())
            except OSError as error:
                raise StorageError(f"{shown} cannot be watched: {error}", hint="") from error
            watch._users += 1
            return watch

    def check(self) -> None:
        """Raise StorageError if a name does not name the file that is open.

        Raises SinkUnavailable where the file system does not answer: that says nothing of the files.
        """
        if not self._opened:
            raise _replaced(self._shown, min(self._files))
        for path, opened in self._files.items():
            try:
                found = identity_of(os.stat(path))
            except (FileNotFoundError, NotADirectoryError):
                found = None
            except OSError as error:
                raise SinkUnavailable(f"{self._shown}: {error}") from error
            if found != opened:
                raise _replaced(self._shown, path)

    def leave(self, close: Callable[[], None]) -> None:
        """A connection is closed by `close`; with the last one SQLite tidies up: it deletes `-wal`.

        SQLite itself looks whether the file was moved before it deletes by name.
        """
        with self._lock:
            self._users -= 1
            if self._users:
                close()
                return
            del self._watches[self._identity]
            for descriptor in self._descriptors:
                _lock_open_file(descriptor, fcntl.F_UNLCK, 0, 0)
            close()
            for descriptor in self._descriptors:
                os.close(descriptor)


def identity_of(found: os.stat_result) -> _Identity:
    return found.st_dev, found.st_ino


def _replaced(shown: str, path: str) -> StorageError:
    return StorageError(
        f"{path} was deleted or replaced while this consumer had it open: a commit to {shown} would"
        " not be found again, so nothing more is committed",
        hint="stop all consumers of the file, put it back together with its -wal, start again",
    )


def _lock_open_file(descriptor: int, kind: int, start: int, size: int) -> None:
    """Lock a range with a lock of the open file, where the system has such locks. Never waits."""
    command = getattr(fcntl, "F_OFD_SETLK", None)
    if command is not None:
        request = struct.pack("hhqqi4x", kind, os.SEEK_SET, start, size, 0)
        with contextlib.suppress(OSError):  # a file system without them: names are compared anyway
            fcntl.fcntl(descriptor, command, request)


def _open_files() -> set[_Identity] | None:
    """Return the files that this process has open; None where the system does not tell."""
    try:
        names = os.listdir("/dev/fd")
    except OSError:
        return None
    found = set()
    for name in names:
        with contextlib.suppress(OSError):  # the listing itself is closed by now
            found.add(identity_of(os.fstat(int(name))))
    return found


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
