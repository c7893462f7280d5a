"""Reading one generation: its manifest, its segments, where its last whole group ends.

And whether what lies behind is a torn tail or damage (`scan.py` gathers the evidence).

Recovery, readers and the inspector all read through this file, so they all give the same verdict.
No file is changed.
"""

from __future__ import annotations

import contextlib
import posixpath
from dataclasses import dataclass, field
from itertools import pairwise
from zlib import crc32

from ..errors import CorruptLog, StorageError
from . import document, layout
from .disk import Disk, File
from .document import Manifest
from .framing import (
    COMMIT_BYTES,
    HEADER_BYTES,
    SEGMENT_HEADER_BYTES,
    BadFrame,
    SegmentHeader,
    decode_commit,
    decode_segment_header,
    log_seed,
)
from .scan import Place, Tail, TailCut, attesting_frame, commit_or_none, has_own_frame, read_tail

# How often a reader starts over while live owners replace what it reads. Each round that fails
# means that an owner made progress; a bound turns a bug into an error instead of a hang.
LOOKS_MAX = 1000


@dataclass(slots=True)
class View:
    """A complete generation as read at one moment."""

    path: str  # directory of the generation
    manifest: Manifest
    start: int  # position at which the log starts: what lay below was discarded
    firsts: list[int]  # first positions of the segments from `start` on; [] before the first one
    snapshots: list[int]  # positions named by snapshot files, ascending
    end: int = 0  # position after the last whole group
    chain: int = 0  # chain before `end`
    tail: Tail | None = None  # the last segment as read; None: there is no segment
    tail_is_new: bool = False  # the last segment has no usable header: a crash cut its making short
    cut: TailCut | None = None  # bytes behind `end` that an opening leaves out
    sealed: dict[int, int] = field(default_factory=dict)  # checked segment -> chain behind it
    # Damaged snapshots of the parent, left behind.
    snapshot_damage: list[CorruptLog] = field(default_factory=list)

    @property
    def place(self) -> Place:
        """What frames of this generation must agree with."""
        manifest = self.manifest
        return Place(log_seed(manifest.log_id), manifest.log_id, manifest.generation, manifest.cut)

    def segment(self, first: int) -> str:
        return posixpath.join(self.path, layout.segment_name(first))


def highest_complete(disk: Disk, directory: str) -> tuple[int | None, list[int]]:
    """Return (number of the highest complete generation, all numbers).

    A generation without a manifest is unfinished, and passed over, if it holds no frame of its
    own; frames without a manifest are damage: falling back to an older generation would lose them.
    Raises CorruptLog.
    """
    nothing: list[int] | None = None  # numbers of the last look, in which none was complete
    for _ in range(LOOKS_MAX):
        numbers = layout.generations(disk, directory)
        try:
            for number in reversed(numbers):
                path = posixpath.join(directory, layout.generation_name(number))
                manifest = posixpath.join(path, layout.MANIFEST)
                if disk.exists(manifest):
                    return number, numbers
                if _holds_own_frame(disk, path, number) and not disk.exists(manifest):
                    raise CorruptLog(manifest, 0, "the manifest is missing, but records exist")
        except FileNotFoundError:
            continue
        if not numbers or numbers == nothing:
            _refuse_orphans(disk, directory, numbers)
            return None, numbers
        nothing = numbers  # a generation may become complete, and delete another, during a look
    raise CorruptLog(directory, 0, "generations come and go without end")


def _refuse_orphans(disk: Disk, directory: str, numbers: list[int]) -> None:
    """Raise CorruptLog if there are segments although no generation is complete.

    A first generation begins without segments, and a later one is made beside its complete parent.
    Raises StorageError where a restore was cut short: what it has not copied yet must not begin anew.
    """
    if disk.exists(posixpath.join(directory, layout.RESTORING)):
        raise StorageError(
            f"a restore into {directory} did not finish",
            hint="delete the directory and restore again",
        )
    for number in reversed(numbers):
        path = posixpath.join(directory, layout.generation_name(number))
        with contextlib.suppress(FileNotFoundError):
            if layout.segments_in(disk.list(path)):
                manifest = posixpath.join(path, layout.MANIFEST)
                raise CorruptLog(manifest, 0, "the manifest is missing, but segments exist")


