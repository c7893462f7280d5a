"""Creating a log, and looking at one without opening it for writing."""

from __future__ import annotations

import contextlib
import posixpath
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..errors import CorruptLog, StorageError
from . import document, layout, snapshots
from .disk import Disk, Lock
from .document import Manifest, Owner, SnapshotInfo
from .framing import LOG_ID_BYTES
from .recovery import make_lock
from .view import LOOKS_MAX, View, highest_complete, read_latest

# Start of a log that begins with a snapshot and has no records below it. It is not 0, because a
# log that starts at 0 may be replayed without any snapshot.
SNAPSHOT_START = 1
SECRET_BYTES = 32


@dataclass(frozen=True, slots=True)
class LogIdentity:
    """Which log lies in a directory, and how far it reaches."""

    log_id: bytes
    lineage: bytes  # log_id of the log that this one descends from; equal to log_id today
    highest_generation: int  # highest number in use, complete or not; a new one must be above it
    end: int  # position after the last whole group


def create(disk: Disk, directory: str, *, log_id: bytes, owner: Owner) -> LogIdentity:
    """Create the directory and an empty first generation, unless the log exists already.

    Returns the identity of the log that is there afterwards. Raises LogInUse while another process
    creates the same log, CorruptLog, OSError.
    """
    if len(log_id) != LOG_ID_BYTES:
        raise ValueError(f"a log_id has {LOG_ID_BYTES} bytes, not {len(log_id)}")
    present = identity(disk, directory)
    return present or _made(disk, directory, _Beginning(log_id, owner))


def begin_at_snapshot(
    disk: Disk,
    directory: str,
    *,
    log_id: bytes,
    generation: int,
    parts: Mapping[str, bytes],
    owner: Owner,
) -> LogIdentity:
    """Create a log without records that begins with a snapshot, in `generation` or above.

    All or nothing: after a crash either the whole log is durable or there is none. Raises
    StorageError if the log exists already, DiskFull (having cleaned up), and what `create` raises.
    """
    beginning = _Beginning(log_id, owner, generation, parts)
    made = _made(disk, directory, beginning)
    if not beginning.used:
        raise StorageError(f"there is a log in {directory}")
    return made


@dataclass(slots=True)
class _Beginning:
    """What the first generation of a log holds."""

    log_id: bytes
    owner: Owner
    generation: int = 1  # or above, where that number was in use
    parts: Mapping[str, bytes] | None = None  # of the snapshot; None: begin without one
    used: bool = False  # whether this call created the log; False: another process was first


def _made(disk: Disk, directory: str, beginning: _Beginning) -> LogIdentity:
    # A lock of its own serialises creators: a generation has no lock file before it exists.
    layout.make_directories(disk, directory)
    path = posixpath.join(directory, layout.CREATE_LOCK)
    with layout.exclusively(disk, path, f"creating the log in {directory}"):
        if identity(disk, directory) is None:
            _first_generation(disk, directory, beginning)
            beginning.used = True
    made = identity(disk, directory)
    assert made is not None, "a complete generation is never taken away"
    return made


def _first_generation(disk: Disk, directory: str, beginning: _Beginning) -> None:
    number = max([beginning.generation, *(n + 1 for n in layout.generations(disk, directory))])
    path = posixpath.join(directory, layout.generation_name(number))
    disk.make_directory(path)
    disk.sync_directory(directory)
    lock = make_lock(disk, path, beginning.owner)
    start = 0 if beginning.parts is None else SNAPSHOT_START
    try:
        # The manifest makes the generation complete, so it is written last.
        if beginning.parts is not None:
            info = SnapshotInfo(beginning.log_id, number, start, 0, [])
            snapshots.write(disk, path, info, beginning.parts, [], lambda: None)
        manifest = Manifest(
            log_id=beginning.log_id,
            lineage=beginning.log_id,
            generation=number,
            parent=0,
            cut=start,
            chain=0,
            start=start,
            segments=[],
            owner=beginning.owner,
        )
        disk.sync_directory(path)
        layout.replace(disk, path, layout.MANIFEST, manifest.encode())
    finally:
        lock.release()


def identity(disk: Disk, directory: str) -> LogIdentity | None:
    """Return which log is in `directory`; None if no generation is complete. Writes nothing.

    Raises CorruptLog, UnsupportedFormat.
    """
    view = read_latest(disk, directory)
    if view is None:
        return None
    sync_end(disk, view)
    numbers = layout.generations(disk, directory)
    manifest = view.manifest
    return LogIdentity(
        manifest.log_id, manifest.lineage, max([manifest.generation, *numbers]), view.end
    )


def sync_end(disk: Disk, view: View) -> None:
    """Sync the last segment through a descriptor of this process, so a reader may rely on it.

    The writer may have died between its write and its sync: then its last groups are only in the
    page cache, and a power cut could still take what a reader has already reported.
    """
    if view.firsts and view.end > view.manifest.cut:
        with (
            contextlib.suppress(FileNotFoundError),  # a successor has copied and synced it
            contextlib.closing(disk.open(view.segment(view.firsts[-1]))) as file,
        ):
            file.sync()


def hold_lock(disk: Disk, directory: str) -> Lock | None:
    """Take the lock of the last owner without opening the log.

    None if another process holds the lock, or if no generation is complete. The lock keeps other
    joiners out; whether it proves that the owner is dead, `maker_of` and `maker_is_gone` tell.
    """
    for _ in range(LOOKS_MAX):
        number, _numbers = highest_complete(disk, directory)
        if number is None:
            return None
        path = posixpath.join(directory, layout.generation_name(number), layout.LOCK)
        try:
            lock = disk.lock(path)
        except FileNotFoundError:
            with contextlib.suppress(FileExistsError, FileNotFoundError):
                disk.create(path).close()  # a copy of a log may come without its lock file
            continue
        if lock is None:
            return None
        if highest_complete(disk, directory)[0] == number:
            return lock
        lock.release()
    return None


def read_or_make_secret(disk: Disk, directory: str, draw: Callable[[], bytes]) -> bytes:
    """Return the secret of the log in `directory`; `draw` gives 16 random bytes. Raises OSError."""
    path = posixpath.join(directory, layout.SECRET)
    with contextlib.suppress(FileNotFoundError, CorruptLog, KeyError, ValueError):
        found = bytes.fromhex(
            document.decode("secret", layout.read_file(disk, path), path)["secret"]
        )
        if len(found) == SECRET_BYTES:
            return found
    made = draw() + draw()
    layout.replace(
        disk, directory, layout.SECRET, document.encode("secret", {"secret": made.hex()})
    )
    return made
