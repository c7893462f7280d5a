"""Mutants of SQL sinks: what must be one transaction, and who may commit.

Most are there twice: fast tests with real databases must catch them, and so must the simulator,
whose consumers keep ledgers in a simulated database.
"""

from __future__ import annotations

import sqlite3
from typing import Any

from oncemq.core.consumer import handling
from oncemq.driver import Driver
from oncemq.errors import SinkConflict, SinkUnavailable
from oncemq.library.effects.effects import Effects
from oncemq.library.handling.in_order import InOrder
from oncemq.library.sinks.sqlite import SqliteSession
from oncemq.shells.tables import statements
from oncemq.shells.tables.ledger import SqlLedger
from oncemq.shells.tables.log import SqlLog
from oncemq.shells.tables.session import Session
from oncemq.sim.database.session import SimulatedSession
from oncemq.sim.plan import FILE, GUARDED, SERVER
from tests.sim.mutants.table import Change, mutant, nothing

_LOG_TESTS = ("tests/sql/test_log.py",)
_HANDLER_TESTS = ("tests/sql/test_handlers.py",)
_EFFECT_TESTS = ("tests/sql/test_effects.py", "tests/sql/test_effect_log.py")


_FILE_TESTS = ("tests/sql/test_sqlite_files.py",)
_CONFLICT_TESTS = ("tests/sql/test_conflicts.py",)


def both(
    name: str,
    rule: str,
    *patches: tuple[Any, str, Change],
    tests: tuple[str, ...],
    faults: tuple[str, ...] = (),
    database: str = "",
) -> None:
    """A mutant that the tests must catch, and the simulator too."""
    mutant(name, rule, *patches, tests=tests)
    mutant(f"{name} (simulated)", rule, *patches, faults=faults, database=database)


def _committed_first(original: Any) -> Any:
    """Commit what handlers wrote, then write the offset in a transaction of its own."""

    def broken(self: Any, call: Any) -> None:
        original(self, call)
        if call is not None:
            self.commit()
            original(self, None)

    return broken


both(
    "SQL offset in a second transaction",
    "user's rows and commit record are one transaction",
    (Session, "join", _committed_first),
    tests=_LOG_TESTS,
)
both(
    "SQL epoch checked only when the ledger is opened",
    "each commit asks for its epoch in the transaction",
    (
        statements,
        "ADVANCE",
        lambda original: original.replace(
            " AND epoch = ? AND commit_no = ? AND position = ?",
            " AND epoch >= ? AND commit_no <> ? - 1000000 AND position <> ? - 1000000",
        ),
    ),
    tests=_LOG_TESTS,
    faults=("stuck at work",),
    database=GUARDED,
)
both(
    "SQL takeover without an epoch of its own",
    "the first act of an owner fences the older ones",
    (SqlLedger, "_claim", lambda _original: lambda self, row, epoch: None),
    tests=_LOG_TESTS,
)
mutant(
    "any open SQL transaction is joined",
    "a commit takes only what its own call wrote",
    (
        Session,
        "join",
        lambda original: lambda self, call: original(self, call if call is None else self._call),
    ),
    tests=_LOG_TESTS,
)
both(
    "no savepoint for a message",
    "a handler that raises has done nothing",
    (Session, "_undo_message", lambda _original: lambda self: None),
    tests=_HANDLER_TESTS,
)
mutant(
    "transaction control let through",
    "nobody else ends the transaction of a commit",
    (SqliteSession, "_authorize", lambda _original: lambda *_: sqlite3.SQLITE_OK),
    tests=_HANDLER_TESTS,
)
both(
    "calls before the SQL commit before them",
    "a call starts when the connection is its own",
    (handling.Handling, "_calls", lambda _original: lambda self, out: out.work),
    tests=_HANDLER_TESTS,
)
both(
    "SQL snapshot that keeps no records back",
    "a snapshot and what it replaces change together",
    (
        SqlLog,
        "write_snapshot",
        lambda original: (
            lambda self, position, parts, keep=(): (
                self._session.change(statements.FORGET_RECORDS, (self.log_id, position)),
                original(self, position, parts, keep),
            )[1]
        ),
    ),
    tests=_LOG_TESTS,
)


def _taken_as_done(original: Any) -> Any:
    def broken(self: Any) -> None:
        try:
            original(self)
        except SinkUnavailable:
            self._over()

    return broken


mutant(
    "unknown outcome of COMMIT taken as done",
    "nothing is promised before the answer to COMMIT has come",
    (Session, "commit", _taken_as_done),
)


