"""A process's connection to a simulated database: each call may be its last, or the connection's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..disk.disk import SimProcess
from ..environment import Role
from ..plan import FILE, SERVER
from .database import Conflict, Database, DatabaseSession, Lost, OwnerKey, Rows

IDLE_MS = 8_000  # a server ends a session that idles in a transaction which handlers are done with


class Client:
    """What a session of the library talks to. Killed and frozen as at calls to the disk."""

    def __init__(self, database: Database, role: Role, member: bytes, process: SimProcess) -> None:
        self.database = database
        self.member = member  # the process that it is a part of, for the broker
        self._role = role
        # What else ends with the process.
        self.at_end: Callable[[], None] = lambda: None
        self.broken = False
        self.in_transaction = False  # as far as this side knows
        self.session: DatabaseSession | None = None
        self._process = process
        self._held: OwnerKey | None = None  # the lock of a dead owner

    def _enter(self, what: str) -> DatabaseSession:
        self._process.enter("sql", f"{what} {self.database.name}")
        session = self.session
        if session is None or session.over:
            raise self._lost(f"{self.database.name}: the connection is lost")
        return session

    def _lost(self, text: str) -> Lost:
        self._forget()
        self.broken = True
        return Lost(text)

    def _forget(self) -> None:
        self.session = None
        self.in_transaction = self.broken = False

    # --- the connection --------------------------------------------------------------------------

    def connect(self) -> None:
        self._process.enter("sql", f"connect {self.database.name}")
        self.session = self.database.open_session(self._role)
        self.broken = False

    def disconnect(self) -> None:
        """End the session in good order; what is open is rolled back."""
        session = self.session
        self._forget()
        if session is not None and not self._process.dead:
            self.database.end(session)

    def process_ended(self) -> None:
        session = self.session
        self._forget()
        if session is not None:
            self.database.vanish(session)
        self.at_end()

    def execute(self, statement: str, values: Sequence[Any] = ()) -> Rows:
        """Raises Lost, Locked, Full, Waits, sqlite3.Error."""
        return self.database.execute(self._enter("statement"), statement, values)

    def begin(self, *, waits: bool) -> None:
        """Raises Lost, Locked, Waits."""
        session = self._enter("begin")
        self.database.begin(session, waits=waits)
        self.in_transaction = True

    def hand_over(self) -> None:
        session = self._enter("statement")
        session.waits = False
        session.handed_over += 1
        number = session.handed_over

        def end_idle() -> None:
            if session.open and not session.waits and session.handed_over == number:
                self.database.end(session)

        if self.database.kind == SERVER:
            self.database.world.after(IDLE_MS, end_idle)

    def roll_back(self) -> None:
        self.database.roll_back(self._enter("rollback"))
        self.in_transaction = False

    def commit(self) -> None:
        """Raises Conflict, and Lost: the commit may be durable all the same."""
        database = self.database
        session = self._enter("commit")
        if database.next_conflict == "commit":
            database.next_conflict = ""
            database.world.trace.add(self._role.name, "sql.conflict at commit")
            database.roll_back(session)
            self.in_transaction = False
            raise Conflict(f"{database.name}: could not serialize access")
        met, database.next_commit = database.next_commit, ""
        if met == "before":
            database.world.trace.add(self._role.name, "sql.lost before commit")
            database.end(session)
        if not session.over:
            unsynced = met == "unsynced"
            database.carry_out(session, risky=unsynced or self._process.hook is not None)
            if unsynced:
                self._process.dead = True
            self._process.enter("sql", f"answer {database.name}")  # a sync, or the way back
            database.make_durable()
            database.world.trace.add(self._role.name, "sql.commit")
        if met == "after":
            database.world.trace.add(self._role.name, "sql.lost after commit")
            database.end(session)
        if session.over:
            raise self._lost(f"{database.name}: the connection broke during COMMIT")
        self.in_transaction = False

    def sync_read(self) -> None:
        """Make durable what was read from a file."""
        self._process.enter("sql", f"sync {self.database.name}")
        if self.database.kind == FILE:
            self.database.make_durable()

    # --- owners ----------------------------------------------------------------------------------

    def facts(self) -> dict[str, Any]:
        session = self._enter("statement")
        return {"pid": self._role.name, "host": self._role.host.name, "session": session.number}

    def take_dead(self, key: OwnerKey) -> bool:
        session = self._enter("statement")
        holder = self.database.owner_of(key)
        if holder is None:
            self._held = key
            session.owner_locks.add(key)
        return holder is None

    def let_go(self) -> None:
        if self.session is not None and self._held is not None:
            self.session.owner_locks.discard(self._held)
        self._held = None

    @property
    def holds_dead(self) -> bool:
        return self._held is not None

    def take_own(self, key: OwnerKey) -> bool:
        session = self._enter("statement")
        holder = self.database.owner_of(key)
        if holder is None:
            session.owner_locks.add(key)
        return holder in {None, session}

    def terminate(self, number: int) -> bool:
        """Return whether that session of a server is over. Raises Lost."""
        self._enter("statement")
        found = [one for one in self.database.sessions if one.number == number]
        if not self.database.may_terminate:
            return not found
        for one in found:
            self.database.world.trace.add(self._role.name, "sql.terminated")
            self.database.end(one)
        return True

    def end_frozen_writer(self, number: int) -> bool:
        """Kill the process that writes to a file, if it is this one and stands still."""
        world, writer = self.database.world, self.database.writer
        if writer is None or writer.number != number:
            return False
        role = writer.role
        if role.frozen_until_ms <= world.clock.now_ms():
            return False
        world.trace.add(role.name, "killed in its transaction")
        world.kill(role)
        return True
