"""The fenced log: records in, one sync a turn, and a look at the fence before acting on it.

    create(disk, directory, log_id=, owner=) -> LogIdentity      the first generation, once
    identity(disk, directory) -> LogIdentity | None              which log, without writing
    hold_lock(disk, directory) -> Lock | None                    of the last owner, if it is free
    FencedLog.open(disk, directory, generation=, owner=, ...)    recovery, then appending
        .reserve .append .sync .attest .check_fence              one turn of a writer
        .read .replay                                            records by position
        .snapshots .read_snapshot .write_snapshot .discard       compaction
        .close

A failed write, sync, rename or close is final. Whether those bytes are on disk is unknown (after a
failed fsync the kernel may drop the dirty pages: fsyncgate, 2018), so the log refuses every later
call, and the process must end and recover. It survives only a full disk, and only while reserving,
rolling or making a snapshot (`DiskFull`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import pairwise

from ..errors import CorruptLog, DiskFull, Fenced, OnceMQError, StorageError
from ..limits import SEGMENT_BYTES
from . import layout, snapshots
from .by_position import RecordReader, StoredRecord
from .creation import LogIdentity, create, hold_lock, identity
from .disk import Disk
from .document import Owner, SnapshotInfo
from .framing import BadFrame
from .recovery import Opened, Opening, superseded
from .scan import TailCut
from .view import View, chain_before, highest_complete, known_chain
from .writing import SegmentWriter

__all__ = [
    "FencedLog",
    "LogIdentity",
    "SnapshotInfo",
    "StoredRecord",
    "TailCut",
    "create",
    "hold_lock",
    "identity",
]


class FencedLog:
    """A log open for writing by one generation. Not thread-safe.

    Invariant: attested <= durable_end <= end; bytes below durable_end are synced.
    """

    def __init__(self, disk: Disk, directory: str, opened: Opened, segment_bytes: int) -> None:
        view = opened.view
        self.log_id = view.manifest.log_id
        self.lineage = view.manifest.lineage
        self.generation = view.manifest.generation
        self.cut_report: TailCut | None = view.cut  # the torn tail that this opening left out
        self.snapshot_damage: list[CorruptLog] = []  # snapshots that were passed over
        self._disk = disk
        self._directory = directory
        self._name = layout.generation_name(self.generation)
        self._view: View = view
        self._writer = SegmentWriter(disk, opened, segment_bytes)
        self._lock = opened.lock
        self._attested = view.end  # the manifest attests what was taken over
        self._user_end = view.end  # end of the last synced group that held records
        # Bodies from here on are not checked again: recovery has checked the last segment, and
        # this process wrote what follows.
        self._trusted_from = view.firsts[-1]
        self._reader = RecordReader(disk, view.path, view.firsts, view.place.seed)
        self._snapshots: list[SnapshotInfo] | None = None  # whole ones, newest first; None: unread
        self._failure: BaseException | None = None  # final: every later call raises it
        self._closed = False
        self._names_seen: list[str] = []  # in the directory, when the last look found no successor

    @classmethod
    def open(
        cls,
        disk: Disk,
        directory: str,
        *,
        generation: int | None,
        owner: Owner,
        prepare: Callable[[], None] = lambda: None,
        segment_bytes: int = SEGMENT_BYTES,
        takeover: bool = False,
        end_owner: Callable[[Mapping[str, str | int]], None] | None = None,
        create_log_id: bytes | None = None,
    ) -> FencedLog:
        """Recover the log and continue it in a new generation.

        A given `generation` was granted by the broker and fences the last owner by itself. None
        takes the next number and refuses while the last owner lives (LogInUse), unless `takeover`:
        then `end_owner` is called with what the lock file says of that owner. `prepare` is called
        when all that can fail has been tried. With `create_log_id` a missing log is created first.
        Raises Fenced, LogInUse, CorruptLog, UnsupportedFormat, DiskFull, OSError.
        """
        if create_log_id is not None and highest_complete(disk, directory)[0] is None:
            create(disk, directory, log_id=create_log_id, owner=owner)
        opening = Opening(disk, directory, generation, owner, prepare, takeover, end_owner)
        return cls(disk, directory, opening.run(), segment_bytes)

    # --- where things stand ----------------------------------------------------------------------

    @property
    def start(self) -> int:
        """Position at which the log starts: what lay below was discarded."""
        return self._view.start

    @property
    def end(self) -> int:
        return self._writer.end

    @property
    def durable_end(self) -> int:
        return self._view.end

    @property
    def attested(self) -> int:
        """Position up to which something on disk proves that the sync returned.

        Equal to `durable_end` once every record is attested: a frame that only attests needs no
        attestation of its own, else an idle log would write for ever.
        """
        return self._view.end if self._user_end <= self._attested else self._attested

    # --- one turn --------------------------------------------------------------------------------

    def reserve(self, nbytes: int) -> None:
        """Make room for records of `nbytes` (meta and body) and the margin of control records.

        Call it before a turn is judged: a turn that has answered "stored" must not meet a full
        disk. It may start a new segment, which it never does inside a turn. Raises DiskFull: nothing
        has changed then, and the margin of the last call that succeeded is still there.
        """
        self._check_usable()
        try:
            if self._writer.must_roll(nbytes):
                self.check_fence()
                try:
                    self._writer.roll(nbytes)
                except DiskFull:
                    self.check_fence()  # a successor that saw the segment has linked this one
                    raise
            else:
                self._writer.reserve(nbytes)
        except OSError as error:
            raise self._failed(error) from error

    def append(
        self,
        type: int,  # noqa: A002 - the word for it everywhere
        meta: bytes,
        body: bytes | memoryview,
        body_crc: int | None = None,
    ) -> int:
        """Add a record to the group of this turn and return its position.

        Nothing may rely on it before `sync` has returned. `body_crc` saves computing it; it must
        have been checked against the body, or the log cannot be opened again.
        """
        if self._failure is not None:  # saves a call for each record
            self._check_usable()
        try:
            return self._writer.append(type, meta, body, body_crc)
        except OSError as error:
            raise self._failed(error) from error

    def must_wait(self) -> bool:
        """Never: no two logs write to the same files."""
        return False

    def sync(self) -> int:
        """Make the group durable and look at the fence; return the durable end.

        Only after this may a peer learn of the records. Raises Fenced, OSError: both are final.
        """
        self._check_usable()
        if self._writer.end > self._view.end:
            self._commit()
            self._user_end = self._view.end
        # After the sync, never before. A successor that this look does not see makes its
        # generation later, and reads the tail later still: it takes this group over.
        self.check_fence()
        return self._view.end

    def attest(self) -> None:
        """Write and sync a frame that attests the last group, unless it is attested already.

        Without it, damage in the last group would look like a torn tail and be cut off.
        """
        self._check_usable()
        if self._writer.end == self._view.end > self.attested:
            self._commit()
            self.check_fence()

    def _commit(self) -> None:
        covered = self._view.end
        try:
            self._writer.commit()
        except OSError as error:
            self._writer.take_back()
            raise self._failed(error) from error
        self._attested = covered

    def check_fence(self) -> None:
        """Raise Fenced if a higher generation exists, complete or not.

        An idle writer must call it too, or it never learns that it was replaced.
        """
        self._check_usable()
        try:
            names = layout.names_in(self._disk, self._directory)
        except OSError as error:
            raise self._failed(error) from error
        if names and names == self._names_seen:  # every turn asks, and they hardly ever change
            return
        numbers = layout.generations_in(names)
        if numbers and numbers[-1] > self.generation:
            raise self._failed(superseded(self.generation, numbers[-1]))
        if self.generation not in numbers:
            # Without its own directory a writer cannot tell "no successor" from "wrong place".
            raise self._failed(StorageError(f"{self._name} is missing in {self._directory}"))
        self._names_seen = names

    # --- reading ---------------------------------------------------------------------------------

    def read(self, position: int, max_bytes: int, *, end: int | None = None) -> list[StoredRecord]:
        """Return records from the record boundary `position` on, below `end` and the durable end.

        As many as fit `max_bytes`, but at least one if there is one. Raises CorruptLog, Fenced,
        OSError.
        """
        self._check_usable()
        try:
            records = self._reader.read(position, max_bytes, self._view.end, self._trusted_from)
        except OSError as error:  # a successor has taken a sealed segment away, most likely
            raise self._failed(error) from error
        return records if end is None else [record for record in records if record.end <= end]

    def replay(self, position: int) -> Iterator[StoredRecord]:
        """Yield all records from the boundary `position` to the durable end. Raises CorruptLog."""
        self._check_usable()
        chain = known_chain(self._disk, self._view, position)
        return self._reader.replay(position, self._view.end, self._trusted_from, chain)

    # --- snapshots and compaction ----------------------------------------------------------------

    def snapshots(self) -> list[SnapshotInfo]:
        """Return the undamaged snapshots, newest first; [] means replay from `start`, which is 0.

        Damaged ones are passed over and listed in `snapshot_damage`. Raises CorruptLog if all are
        damaged and the log no longer reaches back to 0.
        """
        self._check_usable()
        found, damage = snapshots.usable(self._disk, self._view)
        self.snapshot_damage = [*self._view.snapshot_damage, *damage]
        self._snapshots = found
        return list(found)

    def read_snapshot(self, info: SnapshotInfo) -> dict[str, bytes]:
        """Raises CorruptLog."""
        self._check_usable()
        return {
            part.name: snapshots.read_part(self._disk, self._view.path, part) for part in info.parts
        }

    def write_snapshot(
        self, position: int, parts: Mapping[str, bytes], keep: Collection[str] = ()
    ) -> SnapshotInfo:
        """Write a snapshot of the state after all records below `position` (a group's end).

        `parts` are new; `keep` names parts of the newest snapshot that have not changed. Raises
        DiskFull: then the new files are deleted and the older snapshots stand.
        """
        self._check_usable()
        if position > self._view.end:
            raise ValueError(f"a snapshot at {position}, above the durable end {self._view.end}")
        known = self.snapshots() if self._snapshots is None else self._snapshots
        both = sorted(set(parts) & set(keep))
        if both:
            raise ValueError(f"parts given and kept: {both}")
        kept = snapshots.pick(known, keep)
        try:
            chain = chain_before(self._disk, self._view, position)
            blank = SnapshotInfo(self.log_id, self.generation, position, chain, [])
            path = self._view.path
            info = snapshots.write(self._disk, path, blank, parts, kept, self.check_fence)
            older = [other for other in known if other.position != position]
            self.check_fence()  # before deleting: a successor may be linking these files
            self._snapshots = snapshots.prune(self._disk, path, [info, *older])
        except BadFrame as bad:
            raise ValueError(f"no group ends at {position}: {bad}") from None
        except (OSError, CorruptLog) as error:
            raise self._failed(error) from error
        self._view.snapshots = sorted(other.position for other in self._snapshots)
        return info

    def discard(self, below: int) -> int:
        """Delete whole sealed segments below `below` that no kept snapshot needs; return `start`."""
        self._check_usable()
        known = self.snapshots() if self._snapshots is None else self._snapshots
        below = min([below, *(info.position for info in known)]) if known else 0
        firsts = self._view.firsts
        gone = [first for first, after in pairwise(firsts) if after <= below]
        if not gone:
            return self.start
        start = firsts[len(gone)]
        self.check_fence()
        # The new start is durable before a segment goes: a missing segment at or above the start
        # is damage.
        try:
            snapshots.write_start(self._disk, self._view.path, start)
            for first in gone:
                self._reader.forget(first)
                layout.remove(self._disk, self._view.segment(first))
        except OSError as error:
            if error.errno in layout.FULL:
                raise DiskFull(f"no room to note the new start of {self._directory}") from error
            raise self._failed(error) from error
        del firsts[: len(gone)]
        self._view.start = start
        return start

    # --- the end ---------------------------------------------------------------------------------

    def close(self, clean: bool = True) -> None:  # noqa: FBT001, FBT002
        """Attest the last group (when clean and nothing failed) and release the lock.

        Records appended after the last sync are lost: no peer knows of them. Raises Fenced,
        OSError; files and lock are released all the same.
        """
        if self._closed:
            return
        try:
            if clean and self._failure is None:
                self.attest()
            whole = self._writer.end == self._view.end
            self._writer.close(seal=clean and self._failure is None and whole)
        finally:
            self._closed = True
            self._writer.close(seal=False)
            self._failure = self._failure or StorageError("the log is closed")
            self._reader.close()
            self._lock.release()

    def _check_usable(self) -> None:
        failure = self._failure
        if failure is None:
            return
        if isinstance(failure, OnceMQError):
            raise failure
        raise StorageError(f"the log failed before: {failure}") from failure

    def _failed(self, error: BaseException) -> BaseException:
        """Remember a final failure and return it, or Fenced where a newer generation explains it.

        A successor deletes files of this generation, so ENOENT or EIO here often means "fenced".
        """
        numbers: list[int] = []
        if not isinstance(error, Fenced):
            try:
                numbers = layout.generations(self._disk, self._directory)
            except OSError as other:
                error.add_note(f"looking at the fence failed too: {other}")
            if numbers and numbers[-1] > self.generation:
                error = superseded(self.generation, numbers[-1])
        self._failure = error
        return error
