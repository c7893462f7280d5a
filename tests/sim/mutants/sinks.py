"""Mutants of SQL sinks: what must be one transaction, and who may commit."""

from __future__ import annotations

import sqlite3
from typing import Any

from actors.core import handling
from actors.library.sinks import statements
from actors.library.sinks.ledger import SqlLedger
from actors.library.sinks.log import SqlLog
from actors.library.sinks.session import Session
from actors.library.sinks.sqlite import SqliteSession
from tests.sim.mutants.table import mutant

_LOG_TESTS = ("tests/sql/test_log.py",)
_HANDLER_TESTS = ("tests/sql/test_handlers.py",)


def _committed_first(original: Any) -> Any:
    """Commit what handlers wrote, then write the offset in a transaction of its own."""

    def broken(self: Any, call: Any) -> None:
        original(self, call)
        if call is not None:
            self.commit()
            original(self, None)

    return broken


mutant(
    "SQL offset in a second transaction",
    "user's rows and commit record are one transaction",
    (Session, "join", _committed_first),
    tests=_LOG_TESTS,
)
mutant(
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
)
mutant(
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
mutant(
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
mutant(
    "calls before the SQL commit before them",
    "a call starts when the connection is its own",
    (handling.Handling, "_calls", lambda _original: lambda self, out: out.work),
    tests=_HANDLER_TESTS,
)
mutant(
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
