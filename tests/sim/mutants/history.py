"""Mutants of histories: the mark is dropped somewhere on its way, or not compared."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from oncemq import driver
from oncemq.core.broker.core import BrokerCore
from oncemq.core.broker.groups import GroupTable
from oncemq.core.broker.state import BrokerState
from oncemq.core.client.connection import Connection
from oncemq.core.consumer import handling, seeker
from oncemq.core.consumer.commits import Acked
from oncemq.core.consumer.fetch import Fetcher
from oncemq.core.consumer.ledger import Ledger
from oncemq.history import NO_PLACE, History
from oncemq.shells.ledger.files import LedgerFiles
from oncemq.shells.tables import log as tables_log
from tests.sim.mutants.table import mutant, nothing

BACKUPS = ("backup", "kill")
BROKERS = ("tests/core/broker/test_same_log.py",)
GROUPS = ("tests/core/consumer/test_same_log.py",)


def _unseen(original: Any) -> Any:
    def broken(*args: Any, **options: Any) -> Any:
        record = original(*args, **options)
        record.seen = NO_PLACE
        return record

    return broken


mutant(
    "commits do not say what they rely on",
    "a ledger carries the place of what it has passed",
    (handling, "committed", _unseen),
)
mutant(
    "acknowledged outputs do not count as relied on",
    "a ledger carries the place of the acknowledgements that it has recorded",
    (
        Acked,
        "add",
        lambda original: (
            lambda self, topic, partition, following, _place: original(
                self, topic, partition, following, NO_PLACE
            )
        ),
    ),
)
mutant(
    "marks and intents do not count as relied on",
    "a record that names a message by its offset is of one history",
    (handling.Handling, "_rely_on", nothing),
)
mutant(
    "answers tell the end of the log before their own sync",
    "a place covers the record that its answer is about",
    (driver, "_telling", lambda _original: lambda send, _end: send),
)
mutant(
    "a join does not report the place",
    "the broker compares what the ledger relies on",
    (LedgerFiles, "peek", lambda original: lambda self: replace(original(self), seen=NO_PLACE)),
    faults=BACKUPS,
)
mutant(
    "places compared by position alone",
    "a log that has grown past a place may still lack its history",
    (History, "holds", lambda _original: lambda _self, place, end: place.position <= end),
    faults=BACKUPS,
)
mutant(
    "places compared by mark alone",
    "a history ends where the next mark begins",
    (History, "holds", lambda _original: lambda self, place, _end: place.mark in self._numbers),
    faults=BACKUPS,
)
mutant(
    "places not compared",
    "any difference is refused",
    (BrokerState, "check_place", nothing),
    faults=BACKUPS,
)
mutant(
    "clients forget what they rely on",
    "each hello but the first names the furthest place",
    (Connection, "rely", nothing),
    faults=BACKUPS,
)


def _without_history(original: Any) -> Any:
    def broken(self: Any, parts: Any) -> None:
        original(self, {**parts, "history": []})

    return broken


mutant(
    "marks missing from the broker's snapshots",
    "the broker knows the marks of all its generations",
    (BrokerState, "restore", _without_history),
    faults=("kill",),
)
mutant(
    "the place missing from the ledger's snapshots",
    "snapshot and replay lead to the same ledger",
    (
        Ledger,
        "_rarely",
        lambda original: (
            lambda self: {name: v for name, v in original(self).items() if name != "seen"}
        ),
    ),
    faults=BACKUPS,
)


def _drop_seen(original: Any) -> Any:
    def broken(self: Any, record: Any) -> None:
        seen = self.seen
        original(self, record)
        self.seen = seen

    return broken


mutant(
    "the row of a SQL ledger without the place",
    "place and offset are one row of one transaction",
    (tables_log._Facts, "take", _drop_seen),
    database="file",
)
mutant(
    "a start of the broker begins no history",
    "a restored log has a mark of its own",
    (BrokerCore, "_begin_history", nothing),
    tests=BROKERS,
)


def _fetches_blindly(original: Any) -> Any:
    def broken(self: Any, now_ms: int, out: Any) -> None:
        before = len(out.sends_after_sync)
        original(self, now_ms, out)
        sends = out.sends_after_sync
        for number in range(before, len(sends)):
            fetch = replace(sends[number].message, mark=b"", position=0)
            sends[number] = replace(sends[number], message=fetch)

    return broken


mutant(
    "fetches do not say what was read before",
    "a fetch in flight carries the place",
    (Fetcher, "ask", _fetches_blindly),
    tests=GROUPS,
)
mutant(
    "a ledger without a place follows one with",
    "old files are taken up once",
    (
        GroupTable,
        "check_ledger",
        lambda original: (
            lambda self, key, join, end, **more: original(
                self, key, replace(join, mark=join.mark or b"m" * 16), end, **more
            )
        ),
    ),
    tests=BROKERS,
)
mutant(
    "a ledger of an older version is never taken up",
    "old files are taken up once",
    (Ledger, "unmarked", lambda _original: property(lambda _self: False)),
    tests=GROUPS,
)
mutant(
    "a move keeps the place of the lost history",
    "an operator's move takes the broker's current place",
    (seeker, "place_in", lambda _original: lambda _answer: NO_PLACE),
    tests=GROUPS,
)
mutant(
    "effects of a lost past stay open",
    "the result of a call is that of one message",
    (
        Ledger,
        "_commit",
        lambda original: lambda self, record: original(self, replace(record, accepted=NO_PLACE)),
    ),
    tests=("tests/core/consumer/test_seeker.py",),
)
mutant(
    "outputs keep numbers that the log has forgotten",
    "a committed output can always go out",
    (Ledger, "_renumber", nothing),
    tests=GROUPS,
)
