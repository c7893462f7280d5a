"""Opening a log for writing: a new generation continues what the last one left.

The order makes fencing exact.
(1) Try all that can fail, so that an opening that must fail fences no healthy owner.
(2) Make the directory of the new generation: an older writer ends at its next look.
(3) Only now take the tail: all that an older writer was allowed to act on was written before (2).
(4) Make and sync the files, then the manifest. No file of an older generation is changed.
"""

from __future__ import annotations

import contextlib
import posixpath
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import CorruptLog, DiskFull, Fenced, LogInUse, StorageError
from ..limits import RESERVE_MARGIN_BYTES
from . import document, layout, snapshots
from .disk import Disk, File, Identity, Lock
from .document import Manifest, Owner
from .framing import SEGMENT_HEADER_BYTES, SegmentHeader, encode_segment_header
from .view import LOOKS_MAX, View, highest_complete, read_latest


@dataclass(slots=True)
class Opened:
    """A complete new generation, its lock held."""

    view: View
    file: File  # the last segment, open for writing
    reserved_end: int  # position up to which the last segment has room
    lock: Lock


@dataclass(slots=True)
class Opening:
    """One attempt to open a log for writing."""

    disk: Disk
    directory: str
    number: int | None  # of the new generation, granted by a broker; None: the next one
    owner: Owner  # this process, for the lock file and the manifest
    prepare: Callable[[], None]  # what else can fail, such as binding a socket
    takeover: bool  # whether a live owner is ended (by `end_owner`) instead of refused
    end_owner: Callable[[Owner], None] | None

    def run(self) -> Opened:
        """Raises LogInUse, Fenced, CorruptLog, DiskFull, OSError."""
        guard, view = self._look()
        try:
            self._probe(view)
            self.prepare()
            path, number = self._make()
            try:
                return self._fill(path, number, view)
            except OSError as error:
                self._give_up(path, number, error)
                raise
        finally:
            for lock in guard:
                lock.release()

    # --- step 1: what can fail -------------------------------------------------------------------

    def _look(self) -> tuple[list[Lock], View]:
        """Read and check the parent. Returns the locks that are held, and the parent.

        Without a granted number only the lock keeps two openings apart, so it is held until the new
        generation is complete.
        """
        for _ in range(LOOKS_MAX):
            complete, numbers = highest_complete(self.disk, self.directory)
            if complete is None:
                raise StorageError(f"there is no log in {self.directory}")
            if self.number is not None and self.number <= numbers[-1]:
                raise superseded(self.number, numbers[-1])
            guard = self._guard([n for n in numbers if n >= complete])
            if layout.generations(self.disk, self.directory)[-1:] == numbers[-1:]:
                try:
                    view = read_latest(self.disk, self.directory)
                    assert view is not None, "a complete generation is never taken away"
                    snapshots.check_reachable(self.disk, view)
                    return guard, view
                except FileNotFoundError:
                    pass  # another process went on with the log and deleted it: look again
                except BaseException:
                    for lock in guard:
                        lock.release()
                    raise
            for lock in guard:
                lock.release()
        raise StorageError(f"too many openings of {self.directory} at once")

    def _guard(self, numbers: list[int]) -> list[Lock]:
        """Take the locks of the last owner and of unfinished openings; deal with a live holder."""
        held: list[Lock] = []
        for number in reversed(numbers):
            path = posixpath.join(self.directory, layout.generation_name(number), layout.LOCK)
            try:
                lock = self.disk.lock(path)
            except FileNotFoundError:
                continue
            if lock is not None:
                held.append(lock)
            elif self.number is None:
                self._refuse_or_end(read_owner(self.disk, path), held)
        return held

    def _refuse_or_end(self, owner: Owner, held: list[Lock]) -> None:
        if not self.takeover:
            for lock in held:
                lock.release()
            holder = ", ".join(f"{name} {owner[name]}" for name in ("pid", "host") if name in owner)
            raise LogInUse(
                f"{self.directory} is in use by {holder or 'another process'}",
                hint=None if self.end_owner is not None else "stop the owner first",
            )
        if self.end_owner is not None:
            self.end_owner(owner)

    def _probe(self, view: View) -> None:
        """Check that the files of step 4 will find room, while the old owner still runs."""
        need = SEGMENT_HEADER_BYTES if view.tail is None else view.tail.at(view.end)
        path = posixpath.join(self.directory, layout.PROBE)
        layout.remove(self.disk, path)
        try:
            with contextlib.closing(self.disk.create(path)) as file:
                file.reserve(0, need + RESERVE_MARGIN_BYTES)
        except FileExistsError:
            return  # another opening probes: one of the two will be fenced
        except OSError as error:
            layout.remove(self.disk, path)
            if error.errno in layout.FULL:
                raise DiskFull(f"no room for a new generation in {self.directory}") from error
            raise
        layout.remove(self.disk, path)

    # --- step 2: the number is taken ------------------------------------------------------------

    def _make(self) -> tuple[str, int]:
        for _ in range(LOOKS_MAX):
            highest = layout.generations(self.disk, self.directory)[-1]
            number = highest + 1 if self.number is None else self.number
            path = posixpath.join(self.directory, layout.generation_name(number))
            try:
                if number <= highest:
                    raise FileExistsError
                self.disk.make_directory(path)
            except FileExistsError:
                if self.number is not None:
                    raise superseded(number, highest) from None
                continue
            self.disk.sync_directory(self.directory)
            return path, number
        raise StorageError(f"too many openings of {self.directory} at once")

    # --- steps 3 and 4: the tail is taken, the files are made -----------------------------------

    def _fill(self, path: str, number: int, known: View) -> Opened:
        lock = make_lock(self.disk, path, self.owner)
        file: File | None = None
        try:
            for _ in range(LOOKS_MAX):
                parent = read_latest(self.disk, self.directory, known)
                assert parent is not None, "a complete generation is never taken away"
                if parent.manifest.generation > number:
                    raise superseded(number, parent.manifest.generation)
                try:
                    view, file, reserved_end = self._copy(path, number, parent)
                    break
                except FileNotFoundError:  # the owner took a file away: list again
                    self._check(number)
                    self._clear(path)
            else:
                raise CorruptLog(self.directory, 0, "a listed file is missing")
            data = view.manifest.encode()
            self.disk.sync_directory(path)
            layout.replace(self.disk, path, layout.MANIFEST, data)
            self._check(number)
            for lower in layout.generations(self.disk, self.directory):
                if lower < number:
                    layout.remove_generation(self.disk, self.directory, lower)
        except BaseException:
            if file is not None:
                file.close()
            lock.release()
            raise
        return Opened(view, file, reserved_end, lock)

    def _copy(self, path: str, number: int, parent: View) -> tuple[View, File, int]:
        """Link sealed segments, copy the last one up to its last whole group.

        A link is safe because no generation writes records to a sealed segment. The last segment is
        copied, so that bytes which a killed process left in the page cache only are written and
        synced by this process before anything relies on them.
        """
        old = parent.manifest
        first = parent.firsts[-1] if parent.firsts else parent.end
        for sealed in parent.firsts[:-1]:
            name = layout.segment_name(sealed)
            layout.link_or_copy(self.disk, parent.segment(sealed), posixpath.join(path, name))
        tail = parent.tail
        if tail is None or parent.tail_is_new:
            data = encode_segment_header(SegmentHeader(old.log_id, number, first, parent.chain))
        else:
            data = tail.data[: tail.at(parent.end)]
        file = self.disk.create(posixpath.join(path, layout.segment_name(first)))
        try:
            file.write(data, 0)
            file.reserve(len(data), RESERVE_MARGIN_BYTES)
            file.sync()
            kept, damage = snapshots.carry(self.disk, parent, path)
            if parent.start and damage and all(position < parent.start for position in kept):
                raise damage[0]  # the parent stays as it is, for who has the lost file
        except BaseException:
            file.close()
            raise
        firsts = parent.firsts or [first]
        ends = [*firsts[1:], parent.end]
        manifest = Manifest(
            log_id=old.log_id,
            lineage=old.lineage,
            generation=number,
            parent=old.generation,
            cut=parent.end,
            chain=parent.chain,
            start=parent.start,
            segments=[(f, end - f) for f, end in zip(firsts, ends, strict=True)],
            owner=self.owner,
        )
        view = View(path, manifest, parent.start, list(firsts), kept, parent.end, parent.chain)
        view.cut = parent.cut
        view.snapshot_damage = damage
        return view, file, parent.end + RESERVE_MARGIN_BYTES

    def _clear(self, path: str) -> None:
        for name in self.disk.list(path):
            if name != layout.LOCK:
                layout.remove(self.disk, posixpath.join(path, name))

    def _check(self, number: int) -> None:
        check_fence(self.disk, self.directory, number)

    def _give_up(self, path: str, number: int, error: OSError) -> None:
        """Raises Fenced, or DiskFull after cleaning up, where that explains `error` better."""
        self._check(number)
        if error.errno in layout.FULL and not self.disk.exists(
            posixpath.join(path, layout.MANIFEST)
        ):
            layout.remove_generation(self.disk, self.directory, number)
            self.disk.sync_directory(self.directory)
            raise DiskFull(f"no room for a new generation in {self.directory}") from error


