"""Bytes of the log: record frames, commit frames and segment headers. Little endian throughout.

docs/STORAGE.md has the tables. Zero bytes are never a record (type 0 and length 0 are invalid),
a frame carries its own position, and its header CRC is seeded with the log's id: a frame that was
written to another place or by another log is not a frame here.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from zlib import crc32

from ..errors import UnsupportedFormat
from ..limits import RECORD_BYTES_MAX

FORMAT_VERSION = 1
LOG_ID_BYTES = 16

# length of meta and body, type, flags (0), length of meta, position, crc of body, crc of header
HEADER = Struct("<IBBHQII")
# The header without its own CRC. That CRC covers prefix and meta, and the prefix holds the body's
# CRC: so the chain over headers covers the bodies too, without reading them a second time.
PREFIX = Struct("<IBBHQI")
CHECKSUM = Struct("<I")
HEADER_BYTES = HEADER.size
PREFIX_BYTES = PREFIX.size

USER_TYPE_MAX = 199  # types of records; above are the frames of storage itself
COMMIT = 200

# log_id, generation, first position of the group, own position, attested, chain before this frame
COMMIT_META = Struct("<16sQQQQI")
COMMIT_BYTES = HEADER_BYTES + COMMIT_META.size

SEGMENT_MAGIC = b"OMQ\x00SEG\n"  # the zero and the newline show a copy made in text mode
# magic, version, log_id, generation, first position, chain before it, zeros; then the CRC
_SEGMENT = Struct("<8sI16sQQI12s")
SEGMENT_HEADER_BYTES = _SEGMENT.size + CHECKSUM.size


class BadFrame(Exception):
    """Bytes that are not the frame that belongs here. Carries the reason; never leaves storage."""


@dataclass(frozen=True, slots=True)
class Commit:
    """What a commit frame says about the group it closes."""

    log_id: bytes
    generation: int
    first: int  # position of the group's first record
    end: int  # the frame's own position: the end of the group's records
    # The end covered by a sync that had returned when this frame was written. It is what tells
    # damage from a torn tail: bytes below it were durable once.
    attested: int
    chain: int  # CRC over all record headers of the log before this frame


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """The head of a segment file."""

    log_id: bytes
    generation: int  # the generation that created the segment; a copy keeps it
    first: int  # position of the first byte after this header
    chain: int  # chain before that position


def log_seed(log_id: bytes) -> int:
    """Return the seed of all header CRCs of a log: a frame of another log fails its CRC here."""
    return crc32(log_id)


def encode_header(
    kind: int, meta: bytes, body_bytes: int, position: int, body_crc: int, seed: int
) -> bytes:
    prefix = PREFIX.pack(len(meta) + body_bytes, kind, 0, len(meta), position, body_crc)
    return prefix + CHECKSUM.pack(crc32(meta, crc32(prefix, seed)))


def encode_commit(commit: Commit, seed: int) -> bytes:
    meta = COMMIT_META.pack(
        commit.log_id, commit.generation, commit.first, commit.end, commit.attested, commit.chain
    )
    return encode_header(COMMIT, meta, 0, commit.end, 0, seed) + meta


def decode_header(
    data: bytes | memoryview, at: int, position: int, seed: int
) -> tuple[int, int, int, int]:
    """Check the frame header at `data[at:]` and return (type, length, meta length, body CRC).

    Needs the header and the meta in `data`; the body need not be there. Raises BadFrame.
    """
    if len(data) - at < HEADER_BYTES:
        raise BadFrame("the file ends inside a record header")
    length, kind, flags, meta_length, own, body_crc, header_crc = HEADER.unpack_from(data, at)
    # Lengths are judged before anything is sliced by them, and reserved room reads as zeros.
    if kind == 0 or length == 0:
        raise BadFrame("no record: zero type or length")
    if length > RECORD_BYTES_MAX or meta_length > length:
        raise BadFrame("impossible length in a record header")
    if own != position:
        raise BadFrame(f"a record of position {own} at the place of {position}")
    meta_at = at + HEADER_BYTES
    if len(data) - meta_at < meta_length:
        raise BadFrame("the file ends inside a record")
    covered = crc32(
        data[meta_at : meta_at + meta_length], crc32(data[at : at + PREFIX_BYTES], seed)
    )
    if covered != header_crc:
        raise BadFrame("wrong checksum of a record header")
    # Only behind the CRC: a whole frame of a later version is another finding than damage.
    if flags or USER_TYPE_MAX < kind != COMMIT:
        raise BadFrame(f"a record of type {kind} with flags {flags}, unknown to this version")
    return kind, length, meta_length, body_crc


def decode_commit(data: bytes | memoryview, at: int, position: int, seed: int) -> Commit:
    """Raises BadFrame."""
    kind, length, _, _ = decode_header(data, at, position, seed)
    if kind != COMMIT or length != COMMIT_META.size:
        raise BadFrame("no commit frame")
    commit = Commit(*COMMIT_META.unpack_from(data, at + HEADER_BYTES))
    if log_seed(commit.log_id) != seed or commit.end != position:
        raise BadFrame("a commit frame of another log or place")
    if commit.attested > commit.end:
        raise BadFrame("a commit frame with impossible positions")
    return commit


def encode_segment_header(header: SegmentHeader) -> bytes:
    packed = _SEGMENT.pack(
        SEGMENT_MAGIC,
        FORMAT_VERSION,
        header.log_id,
        header.generation,
        header.first,
        header.chain,
        bytes(12),
    )
    return packed + CHECKSUM.pack(crc32(packed))


def decode_segment_header(data: bytes | memoryview) -> SegmentHeader:
    """Raises BadFrame, UnsupportedFormat."""
    if len(data) < SEGMENT_HEADER_BYTES:
        raise BadFrame("the file ends inside the segment header")
    if CHECKSUM.unpack_from(data, _SEGMENT.size)[0] != crc32(data[: _SEGMENT.size]):
        raise BadFrame("wrong checksum of the segment header")
    magic, version, log_id, generation, first, chain, reserved = _SEGMENT.unpack_from(data)
    if magic != SEGMENT_MAGIC:
        raise BadFrame("not a segment file")
    if version > FORMAT_VERSION:
        raise UnsupportedFormat(f"segment format {version}; this OnceMQ reads {FORMAT_VERSION}")
    if version != FORMAT_VERSION or any(reserved):
        raise BadFrame("unknown segment header")
    return SegmentHeader(log_id, generation, first, chain)
