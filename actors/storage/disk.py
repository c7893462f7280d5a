"""The narrow door to a file system: every byte that must survive goes through `Disk` and `File`.

Three implementations stand behind it and pass one conformance suite: the in-memory reference
disk (`storage/memory.py`), the operating system's (`runtime/os_disk.py`) and the simulated one
that loses what was not synced (`sim/disk/disk.py`).

The promise of each call is the promise of POSIX at a power cut and no more:

- bytes written are durable after `File.sync` has *returned*, not before;
- a name made or changed (create, make_directory, rename, link, unlink) is durable after
  `sync_directory` of its directory has returned, not before;
- a `sync` that fails is never tried again: what it covered is unknown for ever (fsyncgate, 2018).

Paths are absolute or relative text with `/` between names. Every failure is an `OSError` with
the errno that the operating system would give.
"""

from __future__ import annotations

from typing import Protocol

# (device, number of the file on it). Two files that exist at the same time never share it, and a
# file that a process has open keeps it: a copy always has another one.
Identity = tuple[int, int]


class File(Protocol):
    """An open file. Reads and writes name their place: there is no file pointer."""

    def write(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        """Write all of `data` at byte `offset`, looping over short writes.

        Raises OSError (ENOSPC, EIO, EROFS ...); some prefix may then have been written.
        """

    def read(self, offset: int, length: int) -> bytes:
        """Return up to `length` bytes from byte `offset`; shorter only at the end of the file."""

    def length(self) -> int:
        """Return the length of the file in bytes."""

    def identity(self) -> Identity:
        """Return which file this is, whatever its name."""

    def truncate(self, length: int) -> None:
        """Cut or extend (with zeros) the file to `length` bytes."""

    def reserve(self, offset: int, length: int) -> None:
        """Make sure that bytes [offset, offset+length) can be written without ENOSPC.

        The file may grow by zeros. Raises OSError ENOSPC where there is no room.
        """

    def sync(self) -> None:
        """Make all bytes written so far durable (fdatasync). Never call again after an error."""

    def close(self) -> None:
        """Close the file. Raises OSError as close(2) does. Closing twice does nothing."""


class Lock(Protocol):
    """An exclusive advisory lock, held until `release` or the death of the process."""

    def identity(self) -> Identity:
        """Return which file is locked, whatever its name."""

    def release(self) -> None:
        """Let the lock go."""


class Disk(Protocol):
    """A file system."""

    def list(self, directory: str) -> list[str]:
        """Return the names in `directory`, sorted. Raises FileNotFoundError."""

    def exists(self, path: str) -> bool:
        """Tell whether a file or directory stands at `path`."""

    def make_directory(self, path: str) -> None:
        """Make one directory. Raises FileExistsError (this is the O_EXCL of generations)."""

    def remove_directory(self, path: str) -> None:
        """Remove an empty directory."""

    def sync_directory(self, path: str) -> None:
        """Make the names in `path` durable (fsync of the directory)."""

    def create(self, path: str) -> File:
        """Create a new file for reading and writing (O_EXCL). Raises FileExistsError."""

    def open(self, path: str, *, write: bool = False) -> File:
        """Open an existing file. Raises FileNotFoundError."""

    def map(self, path: str) -> bytes | memoryview:
        """Return the bytes of a file that never changes again, without reading them all.

        Valid until the last reference is gone, also after the name is. Raises FileNotFoundError.
        """

    def rename(self, old: str, new: str) -> None:
        """Rename within one directory, replacing `new` if it exists."""

    def link(self, old: str, new: str) -> None:
        """Make a hard link. Raises OSError (EPERM, EOPNOTSUPP, EXDEV, EMLINK) where links fail."""

    def unlink(self, path: str) -> None:
        """Remove a file's name. Raises FileNotFoundError."""

    def lock(self, path: str) -> Lock | None:
        """Take the exclusive lock of an existing file; None while another holder has it."""
