"""The batch: the unit that flows. One header, columns, and one payload, kept as it arrived.

A `Batch` is a view on bytes that `codec.batch` made or checked; docs/PROTOCOL.md has the byte
table. Per-message work uses bulk calls only, because Python's cost is per call.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain
from operator import add
from struct import iter_unpack
from typing import Any

BODY_PREFIX_BYTES = 3  # encoding u8, key length + 1 as u16 (0: no key)


def one_size(lengths: bytes | array[int]) -> bool:
    """Return whether all lengths are the same, the usual case: one comparison in C."""
    return lengths == lengths[:1] * len(lengths)


def measure(lengths: array[int]) -> tuple[int, int]:
    """Return sum and maximum of `lengths`, of which there is at least one."""
    if one_size(lengths):
        return lengths[0] * len(lengths), lengths[0]
    return sum(lengths), max(lengths)


def cut(block: bytes, sizes: bytes | array[int]) -> list[bytes]:
    """Return the pieces of `block`, which have `sizes` and fill it."""
    if sizes[0] and one_size(sizes):
        return list(chain.from_iterable(iter_unpack(f"{sizes[0]}s", block)))  # one call in C
    ends = list(accumulate(sizes))
    return [block[start:end] for start, end in zip([0, *ends], ends, strict=False)]


@dataclass(slots=True)
class Batch:
    """Messages under one header."""

    raw: bytes | memoryview  # what is sent, stored and fetched: never encoded a second time
    crc: int  # crc32 of `raw`, made once by the sender
    count: int
    lengths: array[int]  # of key and value together, without the three-byte prefix
    payload_start: int  # where the payload begins in `raw`
    # Explicit ids as they stand in `raw`: the bytes of all of them, and the size of each.
    id_block: bytes | None = None
    id_sizes: bytes = b""
    hashes: array[int] | None = None  # 64-bit body hashes; always there with ids
    created_at_ms: array[int] | None = None
    headers: list[bytes] | None = None  # one encoded map a message, b"" for none
    # What the broker's index made of ids and bodies, so that it is made once.
    digests: Any = field(default=None, repr=False, compare=False)
    _ids: list[bytes] | None = field(default=None, repr=False, compare=False)
    _ends: Sequence[int] | None = field(default=None, repr=False)  # made when first wanted

    @property
    def has_ids(self) -> bool:
        """Whether its messages have explicit ids, and not sequence ids."""
        return self.id_block is not None

    @property
    def ids(self) -> list[bytes] | None:
        """The explicit ids, tagged, made when first wanted; None for a batch with sequence ids."""
        if self._ids is None and self.id_block is not None:
            self._ids = cut(self.id_block, self.id_sizes)
        return self._ids

    @property
    def uniform(self) -> bool:
        return one_size(self.lengths)

    @property
    def ends(self) -> Sequence[int]:
        """Where each message's body ends in `raw`."""
        if self._ends is None and self.uniform:
            step = self.lengths[0] + BODY_PREFIX_BYTES
            end = self.payload_start + step * self.count
            self._ends = range(self.payload_start + step, end + 1, step)
        elif self._ends is None:
            first = self.payload_start + BODY_PREFIX_BYTES
            prefixes = range(first, first + BODY_PREFIX_BYTES * self.count, BODY_PREFIX_BYTES)
            self._ends = list(map(add, accumulate(self.lengths), prefixes))
        return self._ends

    def body(self, index: int) -> bytes:
        """Return prefix, key and value of a message: the bytes that its body hash covers."""
        end = self.ends[index]
        return bytes(self.raw[end - self.lengths[index] - BODY_PREFIX_BYTES : end])
