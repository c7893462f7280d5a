"""The rows that a proof from files sorts, and how whole batches of them are made at once.

What a ledger says it processed and what the log holds become rows of the same shape, ordered so
that rows about the same id meet when they are sorted. Each side keeps to bulk calls.

    ids      ledger u32, fingerprint 16, side u8, first u64, next u64
             a ledger's row names the offsets [first, next) of its commit, the log's its offset and
             the position of its record
    ranges   ledger u32, producer u32, first number u64, side u8, count u32, first u64, next u64
    outputs  target u32, first number u64, side u8, count u32, crc u32, position u64
    unique   hash of the id 16, topic u32, position of the record u64, index in the batch u16
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from struct import Struct
from typing import TypeVar

import xxhash

from ...limits import BATCH_MESSAGES_MAX
from .sorter import Sorter

IN_LOG, IN_LEDGER = 0, 1

ID = Struct(">I16sBQQ")
RANGE = Struct(">IIQBIQQ")
OUTPUT = Struct(">IQBIIQ")
UNIQUE = Struct(">16sIQH")
_PLACE = Struct(">BQQ")
_U32 = Struct(">I")
_TAIL = Struct(">IQ")
_BLOB_BYTES = 16 * 16 * 1024  # of fingerprints made rows at a time
_INDEX = [index.to_bytes(2, "big") for index in range(BATCH_MESSAGES_MAX)]

Name = TypeVar("Name")


class Numbers:
    """Gives every name a number, in the order of their coming."""

    def __init__(self) -> None:
        self.names: list[object] = []
        self._of: dict[object, int] = {}

    def of(self, name: object) -> int:
        number = self._of.get(name)
        if number is None:
            number = self._of[name] = len(self.names)
            self.names.append(name)
        return number


class Rows:
    """All rows of one proof."""

    def __init__(self, run_records: int | None = None) -> None:
        more = {} if run_records is None else {"run_records": run_records}
        self.ids = Sorter(ID.size, **more)
        self.ranges = Sorter(RANGE.size, **more)
        self.outputs = Sorter(OUTPUT.size, **more)
        self.unique = Sorter(UNIQUE.size, **more)
        # Producers of ranges; (output producer, topic, partition) of outputs.
        self.producers = Numbers()
        self.targets = Numbers()

    def close(self) -> None:
        for sorter in (self.ids, self.ranges, self.outputs, self.unique):
            sorter.close()

    def committed_ids(self, ledger: int, blob: bytes, first: int, following: int) -> None:
        head = _U32.pack(ledger)
        tail = _PLACE.pack(IN_LEDGER, first, following)
        # A snapshot hands in millions at once: as rows they take five times the room.
        for start in range(0, len(blob), _BLOB_BYTES):
            end = min(start + _BLOB_BYTES, len(blob))
            self.ids.add([head + blob[at : at + 16] + tail for at in range(start, end, 16)])

    def stored_ids(
        self, ledger: int, seed: int, ids: Sequence[bytes], first_offset: int, position: int
    ) -> None:
        """Take explicit ids at dense offsets, as a ledger with this seed would name them."""
        head = _U32.pack(ledger)
        digest = xxhash.xxh3_128_digest
        offsets = range(first_offset, first_offset + len(ids))
        tails = map(_PLACE.pack, repeat(IN_LOG), offsets, repeat(position))
        self.ids.add(
            [head + digest(tagged, seed) + tail for tagged, tail in zip(ids, tails, strict=True)]
        )

    def unique_ids(
        self, topic: int, position: int, ids: Sequence[bytes], indices: Sequence[int]
    ) -> None:
        """Take ids that must not stand anywhere else in their topic."""
        digest, names = xxhash.xxh3_128_digest, _INDEX
        tail = _TAIL.pack(topic, position)
        self.unique.add(
            [
                digest(tagged, topic) + tail + names[index]
                for tagged, index in zip(ids, indices, strict=True)
            ]
        )

    def sequence_range(
        self, ledger: int, producer: str, first: int, count: int, side: int, a: int, b: int
    ) -> None:
        """Take numbers of a producer, on either side; `a` and `b` are offsets."""
        number = self.producers.of(producer)
        self.ranges.add([RANGE.pack(ledger, number, first, side, count, a, b)])

    def output(
        self,
        target: tuple[str, str, int],
        first: int,
        count: int,
        crc: int,
        side: int,
        position: int,
    ) -> None:
        self.outputs.add([OUTPUT.pack(self.targets.of(target), first, side, count, crc, position)])


def seed_of(ledger_id: bytes) -> int:
    return int.from_bytes(ledger_id[:8], "little")