def _holds_own_frame(disk: Disk, path: str, number: int) -> bool:
    """Look at the two last segments: own frames come behind all that was taken over.

    Two, because the last one may have been created and not written to yet.
    """
    firsts = layout.segments_in(disk.list(path))
    heads = [_raw_header(disk, posixpath.join(path, layout.segment_name(f))) for f in firsts]
    for log_id in sorted({head.log_id for head in heads if head is not None}):
        for first in firsts[-2:]:
            segment = posixpath.join(path, layout.segment_name(first))
            with contextlib.closing(disk.open(segment)) as file:
                data = file.read(0, file.length())
            if has_own_frame(data, log_id, number, log_seed(log_id)):
                return True
    return False


def _raw_header(disk: Disk, path: str) -> SegmentHeader | None:
    file = disk.open(path)
    try:
        return decode_segment_header(file.read(0, SEGMENT_HEADER_BYTES))
    except BadFrame:
        return None
    finally:
        file.close()


def read_latest(disk: Disk, directory: str, known: View | None = None) -> View | None:
    """Read the highest complete generation; None if there is none. Raises CorruptLog.

    It looks again when a live owner or a successor deletes a file meanwhile. A group that is being
    written may look damaged before it looks whole, so damage counts only when two looks in a row
    find it at the same place.
    """
    damage: tuple[str, int] | None = None
    for _ in range(LOOKS_MAX):
        number, _numbers = highest_complete(disk, directory)
        if number is None:
            return None
        path = posixpath.join(directory, layout.generation_name(number))
        try:
            return read_view(disk, path, number, known)
        except FileNotFoundError:
            damage = None
        except CorruptLog as error:
            again = damage == (error.path, error.offset)
            if again and highest_complete(disk, directory)[0] == number:
                raise
            damage = (error.path, error.offset)
        known = None
    raise CorruptLog(directory, 0, "a listed file is missing")


def read_view(disk: Disk, path: str, number: int, known: View | None = None) -> View:
    """Read generation `number` in `path`. Raises CorruptLog, FileNotFoundError.

    `known` is an earlier view of the same generation: what it has checked is not read again. So
    step 3 of recovery, in which clients wait, reads only what came since step 1.
    """
    manifest_path = posixpath.join(path, layout.MANIFEST)
    manifest = Manifest.decode(layout.read_file(disk, manifest_path), manifest_path)
    if manifest.generation != number:
        raise CorruptLog(
            manifest_path, 0, f"it belongs to generation {manifest.generation}, not {number}"
        )
    start = max(manifest.start, _read_start(disk, path))
    while True:  # a discard between the two would hide the snapshot that stands for the start
        names = disk.list(path)
        later = max(manifest.start, _read_start(disk, path))
        if later == start:
            break
        start = later
    firsts = [first for first in layout.segments_in(names) if first >= start]
    view = View(path, manifest, start, firsts, layout.snapshots_in(names))
    if known is not None and known.path != path:
        known = None
    _check_listed(view)
    if not firsts:
        view.end, view.chain = manifest.cut, manifest.chain
    else:
        if known is not None:  # where a segment ends may have changed: see the writer's failed roll
            pairs = set(pairwise(firsts))
            same = [first for first, after in pairwise(known.firsts) if (first, after) in pairs]
            view.sealed = {first: known.sealed[first] for first in same}
        before = None
        for first, successor in pairwise(firsts):
            if first not in view.sealed:
                view.sealed[first] = _check_sealed(disk, view, first, successor, before)
            before = view.sealed[first]
        _read_last(disk, view, None if known is None or known.tail_is_new else known.tail)
    _check_cut(disk, view)
    return view


