"""Small files beside a log that somebody else than its owner writes: what an operator has said.

DIR/orders/LOCK  NAME.order

An order is whole or not there: it is written under another name, synced and renamed, by one writer
at a time. The first one of a name stands. The owner of the log reads it, and takes it away when what
it says is in the log.
"""

from __future__ import annotations

import contextlib
import posixpath
from collections.abc import Collection

from ..errors import LogInUse
from . import layout
from .disk import Disk

_ORDERS = "orders"
_SUFFIX = ".order"


def give(disk: Disk, directory: str, name: str, data: bytes) -> bytes:
    """Write an order durably, unless there is one of this name; return what stands.

    Raises LogInUse while somebody else writes an order, OSError.
    """
    home = posixpath.join(directory, _ORDERS)
    layout.make_directories(disk, home)
    path = posixpath.join(home, layout.LOCK)
    with contextlib.suppress(FileExistsError):
        disk.create(path).close()
    lock = disk.lock(path)
    if lock is None:
        raise LogInUse(f"another process is writing an order in {home}", hint="try again")
    try:
        standing = read(disk, directory, name)
        if standing is None:
            layout.replace(disk, home, name + _SUFFIX, data)
            return data
        disk.sync_directory(home)  # its writer may have died before that
        return standing
    finally:
        lock.release()


def read(disk: Disk, directory: str, name: str) -> bytes | None:
    """Return the order of this name; None if there is none."""
    try:
        return layout.read_file(disk, posixpath.join(directory, _ORDERS, name + _SUFFIX))
    except FileNotFoundError:
        return None


def keep(disk: Disk, directory: str, names: Collection[str]) -> None:
    """Take all orders away but those of `names`."""
    home = posixpath.join(directory, _ORDERS)
    gone = [
        name
        for name in layout.names_in(disk, home)
        if name.endswith(_SUFFIX) and name.removesuffix(_SUFFIX) not in names
    ]
    for name in gone:
        layout.remove(disk, posixpath.join(home, name))
    if gone:
        disk.sync_directory(home)
