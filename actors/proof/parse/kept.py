"""A kept part (docs/STORAGE.md, "Kept parts"): records of a stretch of the log, frame by frame."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from struct import Struct
from zlib import crc32

from ...errors import CorruptLog
from ...limits import RECORD_BYTES_MAX
from .files import Files
from .frames import FRAME_HEADER_BYTES, Frame

# magic, version, log_id, start, end, entries of the index, bytes of frames, two checksums
_FOOTER = Struct("<8sI16sQQQQII")
_FRAME = Struct("<IBBHQII")
_ENTRY_BYTES = 16
_PREFIX = "kept-"


def kept_range(name: str) -> tuple[int, int] | None:
    """Return start and end of what a part of a snapshot keeps; None: it is another part."""
    start, dash, end = name.removeprefix(_PREFIX).partition("-")
    return (int(start), int(end)) if name.startswith(_PREFIX) and dash else None


def kept_frames(files: Files, path: str, log_id: bytes) -> Iterator[Frame]:
    """Yield all records of a part, each checked. Raises CorruptLog, FileNotFoundError."""
    with contextlib.closing(files.open(path)) as file:
        at = file.length() - _FOOTER.size
        if at < 0:
            raise CorruptLog(path, 0, "too short for a kept part")
        footer = file.read(at, _FOOTER.size)
        magic, version, its, start, end, entries, size, index_crc, own = _FOOTER.unpack(footer)
        if own != crc32(footer[:-4]) or magic != b"OMQKEPT\n" or version != 1 or its != log_id:
            raise CorruptLog(path, at, "not the footer of a kept part of this log")
        index = file.read(size, entries * _ENTRY_BYTES)
        if size + len(index) != at or crc32(index) != index_crc:
            raise CorruptLog(path, size, "wrong checksum of the index")
        seed, place, last = crc32(log_id), 0, start - 1
        while place < size:
            header = file.read(place, FRAME_HEADER_BYTES)
            length, kind, flags, meta_length, position, body_crc, crc = _FRAME.unpack(header)
            if length > RECORD_BYTES_MAX or meta_length > length or flags:
                raise CorruptLog(path, place, "no record: impossible length")
            data = file.read(place + FRAME_HEADER_BYTES, length)
            meta, body = data[:meta_length], memoryview(data)[meta_length:]
            whole = len(data) == length and place + FRAME_HEADER_BYTES + length <= size
            if not whole or crc32(meta, crc32(header[:20], seed)) != crc or crc32(body) != body_crc:
                raise CorruptLog(path, place, "wrong checksum of a record")
            if not last < position < end:
                raise CorruptLog(path, place, f"a record of position {position} in the wrong place")
            yield Frame(
                position, position + FRAME_HEADER_BYTES + length, kind, meta, body, body_crc
            )
            last, place = position, place + FRAME_HEADER_BYTES + length
