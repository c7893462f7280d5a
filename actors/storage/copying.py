"""A copy of a log: the same bytes up to a position, as a generation of their own.

Backups and restores copy a log as an opening continues it: immutable files are taken as they are, the last
segment is copied up to the end of a group, and a manifest of a higher generation attests it all. So every
reader of logs reads a copy, and an owner who opens one finds a log like any other.

What may be a link. No process writes to a segment once its successor holds a group, nor to a part that a
snapshot names. Until then the successor of a segment may be taken back (a full disk) and the segment grows
again; and reserved zeros behind its end may still be cut off. So a segment without a used successor is
copied, and the length of a file is what its successor says.
"""

from __future__ import annotations

import contextlib
import posixpath
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Protocol

from ..errors import CorruptLog
from . import layout, snapshots
from .by_position import RecordReader, StoredRecord
from .disk import Disk, File
from .document import Manifest, Owner, Part
from .framing import COMMIT_BYTES, SEGMENT_HEADER_BYTES, BadFrame, decode_commit
from .scan import Tail, commit_or_none, walk
from .view import View, chain_before, known_chain, locate, read_header

# Far more than an original will ever be opened, or granted, after its backup; 4,000 restores of restores fit
# the 32 bits of a producer's epoch.
JUMP = 1 << 20


@dataclass(frozen=True, slots=True)
class Immutable:
    """A file that never changes again, open: its owner may delete its name meanwhile."""

    path: str  # in its source
    file: File
    length: int  # bytes that count; a segment may have reserved zeros behind them
    tag: str  # equal tags are equal bytes, in whichever copy of the log


class Target(Protocol):
    """Where a copy is put. Names are relative; directories are there."""

    def keep(self, source: Immutable, name: str) -> str:
        """Bring the bytes of `source` under `name`.

        Return the path where they lie then, to be checked; "" if they were checked before.
        """

    def checked(self, source: Immutable, name: str) -> None:
        """What was kept under `name` is what its log promises."""

    def write(self, name: str, data: bytes) -> None:
        """Write a new file."""


@dataclass(slots=True)
class Copies:
    """A target that shares no block with its source: each file is copied into a directory."""

    disk: Disk
    path: str

    def keep(self, source: Immutable, name: str) -> str:
        path = posixpath.join(self.path, name)
        layout.copy_new(self.disk, source.file, path, source.length)
        return path

    def checked(self, source: Immutable, name: str) -> None:
        """The checks of the log are all there is."""

    def write(self, name: str, data: bytes) -> None:
        layout.write_new(self.disk, posixpath.join(self.path, name), data)


def restored_number(manifest: Manifest, least: int) -> int:
    """Return the generation of a restored log, far above what its original will ever reach."""
    return max(manifest.generation + JUMP, least)


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

    `number` is above the generation of the view. All files are taken before the first is checked: checks
    may take long, and the owner deletes snapshots meanwhile. Raises CorruptLog, and FileNotFoundError where it
    was quicker: look again.
    """
    old = view.manifest
    heads, damage = snapshots.usable(disk, view)
    if damage:  # or its owner has just deleted it: then the next look does not find it
        raise damage[0]
    parts = {part.file: part for info in heads for part in info.parts}
    log = old.log_id.hex()
    checks: list[Callable[[], object]] = []

    def keep(source: Immutable, check: Callable[[str], object]) -> None:
        name = posixpath.basename(source.path)
        there = target.keep(source, name)
        if there:
            checks.append(partial(check, there))
            checks.append(partial(target.checked, source, name))

    with contextlib.ExitStack() as opened:  # all parts at once: their names may go any time
        files = {name: opened.enter_context(_opened(disk, view, name)) for name in parts}
        for name, part in parts.items():
            tag = f"{log} {name} {part.crc:08x}"
            source = Immutable(posixpath.join(view.path, name), files[name], part.length, tag)
            keep(source, partial(_check_part, disk, view.path, part))
        for info in heads:
            target.write(layout.snapshot_name(info.position), info.encode())
    for first, end in pairwise(view.firsts):
        with _opened(disk, view, layout.segment_name(first)) as file:
            tag = f"{log} {first} {view.sealed[first]:08x}"
            source = Immutable(view.segment(first), file, SEGMENT_HEADER_BYTES + end - first, tag)
            keep(source, partial(sealed_data, disk, view, first, end))
    if view.tail is not None:
        target.write(layout.segment_name(view.tail.first), view.tail.data)
    for check in checks:
        check()
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


def _opened(disk: Disk, view: View, name: str) -> contextlib.closing[File]:
    return contextlib.closing(disk.open(posixpath.join(view.path, name)))


def _check_part(disk: Disk, home: str, part: Part, there: str) -> None:
    """Raises CorruptLog, which names the part in its log."""
    copied, file = posixpath.split(there)
    try:
        snapshots.read_part(disk, copied, replace(part, file=file), keep=False)
    except CorruptLog as error:
        raise CorruptLog(posixpath.join(home, part.file), error.offset, error.damage) from None
