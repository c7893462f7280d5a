"""Mutants of backups, restores and fsck."""

from __future__ import annotations

from typing import Any

from oncemq.core.broker import core
from oncemq.core.broker.core import BrokerCore
from oncemq.library.backups import make, restore
from oncemq.library.backups.catalog import BROKER, CATALOG, Catalog, Log
from oncemq.library.backups.cut import BrokerCut
from oncemq.library.backups.fsck import ledgers_in
from oncemq.library.backups.make import Attempt
from oncemq.library.backups.restore import _Files
from oncemq.sim.processes import restored
from oncemq.storage import check, copying, layout
from tests.sim.mutants.table import mutant, nothing

BACKUP = ("tests/library/backups/test_backup.py",)
RESTORE = ("tests/library/backups/test_restore.py",)
CORE = ("tests/core/broker/test_core.py",)


class _Anything(BrokerCut):
    """What a cut would be that knows nothing of the broker's log."""

    def __init__(self) -> None:
        super().__init__(b"", 0)

    def covers(self, facts: Any) -> bool:
        return bool(facts) or True


def _ledgers_first(_original: Any) -> Any:
    def broken(self: Attempt) -> Any:
        disk, job = self.disk, self.job
        layout.make_directories(disk, self.home)
        for place in ledgers_in(disk, job.state or ""):
            self._ledger(place, _Anything())
        cut = self._broker()
        self.logs.insert(0, self.logs.pop())
        mark = cut.history.current.hex()
        catalog = Catalog(job.now_ms, "", mark, tuple(self.logs), "", tuple(self.entries))
        layout.replace(disk, self.home, CATALOG, catalog.encode())
        return make.Made(self.home, catalog, 0, 0, 0, [])

    return broken


def _catalog_first(original: Any) -> Any:
    def broken(self: Attempt) -> Any:
        catalog = Catalog(self.job.now_ms, "", "", (Log(BROKER, "", "", 0, 0),), "", ())
        layout.replace(self.disk, self.home, CATALOG, catalog.encode())
        return original(self)

    return broken


def _without_restoring(original: Any) -> Any:
    def broken(disk: Any, path: str, data: bytes) -> None:
        if not path.endswith(layout.RESTORING):
            original(disk, path, data)

    return broken


mutant(
    "broker copied after the ledgers",
    "the broker's copy has no output and no grant that a ledger's copy lacks",
    (Attempt, "run", _ledgers_first),
    tests=BACKUP,
)
mutant(
    "ledgers copied whole after the broker",
    "a ledger in a backup relies on nothing that the broker's copy lacks",
    (make, "ledger_cut", lambda _original: lambda _disk, view, *_: (view.end, b"")),
    tests=BACKUP,
)
mutant(
    "commits under a grant that the copy lacks",
    "an epoch is granted before a ledger is of it",
    (BrokerCut, "covers", lambda _original: lambda self, facts: self._holds(facts.seen)),
    tests=BACKUP,
)
mutant(
    "a segment linked that may grow again",
    "a segment is sealed for good when its successor holds a group",
    (
        make,
        "cut_at",
        lambda original: (
            lambda disk, view, at: view if at == view.end else original(disk, view, at)
        ),
    ),
    tests=BACKUP,
)
mutant(
    "linked bytes not checked",
    "a damaged original fails the backup",
    (copying, "_check_part", nothing),
    tests=BACKUP,
)
mutant(
    "the catalog written first",
    "a backup is one when all of it is durable",
    (Attempt, "_broker", _catalog_first),
    tests=BACKUP,
)
mutant(
    "restore with the old epoch",
    "a restored log is above all that its original will reach",
    (
        restore,
        "restored_number",
        lambda _original: lambda manifest, _least: manifest.generation + 1,
    ),
    tests=RESTORE,
)
mutant(
    "restore keeps the lineage",
    "each restore is a lineage of its own",
    (
        restore,
        "copy_generation",
        lambda original: (
            lambda disk, view, files, number, _lineage, owner: original(
                disk, view, files, number, view.manifest.lineage, owner
            )
        ),
    ),
    tests=RESTORE,
)
mutant(
    "restored bytes not compared",
    "what is restored is what was backed up",
    (_Files, "checked", nothing),
    tests=RESTORE,
)
mutant(
    "a restore that leaves no sign of its beginning",
    "no broker begins a log where a restore was cut short",
    (layout, "write_new", _without_restoring),
    tests=RESTORE,
)
mutant(
    "a lineage believed without proof",
    "a claim of a client ends no broker",
    (core, "is_proof", lambda _original: lambda *_: True),
    tests=CORE,
)
mutant(
    "the original not told of its copy",
    "an original that learns of a restored copy ends",
    (BrokerCore, "_check_lineage", nothing),
    faults=("backup", "kill"),
)
mutant(
    "the original goes on under higher epochs",
    "a restored log is above all that its original will reach",
    (
        restored,
        "restored_number",
        lambda _original: lambda manifest, _least: manifest.generation + 1,
    ),
    faults=("backup", "kill"),
)
mutant(
    "fsck looks at both ends only",
    "every frame of every segment is read",
    (check, "sealed_data", lambda _original: lambda *_: b""),
    tests=("tests/storage/test_check.py",),
)
