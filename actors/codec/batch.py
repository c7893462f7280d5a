"""The bytes of a batch: header, columns, payload. docs/PROTOCOL.md has the byte table.

Every per-message step here is a bulk call in C (join, map, array, accumulate): one Python statement
for each message would cost more than all the rest.
"""

from __future__ import annotations

import struct
import sys
import zlib
from array import array
from collections.abc import Iterable
from itertools import accumulate

import xxhash

from ..batch import BODY_PREFIX_BYTES, Batch, cut, measure, one_size
from ..errors import Malformed, TooLarge
from ..limits import (
    BATCH_BYTES_MAX,
    BATCH_MESSAGES_MAX,
    HEADERS_BYTES_MAX,
    KEY_BYTES_MAX,
    MESSAGE_BYTES_MAX,
    MESSAGE_ID_BYTES_MAX,
    SYSTEM_HEADERS_BYTES_MAX,
)

MAGIC = 0xB7
VERSION = 1
HAS_IDS = 1  # always with HAS_HASHES: an id alone could not show an IdConflict
HAS_HASHES = 2
HAS_HEADERS = 4
HAS_CREATED_AT = 8
_KNOWN_FLAGS = 15

# magic, version, flags, messages, payload bytes, id bytes, header bytes, reserved
HEADER = struct.Struct("<BBHIIIII")
_PREFIX = struct.Struct("<BH")  # encoding, key length + 1 (0: no key)
_ID_TAGS = frozenset(b"sb")

body_hash = xxhash.xxh3_64_intdigest


def build(
    values: list[bytes],
    *,
    encodings: int | list[int],
    keys: list[bytes | None] | None = None,
    ids: list[bytes] | None = None,
    headers: list[bytes] | None = None,
    created_at_ms: list[int] | None = None,
) -> Batch:
    """Make a batch of encoded values; each other column has one entry for each message.

    `ids` are tagged (see ids.tagged_id). Raises TooLarge. Call it before the messages get their
    sequence numbers: a number whose batch is refused would leave a gap.
    """
    count = len(values)
    if not 0 < count <= BATCH_MESSAGES_MAX:
        raise TooLarge(f"a batch has {count} messages, the limit is {BATCH_MESSAGES_MAX}")
    hashes: array[int] | None = None
    if keys is None and ids is None and isinstance(encodings, int):
        prefix = _PREFIX.pack(encodings, 0)
        lengths = array("I", map(len, values))
        payload = prefix + prefix.join(values)
    else:
        bodies = _bodies(values, encodings, keys)
        lengths = array("I", [len(body) - BODY_PREFIX_BYTES for body in bodies])
        payload = b"".join(bodies)
        if ids is not None:
            hashes = array("Q", map(body_hash, bodies))
    longest = measure(lengths)[1]
    if longest > MESSAGE_BYTES_MAX:
        raise TooLarge(f"a message is {longest} bytes long, the limit is {MESSAGE_BYTES_MAX}")
    flags = 0
    columns = [_to_bytes(lengths)]
    id_bytes = header_bytes = 0
    id_block, id_sizes = None, b""
    if ids is not None and hashes is not None:
        flags |= HAS_IDS | HAS_HASHES
        joined = id_block = b"".join(ids)
        id_bytes = len(joined)
        id_sizes = bytes(map(len, ids))
        columns += [id_sizes, joined, _to_bytes(hashes)]
    created = None if created_at_ms is None else array("q", created_at_ms)
    if created is not None:
        flags |= HAS_CREATED_AT
        columns.append(_to_bytes(created))
    if headers is not None and any(headers):
        flags |= HAS_HEADERS
        joined = b"".join(headers)
        header_bytes = len(joined)
        columns += [_to_bytes(array("H", map(len, headers))), joined]
    head = HEADER.pack(MAGIC, VERSION, flags, count, len(payload), id_bytes, header_bytes, 0)
    raw = b"".join((head, *columns, payload))
    if len(raw) > BATCH_BYTES_MAX:
        raise TooLarge(f"a batch is {len(raw)} bytes long, the limit is {BATCH_BYTES_MAX}")
    start = len(raw) - len(payload)
    return Batch(
        raw,
        zlib.crc32(raw),
        count,
        lengths,
        start,
        id_block,
        id_sizes,
        hashes,
        created,
        headers if header_bytes else None,
    )


def _bodies(
    values: list[bytes], encodings: int | list[int], keys: list[bytes | None] | None
) -> list[bytes]:
    if keys is None and isinstance(encodings, int):
        prefix = _PREFIX.pack(encodings, 0)
        return [prefix + value for value in values]
    kinds = [encodings] * len(values) if isinstance(encodings, int) else encodings
    if keys is None:
        return [_PREFIX.pack(kind, 0) + value for kind, value in zip(kinds, values, strict=True)]
    return [
        _PREFIX.pack(kind, 0) + value
        if key is None
        else _PREFIX.pack(kind, len(key) + 1) + key + value
        for kind, key, value in zip(kinds, keys, values, strict=True)
    ]


