"""Kept parts: copies of what is left in stretches of the log that are mostly deleted.

Theory of operation. A slow topic would pin all log of a busy one. So what is left of a stretch is
copied into a file beside the log (storage/kept.py), and its segments go. A record keeps its position:
no index changes. Every byte that a copy writes must free a quarter of a byte at least; so no more
disk is taken than 5/4 of what is retained, and `keep_bytes_min`.

The parts form a log-structured merge tree: a new one takes in the parts before it that are no larger
than itself, so there are few, and a byte is copied a logarithmic number of times. A part of which half
was deleted is copied anew. One copy is made at a time.

The log below a copy is still needed while a kept snapshot does not name it: a start from that
snapshot would look for the records in the log. So a copy counts once the two newest snapshots name
it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ...outcome import Keep

_PREFIX = "kept-"


def is_kept(name: str) -> bool:
    return name.startswith(_PREFIX)


@dataclass(frozen=True, slots=True)
class KeptRange:
    """A part: it holds what is left of the log in [start, end)."""

    start: int
    end: int
    size: int

    @property
    def name(self) -> str:
        return f"{_PREFIX}{self.start}-{self.end}"


class KeptParts:
    """The parts of a broker. They follow from snapshots alone, not from records."""

    def __init__(self) -> None:
        # By position. Invariant: apart; below the end of the last one nothing is left but in parts.
        self.parts: list[KeptRange] = []
        self.making: Keep | None = None
        self._due: list[Keep] = []
        # Ends of the last part in the snapshot before the newest, in the newest, in the one that is
        # being written.
        self._ends = (0, 0)
        self._offered = 0

    @property
    def end(self) -> int:
        return self.parts[-1].end if self.parts else 0

    @property
    def durable_end(self) -> int:
        """Below it no kept snapshot needs the log, nor does the copy that is being made."""
        end = min(self._ends)
        return end if self.making is None else min(end, self.making.start)

    # --- what is wanted --------------------------------------------------------------------------

    def want(self, start: int, end: int, size: int, starts: Mapping[tuple[int, int], int]) -> None:
        """Copy what is left of [start, end), about `size` bytes, with the smaller parts before it."""
        assert self.making is None, "one copy is made at a time"
        log_start = start
        for part in reversed(self.parts):
            if part.start >= start:
                continue
            if part.size > size:
                break
            start, size = part.start, size + part.size
        self.making = Keep(f"{_PREFIX}{start}-{end}", start, log_start, end, starts)
        self._due.append(self.making)

    def due(self) -> list[Keep]:
        due, self._due = self._due, []
        return due

    def is_making(self, name: str) -> bool:
        return self.making is not None and self.making.name == name

    def made(self, size: int) -> None:
        made, self.making = self.making, None
        assert made is not None, "it was wanted"
        others = [part for part in self.parts if not made.start <= part.start < made.end]
        new = KeptRange(made.start, made.end, size)
        self.parts = sorted([*others, new], key=lambda part: part.start)

    def failed(self) -> None:
        self.making = None

    # --- snapshot --------------------------------------------------------------------------------

    def offer(self) -> Iterator[str]:
        """Yield the names for a snapshot that is about to be written."""
        self._offered = self.end
        for part in self.parts:
            yield part.name

    def written(self) -> None:
        self._ends = (self._ends[1], self._offered)

    def restore(self, sizes: Mapping[str, int]) -> None:
        """Take the parts that the snapshot names. What the one before names is not known."""
        ranges = [name.removeprefix(_PREFIX).partition("-") for name in sizes]
        self.parts = sorted(
            (
                KeptRange(int(start), int(end), sizes[f"{_PREFIX}{start}-{end}"])
                for start, _, end in ranges
            ),
            key=lambda part: part.start,
        )
        self._ends = (0, self.end)