class _Forgetful:
    """Owners take up a ledger where they know it to be, without a look at the row."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str, int], tuple[int, int, dict[str, int]]] = {}

    def commit(self, original: Any) -> Any:
        """Remember where the ledger stands if the answer to COMMIT does not come."""

        def broken(log: Any) -> None:
            before = (log._durable, log._commit_no, dict(log._inputs))
            try:
                original(log)
            except SinkUnavailable:
                self._known[log._place] = before
                raise

        return broken

    def open(self, original: Any) -> Any:
        """Go on from there."""

        def broken(ledger: Any, epoch: int) -> Any:
            log = original(ledger, epoch)
            before = self._known.pop(ledger._place, None)
            if before is not None and before[1] == log._commit_no - 1:
                log._durable, log._commit_no, log._inputs = before
                log._end = log._durable
            return log

        return broken


_forgetful = _Forgetful()
mutant(
    "unknown outcome of COMMIT taken as not done",
    "who does not know what became of a COMMIT looks",
    (SqlLog, "_commit", _forgetful.commit),
    (SqlLedger, "open", _forgetful.open),
)


def _before_the_row(original: Any) -> Any:
    def broken(self: Any, event: Any, now: int) -> None:
        original(self, event, now)
        if isinstance(self._log, SqlLog):
            for send in self._held.sends_after_sync:
                self._send(send)
            self._held.sends_after_sync.clear()

    return broken


mutant(
    "outputs sent before the SQL commit",
    "outputs leave after the row of their commit is durable",
    (Driver, "_step", _before_the_row),
)


def _at_once(original: Any) -> Any:
    def broken(self: Any) -> int:
        if len(self._pending) < 2 and not getattr(self, "_hurried", False):
            self._hurried = bool(self._pending)
            return int(self._end)
        self._hurried = False
        return int(original(self))

    return broken


mutant(
    "SQL commit left to a later turn",
    "what a sync covers is committed when it returns",
    (SqlLog, "sync", _at_once),
)


def _goes_on(original: Any) -> Any:
    def broken(self: Any, call: Any) -> None:
        place = self._place
        original(self, call) if place != "returned" else None
        if place == "returned":
            self._place, self._call, self.undone = "lent", call, False

    return broken


mutant(
    "what a dropped call left open goes on",
    "a call begins with nothing open",
    (Session, "start_call", _goes_on),
)
mutant(
    "a ledger in a file told before it is synced",
    "what the broker is told of a ledger is durable",
    (SimulatedSession, "sync_read", nothing),
    faults=("unsynced commit",),
    database=FILE,
)
mutant(
    "a wish to write that nobody has any more",
    "handlers wait only for who will come",
    (Session, "forget_wish", nothing),
    tests=("tests/sql/test_parts.py",),
)


# --- effects -------------------------------------------------------------------------------------

mutant(
    "a handler is not left for its effect",
    "what a handler wrote before a call is committed with what it wrote behind it",
    (Effects, "_leave_for", lambda _original: lambda self, wish: None),
    tests=_EFFECT_TESTS,
)
mutant(
    "a handed-in transaction stays open",
    "no transaction is open across a call, nor behind an answer that does not count",
    (Session, "drop", lambda _original: lambda self: None),
    tests=_EFFECT_TESTS,
)


def _nobody_was_left(original: Any) -> Any:
    def broken(self: Any) -> None:
        self._left = None
        original(self)

    return broken


mutant(
    "a handler that swallows what left it is committed",
    "a handler whose work was taken back has not returned",
    (Effects, "accept", _nobody_was_left),
    tests=_EFFECT_TESTS,
)
mutant(
    "a handler that was left ends its call with a failure",
    "being left is no attempt that failed",
    (Effects, "left_by", lambda _original: lambda self, error: None),
    tests=_EFFECT_TESTS,
)
mutant(
    "messages before an effect wait for it",
    "the call ends before a message that was left",
    (InOrder, "_comes_later", lambda _original: lambda self: False),
    tests=_EFFECT_TESTS,
)
mutant(
    "a result is given up where a lock is in the way",
    "what a call returned is recorded as soon as anybody can write",
    (Session, "hand_in", lambda original: lambda self, patient=False: original(self)),
    tests=_EFFECT_TESTS,
)
mutant(
    "records of an effect join any open transaction",
    "a record that is not of the open call waits for its end",
    (
        Session,
        "must_wait",
        lambda original: lambda self, call: original(self, self._call),
    ),
    tests=_EFFECT_TESTS,
)
mutant(
    "an order outlives the record that says the same",
    "an operator's word is taken in one transaction, and counts once",
    (statements, "FORGET_ORDER", lambda original: f"{original} AND how = 'nobody'"),
    tests=_EFFECT_TESTS,
)
mutant(
    "the last word about a call stands",
    "who speaks first about a call has spoken",
    (
        statements,
        "GIVE_ORDER",
        lambda original: original.replace("NOTHING", "UPDATE SET how = excluded.how"),
    ),
    tests=_EFFECT_TESTS,
)

mutant(
    "SQLite files are not looked at",
    "a commit is told only while its names name the open files",
    (SqliteSession, "check_in_place", nothing),
    tests=_FILE_TESTS,
)
both(
    "a conflict is a failure of its message",
    "what the database wants run again counts as no attempt",
    (handling, "AGAIN", lambda _original: "no kind"),
    tests=_CONFLICT_TESTS,
    faults=("rival session",),
    database=SERVER,
)


def _conflict_passed_over(original: Any) -> Any:
    def broken(self: Any) -> None:
        try:
            original(self)
        except SinkConflict:
            self._over()

    return broken


both(
    "a conflict at the commit is passed over",
    "what the database has rolled back is not told",
    (Session, "commit", _conflict_passed_over),
    tests=_CONFLICT_TESTS,
    faults=("rival session",),
    database=SERVER,
)
mutant(
    "a handler settles a conflict by catching it",
    "the transaction is gone whatever the handler does",
    (Session, "note", nothing),
    tests=_CONFLICT_TESTS,
)
