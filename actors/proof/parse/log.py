"""One log directory: its highest complete generation, read up to the last whole commit frame.

    log = Log.look(files, directory)        where it stands now
    log.end                                 all below is whole groups
    for group in log.groups(position): ...  streamed, every checksum and the chain checked
    log.still_counts()                      no successor left part of it behind

Damage raises CorruptLog with file, offset and reason. A torn last group that nothing on disk
attests is no damage: `torn_bytes` says how much was left out. What a live owner or a successor
takes away while it is read raises LogMoved: look again.
"""

from __future__ import annotations

import contextlib
import re
from bisect import bisect_right
from collections.abc import Iterator
from itertools import pairwise

from ...errors import CorruptLog, OnceMQError
from . import document as documents
from .document import Manifest, SnapshotHead
from .files import Files, OpenFile
from .frames import (
    SEGMENT_HEADER_BYTES,
    Bad,
    Frame,
    Group,
    SegmentHead,
    Walker,
    Writers,
    segment_head,
)

LOOKS_MAX = 20  # how often a look starts over while others replace what it reads

_GENERATION = re.compile(r"gen-([0-9]{20})\Z", re.ASCII)
_SEGMENT = re.compile(r"([0-9]{20})\.log\Z", re.ASCII)
_SNAPSHOT = re.compile(r"snap-([0-9]{20})\.snapshot\Z", re.ASCII)


class LogMoved(OnceMQError):
    """Files were replaced while they were read."""

    code = "log_moved"
    retriable = True
    default_hint = "run it again: the log was compacted or taken over meanwhile"


def _numbers(pattern: re.Pattern[str], names: list[str]) -> list[int]:
    return sorted(int(match[1]) for name in names if (match := pattern.match(name)))


def generation_numbers(files: Files, directory: str) -> list[int]:
    """Return the numbers of all generations, complete or not; [] where there is no log."""
    try:
        return _numbers(_GENERATION, files.list(directory))
    except FileNotFoundError:
        return []


