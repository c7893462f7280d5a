"""Keyed hashes of whole batches: of ids as fingerprints, of bodies as one word.

Theory of operation. A row of bytes is a vector of 16-bit words. Its hash is the inner product with
a vector of secret random numbers, modulo the prime 2^31 - 1, plus a secret number: Carter and
Wegman's multilinear family (1979). Whoever does not know the key meets one chance in 2^31 that two
different rows agree, for each *lane*, which is one such product under a key of its own. Five lanes
make a fingerprint of 128 bits, three make a word of 64 bits. The length of a row is one of its
words, so rows may be filled up with zeros to stand in one matrix.

A matrix product in float64 is exact here: 32 products of 16 and 31 bits stay below 2^53.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]

_PRIME = (1 << 31) - 1
_ROWS = 1024  # rows and words of one product: small enough that the library starts no threads
_WORDS = 32
ROW_BYTES_MAX = 1024  # a longer row is hashed by BLAKE2b, whose keyed mode needs no matrix
_FINGERPRINT_LANES = 5
_WORD_LANES = 3


class Rows:
    """Rows of bytes in one block of memory."""

    def __init__(
        self, data: Any, sizes: bytes | NDArray[Any] | int, starts: Words | int | None = None
    ) -> None:
        """`sizes` tells the size of each row.

        Rows lie one behind the other and fill `data`, unless `starts` says where each one begins.
        Where all have the same size, `sizes` may be that size and `starts` their number.
        """
        self.data: NDArray[np.uint8] = np.frombuffer(data, np.uint8)
        self._starts: Words | None = None
        # Of all rows, where they lie one behind the other and have one size; else 0.
        self.size = 0
        if isinstance(sizes, int):
            assert isinstance(starts, int)
            self.size = self.longest = sizes
            self.count = starts
            return
        column = np.frombuffer(sizes, np.uint8) if isinstance(sizes, bytes) else sizes
        self._sizes: Words = column.astype(np.uint64)
        self.count, self.longest = len(column), int(column.max())
        if starts is not None:
            assert not isinstance(starts, int)
            self._starts = starts

    @classmethod
    def joined(cls, parts: Sequence[Rows]) -> Rows:
        """Return all rows of `parts`, in their order; the rows of each fill its data."""
        if len(parts) == 1:
            return parts[0]
        data = np.concatenate([part.data for part in parts])
        if parts[0].size and all(part.size == parts[0].size for part in parts):
            return cls(data, parts[0].size, sum(part.count for part in parts))
        return cls(data, np.concatenate([part.sizes() for part in parts]))

    def sizes(self) -> Words:
        return np.full(self.count, self.size, np.uint64) if self.size else self._sizes

    def starts(self) -> Words:
        if self._starts is None:
            sizes = self.sizes()
            self._starts = np.cumsum(sizes, dtype=np.uint64) - sizes
        return self._starts

    def row(self, start: int, size: int) -> NDArray[np.uint8]:
        return self.data[start : start + size]


class KeyedHash:
    """Hashes under one secret. The same secret gives the same hashes for ever, on any machine."""

    def __init__(self, secret: bytes) -> None:
        """`secret`: random bytes of the log, never shown to a client."""
        self._ids = _Lanes(secret, b"ids", _FINGERPRINT_LANES)
        self._bodies = _Lanes(secret, b"bodies", _WORD_LANES)
        self._times = _Lanes(secret, b"times", _WORD_LANES)
        self._long_key = hashlib.blake2b(secret, person=b"oncemq.long").digest()[:32]

    def fingerprints(self, ids: Rows, salt: int | Words) -> tuple[Words, Words]:
        """Return the two halves of each id's fingerprint; an id has at most ROW_BYTES_MAX bytes.

        `salt` (below 2^31, of all or of each) keeps apart what may have the same id: it names the
        topic.
        """
        lanes = self._ids.of(ids, salt)
        high = lanes[0] << np.uint64(33) | lanes[1] << np.uint64(2) | lanes[4] & np.uint64(3)
        rest = lanes[4] >> np.uint64(2) & np.uint64(3)
        return high, lanes[2] << np.uint64(33) | lanes[3] << np.uint64(2) | rest

    def words(self, rows: Rows) -> Words:
        """Return 64 bits for each row."""
        if rows.longest <= ROW_BYTES_MAX:
            return self._packed(self._bodies.of(rows, 0))
        sizes, starts = rows.sizes(), rows.starts()
        long = sizes > ROW_BYTES_MAX
        result = np.empty(rows.count, np.uint64)
        for row in np.flatnonzero(long).tolist():
            result[row] = self._long(rows.row(int(starts[row]), int(sizes[row])))
        short = np.flatnonzero(~long)
        if short.size:
            some = Rows(rows.data, sizes[short], starts[short])
            result[short] = self._packed(self._bodies.of(some, 0))
        return result

    def times(self, rows: Rows) -> Words:
        """Return 64 bits for each row of 8 bytes, under keys of their own."""
        return self._packed(self._times.of(rows, 0))

    @staticmethod
    def _packed(lanes: Words) -> Words:
        packed: Words = lanes[0] << np.uint64(33) | lanes[1] << np.uint64(2)
        packed |= lanes[2] & np.uint64(3)
        return packed

    def _long(self, row: NDArray[np.uint8]) -> int:
        digest = hashlib.blake2b(row.tobytes(), key=self._long_key, digest_size=8).digest()
        return int.from_bytes(digest, "little")


class _Lanes:
    """The products of one purpose."""

    def __init__(self, secret: bytes, purpose: bytes, lanes: int) -> None:
        # One number for each 16-bit word of a row, then for its length, its salt, and one to add.
        count = ROW_BYTES_MAX // 2 + 3
        stream = hashlib.shake_256(b"oncemq lanes " + purpose + b"\0" + secret)
        drawn = np.frombuffer(stream.digest(count * lanes * 8), "<u8") % np.uint64(_PRIME)
        table = drawn.reshape(count, lanes)
        self._keys = table[:-3].astype(np.float64)
        self._length, self._salt, self._plus = table[-3:]

    def of(self, rows: Rows, salt: int | Words) -> Words:
        """Return a column of lanes, each below the prime, for each row of bytes."""
        sizes: Words | np.uint64
        if rows.size:
            sums = self._uniform(rows.data.reshape(rows.count, rows.size))
            sizes = np.uint64(rows.size)
        else:
            sizes = rows.sizes()
            sums = self._ragged(rows.data, rows.starts(), sizes)
        sums += sizes * self._length[:, None]
        salted = np.asarray(salt, np.uint64) * self._salt[:, None]
        sums += salted % np.uint64(_PRIME) + self._plus[:, None]
        return sums % np.uint64(_PRIME)

    def _uniform(self, rows: NDArray[np.uint8]) -> Words:
        """Return the sums of rows of one size; each stays below 2^58."""
        count, size = rows.shape
        if size % 2:
            even = np.zeros((count, size + 1), np.uint8)
            even[:, :size] = rows
            rows = even
        words = np.ascontiguousarray(rows).view("<u2")
        sums = np.zeros((len(self._length), count), np.uint64)
        for top in range(0, count, _ROWS):
            block = words[top : top + _ROWS]
            for left in range(0, words.shape[1], _WORDS):
                piece = block[:, left : left + _WORDS].astype(np.float64)
                keys = self._keys[left : left + piece.shape[1]]
                sums[:, top : top + _ROWS] += (keys.T @ piece.T).astype(np.uint64)
        return sums

    def _ragged(self, raw: NDArray[np.uint8], starts: Words, lengths: Words) -> Words:
        """Rows of unlike size: those up to each power of two stand in one matrix."""
        sums = np.zeros((len(self._length), len(starts)), np.uint64)
        left = np.flatnonzero(lengths)
        width = 16
        while left.size:
            fits = lengths[left] <= width
            some = left[fits]
            for top in range(0, some.size, _ROWS):
                rows = some[top : top + _ROWS]
                columns = np.arange(width, dtype=np.uint64)
                inside = columns < lengths[rows, None]
                places = np.where(inside, starts[rows, None] + columns, 0)
                sums[:, rows] = self._uniform(raw[places] * inside)
            left = left[~fits]
            width *= 2
        return sums
