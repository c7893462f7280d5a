"""The database of a SQLite sink in a backup: copied by SQLite itself, at one instant."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from urllib.parse import quote

from ...errors import BadInput, BadSink, CorruptLog, DiskFull, NotSupported, StorageError
from ...shells.tables import statements
from ...shells.tables.ledger import row_of
from ...shells.tables.records import Row
from ...storage import layout
from ...storage.disk import Disk
from ..sinks.address import SQLITE
from ..sinks.reading import address_of

_UNFINISHED = ".unfinished"


class SqliteCopies:
    """One SQLite database with ledgers: the original of copies, or the target of a restore."""

    def __init__(self, sink: str) -> None:
        """Raises BadSink, NotSupported: the database has tools of its own."""
        address = address_of(sink)
        if address.kind != SQLITE:
            raise NotSupported(
                f"a backup holds no copy of {address.shown}",
                hint="docs/BACKUP.md says how to back up such a database",
            )
        self.shown = address.shown
        self.path = address.target

    def copy(self, path: str) -> list[Row]:
        """Copy the database to the new file `path`, one moment of it; return its ledgers.

        Raises BadSink, CorruptLog, StorageError, DiskFull.
        """
        if not os.path.exists(self.path):
            raise BadSink(f"there is no file {self.path}", hint="")
        closing = contextlib.closing
        try:
            with (
                closing(sqlite3.connect(f"file:{quote(self.path)}?mode=ro", uri=True)) as source,
                closing(sqlite3.connect(path, isolation_level=None)) as target,
            ):
                source.backup(target)  # all pages in one read transaction
                target.execute("PRAGMA journal_mode = DELETE")  # one file, without -wal
                self._check(target, path)
                return _rows(target, path)
        except sqlite3.Error as error:
            raise self._told(error) from error

    def _check(self, connection: sqlite3.Connection, path: str) -> None:
        [verdict] = connection.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise CorruptLog(path, 0, f"SQLite says of the copy of {self.shown}: {verdict}")

    def _told(self, error: sqlite3.Error) -> StorageError:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            return DiskFull(f"no room for a copy of {self.shown}")
        return StorageError(f"{self.shown} cannot be copied: {error}")

    def check_absent(self) -> None:
        """Raises BadInput."""
        for end in ("", "-wal", "-shm"):
            if os.path.exists(self.path + end):
                raise BadInput(
                    f"{self.path}{end} exists", hint="name a new file: a restore replaces nothing"
                )

    def restore(self, disk: Disk, copy: str, jump: int) -> None:
        """Put a copy in place under the epochs of a new owner, `jump` above the last.

        All or nothing. Raises StorageError, DiskFull, OSError.
        """
        unfinished = self.path + _UNFINISHED
        home = os.path.dirname(self.path)
        layout.make_directories(disk, home)
        layout.remove(disk, unfinished)
        with contextlib.closing(disk.open(copy)) as source:
            layout.copy_new(disk, source, unfinished, source.length())
        try:
            with contextlib.closing(sqlite3.connect(unfinished, isolation_level=None)) as target:
                target.execute("PRAGMA synchronous = FULL")
                if _has_ledgers(target):
                    target.execute("UPDATE oncemq_ledger SET epoch = epoch + ?", (jump,))
        except sqlite3.Error as error:
            raise self._told(error) from error
        with contextlib.closing(disk.open(unfinished)) as file:
            file.sync()
        disk.rename(unfinished, self.path)
        disk.sync_directory(home)


def _has_ledgers(connection: sqlite3.Connection) -> bool:
    named = "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'oncemq_ledger'"
    return connection.execute(named).fetchone() is not None


def _rows(connection: sqlite3.Connection, path: str) -> list[Row]:
    """Raises CorruptLog, UnsupportedFormat."""
    if not _has_ledgers(connection):
        return []
    columns = {row[1] for row in connection.execute("PRAGMA table_info(oncemq_ledger)")}
    look = statements.LOOK_SEEN if "seen" in columns else statements.LOOK
    places = connection.execute(statements.ALL_PLACES).fetchall()
    return [row_of(connection.execute(look, place).fetchone(), path) for place in places]
