"""Snapshots: a small head that names immutable part files, put in place by one rename.

The next head names an unchanged part again, so a snapshot costs only what changed.
"""

from __future__ import annotations

import contextlib
import posixpath
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

from ..errors import CorruptLog, DiskFull
from ..limits import SNAPSHOTS_KEPT
from . import document, layout
from .disk import Disk
from .document import Part, SnapshotInfo
from .framing import BadFrame
from .view import View, chain_before

SYNC_BYTES = 2 * 1024 * 1024  # of a mapped part


def read_head(disk: Disk, path: str, position: int, log_id: bytes | None) -> SnapshotInfo:
    """Return the head of the snapshot at `position`. Raises CorruptLog, FileNotFoundError.

    `log_id` None accepts any log: the manifest that would name it is damaged.
    """
    file = posixpath.join(path, layout.snapshot_name(position))
    info = SnapshotInfo.decode(layout.read_file(disk, file), file)
    if log_id not in {None, info.log_id} or info.position != position:
        raise CorruptLog(file, 0, "the snapshot belongs to another log or position")
    return info


def read_part(disk: Disk, path: str, part: Part, *, keep: bool = True) -> bytes:
    """Check a part and return it; keep=False checks in bounded memory and returns b"".

    Raises CorruptLog.
    """
    name = posixpath.join(path, part.file)
    pieces = []
    crc = at = 0
    try:
        file = disk.open(name)
    except FileNotFoundError:
        raise CorruptLog(name, 0, "a part of a snapshot is missing") from None
    try:
        if file.length() != part.length:
            at = min(file.length(), part.length)
            raise CorruptLog(name, at, f"a part of {part.length} bytes was promised")
        while at < part.length:
            chunk = file.read(at, min(layout.COPY_BYTES, part.length - at))
            if not chunk:
                raise CorruptLog(name, at, "the file ends inside a part")
            crc = crc32(chunk, crc)
            at += len(chunk)
            if keep:
                pieces.append(chunk)
    finally:
        file.close()
    if crc != part.crc:
        raise CorruptLog(name, 0, "wrong checksum of a part")
    return b"".join(pieces)


@dataclass(frozen=True, slots=True, eq=False)
class Mapped:
    """A part that was not read: its bytes never change, and carry checksums of their own."""

    buffer: Any  # bytes, a memoryview, or what reads them from somewhere else (shells/tables)
    path: str  # for errors


def load(disk: Disk, path: str, info: SnapshotInfo) -> dict[str, bytes | Mapped]:
    """Return all parts by name. Raises CorruptLog."""
    found: dict[str, bytes | Mapped] = {}
    for part in info.parts:
        if layout.is_mapped(part.file):
            found[part.name] = map_part(disk, path, part.file)
        else:
            found[part.name] = read_part(disk, path, part)
    return found


def map_part(disk: Disk, path: str, file: str) -> Mapped:
    """Raises CorruptLog."""
    name = posixpath.join(path, file)
    try:
        return Mapped(disk.map(name), name)
    except FileNotFoundError:
        raise CorruptLog(name, 0, "a part of a snapshot is missing") from None


def check_parts(disk: Disk, path: str, info: SnapshotInfo) -> None:
    """Check every part: of a mapped one that it is there in its length. Raises CorruptLog.

    A mapped part may be larger than all others together, and carries checksums of its own.
    """
    for part in info.parts:
        if layout.is_mapped(part.file):
            _check_length(disk, posixpath.join(path, part.file), part)
        else:
            read_part(disk, path, part, keep=False)


def _check_length(disk: Disk, name: str, part: Part) -> None:
    try:
        with contextlib.closing(disk.open(name)) as file:
            if file.length() != part.length:
                at = min(file.length(), part.length)
                raise CorruptLog(name, at, f"a part of {part.length} bytes was promised")
    except FileNotFoundError:
        raise CorruptLog(name, 0, "a part of a snapshot is missing") from None


def usable(disk: Disk, view: View) -> tuple[list[SnapshotInfo], list[CorruptLog]]:
    """Return (undamaged snapshots that the log can continue, newest first; damage passed over).

    Raises CorruptLog when all are damaged and the log no longer reaches back to 0: an empty state
    instead would forget ids.
    """
    found: list[SnapshotInfo] = []
    damage: list[CorruptLog] = []
    for position in reversed(view.snapshots):
        if position < view.start:  # records between it and the start are discarded
            continue
        try:
            info = read_head(disk, view.path, position, view.manifest.log_id)
            check_chain(disk, view, info)
            check_parts(disk, view.path, info)
        except CorruptLog as error:
            damage.append(error)
            continue
        found.append(info)
    if not found and view.start > 0:
        if damage:
            raise damage[0]
        raise CorruptLog(view.path, 0, f"no snapshot, and the log starts at {view.start}")
    return found, damage


def check_chain(disk: Disk, view: View, info: SnapshotInfo) -> None:
    try:
        chain = chain_before(disk, view, info.position)
    except BadFrame as bad:
        raise CorruptLog(view.path, 0, f"no group ends at {info.position}: {bad}") from None
    if chain != info.chain:
        raise CorruptLog(
            posixpath.join(view.path, layout.snapshot_name(info.position)),
            0,
            "the snapshot was made from other records",
        )


