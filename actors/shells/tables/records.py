"""Reading a ledger's records and snapshot from tables: for its owner, and for `oncemq state`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple
from zlib import crc32

from ...errors import CorruptLog
from ...history import NO_PLACE, Place
from ...storage.log import StoredRecord
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

    def _corrupt(self, position: int, reason: str) -> CorruptLog:
        return CorruptLog(f"{self._where} (oncemq_record)", position, reason)