def _read_start(disk: Disk, path: str) -> int:
    path = posixpath.join(path, layout.START)
    try:
        data = layout.read_file(disk, path)
    except FileNotFoundError:
        return 0
    start = document.decode("start", data, path).get("start")
    if not isinstance(start, int):
        raise CorruptLog(path, 0, "no start position")
    return start


def _check_listed(view: View) -> None:
    """Raise CorruptLog unless every segment of the manifest, and the first one, is there."""
    manifest = view.manifest
    if not view.firsts and not manifest.segments and view.start == manifest.cut:
        return  # a beginning without records: empty, or with a snapshot that stands for some
    promised = [(f, n) for f, n in view.manifest.segments if f >= view.start]
    present = set(view.firsts)
    for first in [f for f, _ in promised] + ([view.start] if view.firsts or view.start else []):
        if first not in present:
            raise CorruptLog(view.segment(first), 0, "the segment is missing")
    after = dict(pairwise(view.firsts))
    for (first, length), (following, _) in pairwise(promised):
        if first + length != following or after[first] != following:
            raise CorruptLog(view.segment(first), 0, "segments that do not follow each other")


def read_header(file: File, view: View, first: int) -> SegmentHeader:
    """Raises BadFrame."""
    header = decode_segment_header(file.read(0, SEGMENT_HEADER_BYTES))
    if header.log_id != view.manifest.log_id:
        raise BadFrame("the segment belongs to another log")
    if header.first != first or header.generation > view.manifest.generation:
        raise BadFrame(
            f"the segment belongs to position {header.first} of generation {header.generation}"
        )
    return header


def _check_sealed(disk: Disk, view: View, first: int, successor: int, before: int | None) -> int:
    """Check both ends of a sealed segment; return the chain behind it.

    What lies between is checked when it is read: an opening must not read the whole log.
    """
    path = view.segment(first)
    file = disk.open(path)
    at = 0
    try:
        header = read_header(file, view, first)
        at = SEGMENT_HEADER_BYTES + successor - first
        length = file.length()
        if length < at:
            at = length
            raise BadFrame(f"the file ends before position {successor}, where the next one starts")
        frame_at = at - COMMIT_BYTES
        if frame_at < SEGMENT_HEADER_BYTES:
            raise BadFrame("a sealed segment without a commit frame")
        at = frame_at
        frame = file.read(frame_at, COMMIT_BYTES)
        commit = decode_commit(frame, 0, successor - COMMIT_BYTES, view.place.seed)
        at += COMMIT_BYTES
        if file.read(at, length - at).strip(b"\0"):
            raise BadFrame(f"bytes behind position {successor}, where the next one starts")
    except BadFrame as bad:
        raise CorruptLog(path, at, str(bad)) from None
    finally:
        file.close()
    if before is not None and before != header.chain:
        raise CorruptLog(path, 0, "the segment does not follow from the one before it")
    return crc32(frame[:HEADER_BYTES], commit.chain)


def _read_last(disk: Disk, view: View, known: Tail | None) -> None:
    """Read the last segment and judge what lies behind its last whole group."""
    first = view.firsts[-1]
    path = view.segment(first)
    before = view.sealed.get(view.firsts[-2]) if len(view.firsts) > 1 else None
    with contextlib.closing(disk.open(path)) as file:
        try:
            header = read_header(file, view, first)
        except BadFrame as bad:
            header = _unfinished_header(file, view, first, before, bad)
            view.tail_is_new = header.generation == 0
        if before is not None and header.chain != before:
            raise CorruptLog(path, 0, "the segment does not follow from the one before it")
        if view.tail_is_new:
            tail = Tail(first, b"", first, header.chain)
        else:
            tail = read_tail(file, first, header.chain, view.place, known)
        view.tail = tail
    view.end, view.chain = tail.good, tail.chain
    _judge(view, tail, path)


