"""The explicit ids of a topic, with the place and the body hash of each.

Theory of operation. An id gets the next ordinal when its message is applied; arrays at that ordinal
hold place and body hash. Ids are only ever added, so the state of a snapshot is a row of
parts of `part_ids` ids: full ones never change and are kept by name, the last one is written
anew. Dict order is the order of ordinals, which makes the newest ids cheap to reach from the end.
A batch with nothing known costs one `isdisjoint`, one `set`, one `update` and two `extend`.

`IdIndex` is the interface. The one below is exact and in memory, about 170 bytes an id of 20
bytes; an index that keeps older parts on disk can stand behind the same five methods.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import NamedTuple, Protocol

from ...records import Plain

_OFFSET_BITS = 48  # leaves 16 bits for the partition: place and partition share one u64
_OFFSET_MASK = (1 << _OFFSET_BITS) - 1


class Known(NamedTuple):
    partition: int
    offset: int
    body_hash: int


class IdIndex(Protocol):
    """The exact set of a topic's ids."""

    def __len__(self) -> int:
        """Return how many ids are stored."""

    def all_new(self, ids: list[bytes]) -> bool:
        """Return whether no id of the batch is known and none comes twice in it."""

    def find(self, tagged: bytes) -> Known | None:
        """Return where an id is stored, or None."""

    def add(
        self, ids: Sequence[bytes], hashes: Iterable[int], partition: int, first_offset: int
    ) -> None:
        """Take ids that are new, at dense offsets of one partition."""

    def parts(self) -> list[tuple[int, int]]:
        """Return the ranges of ordinals that make up a snapshot: full parts, then the rest."""

    def freeze(self, start: int, end: int) -> Plain:
        """Return one of these ranges as a part of a snapshot."""

    def restore(self, part: Plain) -> None:
        """Take a part that `freeze` returned; parts come in the order of their ranges."""


class MemoryIdIndex:
    """All ids in one dict."""

    def __init__(self, part_ids: int) -> None:
        """`part_ids`: how many ids one part of a snapshot holds."""
        self._part_ids = part_ids
        # Tagged id to ordinal. Invariant: ordinals are 0, 1, 2 ... in the order of the dict.
        self._ordinals: dict[bytes, int] = {}
        # Partition and offset of each ordinal, packed. Invariant: as long as the dict.
        self._places: array[int] = array("Q")
        # Body hash of each ordinal, made by the sender. Invariant: as long as the dict.
        self._hashes: array[int] = array("Q")

    def __len__(self) -> int:
        return len(self._ordinals)

    def all_new(self, ids: list[bytes]) -> bool:
        return self._ordinals.keys().isdisjoint(ids) and len(set(ids)) == len(ids)

    def find(self, tagged: bytes) -> Known | None:
        ordinal = self._ordinals.get(tagged)
        if ordinal is None:
            return None
        place = self._places[ordinal]
        return Known(place >> _OFFSET_BITS, place & _OFFSET_MASK, self._hashes[ordinal])

    def add(
        self, ids: Sequence[bytes], hashes: Iterable[int], partition: int, first_offset: int
    ) -> None:
        ordinal = len(self._ordinals)
        place = partition << _OFFSET_BITS | first_offset
        self._ordinals.update(zip(ids, range(ordinal, ordinal + len(ids)), strict=True))
        self._places.extend(range(place, place + len(ids)))
        self._hashes.extend(hashes)
        assert len(self._ordinals) == len(self._places) == len(self._hashes)

    def parts(self) -> list[tuple[int, int]]:
        end, step = len(self._ordinals), self._part_ids
        return [(start, min(start + step, end)) for start in range(0, end, step)]

    def freeze(self, start: int, end: int) -> Plain:
        behind = len(self._ordinals) - end
        ids = list(islice(reversed(self._ordinals), behind, behind + end - start))
        ids.reverse()
        return [ids, self._places[start:end].tolist(), self._hashes[start:end].tolist()]

    def restore(self, part: Plain) -> None:
        ids, places, hashes = part
        ordinal = len(self._ordinals)
        self._ordinals.update(zip(ids, range(ordinal, ordinal + len(ids)), strict=True))
        self._places.extend(places)
        self._hashes.extend(hashes)
        assert len(self._ordinals) == len(self._places) == len(self._hashes)
