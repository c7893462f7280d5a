"""The operating system's file system behind the `Disk` door: raw descriptors, nothing buffered.

Every descriptor is closed on exec. A short write is continued, never taken for a whole one. The
sync is `fdatasync` (on macOS `F_FULLFSYNC`: its fsync stops at the drive's cache). A descriptor
stays open from the write to its sync, because Linux reports an error of write-back only to
descriptors that were open when it happened (fsyncgate, 2018).
"""

from __future__ import annotations

import errno
import mmap
import os
import sys

from ..errors import NotSupported
from ..storage.disk import Identity
from .descriptors import with_descriptor

if sys.platform != "win32":
    import fcntl

_CHUNK_BYTES = 1024 * 1024  # memory for the zeros, where blocks cannot be allocated
_NO_FALLOCATE = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})


class OsFile:
    """An open file of the operating system."""

    def __init__(self, descriptor: int, path: str) -> None:
        self._descriptor = descriptor
        self._path = path

    def write(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        """Continue after short writes."""
        written = os.pwrite(self._descriptor, data, offset)
        size = data.nbytes if isinstance(data, memoryview) else len(data)
        if written == size:
            return
        view = memoryview(data).cast("B")
        while written < size:
            step = os.pwrite(self._descriptor, view[written:], offset + written)
            if step == 0:
                raise OSError(errno.EIO, "pwrite wrote nothing", self._path)
            written += step

    def read(self, offset: int, length: int) -> bytes:
        data = os.pread(self._descriptor, length, offset)
        if len(data) == length or not data:
            return data
        pieces, got = [data], len(data)
        while got < length:
            data = os.pread(self._descriptor, length - got, offset + got)
            if not data:
                break
            pieces.append(data)
            got += len(data)
        return b"".join(pieces)

    def length(self) -> int:
        return os.fstat(self._descriptor).st_size

    def identity(self) -> Identity:
        return _identity(self._descriptor)

    def truncate(self, length: int) -> None:
        os.ftruncate(self._descriptor, length)

    def reserve(self, offset: int, length: int) -> None:
        """Allocate the blocks of the range; where the system cannot, write zeros at the end."""
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(self._descriptor, offset, length)
                return
            except OSError as error:
                if error.errno not in _NO_FALLOCATE:
                    raise
        at = self.length()
        while at < offset + length:
            step = min(_CHUNK_BYTES, offset + length - at)
            self.write(bytes(step), at)
            at += step

    def sync(self) -> None:
        """After an error do not use this file again."""
        if self._descriptor < 0:  # fdatasync of -1 is a ValueError, not EBADF
            raise OSError(errno.EBADF, os.strerror(errno.EBADF), self._path)
        _sync(self._descriptor)

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class OsLock:
    """A flock on a file that is kept open; the kernel lets it go when the process dies."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def identity(self) -> Identity:
        return _identity(self._descriptor)

    def release(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class OsDisk:
    """The file system of this machine."""

    def __init__(self) -> None:
        if sys.platform == "win32":
            raise NotSupported(
                "OnceMQ does not run on Windows: it needs flock and the fsync of directories",
                hint="run it under Linux, macOS or WSL",
            )

    def list(self, directory: str) -> list[str]:
        return sorted(with_descriptor(os.listdir, directory))

    def exists(self, path: str) -> bool:
        return os.path.lexists(path)

    def make_directory(self, path: str) -> None:
        os.mkdir(path, 0o755)

    def remove_directory(self, path: str) -> None:
        os.rmdir(path)

    def sync_directory(self, path: str) -> None:
        descriptor = with_descriptor(os.open, path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _sync(descriptor, whole=True)
        finally:
            os.close(descriptor)

    def create(self, path: str) -> OsFile:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        return OsFile(with_descriptor(os.open, path, flags, 0o644), path)

    def open(self, path: str, *, write: bool = False) -> OsFile:
        flags = (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC
        return OsFile(with_descriptor(os.open, path, flags), path)

    def map(self, path: str) -> memoryview:
        descriptor = with_descriptor(os.open, path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if os.fstat(descriptor).st_size == 0:  # mmap(2) refuses it
                return memoryview(b"")
            return memoryview(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ))
        finally:
            os.close(descriptor)

    def rename(self, old: str, new: str) -> None:
        os.replace(old, new)

    def link(self, old: str, new: str) -> None:
        os.link(old, new)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def lock(self, path: str) -> OsLock | None:
        """Take the flock of an existing file; None if another open file holds it."""
        if sys.platform == "win32":  # the constructor has refused it; this is for the type checker
            raise NotSupported("no flock")
        descriptor = with_descriptor(os.open, path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError:
            os.close(descriptor)
            raise
        return OsLock(descriptor)


def _identity(descriptor: int) -> Identity:
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino


def _sync(descriptor: int, *, whole: bool = False) -> None:
    if sys.platform == "darwin":
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    elif whole or sys.platform == "win32":
        os.fsync(descriptor)
    else:
        # Skips time stamps, never the length: fdatasync syncs what reading the data back needs.
        os.fdatasync(descriptor)


_WARNINGS = {
    "tmpfs": "is in memory and is empty after the machine restarts",
    "ramfs": "is in memory and is empty after the machine restarts",
    "overlay": "is a container's layer and disappears with the container",
    "nfs": "is a network file system: locks and fsync depend on the server",
    "nfs4": "is a network file system: locks and fsync depend on the server",
    "cifs": "is a network file system: locks and fsync depend on the server",
    "smb3": "is a network file system: locks and fsync depend on the server",
    "9p": "is shared from another machine: locks and fsync depend on that machine",
    "virtiofs": "is shared from another machine: locks and fsync depend on that machine",
}


def filesystem_warning(path: str, mountinfo: str = "/proc/self/mountinfo") -> str | None:
    """Return one sentence if the file system under `path` may lose what was synced, else None."""
    try:
        with open(mountinfo, encoding="utf-8", errors="surrogateescape") as lines:
            mounts = [_mount(line) for line in lines]
    except OSError:
        return None  # not Linux: without knowledge no warning
    real = os.path.realpath(path)
    kind, best = "", -1
    for point, mounted in mounts:
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= best:  # of mounts at one point the last lies on top
            kind, best = mounted, len(point)
    reason = _WARNINGS.get(kind)
    if reason is None and kind.startswith("fuse"):
        reason = "is a FUSE file system: its fsync may not be durable"
    return None if reason is None else f"{real} is on {kind}, which {reason}"


def _mount(line: str) -> tuple[str, str]:
    before, _, after = line.partition(" - ")
    fields, kind = before.split(" "), after.split(" ")
    point = fields[4] if len(fields) > 4 else ""
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        point = point.replace(code, char)
    return point, kind[0]
