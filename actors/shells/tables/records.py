"""Reading a ledger's records and snapshot from tables: for its owner, and for `oncemq state`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple
from zlib import crc32

from ...errors import CorruptLog
from ...history import NO_PLACE, Place
from ...storage.log import Mapped, StoredRecord
from . import statements

# Return the rows of a statement with `?` for its values.
Rows = Callable[[str, Sequence[Any]], list[tuple[Any, ...]]]
_READ_ROWS = 256


def length_of(meta: bytes, body: bytes | memoryview) -> int:
    """By how much a record moves the position on."""
    return statements.RECORD_OVERHEAD + len(meta) + len(body)


def crc_of(kind: int, meta: bytes, body: bytes) -> int:
    return crc32(body, crc32(meta, crc32(kind.to_bytes(1, "little"))))


class Row(NamedTuple):
    """The row of a ledger."""

    format: int
    ledger_id: bytes
    epoch: int
    commit_no: int
    position: int
    snapshot_position: int
    topic_id: bytes
    log_id: bytes
    inputs: dict[str, int]  # next offset by topic_id in hexadecimal
    owner: dict[str, Any]
    seen: Place = NO_PLACE  # in the broker's log: what the ledger relies on


class PartInRows:
    """The bytes of a part in rows of one size, of which the last one may be shorter."""

    def __init__(self, rows: Rows, place: tuple[bytes, str], where: str) -> None:
        """Raises CorruptLog."""
        self._rows = rows
        self._place = place
        self._where = where
        # The row that was read last: neighbours are asked for one after the other.
        self._number, self._row = -1, b""
        count, last = rows(statements.ROW_COUNT, place)[0]
        if not count or last != count - 1:
            raise CorruptLog(where, 0, "rows of a part are missing")
        self._size = self._row_bytes = len(self._at(0))
        if last:
            self._size = last * self._row_bytes + len(self._at(last))

    def __len__(self) -> int:
        return self._size

    def read(self, start: int, end: int) -> bytes:
        """Raises CorruptLog."""
        first = start // self._row_bytes
        rows = [self._at(number) for number in range(first, -(-end // self._row_bytes))]
        base = first * self._row_bytes
        return b"".join(rows)[start - base : end - base]

    def _at(self, number: int) -> bytes:
        if number != self._number:
            found = self._rows(statements.PART_ROW, (*self._place, number))
            if not found or crc32(bytes(found[0][1])) != found[0][0]:
                raise CorruptLog(self._where, 0, f"row {number} of a part is missing or damaged")
            self._number, self._row = number, bytes(found[0][1])
        return self._row


class RecordTables:
    """What the tables hold of one ledger."""

    def __init__(self, rows: Rows, ledger_id: bytes, where: str) -> None:
        """`where` is the ledger, for people."""
        self._rows = rows
        self._ledger_id = ledger_id
        self._where = where

    def replay(self, position: int, end: int) -> Iterator[StoredRecord]:
        """`position` is a boundary. Raises CorruptLog."""
        while position < end:
            rows = self._rows(statements.RECORDS, (self._ledger_id, position, _READ_ROWS))
            for at, _, kind, meta, body, crc in rows:
                if at != position or crc_of(kind, meta, body) != crc:
                    raise self._corrupt(position, "the record is missing or damaged")
                position += length_of(meta, body)
                data = bytes(body)
                yield StoredRecord(at, position, kind, bytes(meta), data, crc32(data), trusted=True)
            if not rows or position > end:
                raise self._corrupt(position, f"the ledger's row says that records end at {end}")

    def parts(self) -> list[str]:
        return [str(name) for (name,) in self._rows(statements.SNAPSHOT_PARTS, (self._ledger_id,))]

    def part(self, name: str) -> bytes:
        """Raises CorruptLog."""
        pieces = []
        rows = self._rows(statements.PART, (self._ledger_id, name))
        for number, (chunk, crc, data) in enumerate(rows):
            piece = bytes(data)
            if chunk != number or crc32(piece) != crc:
                raise self._corrupt(0, f"chunk {number} of part {name} of the snapshot is damaged")
            pieces.append(piece)
        return b"".join(pieces)

    def parts_by_name(self) -> dict[str, bytes | Mapped]:
        """Return all parts of the snapshot; those in rows are read when they are asked. Raises CorruptLog."""
        found: dict[str, bytes | Mapped] = {}
        for name in self.parts():
            if name.endswith(statements.PAGED):
                found[name.removesuffix(statements.PAGED)] = self.mapped(name)
            else:
                found[name] = self.part(name)
        return found

    def mapped(self, part: str) -> Mapped:
        """Return a part that is read by rows. Raises CorruptLog."""
        where = f"{self._where} (oncemq_snapshot, {part})"
        return Mapped(PartInRows(self._rows, (self._ledger_id, part), where), where)

    def _corrupt(self, position: int, reason: str) -> CorruptLog:
        return CorruptLog(f"{self._where} (oncemq_record)", position, reason)
