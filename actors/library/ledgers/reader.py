"""Reading the ledger of one partition, or all ledgers of a group, from files.

A consumer may be at work beside the reader.
"""

from __future__ import annotations

import posixpath
import time

from ...codec import records as record_codec
from ...core.consumer.ledger import Ledger
from ...driver import unpacked
from ...errors import StorageError
from ...shells.ledger.file_names import file_name
from ...storage.disk import Disk
from ...storage.layout import generations
from ...storage.outside_reader import LogReader

LOOKS_MAX = 20  # how often a ledger that moves on while it is read is read again
_PAUSE_S = 0.05


class NoLedger(StorageError):
    """There is no ledger of this group in the state directory."""

    code = "no_ledger"
    default_hint = "check --state and --group; a group creates its ledgers at its first start"


def read_ledger(disk: Disk, directory: str) -> Ledger:
    """Return what a ledger's whole commits make; what is returned is on disk for good.

    Raises CorruptLog, UnsupportedFormat, StorageError (it would not stand still).
    """
    for look in range(LOOKS_MAX):
        try:
            return _read_once(disk, directory)
        except StorageError as error:
            if error.code != StorageError.code or look == LOOKS_MAX - 1:
                raise
            time.sleep(_PAUSE_S)
    raise AssertionError("the loop above returns or raises")


def _read_once(disk: Disk, directory: str) -> Ledger:
    reader = LogReader.open(disk, directory, wait=lambda: time.sleep(_PAUSE_S))
    try:
        ledger = Ledger()
        start = reader.start
        for info in reader.snapshots()[:1]:
            parts = reader.read_snapshot(info)
            ledger.restore(unpacked(parts))
            start = info.position
        for stored in reader.replay(start):
            record = record_codec.decode(stored.type, stored.meta, stored.body, stored.body_crc)
            ledger.apply(record, stored.position)
        return ledger
    finally:
        reader.close()


def read_group(disk: Disk, state: str, group: str) -> dict[tuple[str, int], Ledger]:
    """Return the ledgers of a group by (topic, partition), in that order.

    Raises NoLedger, and what `read_ledger` raises.
    """
    home = posixpath.join(state, file_name(group))
    found: dict[tuple[str, int], Ledger] = {}
    try:
        topics = disk.list(home)
    except (FileNotFoundError, NotADirectoryError):
        raise NoLedger(f"there is no ledger of group {group!r} in {state}") from None
    for topic in topics:
        for partition in disk.list(posixpath.join(home, topic)):
            directory = posixpath.join(home, topic, partition)
            if not partition.isdigit() or not generations(disk, directory):
                continue
            ledger = read_ledger(disk, directory)
            if ledger.started is not None:  # else: made by a consumer that was never granted
                found[ledger.started.topic, ledger.started.partition] = ledger
    if not found:
        raise NoLedger(f"the ledgers of group {group!r} in {state} are still empty")
    return dict(sorted(found.items()))
