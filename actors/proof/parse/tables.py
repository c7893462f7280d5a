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
from typing import Any
from zlib import crc32

from ...errors import CorruptLog, UnsupportedFormat
from .document import Part, SnapshotHead
from .frames import Frame, Group

FORMAT = 1
_OVERHEAD = 32

# Opens a look: all that its function reads is of one moment. Values stand for `?`.
Look = Callable[[], AbstractContextManager[Callable[[str, Sequence[Any]], list[tuple[Any, ...]]]]]
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
            chunks = rows(
                "SELECT part, chunk, crc, data FROM oncemq_snapshot"
                " WHERE ledger_id = ? ORDER BY part, chunk",
                (head[1],),
            )
        self._parts = self._joined(chunks)
        self.snapshots: list[SnapshotHead] = []
        if self.start:
            parts = [Part(name, "", len(data), crc32(data)) for name, data in self._parts.items()]
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
