"""The processed set of a ledger: ids of messages that are not handled again.

Theory of operation. A message below the committed offset is passed over by its offset alone. The
processed set is for what offsets cannot tell: a log that was fed again, rewound or restored shows
known ids at new offsets. Sequence ids of a producer are contiguous in a partition, so they are kept
as ranges, usually one range for a producer. Explicit ids are kept as 16-byte fingerprints, keyed by
the ledger's own random id so that no sender can construct a collision. The newest are in memory,
all others in sorted files beside the ledger (explicit_ids.py).

Each question is about a whole batch; a batch without known ids costs no Python statement for each
message.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ...limits import LIMITS, Limits
from ...outcome import NewFile
from ...records import Plain

if TYPE_CHECKING:
    from .explicit_ids import ExplicitIds

FINGERPRINT_BYTES = 16
MARK_BYTES = 16
IDS_PART = "processed"  # of a snapshot: the newest explicit ids, and the names of files of others
OLD_IDS_PART = "ids-"  # so began the names of parts with fingerprints alone, of earlier versions


class Ranges:
    """A set of integers as sorted ranges [start, end) that neither touch nor overlap."""

    __slots__ = ("ends", "starts")

    def __init__(self) -> None:
        # Invariant: starts[i] < ends[i] < starts[i + 1].
        self.starts: list[int] = []
        self.ends: list[int] = []

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(zip(self.starts, self.ends, strict=True))

    def add(self, start: int, end: int) -> None:
        """Add [start, end), which may overlap what is in already."""
        if start >= end:
            return
        if self.ends and start == self.ends[-1]:  # the usual case: the next batch of a producer
            self.ends[-1] = end
            return
        low = bisect_left(self.ends, start)  # the first range that touches or follows
        high = bisect_right(self.starts, end)  # behind the last range that touches
        if low < high:
            start = min(start, self.starts[low])
            end = max(end, self.ends[high - 1])
        self.starts[low:high] = [start]
        self.ends[low:high] = [end]

    def touches(self, start: int, end: int) -> bool:
        at = bisect_right(self.ends, start)
        return start < end and at < len(self.starts) and self.starts[at] < end

    def __contains__(self, number: int) -> bool:
        return self.touches(number, number + 1)


class Processed:
    """The processed set of one ledger. Its `due`, `made` and `failed` are those of outcome.Files."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        self._limits = limits
        # Names the ledger in the files of the set. Invariant: set before the first explicit id.
        self.mark = bytes(MARK_BYTES)
        # Numbers of sequence ids by producer. Invariant: no producer with an empty set.
        self.numbers: dict[str, Ranges] = {}
        self._explicit: ExplicitIds | None = None

    def add_numbers(self, producer: str, first: int, count: int) -> None:
        if count > 0:
            self.numbers.setdefault(producer, Ranges()).add(first, first + count)

    def knows_numbers(self, producer: str, first: int, count: int) -> bool:
        ranges = self.numbers.get(producer)
        return ranges is not None and ranges.touches(first, first + count)

    def knows_number(self, producer: str, number: int) -> bool:
        return self.knows_numbers(producer, number, 1)

    def ranges(self) -> list[list[str | int]]:
        """Return all sequence ids as [producer, first, count], in a defined order."""
        return [
            [producer, start, end - start]
            for producer in sorted(self.numbers)
            for start, end in self.numbers[producer]
        ]

    # --- explicit ids ----------------------------------------------------------------------------

    @property
    def explicit(self) -> ExplicitIds:
        """The explicit ids. With the first one numpy is loaded, which takes a while."""
        if self._explicit is None:
            from .explicit_ids import ExplicitIds

            self._explicit = ExplicitIds(self.mark, self._limits)
        return self._explicit

    @property
    def explicit_count(self) -> int:
        return 0 if self._explicit is None else len(self._explicit)

    def all(self) -> Iterator[bytes]:
        """Yield all fingerprints, in steps of bounded size. Raises CorruptLog."""
        if self._explicit is not None:
            yield from self._explicit.all()

    @property
    def behind(self) -> bool:
        """Whether no more explicit ids may come until those that wait are in files."""
        return self._explicit is not None and self._explicit.behind

    def due(self) -> list[NewFile]:
        return [] if self._explicit is None else self._explicit.due()

    def made(self, name: str, buffer: Any, path: str) -> None:
        """Raises CorruptLog."""
        self.explicit.made(name, buffer, path)

    def failed(self, name: str) -> None:
        self.explicit.failed(name)

    def freeze(self) -> tuple[dict[str, Plain], list[str]]:
        """Return the part of a snapshot for explicit ids, if there are any, and names of files."""
        if self._explicit is None:
            return {}, []
        part, files = self._explicit.freeze()
        return {IDS_PART: part}, files

    def restore(self, parts: dict[str, Plain]) -> None:
        """Take the explicit ids of a snapshot. Raises CorruptLog, having changed nothing."""
        if IDS_PART in parts:
            self.explicit.restore(parts[IDS_PART], parts)
        for name in sorted(parts):
            if name.startswith(OLD_IDS_PART):
                self.explicit.add(parts[name])