def check_fence(disk: Disk, directory: str, number: int) -> None:
    """Raise Fenced if a generation above `number` exists, complete or not."""
    numbers = layout.generations(disk, directory)
    if numbers and numbers[-1] > number:
        raise superseded(number, numbers[-1])


def superseded(number: int, higher: int) -> Fenced:
    return Fenced(f"generation {number} was superseded: generation {higher} exists")


def make_lock(disk: Disk, path: str, owner: Owner) -> Lock:
    """Make the lock file of a new generation, and take its lock.

    The lock comes first: a file that names its maker while its lock is free proves him dead.
    """
    name = posixpath.join(path, layout.LOCK)
    with contextlib.closing(disk.create(name)) as file:
        lock = _taken(disk, name)
        try:
            content = {"owner": dict(owner), "file": _place(name, file.identity())}
            file.write(document.encode("owner", content), 0)
            file.sync()
        except BaseException:
            lock.release()
            raise
    return lock


def _taken(disk: Disk, name: str) -> Lock:
    for _ in range(LOOKS_MAX):  # a reader may hold it for a moment: see `being_made`
        lock = disk.lock(name)
        if lock is not None:
            return lock
    raise LogInUse(f"another process holds {name}, which was just created")


def _place(path: str, identity: Identity) -> list[str | int]:
    return [posixpath.normpath(path), *identity]


