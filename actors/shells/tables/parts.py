"""Parts of a snapshot that are too large for one transaction: some rows in each turn.

Such a part is written ahead of the snapshot that names it, and only counts from then on. A part
that no snapshot names any more, or never did, is deleted in the same way: its rows are spent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, Protocol
from zlib import crc32

from ...storage.log import Mapped
from . import statements

Changes = list[tuple[str, tuple[Any, ...]]]  # statements, each with its values

ROWS_A_TURN = 16


class PartsOfLog(Protocol):
    """What a SqlLog does for a part in the making. Its methods raise what `SqlLog.sync` raises."""

    log_id: bytes
    spent_parts: set[str]  # parts that no snapshot needs

    def must_wait(self) -> bool:
        """Return whether somebody else has the connection, or the file."""

    def rows_of_part(self, part: str) -> int:
        """Return the number of the last row, plus one."""

    def change_beside(self, changes: Changes) -> None:
        """Change rows of a part, in a transaction of its own."""

    def take_part(self, part: str) -> Mapped:
        """The part is whole. Raises CorruptLog."""


class PagedPartWriter:
    """A part in the making. Of the I/O thread."""

    def __init__(self, log: PartsOfLog, name: str, row_bytes: int) -> None:
        # Whether `finish` is to be called again, in a later turn.
        self.unfinished = True
        self._log = log
        self._name = name
        self._row_bytes = row_bytes
        self._steps: Iterator[Changes] = iter(())

    def write(self, pieces: Iterable[bytes], stop: Callable[[], bool] = lambda: False) -> None:
        """Begin to write what `pieces` yields; a turn asks for some of it."""
        del stop
        self._steps = self._changes(pieces)

    def finish(self) -> Mapped | None:
        """Write some rows, if nobody else has the connection; return the part once it is whole.

        Raises what `SqlLog.sync` raises, and CorruptLog.
        """
        if self._log.must_wait():
            return None
        changes = next(self._steps, None)
        if changes is not None:
            self._log.change_beside(changes)
            return None
        self.unfinished = False
        return self._log.take_part(self._name)

    def _changes(self, pieces: Iterable[bytes]) -> Iterator[Changes]:
        """Yield the changes of each transaction."""
        log, ledger_id = self._log, self._log.log_id
        yield from self._forget(self._name)  # what a process left that died over it
        while log.spent_parts:
            yield from self._forget(log.spent_parts.pop())
        numbered = enumerate(_cut(pieces, self._row_bytes))
        while some := list(islice(numbered, ROWS_A_TURN)):
            yield [
                (statements.ADD_CHUNK, (ledger_id, self._name, number, crc32(row), row))
                for number, row in some
            ]

    def _forget(self, name: str) -> Iterator[Changes]:
        while (rows := self._log.rows_of_part(name)) > 0:
            first = max(0, rows - ROWS_A_TURN)
            yield [(statements.FORGET_ROWS, (self._log.log_id, name, first))]


def _cut(pieces: Iterable[bytes], size: int) -> Iterator[bytes]:
    """Yield the same bytes in rows of one size; the last one may be shorter."""
    rest = b""
    for piece in pieces:
        rest += piece
        whole = len(rest) - len(rest) % size
        for start in range(0, whole, size):
            yield rest[start : start + size]
        rest = rest[whole:]
    if rest:
        yield rest
