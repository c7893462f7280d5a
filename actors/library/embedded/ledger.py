"""The processed set of a consumer inside a user's process: a ledger, on disk or in memory.

It holds fingerprints of the processed ids, as every ledger does. It holds no offsets, because the
queue in memory begins again with each process while the ids stay the same.
"""

from __future__ import annotations

import secrets
from typing import Any

from ...core.consumer.ledger import Ledger
from ...driver import Driver, Silence
from ...errors import DiskFull
from ...limits import LEDGER_SNAPSHOT_EVERY_BYTES
from ...outcome import Event, Outcome, Recovered, Snapshot
from ...records import Committed, LedgerStarted, Record
from ...runtime.clock import SystemClock
from ...runtime.events import NullEvents
from ...runtime.os_disk import OsDisk
from ...runtime.process import owner_facts
from ...shells.consumer import fingerprints
from ...storage.disk import Disk
from ...storage.log import FencedLog
from ...storage.memory import MemoryDisk
from .peerless import PeerlessCore

_COMMIT_BYTES = 8 * 1024  # more than one commit, with what a turn adds, ever needs
_NO_ID = bytes(16)  # the input is no topic of a broker on disk


class Keep:
    """Event: the message with this fingerprint is processed."""

    def __init__(self, fingerprint: bytes) -> None:
        self.fingerprint = fingerprint


class Kept:
    """Work: the fingerprint is durable."""


class _LedgerCore(PeerlessCore):
    """A ledger as an actor: each Keep is one commit."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger()

    def _decide(self, event: Event, outcome: Outcome) -> None:
        if isinstance(event, Recovered) and self.ledger.started is None:
            started = LedgerStarted("seed", "queue", 0, _NO_ID, _NO_ID, _NO_ID, 0)
            outcome.appends.append(started)
        elif isinstance(event, Keep) and not self._full:
            number = self.ledger.commit_no + 1
            outcome.appends.append(Committed(self._epoch, number, [], [], event.fingerprint, {}))
            outcome.work_after_sync.append(Kept())

    def apply(self, record: Record, position: int) -> None:
        self.ledger.apply(record, position)

    def snapshot(self) -> Snapshot:
        return self.ledger.snapshot()

    def restore(self, parts: dict[str, Any]) -> None:
        self.ledger.restore(parts)


class LedgerStore:
    """Ids that were processed. Not thread-safe."""

    def __init__(self, disk: Disk, directory: str) -> None:
        """Raises LogInUse, CorruptLog, UnsupportedFormat, OSError."""
        log = FencedLog.open(
            disk,
            directory,
            generation=None,
            owner=owner_facts(),
            create_log_id=secrets.token_bytes(16),
        )
        self._ledger_id = log.log_id
        self._core = _LedgerCore()
        self._done: list[Any] = []
        self._driver = Driver(
            self._core,
            Silence(),
            SystemClock(),
            NullEvents(),
            perform=self._done.append,
            snapshot_every_bytes=LEDGER_SNAPSHOT_EVERY_BYTES,
            compacts=True,
            files=self._core.ledger.processed,
        )
        self._driver.open_log(log, directory)
        self._driver.turn(0)

    @classmethod
    def in_directory(cls, path: str) -> LedgerStore:
        """Return the store that survives this process."""
        return cls(OsDisk(), path)

    @classmethod
    def in_memory(cls) -> LedgerStore:
        """Return a store that lives as long as this process."""
        return cls(MemoryDisk(), "ledger")

    def knows(self, _message_id: object, tagged: bytes) -> bool:
        fingerprint = fingerprints(self._ledger_id, [tagged])
        return self._core.ledger.processed.explicit.fresh(fingerprint, b"") is not None

    def prepare(self) -> None:
        """Make sure that the next `add` finds room. Raises DiskFull: do not call the handler."""
        log = self._driver.log
        assert log is not None
        log.reserve(_COMMIT_BYTES)

    def add(self, _message_id: object, tagged: bytes) -> None:
        """Remember that this message was processed; durable when this returns.

        Call `prepare` before the handler. Raises Fenced, OSError: never call again.
        """
        self._driver.post(Keep(fingerprints(self._ledger_id, [tagged])))
        self._driver.turn(0)
        if not self._done:  # the disk ran full while the handler ran, in spite of `prepare`
            raise DiskFull("the ledger has no room to remember a message that was handled")
        self._done.clear()

    def close(self) -> None:
        self._driver.close()
