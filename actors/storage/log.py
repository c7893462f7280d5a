"""The fenced log: records in, one sync a turn, and a look at the fence before acting on it.

    create(disk, directory, log_id=, owner=) -> LogIdentity      the first generation, once
    identity(disk, directory) -> LogIdentity | None              which log, without writing
    hold_lock(disk, directory) -> Lock | None                    of the last owner, if it is free
    FencedLog.open(disk, directory, generation=, owner=, ...)    recovery, then appending
        .reserve .append .sync .attest .check_fence              one turn of a writer
        .read .replay                                            records by position
        .snapshots .read_snapshot .write_snapshot .discard       compaction
        .part_writer .snapshot_writer .discarding                the same beside the turn
        .close

A failed write, sync, rename or close is final. Whether those bytes are on disk is unknown (after a
failed fsync the kernel may drop the dirty pages: fsyncgate, 2018), so the log refuses every later
call, and the process must end and recover. It survives only a full disk, and only while reserving,
rolling or making a snapshot (`DiskFull`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import count, pairwise
from operator import attrgetter

from ..errors import CorruptLog, DiskFull, Fenced, OnceMQError, StorageError
from ..limits import SEGMENT_BYTES
from . import layout, snapshots
from .by_position import RecordReader, StoredRecord
from .creation import LogIdentity, create, hold_lock, identity, read_or_make_secret
from .disk import Disk
from .document import Owner, Part, SnapshotInfo
from .framing import BadFrame
from .kept import KeptPart, kept_name, kept_range, pieces
from .recovery import Opened, Opening, check_fence, superseded
from .scan import TailCut
from .snapshots import Mapped
from .view import View, chain_before, highest_complete, known_chain
from .writing import SegmentWriter

__all__ = [
    "Discard",
    "FencedLog",
    "LogIdentity",
    "Mapped",
    "PartWriter",
    "SnapshotInfo",
    "SnapshotWriter",
    "StoredRecord",
    "TailCut",
    "create",
    "hold_lock",
    "identity",
]


class SnapshotWriter:
    """A snapshot in the making. `write` may run in another thread, `finish` follows in the turn."""

    def __init__(
        self,
        write: Callable[[Mapping[str, bytes]], list[SnapshotInfo]],
        stand: Callable[[list[SnapshotInfo]], None],
    ) -> None:
        self._write = write
        self._stand = stand
        self._kept: list[SnapshotInfo] = []

    def write(self, parts: Mapping[str, bytes]) -> None:
        """Put the snapshot in place and delete what it replaces. Raises DiskFull, or is final."""
        self._kept = self._write(parts)

    def finish(self) -> SnapshotInfo:
        """Let the log know of it."""
        self._stand(self._kept)
        return self._kept[0]


class PartWriter:
    """A mapped part in the making. `write` may run in another thread, `finish` in the turn."""

    unfinished = False

    def __init__(
        self,
        write: Callable[[Iterable[bytes], Callable[[], bool]], tuple[int, int] | None],
        stand: Callable[[tuple[int, int] | None], Mapped | None],
    ) -> None:
        self._write = write
        self._stand = stand
        self._written: tuple[int, int] | None = None

    def write(self, pieces: Iterable[bytes], stop: Callable[[], bool] = lambda: False) -> None:
        """Raises DiskFull, or is final. Where `stop` returns True, nothing is left behind."""
        self._written = self._write(pieces, stop)

    def finish(self) -> Mapped | None:
        """Return the part, which the next snapshot may keep by its name; None: nothing was made."""
        return self._stand(self._written)


class Discard:
    """Segments that go. `write` may run in another thread, `finish` follows in the turn."""

    def __init__(self, write: Callable[[], None], stand: Callable[[], None]) -> None:
        self._write = write
        self._stand = stand

    def write(self) -> None:
        """Note the new start and delete them. Raises DiskFull, having changed nothing, or is final."""
        self._write()

    def finish(self) -> None:
        """Let the log know that they are gone."""
        self._stand()


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
        self._serials: Iterator[int] | None = None  # of mapped files; None: none was made yet
        # Parts that were written ahead and that no snapshot has named yet, by name.
        self._ahead: dict[str, Part] = {}
        self._unfinished: set[str] = set()  # files of parts that are being written ahead
        # Where records below the end of the last one are read. Invariant: rising, apart.
        self._kept: list[KeptPart] = []
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

    def secret(self, draw: Callable[[], bytes]) -> bytes:
        """Return the 32 secret bytes of this log, which no client ever learns; made where missing.

        Everything that was made under it can be made again from the records, so a lost or damaged
        secret is replaced. Raises OSError.
        """
        self._check_usable()
        try:
            return read_or_make_secret(self._disk, self._directory, draw)
        except OSError as error:
            raise self._failed(error) from error

    def look_at_fence(self) -> None:
        """As `check_fence`, for work beside the turn: nothing is remembered. Raises Fenced."""
        check_fence(self._disk, self._directory, self.generation)

    # --- reading ---------------------------------------------------------------------------------

    def read(self, position: int, max_bytes: int, *, end: int | None = None) -> list[StoredRecord]:
        """Return records from the record boundary `position` on, below `end` and the durable end.

        As many as fit `max_bytes`, but at least one if there is one. Where kept parts stand for the
        beginning of the log, what lies between them is passed over. Raises CorruptLog, Fenced, OSError.
        """
        self._check_usable()
        try:
            records = self._read_kept(position, max_bytes) if position < self.kept_end else []
            if not records:
                at = max(position, self.kept_end, self.start) if self._kept else position
                records = self._reader.read(at, max_bytes, self._view.end, self._trusted_from)
        except OSError as error:  # a successor has taken a sealed segment away, most likely
            raise self._failed(error) from error
        return records if end is None else [record for record in records if record.end <= end]

    def _read_kept(self, position: int, max_bytes: int) -> list[StoredRecord]:
        """Return records of the first part that has one from `position` on."""
        behind = (part for part in self._kept if part.end > position)
        return next(filter(None, (list(part.read(position, max_bytes)) for part in behind)), [])

    @property
    def kept_end(self) -> int:
        """Below it records are read from kept parts; 0: there is none."""
        return self._kept[-1].end if self._kept else 0

    def kept_pieces(
        self, start: int, log_start: int, end: int, wanted: Callable[[StoredRecord], bool]
    ) -> Callable[[], Iterator[bytes]]:
        """Return what makes a part of the records in [start, end) that are `wanted`.

        Below `log_start` they are read from kept parts. Another thread may run it. All bodies are
        checked: the originals go. Until the part is there, or given up, nothing of the log from
        `log_start` on may be discarded. Raises CorruptLog.
        """
        sources = [part for part in self._kept if start <= part.start < end]
        at = max(log_start, sources[-1].end if sources else 0)
        firsts, limit = list(self._view.firsts), min(end, self._view.end)

        def records() -> Iterator[StoredRecord]:
            for part in sources:
                yield from filter(wanted, part.read(part.start, part.end - part.start))
            reader = RecordReader(self._disk, self._view.path, firsts, self._view.place.seed)
            try:
                yield from filter(wanted, reader.replay(at, limit, limit, None))
            except OSError as error:
                raise self._failed(error) from error
            finally:
                reader.close()

        return lambda: pieces(records(), start, end, self.log_id)

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

    def pass_over(self, info: SnapshotInfo) -> None:
        """Count `info` as damaged: no later snapshot keeps a part of it by name, and it is deleted."""
        self._snapshots = [other for other in self.snapshots() if other.position != info.position]
        self._kept = []

    def read_snapshot(self, info: SnapshotInfo) -> dict[str, bytes | Mapped]:
        """Raises CorruptLog, Fenced."""
        self._check_usable()
        try:
            parts = snapshots.load(self._disk, self._view.path, info)
            kept = [self._kept_part(part) for name, part in parts.items() if kept_range(name)]
        except CorruptLog:
            self.look_at_fence()  # a successor deletes the files of this generation
            raise
        self._kept = sorted(kept, key=attrgetter("start"))
        return parts

    def _kept_part(self, part: bytes | Mapped) -> KeptPart:
        """Raises CorruptLog."""
        assert isinstance(part, Mapped), "kept parts lie in mapped files"
        return KeptPart(part.buffer, part.path, self.log_id)

    def write_snapshot(
        self, position: int, parts: Mapping[str, bytes], keep: Collection[str] = ()
    ) -> SnapshotInfo:
        """Write a snapshot of the state after all records below `position` (a group's end).

        `parts` are new; `keep` names parts of the newest snapshot that have not changed, and parts
        that were written ahead. Raises DiskFull: then the new files are deleted and the older
        snapshots stand.
        """
        writer = self.snapshot_writer(position, keep)
        writer.write(parts)
        return writer.finish()

    def snapshot_writer(self, position: int, keep: Collection[str] = ()) -> SnapshotWriter:
        """Begin a snapshot, which may then be written beside the turn; one at a time."""
        self._check_usable()
        if position > self._view.end:
            raise ValueError(f"a snapshot at {position}, above the durable end {self._view.end}")
        known = self.snapshots() if self._snapshots is None else self._snapshots
        kept = snapshots.pick(known, self._ahead, keep)
        try:
            chain = chain_before(self._disk, self._view, position)
        except BadFrame as bad:
            raise ValueError(f"no group ends at {position}: {bad}") from None
        except OSError as error:
            raise self._failed(error) from error
        blank = SnapshotInfo(self.log_id, self.generation, position, chain, [])
        # A part ahead that this snapshot does not name will not be named by a later one.
        spare = {part.file for part in self._ahead.values() if part.name in keep}
        self._ahead = {part.name: part for part in self._ahead.values() if part.name in keep}
        self._kept = [part for part in self._kept if kept_name(part.start, part.end) in keep]
        # What is there now and no snapshot needs may go; what is made from now on may not.
        spent = set(self._parts_there()) - spare - self._unfinished

        def write(parts: Mapping[str, bytes]) -> list[SnapshotInfo]:
            both = sorted(set(parts) & {part.name for part in kept})
            if both:
                raise ValueError(f"parts given and kept: {both}")
            try:
                info = snapshots.write(
                    self._disk,
                    self._view.path,
                    blank,
                    parts,
                    kept,
                    self.look_at_fence,
                )
                # Before anything is deleted: a successor may be linking these files.
                self.look_at_fence()
                older = [other for other in known if other.position != position]
                return snapshots.prune(self._disk, self._view.path, [info, *older], spent)
            except (OSError, CorruptLog, Fenced) as error:
                raise self._failed(error) from error

        return SnapshotWriter(write, self._adopt)

    def _adopt(self, kept: list[SnapshotInfo]) -> None:
        self._snapshots = kept
        self._view.snapshots = sorted(other.position for other in kept)

    def part_writer(self, name: str) -> PartWriter:
        """Begin a part that is mapped, not read, and is written ahead of its snapshot."""
        self._check_usable()
        if self._serials is None:
            self._serials = count(max(self._parts_there().values(), default=-1) + 1)
        file = layout.mapped_name(self._view.end, next(self._serials))
        self._unfinished.add(file)

        def write(pieces: Iterable[bytes], stop: Callable[[], bool]) -> tuple[int, int] | None:
            try:
                return snapshots.write_mapped(self._disk, self._view.path, file, pieces, stop)
            except OSError as error:
                raise self._failed(error) from error

        def stand(written: tuple[int, int] | None) -> Mapped | None:
            self._unfinished.discard(file)
            if written is None:
                return None
            self._ahead[name] = Part(name, file, *written)
            try:
                mapped = snapshots.map_part(self._disk, self._view.path, file)
                if kept_range(name):
                    self._take_kept(self._kept_part(mapped))
            except (
                OSError,
                CorruptLog,
            ) as error:  # a successor has taken the file away, most likely
                raise self._failed(error) from error
            return mapped

        return PartWriter(write, stand)

    def _take_kept(self, made: KeptPart) -> None:
        """Read from a part that was made, in place of those that it was made of."""
        others = [one for one in self._kept if not made.start <= one.start < made.end]
        self._kept = sorted([*others, made], key=attrgetter("start"))

    def _parts_there(self) -> dict[str, int]:
        """Raises Fenced: a successor deletes this generation."""
        try:
            return layout.parts_in(self._disk.list(self._view.path))
        except OSError as error:
            raise self._failed(error) from error

    def discard(self, below: int) -> int:
        """Delete whole sealed segments below `below` that no kept snapshot needs; return `start`."""
        discard = self.discarding(below)
        if discard is not None:
            discard.write()
            discard.finish()
        return self.start

    def discarding(self, below: int) -> Discard | None:
        """Begin what `discard` does, which may then be done beside the turn; one at a time.

        Nothing below `below` may be read from here on. None: nothing can go.
        """
        self._check_usable()
        known = self.snapshots() if self._snapshots is None else self._snapshots
        below = min([below, *(info.position for info in known)]) if known else 0
        firsts = self._view.firsts
        gone = [first for first, after in pairwise(firsts) if after <= below]
        if not gone:
            return None
        start = firsts[len(gone)]
        self.check_fence()

        def write() -> None:
            # The new start is durable before a segment goes: a missing segment at or above the start
            # is damage.
            try:
                self.look_at_fence()
                snapshots.write_start(self._disk, self._view.path, start)
                for first in gone:
                    layout.remove(self._disk, self._view.segment(first))
            except OSError as error:
                if error.errno in layout.FULL:
                    raise DiskFull(f"no room to note the new start of {self._directory}") from error
                raise self._failed(error) from error
            except Fenced as error:
                raise self._failed(error) from error

        def stand() -> None:
            for first in gone:
                self._reader.forget(first)
            del firsts[: len(gone)]
            self._view.start = start

        return Discard(write, stand)

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
