"""A sparse index from offsets of one partition to positions in the log.

Theory of operation. The log holds the batches of all partitions one behind the other. A batch gets
an entry if it lies `step_bytes` or more behind the last batch with an entry (as in Kafka's
`index.interval.bytes`). So a batch without an entry lies less than one step behind the entry before
it, which bounds every search: one step of log behind any entry, the next batch of this partition is
that of the next entry. A reader that has passed a step without a find jumps there, over any amount
of log of other partitions.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right


class OffsetIndex:
    """Pairs (first offset, position), both strictly rising."""

    def __init__(self, step_bytes: int) -> None:
        """Make an entry for each `step_bytes` of log, at most."""
        self._step_bytes = step_bytes
        # First offsets of the indexed batches. Invariant: strictly rising.
        self._offsets: array[int] = array("Q")
        # Their positions in the log. Invariant: rising by at least one step; same length.
        self._positions: array[int] = array("Q")

    def __len__(self) -> int:
        return len(self._offsets)

    def add(self, first_offset: int, position: int) -> None:
        """Add a stored batch; batches come in the order of the log."""
        if self._positions and position < self._positions[-1] + self._step_bytes:
            return
        self.restore_entry(first_offset, position)

    def restore_entry(self, first_offset: int, position: int) -> None:
        """Add an entry that `entries` returned, in their order."""
        assert not self._offsets or (
            first_offset > self._offsets[-1] and position > self._positions[-1]
        )
        self._offsets.append(first_offset)
        self._positions.append(position)

    def floor(self, offset: int) -> int | None:
        """Return a position at or before the batch that contains `offset`; None: no batch."""
        place = bisect_right(self._offsets, offset) - 1
        return self._positions[place] if place >= 0 else None

    def read_on(self, position: int) -> int | None:
        """Return where the next batch at or behind `position` may lie; None: there is none."""
        place = bisect_right(self._positions, position) - 1
        if place < 0:
            return self._positions[0] if self._positions else None
        if position < self._positions[place] + self._step_bytes:
            return position
        return self._positions[place + 1] if place + 1 < len(self._positions) else None

    def entries(self, start: int, end: int) -> list[tuple[int, int]]:
        low, high = bisect_left(self._positions, start), bisect_left(self._positions, end)
        return list(zip(self._offsets[low:high], self._positions[low:high], strict=True))
