"""The machine behind a simulated disk: its inodes, its call counter, its planned faults.

Every call through the door comes here first (`count_call`): that is where calls are counted, where a
planned crash or error strikes, and where an observer may look at the disk between two calls.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from .cuts import CutPolicy, LoseEverything
from .image import (
    ROOT,
    LengthSet,
    NamesChanged,
    Node,
    Pending,
    SectorWritten,
    after_power_cut,
    fingerprint,
    pending_units,
)

SECTOR_BYTES = 512
FORGET_EVERY_NODES = 32  # new inodes: to look for those that nothing reaches takes long
LIES = ("sync", "sync_directory")
RETURNED = ("write", "sync", "close")  # faults that do not leave everything as it was


class SimulatedCrash(BaseException):
    """The process is gone. Not an Exception, so no `except Exception` of the code under test
    sees it."""


@dataclass(slots=True)
class Fault:
    """One planned failure: calls number `nth` to `nth + times - 1` of `kind` fail with `code`.

    With code 0 the call returns as if it had worked and does nothing: a lie.
    """

    kind: str
    code: int
    nth: int = 1
    times: int = 1
    path: str = ""  # only calls whose path contains this
    written: int = 0  # for a write: how many bytes go in before it fails
    met: int = 0  # how many such calls there were

    def strikes(self, kind: str, path: str) -> bool:
        """Count the call; tell whether it is to fail."""
        if kind != self.kind or self.path not in path:
            return False
        self.met += 1
        return self.nth <= self.met < self.nth + self.times


def failure(code: int, path: str) -> OSError:
    return OSError(code, os.strerror(code), path)


class Machine:
    """Inodes, counters and faults; `SimDisk` adds the calls."""

    def __init__(
        self, *, sector_bytes: int = SECTOR_BYTES, capacity: int | None = None, links: bool = True
    ) -> None:
        self.sector_bytes = sector_bytes
        self.capacity = capacity
        self.links = links  # False: a file system without hard links (EPERM)
        self.calls = 0  # calls through the door so far, by all processes
        self.fail_at: int | None = None  # the call that raises SimulatedCrash instead
        self.fail_halfway = False  # a write at `fail_at` first puts half of its bytes in
        self.observer: Callable[[str, str], None] | None = None  # before each call: kind, path
        self.changes = 0  # grows with every change of what is cached, pending or durable
        self.sync_retries = 0  # syncs by a process for which that file's sync failed: a broken rule
        self.down = False
        self.faults: list[Fault] = []
        self.nodes = {ROOT: Node.new(ROOT, sector_bytes, directory=True)}
        self._nodes_kept = 1  # how many there were when nameless ones were last forgotten
        self.locked: set[int] = set()
        self.last_order = 0
        self.next_node = ROOT + 1

    # --- faults --------------------------------------------------------------------------------

    def inject(
        self,
        kind: str,
        code: int,
        *,
        nth: int = 1,
        times: int = 1,
        path: str = "",
        written: int = 0,
    ) -> Fault:
        """Make the `nth` call of `kind` from now on fail with errno `code`, `times` times.

        Kinds are the names of the calls: list, exists, make_directory, remove_directory,
        sync_directory, create, open, rename, link, unlink, lock, write, read, length, truncate,
        reserve, sync, close.
        """
        fault = Fault(kind, code, nth, times, path, written)
        self.faults.append(fault)
        return fault

    def lie(self, kind: str, *, nth: int = 1, times: int = 1_000_000, path: str = "") -> Fault:
        """Make a `sync` or `sync_directory` return without doing anything.

        For proofs that a test would notice: code that forgets the call behaves like this.
        """
        if kind not in LIES:
            raise ValueError(f"{kind} cannot lie")
        return self.inject(kind, 0, nth=nth, times=times, path=path)

    def count_call(self, kind: str, path: str) -> Fault | None:
        """Count a call. Raises what is planned for it, or returns it where part of it is done."""
        if self.down:
            raise SimulatedCrash(f"{kind} {path}: the power is off")
        if self.observer is not None:
            self.observer(kind, path)
        self.calls += 1
        if self.calls == self.fail_at and not (kind == "write" and self.fail_halfway):
            self.crash(kind, path)
        for fault in self.faults:
            if fault.strikes(kind, path):
                if fault.code == 0 or kind in RETURNED:
                    return fault
                raise failure(fault.code, path)
        return None

    def crash(self, kind: str, path: str) -> None:
        self.down = True
        raise SimulatedCrash(f"{kind} {path}: call {self.calls}")

    # --- power cuts ----------------------------------------------------------------------------

    def pending(self) -> list[Pending]:
        """Oldest first."""
        return pending_units(self.nodes)

    def copy(self) -> Self:
        """Return the same disk (cache and pending units) without processes, locks and faults."""
        other = self._another()
        other.last_order = self.last_order
        other.nodes = {number: node.copy() for number, node in self.nodes.items()}
        for node in other.nodes.values():
            node.opens = 0
        return other

    def after_power_cut(self, policy: CutPolicy) -> Self:
        """Return the disk that a power cut at this instant leaves; this one goes on."""
        other = self._another()
        other.nodes = after_power_cut(self.nodes, policy.survivors(self.pending()))
        return other

    def power_cut(self, policy: CutPolicy | None = None) -> Self:
        """Cut the power: this disk and its processes are gone, the returned one is what is left."""
        left = self.after_power_cut(policy or LoseEverything())
        self.down = True
        return left

    def _another(self) -> Self:
        other = type(self)(sector_bytes=self.sector_bytes, capacity=self.capacity, links=self.links)
        other.next_node = self.next_node
        return other

    def fingerprint(self) -> bytes:
        """Return a digest of all that a process can see; equal for equal disks."""
        return fingerprint(self.nodes)

    # --- names ---------------------------------------------------------------------------------

    def find(self, path: str) -> Node:
        node = self.nodes[ROOT]
        for part in _parts(path):
            if not node.directory:
                raise failure(errno.ENOTDIR, path)
            if part not in node.names:
                raise failure(errno.ENOENT, path)
            node = self.nodes[node.names[part]]
        return node

    def directory(self, path: str) -> Node:
        node = self.find(path)
        if not node.directory:
            raise failure(errno.ENOTDIR, path)
        return node

    def place(self, path: str) -> tuple[Node, str]:
        parts = _parts(path)
        if not parts:
            raise failure(errno.EINVAL, path)
        return self.directory("/".join(parts[:-1])), parts[-1]

    def change_names(self, parent: Node, *changes: tuple[str, int | None]) -> None:
        for name, number in changes:
            old = parent.names.pop(name, None)
            if old is not None:
                self.nodes[old].links -= 1
            if number is not None:
                parent.names[name] = number
                self.nodes[number].links += 1
        parent.pending.append(NamesChanged(self._take_order(), parent.number, tuple(changes)))

    def new_node(self, *, directory: bool) -> Node:
        node = Node.new(self.next_node, self.sector_bytes, directory=directory)
        self.nodes[node.number] = node
        self.next_node += 1
        return node

    def forget_nameless(self) -> None:
        """Drop inodes that nothing can reach any more: not a name, not a handle, not a cut."""
        if len(self.nodes) < self._nodes_kept + FORGET_EVERY_NODES:
            return
        nameless = [n for n, node in self.nodes.items() if not node.links and not node.opens]
        nameless.remove(ROOT)
        reachable = {ROOT}
        for node in self.nodes.values():
            reachable.update(node.durable_names.values())
            for unit in node.pending:
                if isinstance(unit, NamesChanged):
                    reachable.update(number for _, number in unit.changes if number is not None)
        for number in nameless:
            if number not in reachable:
                del self.nodes[number]
        self._nodes_kept = len(self.nodes)

    # --- bytes ---------------------------------------------------------------------------------

    def used(self) -> int:
        return sum(node.cache.length for node in self.nodes.values() if node.links or node.opens)

    def room(self, node: Node, end: int) -> int:
        """Return how far the file can reach, at most `end`."""
        if self.capacity is None or end <= node.cache.length:
            return end
        return min(end, node.cache.length + max(0, self.capacity - self.used()))

    def put(self, node: Node, data: bytes, offset: int) -> None:
        """The sectors, and a new length, are pending."""
        before = node.cache.length
        touched = node.cache.write(data, offset)
        if node.cache.length != before:
            node.pending.append(LengthSet(self._take_order(), node.number, node.cache.length))
        for index in touched:
            content = node.cache.sectors[index]
            node.pending.append(SectorWritten(self._take_order(), node.number, index, content))

    def resize(self, node: Node, length: int) -> None:
        if length != node.cache.length:
            node.cache.set_length(length)
            node.pending.append(LengthSet(self._take_order(), node.number, length))

    def _take_order(self) -> int:
        self.changes += 1
        self.last_order += 1
        return self.last_order


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]
