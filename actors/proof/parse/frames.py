"""Segments and frames from their byte tables. Little endian throughout.

    segment header   magic 8, version u32, log_id 16, generation u64, first u64, chain u32, 12 zeros,
                     crc32 of all before: 64 bytes
    frame            length u32 (meta and body), type u8, flags u8 (0), meta length u16,
                     position u64, crc32 of the body, crc32 of these 20 bytes and the meta seeded
                     with crc32(log_id): 24 bytes; then meta, then body
    commit frame     type 200; meta: log_id 16, generation u64, first u64, end u64, attested u64,
                     chain u32: closes a group of records

The chain is the crc32 over all frame headers (24 bytes each) of the log so far.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from typing import NamedTuple
from zlib import crc32

from ...errors import UnsupportedFormat
from ...limits import RECORD_BYTES_MAX
from .files import OpenFile

VERSION = 1
COMMIT = 200
SEGMENT_HEADER_BYTES = 64
FRAME_HEADER_BYTES = 24
_CHUNK_BYTES = 2 * 1024 * 1024

_SEGMENT = Struct("<8sI16sQQI12sI")
_FRAME = Struct("<IBBHQII")
_COMMIT = Struct("<16sQQQQI")
COMMIT_FRAME_BYTES = FRAME_HEADER_BYTES + _COMMIT.size
_MAGIC = b"OMQ\x00SEG\n"


class Bad(Exception):
    """What stands at `position` is no frame of this log. It ends the reading, or is damage."""

    def __init__(self, position: int, reason: str) -> None:
        super().__init__(reason)
        self.position = position
        self.reason = reason


class SegmentHead(NamedTuple):
    """The head of a segment file."""

    log_id: bytes
    generation: int
    first: int
    chain: int


class Frame(NamedTuple):
    """A record as it stands in the log; its checksums hold."""

    position: int
    end: int
    kind: int
    meta: bytes
    body: memoryview
    body_crc: int


class Group(NamedTuple):
    """Records that became durable together, closed by a commit frame that fits its place."""

    first: int
    end: int  # behind the commit frame
    generation: int  # of the writer
    attested: int
    chain: int  # behind the commit frame
    frames: list[Frame]


def segment_head(data: bytes) -> SegmentHead:
    """Raises Bad, UnsupportedFormat."""
    if len(data) < SEGMENT_HEADER_BYTES:
        raise Bad(0, "the file ends inside the segment header")
    magic, version, log_id, generation, first, chain, zeros, crc = _SEGMENT.unpack_from(data)
    if crc32(data[: SEGMENT_HEADER_BYTES - 4]) != crc:
        raise Bad(0, "wrong checksum of the segment header")
    if magic != _MAGIC:
        raise Bad(0, "this is no segment file")
    if version > VERSION:
        raise UnsupportedFormat(f"segment format {version}; this OnceMQ reads {VERSION}")
    if version != VERSION or zeros.strip(b"\0"):
        raise Bad(0, "unknown segment header")
    return SegmentHead(log_id, generation, first, chain)


class Writers(NamedTuple):
    """Who may have written what: groups below `cut` are older than `generation`, the rest its own."""

    generation: int
    cut: int

    def fits(self, generation: int, position: int) -> bool:
        own = position >= self.cut
        return generation == self.generation if own else generation < self.generation


class Walker:
    """Walks over the frames of one segment, whole groups at a time, checking all that can be."""

    def __init__(self, file: OpenFile, head: SegmentHead, writers: Writers | None = None) -> None:
        """`head` is the segment's header; without `writers` a group may be of any generation."""
        self._file = file
        self._head = head
        self._writers = writers
        self._seed = crc32(head.log_id)
        self._chunk = memoryview(b"")
        self._chunk_at = head.first
        # Where the next group starts and the chain before it.
        self.position = head.first
        self.chain = head.chain

    def groups(self, stop: int | None = None) -> Iterator[Group]:
        """Yield groups from `position` on, up to `stop` or until `Bad` is raised."""
        while stop is None or self.position < stop:
            group = self._group()
            self.position, self.chain = group.end, group.chain
            yield group

    def _group(self) -> Group:
        position, chain = self.position, self.chain
        frames: list[Frame] = []
        while True:
            before = chain
            frame, header = self._frame(position)
            chain = crc32(header, chain)
            position = frame.end
            if frame.kind != COMMIT:
                frames.append(frame)
                continue
            if len(frame.meta) != _COMMIT.size or len(frame.body):
                raise Bad(frame.position, "a commit frame of another length")
            log_id, generation, first, end, attested, its_chain = _COMMIT.unpack(frame.meta)
            if log_id != self._head.log_id or end != frame.position:
                raise Bad(frame.position, "a commit frame of another log or place")
            if first != self.position or attested > end:
                raise Bad(frame.position, "a commit frame that closes another group")
            if self._writers is not None and not self._writers.fits(generation, end):
                raise Bad(frame.position, f"a commit frame of generation {generation}")
            if its_chain != before:
                raise Bad(frame.position, "a commit frame that does not follow from what is before")
            return Group(first, position, generation, attested, chain, frames)

    def frame(self, position: int) -> Frame:
        """The position is known to be a record's beginning. Raises Bad."""
        return self._frame(position)[0]

    def _frame(self, position: int) -> tuple[Frame, memoryview]:
        view = self._bytes(position, FRAME_HEADER_BYTES)
        if len(view) < FRAME_HEADER_BYTES:
            raise Bad(position, "the file ends inside a record header")
        length, kind, flags, meta_length, own, body_crc, header_crc = _FRAME.unpack_from(view)
        if kind == 0 or length == 0 or length > RECORD_BYTES_MAX or meta_length > length:
            raise Bad(position, "no record: impossible type or length")
        if own != position:
            raise Bad(position, f"a record of position {own} stands here")
        if flags or kind > COMMIT:
            raise Bad(position, f"a record of unknown type {kind} or flags {flags}")
        size = FRAME_HEADER_BYTES + length
        view = self._bytes(position, size)
        if len(view) < size:
            raise Bad(position, "the file ends inside a record")
        body_at = FRAME_HEADER_BYTES + meta_length
        meta = bytes(view[FRAME_HEADER_BYTES:body_at])
        if crc32(meta, crc32(view[:20], self._seed)) != header_crc:
            raise Bad(position, "wrong checksum of a record header")
        body = view[body_at:size]
        if crc32(body) != body_crc:
            raise Bad(position, "wrong checksum of a record body")
        frame = Frame(position, position + size, kind, meta, body, body_crc)
        return frame, view[:FRAME_HEADER_BYTES]

    def _bytes(self, position: int, size: int) -> memoryview:
        """Return `size` bytes at a position, fewer at the end of the file."""
        at = position - self._chunk_at
        if at < 0 or at + size > len(self._chunk):
            want = max(size, _CHUNK_BYTES)
            offset = position - self._head.first + SEGMENT_HEADER_BYTES
            self._chunk = memoryview(self._file.read(offset, want))
            self._chunk_at = position
            at = 0
        return self._chunk[at : at + size]

    def forget(self) -> None:
        """Drop what was read ahead: a live writer may have changed it."""
        self._chunk = memoryview(b"")

    def to_the_end(self) -> str:
        """Walk on over whole groups; return why the next one is none."""
        try:
            for _ in self.groups():
                continue
        except Bad as bad:
            return bad.reason
        raise AssertionError("a walk without a stop ends at what is no group")

    def beyond(self, above: int) -> tuple[int, int]:
        """Look at what lies behind a position.

        Return the position behind the last byte that is not zero, at least `above`; and the highest
        position over `above` that a valid commit frame there attests, 0 for none.
        """
        loose, attested = above, 0
        start = above - self._head.first + SEGMENT_HEADER_BYTES
        for offset in range(start, self._file.length(), _CHUNK_BYTES):
            # A frame that begins in one piece and ends in the next is whole in the first.
            data = self._file.read(offset, _CHUNK_BYTES + COMMIT_FRAME_BYTES)
            used = len(data.rstrip(b"\0"))
            if not used:
                continue
            position = above + offset - start
            loose = max(loose, position + used)
            hit = data.find(self._head.log_id, FRAME_HEADER_BYTES)
            while hit >= 0:
                at = hit - FRAME_HEADER_BYTES
                attested = max(attested, self._attested_by(data, at, position + at))
                hit = data.find(self._head.log_id, hit + 1)
        return loose, attested if attested > above else 0

    def _attested_by(self, data: bytes, at: int, position: int) -> int:
        """Return what a commit frame at `data[at:]` attests; 0 if there is no valid one."""
        if at + COMMIT_FRAME_BYTES > len(data):
            return 0
        length, kind, _flags, meta_length, own, _crc, header_crc = _FRAME.unpack_from(data, at)
        if kind != COMMIT or length != _COMMIT.size or meta_length != length or own != position:
            return 0
        meta = data[at + FRAME_HEADER_BYTES : at + COMMIT_FRAME_BYTES]
        if crc32(meta, crc32(data[at : at + 20], self._seed)) != header_crc:
            return 0
        return int(_COMMIT.unpack(meta)[4])
