"""The database of a SQLite sink in a backup: one moment of it, and the broker's copy ends where it fits."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from oncemq.errors import BadInput, BadSink, NotSupported
from oncemq.history import Place
from oncemq.library.backups.cut import Moved, end_for
from oncemq.library.backups.sink import SqliteCopies
from oncemq.runtime.os_disk import OsDisk
from oncemq.shells.tables.records import Row
from oncemq.storage.copying import JUMP
from oncemq.storage.memory import MemoryDisk
from oncemq.storage.view import read_latest
from tests.library.backups.small import DATA, LEDGER_ID, LOG_ID, TOPIC_ID, records_of
from tests.library.backups.test_backup import worked


def row(seen: Place = Place(), epoch: int = 0) -> Row:  # noqa: B008
    return Row(1, LEDGER_ID, epoch, 1, 1, 0, TOPIC_ID, LOG_ID, {}, {}, seen)


def cut_for(disk: MemoryDisk, floor: int, *rows: Row) -> int:
    view = read_latest(disk, DATA)
    assert view is not None
    return end_for(disk, view, floor, rows)


def test_the_end_is_above_all_that_the_database_relies_on_and_no_further() -> None:
    """The first end of a group: what follows may be of commits that the copy lacks."""
    disk = MemoryDisk()
    system = worked(disk, 5)
    assert system.broker is not None
    floor = system.broker.durable_end
    assert cut_for(disk, floor) == floor
    system.store()
    one = system.broker.durable_end
    system.store()
    two = system.broker.durable_end
    relied = [Place(b"m" * 16, position + 1) for position in system.stored[-2:]]
    assert cut_for(disk, floor, row(relied[0])) == one
    assert cut_for(disk, floor, row(relied[0]), row(relied[1])) == two
    with pytest.raises(Moved, match="relies on position"):
        cut_for(disk, floor, row(Place(b"m" * 16, two + 1)))


def test_the_end_is_above_the_grants_that_the_database_was_claimed_under() -> None:
    disk = MemoryDisk()
    system = worked(disk, 5)
    assert system.broker is not None
    floor = system.broker.durable_end
    system.grant()
    granted = system.broker.durable_end
    system.grant()
    assert cut_for(disk, floor, row(epoch=2)) == floor
    assert cut_for(disk, floor, row(epoch=3)) == granted
    assert records_of(disk, DATA)[-1][0] >= granted


@pytest.fixture
def database(tmp_path: Path) -> Any:
    connection = sqlite3.connect(tmp_path / "shop.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("CREATE TABLE paid (value TEXT)")
    connection.execute("CREATE TABLE oncemq_ledger (epoch INTEGER)")
    connection.execute("DROP TABLE oncemq_ledger")
    yield connection
    connection.close()


def test_a_copy_is_one_moment_and_one_file(tmp_path: Path, database: Any) -> None:
    """Also of what lies in the log of a database in use, without what is not committed."""
    database.execute("INSERT INTO paid VALUES ('one')")
    database.execute("BEGIN")
    database.execute("INSERT INTO paid VALUES ('two')")
    copies = SqliteCopies(f"sqlite:///{tmp_path / 'shop.db'}")
    assert copies.copy(str(tmp_path / "copy.db")) == []
    database.execute("ROLLBACK")
    assert not list(tmp_path.glob("copy.db-*"))
    with sqlite3.connect(tmp_path / "copy.db") as copy:
        assert copy.execute("SELECT value FROM paid").fetchall() == [("one",)]
    copy.close()


def test_a_restored_ledger_has_epochs_above_the_original(tmp_path: Path, database: Any) -> None:
    database.execute("CREATE TABLE oncemq_ledger (epoch INTEGER)")
    database.execute("INSERT INTO oncemq_ledger VALUES (7)")
    with sqlite3.connect(tmp_path / "copy.db") as copy:
        database.backup(copy)
    copy.close()
    target = SqliteCopies(f"sqlite:///{tmp_path / 'new' / 'shop.db'}")
    target.check_absent()
    target.restore(OsDisk(), str(tmp_path / "copy.db"), JUMP)
    with sqlite3.connect(tmp_path / "new" / "shop.db") as restored:
        assert restored.execute("SELECT epoch FROM oncemq_ledger").fetchall() == [(7 + JUMP,)]
    restored.close()
    with pytest.raises(BadInput, match="exists"):
        target.check_absent()


def test_what_cannot_be_copied_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadSink, match="there is no file"):
        SqliteCopies(f"sqlite:///{tmp_path / 'no.db'}").copy(str(tmp_path / "copy.db"))
    with pytest.raises(NotSupported, match="holds no copy"):
        SqliteCopies("postgresql://user:secret@host/db")
