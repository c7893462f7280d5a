"""One log directory: its highest complete generation, read up to the last whole commit frame.

    log = Log.look(files, directory)        where it stands now; all of it counts for good
    log.end                                 all below is whole groups
    for group in log.groups(position): ...  streamed, every checksum and the chain checked

Damage raises CorruptLog with file, offset and reason. A torn last group that nothing on disk
attests is no damage: `torn_bytes` says how much was left out.

Live processes may write, compact and take over meanwhile. Two orders keep a look exact, besides
that of `generation.py`:

  The end before the successor. A successor takes all that it finds once it holds its lock. So a
  look that synced its end, and finds no successor after that, will not lose any of it.

  Names, then files. A file that is gone, or damage in a directory that is no longer as it was
  listed, is no damage: the same records are read on in the newest generation, where the chain
  must go on. Only what a compaction took away raises LogMoved: look again.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ...errors import CorruptLog, OnceMQError
from . import document as documents
from .document import SnapshotHead
from .files import Files
from .frames import Frame, Group
from .generation import Generation, holds_own_group, numbers_in
from .kept import kept_frames, kept_range

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LOOKS_MAX = 100  # how often a look starts over while others replace what it reads
SUCCESSOR_WAIT_S = 5.0  # for a live process that makes a successor
_LOOK_AGAIN_S = 0.05

_GENERATION = re.compile(r"gen-([0-9]{20})\Z", re.ASCII)


class LogMoved(OnceMQError):
    """Files were replaced while they were read."""

    code = "log_moved"
    retriable = True
    default_hint = "run it again: the log was compacted or taken over meanwhile"


def generation_numbers(files: Files, directory: str) -> list[int]:
    """Return the numbers of all generations, complete or not; [] where there is no log."""
    try:
        return numbers_in(files.list(directory), _GENERATION)
    except FileNotFoundError:
        return []


class Log(Generation):
    """The highest complete generation of a log, of which no successor will lose anything."""

    @classmethod
    def look(cls, files: Files, directory: str) -> Log | None:
        """Return the log as it stands now; None if no generation is complete.

        Raises CorruptLog, UnsupportedFormat; LogMoved while others replace it all the time.
        """
        place: tuple[str, int] | None = None
        for _ in range(LOOKS_MAX):
            numbers = generation_numbers(files, directory)
            try:
                log = cls._highest(files, directory, numbers)
                if log is None:
                    if generation_numbers(files, directory) == numbers:
                        return None
                    continue
                log.survey()
                log.sync()
                log.wait_for_successor()
                if log.still_counts():
                    return log
            except FileNotFoundError:
                continue
            except CorruptLog as error:
                # Names that come and go between two reads show a generation that never was. They
                # do not come and go in the same way twice; damage stays where it is.
                if place == (error.path, error.offset):
                    raise
                place = (error.path, error.offset)
        raise LogMoved(f"{directory} does not hold still")

    @classmethod
    def _highest(cls, files: Files, directory: str, numbers: list[int]) -> Log | None:
        for number in reversed(numbers):
            path = f"{directory}/gen-{number:020d}"
            manifest = documents.manifest_or_none(files, f"{path}/MANIFEST")
            if manifest is None and holds_own_group(files, path, number):
                # Its maker writes the manifest before the first record.
                manifest = documents.manifest_or_none(files, f"{path}/MANIFEST")
                if manifest is None:
                    reason = "the manifest is missing, but records exist"
                    raise CorruptLog(f"{path}/MANIFEST", 0, reason)
            if manifest is None:
                continue
            if manifest.generation != number:
                reason = f"it belongs to generation {manifest.generation}"
                raise CorruptLog(f"{path}/MANIFEST", 0, reason)
            return cls(files, directory, number, manifest)
        return None

    # --- records ---------------------------------------------------------------------------------

    def groups(self, position: int | None = None, end: int | None = None) -> Iterator[Group]:
        """Yield all groups from `position` (a group's beginning) to `end`.

        Groups of the segment that lie below `position` are read and checked too, but not told.
        Raises CorruptLog, LogMoved.
        """
        generation: Generation = self
        chain: int | None = None
        position = self.start if position is None else position
        end = self.end if end is None else end
        for _ in range(LOOKS_MAX):
            try:
                for group in generation.stream(position, end):
                    yield group
                    position, chain = group.end, group.chain
            except FileNotFoundError:
                generation = self._newer(position, end, chain)
            except CorruptLog:
                if generation.is_as_listed():
                    raise
                generation = self._newer(position, end, chain)
            else:
                return
        raise LogMoved(f"{self.directory} does not hold still")

    def frames_before(self, head: SnapshotHead) -> Iterator[Frame]:
        """Yield the records that are left below a snapshot: in its kept parts, then in the log.

        Raises CorruptLog, LogMoved.
        """
        kept_end = 0
        for start, end, part in self._kept(head):
            path = f"{self.path}/{part.file}"
            try:
                yield from kept_frames(self._files, path, self.log_id)
            except FileNotFoundError:
                raise LogMoved(f"{path} is gone") from None
            if start < kept_end:
                raise CorruptLog(path, 0, "a kept part that overlaps the one before it")
            kept_end = end
        for group in self.groups(self.start, head.position):
            yield from (frame for frame in group.frames if frame.position >= kept_end)

    @staticmethod
    def _kept(head: SnapshotHead) -> list[tuple[int, int, documents.Part]]:
        found = ((kept_range(part.name), part) for part in head.parts)
        return sorted((*stretch, part) for stretch, part in found if stretch is not None)

    def frame(self, position: int) -> Frame:
        """Return the record at a position that is known to be one's beginning.

        Raises CorruptLog, LogMoved.
        """
        generation: Generation = self
        for _ in range(LOOKS_MAX):
            try:
                if position < generation.start:
                    return self._kept_frame(position)
                return generation.frame_at(position)
            except FileNotFoundError:
                generation = self._newer(position, self.end, None)
        raise LogMoved(f"{self.directory} does not hold still")

    def _kept_frame(self, position: int) -> Frame:
        """Raises CorruptLog, LogMoved."""
        head = next(head for head in self.snapshots if head.position >= self.start)
        frames = (frame for frame in self.frames_before(head) if frame.position == position)
        found = next(frames, None)
        if found is None:
            raise LogMoved(f"no kept part has the record at {position}")
        return found

    def snapshot_part(self, head: SnapshotHead, name: str) -> bytes:
        """Raises CorruptLog, LogMoved, KeyError."""
        part = {part.name: part for part in head.parts}[name]
        try:
            return documents.part_bytes(self._files, self.path, part)
        except FileNotFoundError:
            raise LogMoved(f"{self.path}/{part.file} is gone") from None

    def run(self, part: documents.Part, width: int, mark: bytes) -> Iterator[NDArray[np.uint64]]:
        """Yield what a file of explicit ids holds (run.py). Raises CorruptLog, LogMoved."""
        # numpy is loaded where there are explicit ids only
        from .run import read_run

        path = f"{self.path}/{part.file}"
        try:
            yield from read_run(self._files, path, width, mark)
        except FileNotFoundError:
            raise LogMoved(f"{path} is gone") from None

    def _newer(self, position: int, end: int, chain: int | None) -> Log:
        """Return where the records of [position, end) lie now. Raises CorruptLog, LogMoved."""
        log = Log.look(self._files, self.directory)
        if log is None or log.log_id != self.log_id or log.start > position or log.end < end:
            raise LogMoved(f"what was read in {self.path} is gone")
        if chain is not None:
            log.expect(position, chain, "what was read before")
        return log

    # --- successors ------------------------------------------------------------------------------

    def wait_for_successor(self) -> None:
        """Wait until no live process makes a successor. Raises LogMoved if that takes long."""
        deadline = time.monotonic() + SUCCESSOR_WAIT_S
        while self.being_replaced():
            if time.monotonic() > deadline:
                raise LogMoved(f"a successor of {self.path} is being made")
            time.sleep(_LOOK_AGAIN_S)

    def being_replaced(self) -> bool:
        """Tell whether a live process is making a successor: it may leave part of this behind.

        What is read before the maker holds its lock is in what it takes. It holds the lock on when
        the successor is complete: what that took is known then.
        """
        for number in generation_numbers(self._files, self.directory):
            if number > self.generation:
                path = f"{self.directory}/gen-{number:020d}"
                try:
                    lock = self._files.lock(f"{path}/LOCK")
                except FileNotFoundError:
                    continue
                if lock is not None:
                    lock.release()
                elif documents.manifest_or_none(self._files, f"{path}/MANIFEST") is None:
                    return True
        return False

    def still_counts(self) -> bool:
        """Tell whether all below `end` is in the highest complete generation, for certain.

        Raises CorruptLog, FileNotFoundError.
        """
        numbers = generation_numbers(self._files, self.directory)
        latest = self._highest(self._files, self.directory, numbers)
        if latest is None or latest.generation == self.generation:
            return latest is not None
        manifest = latest.manifest
        return manifest.parent == self.generation and manifest.cut >= self.end
