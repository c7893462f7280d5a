"""A database of users in a simulated world: sessions with transactions, locks and sudden ends.

Theory of operation. SQLite's engine computes: one connection to a database in memory, which holds
what is committed. Each session keeps the statements of its open transaction. Those of one session
at a time are carried out in the engine; when another session has its turn they are taken back, and
later carried out again. Rows that a transaction has updated are its own until it ends, so that
carrying out again does the same.

A database of kind SERVER has row locks, and sessions that it ends when it stops, when it is told to
and when they idle in a transaction that was handed over. One of kind FILE has one writer, who holds
it while its process lives, and a commit that is there before it is synced: another process reads it
meanwhile, and a power cut may take it away.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from ..environment import Environment, Host, Role
from ..oracles.ledger import LedgerOracle
from ..oracles.log import Place
from ..oracles.table import TableOracle, account_of
from ..plan import FILE, SERVER
from ..processes.handler import OPEN_ACCOUNT, TABLES

LINGER_MS = 9_000  # how long a server keeps the session of a machine that has vanished

_WRITES = frozenset({"INSERT", "UPDATE", "DELETE", "CREATE"})

Statement = tuple[str, tuple[Any, ...]]
OwnerKey = tuple[bytes, int]  # ledger id, epoch


class Lost(Exception):
    """The session is over. What became of its last statement is not known."""


class Locked(Exception):
    """Another session has what this one wants."""


class Conflict(Exception):
    """The transaction is over because of another session: it is to be run again."""


class Full(Exception):
    """Nothing more can be written."""


class Waits(BaseException):
    """A handler waits for a lock: its statement is to be tried again. Nothing was done."""


class Rows(list[tuple[Any, ...]]):
    """What a statement returned, and how many rows it changed."""

    def __init__(self, rows: Sequence[tuple[Any, ...]], rowcount: int) -> None:
        super().__init__(rows)
        self.rowcount = rowcount


class DatabaseSession:
    """What the database knows of one connection."""

    def __init__(self, number: int, role: Role) -> None:
        self.number = number
        self.role = role
        self.over = False
        self.lingers = False  # its machine is gone, and the server does not know
        self.open = False  # whether it has a transaction
        self.waits = False  # whether its transaction is in the hands of handlers
        self.statements: list[Statement] = []  # of the open transaction
        self.owner_locks: set[OwnerKey] = set()
        self.handed_over = 0  # how often


class Database:
    """One database, its sessions and its locks."""

    def __init__(self, world: Environment, name: str, kind: str, host: Host) -> None:
        """`kind` is one of DATABASE_KINDS; `host` is where a file is."""
        self.world = world
        self.name = name
        self.host = host
        self.kind = FILE if kind == FILE else SERVER
        self.may_terminate = kind == SERVER
        self.up = True
        self.full = False
        self.gates: dict[bytes, Any] = {}  # by process: who of it may write to a file
        self.sessions: list[DatabaseSession] = []
        self.oracle = TableOracle(world.oracle, name, self._committed_rows)
        # What the next COMMIT meets: "before" or "after" it is carried out its session is lost; or
        # its process dies before the sync of a file ("unsynced").
        self.next_commit = ""
        # Where a session of a server is told next to run its transaction again: "statement" or "commit".
        self.next_conflict = ""
        # What happens when somebody reads what is committed and not synced.
        self.unsynced_read: Callable[[], None] | None = None
        self._numbers = 0
        self.writer: DatabaseSession | None = None  # of a file
        self._locked: dict[tuple[str, int], DatabaseSession] = {}  # rows of a server
        self._loaded: DatabaseSession | None = None  # whose transaction the engine has
        self._image: bytes | None = None  # what a power cut leaves; None: all that is committed
        self._engine = sqlite3.connect(":memory:", isolation_level=None)
        for statement in TABLES:
            self._engine.execute(statement)

    def add(self, place: Place, model: LedgerOracle) -> None:
        """Adding a place again changes nothing."""
        if self.oracle.knows(place):
            return
        self._engine.execute(OPEN_ACCOUNT, (account_of(place),))
        self.oracle.add(place, model)

    def restore(self, source: Database, place: Place) -> LedgerOracle:
        """Become a copy of another one; return the model of a place there."""
        source._unload()
        self._engine.deserialize(source._engine.serialize())
        model = self.oracle.restore(source.oracle, place)
        self._changed()
        return model

    def close(self) -> None:
        self._engine.close()

    # --- sessions --------------------------------------------------------------------------------

    def open_session(self, role: Role) -> DatabaseSession:
        if not self.up:
            raise Lost(f"{self.name}: connection refused")
        self._numbers += 1
        session = DatabaseSession(self._numbers, role)
        self.sessions.append(session)
        return session

    def end(self, session: DatabaseSession) -> None:
        if session.over:
            return
        self.roll_back(session)
        session.over = True
        session.owner_locks.clear()
        self.sessions.remove(session)

    def vanish(self, session: DatabaseSession) -> None:
        """A server whose client's machine went silent learns of it later."""
        if self.kind == SERVER and session.lingers:
            self.world.after(LINGER_MS, lambda: self.end(session))
        else:
            self.end(session)

    def stop(self) -> None:
        self.up = False
        for session in list(self.sessions):
            self.end(session)

    def owner_of(self, key: OwnerKey) -> DatabaseSession | None:
        return next((one for one in self.sessions if key in one.owner_locks), None)

    # --- statements ------------------------------------------------------------------------------

    def execute(self, session: DatabaseSession, text: str, values: Sequence[Any]) -> Rows:
        """Raises Waits, Locked, Full, Conflict, sqlite3.Error."""
        verb = text.split(None, 1)[0]
        if verb in _WRITES and session.waits and self.next_conflict == "statement":
            self.next_conflict = ""
            raise Conflict(f"{self.name}: could not serialize access")
        if verb in _WRITES and self.full:
            raise Full(f"{self.name} is full")
        self._load(session)
        if self._image is not None and verb == "SELECT" and self.unsynced_read is not None:
            self.unsynced_read()
        if verb == "ROLLBACK":  # to the savepoint of the message
            self._forget_message(session)
        changing = verb in _WRITES and verb != "CREATE"
        cursor = self._engine.execute(f"{text} RETURNING rowid" if changing else text, values)
        found = cursor.fetchall()
        if verb == "UPDATE":
            self._lock_rows(session, text.split(None, 2)[1], [rowid for (rowid,) in found])
        if session.open and verb not in {"SELECT", "ROLLBACK"}:
            session.statements.append((text, tuple(values)))
        elif changing:  # without a transaction: it is one of its own
            self._changed()
        return Rows([], len(found)) if changing else Rows(found, -1)

    def _lock_rows(self, session: DatabaseSession, table: str, rowids: list[int]) -> None:
        rows = [(table, rowid) for rowid in rowids]
        if any(self._locked.get(row, session) is not session for row in rows):
            self._unload()  # and with it the update that is not to be
            if session.waits:
                raise Waits(f"{self.name}: a row of {table}")
            raise Locked(f"{self.name}: a row of {table}")
        if self.kind == SERVER and session.open:
            self._locked.update(dict.fromkeys(rows, session))

    @staticmethod
    def _forget_message(session: DatabaseSession) -> None:
        while not session.statements[-1][0].startswith("SAVEPOINT"):
            session.statements.pop()

    def begin(self, session: DatabaseSession, *, waits: bool) -> None:
        """Raises Waits, Locked."""
        if self.kind == FILE:
            if self.writer not in {None, session}:
                raise (Waits if waits else Locked)(f"{self.name}: another process is writing")
            self.writer = session
        session.open = True
        session.waits = waits

    def roll_back(self, session: DatabaseSession) -> None:
        if self._loaded is session:
            self._unload()
        self._over(session)

    def carry_out(self, session: DatabaseSession, *, risky: bool) -> None:
        """Commit: all others see it from now on. `risky`: the process may die before its sync."""
        if self.kind == FILE and risky and self._image is None:
            self._unload()
            self._image = self._engine.serialize()
        self._load(session)
        self._engine.execute("COMMIT")
        self._loaded = None
        self._over(session)
        self._changed()

    def make_durable(self) -> None:
        """Sync a file; a server's commits are durable already."""
        if self._image is not None:
            self._image = None
            self._changed()

    def power_cut(self, host: Host) -> None:
        """The machine of clients has stopped, and with it a file."""
        for session in list(self.sessions):
            session.lingers = session.lingers or session.role.host is host
        if self.kind != FILE or host is not self.host:
            return
        for session in list(self.sessions):
            self.end(session)
        if self._image is not None:
            self._unload()
            self._engine.deserialize(self._image)
            self._image = None
            self.world.trace.add(self.name, "unsynced commit lost")

    def look(self) -> AbstractContextManager[Callable[[str, Sequence[Any]], list[tuple[Any, ...]]]]:
        return nullcontext(self._committed_rows)

    def read_back(self) -> None:
        """The power goes for good; what is left must be what was promised. Raises Violation."""
        for session in list(self.sessions):
            self.end(session)
        if self._image is not None:
            self._engine.deserialize(self._image)
        self.oracle.read_back()

    def _over(self, session: DatabaseSession) -> None:
        session.open = session.waits = False
        session.statements.clear()
        if self.writer is session:
            self.writer = None
        for row in [row for row, holder in self._locked.items() if holder is session]:
            del self._locked[row]

    # --- the engine ------------------------------------------------------------------------------

    def _load(self, session: DatabaseSession) -> None:
        if self._loaded is session:
            return
        self._unload()
        if session.open:
            self._engine.execute("BEGIN")
            self._loaded = session
            for text, values in session.statements:
                self._engine.execute(text, values)

    def _unload(self) -> None:
        if self._loaded is not None:
            self._engine.execute("ROLLBACK")
            self._loaded = None

    def _changed(self) -> None:
        """Something is committed; the oracle looks at what is durable."""
        if self._image is None:
            self.oracle.look()

    def _committed_rows(self, text: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        self._unload()
        return self._engine.execute(text, values).fetchall()
