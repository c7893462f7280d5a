"""All that lies on the disk, checked: the broker's data, each ledger, or a backup."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator

from ...errors import StorageError
from ...storage import layout, orders
from ...storage.check import Finding, Tell, check_log
from ...storage.disk import Disk
from .catalog import CATALOG, backups_in, check_backup

_NOTHING = "nothing, or delete it"


def ledgers_in(disk: Disk, state: str) -> Iterator[str]:
    """Yield the places GROUP/TOPIC/PARTITION below a state directory that hold a ledger."""
    for group in _directories(disk, state, ""):
        for topic in _directories(disk, state, group):
            for place in _directories(disk, state, topic):
                if layout.generations(disk, posixpath.join(state, place)):
                    yield place


def _directories(disk: Disk, state: str, place: str) -> list[str]:
    try:
        return [posixpath.join(place, name) for name in disk.list(posixpath.join(state, place))]
    except (NotADirectoryError, FileNotFoundError):
        return []


def check_files(
    disk: Disk, data: str | None, state: str | None, tell: Tell, wait: Callable[[], None]
) -> Iterator[Finding]:
    """Yield what is wrong with the broker's data and the ledgers. Nothing on disk is changed."""
    if data is not None:
        yield from check_log(disk, data, tell, wait)
    if state is not None:
        for place in ledgers_in(disk, state):
            directory = posixpath.join(state, place)
            yield from check_log(disk, directory, tell, wait)
            yield from _orders(disk, directory)


def _orders(disk: Disk, directory: str) -> Iterator[Finding]:
    for path in orders.unfinished(disk, directory):
        yield Finding(path, 0, "an order that was never finished", _NOTHING, damage=False)


def check_backups(
    disk: Disk, directory: str, tell: Tell, wait: Callable[[], None]
) -> Iterator[Finding]:
    """Yield what is wrong with one backup, or with each backup in a directory. Raises NoBackup."""
    names = backups_in(disk, directory)
    if not names or disk.exists(posixpath.join(directory, CATALOG)):
        yield from check_backup(disk, directory, tell, wait)
        return
    for name in names:
        backup = posixpath.join(directory, name)
        if not disk.exists(posixpath.join(backup, CATALOG)):
            reason = "never finished, or being made"
            advice = "nothing: the next backup deletes it"
            yield Finding(backup, 0, reason, advice, damage=False)
            continue
        try:
            yield from check_backup(disk, backup, tell, wait)
        except StorageError as error:
            yield Finding(backup, 0, error.reason, error.hint)
