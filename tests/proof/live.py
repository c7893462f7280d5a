"""A disk whose owners go on between any two calls of a reader."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from oncemq.storage.memory import MemoryDisk


class MovingDisk:
    """What a reader gets to see of a disk: after each call `go_on` changes the files."""

    def __init__(self, disk: MemoryDisk, go_on: Callable[[str], None]) -> None:
        """`go_on` is given the path that was just looked at."""
        self._disk = disk
        self._go_on = go_on
        self.calls = 0

    def moved(self, path: str) -> None:
        self.calls += 1
        self._go_on(path)

    def list(self, directory: str) -> list[str]:
        names = self._disk.list(directory)
        self.moved(directory)
        return names

    def open(self, path: str) -> MovingFile:
        return MovingFile(self, path, self._disk.open(path))

    def lock(self, path: str) -> Any:
        return self._disk.lock(path)


class MovingFile:
    """A file on such a disk."""

    def __init__(self, disk: MovingDisk, path: str, file: Any) -> None:
        self._disk = disk
        self._path = path
        self._file = file

    def read(self, offset: int, length: int) -> bytes:
        data = bytes(self._file.read(offset, length))
        self._disk.moved(self._path)
        return data

    def length(self) -> int:
        length: int = self._file.length()
        self._disk.moved(self._path)
        return length

    def sync(self) -> None:
        self._file.sync()
        self._disk.moved(self._path)

    def close(self) -> None:
        self._file.close()
