"""Orders: small files beside a log in which an operator leaves decisions for the log's owner.

    DIR/orders/LOCK
    DIR/orders/NAME.order

Only its owner may write to a log, and an operator need not wait for it. So the decision is a file
of its own: whole or absent (temporary name, sync, rename), by one writer at a time, and the first
order of a name stands. The owner deletes the file once the decision is durable in the log.
"""

from __future__ import annotations

import posixpath
from collections.abc import Collection

from . import layout
from .disk import Disk

HOME = "orders"
_SUFFIX = ".order"


def give(disk: Disk, directory: str, name: str, data: bytes) -> bytes:
    """Write an order durably, unless one of this name stands already; return the one that stands.

    Raises LogInUse while another process writes an order, OSError.
    """
    home = posixpath.join(directory, HOME)
    layout.make_directories(disk, home)
    path = posixpath.join(home, layout.LOCK)
    with layout.exclusively(disk, path, f"writing an order in {home}"):
        standing = read(disk, directory, name)
        if standing is None:
            layout.replace(disk, home, name + _SUFFIX, data)
            return data
        disk.sync_directory(home)  # the process that wrote it may have died before this sync
        return standing


def read(disk: Disk, directory: str, name: str) -> bytes | None:
    try:
        return layout.read_file(disk, posixpath.join(directory, HOME, name + _SUFFIX))
    except FileNotFoundError:
        return None


def keep(disk: Disk, directory: str, names: Collection[str]) -> None:
    home = posixpath.join(directory, HOME)
    gone = [
        name
        for name in layout.names_in(disk, home)
        if name.endswith(_SUFFIX) and name.removesuffix(_SUFFIX) not in names
    ]
    for name in gone:
        layout.remove(disk, posixpath.join(home, name))
    if gone:
        disk.sync_directory(home)


def unfinished(disk: Disk, directory: str) -> list[str]:
    """Return the paths of temporary files that a killed command left, or a live one is writing."""
    home = posixpath.join(directory, HOME)
    names = layout.names_in(disk, home)
    return [posixpath.join(home, name) for name in names if name.endswith(layout.TEMPORARY)]
