"""The explicit ids that a snapshot of a ledger holds: in its parts, and in the runs that it names."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ...errors import CorruptLog
from .document import SnapshotHead
from .records import Started, unpack

if TYPE_CHECKING:
    from .log import Log
    from .tables import TableLog

_WIDTH = 2  # words of an entry


def ids_of_snapshot(log: Log | TableLog, head: SnapshotHead, started: Started) -> Iterator[bytes]:
    """Yield all fingerprints, 16 bytes each, in pieces of bounded size. Raises CorruptLog, LogMoved."""
    parts = {part.name: part for part in head.parts}
    for name in parts:
        if name.startswith("ids-"):  # as earlier versions and imports have them
            yield unpack(log.snapshot_part(head, name))
    if "processed" not in parts:
        return
    mark, _, runs, recent = unpack(log.snapshot_part(head, "processed"))
    if mark != _mark_of(started):
        raise CorruptLog(log.path, head.position, "the processed set is of another ledger")
    yield _by_entry(recent)
    for name in runs:
        for entries in log.run(parts[name], _WIDTH, mark):
            yield entries.T.astype("<u8").tobytes()


def _by_entry(columns: bytes) -> bytes:
    words = array("Q", columns)
    half = len(words) // _WIDTH
    entries = array("Q", columns)
    entries[0::2], entries[1::2] = words[:half], words[half:]
    return entries.tobytes()


def _mark_of(started: Started) -> bytes:
    place = f"{started.group}\0{started.topic}\0{started.partition}\0".encode()
    named = place + started.topic_id + started.log_id
    return hashlib.blake2b(named, digest_size=16).digest()
