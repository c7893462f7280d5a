"""A stored batch from its byte table: which messages it holds, under which ids.

header    magic u8 (0xB7), version u8 (1), flags u16, messages u32, payload bytes u32,
          id bytes u32, header bytes u32, reserved u32
columns   lengths u32 each; flag 1: id lengths u8 each, ids; flag 2: body hashes u64 each;
          flag 8: created_at_ms i64 each; flag 4: lengths of headers u16 each, headers
payload   for each message: encoding u8, key length + 1 as u16 (0: no key), key, value
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from struct import Struct
from typing import Any

import xxhash

_HEADER = Struct("<BBHIIIII")
_MAGIC = 0xB7
_VERSION = 1
_IDS, _HASHES, _HEADERS, _CREATED = 1, 2, 4, 8
_BODY_PREFIX_BYTES = 3

body_hash = xxhash.xxh3_64_intdigest


class BadBatch(Exception):
    """Bytes that are no batch. Carries the reason."""


@dataclass(slots=True)
class BatchView:
    """The columns of a batch."""

    raw: bytes | memoryview
    count: int
    lengths: Sequence[int]
    payload_start: int
    ids: list[bytes] | None = None  # tagged: s for text, b for bytes
    hashes: Sequence[int] | None = None
    created_at_ms: Sequence[int] | None = None
    headers: list[bytes] | None = None

    def bodies(self) -> list[bytes]:
        """Return encoding, key and value of every message, as the hashes cover them."""
        data = bytes(self.raw[self.payload_start :])
        ends = list(accumulate([length + _BODY_PREFIX_BYTES for length in self.lengths]))
        return [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def split_body(body: bytes) -> tuple[int, bytes | None, bytes]:
    """Return (encoding, key, value) of one message. Raises BadBatch."""
    mark = int.from_bytes(body[1:3], "little")
    if mark == 0:
        return body[0], None, body[_BODY_PREFIX_BYTES:]
    end = _BODY_PREFIX_BYTES + mark - 1
    if end > len(body):
        raise BadBatch("a key that is longer than its message")
    return body[0], body[_BODY_PREFIX_BYTES:end], body[end:]


def _numbers(raw: bytes | memoryview, at: int, typecode: str, count: int) -> array[int]:
    column: array[int] = array(typecode)
    end = at + count * column.itemsize
    if end > len(raw):
        raise BadBatch("the batch ends inside a column")
    column.frombytes(raw[at:end])
    if sys.byteorder == "big":
        column.byteswap()
    return column


def _pieces(data: bytes, sizes: Any) -> list[bytes]:
    ends = list(accumulate(sizes))
    if ends[-1] != len(data):
        raise BadBatch("the lengths of a column do not add up")
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def parse(raw: bytes | memoryview) -> BatchView:
    """Raises BadBatch."""
    if len(raw) < _HEADER.size:
        raise BadBatch("shorter than a batch header")
    magic, version, flags, count, payload, id_bytes, header_bytes, zero = _HEADER.unpack_from(raw)
    if magic != _MAGIC or version != _VERSION or zero or flags > 15 or not count:
        raise BadBatch("no batch header of a known version")
    at = _HEADER.size
    lengths = _numbers(raw, at, "I", count)
    at += 4 * count
    batch = BatchView(raw, count, lengths, 0)
    if flags & _IDS:
        sizes = bytes(raw[at : at + count])
        at += count
        batch.ids = _pieces(bytes(raw[at : at + id_bytes]), sizes)
        at += id_bytes
    if flags & _HASHES:
        batch.hashes = _numbers(raw, at, "Q", count)
        at += 8 * count
    if flags & _CREATED:
        batch.created_at_ms = _numbers(raw, at, "q", count)
        at += 8 * count
    if flags & _HEADERS:
        header_sizes = _numbers(raw, at, "H", count)
        at += 2 * count
        batch.headers = _pieces(bytes(raw[at : at + header_bytes]), header_sizes)
        at += header_bytes
    batch.payload_start = at
    if at + payload != len(raw) or sum(lengths) + _BODY_PREFIX_BYTES * count != payload:
        raise BadBatch("columns and payload do not fill the batch")
    return batch
