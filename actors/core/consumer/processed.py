"""The processed set of a ledger: ids of messages that are not handled again.

Theory of operation. A message below the committed offset is passed over by its offset alone. The
processed set is for what offsets cannot tell: a log that was fed again, rewound or restored shows
known ids at new offsets. Sequence ids of a producer are contiguous in a partition, so they are kept
as ranges, usually one range for a producer. Explicit ids are kept as 16-byte fingerprints, keyed by
the ledger's own random id so that no sender can construct a collision.

Each question is about a whole batch and takes a few set operations; a batch without known ids costs
no Python statement for each message.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from struct import Struct

from ...records import Committed

FINGERPRINT_BYTES = 16
_FINGERPRINT = Struct(f"{FINGERPRINT_BYTES}s")


def split_fingerprints(blob: bytes) -> list[bytes]:
    assert len(blob) % FINGERPRINT_BYTES == 0, "a blob of fingerprints holds whole ones"
    return list(chain.from_iterable(_FINGERPRINT.iter_unpack(blob)))


def fingerprints_of(record: Committed) -> list[bytes]:
    """Return the fingerprints of a commit as a list, which a live commit has already."""
    if record.split_fingerprints is not None:
        return record.split_fingerprints
    return split_fingerprints(record.fingerprints)


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
    """The processed set of one ledger."""

    def __init__(self) -> None:
        # Numbers of sequence ids by producer. Invariant: no producer with an empty set.
        self.numbers: dict[str, Ranges] = {}
        # Fingerprints of explicit ids; about 110 bytes of memory for each.
        self.fingerprints: set[bytes] = set()

    def add_numbers(self, producer: str, first: int, count: int) -> None:
        if count > 0:
            self.numbers.setdefault(producer, Ranges()).add(first, first + count)

    def add_fingerprints(self, fingerprints: Iterable[bytes]) -> None:
        self.fingerprints.update(fingerprints)

    def knows_numbers(self, producer: str, first: int, count: int) -> bool:
        ranges = self.numbers.get(producer)
        return ranges is not None and ranges.touches(first, first + count)

    def knows_number(self, producer: str, number: int) -> bool:
        return self.knows_numbers(producer, number, 1)

    def knows_fingerprints(self, fingerprints: Sequence[bytes]) -> bool:
        return not self.fingerprints.isdisjoint(fingerprints)

    def ranges(self) -> list[list[str | int]]:
        """Return all sequence ids as [producer, first, count], in a defined order."""
        return [
            [producer, start, end - start]
            for producer in sorted(self.numbers)
            for start, end in self.numbers[producer]
        ]
