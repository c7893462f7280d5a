"""The door to files, for reading only. A simulated disk fits through it as it is."""

from __future__ import annotations

import fcntl
import os
from typing import Protocol


class Content(Protocol):
    """Bytes that are read in pieces."""

    def read(self, offset: int, length: int, /) -> bytes:
        """Return up to `length` bytes from `offset`; shorter only at the end."""

    def length(self) -> int:
        """Return the length in bytes."""


class OpenFile(Content, Protocol):
    """A file open for reading."""

    def sync(self) -> None:
        """Make what others wrote durable, so that a verdict on it stays true after a power cut."""

    def close(self) -> None:
        """Close it."""


class HeldLock(Protocol):
    """A lock that was free a moment ago."""

    def release(self) -> None:
        """Let it go at once."""


class Files(Protocol):
    """A file system, as far as reading needs one."""

    def list(self, directory: str) -> list[str]:
        """Return the names in a directory. Raises FileNotFoundError."""

    def open(self, path: str) -> OpenFile:
        """Open a file. Raises FileNotFoundError."""

    def lock(self, path: str) -> HeldLock | None:
        """Take the lock of a file; None if a live process holds it. Raises FileNotFoundError."""


class OsFile:
    """A file of the operating system."""

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, offset: int, length: int) -> bytes:
        data = os.pread(self._descriptor, length, offset)
        if len(data) == length or not data:
            return data
        pieces = [data]
        got = len(data)
        while got < length and (data := os.pread(self._descriptor, length - got, offset + got)):
            pieces.append(data)
            got += len(data)
        return b"".join(pieces)

    def length(self) -> int:
        return os.fstat(self._descriptor).st_size

    def sync(self) -> None:
        """Make the bytes of the file durable through a descriptor of our own."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)


class OsLock:
    """A lock of the operating system, held."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def release(self) -> None:
        os.close(self._descriptor)


class OsFiles:
    """The file system of the operating system."""

    def list(self, directory: str) -> list[str]:
        """Sorted. Raises OSError."""
        return sorted(os.listdir(directory))

    def open(self, path: str) -> OsFile:
        """Raises OSError."""
        return OsFile(path)

    def lock(self, path: str) -> OsLock | None:
        """None if a live process holds the lock. Raises OSError."""
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError:
            os.close(descriptor)
            raise
        return OsLock(descriptor)
