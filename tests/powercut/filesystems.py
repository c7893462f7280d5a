"""Real file systems on loop devices that lose power when told to.

Each lives in a sparse file that has no name any more, behind a loop device that the kernel frees
with its last user. Run this inside a mount namespace of its own (`unshare --mount`): when the
process ends, however it ends, mounts, device and file are gone with it.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_LOOP_CTL_GET_FREE = 0x4C82
_LOOP_CONFIGURE = 0x4C0A
_LO_FLAGS_AUTOCLEAR = 4
# fd, block size; device, inode, rdevice, offset, limit; number, two of keys, flags; names, key,
# init; reserved
_LOOP_CONFIG = struct.Struct("=II 5Q 4I 64s 64s 32s 2Q 8Q")
_SHUTDOWN = 0x8004587D  # _IOR('X', 125, u32): EXT4_IOC_SHUTDOWN and XFS_IOC_GOINGDOWN
_NO_LOG_FLUSH = 2
_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Kind:
    """A file system and how it is mounted."""

    name: str
    type: str
    make: tuple[str, ...]
    options: str = ""
    size_mb: int = 96


EXT4_MAKE = ("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0")
KINDS = {
    kind.name: kind
    for kind in (
        Kind("ext4", "ext4", EXT4_MAKE),
        Kind("ext4-noauto_da_alloc", "ext4", EXT4_MAKE, "noauto_da_alloc"),
        Kind("xfs", "xfs", ("mkfs.xfs", "-q", "-f"), size_mb=320),
        Kind("ext4-small", "ext4", (*EXT4_MAKE, "-m", "0"), size_mb=16),
    )
}


class Mounted:
    """A file system that is mounted at `path`."""

    def __init__(self, kind: Kind, image: int, path: Path) -> None:
        """`image` is a descriptor of the file that is the disk; it stays the caller's."""
        self.kind = kind
        self.path = path
        self._image = image
        self._device = -1
        self.power_cuts = 0

    def mount(self) -> None:
        """Mount it, with the recovery that a start after a power cut does.

        The device is made anew: what the kernel had in memory of the last one is gone with it.
        """
        self._device = _attach(self._image)
        device, options = _path_of(self._device).encode(), self.kind.options.encode()
        _call("mount", device, bytes(self.path), self.kind.type.encode(), 0, options)

    def unmount(self) -> None:
        """Unmount it; a process that was just killed may hold it for a moment."""
        self._unmount()
        os.close(self._device)

    def _unmount(self) -> None:
        deadline = time.monotonic() + 60
        while True:
            try:
                _call("umount2", bytes(self.path), 0)
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.002)
            else:
                return

    def lose_power(self) -> None:
        """From now on nothing reaches the disk: every call that would fails."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(descriptor, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(descriptor)
        self.power_cuts += 1

    def cut_power(self) -> None:
        """Lose all that was not synced, and start again. Nobody may have a file open."""
        self.lose_power()
        self.unmount()
        self.mount()

    def fresh_directory(self, name: str) -> Path:
        """Make a directory that is on disk for certain."""
        directory = self.path / name
        directory.mkdir()
        self.flush()
        return directory

    def flush(self) -> None:
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            _call("syncfs", descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def file_system(name: str) -> Iterator[Mounted]:
    """Make and mount the file system `name` of KINDS; all of it is gone at the end."""
    kind = KINDS[name]
    with tempfile.TemporaryDirectory(prefix="oncemq-power-") as temporary:
        image = _make_image(Path(temporary) / "image", kind.size_mb * 1024 * 1024)
        try:
            device = _attach(image)
            try:
                subprocess.run(
                    [*kind.make, _path_of(device)], check=True, stdout=subprocess.DEVNULL
                )
            finally:
                os.close(device)
            point = Path(temporary) / "mounted"
            point.mkdir()
            mounted = Mounted(kind, image, point)
            mounted.mount()
            try:
                yield mounted
            finally:
                mounted.unmount()
        finally:
            os.close(image)


def _make_image(path: Path, size: int) -> int:
    """Return the descriptor of a new file of zeros without a name."""
    image = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    path.unlink()
    os.ftruncate(image, size)
    return image


def _path_of(device: int) -> str:
    return os.readlink(f"/proc/self/fd/{device}")


def _attach(image: int) -> int:
    """Return the descriptor of a loop device over a file; the device ends with its last user."""
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        while True:
            number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
            device = os.open(f"/dev/loop{number}", os.O_RDWR | os.O_CLOEXEC)
            config = _LOOP_CONFIG.pack(
                image, 0, 0, 0, 0, 0, 0, 0, 0, 0, _LO_FLAGS_AUTOCLEAR,
                b"oncemq", b"", b"", 0, 0, *[0] * 8,
            )  # fmt: skip
            try:
                fcntl.ioctl(device, _LOOP_CONFIGURE, config)
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:  # EBUSY: another process took it first
                    raise
            else:
                return device
    finally:
        os.close(control)


def _call(name: str, *arguments: bytes | int) -> None:
    if getattr(_LIBC, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}{arguments}: {os.strerror(number)}")
