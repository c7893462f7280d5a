"""What a topic with a dedup horizon has forgotten.

Theory of operation. Three things move together, by a record (HorizonMarked), so that replay forgets
what the live run forgot, and only upwards:

- `floor_ms`. A message that was created before it, and whose id is not known, is refused with TooOld:
  nobody can tell any more whether it was stored.
- `forgotten`. The ids of messages below these offsets do not count as known. All of them were stored
  so long before the floor that they were created before it too, since no message is taken that was
  created more than `created_ahead_ms_max` after it arrived. So a message is refused, or known, or new:
  the same message, under its id and its time, is never stored twice.
- Marks: how far each partition reached at some moments, by which `forgotten` follows the floor.

A new duration counts from its setting on. Until it has been in force for its own length the floor
stands still: a duration that is too short loses nothing at once. A longer one brings nothing back.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ...records import HorizonMarked, Plain

_MARKS_EACH = 8  # marks of one horizon: so much later than allowed is forgotten
_MARKS_MAX = 64  # a topic whose horizon was changed often keeps every second mark


@dataclass(slots=True)
class Horizon:
    """Hard state of a topic."""

    # Invariant: never decreases.
    floor_ms: int = 0
    # When the duration in force was set.
    since_ms: int = 0
    # By partition. Invariant: never decreases, and at most the partition's end.
    forgotten: dict[int, int] = field(default_factory=dict)
    # Time of the mark from which `forgotten` comes: what was stored up to it is forgotten.
    forgotten_ms: int = 0
    # (time, end offset of each partition), oldest first. Invariant: bounded.
    marks: list[tuple[int, dict[int, int]]] = field(default_factory=list)

    def due(
        self, topic_number: int, length_ms: int, ahead_ms: int, at_ms: int
    ) -> HorizonMarked | None:
        """Return the record that should follow now; None: it is too early."""
        last_ms = self.marks[-1][0] if self.marks else self.since_ms
        if at_ms - last_ms < max(length_ms, ahead_ms) // _MARKS_EACH:
            return None
        floor_ms = self.floor_ms
        if at_ms - self.since_ms >= length_ms:
            floor_ms = max(floor_ms, at_ms - length_ms)
        forgotten_ms = self.forgotten_ms
        for mark_ms, _ in self.marks:
            if mark_ms + ahead_ms < floor_ms:
                forgotten_ms = mark_ms
        return HorizonMarked(topic_number, floor_ms, forgotten_ms, at_ms)

    def apply(self, record: HorizonMarked, ends: dict[int, int]) -> None:
        """`ends`: the end offset of each partition now."""
        assert record.floor_ms >= self.floor_ms, "the floor never moves back"
        self.floor_ms = record.floor_ms
        for mark_ms, reached in self.marks:
            if self.forgotten_ms < mark_ms <= record.forgotten_ms:
                self.forgotten = reached
        self.forgotten_ms = record.forgotten_ms
        self.marks = [mark for mark in self.marks if mark[0] > record.forgotten_ms]
        if len(self.marks) >= _MARKS_MAX:
            del self.marks[1::2]
        self.marks.append((record.at_ms, ends))

    # --- snapshot --------------------------------------------------------------------------------

    def freeze(self) -> Plain:
        return [
            self.floor_ms,
            self.since_ms,
            self.forgotten_ms,
            [list(pair) for pair in self.forgotten.items()],
            [[at_ms, [list(pair) for pair in ends.items()]] for at_ms, ends in self.marks],
        ]

    @classmethod
    def restored(cls, part: Plain) -> Horizon:
        floor_ms, since_ms, forgotten_ms, forgotten, marks = part
        kept = [(at_ms, dict(map(tuple, ends))) for at_ms, ends in marks]
        return cls(floor_ms, since_ms, dict(map(tuple, forgotten)), forgotten_ms, kept)
