"""Where the ledgers of a consumer process are: files below its state directory, or tables.

A consumer whose database went away is made anew by the process; what is kept of it here is who
its last owner was, so that a process that was frozen and replaced meanwhile learns of it.
"""

from __future__ import annotations

import secrets

from ...runtime.crash_points import (
    AFTER_APPEND_BEFORE_SYNC,
    AFTER_COMMIT_BEFORE_OUTPUT,
    AFTER_SYNC_BEFORE_REPLY,
    DURING_SNAPSHOT,
    CrashingDisk,
    CrashingLog,
    CrashPoint,
    log_opener,
)
from ...runtime.os_disk import OsDisk
from ...runtime.process import owner_facts
from ...shells.ledger.files import LedgerFiles, ledger_directory
from ...shells.tables.ledger import SqlLedger
from ...storage.disk import Disk
from ..handling.call import Consumer
from ..sinks.opening import open_sink
from .actor import Ledger

Place = tuple[str, str, int]  # group, topic, partition

# Steps of a commit in a database, as the places at which a test can make the process die.
_PLACES = {
    "recorded": (AFTER_APPEND_BEFORE_SYNC,),
    "committed": (AFTER_SYNC_BEFORE_REPLY, AFTER_COMMIT_BEFORE_OUTPUT),
    "snapshot": (DURING_SNAPSHOT,),
}


class ConsumerLedgers:
    """Makes the ledgers of one process."""

    def __init__(self, state: str) -> None:
        """Keep those of consumers without a sink in directory `state`."""
        self._state = state
        self._owner = owner_facts()
        self._point = CrashPoint.from_environment()
        self._disk: Disk = OsDisk() if self._point is None else CrashingDisk(self._point)
        self._last: dict[Place, SqlLedger] = {}
        self._followed: set[Place] = set()

    def follow(self, place: Place) -> None:
        """The next ledger of `place` follows one whose database failed under it.

        If somebody replaced that one while it was frozen, the next one is Fenced.
        """
        self._followed.add(place)

    def make(self, consumer: Consumer, place: Place) -> Ledger:
        """Nothing is opened. Raises BadSink."""
        if consumer.sink is not None:
            lost = self._last[place].name if place in self._followed else ""
            self._followed.discard(place)
            ledger = open_sink(consumer.sink, place, lost=lost, at=self._visit)
            self._last[place] = ledger
            return ledger
        return LedgerFiles(
            self._disk,
            ledger_directory(self._state, *place),
            self._owner,
            draw=lambda: secrets.token_bytes(16),
            open_log=log_opener(self._point, _CrashingLedger),
        )

    @staticmethod
    def descriptors(consumer: Consumer) -> int:
        """Return how many files the ledger of one partition keeps open, at most.

        Lock and segment; or what a connection of SQLite has: database, -wal and -shm.
        """
        return 2 if consumer.sink is None else 3

    def _visit(self, step: str) -> None:
        if self._point is not None:
            for name in _PLACES.get(step, ()):
                self._point.visit(name)


class _CrashingLedger(CrashingLog):
    """Dies also between a commit and the outputs that it lets go."""

    def sync(self) -> int:
        end = super().sync()
        self.point.visit(AFTER_COMMIT_BEFORE_OUTPUT)
        return end
