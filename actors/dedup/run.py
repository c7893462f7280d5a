"""A run: sorted entries that never change, with all that finds and proves them, in one buffer.

    blocks   BLOCK_BYTES each: a column of high halves, one of low halves, then the values
    fences   first high half of each block, u64
    sums     CRC-32 of each block, u32; zeros up to 8 bytes
    filter   words of a Bloom filter (bloom.py), u64
    footer   _FOOTER, with the CRC-32 of fences and sums, of the filter, and of itself

All numbers are little-endian. The last block is filled up with ones, which no entry may be.

Theory of operation. A question passes the filter, then the fences name the one block in which its
fingerprint would be, and a binary search inside of it answers. Filter and fences are checked when
the run is opened, a block when it is read for the first time: an answer never rests on a byte that
was not checked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from struct import Struct
from typing import Any, Protocol
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from ..errors import CorruptLog
from . import bloom
from .origin import UNKNOWN

Words = NDArray[np.uint64]
Places = NDArray[np.intp]
# Sorted columns whose high halves are all below a bound, and at or above that of the step before.
Step = tuple[int, Sequence[Words]]

BLOCK_BYTES = 4096
_MAGIC = b"OMQRUN\r\n"
_VERSION = 1
# magic, version, width, entries, filter words, secret's mark, CRC of fences and sums, of filter
_FOOTER = Struct("<8sHHQQ16sII")
_CRC = Struct("<I")
FOOTER_BYTES = _FOOTER.size + _CRC.size
_FILL = np.uint64(0xFFFF_FFFF_FFFF_FFFF)


class Paged(Protocol):
    """Immutable bytes that are somewhere else, in rows of a database for example."""

    def __len__(self) -> int: ...

    def read(self, start: int, end: int) -> bytes:
        """Raises CorruptLog."""


class Run:
    """A run in an immutable buffer, most often a mapped file.

    Of a Paged one all but the blocks is in memory, and blocks are read when they are asked for.
    """

    def __init__(
        self, source: bytes | memoryview | Paged, name: str, *, mark: bytes, own: bool = False
    ) -> None:
        """`name` is the file, for errors; `mark` names the secret that made the fingerprints.

        What this process wrote itself (`own`) is not checked again: a filter may be large, and the
        turn that takes the run would wait for it. Raises CorruptLog.
        """
        self.name = name
        size = len(source)
        if size < FOOTER_BYTES:
            raise CorruptLog(name, size, "too short for a run")
        footer = bytes(_part(source, size - FOOTER_BYTES, size))
        if _CRC.unpack_from(footer, _FOOTER.size)[0] != crc32(footer[: _FOOTER.size]):
            raise CorruptLog(name, size - FOOTER_BYTES, "wrong checksum of a run's footer")
        magic, version, width, count, words, its_mark, index_crc, filter_crc = _FOOTER.unpack_from(
            footer
        )
        if magic != _MAGIC or version != _VERSION or width < 2:
            raise CorruptLog(name, size - FOOTER_BYTES, "not a run of a known version")
        if its_mark != mark:
            raise CorruptLog(name, 0, "the run was made under another secret")
        self.count: int = count
        self.origin = UNKNOWN
        self.width: int = width
        self._each = BLOCK_BYTES // 8 // width
        blocks = -(-count // self._each)
        index_at = blocks * BLOCK_BYTES
        filter_at = index_at + 8 * blocks + -(-4 * blocks // 8) * 8
        if filter_at + 8 * words + FOOTER_BYTES != size:
            raise CorruptLog(name, 0, "a run of another length than its footer says")
        index = memoryview(_part(source, index_at, filter_at))
        table = _part(source, filter_at, filter_at + 8 * words)
        if not own and crc32(index) != index_crc:
            raise CorruptLog(name, index_at, "wrong checksum of a run's fences")
        if not own and crc32(table) != filter_crc:
            raise CorruptLog(name, filter_at, "wrong checksum of a run's filter")
        self._fences = np.frombuffer(index[: 8 * blocks], "<u8")
        self._sums = np.frombuffer(index[8 * blocks : 12 * blocks], "<u4")
        self._filter = np.frombuffer(table, "<u8")
        self._paged: Paged | None = None
        if isinstance(source, bytes | memoryview):
            self._data = self._as_blocks(memoryview(source)[:index_at])
            self._checked = np.full(blocks, own)
        else:
            self._paged = source

    def find(self, high: Words, low: Words, bits: Words) -> tuple[Places, Words]:
        """Return which fingerprints are here, and their entries. Raises CorruptLog."""
        which = np.flatnonzero(bloom.may_hold(self._filter, high, bits))
        if which.size == 0:
            return which, np.empty((self.width, 0), np.uint64)
        high, low = high[which], low[which]
        block = self._fences.searchsorted(high, "right") - 1
        found, entries = [], []
        left = np.flatnonzero(block >= 0)
        while left.size:
            at = block[left]
            data, places = self._blocks(at)
            # Hundreds of columns are compared: `nonzero` of a table is five times slower than this.
            agree = np.flatnonzero(data[places, 0] == high[left, None])
            row, cell = np.divmod(agree, self._each)
            same = data[places[row], 1, cell] == low[left[row]]
            row, cell = row[same], cell[same]
            found.append(which[left[row]])
            entries.append(data[places[row], :, cell])
            # Entries that agree may begin in the block before: there is hardly one.
            more = (self._fences[at] == high[left]) & (at > 0)
            left = left[more]
            block[left] -= 1
        if not found:
            return which[:0], np.empty((self.width, 0), np.uint64)
        return np.concatenate(found), np.concatenate(entries).T

    def _blocks(self, blocks: Places) -> tuple[Words, Places]:
        """Return checked blocks, and where among them each one of `blocks` is. Raises CorruptLog."""
        if self._paged is None:
            if not self._checked[blocks].all():
                for block in set(blocks[~self._checked[blocks]].tolist()):
                    self._check(block, self._data[block])
                    self._checked[block] = True
            return self._data, blocks
        wanted, places = np.unique(blocks, return_inverse=True)
        starts = (wanted * BLOCK_BYTES).tolist()
        data = b"".join(self._paged.read(start, start + BLOCK_BYTES) for start in starts)
        read = self._as_blocks(data)
        for block, content in zip(wanted.tolist(), read, strict=True):
            self._check(block, content)
        return read, places

    def _check(self, block: int, content: Words) -> None:
        if crc32(content.data) != self._sums[block]:
            raise CorruptLog(self.name, block * BLOCK_BYTES, "wrong checksum of a run's block")

    def _as_blocks(self, data: bytes | memoryview) -> Words:
        return np.frombuffer(data, "<u8").reshape(-1, self.width, self._each)

    def check_all(self) -> None:
        """Check every block. Raises CorruptLog."""
        self._blocks(np.arange(len(self._sums)))

    def entries(self, start: int, end: int) -> Words:
        """Return the entries at the places [start, end), a column for each word of an entry."""
        if start >= end:
            return np.empty((self.width, 0), np.uint64)
        first, last = start // self._each, -(-end // self._each)
        data, at = self._blocks(np.arange(first, last))
        rows = data[at[0] : at[-1] + 1].transpose(1, 0, 2).reshape(self.width, -1)
        return rows[:, start - first * self._each : end - first * self._each]

    def below(self, high: int) -> int:
        """Return how many entries have a high half below `high`, which may be 2^64."""
        if high > int(_FILL):
            return self.count
        block = int(np.searchsorted(self._fences, np.uint64(high), "left")) - 1
        if block < 0:
            return 0
        data, at = self._blocks(np.array([block]))
        inside = int(np.searchsorted(data[at[0], 0], np.uint64(high), "left"))
        return min(self.count, int(block * self._each + inside))


def _part(source: bytes | memoryview | Paged, start: int, end: int) -> bytes | memoryview:
    if isinstance(source, bytes | memoryview):
        return memoryview(source)[start:end]
    return source.read(start, end)


class RunWriter:
    """Turns sorted entries into the bytes of a run, piece by piece."""

    def __init__(self, width: int, entries_max: int, *, mark: bytes) -> None:
        """`entries_max`: at least as many as will come, for the size of the filter."""
        self._width = width
        self._each = BLOCK_BYTES // 8 // width
        self._mark = mark
        self._rest = np.empty((width, 0), np.uint64)  # fewer than fill a block
        self._fences: list[Words] = []
        self._sums: list[NDArray[np.uint32]] = []
        self._filter_words = bloom.word_count(entries_max)
        self.count = 0

    def add(self, entries: Words) -> bytes:
        """Return the bytes that follow; `entries` are sorted, and behind those that came before."""
        self.count += entries.shape[1]
        both = np.concatenate((self._rest, entries), axis=1) if self._rest.size else entries
        whole = both.shape[1] // self._each * self._each
        self._rest = both[:, whole:].copy()
        return self._blocks(both[:, :whole])

    def _blocks(self, entries: Words) -> bytes:
        count = entries.shape[1] // self._each
        blocks = entries.reshape(self._width, count, self._each).transpose(1, 0, 2)
        data = blocks.astype("<u8").tobytes()
        # A copy: a view would keep all entries in memory until the run is written.
        self._fences.append(entries[0, :: self._each].astype("<u8"))
        view = memoryview(data)
        sums = [crc32(view[at : at + BLOCK_BYTES]) for at in range(0, len(data), BLOCK_BYTES)]
        self._sums.append(np.array(sums, "<u4"))
        return data

    def finish(self, again: Iterable[Step]) -> Iterator[bytes]:
        """Yield the last bytes, in pieces: `again` brings all entries once more, for the filter.

        A filter is two bytes an entry: it is made step by step, not held until all blocks are there.
        """
        if self._rest.size:
            last = np.full((self._width, self._each), _FILL, np.uint64)
            last[:, : self._rest.shape[1]] = self._rest
            yield self._blocks(last)
        index_crc = filter_crc = 0
        padding = np.zeros(sum(map(len, self._sums)) % 2, "<u4")
        columns: list[NDArray[Any]] = [*self._fences, *self._sums, padding]
        for column in columns:
            piece = column.tobytes()
            index_crc = crc32(piece, index_crc)
            yield piece
        for piece in self._filter(again):
            filter_crc = crc32(piece, filter_crc)
            yield piece
        footer = _FOOTER.pack(
            _MAGIC,
            _VERSION,
            self._width,
            self.count,
            self._filter_words,
            self._mark,
            index_crc,
            filter_crc,
        )
        yield footer + _CRC.pack(crc32(footer))

    def _filter(self, steps: Iterable[Step]) -> Iterator[bytes]:
        words, first = self._filter_words, 0
        window = np.zeros(0, np.uint64)  # from word `first` on: the last one is not full yet
        for bound, columns in steps:
            end = bloom.word_below(bound, words)
            grown = np.zeros(min(end + 1, words) - first, np.uint64)
            grown[: len(window)] = window
            for entries in columns:
                bloom.put(grown, first, words, entries[0], entries[1])
            yield grown[: end - first].astype("<u8").tobytes()
            first, window = end, grown[end - first :]