def _unfinished_header(
    file: File, view: View, first: int, before: int | None, bad: BadFrame
) -> SegmentHeader:
    """Tell a segment whose making a crash cut short from one with a damaged header.

    The header is synced before anything is written behind it, so zeros behind a bad header mean
    that the segment was never used. Returns the header that it would have, with generation 0. A
    live owner may be writing the header now, so it is read again after all the rest: only if it is
    bad even then, there was no rest.
    """
    path = view.segment(first)
    data = file.read(0, file.length())
    with contextlib.suppress(BadFrame):
        return read_header(file, view, first)
    listed = any(first == f for f, _ in view.manifest.segments)
    if listed or before is None or data[SEGMENT_HEADER_BYTES:].strip(b"\0"):
        raise CorruptLog(path, 0, str(bad)) from None
    return SegmentHeader(view.manifest.log_id, 0, first, before)


def _judge(view: View, tail: Tail, path: str) -> None:
    """Decide between torn tail and damage (theory in scan.py).

    Sets `view.cut`, or raises CorruptLog naming what attests a position above the last whole group.
    """
    good = tail.good
    witness = ""
    if view.manifest.cut > good:
        witness = f"the manifest attests all below {view.manifest.cut}"
    elif view.snapshots and view.snapshots[-1] > good:
        witness = f"a snapshot attests all below {view.snapshots[-1]}"
    else:
        frame = attesting_frame(tail, view.place, good)
        if frame is not None:
            witness = f"the frame at {frame.end} attests all below {frame.attested}"
    if witness:
        raise CorruptLog(path, tail.at(good), f"{tail.reason}; {witness}")
    loose = tail.loose_end()
    if loose > good and not view.tail_is_new:
        view.cut = TailCut(path, good, loose, tail.reason)


def _check_cut(disk: Disk, view: View) -> None:
    """Raise CorruptLog unless the records below the cut are those that the manifest names.

    Two owners may have written different records at the same positions; only the chain tells them
    apart.
    """
    manifest = view.manifest
    if not view.firsts:
        if view.snapshots and view.snapshots[-1] > view.end:
            raise CorruptLog(view.path, 0, "a snapshot of records that are missing")
        return
    if manifest.cut <= view.start and manifest.cut not in view.firsts:
        return  # all of it was discarded
    try:
        chain = chain_before(disk, view, manifest.cut)
    except BadFrame as bad:
        path, at = locate(view, manifest.cut)
        raise CorruptLog(path, at, f"no group ends at the cut: {bad}") from None
    if chain != manifest.chain:
        path, at = locate(view, manifest.cut)
        raise CorruptLog(path, at, "the records below the cut are not those of the manifest")


def locate(view: View, position: int) -> tuple[str, int]:
    """Return (path, offset in the file) of a position; the start of a segment is in that segment."""
    first = max((f for f in view.firsts if f <= position), default=view.start)
    return view.segment(first), position - first + SEGMENT_HEADER_BYTES


def chain_before(disk: Disk, view: View, position: int) -> int:
    """Return the chain before a position where a group, or the records of a group, end.

    Raises BadFrame anywhere else.
    """
    if position == view.end:
        return view.chain
    path, at = locate(view, position)
    with contextlib.closing(disk.open(path)) as file:
        if at == SEGMENT_HEADER_BYTES:
            return decode_segment_header(file.read(0, SEGMENT_HEADER_BYTES)).chain
        seed = view.place.seed
        frame = file.read(max(at - COMMIT_BYTES, 0), COMMIT_BYTES)
        closing = commit_or_none(frame, 0, position - COMMIT_BYTES, seed)
        if closing is not None:
            return crc32(frame[:HEADER_BYTES], closing.chain)
        return decode_commit(file.read(at, COMMIT_BYTES), 0, position, seed).chain


def known_chain(disk: Disk, view: View, position: int) -> int | None:
    """Return the chain before `position`; None where no group ends there."""
    try:
        return chain_before(disk, view, position)
    except BadFrame:
        return None
