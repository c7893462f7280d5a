"""Every byte of a log that lies on the disk, checked; what is wrong, or left over. Read-only.

An opening checks what it relies on at once, and the rest when it is read. This reads all of it: each frame
of each segment, the chain, each part of each snapshot. Beside a live owner it looks again where something
moved on, and says so where it cannot tell a leftover from work under way.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from ..errors import CorruptLog, StorageError
from . import document, layout, orders, snapshots
from .copying import sealed_data
from .disk import Disk
from .framing import SEGMENT_HEADER_BYTES
from .inspection import inspect
from .outside_reader import latest_view
from .recovery import being_made
from .view import View

Tell = Callable[[str, int], None]  # what is read, and bytes more of it

_RESTORE = "restore this log from a backup"
_NOTHING = "nothing: the next start leaves it out"
_MADE_AGAIN = "nothing: the next start makes another, and the index of ids anew from the log"
_NO_PROOF = "nothing: its successor waits for the lease, since this file proves nothing"
_DELETE = "nothing, or delete it while no owner runs"
_LOOKS_MAX = 20  # how often a log is read anew that was taken over meanwhile
_HOME = frozenset({layout.CREATE_LOCK, layout.SECRET, orders.HOME})
_FRAMES = frozenset({"record", "commit", "bad"})


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong (`damage`), or only worth knowing."""

    path: str
    offset: int
    reason: str
    advice: str  # what to do
    damage: bool = True

    def __str__(self) -> str:
        word = "damaged" if self.damage else "note"
        return f"{word} {self.path} at byte {self.offset}: {self.reason}; {self.advice}"


def check_log(
    disk: Disk, directory: str, tell: Tell, wait: Callable[[], None]
) -> Iterator[Finding]:
    """Yield what is wrong with the log in `directory`. `wait` sleeps a little."""
    for _ in range(_LOOKS_MAX):
        try:
            view = latest_view(disk, directory, wait=wait)
        except FileNotFoundError:
            continue
        except CorruptLog as error:
            yield from _all_damage(disk, directory, error)
            break
        except StorageError as error:
            yield Finding(directory, 0, error.reason, error.hint or _RESTORE)
            break
        found = list(_generation(disk, view, tell))
        if disk.exists(posixpath.join(view.path, layout.MANIFEST)):
            yield from found
            lock = posixpath.join(view.path, layout.LOCK)
            yield from _document(disk, lock, "owner", _NO_PROOF)
            yield from _leftovers(disk, directory, view)
            break
        wait()  # another owner took over, and deleted what was read
    else:
        yield Finding(directory, 0, "a new owner at each look", "look again later", damage=False)
    path = posixpath.join(directory, layout.SECRET)
    yield from _document(disk, path, "secret", _MADE_AGAIN)


def _generation(disk: Disk, view: View, tell: Tell) -> Iterator[Finding]:
    """The view has checked the last segment, and both ends of each other one."""
    for first, end in pairwise(view.firsts):
        path = view.segment(first)
        try:
            tell(path, len(sealed_data(disk, view, first, end, path)))
        except CorruptLog as error:
            yield _found(error)
        except FileNotFoundError:
            continue  # discarded meanwhile, or all of the generation, which is seen at the end
    if view.cut is not None:
        at = view.cut.from_position - view.firsts[-1] + SEGMENT_HEADER_BYTES
        reason = f"{view.cut.nbytes} bytes of a group that is not whole ({view.cut.reason})"
        yield Finding(view.cut.path, at, reason, _NOTHING, damage=False)
    read: set[str] = set()
    for position in view.snapshots:
        if position < view.start:
            continue
        path = posixpath.join(view.path, layout.snapshot_name(position))
        try:
            info = snapshots.read_head(disk, view.path, position, view.manifest.log_id)
            snapshots.check_chain(disk, view, info)
            for part in info.parts:
                if part.file not in read:
                    read.add(part.file)
                    snapshots.read_part(disk, view.path, part, keep=False)
                    tell(part.file, part.length)
        except CorruptLog as error:
            if not disk.exists(path):
                continue
            again = (
                "nothing, if the other snapshot is whole: the next start makes the state from it"
            )
            yield replace(_found(error), advice=f"{again}; else {_RESTORE}")
        except StorageError as error:
            yield Finding(path, 0, error.reason, error.hint)
        except FileNotFoundError:
            continue  # its owner has replaced it
    try:
        snapshots.check_reachable(disk, view)
    except CorruptLog as error:
        if disk.exists(posixpath.join(view.path, layout.MANIFEST)):
            yield _found(error)
    except FileNotFoundError:
        return  # replaced: the newer one reaches further


def _found(error: CorruptLog) -> Finding:
    return Finding(error.path, error.offset, error.damage, _RESTORE)


def _all_damage(disk: Disk, directory: str, error: CorruptLog) -> Iterator[Finding]:
    """A log that no opening takes: what an opening says, and each bad item besides."""
    yield _found(error)
    try:
        for item in inspect(disk, directory):
            if item["kind"] in _FRAMES and item["verdict"] != "ok":
                at = Finding(item["path"], item["offset"], item["verdict"], _RESTORE)
                if (at.path, at.offset) != (error.path, error.offset):
                    yield at
    except FileNotFoundError:
        return  # it changed meanwhile, and the verdict above stands


def _leftovers(disk: Disk, directory: str, view: View) -> Iterator[Finding]:
    """What no reader would miss; beside a live owner it may be work under way."""
    mine = view.manifest.generation
    for name in layout.names_in(disk, directory):
        path = posixpath.join(directory, name)
        numbers = layout.generations_in([name])
        if not numbers:
            if name not in _HOME:
                yield Finding(path, 0, "no file of this log", _DELETE, damage=False)
        elif numbers[0] < mine:
            yield Finding(path, 0, "superseded: the next start deletes it", _NOTHING, damage=False)
        elif numbers[0] > mine:
            busy = being_made(disk, directory, numbers[0])
            what = "being made" if busy else "an opening that was cut short left it"
            yield Finding(path, 0, what, _NOTHING, damage=False)
    known = {layout.MANIFEST, layout.LOCK, layout.START}
    known |= {layout.segment_name(first) for first in view.firsts}
    known |= {layout.snapshot_name(at) for at in view.snapshots if at >= view.start}
    try:
        for position in view.snapshots:
            info = snapshots.read_head(disk, view.path, position, view.manifest.log_id)
            known |= {part.file for part in info.parts}
    except (StorageError, FileNotFoundError):
        return  # told before, or it moved on: no parts can be named
    spare = [name for name in layout.names_in(disk, view.path) if name not in known]
    # The lock is asked for only where it matters: an owner that starts now must find it free.
    live = bool(spare) and being_made(disk, directory, mine)
    what = "work of the live owner, or a leftover" if live else "a leftover: no head names it"
    for name in spare:
        yield Finding(posixpath.join(view.path, name), 0, what, _NOTHING, damage=False)


def _document(disk: Disk, path: str, kind: str, advice: str) -> Iterator[Finding]:
    """Check a small file that may be missing."""
    try:
        document.decode(kind, layout.read_file(disk, path), path)
    except FileNotFoundError:
        return
    except CorruptLog as error:
        yield replace(_found(error), advice=advice)
    except StorageError as error:
        yield Finding(path, 0, error.reason, error.hint)
