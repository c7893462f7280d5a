"""A sparse index from offsets of one partition to positions in the log.

Theory of operation. The log holds the batches of all partitions one behind the other. A batch gets
an entry if it lies `step_bytes` or more behind the last batch with an entry (as in Kafka's
`index.interval.bytes`). So a batch without an entry lies less than one step behind the entry before
it, which bounds every search: one step of log behind any entry, the next batch of this partition is
that of the next entry. A reader that has passed a step without a find jumps there, over any amount
of log of other partitions.

An entry also has the time of its batch and the bytes of the partition before it. By these retention
decides (retention.py): messages go up to an entry, and their entries with them.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right

Entry = tuple[int, int, int, int]  # first offset, position, time in ms, bytes before it


class OffsetIndex:
    """Entries of one partition, rising in all columns."""

    def __init__(self, step_bytes: int) -> None:
        """Make an entry for each `step_bytes` of log, at most."""
        self._step_bytes = step_bytes
        # First offsets of the indexed batches. Invariant: strictly rising.
        self._offsets: array[int] = array("Q")
        # Their positions in the log. Invariant: rising by at least one step; same length.
        self._positions: array[int] = array("Q")
        # Their times. Invariant: never falling; same length.
        self._times: array[int] = array("Q")
        # Bytes of all batches of the partition before them, also of those that are gone.
        self._bytes: array[int] = array("Q")

    def __len__(self) -> int:
        return len(self._offsets)

    def add(self, first_offset: int, position: int, at_ms: int, bytes_before: int) -> None:
        """Add a stored batch; batches come in the order of the log."""
        if self._positions and position < self._positions[-1] + self._step_bytes:
            return
        self.restore_entry(first_offset, position, at_ms, bytes_before)

    def restore_entry(self, *entry: int) -> None:
        """Add an entry that `entries` returned, in their order."""
        first_offset, position, at_ms, bytes_before = entry
        assert not self._offsets or (
            first_offset > self._offsets[-1] and position > self._positions[-1]
        )
        self._offsets.append(first_offset)
        self._positions.append(position)
        self._times.append(at_ms)
        self._bytes.append(bytes_before)

    def floor(self, offset: int) -> int | None:
        """Return a position at or before the batch that contains `offset`; None: no batch."""
        place = bisect_right(self._offsets, offset) - 1
        return self._positions[place] if place >= 0 else None

    def times_around(self, offset: int) -> tuple[int, int | None]:
        """Return bounds of the time at which `offset` was stored; None: no entry lies above it.

        The offset must have an entry at or before it.
        """
        place = bisect_right(self._offsets, offset) - 1
        low_ms = self._times[place]
        if self._offsets[place] == offset:
            return low_ms, low_ms
        return low_ms, self._times[place + 1] if place + 1 < len(self._times) else None

    def read_on(self, position: int) -> int | None:
        """Return where the next batch at or behind `position` may lie; None: there is none."""
        place = bisect_right(self._positions, position) - 1
        if place < 0:
            return self._positions[0] if self._positions else None
        if position < self._positions[place] + self._step_bytes:
            return position
        return self._positions[place + 1] if place + 1 < len(self._positions) else None

    def entries(self, start: int, end: int) -> list[Entry]:
        """Return the entries whose positions lie in [start, end)."""
        low, high = bisect_left(self._positions, start), bisect_left(self._positions, end)
        columns = (self._offsets, self._positions, self._times, self._bytes)
        return list(zip(*(column[low:high] for column in columns), strict=True))

    def next_entry(self, position: int) -> int | None:
        """Return the position of the first entry at or above `position`; None: there is none."""
        place = bisect_left(self._positions, position)
        return self._positions[place] if place < len(self._positions) else None

    # --- retention -------------------------------------------------------------------------------

    @property
    def first(self) -> Entry | None:
        """The entry of the oldest batch; None: there is no batch."""
        return self.at(0) if self._offsets else None

    def at(self, place: int) -> Entry:
        columns = (self._offsets, self._positions, self._times, self._bytes)
        first_offset, position, at_ms, bytes_before = (column[place] for column in columns)
        return first_offset, position, at_ms, bytes_before

    def older(self, at_ms: int) -> int:
        """Return the offset below which every message is older than `at_ms`, by whole entries."""
        # What lies before an entry is no younger than it.
        place = bisect_left(self._times, at_ms) - 1
        return self._offsets[place] if place > 0 else 0

    def down(self, offset: int) -> int:
        """Return the offset of the last entry at or below `offset`; 0 if there is none."""
        place = bisect_right(self._offsets, offset) - 1
        return self._offsets[place] if place >= 0 else 0

    def cut_at(self, position: int, end: tuple[int, int]) -> tuple[int, int]:
        """Return (offset, bytes before it) of what lies at or above `position`, by whole entries.

        `end` is that pair at the end of the partition.
        """
        place = bisect_left(self._positions, position)
        if place == len(self._positions):
            if not place or self._positions[-1] + self._step_bytes <= position:
                return end
            place -= 1  # batches without an entry may lie above the position
        return self._offsets[place], self._bytes[place]

    def trim(self, below: int) -> None:
        """Forget the entries below the offset `below`, which is that of an entry, or the end."""
        place = bisect_left(self._offsets, below)
        for column in (self._offsets, self._positions, self._times, self._bytes):
            del column[:place]
