"""What the tests of the log share: a disk with hooks, and logs that are made in one line."""

from __future__ import annotations

import errno
import os
import posixpath
from collections.abc import Callable

from oncemq.storage import layout
from oncemq.storage.disk import File
from oncemq.storage.log import FencedLog
from oncemq.storage.memory import MemoryDisk

LOG_ID = bytes(range(16))
DIRECTORY = "data/log"
OWNER: dict[str, str | int] = {"pid": 7, "host": "here", "boot_id": "b", "start_time": 1}

Hook = Callable[[str, str], None]  # (call, path), before the call; raises to make it fail


class HookedFile:
    """A file that tells the hook of its disk before it writes, reserves, truncates or syncs."""

    def __init__(self, disk: HookedDisk, file: File, path: str) -> None:
        self._disk, self._file, self._path = disk, file, path
        self.read, self.length, self.identity = file.read, file.length, file.identity

    def write(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        self._disk.hook("write", self._path)
        self._file.write(data, offset)

    def truncate(self, length: int) -> None:
        self._disk.hook("truncate", self._path)
        self._file.truncate(length)

    def reserve(self, offset: int, length: int) -> None:
        self._disk.hook("reserve", self._path)
        self._file.reserve(offset, length)

    def sync(self) -> None:
        self._disk.hook("sync", self._path)
        self._file.sync()

    def close(self) -> None:
        self._disk.hook("close", self._path)
        self._file.close()


class HookedDisk(MemoryDisk):
    """A memory disk on which a test can stand beside every call."""

    hook: Hook = staticmethod(lambda call, path: None)

    def create(self, path: str) -> HookedFile:
        self.hook("create", path)
        return HookedFile(self, super().create(path), path)

    def open(self, path: str, *, write: bool = False) -> HookedFile:
        self.hook("open", path)
        return HookedFile(self, super().open(path, write=write), path)

    def rename(self, old: str, new: str) -> None:
        self.hook("rename", new)
        super().rename(old, new)

    def list(self, directory: str) -> list[str]:
        self.hook("list", directory)
        return super().list(directory)

    def unlink(self, path: str) -> None:
        self.hook("unlink", path)
        super().unlink(path)

    def remove_directory(self, path: str) -> None:
        self.hook("remove_directory", path)
        super().remove_directory(path)

    def link(self, old: str, new: str) -> None:
        self.hook("link", new)
        super().link(old, new)

    def sync_directory(self, path: str) -> None:
        self.hook("sync_directory", path)
        super().sync_directory(path)

    def lock(self, path: str):  # type: ignore[no-untyped-def]
        self.hook("lock", path)
        return super().lock(path)

    def make_directory(self, path: str) -> None:
        self.hook("make_directory", path)
        super().make_directory(path)


def failing(call: str, part: str = "", number: int = errno.EIO, times: int = 1) -> Hook:
    """A hook that fails the next `times` calls of this name whose path contains `part`."""
    left = [times]

    def hook(name: str, path: str) -> None:
        if name == call and part in path and left[0]:
            left[0] -= 1
            raise OSError(number, os.strerror(number), path)

    return hook


def open_log(disk: MemoryDisk, **more: object) -> FencedLog:
    """Open, and create where there is none, as a broker does."""
    settings = {
        "generation": None,
        "owner": OWNER,
        "create_log_id": LOG_ID,
        "segment_bytes": 1 << 16,
    }
    settings.update(more)
    return FencedLog.open(disk, DIRECTORY, **settings)  # type: ignore[arg-type]


def put(log: FencedLog, *bodies: bytes) -> int:
    """Append and sync one group; return the durable end."""
    log.reserve(sum(map(len, bodies)))
    for body in bodies:
        log.append(1, b"m", body)
    return log.sync()


def bodies(log: FencedLog, position: int | None = None) -> list[bytes]:
    """All bodies from `position` on."""
    return [bytes(r.body) for r in log.replay(log.start if position is None else position)]


def crash(disk: MemoryDisk, log: FencedLog) -> None:
    """End the owner as kill -9 does: nothing is closed, its locks are free."""
    del log
    disk.drop_locks()


def generation_path(log: FencedLog) -> str:
    return posixpath.join(DIRECTORY, layout.generation_name(log.generation))


def segment_path(log: FencedLog, first: int = 0) -> str:
    return posixpath.join(generation_path(log), layout.segment_name(first))


def content(disk: MemoryDisk, path: str) -> bytes:
    return layout.read_file(disk, path)


def overwrite(disk: MemoryDisk, path: str, data: bytes) -> None:
    file = disk.open(path, write=True)
    file.truncate(0)
    file.write(data, 0)
    file.close()


def flip(disk: MemoryDisk, path: str, offset: int, mask: int = 1) -> None:
    data = bytearray(content(disk, path))
    data[offset] ^= mask
    overwrite(disk, path, bytes(data))
