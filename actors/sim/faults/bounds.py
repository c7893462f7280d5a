"""Bounds that are met: the same code with small limits, so that short runs reach every one."""

from __future__ import annotations

from dataclasses import replace

from ...limits import Limits
from .base import Fault

# Name of a limit to values that it may get; each actor of a small world can live with them.
SMALL: dict[str, tuple[int, ...]] = {
    "offset_index_step_bytes": (1, 600, 5_000),
    "producer_index_entries_max": (2, 5),
    "cursors_per_partition": (1, 2),
    "reads_per_request_max": (1, 2),
    "read_bytes": (200, 1_000),
    "lookups_max": (1, 2),
    "peers_max": (24,),
    "sessions_max": (20,),
    "waiting_fetches_max": (8,),
    "turn_bytes_max": (300, 2_000),
    "turn_read_bytes_max": (300, 5_000),
    "turn_freeze_bytes": (1, 100),
    "id_table_ids": (2, 16),
    "offset_part_bytes": (1_000, 10_000),
    "keep_bytes_min": (600, 3_000),
    "ledger_table_ids": (2, 16),
    "fetch_bytes_default": (200, 1_500),
    "in_flight_batches_max": (1, 3),
    "producer_nonces_kept": (1, 2),
    "outputs_unacked_max": (1, 10),
    "commit_every_ms": (5,),
    "commit_bytes": (100, 600),
    "commit_messages_max": (1, 3),
    "keys_ahead_max": (1, 3),
}


class TightBounds(Fault):
    """Limits are a few of what they are."""

    name = "tight bounds"

    def tightened(self, limits: Limits) -> Limits:
        self._values = {
            name: self.rng.choice(values)
            for name, values in SMALL.items()
            if self.rng.random() < 0.5
        }
        return replace(limits, **self._values)

    def arm(self) -> None:
        """Say what is tight: it is so from the start to the end."""
        for name, value in self._values.items():
            self.world.trace.add("world", "bound", {name: value})
        self.fired()
