"""An exported ledger becomes the ledger of its group again, in a state directory that has none.

What the file holds is the snapshot that the new ledger begins with; no record is below it. All of
it is there after one rename, or nothing is. The ledger keeps its id, and with it the fingerprints
of explicit ids and the broker's memory: whatever a consumer has reported at a join or at its end,
no older file goes on from.

Nobody ever owned the new files, so their free lock proves nothing (`IMPORTED`): while the ledger's
last owner may live elsewhere, the first consumer here waits for its lease.
"""

from __future__ import annotations

import socket
import time

from ...core.consumer.ledger import Ledger
from ...errors import BadInput, CorruptLog, LogInUse
from ...limits import LIMITS
from ...shells.ledger.files import IMPORTED, ledger_directory
from ...storage.creation import begin_at_snapshot, hold_lock, identity
from ...storage.disk import Disk
from .export import About, read_export
from .reader import read_ledger


def import_ledger(disk: Disk, path: str, state: str) -> About:
    """Bring the ledger in the file `path` into the state directory; return what the file says.

    The same import twice is fine. Raises BadInput if another ledger is there, or this one at
    another commit; LogInUse while a consumer has it; CorruptLog, UnsupportedFormat, DiskFull (then
    nothing was left), OSError.
    """
    about, ledger, parts = read_export(disk, path)
    if type(about.partition) is not int or not 0 <= about.partition < LIMITS.partitions_max:
        raise CorruptLog(path, 0, f"impossible partition {about.partition!r}")
    directory = ledger_directory(state, about.group, about.topic, about.partition)
    found = identity(disk, directory)
    if found is None:
        begin_at_snapshot(
            disk,
            directory,
            log_id=bytes.fromhex(about.ledger_id),
            generation=max(1, about.epoch),
            parts=parts,
            owner={IMPORTED: int(time.time()), "host": socket.gethostname()},
        )
    else:
        _check_same(disk, directory, found.log_id.hex(), about, ledger)
    return about


def _check_same(disk: Disk, directory: str, ledger_id: str, about: About, ledger: Ledger) -> None:
    """What is there must be what the file holds, and nobody's."""
    lock = hold_lock(disk, directory)
    if lock is None:
        raise LogInUse(f"a running consumer owns the ledger in {directory}", hint="stop it first")
    try:
        if ledger_id != about.ledger_id:
            raise BadInput(
                f"{directory} holds another ledger",
                hint="a consumer that started before the import created it: if it is empty "
                "(oncemq state), remove that directory",
            )
        there = read_ledger(disk, directory)
    finally:
        lock.release()
    if (there.commit_no, there.next_offset) != (ledger.commit_no, ledger.next_offset):
        raise BadInput(
            f"the ledger in {directory} is at commit {there.commit_no}, offset "
            f"{there.next_offset}; the file is at commit {ledger.commit_no}, offset "
            f"{ledger.next_offset}",
            hint="an import never replaces a ledger",
        )
