"""A consumer's connection to a simulated database, and the ledger in its tables.

The session is that of SQLite and PostgreSQL; what a kind of database does by itself is simulated.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from ...errors import Fenced, OnceMQError, SinkConflict, SinkLocked, SinkUnavailable
from ...shells.tables.gate import Gate
from ...shells.tables.ledger import SqlLedger
from ...shells.tables.session import Session
from ..plan import FILE, SERVER
from ..processes.handler import REFUSED
from .client import Client
from .database import Conflict, Full, Locked, Lost, Rows, Waits

SMALL_ROW_BYTES = 200  # of a part that is read by rows: a run of few ids takes more than one turn


class SimulatedSession(Session):
    """A consumer's connection to a simulated database."""

    types: ClassVar[Mapping[str, str]] = {"text": "TEXT", "int": "INTEGER", "bytes": "BLOB"}

    def __init__(self, client: Client, shown: str) -> None:
        super().__init__(shown)
        self._client = client
        self._gate: Gate | None = None
        if client.database.kind == FILE:
            gate = client.database.gates.setdefault(client.member, Gate())
            client.at_end = lambda: gate.free(self)
            self._gate = gate

    def has_table(self, name: str) -> bool:
        return bool(self.rows("SELECT 1 FROM sqlite_master WHERE type='table' AND name=?", (name,)))

    def has_column(self, table: str, name: str) -> bool:
        # Not by pragma_table_info: SQLite 3.40 dies of it where the database was deserialized.
        query = "SELECT sql FROM sqlite_master WHERE type='table' AND name=?"
        return any(re.search(rf"\b{name}\b", sql) for (sql,) in self.rows(query, (table,)))

    def sync_read(self) -> None:
        """A commit whose process was killed before its sync is read here, and may be lost yet."""
        self._checked(self._client.sync_read)

    def _may_begin(self) -> bool:
        return self._gate is None or self._gate.take(self)

    def _connect(self) -> None:
        self._client.connect()

    def _disconnect(self) -> None:
        self._client.disconnect()

    @property
    def broken(self) -> bool:
        return self._client.broken

    @property
    def _handed_out(self) -> Client:
        return self._client

    def _run(self, statement: str, values: Sequence[Any] = ()) -> Rows:
        return self._client.execute(statement, values)

    def _begin(self, *, waits: bool) -> None:
        gate = self._gate
        if gate is not None and not (gate.wait(self, 0) if waits else gate.take(self)):
            raise (Waits if waits else Locked)(f"{self.shown}: another partition is writing")
        try:
            self._client.begin(waits=waits)
        except BaseException:
            self._ended()
            raise

    def _settle(self) -> None:
        if self._client.database.kind == SERVER and self._run(REFUSED) != [(0,)]:
            raise sqlite3.IntegrityError("a constraint that is checked at the end refuses it")

    def _hand_over(self) -> None:
        self._client.hand_over()

    def _end(self, verb: str) -> None:
        if verb == "COMMIT":
            self._client.commit()
        else:
            self._client.roll_back()

    def _ended(self) -> None:
        if self._gate is not None:
            self._gate.free(self)

    def _in_transaction(self) -> bool:
        return self._client.in_transaction

    def _is_of_driver(self, error: BaseException) -> bool:
        return isinstance(error, sqlite3.Error)

    def _translated(self, error: BaseException) -> OnceMQError | None:
        if isinstance(error, Conflict):
            return SinkConflict(f"{self.shown}: {error}")
        if isinstance(error, Locked):
            return SinkLocked(f"{self.shown}: {error}")
        return SinkUnavailable(f"{self.shown}: {error}") if isinstance(error, Lost | Full) else None


class SimulatedOwners:
    """What a ledger in a simulated database needs to know of owners."""

    def __init__(self, session: SimulatedSession, client: Client) -> None:
        self._session = session
        self._client = client

    def _checked(self, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except Lost as error:
            raise SinkUnavailable(f"{self._session.shown}: {error}") from error

    def facts(self) -> dict[str, Any]:
        return dict(self._checked(self._client.facts))

    def prove_dead(self, ledger_id: bytes, epoch: int, _owner: Mapping[str, Any]) -> bool:
        """Whether the owner is proved dead; its lock is held from here on."""
        self.let_go()
        return bool(self._checked(lambda: self._client.take_dead((ledger_id, epoch))))

    def let_go(self) -> None:
        self._client.let_go()

    def hold(self, ledger_id: bytes, epoch: int) -> dict[str, Any]:
        """Raises Fenced."""
        if not self._checked(lambda: self._client.take_own((ledger_id, epoch))):
            raise Fenced(f"another process holds epoch {epoch}")
        return {}

    def make_way(self, owner: Mapping[str, Any], error: SinkLocked) -> None:
        """End the replaced owner if its lock is in the way. Raises SinkLocked."""
        number = owner.get("session", 0)
        ended = self._client.end_frozen_writer
        if self._client.database.kind == SERVER:
            ended = self._client.terminate
        if not self._checked(lambda: ended(number)):
            raise error

    def superseded(self, owner: Mapping[str, Any]) -> None:
        """The owner is replaced: rows that it has locked are to be free for us."""
        if self._client.database.kind == SERVER and not self._client.holds_dead:
            self._checked(lambda: self._client.terminate(owner.get("session", 0)))
        self.let_go()

    def close(self) -> None:
        self.let_go()


def open_tables(
    client: Client,
    shown: str,
    place: tuple[str, str, int],
    *,
    host: str,
    lost: str,
    draw: Callable[[], bytes],
) -> SqlLedger:
    """Return the ledger of a place in a simulated database; connect to nothing."""
    session = SimulatedSession(client, shown)
    owners = SimulatedOwners(session, client)
    return SqlLedger(
        session, owners, place, host=host, lost=lost, draw=draw, row_bytes=SMALL_ROW_BYTES
    )
