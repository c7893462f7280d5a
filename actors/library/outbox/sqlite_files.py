"""The files of a SQLite database that other processes commit to: making read rows durable.

Commits of a process that was killed before its sync are visible to every reader, because they are
in the page cache; a power cut takes them away. A reader that relies on them syncs them first.
"""

from __future__ import annotations

import os
from collections.abc import Callable


def sync_committed(path: str, fsync: Callable[[int], None] = os.fsync) -> None:
    """Make all that SQLite has committed to `path` durable, at any setting of `synchronous`.

    `path` is the real path, beside which SQLite keeps its other files. In WAL mode commits lie in
    `-wal`. With a rollback journal SQLite syncs the database before it deletes the journal, and only
    a sync of the directory makes the deletion durable. This never opens the database file itself:
    closing any descriptor of it would drop the POSIX locks of this process.

    Raises OSError. Do not try again then: the next sync may succeed although pages are lost.
    """
    try:
        descriptor = os.open(f"{path}-wal", os.O_RDONLY)
    except FileNotFoundError:
        descriptor = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        fsync(descriptor)
    finally:
        os.close(descriptor)
