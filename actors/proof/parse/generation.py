"""One generation of a log: its segments, where its last whole group ends, and its records.

What stands here reads at one moment and believes what it reads: FileNotFoundError and CorruptLog
come out as they are. `log.py` knows whether they are damage or the work of a live process.

Evidence comes before bytes. A position is attested after the bytes below it were synced. So a
reader that first notes what is attested, and reads the bytes after that, must find all of them. A
reader that reads the bytes first sees attestations of what came later, and takes them for damage.
"""

from __future__ import annotations

import contextlib
import re
from bisect import bisect_right
from collections.abc import Iterator
from itertools import pairwise

from ...errors import CorruptLog
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

_SEGMENT = re.compile(r"([0-9]{20})\.log\Z", re.ASCII)
_SNAPSHOT = re.compile(r"snap-([0-9]{20})\.snapshot\Z", re.ASCII)


def numbers_in(names: list[str], pattern: re.Pattern[str]) -> list[int]:
    return sorted(int(match[1]) for name in names if (match := pattern.match(name)))


class Generation:
    """A complete generation, as seen at one moment."""

    def __init__(self, files: Files, directory: str, number: int, manifest: Manifest) -> None:
        """Call `survey` next."""
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
        # The chain at positions where it is known from elsewhere, and what says so.
        self._chains = {manifest.cut: [(manifest.chain, "the manifest")]}

    def survey(self) -> None:
        """Find segments, end and snapshots. Raises CorruptLog, FileNotFoundError."""
        manifest = self.manifest
        names = self._names()
        self.firsts = [first for first in numbers_in(names, _SEGMENT) if first >= self.start]
        positions = numbers_in(names, _SNAPSHOT)
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
            self._find_end(max([manifest.cut, *positions]))
        self._read_snapshots(positions)
        if self.start and not any(head.position >= self.start for head in self.snapshots):
            reason = "; ".join(self.snapshot_damage) or "no snapshot"
            raise CorruptLog(self.path, 0, f"the log starts at {self.start}: {reason}")

    def _names(self) -> list[str]:
        """Return the names in the generation, as they were while the log had one start."""
        while True:
            self.start = self._start()
            names = self._files.list(self.path)
            # A compaction between the two takes away the old start, or what stands for the new.
            if self._start() == self.start:
                return names

    def _start(self) -> int:
        return max(self.manifest.start, documents.start_position(self._files, f"{self.path}/START"))

    def _find_end(self, attested: int) -> None:
        """Walk the last segment to its last whole group, and judge what lies behind.

        `attested` was noted before any byte of the segment is read.
        """
        first = self.firsts[-1]
        path = self._segment_path(first)
        with contextlib.closing(self._files.open(path)) as file:
            head = self._last_head(file, first, attested)
            if head is None:
                self.firsts.pop()
                self.end = first
                return
            walker = Walker(file, head, self._writers)
            reason = walker.to_the_end()
            end = walker.position
            loose, seen = walker.beyond(end)
            if loose > end:
                walker.forget()  # what was read before it was attested proves nothing
                reason = walker.to_the_end()
            if walker.position == end:
                self.torn_bytes, self.torn_reason = loose - end, reason
            self.end = walker.position
            attested = max(attested, seen)
            if attested > self.end:
                at = self.end - first + SEGMENT_HEADER_BYTES
                raise CorruptLog(path, at, f"{reason}; something attests all below {attested}")

    def _last_head(self, file: OpenFile, first: int, attested: int) -> SegmentHead | None:
        """Return the head of the last segment; None if its making was cut short.

        Then nothing is in it yet. Raises CorruptLog.
        """
        with contextlib.suppress(Bad):
            return self._head(file, first)
        whole = Walker(file, SegmentHead(self.log_id, self.generation, first, 0))
        _, seen = whole.beyond(first - SEGMENT_HEADER_BYTES)
        try:
            return self._head(file, first)  # a live owner was just writing it
        except Bad as bad:
            listed = any(first == its for its, _ in self.manifest.segments)
            if listed or len(self.firsts) < 2 or seen or attested > first:
                raise CorruptLog(self._segment_path(first), 0, bad.reason) from None
            return None

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
                if not self._is_listed(path):
                    continue  # its owner has replaced it
                self.snapshot_damage.append(str(error))
            else:
                self.snapshots.append(head)
                self.expect(position, head.chain, f"the snapshot at {position}")

    def _is_listed(self, path: str) -> bool:
        directory, _, name = path.rpartition("/")
        return name in self._files.list(directory)

    # --- records ---------------------------------------------------------------------------------

    def stream(self, position: int, end: int) -> Iterator[Group]:
        """Yield all groups from `position` (a group's beginning) to `end`.

        Groups of the segment that lie below `position` are read and checked too, but not told.
        Raises CorruptLog, FileNotFoundError.
        """
        if not self.firsts or position >= end:
            return
        index = bisect_right(self.firsts, position) - 1
        chain: int | None = None
        stops = [*self.firsts[1:], max(end, self.end)]
        for first, stop in list(zip(self.firsts, stops, strict=True))[index:]:
            if first >= end:
                return
            path = self._segment_path(first)
            with contextlib.closing(self._files.open(path)) as file:
                head = self._checked_head(file, path, first, chain)
                self._check_chain(path, first, head.chain, first)
                walker = Walker(file, head, self._writers)
                for group in self._walk(walker, path, min(stop, end)):
                    self._check_chain(path, group.end, group.chain, first)
                    if group.first < self.manifest.cut < group.end:
                        raise CorruptLog(path, group.first - first, "no group ends at the cut")
                    if group.first >= position:
                        yield group
                self._check_filled(walker, first, path, stop)
            chain = walker.chain

    def frame_at(self, position: int) -> Frame:
        """Return the record at a position that is known to be one's beginning.

        Raises CorruptLog, FileNotFoundError.
        """
        first = self.firsts[bisect_right(self.firsts, position) - 1]
        path = self._segment_path(first)
        file = self._files.open(path)
        try:
            return Walker(file, self._head(file, first)).frame(position)
        except Bad as bad:
            raise CorruptLog(path, position - first, bad.reason) from None
        finally:
            file.close()

    def expect(self, position: int, chain: int, source: str) -> None:
        """Have records that `source` knows otherwise be damage: the chain at `position` is known."""
        self._chains.setdefault(position, []).append((chain, source))

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
        if walker.position > stop or walker.beyond(stop)[0] > stop:
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

    def _check_chain(self, path: str, position: int, chain: int, first: int) -> None:
        """The branch that manifest, snapshots and what was read before name is this one."""
        for known, source in self._chains.get(position, ()):
            if known == chain:
                continue
            at = position - first + SEGMENT_HEADER_BYTES
            raise CorruptLog(path, at, f"the records below {position} are not those of {source}")

    @property
    def _writers(self) -> Writers:
        return Writers(self.generation, self.manifest.cut)

    def _segment_path(self, first: int) -> str:
        return f"{self.path}/{first:020d}.log"

    def is_as_listed(self) -> bool:
        try:
            return set(self.firsts) <= set(numbers_in(self._files.list(self.path), _SEGMENT))
        except FileNotFoundError:
            return False

    def sync(self) -> None:
        """Make the last segment durable: a verdict on what was only cached would not last."""
        if not self.firsts:
            return
        with (
            contextlib.suppress(FileNotFoundError),  # a successor has copied and synced it
            contextlib.closing(self._files.open(self._segment_path(self.firsts[-1]))) as file,
        ):
            file.sync()


def holds_own_group(files: Files, path: str, number: int) -> bool:
    """Tell whether a generation without a manifest holds a group that it wrote itself."""
    for first in numbers_in(files.list(path), _SEGMENT)[-2:]:
        segment = f"{path}/{first:020d}.log"
        with contextlib.closing(files.open(segment)) as file, contextlib.suppress(Bad):
            walker = Walker(file, segment_head(file.read(0, SEGMENT_HEADER_BYTES)))
            for group in walker.groups():
                if group.generation == number:
                    return True
    return False
