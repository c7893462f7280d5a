"""Reading records back by position, from segments of one generation."""

from __future__ import annotations

import posixpath
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from zlib import crc32

from ..errors import CorruptLog
from ..limits import RECORD_BYTES_MAX
from . import layout
from .disk import Disk, File
from .framing import (
    COMMIT,
    HEADER_BYTES,
    SEGMENT_HEADER_BYTES,
    BadFrame,
    decode_commit,
    decode_header,
)

READ_BYTES_MIN = 64 * 1024  # one system call for many small records
REPLAY_BYTES = 1024 * 1024  # memory that a replay needs beside one record
OPEN_FILES_MAX = 16  # descriptors for old segments: a process has many ledgers


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """A record of the log's user. Commit frames are never handed out."""

    position: int
    end: int  # position after it
    type: int  # of codec/records.py; storage does not know what it means
    meta: bytes
    body: bytes | memoryview  # a view of the bytes that were read together
    body_crc: int
    trusted: bool  # this process wrote the body or has checked its CRC


@dataclass(slots=True)
class ChainWalk:
    """The chain up to the place where a replay stands."""

    value: int | None  # None until the first commit frame: the replay began inside a group

    def take(self, chunk: memoryview, at: int, position: int, kind: int, seed: int) -> None:
        """Walk over the frame at `chunk[at:]`. Raises BadFrame where a group does not follow."""
        if kind == COMMIT:
            recorded = decode_commit(chunk, at, position, seed).chain
            if self.value is not None and self.value != recorded:
                raise BadFrame("a commit frame that does not follow from the records before it")
            self.value = recorded
        if self.value is not None:
            self.value = crc32(chunk[at : at + HEADER_BYTES], self.value)


class RecordReader:
    """Reads records; opens the files of old segments as they are needed."""

    def __init__(self, disk: Disk, path: str, firsts: list[int], seed: int) -> None:
        """`firsts` is shared with the log that reads through this, which adds and removes segments."""
        self._disk = disk
        self._path = path
        self._firsts = firsts
        self._seed = seed
        self._files: dict[int, File] = {}

    def read(
        self, position: int, max_bytes: int, limit: int, trusted_from: int
    ) -> list[StoredRecord]:
        """Return the records from `position` on, at least one if one lies below `limit`.

        Bodies from `trusted_from` on are not checked. Raises CorruptLog.
        """
        return self._read_on(position, max_bytes, limit, trusted_from, None)[0]

    def _read_on(
        self, position: int, max_bytes: int, limit: int, trusted_from: int, walk: ChainWalk | None
    ) -> tuple[list[StoredRecord], int]:
        """Return records and the position behind the last frame that was taken."""
        records: list[StoredRecord] = []
        left = max_bytes
        while position < limit and (left > 0 or not records):
            place = bisect_right(self._firsts, position) - 1
            if place < 0:
                raise ValueError(f"position {position} lies before the start of the log")
            first = self._firsts[place]
            end = limit
            if place + 1 < len(self._firsts):
                end = min(limit, self._firsts[place + 1])
            position, left, done = self._read_segment(
                records, first, position, end, left, trusted_from, walk
            )
            if done:
                break
        return records, position

    def _read_segment(
        self,
        records: list[StoredRecord],
        first: int,
        position: int,
        end: int,
        left: int,
        trusted_from: int,
        walk: ChainWalk | None,
    ) -> tuple[int, int, bool]:
        """Take records up to `end`; return (next position, bytes left, whether to stop)."""
        at = position - first + SEGMENT_HEADER_BYTES
        want = min(max(left, READ_BYTES_MIN), end - position)
        file = self._file(first)
        chunk = memoryview(file.read(at, want))
        here = 0
        try:
            while position < end:
                # Not checked yet: a length too large leads to a longer read, never to trust in it.
                need = HEADER_BYTES + int.from_bytes(chunk[here : here + 4], "little")
                if here + need > len(chunk):
                    if here:
                        return position, left, False  # the rest of it is in the next chunk
                    chunk = self._whole(file, at, need, end - position)
                kind, length, meta_length, crc = decode_header(chunk, here, position, self._seed)
                body_at = here + HEADER_BYTES + meta_length
                after = here + HEADER_BYTES + length
                if kind != COMMIT:
                    if records and after - here > left:
                        return position, left, True
                    body = chunk[body_at:after]
                    if position < trusted_from and crc32(body) != crc:
                        raise BadFrame("wrong checksum of a record body")
                    left -= after - here
                    meta = bytes(chunk[here + HEADER_BYTES : body_at])
                    following = position + after - here
                    records.append(
                        StoredRecord(position, following, kind, meta, body, crc, trusted=True)
                    )
                if walk is not None:
                    walk.take(chunk, here, position, kind, self._seed)
                position += after - here
                here = after
        except BadFrame as bad:
            path = posixpath.join(self._path, layout.segment_name(first))
            raise CorruptLog(path, at + here, str(bad)) from None
        return position, left, False

    def _whole(self, file: File, at: int, need: int, available: int) -> memoryview:
        if need > min(available, HEADER_BYTES + RECORD_BYTES_MAX):
            raise BadFrame("a record that is longer than the log")
        chunk = memoryview(file.read(at, need))
        if len(chunk) < need:
            raise BadFrame("the file ends inside a record")
        return chunk

    def replay(
        self, position: int, limit: int, trusted_from: int, chain: int | None
    ) -> Iterator[StoredRecord]:
        """Yield all records from `position` to `limit`; `chain` is the one before `position`.

        Checks that every group follows from the one before it: records of another branch of this
        log may be whole in themselves. Raises CorruptLog.
        """
        walk = ChainWalk(chain)
        while position < limit:
            records, position = self._read_on(position, REPLAY_BYTES, limit, trusted_from, walk)
            yield from records

    def _file(self, first: int) -> File:
        file = self._files.get(first)
        if file is None:
            while len(self._files) >= OPEN_FILES_MAX:
                self.forget(next(iter(self._files)))
            path = posixpath.join(self._path, layout.segment_name(first))
            file = self._files[first] = self._disk.open(path)
        return file

    def forget(self, first: int) -> None:
        file = self._files.pop(first, None)
        if file is not None:
            file.close()

    def close(self) -> None:
        for first in list(self._files):
            self.forget(first)
