"""Mutants of the processed set: explicit ids of a consumer, in files and in tables."""

from __future__ import annotations

from typing import Any

import numpy as np

from oncemq.core.consumer import handling
from oncemq.core.consumer.explicit_ids import ExplicitIds
from oncemq.core.consumer.ledger import Ledger
from oncemq.core.consumer.processed import Processed
from oncemq.errors import CorruptLog
from oncemq.records import LedgerStarted
from oncemq.shells.tables import parts, statements
from oncemq.shells.tables.log import SqlLog
from tests.sim.mutants.table import mutant


def _by_one_half(original: Any) -> Any:
    def broken(self: Any, fingerprints: bytes, before: bytes) -> bytes | None:
        high = np.frombuffer(fingerprints, "<u8")[::2]
        there = [np.frombuffer(blob, "<u8")[::2] for blob in self.all()]
        known = np.isin(high, np.concatenate(there)) if there else np.zeros(len(high), np.bool_)
        exact = original(self, fingerprints, before)
        fresh = ~known if exact is None else ~known & np.frombuffer(exact, np.bool_)
        return None if fresh.all() else fresh.tobytes()

    return broken


mutant(
    "processed set searched by 64 bits only",
    "128 bits decide whether a message is dropped",
    (ExplicitIds, "fresh", _by_one_half),
    tests=("tests/core/consumer/test_processed.py",),
)
mutant(
    "ids of the commit before are not asked",
    "an id in an appended commit is not handled again",
    (
        handling,
        "leave_out_known",
        lambda original: lambda window, processed, _before: original(window, processed, None),
    ),
    tests=("tests/core/consumer/test_core.py", "tests/core/consumer/test_machine.py"),
)


def _without_waiting(original: Any) -> Any:
    def broken(self: Any) -> Any:
        frozen, files = original(self)
        for part in frozen.values():
            part[-1] = self.explicit._tree._table.entries.astype("<u8").tobytes()
        return frozen, files

    return broken


def _without_a_run(original: Any) -> Any:
    def broken(self: Any) -> Any:
        frozen, files = original(self)
        for part in frozen.values():
            part[2] = part[2][1:]
        return frozen, files[1:]

    return broken


mutant(
    "snapshot of a ledger without the waiting tables",
    "a snapshot holds the ids that no file holds",
    (Processed, "freeze", _without_waiting),
)
mutant(
    "snapshot of a ledger forgets a run",
    "a snapshot names every file of the processed set",
    (Processed, "freeze", _without_a_run),
)
mutant(
    "ids of older versions are not taken up",
    "a new version goes on from old files",
    (
        Processed,
        "restore",
        lambda original: (
            lambda self, given: original(
                self, {name: part for name, part in given.items() if "ids-" not in name}
            )
        ),
    ),
    tests=("tests/core/consumer/test_ledger.py", "tests/library/ledgers/test_export.py"),
)


def _smaller(original: Any) -> Any:
    def broken(self: Any, part: Any, given: Any) -> None:
        try:
            original(self, part, given)
        except CorruptLog:
            original(self, [*part[:2], [], part[3]], given)

    return broken


mutant(
    "a damaged run is left out of a ledger",
    "damage never makes a smaller set",
    (ExplicitIds, "restore", _smaller),
    tests=("tests/shells/ledger/test_runs.py",),
)
mutant(
    "a ledger that could not be restored keeps what it took",
    "another snapshot is restored into a fresh ledger",
    (
        Ledger,
        "restore",
        lambda original: lambda self, given: _start_first(original, self, given),
    ),
    tests=("tests/shells/ledger/test_runs.py",),
)


def _start_first(original: Any, self: Any, given: Any) -> None:
    try:
        original(self, given)
    except CorruptLog:
        self.started = LedgerStarted(*given["ledger"]["started"])
        raise


# --- in tables -----------------------------------------------------------------------------------


def _without_a_row(original: Any) -> Any:
    def broken(pieces: Any, size: int) -> Any:
        rows = list(original(pieces, size))
        yield from rows[:1] + rows[2:] if len(rows) > 2 else rows

    return broken


mutant(
    "SQL chunk forgotten in a merge",
    "a part in rows is whole",
    (parts, "_cut", _without_a_row),
    database="file",
)


def _spends_all(original: Any) -> Any:
    def broken(self: Any, *snapshot: Any) -> Any:
        info = original(self, *snapshot)
        names = self._tables.parts()
        self.spent_parts = {one for one in names if one.endswith(statements.PAGED)}
        return info

    return broken


mutant(
    "rows that a snapshot names are deleted",
    "only what no snapshot needs is deleted",
    (SqlLog, "write_snapshot", _spends_all),
    database="file",
)
mutant(
    "a replaced owner writes on beside its commits",
    "a stale owner writes nothing",
    (
        statements,
        "STILL_OWNS",
        lambda original: original.replace(" AND epoch = ?", " AND epoch >= ? - 999"),
    ),
    tests=("tests/sql/test_log.py",),
)
mutant(
    "the place of a writer is kept after the last piece",
    "others of the process may write",
    (SqlLog, "take_part", lambda _original: _keeps_the_place),
    database="file",
)


def _keeps_the_place(self: Any, part: str) -> Any:
    self._unfinished.discard(part)
    return self._tables.mapped(part)
