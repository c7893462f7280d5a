"""Sorting more than fits: fixed-size records, sorted runs in one temporary file, one merge.

Memory is flat: a run of RUN_RECORDS records while adding, READ_BYTES_MAX over all runs while
merging. What fits one run never touches the disk.
"""

from __future__ import annotations

import heapq
import os
import tempfile
from collections.abc import Iterable, Iterator
from typing import IO

RUN_RECORDS = 200_000
READ_BYTES_MAX = 16 * 1024 * 1024
_READ_BYTES_MIN = 8 * 1024
RUNS_MAX = 512  # more are merged into one before going on


class Sorter:
    """Takes byte records of one size in any order and gives them back sorted, once."""

    def __init__(self, record_bytes: int, *, run_records: int = RUN_RECORDS) -> None:
        self._size = record_bytes
        self._run_records = run_records
        self._buffer: list[bytes] = []
        self._file: IO[bytes] | None = None
        # (start, end) of each sorted run in the file.
        self._runs: list[tuple[int, int]] = []
        # How many records were added.
        self.count = 0

    def add(self, records: Iterable[bytes]) -> None:
        before = len(self._buffer)
        self._buffer += records
        self.count += len(self._buffer) - before
        if len(self._buffer) >= self._run_records:
            self._spill()

    def _spill(self) -> None:
        self._buffer.sort()
        self._write(iter([b"".join(self._buffer)]))
        self._buffer = []
        if len(self._runs) >= RUNS_MAX:
            runs, self._runs = self._runs, []
            self._write(heapq.merge(*self._readers(runs)))

    def _write(self, pieces: Iterator[bytes]) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="oncemq-verify-")  # noqa: SIM115
        start = self._file.seek(0, os.SEEK_END)
        for piece in pieces:
            self._file.write(piece)
        self._file.flush()
        self._runs.append((start, self._file.tell()))

    def sorted(self) -> Iterator[bytes]:
        """Ascending. Add no more records afterwards."""
        self._buffer.sort()
        if not self._runs:
            return iter(self._buffer)
        return heapq.merge(self._buffer, *self._readers(self._runs))

    def _readers(self, runs: list[tuple[int, int]]) -> list[Iterator[bytes]]:
        share = max(_READ_BYTES_MIN, READ_BYTES_MAX // len(runs))
        chunk = max(1, share // (self._size * 3)) * self._size  # a bytes object has overhead
        return [self._read(start, end, chunk) for start, end in runs]

    def _read(self, start: int, end: int, chunk: int) -> Iterator[bytes]:
        assert self._file is not None, "runs lie in the file"
        descriptor, size = self._file.fileno(), self._size
        for at in range(start, end, chunk):
            data = os.pread(descriptor, min(chunk, end - at), at)
            yield from [data[here : here + size] for here in range(0, len(data), size)]

    def close(self) -> None:
        """Delete the temporary file."""
        self._buffer = []
        if self._file is not None:
            self._file.close()
            self._file = None
