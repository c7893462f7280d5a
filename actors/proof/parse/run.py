"""A file of explicit ids (docs/STORAGE.md, "Runs"): every byte of it, checked in bounded memory.

What an index answers rests on more than checksums: entries that are not sorted, a fence that names
another block or a filter that lacks a bit would answer "new" for an id that is there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from struct import Struct
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from ...errors import CorruptLog
from .files import Content, Files

_BLOCK_BYTES = 4096
_BLOCKS_AT_ONCE = 256
# magic, version, width, entries, filter words, secret's mark, two checksums; then its own
_FOOTER = Struct("<8sHHQQ16sIII")
_SIX_BITS = (0, 6, 12, 18)


def read_run(files: Files, path: str, width: int, mark: bytes) -> Iterator[NDArray[np.uint64]]:
    """Yield all entries in order, in pieces: a column for each of the `width` words of an entry.

    `mark` names the key under which it must have been made. Raises CorruptLog, FileNotFoundError.
    """
    with contextlib.closing(files.open(path)) as file:
        yield from entries_of(file, path, width, mark)


def entries_of(file: Content, path: str, width: int, mark: bytes) -> Iterator[NDArray[np.uint64]]:
    """As `read_run`, of any bytes."""
    end = file.length() - _FOOTER.size
    if end < 0:
        raise CorruptLog(path, 0, "too short for a run")
    footer = file.read(end, _FOOTER.size)
    magic, version, its, entries, words, made_for, index_crc, filter_crc, own = _FOOTER.unpack(
        footer
    )
    if own != crc32(footer[:-4]) or magic != b"OMQRUN\r\n" or version != 1 or its != width:
        raise CorruptLog(path, end, "not the footer of a run of version 1")
    if made_for != mark:
        raise CorruptLog(path, end, "the run was made under another secret")
    each = _BLOCK_BYTES // 8 // width
    blocks = -(-entries // each)
    index_at = blocks * _BLOCK_BYTES
    filter_at = index_at + 8 * blocks + -(-4 * blocks // 8) * 8
    if filter_at + 8 * words != end:
        raise CorruptLog(path, end, "a run of another length than its footer says")
    index = file.read(index_at, filter_at - index_at)
    filter_bytes = file.read(filter_at, 8 * words)
    table = np.frombuffer(filter_bytes, "<u8")
    if crc32(index) != index_crc or crc32(filter_bytes) != filter_crc:
        raise CorruptLog(path, index_at, "wrong checksum of fences or filter")
    fences = np.frombuffer(index, "<u8", blocks)
    sums = np.frombuffer(index, "<u4", blocks, 8 * blocks)
    last = 0
    for first in range(0, blocks, _BLOCKS_AT_ONCE):
        count = min(_BLOCKS_AT_ONCE, blocks - first)
        data = file.read(first * _BLOCK_BYTES, count * _BLOCK_BYTES)
        made = [crc32(data[at : at + _BLOCK_BYTES]) for at in range(0, len(data), _BLOCK_BYTES)]
        if made != sums[first : first + count].tolist():
            raise CorruptLog(path, first * _BLOCK_BYTES, "wrong checksum of a block")
        rows = np.frombuffer(data, "<u8").reshape(count, width, each)
        if (rows[:, 0, 0] != fences[first : first + count]).any():
            raise CorruptLog(path, first * _BLOCK_BYTES, "a fence that is not of its block")
        columns = rows.transpose(1, 0, 2).reshape(width, -1)[:, : entries - first * each]
        high = columns[0]
        if int(high[0]) < last or (high[1:] < high[:-1]).any():
            raise CorruptLog(path, first * _BLOCK_BYTES, "entries that are not sorted")
        last = int(high[-1])
        if not _in_filter(table, high, columns[1]):
            raise CorruptLog(path, first * _BLOCK_BYTES, "an entry that the filter lacks")
        yield columns


def _in_filter(table: NDArray[Any], high: NDArray[Any], low: NDArray[Any]) -> bool:
    word = table[((high >> np.uint64(32)) * np.uint64(len(table)) >> np.uint64(32)).astype(np.intp)]
    return all(
        bool((word >> (low >> np.uint64(shift) & np.uint64(63)) & np.uint64(1)).all())
        for shift in _SIX_BITS
    )


def sum_of_places(recent: bytes) -> tuple[int, int]:
    """Return how many entries the part of the newest ids holds, and the sum of their places."""
    columns = np.frombuffer(recent, "<u8").reshape(4, -1)
    return columns.shape[1], int(columns[2].sum(dtype=np.uint64))
