"""The newest fingerprints: a hash table in memory, asked and filled by whole batches.

Theory of operation. Entries are appended to columns; a table of slots (open addressing, linear
probing, at most a quarter full) holds the place of each one. All fingerprints of a batch probe at once:
the loop ends when the unluckiest one has found its place.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .origin import NOWHERE

Words = NDArray[np.uint64]
Places = NDArray[np.intp]


class Table:
    """At most `capacity` entries of `width` words: high half, low half, then values."""

    def __init__(self, width: int, capacity: int) -> None:
        slots = 1 << (4 * capacity - 1).bit_length()
        self._columns: Words = np.empty((width, capacity), np.uint64)
        # 0: free; else the number of an entry plus one. The system gives memory at first use.
        self._slots = np.zeros(slots, np.uint32)
        self._mask = np.uint64(slots - 1)
        self.count = 0
        self.origin = NOWHERE

    @property
    def room(self) -> int:
        return int(self._columns.shape[1]) - self.count

    @property
    def entries(self) -> Words:
        """All entries, in the order in which they came: a view."""
        return self._columns[:, : self.count]

    def find(self, high: Words, low: Words) -> tuple[Places, Places]:
        """Return which fingerprints are here, and the number of the entry of each of those.

        A fingerprint that was added again is returned for each of its entries.
        """
        at = (high & self._mask).view(np.intp)
        numbers = self._slots.take(at)
        which = np.flatnonzero(numbers)  # most are new, and most slots are free: few go on
        at, numbers = at[which], numbers[which]
        found, places = [], []
        while which.size:
            entries = numbers.astype(np.intp) - 1
            same = self._columns[0].take(entries) == high[which]
            same &= self._columns[1].take(entries) == low[which]
            found.append(which[same])
            places.append(entries[same])
            at = self._next(at)
            numbers = self._slots.take(at)
            used = np.flatnonzero(numbers)
            which, at, numbers = which[used], at[used], numbers[used]
        if not found:
            return which, which
        return np.concatenate(found), np.concatenate(places)

    def add(self, entries: Words) -> None:
        """Add entries."""
        end = self.count + entries.shape[1]
        self._columns[:, self.count : end] = entries
        marks = np.arange(self.count + 1, end + 1, dtype=np.uint32)
        at = (entries[0] & self._mask).view(np.intp)
        while marks.size:
            free = self._slots.take(at) == 0
            self._slots[at[free]] = marks[free]
            # Taken before, or by another entry of this batch.
            lost = np.flatnonzero(self._slots.take(at) != marks)
            marks, at = marks[lost], self._next(at[lost])
        self.count = end

    def _next(self, at: Places) -> Places:
        return (at + 1) & int(self._mask)
