"""Kept parts: what is still wanted of a stretch of the log, so that its segments may go.

    frames    records as they stood in the log, with their own positions, one behind the other
    index     (position, offset in the file) of some frames, u64 each
    footer    _FOOTER, with the CRC-32 of the index, and of itself

All numbers are little-endian. Theory of operation. The log holds the batches of all topics one behind
the other; a stretch of it that is mostly deleted is pinned by the few that are not. Those are copied
into a file beside the log, once a snapshot names it they are read from there. A record keeps its
position: a reader that knows one reads on as before, and finds the next record that is left. A frame has
the checksums that it had in the log; they are checked whenever it is read.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from struct import Struct
from zlib import crc32

from ..errors import CorruptLog
from .by_position import StoredRecord
from .framing import HEADER, HEADER_BYTES, BadFrame, decode_header, encode_header, log_seed

MAGIC = b"OMQKEPT\n"
_VERSION = 1
# magic, version, log_id, start, end, entries of the index, bytes of frames, CRC of the index
_FOOTER = Struct("<8sI16sQQQQI")
_CRC = Struct("<I")
_ENTRY = Struct("<QQ")
FOOTER_BYTES = _FOOTER.size + _CRC.size
_INDEX_EVERY_BYTES = 64 * 1024
_PIECE_BYTES = 1024 * 1024
_PREFIX = "kept-"


def kept_name(start: int, end: int) -> str:
    """Return the name under which snapshots name what is kept of [start, end)."""
    return f"{_PREFIX}{start}-{end}"


def kept_range(name: str) -> tuple[int, int] | None:
    """Return start and end of the stretch; None: the part is something else."""
    if not name.startswith(_PREFIX):
        return None
    start, _, end = name.removeprefix(_PREFIX).partition("-")
    return int(start), int(end)


def pieces(records: Iterable[StoredRecord], start: int, end: int, log_id: bytes) -> Iterator[bytes]:
    """Yield the bytes of a part that keeps `records` of [start, end)."""
    seed, index, piece, size, indexed = log_seed(log_id), bytearray(), bytearray(), 0, -1
    for record in records:
        if indexed < 0 or size - indexed >= _INDEX_EVERY_BYTES:
            index += _ENTRY.pack(record.position, size)
            indexed = size
        head = encode_header(
            record.type, record.meta, len(record.body), record.position, record.body_crc, seed
        )
        piece += head
        piece += record.meta
        piece += record.body
        size += len(head) + len(record.meta) + len(record.body)
        if len(piece) >= _PIECE_BYTES:
            yield bytes(piece)
            piece.clear()
    entries = len(index) // _ENTRY.size
    footer = _FOOTER.pack(MAGIC, _VERSION, log_id, start, end, entries, size, crc32(index))
    yield bytes(piece + index) + footer + _CRC.pack(crc32(footer))


class KeptPart:
    """A part in an immutable buffer, most often a mapped file."""

    def __init__(self, buffer: bytes | memoryview, path: str, log_id: bytes) -> None:
        """Raises CorruptLog."""
        self._view = memoryview(buffer)
        self._path = path
        self._seed = log_seed(log_id)
        at = len(buffer) - FOOTER_BYTES
        if at < 0:
            raise CorruptLog(path, 0, "too short for a kept part")
        footer = bytes(self._view[at:])
        magic, version, its_log, start, end, entries, size, index_crc = _FOOTER.unpack_from(footer)
        if _CRC.unpack_from(footer, _FOOTER.size)[0] != crc32(footer[: _FOOTER.size]):
            raise CorruptLog(path, at, "wrong checksum of the footer")
        if magic != MAGIC or version != _VERSION or its_log != log_id:
            raise CorruptLog(path, at, "not a kept part of this log and of a known version")
        if size + entries * _ENTRY.size != at:
            raise CorruptLog(path, at, "a kept part of another length than its footer says")
        index = self._view[size:at]
        if crc32(index) != index_crc:
            raise CorruptLog(path, size, "wrong checksum of the index")
        self.start: int = start
        self.end: int = end
        self._size: int = size
        pairs = list(_ENTRY.iter_unpack(index))
        self._positions = [position for position, _ in pairs]
        self._offsets = [offset for _, offset in pairs]

    def read(self, position: int, max_bytes: int) -> Iterator[StoredRecord]:
        """Yield the records from `position` on, about `max_bytes` of them. Raises CorruptLog."""
        place = bisect_right(self._positions, position) - 1
        at, last = self._offsets[max(place, 0)] if self._offsets else self._size, -1
        while at < self._size and max_bytes > 0:
            record, at = self._frame(at, last)
            last = record.position
            if record.position >= position:
                max_bytes -= record.end - record.position
                yield record

    def _frame(self, at: int, last: int) -> tuple[StoredRecord, int]:
        view = self._view
        try:
            if at + HEADER_BYTES > self._size:
                raise BadFrame("the frames end inside a record header")
            own = HEADER.unpack_from(view, at)[4]
            kind, length, meta_length, crc = decode_header(view, at, own, self._seed)
            body_at, after = at + HEADER_BYTES + meta_length, at + HEADER_BYTES + length
            if after > self._size or not max(last, self.start - 1) < own < self.end:
                raise BadFrame(f"a record of position {own} in the wrong place")
            body = view[body_at:after]
            if crc32(body) != crc:
                raise BadFrame("wrong checksum of a record body")
        except BadFrame as bad:
            raise CorruptLog(self._path, at, str(bad)) from None
        meta = bytes(view[at + HEADER_BYTES : body_at])
        following = own + after - at
        return StoredRecord(own, following, kind, meta, body, crc, trusted=True), after
