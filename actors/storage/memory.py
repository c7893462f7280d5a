"""The in-memory reference disk: what `Disk` means when nothing ever fails and all is durable.

Tests and the in-process queue run on it. It answers with the errors of a real file system, and
with a `capacity` it runs full like one.
"""

from __future__ import annotations

import errno
import itertools
import os
import posixpath

from .disk import Identity

_numbers = itertools.count(1)  # of files, in all disks of this process


class _Node:
    """The content of a file. Hard links are several names of one node."""

    __slots__ = ("data", "identity", "links", "locked_by")

    def __init__(self) -> None:
        self.identity: Identity = (0, next(_numbers))
        self.data = bytearray()
        self.links = 1
        self.locked_by: MemoryLock | None = None


def _error(number: int, path: str) -> OSError:
    return OSError(number, os.strerror(number), path)


class MemoryFile:
    """An open file of a `MemoryDisk`; it stays readable after its name is gone."""

    def __init__(self, disk: MemoryDisk, node: _Node, path: str, *, writable: bool) -> None:
        self._disk = disk
        self._node = node
        self._path = path
        self._writable = writable
        self._closed = False

    def write(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        self._check(writing=True)
        view = memoryview(data)
        if not view.nbytes:  # as pwrite: nothing written, nothing grown
            return
        self._grow(offset + view.nbytes)
        self._node.data[offset : offset + view.nbytes] = view

    def read(self, offset: int, length: int) -> bytes:
        self._check()
        return bytes(memoryview(self._node.data)[offset : offset + length])

    def length(self) -> int:
        self._check()
        return len(self._node.data)

    def identity(self) -> Identity:
        return self._node.identity

    def truncate(self, length: int) -> None:
        self._check(writing=True)
        del self._node.data[length:]
        self._grow(length)

    def reserve(self, offset: int, length: int) -> None:
        """Raises ENOSPC and changes nothing where the room is missing."""
        self._check(writing=True)
        self._grow(offset + length)

    def sync(self) -> None:
        self._check()

    def close(self) -> None:
        self._closed = True

    def _check(self, *, writing: bool = False) -> None:
        if self._closed or (writing and not self._writable):
            raise _error(errno.EBADF, self._path)

    def _grow(self, length: int) -> None:
        missing = length - len(self._node.data)
        if missing > 0:
            self._disk.take(missing, self._path)
            self._node.data.extend(bytes(missing))


class MemoryLock:
    def __init__(self, node: _Node) -> None:
        self._node = node

    def identity(self) -> Identity:
        return self._node.identity

    def release(self) -> None:
        if self._node.locked_by is self:
            self._node.locked_by = None


class MemoryDisk:
    """A file system in memory. `capacity` bounds the bytes of all files together."""

    def __init__(self, capacity: int | None = None) -> None:
        self.capacity = capacity
        self._files: dict[str, _Node] = {}
        self._directories: set[str] = {".", "/"}

    def list(self, directory: str) -> list[str]:
        directory = self._directory(directory)
        return sorted(
            posixpath.basename(path)
            for table in (self._files, self._directories)
            for path in table
            if path != directory and _parent(path) == directory
        )

    def exists(self, path: str) -> bool:
        path = posixpath.normpath(path)
        return path in self._files or path in self._directories

    def make_directory(self, path: str) -> None:
        path = self._vacant(path)
        self._directories.add(path)

    def remove_directory(self, path: str) -> None:
        if self.list(path):
            raise _error(errno.ENOTEMPTY, path)
        self._directories.remove(posixpath.normpath(path))

    def sync_directory(self, path: str) -> None:
        self._directory(path)

    def create(self, path: str) -> MemoryFile:
        path = self._vacant(path)
        node = self._files[path] = _Node()
        return MemoryFile(self, node, path, writable=True)

    def open(self, path: str, *, write: bool = False) -> MemoryFile:
        return MemoryFile(self, self._node(path), path, writable=write)

    def map(self, path: str) -> bytes:
        return bytes(self._node(path).data)

    def rename(self, old: str, new: str) -> None:
        node = self._node(old)
        new = posixpath.normpath(new)
        self._directory(_parent(new))
        if new in self._directories:
            raise _error(errno.EISDIR, new)
        if self._files.get(new) is node:  # two links of one file: rename(2) then does nothing
            return
        if new in self._files:
            self.unlink(new)
        self._files[new] = self._files.pop(posixpath.normpath(old))

    def link(self, old: str, new: str) -> None:
        node = self._node(old)
        self._files[self._vacant(new)] = node
        node.links += 1

    def unlink(self, path: str) -> None:
        node = self._node(path)
        node.links -= 1
        del self._files[posixpath.normpath(path)]

    def lock(self, path: str) -> MemoryLock | None:
        node = self._node(path)
        if node.locked_by is not None:
            return None
        node.locked_by = MemoryLock(node)
        return node.locked_by

    def drop_locks(self) -> None:
        """Release every lock, as the kernel does when all its holders die. For tests."""
        for node in self._files.values():
            node.locked_by = None

    def used(self) -> int:
        return sum(len(node.data) for node in {id(n): n for n in self._files.values()}.values())

    def take(self, missing: int, path: str) -> None:
        """Raises ENOSPC."""
        if self.capacity is not None and self.used() + missing > self.capacity:
            raise _error(errno.ENOSPC, path)

    def _directory(self, path: str) -> str:
        path = posixpath.normpath(path)
        if path in self._files:
            raise _error(errno.ENOTDIR, path)
        if path not in self._directories:
            raise _error(errno.ENOENT, path)
        return path

    def _vacant(self, path: str) -> str:
        path = posixpath.normpath(path)
        self._directory(_parent(path))
        if path in self._files or path in self._directories:
            raise _error(errno.EEXIST, path)
        return path

    def _node(self, path: str) -> _Node:
        node = self._files.get(posixpath.normpath(path))
        if node is None:
            kind = errno.EISDIR if posixpath.normpath(path) in self._directories else errno.ENOENT
            raise _error(kind, path)
        return node


def _parent(path: str) -> str:
    return posixpath.dirname(path) or "."