def maker_of(disk: Disk, path: str, lock: Lock) -> Owner | None:
    """Return who made the lock file at `path`, whose `lock` is held; None: the file cannot tell.

    A copy of a log has a copy of its lock file, which no process holds, also while the owner of the
    original lives. So a lock file names its own place (path, device, number), and its lock says
    something about its maker only there.
    """
    try:
        content = document.decode("owner", layout.read_file(disk, path), path)
    except (FileNotFoundError, CorruptLog):
        return None
    owner = content.get("owner")
    if content.get("file") != _place(path, lock.identity()) or not isinstance(owner, dict):
        return None
    return owner


def maker_is_gone(disk: Disk, directory: str, number: int) -> bool:
    """Return whether the process that makes the unfinished generation `number` is proved gone.

    No proof: that process holds its lock, or has not made its lock file yet, or made another one of
    which this is a copy.
    """
    path = posixpath.join(directory, layout.generation_name(number), layout.LOCK)
    try:
        lock = disk.lock(path)
    except FileNotFoundError:
        return False
    if lock is None:
        return False
    try:
        return maker_of(disk, path, lock) is not None
    finally:
        lock.release()


def being_made(disk: Disk, directory: str, number: int) -> bool:
    """Return whether a live process is making the unfinished generation `number`.

    That process takes the tail only while it holds its lock. If it does not hold the lock yet, it
    will take over all that the caller read before this call.
    """
    path = posixpath.join(directory, layout.generation_name(number), layout.LOCK)
    try:
        lock = disk.lock(path)
    except FileNotFoundError:
        return False
    if lock is None:
        return True
    lock.release()
    return False


def read_owner(disk: Disk, path: str) -> Owner:
    """Return {} if the lock file is missing or damaged."""
    owner: Owner = {}
    with contextlib.suppress(FileNotFoundError, CorruptLog):
        found = document.decode("owner", layout.read_file(disk, path), path).get("owner")
        owner = found if isinstance(found, dict) else {}
    return owner
