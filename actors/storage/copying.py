"""A copy of a log: the same bytes up to a position, as a generation of their own.

Backups and restores copy a log as an opening continues it: immutable files are taken as they are, the last
segment is copied up to the end of a group, and a manifest of a higher generation attests it all. So every
reader of logs reads a copy, and an owner who opens one finds a log like any other.

What may be a link. Nobody writes to a segment once its successor holds a group, nor to a part that a
snapshot names. Until then the successor of a segment may be taken back (a full disk) and the segment grows
again; and reserved zeros behind its end may still be cut off. So a segment without a used successor is
copied, and the length of a file is what its successor says.
"""

from __future__ import annotations

import contextlib
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol

from ..errors import CorruptLog
from . import layout, snapshots
from .by_position import RecordReader, StoredRecord
from .disk import Disk
from .document import Manifest, Owner, Part, SnapshotInfo
from .framing import COMMIT_BYTES, SEGMENT_HEADER_BYTES, BadFrame, decode_commit
from .scan import Tail, commit_or_none, walk
from .view import View, chain_before, known_chain, locate, read_header


@dataclass(frozen=True, slots=True)
class Immutable:
    """A file that never changes again, as it lies in its source."""

    path: str
    length: int  # bytes that count; a segment may have reserved zeros behind them
    tag: str  # equal tags are equal bytes, in whichever copy of the log


class Target(Protocol):
    """Where a copy is put. Names are relative; directories are there."""

    def keep(self, source: Immutable, name: str) -> str:
        """Bring the bytes of `source` under `name`.

        Return the path where they lie then, to be checked; "" if they were checked before.
        """

    def write(self, name: str, data: bytes) -> None:
        """Write a new file."""


def sealed_data(disk: Disk, view: View, first: int, end: int, path: str) -> bytes:
    """Return a segment up to `end`, a group's end, every frame of it checked. Raises CorruptLog.

    `path` is where its bytes are read; errors name its place in the log.
    """
    with contextlib.closing(disk.open(path)) as file:
        data = file.read(0, SEGMENT_HEADER_BYTES + end - first)
        try:
            header = read_header(file, view, first)
        except BadFrame as bad:
            raise CorruptLog(view.segment(first), 0, str(bad)) from None
    tail = walk(Tail(first, data, first, header.chain), view.place)
    if tail.good < end:
        raise CorruptLog(view.segment(first), tail.at(tail.good), tail.reason)
    return data


def groups(disk: Disk, view: View, start: int) -> Iterator[tuple[list[StoredRecord], int]]:
    """Yield the records of each group from `start` on, a group's end, and where the group ends.

    Raises CorruptLog, FileNotFoundError.
    """
    group: list[StoredRecord] = []
    trusted_from = view.firsts[-1] if view.firsts else 0
    reader = RecordReader(disk, view.path, view.firsts, view.place.seed)
    with contextlib.closing(reader):
        chain = known_chain(disk, view, start)
        for record in reader.replay(start, view.end, trusted_from, chain):
            if group and group[-1].end != record.position:  # a commit frame lies between
                yield group, group[-1].end + COMMIT_BYTES
                group = []
            group.append(record)
    if group:
        yield group, group[-1].end + COMMIT_BYTES


def group_end(disk: Disk, view: View, position: int) -> int:
    """Return where the group ends whose records end at `position`, or `position` if one ends there.

    Raises BadFrame anywhere else.
    """
    if position in {view.end, view.start}:
        return position
    path, at = locate(view, position)
    if at == SEGMENT_HEADER_BYTES:
        return position
    seed = view.place.seed
    with contextlib.closing(disk.open(path)) as file:
        frame = file.read(max(at - COMMIT_BYTES, 0), COMMIT_BYTES)
        if commit_or_none(frame, 0, position - COMMIT_BYTES, seed) is not None:
            return position
        decode_commit(file.read(at, COMMIT_BYTES), 0, position, seed)
    return position + COMMIT_BYTES


def cut_at(disk: Disk, view: View, position: int) -> View:
    """Return `view` as if the log ended at `position`, a group's end at or above its start.

    Its last segment holds a group, so all before it are sealed for good. Raises CorruptLog.
    """
    firsts = [first for first in view.firsts if first < position]
    heads = [at for at in view.snapshots if at <= position]
    chain = chain_before(disk, view, position)
    cut = View(view.path, view.manifest, view.start, firsts, heads, position, chain)
    if firsts:
        data = sealed_data(disk, view, firsts[-1], position, view.segment(firsts[-1]))
        cut.tail = Tail(firsts[-1], data, position, chain)
        cut.sealed = {first: view.sealed[first] for first in firsts[:-1]}
    return cut


def copy_generation(
    disk: Disk, view: View, target: Target, number: int, lineage: bytes, owner: Owner
) -> Manifest:
    """Copy all that a view of `cut_at` holds; return the manifest, which is for the caller to write.

    `number` is above the generation of the view. Raises CorruptLog, and FileNotFoundError where the
    owner took a file away: look again.
    """
    old = view.manifest
    for first, end in pairwise(view.firsts):
        name = layout.segment_name(first)
        tag = f"{old.log_id.hex()} {name} {view.sealed[first]:08x}"
        length = SEGMENT_HEADER_BYTES + end - first
        there = target.keep(Immutable(view.segment(first), length, tag), name)
        if there:
            sealed_data(disk, view, first, end, there)
    if view.tail is not None:
        target.write(layout.segment_name(view.tail.first), view.tail.data)
    kept: set[str] = set()
    heads, damage = snapshots.usable(disk, view)
    if damage:  # or its owner has just deleted it: then the next look does not find it
        raise damage[0]
    for info in heads:
        for part in info.parts:
            if part.file not in kept:
                kept.add(part.file)
                _keep_part(disk, view, part, info, target)
        target.write(layout.snapshot_name(info.position), info.encode())
    ends = [*view.firsts[1:], view.end]
    return replace(
        old,
        lineage=lineage,
        generation=number,
        parent=old.generation,
        cut=view.end,
        chain=view.chain,
        start=view.start,
        segments=[(first, end - first) for first, end in zip(view.firsts, ends, strict=True)],
        owner=owner,
    )


def _keep_part(disk: Disk, view: View, part: Part, info: SnapshotInfo, target: Target) -> None:
    tag = f"{info.log_id.hex()} {part.file} {part.crc:08x}"
    source = Immutable(posixpath.join(view.path, part.file), part.length, tag)
    there = target.keep(source, part.file)
    if there:
        home, file = posixpath.split(there)
        try:
            snapshots.read_part(disk, home, replace(part, file=file), keep=False)
        except CorruptLog as error:
            raise CorruptLog(source.path, error.offset, error.damage) from None
