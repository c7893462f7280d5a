"""The writing end of the last segment: room, frames, groups and the roll to the next segment.

`log.py` decides about fences and about what a failure means.
"""

from __future__ import annotations

import contextlib
from zlib import crc32

from ..errors import DiskFull
from ..limits import (
    LIMITS,
    RECORD_BYTES_MAX,
    RECORD_META_BYTES_MAX,
    RESERVE_MARGIN_BYTES,
    RESERVE_STEP_BYTES,
)
from . import layout
from .disk import Disk, File
from .framing import (
    CHECKSUM,
    COMMIT_BYTES,
    HEADER_BYTES,
    PREFIX,
    SEGMENT_HEADER_BYTES,
    USER_TYPE_MAX,
    Commit,
    SegmentHeader,
    encode_commit,
    encode_segment_header,
)
from .recovery import Opened

# A group above this is handed to the file in pieces as it grows: a join that fits the processor's
# cache is faster than one large join at the end.
EARLY_WRITE_BYTES = 256 * 1024
# What the headers of a turn's records add to the bytes that `reserve` is asked for.
_TURN_HEADERS_BYTES = LIMITS.turn_events_max * HEADER_BYTES + COMMIT_BYTES


class SegmentWriter:
    """Appends to the last segment of a generation.

    Invariant: view.end (synced) <= written_end <= end, and all between them lies in one segment.
    """

    def __init__(self, disk: Disk, opened: Opened, segment_bytes: int) -> None:
        """Keep `opened.view` up to date: its `end` and `chain` are those of the synced end."""
        self.view = opened.view
        self.end = self.view.end  # position of the next record
        self._disk = disk
        self._file = opened.file
        self._reserved_end = opened.reserved_end  # position up to which the file has room
        self._segment_bytes = segment_bytes
        self._seed = self.view.place.seed
        self._chain = self.view.chain  # over all headers, also those not written yet
        self._buffer: list[bytes | memoryview] = []  # frames not handed to the file yet
        self._written_end = self.view.end

    def must_roll(self, nbytes: int) -> bool:
        """Return whether a group of `nbytes` belongs in a new segment. Never inside a group."""
        first = self.view.firsts[-1]
        used = self.end - first
        return self.end == self.view.end and used > 0 and used + nbytes > self._segment_bytes

    def reserve(self, nbytes: int) -> None:
        """Make room for records of `nbytes`, a commit frame and the margin. Raises DiskFull."""
        need = self.end + nbytes + _TURN_HEADERS_BYTES + RESERVE_MARGIN_BYTES
        if need <= self._reserved_end:
            return
        at = self._reserved_end - self.view.firsts[-1] + SEGMENT_HEADER_BYTES
        # A large step saves system calls; on a nearly full disk the bare need may still fit.
        step = min(RESERVE_STEP_BYTES, self._segment_bytes)
        for target in (max(need, self._reserved_end + step), need):
            try:
                self._file.reserve(at, target - self._reserved_end)
            except OSError as error:
                if error.errno not in layout.FULL:
                    raise
            else:
                self._reserved_end = target
                return
        raise DiskFull(f"no room for {nbytes} bytes in {self.view.path}")

    def append(self, kind: int, meta: bytes, body: bytes | memoryview, body_crc: int | None) -> int:
        length = len(meta) + len(body)
        if not (0 < length <= RECORD_BYTES_MAX and 0 < kind <= USER_TYPE_MAX):
            raise ValueError(f"a record of type {kind} and {length} bytes")
        if len(meta) > RECORD_META_BYTES_MAX:
            raise ValueError(f"meta of {len(meta)} bytes")
        if body_crc is None:
            body_crc = crc32(body)
        position = self.end
        prefix = PREFIX.pack(length, kind, 0, len(meta), position, body_crc)
        header = prefix + CHECKSUM.pack(crc32(meta, crc32(prefix, self._seed)))
        self._chain = crc32(header, self._chain)
        self._buffer += (header, meta, body)
        self.end = position + HEADER_BYTES + length
        if self.end - self._written_end > EARLY_WRITE_BYTES:
            self._write()
        return position

    def commit(self) -> None:
        """Close the group with a commit frame, write it and sync it."""
        view = self.view
        manifest = view.manifest
        frame = encode_commit(
            Commit(
                log_id=manifest.log_id,
                generation=manifest.generation,
                first=view.end,
                end=self.end,
                attested=view.end,
                chain=self._chain,
            ),
            self._seed,
        )
        self._buffer.append(frame)
        self._chain = crc32(frame[:HEADER_BYTES], self._chain)
        self.end += len(frame)
        self._write()
        self._file.sync()
        view.end, view.chain = self.end, self._chain

    def _write(self) -> None:
        at = self._written_end - self.view.firsts[-1] + SEGMENT_HEADER_BYTES
        data = b"".join(self._buffer)
        self._buffer.clear()
        self._file.write(data, at)
        self._written_end += len(data)

    def take_back(self) -> None:
        """Cut off what was written and never synced, because a write or sync has failed.

        The page cache would go on showing it, and a reader's own sync would return without an error
        although the bytes are lost. If the cut fails too, the bytes stay: no peer knows of them.
        """
        durable = self.view.end - self.view.firsts[-1] + SEGMENT_HEADER_BYTES
        with contextlib.suppress(OSError):
            self._file.truncate(durable)

    def roll(self, nbytes: int) -> None:
        """Begin the next segment, with room for `nbytes`. All of the last one must be synced.

        Raises DiskFull: then the last segment goes on.
        """
        view = self.view
        first = view.end
        need = nbytes + _TURN_HEADERS_BYTES + RESERVE_MARGIN_BYTES
        file = self._new_segment(first, need)
        self._seal()
        self._file = file
        self._reserved_end = first + need
        view.firsts.append(first)

    def _new_segment(self, first: int, room: int) -> File:
        manifest = self.view.manifest
        header = SegmentHeader(manifest.log_id, manifest.generation, first, self.view.chain)
        path = self.view.segment(first)
        file: File | None = None
        try:
            file = self._disk.create(path)
            file.write(encode_segment_header(header), 0)
            file.reserve(SEGMENT_HEADER_BYTES, room)
            file.sync()
            self._disk.sync_directory(self.view.path)
        except OSError as error:
            if file is not None:
                file.close()
            if error.errno not in layout.FULL:
                raise
            full = error
        else:
            return file
        # The name must be gone for good before the old segment grows past it: a segment that
        # exists attests that its predecessor ended there.
        layout.remove(self._disk, path)
        self._disk.sync_directory(self.view.path)
        raise DiskFull(f"no room for a segment in {self.view.path}") from full

    def _seal(self) -> None:
        """Give reserved room back and close the file; what it holds was synced before."""
        used = self.view.end - self.view.firsts[-1]
        self._file.truncate(used + SEGMENT_HEADER_BYTES)
        self._file.sync()
        self._file.close()

    def close(self, *, seal: bool) -> None:
        """`seal` gives reserved room back first."""
        if seal:
            self._seal()
        else:
            self._file.close()
