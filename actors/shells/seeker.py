"""An operator's move of an offset: its core on the ledger of one partition, without a transport.

The owner of the shell talks to the broker; the core only writes the one commit.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..core.consumer.seeker import MoveOffset, SeekerCore
from ..driver import Driver, Silence
from ..limits import LEDGER_SNAPSHOT_EVERY_BYTES, LIMITS, Limits
from ..ports import Clock, Events
from ..protocol import Granted
from .consumer import LedgerDoor, Place


class SeekerShell:
    """One partition under a grant. `open` comes first, `close` last."""

    def __init__(
        self,
        place: Place,
        granted: Granted,
        *,
        ledger: LedgerDoor,
        accepts: bool = False,
        replaces: Mapping[tuple[str, int], int] | None = None,
        clock: Clock,
        events: Events,
        snapshot_every_bytes: int = LEDGER_SNAPSHOT_EVERY_BYTES,
        limits: Limits = LIMITS,
    ) -> None:
        """Nothing is opened yet; `close` closes `ledger`.

        `accepts`: the operator knows that the log has another past than the ledger relied on.
        `replaces`: this ledger takes the place of a lost one; what the broker expects next of its
        outputs.
        """
        self.place = place
        self.core = SeekerCore(place, granted, limits, accepts=accepts, replaces=replaces)
        self._ledger = ledger
        self._driver = Driver(
            self.core,
            Silence(),
            clock,
            events,
            perform=self._perform,
            snapshot_every_bytes=snapshot_every_bytes,
            compacts=True,
            files=self.core.ledger.processed,
        )

    @property
    def serving(self) -> bool:
        return self._driver.log is not None

    def open(self) -> None:
        """Open the ledger and check it.

        Raises Fenced, CorruptLog, DiskFull, StoreMismatch, SinkUnavailable.
        """
        self._driver.open_log(self._ledger.open(self.core.epoch), self._ledger.directory)
        self._driver.turn(0)

    def move(
        self, offset: int, reason: str, expected: Mapping[tuple[str, int], int] | None = None
    ) -> None:
        """The move is durable when this returns. Raises OffsetOutOfRange, Fenced.

        `expected` is what the broker expects next of the outputs, where another past is accepted.
        """
        self._driver.post(MoveOffset(offset, reason, expected or {}))
        self._driver.turn(0)

    def close(self, *, clean: bool) -> None:
        self._ledger.release()
        self._driver.close(clean=clean)
        self._ledger.close()

    def _perform(self, item: object) -> None:
        raise AssertionError(f"this core asks for no work: {item!r}")
