"""The files of a SQLite database that others commit to: making durable what was read of it.

Commits of a process that was killed before its sync are shown to everybody who opens the file, for
they are in the page cache; a power cut takes them away. Who relies on what it reads syncs it first.
"""

from __future__ import annotations

import os
from collections.abc import Callable


def sync_committed(path: str, fsync: Callable[[int], None] = os.fsync) -> None:
    """Make all that SQLite has committed to `path` durable, whatever its `synchronous` is.

    `path` is the real path, beside which SQLite keeps its other files. In WAL mode commits lie in
    `-wal`. With a rollback journal the database was synced before the journal's name went away, and
    only the directory tells that it did. The database file itself is not touched: closing any
    descriptor of it would drop the locks of this process.

    Raises OSError. Do not try again then: the next sync may say yes to lost pages.
    """
    try:
        descriptor = os.open(f"{path}-wal", os.O_RDONLY)
    except FileNotFoundError:
        descriptor = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        fsync(descriptor)
    finally:
        os.close(descriptor)
