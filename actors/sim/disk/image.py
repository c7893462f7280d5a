"""What a simulated disk holds: for every file and directory, what is durable and what is not yet.

Theory of operation. A `Node` is an inode. It has two views: the *cache*, which running processes
see, and the *durable* one, which a power cut leaves. Every change touches the cache at once and is
also kept as a list of `Pending` units, each the smallest thing that a device or a journal may
write or lose on its own:

- `SectorWritten`: the whole content of one sector after a write (a page is written back whole, so
  a later version of a sector never lacks an earlier one);
- `LengthSet`: the length of the file (size and data travel apart: one may survive alone);
- `NamesChanged`: one name operation of a directory (a rename is one unit: old or new, never both
  halves apart).

A sync moves the cache into the durable view and forgets the units. `after_power_cut` builds what
is left when only some units survived; whatever has no surviving name is gone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

ROOT = 0


@dataclass(frozen=True, slots=True)
class SectorWritten:
    """The content of one sector of a file, from now on."""

    order: int
    node: int
    index: int
    content: bytes


@dataclass(frozen=True, slots=True)
class LengthSet:
    """The length of a file, from now on."""

    order: int
    node: int
    length: int


@dataclass(frozen=True, slots=True)
class NamesChanged:
    """One atomic operation on the names of a directory: name to node number, None for removed."""

    order: int
    node: int
    changes: tuple[tuple[str, int | None], ...]


Pending: TypeAlias = SectorWritten | LengthSet | NamesChanged


class Content:
    """The bytes of a file, in sectors; a sector that is not there reads as zeros.

    Invariant: no sector lies at or beyond `length`, and the bytes of the last sector beyond
    `length` are zero.
    """

    __slots__ = ("length", "sector_bytes", "sectors")

    def __init__(self, sector_bytes: int) -> None:
        self.sector_bytes = sector_bytes
        self.length = 0
        self.sectors: dict[int, bytes] = {}

    def copy(self) -> Content:
        """Return an independent copy (the sectors themselves are shared: they never change)."""
        other = Content(self.sector_bytes)
        other.length = self.length
        other.sectors = dict(self.sectors)
        return other

    def read(self, offset: int, length: int) -> bytes:
        end = min(offset + length, self.length)
        if offset >= end:
            return b""
        size = self.sector_bytes
        first = offset // size
        last = (end - 1) // size
        if last - first > 2 * len(self.sectors):  # mostly a hole: reserved room
            whole = bytearray((last - first + 1) * size)
            for index, content in self.sectors.items():
                if first <= index <= last:
                    whole[(index - first) * size : (index - first + 1) * size] = content
        else:
            zeros = bytes(size)
            whole = bytearray().join(
                [self.sectors.get(index, zeros) for index in range(first, last + 1)]
            )
        return bytes(memoryview(whole)[offset - first * size : end - first * size])

    def write(self, data: bytes, offset: int) -> list[int]:
        """Put `data` at `offset`, growing as needed. Return the indexes of the sectors touched."""
        if not data:
            return []
        size = self.sector_bytes
        end = offset + len(data)
        self.length = max(self.length, end)
        first, last = offset // size, (end - 1) // size
        zeros = bytes(size)
        head = self.sectors.get(first, zeros)[: offset - first * size]
        tail = self.sectors.get(last, zeros)[end - last * size :]
        whole = head + data + tail
        for index in range(first, last + 1):
            place = (index - first) * size
            self.sectors[index] = whole[place : place + size]
        return list(range(first, last + 1))

    def set_length(self, length: int) -> None:
        size = self.sector_bytes
        if length < self.length:
            kept = (length + size - 1) // size
            for index in [index for index in self.sectors if index >= kept]:
                del self.sectors[index]
            inside = length % size
            if inside and kept - 1 in self.sectors:
                self.sectors[kept - 1] = self.sectors[kept - 1][:inside].ljust(size, b"\0")
        self.length = length


@dataclass(slots=True)
class Node:
    """A file or a directory."""

    number: int
    directory: bool
    cache: Content
    durable: Content
    names: dict[str, int] = field(default_factory=dict)
    durable_names: dict[str, int] = field(default_factory=dict)
    pending: list[Pending] = field(default_factory=list)
    links: int = 0  # names in the cache view
    opens: int = 0  # handles that processes hold
    sync_failed: bool = False

    @classmethod
    def new(cls, number: int, sector_bytes: int, *, directory: bool) -> Node:
        return cls(number, directory, Content(sector_bytes), Content(sector_bytes))

    def copy(self) -> Node:
        return Node(
            self.number,
            self.directory,
            self.cache.copy(),
            self.durable.copy(),
            dict(self.names),
            dict(self.durable_names),
            list(self.pending),
            self.links,
            self.opens,
            self.sync_failed,
        )

    def make_durable(self) -> None:
        """What a sync does that returns without an error."""
        if self.sync_failed:  # what the failed sync covered was dropped and stays lost
            self._apply(self.pending)
        elif self.pending:
            self.durable = self.cache.copy()
            self.durable_names = dict(self.names)
        self.pending = []

    def lose_pending(self) -> None:
        """What a sync does that fails: the pages count as clean, their content is not on disk."""
        self.sync_failed = True
        self.pending = []

    def _apply(self, units: Iterable[Pending]) -> None:
        content, names = self.durable, self.durable_names
        length = content.length
        for unit in units:
            if isinstance(unit, SectorWritten):
                content.sectors[unit.index] = unit.content
            elif isinstance(unit, LengthSet):
                if unit.length < length:
                    content.length = length
                    content.set_length(unit.length)
                length = unit.length
            else:
                apply_names(names, unit)
        # Sectors that survived without the length that shows them are not part of the file.
        reach = 1 + max(content.sectors, default=-1)
        content.length = max(length, reach * content.sector_bytes)
        content.set_length(length)

    def after_power_cut(self, survivors: Collection[int]) -> Node:
        left = Node(self.number, self.directory, self.cache, self.durable.copy())
        left.durable_names = dict(self.durable_names)
        left._apply(unit for unit in self.pending if unit.order in survivors)
        left.cache = left.durable.copy()
        left.names = dict(left.durable_names)
        return left


def apply_names(names: dict[str, int], unit: NamesChanged) -> None:
    for name, number in unit.changes:
        if number is None:
            names.pop(name, None)
        else:
            names[name] = number


def pending_units(nodes: dict[int, Node]) -> list[Pending]:
    """In the order in which it was done."""
    found = [unit for node in nodes.values() for unit in node.pending]
    found.sort(key=lambda unit: unit.order)
    return found


def after_power_cut(nodes: dict[int, Node], survivors: Collection[int]) -> dict[int, Node]:
    left: dict[int, Node] = {}
    waiting = [ROOT]
    while waiting:
        number = waiting.pop()
        if number not in left:
            left[number] = nodes[number].after_power_cut(survivors)
            waiting.extend(left[number].names.values())
    for node in left.values():
        for number in node.names.values():
            left[number].links += 1
    return left


def fingerprint(nodes: dict[int, Node]) -> bytes:
    """Return a digest of the cache view; equal for disks that no process can tell apart."""
    digest = hashlib.blake2b(digest_size=16)
    seen: dict[int, int] = {}

    def visit(number: int) -> None:
        if number in seen:  # a hard link to something visited before
            digest.update(b"#%d" % seen[number])
            return
        seen[number] = len(seen)
        node = nodes[number]
        if node.directory:
            for name in sorted(node.names):
                digest.update(b"/%s" % name.encode())
                visit(node.names[name])
            digest.update(b"^")
            return
        digest.update(b"=%d" % node.cache.length)
        for index in sorted(node.cache.sectors):
            content = node.cache.sectors[index]
            if content.strip(b"\0"):
                digest.update(b"@%d:" % index)
                digest.update(content)

    visit(ROOT)
    return digest.digest()