class Log:
    """The highest complete generation of a log, as seen at one moment."""

    def __init__(self, files: Files, directory: str, number: int, manifest: Manifest) -> None:
        """Use `look`."""
        self.directory = directory
        self.generation = number
        self.manifest = manifest
        self.log_id = manifest.log_id
        self.path = f"{directory}/gen-{number:020d}"
        self._files = files
        # Where the log starts: what lies below was discarded.
        self.start = manifest.start
        # First positions of the segments. Invariant: ascending, the first is `start`.
        self.firsts: list[int] = []
        # Heads of the snapshots that are whole, oldest first, and why others are not.
        self.snapshots: list[SnapshotHead] = []
        self.snapshot_damage: list[str] = []
        # Position behind the last whole group. Invariant: all below was checked or will be.
        self.end = manifest.cut
        # What a crash left behind `end`, and why it is no group.
        self.torn_bytes = 0
        self.torn_reason = ""

    @classmethod
    def look(cls, files: Files, directory: str) -> Log | None:
        """Return the log as it stands now; None if no generation is complete.

        Raises CorruptLog, UnsupportedFormat, LogMoved.
        """
        failure: CorruptLog | None = None
        for _ in range(LOOKS_MAX):
            numbers = generation_numbers(files, directory)
            try:
                log = cls._highest(files, directory, numbers)
                if log is None:
                    if generation_numbers(files, directory) == numbers:
                        return None
                    continue
                log.survey()
            except FileNotFoundError:
                continue
            except CorruptLog as error:
                # A live owner that compacts between two of our looks shows what never was.
                if failure is not None and str(failure) == str(error):
                    raise
                failure = error
                continue
            return log
        raise failure or LogMoved(f"{directory} does not hold still")

    @classmethod
    def _highest(cls, files: Files, directory: str, numbers: list[int]) -> Log | None:
        for number in reversed(numbers):
            path = f"{directory}/gen-{number:020d}"
            try:
                manifest = documents.manifest(files, f"{path}/MANIFEST")
            except FileNotFoundError:
                if _holds_own_group(files, path, number):
                    reason = "the manifest is missing, but records exist"
                    raise CorruptLog(f"{path}/MANIFEST", 0, reason) from None
                continue
            if manifest.generation != number:
                reason = f"it belongs to generation {manifest.generation}"
                raise CorruptLog(f"{path}/MANIFEST", 0, reason)
            return cls(files, directory, number, manifest)
        return None

    # --- the look --------------------------------------------------------------------------------

    def survey(self) -> None:
        """Find segments, end and snapshots. Raises CorruptLog, FileNotFoundError."""
        manifest = self.manifest
        start = documents.start_position(self._files, f"{self.path}/START")
        names = self._files.list(self.path)
        self.start = max(manifest.start, start)
        self.firsts = [first for first in _numbers(_SEGMENT, names) if first >= self.start]
        promised = [pair for pair in manifest.segments if pair[0] >= self.start]
        for (first, length), (following, _) in pairwise(promised):
            if first + length != following:
                raise CorruptLog(f"{self.path}/MANIFEST", 0, "segments with a hole between them")
        wanted = {first for first, _ in promised} | ({self.start} if self.start else set())
        if not self.firsts and not manifest.segments and self.start == manifest.cut:
            wanted = set()  # a beginning without records
        missing = sorted(wanted - set(self.firsts))
        if missing:
            raise CorruptLog(self._segment_path(missing[0]), 0, "the segment is missing")
        if self.firsts and self.firsts[0] != self.start:
            raise CorruptLog(self._segment_path(self.start), 0, "the segment is missing")
        if self.firsts:
            self._find_end()
        self._read_snapshots(_numbers(_SNAPSHOT, names))
        if self.start and not any(head.position >= self.start for head in self.snapshots):
            reason = "; ".join(self.snapshot_damage) or "no snapshot"
            raise CorruptLog(self.path, 0, f"the log starts at {self.start}: {reason}")

    def _find_end(self) -> None:
        """Walk the last segment to its last whole group, and judge what lies behind."""
        first = self.firsts[-1]
        path = self._segment_path(first)
        file = self._files.open(path)
        try:
            try:
                head = self._head(file, first)
            except Bad as bad:
                attested = max([self.manifest.cut, *self._snapshot_positions()])
                if self._is_unborn(file, first) and attested <= first:
                    self.firsts.pop()
                    self.end = first
                    return
                raise CorruptLog(path, 0, bad.reason) from None
            walker = Walker(file, head, self._writers)
            attested = first
            bad_at = -1
            while True:
                try:
                    for group in walker.groups():
                        attested = max(attested, group.attested)
                except Bad as bad:
                    self.end, self.torn_reason = walker.position, bad.reason
                    self.torn_bytes = walker.nonzero_end() - self.end
                    if not self.torn_bytes or bad_at == self.end:
                        break  # a group that is just being written may look bad once
                    bad_at = self.end
                    walker.forget()
            attested = max(attested, self.manifest.cut, walker.attesting(self.end) or 0)
            attested = max([attested, *self._snapshot_positions()])
            if attested > self.end:
                at = self.end - first + SEGMENT_HEADER_BYTES
                reason = f"{self.torn_reason}; something attests all below {attested}"
                raise CorruptLog(path, at, reason)
        finally:
            file.close()

    def _snapshot_positions(self) -> list[int]:
        return _numbers(_SNAPSHOT, self._files.list(self.path))

    def _is_unborn(self, file: OpenFile, first: int) -> bool:
        """Tell whether the making of a last segment was cut short: nothing is in it yet."""
        listed = any(first == its for its, _ in self.manifest.segments)
        if listed or len(self.firsts) < 2:
            return False
        head = SegmentHead(self.log_id, self.generation, first, 0)
        return Walker(file, head).attesting(first - SEGMENT_HEADER_BYTES) is None

    def _read_snapshots(self, positions: list[int]) -> None:
        for position in positions:
            path = f"{self.path}/snap-{position:020d}.snapshot"
            try:
                head = documents.snapshot_head(self._files, path)
                if head.log_id != self.log_id or head.position != position:
                    raise CorruptLog(path, 0, "the snapshot belongs to another log or position")
                if position > self.end:
                    raise CorruptLog(path, 0, f"a snapshot ahead of the log's end at {self.end}")
                for part in head.parts:
                    documents.check_part(self._files, self.path, part)
            except (CorruptLog, FileNotFoundError) as error:
                self.snapshot_damage.append(str(error))
            else:
                self.snapshots.append(head)

    def snapshot_part(self, head: SnapshotHead, name: str) -> bytes:
        """Return the bytes of a part. Raises CorruptLog, LogMoved, KeyError."""
        part = {part.name: part for part in head.parts}[name]
        try:
            return documents.part_bytes(self._files, self.path, part)
        except FileNotFoundError:
            raise LogMoved(f"{self.path}/{part.file} is gone") from None

    # --- streaming -------------------------------------------------------------------------------

    def groups(self, position: int | None = None, end: int | None = None) -> Iterator[Group]:
        """Yield all groups from `position` (a group's beginning) to `end`.

        Groups of the segment that lie below `position` are read and checked too, but not told.
        Raises CorruptLog, LogMoved.
        """
        position = self.start if position is None else position
        end = self.end if end is None else end
        if not self.firsts or position >= end:
            return
        index = bisect_right(self.firsts, position) - 1
        chain: int | None = None
        stops = [*self.firsts[1:], max(end, self.end)]
        for first, stop in list(zip(self.firsts, stops, strict=True))[index:]:
            if first >= end:
                return
            path = self._segment_path(first)
            try:
                file = self._files.open(path)
            except FileNotFoundError:
                raise LogMoved(f"{path} is gone") from None
            try:
                head = self._checked_head(file, path, first, chain)
                self._check_cut(path, first, head.chain, first)
                walker = Walker(file, head, self._writers)
                for group in self._walk(walker, path, min(stop, end)):
                    self._check_cut(path, group.end, group.chain, first)
                    if group.first < self.manifest.cut < group.end:
                        raise CorruptLog(path, group.first - first, "no group ends at the cut")
                    if group.first >= position:
                        yield group
                self._check_filled(walker, first, path, stop)
            finally:
                file.close()
            chain = walker.chain

    def frame(self, position: int) -> Frame:
        """Return the record at a position that is known to be one's beginning.

        Raises CorruptLog, LogMoved.
        """
        first = self.firsts[bisect_right(self.firsts, position) - 1]
        path = self._segment_path(first)
        try:
            file = self._files.open(path)
        except FileNotFoundError:
            raise LogMoved(f"{path} is gone") from None
        try:
            return Walker(file, self._head(file, first)).frame(position)
        except Bad as bad:
            raise CorruptLog(path, position - first, bad.reason) from None
        finally:
            file.close()

    def _walk(self, walker: Walker, path: str, stop: int) -> Iterator[Group]:
        try:
            yield from walker.groups(stop)
        except Bad as bad:
            at = bad.position - self.firsts[bisect_right(self.firsts, bad.position) - 1]
            raise CorruptLog(path, at + SEGMENT_HEADER_BYTES, bad.reason) from None

    def _check_filled(self, walker: Walker, first: int, path: str, stop: int) -> None:
        """A sealed segment ends where the next one starts."""
        if stop == self.end or walker.position < stop:
            return
        at = stop - first + SEGMENT_HEADER_BYTES
        if walker.position > stop or walker.nonzero_end() > stop:
            raise CorruptLog(path, at, f"bytes behind position {stop}, where the next one starts")

    def _checked_head(
        self, file: OpenFile, path: str, first: int, chain: int | None
    ) -> SegmentHead:
        try:
            head = self._head(file, first)
        except Bad as bad:
            raise CorruptLog(path, 0, bad.reason) from None
        if chain is not None and head.chain != chain:
            raise CorruptLog(path, 0, "the segment does not follow from the one before it")
        return head

    def _head(self, file: OpenFile, first: int) -> SegmentHead:
        head = segment_head(file.read(0, SEGMENT_HEADER_BYTES))
        if head.log_id != self.log_id or head.first != first:
            raise Bad(first, f"the segment belongs to another log, or to position {head.first}")
        if head.generation > self.generation:
            raise Bad(first, f"the segment belongs to generation {head.generation}")
        return head

    def _check_cut(self, path: str, position: int, chain: int, first: int) -> None:
        """The branch that the manifest and the snapshots name is this one."""
        at = position - first + SEGMENT_HEADER_BYTES
        if position == self.manifest.cut and chain != self.manifest.chain:
            raise CorruptLog(path, at, "the records below the cut are not those of the manifest")
        for head in self.snapshots:
            if head.position == position and head.chain != chain:
                raise CorruptLog(path, at, f"the snapshot at {position} is of other records")

    @property
    def _writers(self) -> Writers:
        return Writers(self.generation, self.manifest.cut)

    def _segment_path(self, first: int) -> str:
        return f"{self.path}/{first:020d}.log"

    # --- afterwards ------------------------------------------------------------------------------

    def sync(self) -> None:
        """Make the last segment durable: a verdict on what was only cached would not last."""
        if not self.firsts:
            return
        with contextlib.suppress(FileNotFoundError):  # a successor has copied and synced it
            file = self._files.open(self._segment_path(self.firsts[-1]))
            try:
                file.sync()
            finally:
                file.close()

    def still_counts(self) -> bool:
        """Tell whether all below `end` is in the highest complete generation, for certain.

        Raises CorruptLog.
        """
        numbers = generation_numbers(self._files, self.directory)
        latest = self._highest(self._files, self.directory, numbers)
        if latest is None or latest.generation == self.generation:
            return latest is not None
        manifest = latest.manifest
        return manifest.parent == self.generation and manifest.cut >= self.end

    def being_replaced(self) -> bool:
        """Tell whether a live process is making a successor: it may leave part of this behind.

        What is read before the maker holds its lock is in what it takes.
        """
        for number in generation_numbers(self._files, self.directory):
            if number > self.generation:
                try:
                    lock = self._files.lock(f"{self.directory}/gen-{number:020d}/LOCK")
                except FileNotFoundError:
                    continue
                if lock is None:
                    return True
                lock.release()
        return False


def _holds_own_group(files: Files, path: str, number: int) -> bool:
    """Tell whether a generation without a manifest holds a group that it wrote itself."""
    for first in _numbers(_SEGMENT, files.list(path))[-2:]:
        file = files.open(f"{path}/{first:020d}.log")
        try:
            with contextlib.suppress(Bad):
                walker = Walker(file, segment_head(file.read(0, SEGMENT_HEADER_BYTES)))
                for group in walker.groups():
                    if group.generation == number:
                        return True
        finally:
            file.close()
    return False
