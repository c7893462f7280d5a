"""Byte formats: what was written is read, and nothing else is taken for a frame."""

from __future__ import annotations

from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oncemq.errors import CorruptLog, UnsupportedFormat
from oncemq.limits import RECORD_BYTES_MAX
from oncemq.storage import document
from oncemq.storage.document import Manifest, Part, SnapshotInfo
from oncemq.storage.framing import (
    COMMIT_BYTES,
    HEADER,
    HEADER_BYTES,
    SEGMENT_HEADER_BYTES,
    BadFrame,
    Commit,
    SegmentHeader,
    decode_commit,
    decode_header,
    decode_segment_header,
    encode_commit,
    encode_header,
    encode_segment_header,
    log_seed,
)

LOG_ID = b"0123456789abcdef"
SEED = log_seed(LOG_ID)


def frame(meta: bytes, body: bytes, position: int = 64, kind: int = 1) -> bytes:
    head = encode_header(kind, meta, len(body), position, crc32(body), SEED)
    return head + meta + body


@given(meta=st.binary(max_size=50), body=st.binary(min_size=1, max_size=50))
def test_a_header_says_what_was_written(meta: bytes, body: bytes) -> None:
    """Type, lengths and body checksum of a record come back as they were given."""
    found = decode_header(frame(meta, body), 0, 64, SEED)

    assert (1, len(meta) + len(body), len(meta), crc32(body)) == found


def test_a_flip_of_any_bit_of_header_or_meta_is_seen() -> None:
    """No single damaged bit of a record's head goes unnoticed."""
    whole = frame(b"meta", b"body")
    for bit in range((HEADER_BYTES + 4) * 8):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BadFrame):
            decode_header(bytes(damaged), 0, 64, SEED)


def test_zeros_are_never_a_record() -> None:
    """Space that was reserved and not written is no record, at any position."""
    with pytest.raises(BadFrame):
        decode_header(bytes(1000), 0, 0, SEED)


def test_a_frame_counts_at_its_own_place_and_in_its_own_log_only() -> None:
    """A record copied to another position, or from another log, is not a record there."""
    with pytest.raises(BadFrame, match="position 64 at the place of 65"):
        decode_header(frame(b"", b"x"), 0, 65, SEED)
    with pytest.raises(BadFrame, match="checksum"):
        decode_header(frame(b"", b"x"), 0, 64, log_seed(b"another log's id"))


def test_a_length_is_bounded_before_anything_is_allocated() -> None:
    """A head that claims gigabytes is refused for its length alone."""
    huge = HEADER.pack(RECORD_BYTES_MAX + 1, 1, 0, 0, 64, 0, 0)
    with pytest.raises(BadFrame, match="length"):
        decode_header(huge, 0, 64, SEED)
    with pytest.raises(BadFrame, match="length"):
        decode_header(HEADER.pack(3, 1, 0, 4, 64, 0, 0), 0, 64, SEED)


@pytest.mark.parametrize("kind", [201, 255])
def test_a_type_that_only_a_newer_version_knows_is_refused(kind: int) -> None:
    """Types of the log itself are not guessed at."""
    with pytest.raises(BadFrame, match="unknown"):
        decode_header(frame(b"", b"x", kind=kind), 0, 64, SEED)


def test_reserved_flags_must_be_zero() -> None:
    """A correctly summed head with flags is from a newer version, not from this one."""
    prefix = HEADER.pack(1, 1, 4, 0, 64, crc32(b"x"), 0)[:20]
    head = prefix + crc32(prefix, SEED).to_bytes(4, "little")
    with pytest.raises(BadFrame, match="flags 4"):
        decode_header(head + b"x", 0, 64, SEED)


def test_a_commit_frame_comes_back() -> None:
    """A commit frame says which group it closes; another log's does not count."""
    commit = Commit(LOG_ID, 3, 10, 500, 10, 77)
    data = encode_commit(commit, SEED)

    assert len(data) == COMMIT_BYTES
    assert commit == decode_commit(data, 0, 500, SEED)
    with pytest.raises(BadFrame):
        decode_commit(frame(b"", b"x"), 0, 64, SEED)
    with pytest.raises(BadFrame, match="another log"):
        decode_commit(encode_commit(Commit(bytes(16), 3, 10, 500, 10, 77), SEED), 0, 500, SEED)
    with pytest.raises(BadFrame, match="impossible"):
        decode_commit(encode_commit(Commit(LOG_ID, 3, 10, 500, 501, 77), SEED), 0, 500, SEED)


