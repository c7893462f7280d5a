"""The processed set of a ledger in tables: runs are made, merged, read by the next owner, and proved."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from oncemq.codec import wire
from oncemq.core.consumer.ledger import Ledger
from oncemq.driver import UNFINISHED_MS, Driver, Silence
from oncemq.errors import CorruptLog
from oncemq.library.embedded.ledger import Keep, _LedgerCore
from oncemq.library.sinks.opening import open_sink
from oncemq.library.sinks.reading import read_sink_group
from oncemq.limits import Limits
from oncemq.shells.tables.ledger import SqlLedger
from tests.core.broker.help import Clock, Events
from tests.shells.ledger.test_runs import prints
from tests.sql.client import rows, run

PLACE = ("seed", "queue", 0)
SMALL = Limits(ledger_table_ids=4, ledger_table_ids_max=4)


class Owner:
    """A process that owns the ledger and commits three ids in each turn."""

    def __init__(self, ledger: SqlLedger, epoch: int, limits: Limits = SMALL) -> None:
        ledger.peek()
        self.ledger = ledger
        self.core = _LedgerCore()
        self.core.ledger = Ledger(limits)
        self.events = Events()
        self.driver = Driver(
            self.core,
            Silence(),
            Clock(),
            self.events,
            perform=lambda _work: None,
            snapshot_every_bytes=700,
            compacts=True,
            files=self.core.ledger.processed,
        )
        self.driver.open_log(ledger.open(epoch), "tables")
        self.driver.turn(0)

    @property
    def count(self) -> int:
        return self.core.ledger.processed.explicit_count

    def commit(self) -> None:
        self.driver.post(Keep(prints(self.count, self.count + 3)))
        self.driver.turn(0)

    def check(self) -> None:
        """It knows exactly the ids of its commits."""
        count = self.core.ledger.commit_no * 3
        fresh = self.core.ledger.processed.explicit.fresh(prints(0, count + 5), b"")
        assert (self.count, fresh) == (count, bytes(count) + b"\1" * 5)


@pytest.fixture
def ledgers(sink: str) -> Iterator[list[SqlLedger]]:
    """Ledger objects of owners that follow each other; all are closed in the end."""
    made = [open_sink(sink, PLACE, lost="", at=lambda _step: None) for _ in range(3)]
    yield made
    for ledger in made:
        ledger.close()


def test_runs_are_made_merged_and_read_again(sink: str, ledgers: list[SqlLedger]) -> None:
    """Each owner, and whoever looks from outside, finds exactly the ids of all commits."""
    for epoch, ledger in enumerate(ledgers, 1):
        owner = Owner(ledger, epoch)
        for _ in range(60):
            owner.commit()
            assert owner.driver.time_left_ms() <= 1_000
        owner.check()
        ledger.close()
    made = [fields["name"] for fields in owner.events.named("file.made")]
    names = {name for (name,) in rows(sink, "SELECT DISTINCT part FROM oncemq_snapshot")}
    named = sum(name.endswith(".map") for name in names)
    assert 0 < named < len(made), "runs were merged, and their rows deleted"
    (found,) = read_sink_group(sink, "seed").values()
    assert (found.commit_no, found.processed.explicit_count) == (180, 540)


def test_a_run_in_the_making_wakes_an_idle_ledger(ledgers: list[SqlLedger]) -> None:
    """Its rows are written also when nothing else happens."""
    large = Limits(ledger_table_ids=100_000, ledger_table_ids_max=100_000)
    owner = Owner(ledgers[0], 1, large)
    owner.driver.post(Keep(prints(0, 250_000)))
    turns = 0
    while not owner.events.named("file.made"):
        assert owner.driver.time_left_ms() <= UNFINISHED_MS
        owner.driver.turn(0)
        turns += 1
    assert turns > 4, "a turn writes 1 MB"


def test_a_lost_row_stops_the_next_owner(sink: str, ledgers: list[SqlLedger]) -> None:
    """There is no older snapshot: it never goes on with a smaller set."""
    owner = Owner(ledgers[0], 1)
    for _ in range(60):
        owner.commit()
    ledgers[0].close()
    run(sink, "DELETE FROM oncemq_snapshot WHERE part LIKE 'run-%'")
    with pytest.raises(CorruptLog, match=r"lacks its part run-"):
        Owner(ledgers[1], 2)


def test_ids_of_an_earlier_version_move_to_runs(sink: str, ledgers: list[SqlLedger]) -> None:
    """Its snapshot had them in parts of their own."""
    owner = Owner(ledgers[0], 1)
    for _ in range(20):
        owner.commit()
    snapshot = owner.core.ledger.snapshot()
    parts = {name: wire.pack_plain(part) for name, part in snapshot.parts.items()}
    del parts["processed"]
    parts["ids-00000000000000000009"] = wire.pack_plain(prints(0, 27))
    parts["ids-00000000000000000020"] = wire.pack_plain(prints(27, 60))
    log = owner.driver.log
    assert log is not None
    log.snapshot_writer(log.durable_end).write(parts)
    ledgers[0].close()
    again = Owner(ledgers[1], 2)
    again.check()
    for _ in range(40):
        again.commit()
    again.check()
    names = {name for (name,) in rows(sink, "SELECT DISTINCT part FROM oncemq_snapshot")}
    assert not any(name.startswith("ids-") for name in names)
