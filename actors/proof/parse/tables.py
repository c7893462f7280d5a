"""A ledger in tables of a database, as the same kind of log that files make.

oncemq_ledger     group_name, topic, partition_no, format, ledger_id, epoch, commit_no, position,
                  snapshot_position, ...: where the records end and the snapshot stands
oncemq_record     ledger_id, position, epoch, kind, meta, body, crc: positions follow each other,
                  a record is 32 bytes longer than meta and body; crc over kind, meta, body
oncemq_snapshot   ledger_id, part, chunk, crc, data

A look reads one ledger at one moment. A row that can be read is committed: there is no torn tail,
and a later owner leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any
from zlib import crc32

from ...errors import CorruptLog, UnsupportedFormat
from .document import Part, SnapshotHead
from .frames import Frame, Group
from .log import LogMoved

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FORMAT = 2
_OVERHEAD = 32
_PAGED = ".map"  # how the name of a part ends that is too large to be read at once

Rows = Callable[[str, Sequence[Any]], list[tuple[Any, ...]]]
# Opens a look: all that its function reads is of one moment. Values stand for `?`.
Look = Callable[[], AbstractContextManager[Rows]]
Place = tuple[str, str, int]


def table_ledgers(look: Look) -> list[Place]:
    """Return (group, topic, partition) of all ledgers in a database."""
    with look() as rows:
        found = rows(
            "SELECT group_name, topic, partition_no FROM oncemq_ledger ORDER BY 1, 2, 3", ()
        )
    return [(str(group), str(topic), int(partition)) for group, topic, partition in found]


class TableLog:
    """One ledger as it stood at one moment; in memory, for its records are few between snapshots."""

    def __init__(self, directory: str, look: Look, place: Place) -> None:
        """For `look_at`. Raises CorruptLog, UnsupportedFormat."""
        self.directory = self.path = directory
        self.snapshot_damage: list[str] = []
        with look() as rows:
            (head,) = rows(
                "SELECT format, ledger_id, epoch, position, snapshot_position, commit_no"
                " FROM oncemq_ledger WHERE group_name = ? AND topic = ? AND partition_no = ?",
                place,
            )
            if head[0] > FORMAT:
                raise UnsupportedFormat(
                    f"{directory} has format {head[0]}; this OnceMQ reads {FORMAT}"
                )
            self.log_id = bytes(head[1])
            self.generation, self.end, self.start = int(head[2]), int(head[3]), int(head[4])
            self.commit_no = int(head[5])
            self._records = rows(
                "SELECT position, epoch, kind, meta, body, crc FROM oncemq_record"
                " WHERE ledger_id = ? ORDER BY position",
                (head[1],),
            )
            names = rows(
                "SELECT part, COUNT(*), SUM(LENGTH(data)) FROM oncemq_snapshot"
                " WHERE ledger_id = ? GROUP BY part ORDER BY part",
                (head[1],),
            )
            chunks = [
                (part, *chunk)
                for part, _, _ in names
                if not str(part).endswith(_PAGED)
                for chunk in rows(
                    "SELECT chunk, crc, data FROM oncemq_snapshot"
                    " WHERE ledger_id = ? AND part = ? ORDER BY chunk",
                    (head[1], part),
                )
            ]
        self._look = look
        self._parts = self._joined(chunks)
        paged = [
            Part(str(part).removesuffix(_PAGED), str(part), int(size), 0)
            for part, _, size in names
            if str(part).endswith(_PAGED)
        ]
        self.snapshots: list[SnapshotHead] = []
        if self.start:
            parts = [Part(name, "", len(data), crc32(data)) for name, data in self._parts.items()]
            parts += paged
            self.snapshots = [SnapshotHead(self.log_id, self.generation, self.start, 0, parts)]

    def _joined(self, chunks: list[tuple[Any, ...]]) -> dict[str, bytes]:
        pieces: dict[str, list[bytes]] = {}
        for part, number, crc, data in chunks:
            its = pieces.setdefault(str(part), [])
            if number != len(its) or crc32(bytes(data)) != crc:
                raise CorruptLog(self.directory, self.start, f"chunk {number} of part {part}")
            its.append(bytes(data))
        return {part: b"".join(its) for part, its in pieces.items()}

    def groups(self, position: int) -> Iterator[Group]:
        """Yield the records from `position` on, each as a group of its writer. Raises CorruptLog."""
        expected = self.start
        for at, epoch, kind, meta, body, crc in self._records:
            whole = bytes([kind]) + bytes(meta) + bytes(body)
            if at != expected or crc32(whole) != crc:
                reason = f"a record at {at} that is damaged, or not the one after {expected}"
                raise CorruptLog(self.directory, expected, reason)
            expected = at + _OVERHEAD + len(whole) - 1
            if at >= position:
                data = memoryview(bytes(body))
                frame = Frame(at, expected, kind, bytes(meta), data, crc32(data))
                yield Group(at, expected, epoch, expected, 0, [frame])
        if expected != self.end:
            raise CorruptLog(self.directory, expected, f"records are missing up to {self.end}")

    def snapshot_part(self, head: SnapshotHead, name: str) -> bytes:
        """Raises KeyError."""
        del head
        return self._parts[name]

    def run(self, part: Part, width: int, mark: bytes) -> Iterator[NDArray[np.uint64]]:
        """Yield what a run of explicit ids holds (run.py). Raises CorruptLog, LogMoved.

        By another look than that of all else: a run is much larger, and never changes.
        """
        from .run import entries_of

        path = f"{self.directory} part {part.file}"
        with self._look() as rows:
            stands = "SELECT snapshot_position FROM oncemq_ledger WHERE ledger_id = ?"
            if rows(stands, (self.log_id,)) != [(self.start,)]:
                raise LogMoved(f"{path} may be gone")
            yield from entries_of(_Rows(rows, self.log_id, part, path), path, width, mark)


class _Rows:
    """A part in rows, read like a file."""

    def __init__(self, rows: Rows, ledger_id: bytes, part: Part, path: str) -> None:
        self._rows = rows
        self._place = (ledger_id, part.file)
        self._length = part.length
        self._path = path
        self._row_bytes = max(1, len(self._row(0)))

    def length(self) -> int:
        return self._length

    def read(self, offset: int, length: int) -> bytes:
        first, last = offset // self._row_bytes, -(-(offset + length) // self._row_bytes)
        whole = b"".join(map(self._row, range(first, last)))
        start = offset - first * self._row_bytes
        return whole[start : start + length]

    def _row(self, number: int) -> bytes:
        """Raises CorruptLog."""
        found = self._rows(
            "SELECT crc, data FROM oncemq_snapshot WHERE ledger_id = ? AND part = ? AND chunk = ?",
            (*self._place, number),
        )
        if not found or crc32(bytes(found[0][1])) != found[0][0]:
            raise CorruptLog(self._path, 0, f"row {number} is missing or damaged")
        return bytes(found[0][1])