def test_a_segment_header_is_whole_or_nothing() -> None:
    """Every flipped bit and every missing byte of a segment's head is seen."""
    header = SegmentHeader(LOG_ID, 3, 1000, 77)
    data = encode_segment_header(header)

    assert header == decode_segment_header(data)
    for length in range(SEGMENT_HEADER_BYTES):
        with pytest.raises(BadFrame):
            decode_segment_header(data[:length])
    for bit in range(len(data) * 8):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BadFrame):
            decode_segment_header(bytes(damaged))


def resummed(data: bytes) -> bytes:
    return data[:-4] + crc32(data[:-4]).to_bytes(4, "little")


def test_a_newer_segment_format_is_refused_by_name() -> None:
    """A segment of a newer version is no damage: the error says to upgrade."""
    data = encode_segment_header(SegmentHeader(LOG_ID, 3, 1000, 77))
    with pytest.raises(UnsupportedFormat, match="format 2"):
        decode_segment_header(resummed(data[:8] + b"\x02" + data[9:]))
    with pytest.raises(BadFrame, match="not a segment"):
        decode_segment_header(resummed(b"X" + data[1:]))
    with pytest.raises(BadFrame, match="unknown segment header"):
        decode_segment_header(resummed(data[:-5] + b"\x01" + data[-4:]))


MANIFEST = Manifest(LOG_ID, LOG_ID, 5, 3, 120, 9, 0, [(0, 100), (100, 20)], {"pid": 1})


def test_a_manifest_comes_back_and_no_damaged_byte_is_accepted() -> None:
    """Any single damaged byte of a manifest is damage, or a newer format; never another content."""
    data = MANIFEST.encode()

    assert Manifest.decode(data, "p") == MANIFEST
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 1
        with pytest.raises((CorruptLog, UnsupportedFormat)):
            Manifest.decode(bytes(damaged), "p")
    for length in range(len(data)):
        with pytest.raises(CorruptLog):
            Manifest.decode(data[:length], "p")


def test_a_newer_document_is_refused_by_name() -> None:
    """Files of a newer version are refused by version, before their checksum."""
    with pytest.raises(UnsupportedFormat, match="p has format 12"):
        document.decode("manifest", b"oncemq manifest 12 whatever\n{}\n", "p")


@pytest.mark.parametrize("content", [{}, {"log_id": "zz"}, {"log_id": 1}])
def test_a_manifest_without_its_fields_is_damage(content: dict[str, object]) -> None:
    """A right checksum over wrong content is still no manifest and no snapshot."""
    with pytest.raises(CorruptLog, match="lacks a field"):
        Manifest.decode(document.encode("manifest", content), "p")
    with pytest.raises(CorruptLog, match="lacks a field"):
        SnapshotInfo.decode(document.encode("snapshot", content), "p")


def test_a_manifest_with_a_short_log_id_is_damage() -> None:
    """A log_id has sixteen bytes."""
    short = Manifest(b"short", LOG_ID, 5, 3, 120, 9, 0, [], {})
    with pytest.raises(CorruptLog, match="log_id"):
        Manifest.decode(short.encode(), "p")


def test_a_document_must_be_a_table() -> None:
    """JSON of another shape is refused although its checksum is right."""
    line = b"[]\n"
    head = b"oncemq start 1"
    data = head + b" %08x\n" % crc32(line, crc32(head)) + line
    with pytest.raises(CorruptLog, match="not a table"):
        document.decode("start", data, "p")


def test_a_snapshot_head_comes_back() -> None:
    """A snapshot's head names its parts with length and checksum."""
    info = SnapshotInfo(LOG_ID, 5, 900, 3, [Part("index", "part-1", 10, 4)])

    assert info == SnapshotInfo.decode(info.encode(), "p")
