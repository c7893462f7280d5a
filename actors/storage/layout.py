"""Names on disk, and the few file habits that every writer here shares.

DIR/gen-<20 digits>/MANIFEST  LOCK  START  <20 digits>.log
                    snap-<20 digits>.snapshot  part-<20 digits>-<n>.part  map-<20 digits>-<n>.map
DIR/CREATE.lock
DIR/SECRET  RESTORING
"""

from __future__ import annotations

import contextlib
import errno
import posixpath
import re
from collections.abc import Iterator

from ..errors import CorruptLog, LogInUse
from .disk import Disk, File
from .document import DOCUMENT_BYTES_MAX

MANIFEST = "MANIFEST"
LOCK = "LOCK"
START = "START"
SECRET = "SECRET"  # noqa: S105 - the name of a file
CREATE_LOCK = "CREATE.lock"
RESTORING = "RESTORING"  # a restore that has not finished: no log may begin here
PROBE = "RESERVE.tmp"
TEMPORARY = ".tmp"

POSITION_MAX = 2**63 - 1  # positions travel as signed 64-bit numbers
COPY_BYTES = 1024 * 1024  # bounds the memory of a copy

_GENERATION = re.compile(r"gen-([0-9]{20})\Z", re.ASCII)
_SEGMENT = re.compile(r"([0-9]{20})\.log\Z", re.ASCII)
_SNAPSHOT = re.compile(r"snap-([0-9]{20})\.snapshot\Z", re.ASCII)
_PART = re.compile(r"(?:part|map)-[0-9]{20}-([0-9]+)\.(?:part|map)\Z", re.ASCII)

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})  # a quota is a full disk too
# What link(2) answers where a file system has no hard links, or forbids one more of them.
_NO_LINKS = frozenset(
    {errno.EPERM, errno.EOPNOTSUPP, errno.EXDEV, errno.EMLINK, errno.ENOSYS, errno.EACCES}
)


def generation_name(number: int) -> str:
    return f"gen-{number:020d}"


def segment_name(first: int) -> str:
    return f"{first:020d}.log"


def snapshot_name(position: int) -> str:
    return f"snap-{position:020d}.snapshot"


def part_name(position: int, serial: int) -> str:
    return f"part-{position:020d}-{serial}.part"


def mapped_name(position: int, serial: int) -> str:
    """Return the name of a part that readers map instead of reading it."""
    return f"map-{position:020d}-{serial}.map"


def is_mapped(name: str) -> bool:
    return name.endswith(".map")


def _numbers(pattern: re.Pattern[str], names: list[str]) -> list[int]:
    return sorted(int(match[1]) for name in names if (match := pattern.match(name)))


def segments_in(names: list[str]) -> list[int]:
    return _numbers(_SEGMENT, names)


def snapshots_in(names: list[str]) -> list[int]:
    return _numbers(_SNAPSHOT, names)


def parts_in(names: list[str]) -> dict[str, int]:
    return {name: int(match[1]) for name in names if (match := _PART.match(name))}


def names_in(disk: Disk, directory: str) -> list[str]:
    """Return [] if there is no such directory."""
    try:
        return disk.list(directory)
    except FileNotFoundError:
        return []


def generations_in(names: list[str]) -> list[int]:
    """Incomplete generations count too; ascending."""
    return _numbers(_GENERATION, names)


def generations(disk: Disk, directory: str) -> list[int]:
    return generations_in(names_in(disk, directory))


def read_file(disk: Disk, path: str) -> bytes:
    """Raises FileNotFoundError, CorruptLog."""
    with contextlib.closing(disk.open(path)) as file:
        length = file.length()
        if length > DOCUMENT_BYTES_MAX:
            raise CorruptLog(path, 0, f"impossible length {length}")
        return file.read(0, length)


def write_new(disk: Disk, path: str, data: bytes) -> None:
    """Create a file with `data` and make the bytes durable; its name is not durable yet."""
    with contextlib.closing(disk.create(path)) as file:
        file.write(data, 0)
        file.sync()


@contextlib.contextmanager
def exclusively(disk: Disk, path: str, doing: str) -> Iterator[None]:
    """Hold the lock file `path`, which is made where missing. Raises LogInUse, which says `doing`."""
    with contextlib.suppress(FileExistsError):
        disk.create(path).close()
    lock = disk.lock(path)
    if lock is None:
        raise LogInUse(f"another process is {doing}", hint="try again")
    try:
        yield
    finally:
        lock.release()


def replace(disk: Disk, directory: str, name: str, data: bytes) -> None:
    """Put a document in place, all or nothing: temporary, sync, rename, directory sync.

    Each step needs the one before: a rename that becomes durable before the bytes do would show an
    empty document after a power cut (Pillai et al., "All File Systems Are Not Created Equal", 2014).
    """
    temporary = posixpath.join(directory, name + TEMPORARY)
    remove(disk, temporary)
    write_new(disk, temporary, data)
    disk.rename(temporary, posixpath.join(directory, name))
    disk.sync_directory(directory)


def remove(disk: Disk, path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        disk.unlink(path)


def link(disk: Disk, old: str, new: str) -> bool:
    """Give the bytes of an immutable file a second name; False where links fail."""
    try:
        disk.link(old, new)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return False
    return True


def link_or_copy(disk: Disk, old: str, new: str) -> None:
    """Give the bytes of an immutable file a second name; copy and sync where links fail."""
    if not link(disk, old, new):
        with contextlib.closing(disk.open(old)) as source:
            copy_new(disk, source, new, source.length())


def copy_new(disk: Disk, source: File, new: str, length: int) -> None:
    """Write the first `length` bytes to a new file and sync it; its name is not durable yet."""
    with contextlib.closing(disk.create(new)) as target:
        copy(source, target, length)
        target.sync()


def copy(source: File, target: File, length: int) -> None:
    at = 0
    while at < length:
        chunk = source.read(at, min(COPY_BYTES, length - at))
        if not chunk:
            raise OSError(errno.EIO, "a file became shorter while it was copied")
        target.write(chunk, at)
        at += len(chunk)


def make_directories(disk: Disk, directory: str) -> None:
    """Make `directory` and its parents; when this returns their names are durable.

    The parent of the deepest existing directory is synced too: the process that made that directory
    may have died before its own sync.
    """
    missing = []
    path = posixpath.normpath(directory)
    while not disk.exists(path):
        missing.append(path)
        path = _parent(path)
    with contextlib.suppress(PermissionError):  # not ours to read: made and synced by its owner
        disk.sync_directory(_parent(path))
    for path in reversed(missing):
        with contextlib.suppress(FileExistsError):  # two processes start at once
            disk.make_directory(path)
        disk.sync_directory(_parent(path))


def _parent(path: str) -> str:
    return posixpath.dirname(path) or "."


def remove_generation(disk: Disk, directory: str, number: int) -> None:
    """Delete a superseded or unfinished generation, as far as its files stay deleted.

    A frozen process that wakes up may still add a file of its own; the next opening deletes it.
    """
    path = posixpath.join(directory, generation_name(number))
    try:
        for name in disk.list(path):
            remove(disk, posixpath.join(path, name))
        disk.remove_directory(path)
    except FileNotFoundError:
        return  # another process deleted it too
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