def split_body(body: bytes) -> tuple[int, bytes | None, bytes]:
    """Return (encoding, key, value) of one message. Raises Malformed."""
    if len(body) < BODY_PREFIX_BYTES:
        raise Malformed("a message is shorter than its prefix")
    encoding, key_mark = _PREFIX.unpack_from(body)
    if key_mark == 0:
        return encoding, None, body[BODY_PREFIX_BYTES:]
    end = BODY_PREFIX_BYTES + key_mark - 1
    if end > len(body) or key_mark - 1 > KEY_BYTES_MAX:
        raise Malformed("a message's key is longer than the message")
    return encoding, body[BODY_PREFIX_BYTES:end], body[end:]


def parse(raw: bytes | memoryview, crc: int, *, check: bool) -> Batch:
    """Return a view of batch bytes that another process made.

    `check` compares the CRC: on receipt; bytes that this process has checked before are not checked
    again. Raises Malformed. When it returns, every length and column is consistent.
    """
    if check and zlib.crc32(raw) != crc:
        raise Malformed("a batch does not match its CRC")
    if len(raw) < HEADER.size or len(raw) > BATCH_BYTES_MAX:
        raise Malformed(f"a batch of {len(raw)} bytes")
    magic, version, flags, count, payload_bytes, id_bytes, header_bytes, zero = HEADER.unpack_from(
        raw
    )
    if magic != MAGIC or version != VERSION or flags & ~_KNOWN_FLAGS or zero:
        raise Malformed("not a batch header of a known version")
    if not 0 < count <= BATCH_MESSAGES_MAX or bool(flags & HAS_IDS) != bool(flags & HAS_HASHES):
        raise Malformed("an impossible batch header")
    cursor = _Cursor(raw, HEADER.size)
    lengths = cursor.numbers("I", count)
    batch = Batch(raw, crc, count, lengths, 0)
    if flags & HAS_IDS:
        batch.id_sizes, batch.id_block = cursor.take(count), cursor.take(id_bytes)
        _check_ids(batch)
        batch.hashes = cursor.numbers("Q", count)
    if flags & HAS_CREATED_AT:
        batch.created_at_ms = cursor.numbers("q", count)
    if flags & HAS_HEADERS:
        sizes = cursor.numbers("H", count)
        block = cursor.take(header_bytes)
        if sum(sizes) != header_bytes:
            raise Malformed("a column's lengths do not add up")
        batch.headers = cut(block, sizes)
        if max(sizes) > HEADERS_BYTES_MAX + SYSTEM_HEADERS_BYTES_MAX:
            raise Malformed("headers above their limit")
    batch.payload_start = cursor.at
    if cursor.at + payload_bytes != len(raw):
        raise Malformed("a batch's columns and payload do not fill it")
    total, longest = measure(lengths)
    if total + BODY_PREFIX_BYTES * count != payload_bytes:
        raise Malformed("a batch's lengths do not add up to its payload")
    if longest > MESSAGE_BYTES_MAX:
        raise Malformed(f"a message above {MESSAGE_BYTES_MAX} bytes")
    return batch


def _check_ids(batch: Batch) -> None:
    sizes, block = batch.id_sizes, batch.id_block
    assert block is not None
    if min(sizes) < 2 or max(sizes) > MESSAGE_ID_BYTES_MAX + 1:
        raise Malformed("an id that is empty or above its limit")
    if sum(sizes) != len(block):
        raise Malformed("a column's lengths do not add up")
    tags: Iterable[int]
    if one_size(sizes):
        tags = block[:: sizes[0]]
    else:
        tags = map(block.__getitem__, accumulate(sizes[:-1], initial=0))
    if not _ID_TAGS.issuperset(tags):
        raise Malformed("an id of an unknown type")
    if not block.isascii():  # ASCII is valid UTF-8: one bulk check spares the loop
        for tagged in batch.ids or ():
            if tagged[:1] == b"s":
                try:
                    tagged.decode()
                except UnicodeDecodeError:
                    raise Malformed("a text id that is not UTF-8") from None


def _to_bytes(column: array[int]) -> bytes:
    if sys.byteorder == "big":
        column = column[:]
        column.byteswap()
    return column.tobytes()


class _Cursor:
    """Takes columns off the front of a batch, never beyond its end."""

    def __init__(self, raw: bytes | memoryview, at: int) -> None:
        self._raw = raw
        self.at = at

    def take(self, size: int) -> bytes:
        end = self.at + size
        if end > len(self._raw):
            raise Malformed("a batch ends inside a column")
        data = bytes(self._raw[self.at : end])
        self.at = end
        return data

    def numbers(self, typecode: str, count: int) -> array[int]:
        column: array[int] = array(typecode)
        column.frombytes(self.take(count * column.itemsize))
        if sys.byteorder == "big":
            column.byteswap()
        return column