def write(
    disk: Disk,
    path: str,
    info: SnapshotInfo,
    parts: Mapping[str, bytes],
    kept: Sequence[Part],
    before_rename: Callable[[], None],
) -> SnapshotInfo:
    """Write the parts and the head; `info` has no parts yet. Raises DiskFull, having cleaned up."""
    name = layout.snapshot_name(info.position)
    temporary = posixpath.join(path, name + layout.TEMPORARY)
    serial = max(layout.parts_in(disk.list(path)).values(), default=-1) + 1
    made = [temporary]
    all_parts = list(kept)
    try:
        for number, (part, data) in enumerate(parts.items(), serial):
            file = layout.part_name(info.position, number)
            made.append(posixpath.join(path, file))
            layout.write_new(disk, made[-1], data)
            all_parts.append(Part(part, file, len(data), crc32(data)))
        info = SnapshotInfo(info.log_id, info.generation, info.position, info.chain, all_parts)
        layout.remove(disk, temporary)
        layout.write_new(disk, temporary, info.encode())
        disk.sync_directory(path)  # part names first: a durable head never names a missing part
        before_rename()
        disk.rename(temporary, posixpath.join(path, name))
    except OSError as error:
        if error.errno not in layout.FULL:
            raise
        for file in made:
            layout.remove(disk, file)
        raise DiskFull(f"no room for a snapshot at position {info.position}") from error
    disk.sync_directory(path)
    _read_back(disk, path, info)
    return info


def write_mapped(
    disk: Disk, path: str, file: str, pieces: Iterable[bytes], stop: Callable[[], bool]
) -> tuple[int, int] | None:
    """Write a part that is mapped later; return its length and CRC, None where `stop` said so.

    It is synced in pieces: the log's own sync would wait for all that the system has put off.
    Its name becomes durable with the head that names it. Raises DiskFull, having cleaned up.
    """
    name = posixpath.join(path, file)
    at = crc = synced = 0
    try:
        with contextlib.closing(disk.create(name)) as target:
            for piece in pieces:
                if stop():
                    break
                target.write(piece, at)
                crc = crc32(piece, crc)
                at += len(piece)
                if at - synced >= SYNC_BYTES:
                    target.sync()
                    synced = at
            else:
                target.sync()
                return at, crc
    except OSError as error:
        if error.errno not in layout.FULL:
            raise
        layout.remove(disk, name)
        raise DiskFull(f"no room for {name}") from error
    layout.remove(disk, name)
    return None


def _read_back(disk: Disk, path: str, info: SnapshotInfo) -> None:
    if read_head(disk, path, info.position, info.log_id) != info:
        raise CorruptLog(path, 0, f"the snapshot at {info.position} reads back changed")
    check_parts(disk, path, info)


def prune(
    disk: Disk, path: str, known: Sequence[SnapshotInfo], spent: Collection[str]
) -> list[SnapshotInfo]:
    """Delete all but the newest snapshots of `known`, and of `spent` the parts that none names."""
    kept = list(known[:SNAPSHOTS_KEPT])
    heads = {layout.snapshot_name(info.position) for info in kept}
    files = {part.file for info in kept for part in info.parts}
    names = disk.list(path)
    for position in layout.snapshots_in(names):  # heads first: a head never names what is gone
        if layout.snapshot_name(position) not in heads:
            layout.remove(disk, posixpath.join(path, layout.snapshot_name(position)))
    stale = sorted(set(spent) - files)
    if stale:
        disk.sync_directory(path)
        for name in stale:
            layout.remove(disk, posixpath.join(path, name))
    return kept


def carry(disk: Disk, view: View, target: str) -> tuple[list[int], list[CorruptLog]]:
    """Link the snapshots of the parent into a new generation; return (their positions, damage).

    A damaged snapshot is left behind; `usable` has judged whether it is needed. Raises
    FileNotFoundError when the owner deletes one meanwhile: list again.
    """
    carried: list[int] = []
    damage: list[CorruptLog] = []
    for position in view.snapshots:
        head = layout.snapshot_name(position)
        try:
            info = read_head(disk, view.path, position, view.manifest.log_id)
            for name in [*(part.file for part in info.parts), head]:
                _carry_file(disk, view.path, target, name, head)
        except CorruptLog as error:
            damage.append(error)
        else:
            carried.append(position)
    return carried, damage


def _carry_file(disk: Disk, path: str, target: str, name: str, head: str) -> None:
    """Link one file. A missing part beside its head is damage: an owner deletes the head first."""
    old = posixpath.join(path, name)
    try:
        layout.link_or_copy(disk, old, posixpath.join(target, name))
    except FileExistsError:
        return  # a part that two heads name
    except FileNotFoundError:
        if disk.exists(posixpath.join(path, head)):
            raise CorruptLog(old, 0, "a part of a snapshot is missing") from None
        raise


def write_start(disk: Disk, path: str, start: int) -> None:
    """Record durably where the log starts. Call it before deleting the segments below."""
    layout.replace(disk, path, layout.START, document.encode("start", {"start": start}))


def pick(
    previous: Sequence[SnapshotInfo], ahead: Mapping[str, Part], keep: Collection[str]
) -> list[Part]:
    """Return the parts named in `keep`, of the newest previous snapshot or written ahead.

    Raises ValueError.
    """
    table = {part.name: part for part in previous[0].parts} if previous else {}
    table.update(ahead)
    unknown = [name for name in keep if name not in table]
    if unknown:
        raise ValueError(f"the previous snapshot has no part named {sorted(unknown)}")
    return [table[name] for name in keep]


def check_reachable(disk: Disk, view: View) -> None:
    """Raise CorruptLog if the log was cut at its start and no snapshot head covers the rest."""
    if view.start == 0:
        return
    failure = CorruptLog(view.path, 0, f"no snapshot, and the log starts at {view.start}")
    for position in reversed(view.snapshots):
        if position >= view.start:
            try:
                read_head(disk, view.path, position, view.manifest.log_id)
            except CorruptLog as error:
                failure = error
            else:
                return
    raise failure
