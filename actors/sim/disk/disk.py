"""A disk that loses what was not synced: `SimDisk` stands behind the same door as a real one.

One `SimDisk` is one machine's disk and the `Disk` of its first process. `process()` gives further
processes with locks of their own; `kill()` ends one and keeps the page cache, while
`power_cut(policy)` returns the disk as it is after the power went, as a new `SimDisk`. From then
on (and after `fail_at` fired) every call through the old one raises `SimulatedCrash`, so a
`finally:` of a dead process cannot touch anything.

Faults: `fail_at` crashes at a chosen call, `inject` makes the n-th call of a kind fail with an
errno, `capacity` makes the disk full. A sync that fails drops what it covered, as Linux does: the
cache still shows the bytes, and no later sync writes them.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from ...storage.disk import Identity
from .image import Node
from .machine import SECTOR_BYTES, Fault, Machine, SimulatedCrash, failure

__all__ = [
    "SECTOR_BYTES",
    "Fault",
    "SimDisk",
    "SimFile",
    "SimLock",
    "SimProcess",
    "SimulatedCrash",
    "TornWrite",
]


class TornWrite(SimulatedCrash):
    """The process dies in the middle of a write: the first part of its bytes is in the cache."""

    def __init__(self, share: float) -> None:
        """`share` of the bytes, from 0 to 1, are written."""
        super().__init__(f"died after {share:.0%} of a write")
        self.share = share


class SimFile:
    """An open file of one process."""

    def __init__(self, process: SimProcess, node: Node, path: str, *, write: bool) -> None:
        self._process = process
        self._machine = process.machine
        self._node = node
        self._path = path
        self._write = write
        self._closed = False
        node.opens += 1
        process.files.add(self)

    def _enter(self, kind: str) -> Fault | None:
        fault = self._process.enter(kind, self._path)
        if self._closed:
            raise failure(errno.EBADF, self._path)
        return fault

    def _enter_to_change(self, kind: str) -> Fault | None:
        fault = self._enter(kind)
        if not self._write:
            raise failure(errno.EBADF, self._path)
        return fault

    def write(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        machine, node = self._machine, self._node
        whole = bytes(data)
        try:
            fault = self._enter_to_change("write")
        except TornWrite as torn:
            machine.put(node, whole[: int(len(whole) * torn.share)], offset)
            raise
        if machine.calls == machine.fail_at:  # halfway: the other case ended in `count_call`
            machine.put(node, whole[: len(whole) // 2], offset)
            machine.crash("write", self._path)
        if fault is not None:
            machine.put(node, whole[: fault.written], offset)
            raise failure(fault.code, self._path)
        end = offset + len(whole)
        room = machine.room(node, end)
        machine.put(node, whole[: max(0, room - offset)], offset)
        if room < end:
            raise failure(errno.ENOSPC, self._path)

    def read(self, offset: int, length: int) -> bytes:
        self._enter("read")
        return self._node.cache.read(offset, length)

    def length(self) -> int:
        self._enter("length")
        return self._node.cache.length

    def identity(self) -> Identity:
        return 0, self._node.number  # of this machine's only device; not a call that can fail

    def truncate(self, length: int) -> None:
        self._enter_to_change("truncate")
        self._machine.resize(self._node, length)

    def reserve(self, offset: int, length: int) -> None:
        self._enter_to_change("reserve")
        end = offset + length
        if self._machine.room(self._node, end) < end:
            raise failure(errno.ENOSPC, self._path)
        self._machine.resize(self._node, max(end, self._node.cache.length))

    def sync(self) -> None:
        fault = self._enter("sync")
        if self._node.number in self._process.failed_syncs:
            self._machine.sync_retries += 1
        self._machine.changes += 1
        if fault is not None and fault.code == 0:
            return
        if fault is not None:
            self._node.lose_pending()
            self._process.failed_syncs.add(self._node.number)
            raise failure(fault.code, self._path)
        self._node.make_durable()

    def close(self) -> None:
        if not self._closed:
            fault = self._process.enter("close", self._path)
            self.drop()
            if fault is not None:
                raise failure(fault.code, self._path)

    def drop(self) -> None:
        """Let the file go without a call: the process has closed it, or is dead."""
        self._closed = True
        self._node.opens -= 1
        self._process.files.discard(self)


class SimLock:
    """The exclusive lock of a file, held by one process."""

    def __init__(self, process: SimProcess, node: Node) -> None:
        self._process = process
        self._node = node
        self._held = True

    def identity(self) -> Identity:
        return 0, self._node.number

    def release(self) -> None:
        if self._held:
            self._held = False
            self._process.machine.locked.discard(self._node.number)


class SimProcess:
    """The `Disk` of one process on a machine."""

    machine: Machine
    name: str

    def __init__(self, machine: Machine, name: str) -> None:
        self.machine = machine
        self.name = name
        self.dead = False
        # Looks at each call of this process before it is done: kind, path. It may raise, and it may
        # let others work meanwhile, which is what a freeze in the middle of a turn looks like.
        self.hook: Callable[[str, str], None] | None = None
        self.files: set[SimFile] = set()  # open ones
        self.failed_syncs: set[int] = set()  # nodes whose sync failed for this process
        self._held: list[SimLock] = []

    def kill(self) -> None:
        """End the process: its locks are free, the page cache stays, its calls raise."""
        for lock in self._held:
            lock.release()
        self._held.clear()
        for file in list(self.files):
            file.drop()
        self.dead = True

    def enter(self, kind: str, path: str) -> Fault | None:
        if self.hook is not None and not self.dead:
            self.hook(kind, path)
        if self.dead:
            raise SimulatedCrash(f"{kind} {path}: process {self.name} was killed")
        return self.machine.count_call(kind, path)

    def exists(self, path: str) -> bool:
        self.enter("exists", path)
        try:
            self.machine.find(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def make_directory(self, path: str) -> None:
        self.enter("make_directory", path)
        self._new(path, directory=True)

    def remove_directory(self, path: str) -> None:
        self.enter("remove_directory", path)
        node = self.machine.directory(path)
        if node.names:
            raise failure(errno.ENOTEMPTY, path)
        parent, name = self.machine.place(path)
        self.machine.change_names(parent, (name, None))

    def sync_directory(self, path: str) -> None:
        fault = self.enter("sync_directory", path)
        node = self.machine.directory(path)
        if fault is not None:
            return
        self.machine.changes += 1
        node.make_durable()
        self.machine.forget_nameless()

    def create(self, path: str) -> SimFile:
        self.enter("create", path)
        return SimFile(self, self._new(path, directory=False), path, write=True)

    def _new(self, path: str, *, directory: bool) -> Node:
        parent, name = self.machine.place(path)
        if name in parent.names:
            raise failure(errno.EEXIST, path)
        node = self.machine.new_node(directory=directory)
        self.machine.change_names(parent, (name, node.number))
        return node

    def open(self, path: str, *, write: bool = False) -> SimFile:
        self.enter("open", path)
        node = self.machine.find(path)
        if node.directory:
            raise failure(errno.EISDIR, path)
        return SimFile(self, node, path, write=write)

    def map(self, path: str) -> bytes:
        """All of it at once: what is mapped never changes."""
        file = self.open(path)
        try:
            return file.read(0, file.length())
        finally:
            file.close()

    def rename(self, old: str, new: str) -> None:
        self.enter("rename", new)
        node = self.machine.find(old)
        parent, old_name = self.machine.place(old)
        new_parent, new_name = self.machine.place(new)
        if parent is not new_parent:
            raise failure(errno.EXDEV, new)
        target = parent.names.get(new_name)
        if target == node.number:
            return  # POSIX: two names of one file, nothing is done
        if target is not None and self.machine.nodes[target].directory != node.directory:
            raise failure(errno.ENOTDIR if node.directory else errno.EISDIR, new)
        if target is not None and self.machine.nodes[target].names:
            raise failure(errno.ENOTEMPTY, new)
        self.machine.change_names(parent, (old_name, None), (new_name, node.number))

    def link(self, old: str, new: str) -> None:
        self.enter("link", new)
        node = self.machine.find(old)
        parent, name = self.machine.place(new)
        if name in parent.names:
            raise failure(errno.EEXIST, new)
        if node.directory or not self.machine.links:
            raise failure(errno.EPERM, new)
        self.machine.change_names(parent, (name, node.number))

    def unlink(self, path: str) -> None:
        self.enter("unlink", path)
        node = self.machine.find(path)
        if node.directory:
            raise failure(errno.EISDIR, path)
        parent, name = self.machine.place(path)
        self.machine.change_names(parent, (name, None))

    def lock(self, path: str) -> SimLock | None:
        self.enter("lock", path)
        node = self.machine.find(path)
        if node.number in self.machine.locked:
            return None
        self.machine.locked.add(node.number)
        lock = SimLock(self, node)
        self._held.append(lock)
        return lock

    def list(self, directory: str) -> list[str]:
        self.enter("list", directory)
        return sorted(self.machine.directory(directory).names)


class SimDisk(Machine, SimProcess):
    """A machine's disk, and the `Disk` of its first process."""

    def __init__(
        self, *, sector_bytes: int = SECTOR_BYTES, capacity: int | None = None, links: bool = True
    ) -> None:
        Machine.__init__(self, sector_bytes=sector_bytes, capacity=capacity, links=links)
        SimProcess.__init__(self, self, "main")

    def process(self, name: str) -> SimProcess:
        return SimProcess(self, name)
