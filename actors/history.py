"""Marks in a log's history: which past of which log somebody relied on.

Theory of operation. A position says nothing about what lies below it. A log that is restored from a
backup, or copied while it grows, comes to the same positions and offsets again with other records.
So each generation of a broker begins with a record that holds a random mark. A *place* is a mark and
the position up to which its history was relied on. A log holds a place if it has the mark, and its
history under that mark reaches the position. A log that was restored, or copied, begins a mark of
its own where the common history ends. A place in what it lost lies beyond that end, and a place in
what another copy went on to write has a mark that it never had.

Records before the first mark were written by a version without marks. They count as one history, so
that a place in them is compared by its position at least.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from typing import NamedTuple

MARK_BYTES = 16
UNMARKED = bytes(MARK_BYTES)  # stands for the history before the first mark
_SHOWN_BYTES = 4  # of a mark, for people


class Place(NamedTuple):
    """A mark, and the position below which the history under it was relied on."""

    mark: bytes = b""  # b"": nothing was relied on, or the peer keeps no marks
    position: int = 0

    def __str__(self) -> str:
        return f"position {self.position} of history {shown(self.mark)}"


NO_PLACE = Place()


def highest(*places: Place) -> Place:
    """Return the place that lies furthest. All are of one log, which has held each of them."""
    return max(places, key=lambda place: place.position)


def shown(mark: bytes) -> str:
    """Return the beginning of a mark, which is enough for people to tell two of them apart."""
    if mark == UNMARKED:
        return "without a mark"
    return mark[:_SHOWN_BYTES].hex()


class History:
    """The marks of one log, in order."""

    def __init__(self, begins: Iterable[tuple[bytes, int]] = ()) -> None:
        """`begins` are marks, each with the position where it begins."""
        self._marks: list[bytes] = []
        # Where each mark begins. Invariant: strictly rising, as long as `_marks`.
        self._begins: list[int] = []
        # The place of each mark in both lists. Invariant: marks are random, so none comes twice.
        self._numbers: dict[bytes, int] = {}
        for mark, position in begins:
            self.begin(mark, position)

    def __len__(self) -> int:
        return len(self._marks)

    @property
    def begins(self) -> list[tuple[bytes, int]]:
        return list(zip(self._marks, self._begins, strict=True))

    @property
    def current(self) -> bytes:
        """The mark of what is written now; b"" before the first."""
        return self._marks[-1] if self._marks else b""

    def begin(self, mark: bytes, position: int) -> None:
        """A mark begins with the record at `position`."""
        if not self._marks and position > 0 and mark != UNMARKED:
            self.begin(UNMARKED, 0)
        assert not self._begins or position > self._begins[-1], "marks follow each other"
        self._numbers[mark] = len(self._marks)
        self._marks.append(mark)
        self._begins.append(position)

    def place_of(self, position: int) -> Place:
        """Return the place of who relies on the record at `position`; NO_PLACE if no mark covers it."""
        number = bisect_right(self._begins, position) - 1
        return Place(self._marks[number], position + 1) if number >= 0 else NO_PLACE

    def covering(self, positions: Iterable[int]) -> tuple[tuple[bytes, int], ...]:
        """Return the marks, with their beginnings, of the records at `positions`."""
        begins = self._begins
        numbers = sorted({bisect_right(begins, position) - 1 for position in positions})
        return tuple((self._marks[n], begins[n]) for n in numbers if n >= 0)

    def holds(self, place: Place, end: int) -> bool:
        """Return whether the log, which ends at `end`, has this past."""
        return place.position <= self._end_of(place.mark, end)

    def _end_of(self, mark: bytes, end: int) -> int:
        """Return where the history under a mark ends; -1 if this log never had the mark."""
        number = self._numbers.get(mark)
        if number is None:
            return -1
        return self._begins[number + 1] if number + 1 < len(self._begins) else end

    def difference(self, place: Place, end: int) -> str:
        """Say how this log, which does not hold `place`, differs from the one that did."""
        known = self._end_of(place.mark, end)
        now = (
            f"position {end} of history {shown(self.current)}" if self._marks else f"position {end}"
        )
        if known < 0:
            return f"this log has no history {shown(place.mark)}; it is at {now}"
        return f"this log has that history up to position {known} only, and is at {now}"
