"""Walking over the groups of the last segment; the evidence about what lies behind the last one.

`view.py` judges it.

Theory of operation. A writer syncs a group before it writes the next one, so a crash tears at most
one group, and no peer knows of it. Everything older is *attested*: something was written after its
sync had returned (a later commit frame, a newer segment, a snapshot, a manifest). So the first bad
frame is a torn tail if nothing attests a position above it, and damage otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from zlib import crc32

from .disk import File
from .framing import (
    COMMIT,
    COMMIT_BYTES,
    COMMIT_META,
    HEADER_BYTES,
    SEGMENT_HEADER_BYTES,
    BadFrame,
    Commit,
    decode_commit,
    decode_header,
)

_ZEROS = bytes(64 * 1024)


@dataclass(frozen=True, slots=True)
class TailCut:
    """A torn tail that an opening left out: bytes of a group that no peer knows of."""

    path: str  # of the segment
    from_position: int  # the end of the last whole group
    to_position: int  # behind the last byte that is not zero
    reason: str  # what is wrong at `from_position`

    @property
    def nbytes(self) -> int:
        return self.to_position - self.from_position


@dataclass(frozen=True, slots=True)
class Place:
    """What frames of a log must agree with to count."""

    seed: int
    log_id: bytes
    generation: int  # the one whose files are read
    cut: int  # frames from here on are that generation's own, those below are older


@dataclass(frozen=True, slots=True)
class Tail:
    """The last segment as read.

    Invariant: `data[:SEGMENT_HEADER_BYTES + good - first]` is whole groups, all CRCs checked.
    """

    first: int
    data: bytes  # the whole file, with its header
    good: int  # position after the last whole group
    chain: int  # chain before `good`
    reason: str = ""  # why the walk ended

    def at(self, position: int) -> int:
        return position - self.first + SEGMENT_HEADER_BYTES

    def loose_end(self) -> int:
        """Return the position after the last byte that is not zero; at least `good`."""
        start, end = self.at(self.good), len(self.data)
        while self.data.endswith(_ZEROS, start, end):  # reserved room: compared, not walked over
            end -= len(_ZEROS)
        return self.good + len(self.data[start:end].rstrip(b"\0"))


def read_tail(file: File, first: int, chain: int, place: Place, known: Tail | None) -> Tail:
    """Read the last segment from its `file` and walk over its groups.

    `known` is an earlier reading of the same segment in the same generation: its whole groups are
    not read again, unless the owner took the last of them back because its sync failed.
    """
    length = file.length()
    if known is None or known.first != first or length < known.at(known.good):
        known = Tail(first, file.read(0, min(length, SEGMENT_HEADER_BYTES)), first, chain)
    whole = known.at(known.good)
    data = known.data[:whole] + file.read(whole, max(0, length - whole))
    return walk(replace(known, data=data), place)


def walk(tail: Tail, place: Place) -> Tail:
    """Advance `tail.good` over whole groups, checking every CRC and the chain."""
    view = memoryview(tail.data)
    position = good = tail.good
    chain = good_chain = tail.chain
    reason = ""
    shift = SEGMENT_HEADER_BYTES - tail.first
    try:
        while True:
            at = position + shift
            kind, length, meta_length, body_crc = decode_header(view, at, position, place.seed)
            end_at = at + HEADER_BYTES + length
            if end_at > len(view):
                raise BadFrame("the file ends inside a record")
            if crc32(view[at + HEADER_BYTES + meta_length : end_at]) != body_crc:
                raise BadFrame("wrong checksum of a record body")
            if kind == COMMIT:
                commit = decode_commit(view, at, position, place.seed)
                _check_commit(commit, good, chain, place)
            chain = crc32(view[at : at + HEADER_BYTES], chain)
            position = end_at - shift
            if kind == COMMIT:
                good, good_chain = position, chain
    except BadFrame as bad:
        reason = str(bad)
    return Tail(tail.first, tail.data, good, good_chain, reason)


def _check_commit(commit: Commit, first: int, chain: int, place: Place) -> None:
    if commit.first != first:
        raise BadFrame("a commit frame that closes another group")
    if commit.chain != chain:
        raise BadFrame("a commit frame that does not follow from the records before it")
    # Frames below the cut are of older generations, those above it of this one. Another mix means
    # that the file came from another branch of the log.
    own = commit.end >= place.cut
    if own != (commit.generation == place.generation) or commit.generation > place.generation:
        raise BadFrame(f"a commit frame of generation {commit.generation}")


def attesting_frame(tail: Tail, place: Place, above: int) -> Commit | None:
    """Return a valid commit frame behind the whole groups that attests a position over `above`.

    Frame boundaries behind a bad frame are unknown, so it searches for the log_id in every commit
    frame instead of walking.
    """
    view = memoryview(tail.data)
    hit = tail.data.find(place.log_id, tail.at(tail.good))
    while hit >= 0:
        at = hit - HEADER_BYTES
        if at >= SEGMENT_HEADER_BYTES and at + COMMIT_BYTES <= len(view):
            position = at - SEGMENT_HEADER_BYTES + tail.first
            commit = commit_or_none(view, at, position, place.seed)
            if commit is not None and commit.attested > above:
                return commit
        hit = tail.data.find(place.log_id, hit + 1)
    return None


def has_own_frame(data: bytes, log_id: bytes, generation: int, seed: int) -> bool:
    # log_id and generation lead the meta of a commit frame; its own position follows 32 bytes in.
    mark = COMMIT_META.pack(log_id, generation, 0, 0, 0, 0)[:24]
    end_in_frame = HEADER_BYTES + 32
    hit = data.find(mark)
    while hit >= 0:
        at = hit - HEADER_BYTES
        if at >= 0 and at + COMMIT_BYTES <= len(data):
            position = int.from_bytes(data[at + end_in_frame : at + end_in_frame + 8], "little")
            if commit_or_none(data, at, position, seed) is not None:
                return True
        hit = data.find(mark, hit + 1)
    return False


def commit_or_none(data: bytes | memoryview, at: int, position: int, seed: int) -> Commit | None:
    """Return the commit frame at `data[at:]`; None if the bytes are no frame of this place."""
    try:
        return decode_commit(data, at, position, seed)
    except BadFrame:
        return None
