"""Bounds that are met: the same code with small limits, so that short runs reach every one."""

from __future__ import annotations

import sys

from ... import limits
from .base import Fault, fault

PACKAGE = limits.__name__.rpartition(".")[0]

# Name in limits.py to values that it may get; each actor of a small world can live with them.
SMALL: dict[str, tuple[int, ...]] = {
    "OFFSET_INDEX_STEP_BYTES": (1, 600, 5_000),
    "PRODUCER_INDEX_ENTRIES_MAX": (2, 5),
    "CURSORS_PER_PARTITION": (1, 2),
    "READS_PER_REQUEST_MAX": (1, 2),
    "READ_BYTES": (200, 1_000),
    "LOOKUPS_MAX": (1, 2),
    "PEERS_MAX": (24,),
    "SESSIONS_MAX": (20,),
    "WAITING_FETCHES_MAX": (8,),
    "TURN_BYTES_MAX": (300, 2_000),
    "ID_PART_IDS": (2, 16),
    "OFFSET_PART_BYTES": (1_000, 10_000),
    "LEDGER_PARTS_MAX": (2, 4),
    "FETCH_BYTES_DEFAULT": (200, 1_500),
    "IN_FLIGHT_BATCHES_MAX": (1, 3),
    "PRODUCER_NONCES_KEPT": (1, 2),
    "OUTPUTS_UNACKED_MAX": (1, 10),
    "COMMIT_EVERY_MS": (5,),
    "COMMIT_BYTES": (100, 600),
    "COMMIT_MESSAGES_MAX": (1, 3),
    "KEYS_AHEAD_MAX": (1, 3),
}


@fault
class TightBounds(Fault):
    """Limits are a few of what they are."""

    name = "tight bounds"
    odds = 0.4

    def arm(self) -> None:
        """Put small values into the modules that use them, until the run is over."""
        for name, values in SMALL.items():
            if self.rng.random() < 0.5:
                self._set(name, self.rng.choice(values))
        self.fired()

    def _set(self, name: str, value: int) -> None:
        original = getattr(limits, name)
        for module in [m for n, m in sorted(sys.modules.items()) if n.startswith(PACKAGE)]:
            if module is not limits and vars(module).get(name) is original:
                self.world.change(module, name, value)
        self.world.trace.add("world", "bound", {name: value})
