"""From fetched batches to the messages for a handler: place first, then the skip rule.

Theory of operation. A fetch reply starts with the stored batch that *contains* the requested
offset, because batches are kept as they arrived. `cut` passes over messages below the expected
offset and refuses a reply that starts above it: messages in between would be lost. `leave_out_known`
then removes messages that the processed set knows, and later copies of an id inside the same window.
It runs right before the handler, when all earlier windows are committed.

A piece is a part of one stored batch; its columns are `range`s unless a message was left out, and
fingerprints lie one behind the other in one piece of memory, so a usual batch costs a few calls and
no Python statement for each message.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import compress

from ...records import BatchStored, Committed
from .processed import FINGERPRINT_BYTES, Processed

Fingerprint = Callable[[list[bytes]], bytes]


@dataclass(frozen=True, slots=True)
class Piece:
    """Messages of one stored batch: `indices` in the batch and `offsets` in the partition."""

    stored: BatchStored
    indices: Sequence[int]
    offsets: Sequence[int]
    fingerprints: bytes | None = None  # of explicit ids, beside `indices`

    def part(self, start: int, end: int) -> Piece:
        return Piece(
            self.stored,
            self.indices[start:end],
            self.offsets[start:end],
            self._fingerprints(start, end),
        )

    def only(self, keep: Sequence[int]) -> Piece:
        """Return the messages for which `keep` has no 0."""
        if all(keep):
            return self
        prints = None
        if self.fingerprints is not None:
            chosen = compress(range(len(self.indices)), keep)
            prints = b"".join(self._fingerprints(at, at + 1) or b"" for at in chosen)
        return Piece(
            self.stored,
            list(compress(self.indices, keep)),
            list(compress(self.offsets, keep)),
            prints,
        )

    def _fingerprints(self, start: int, end: int) -> bytes | None:
        if self.fingerprints is None:
            return None
        return self.fingerprints[start * FINGERPRINT_BYTES : end * FINGERPRINT_BYTES]


@dataclass(frozen=True, slots=True)
class Window:
    """Messages of one fetch reply, from `first_offset` on, all below `next_offset`."""

    first_offset: int
    next_offset: int
    pieces: list[Piece]

    @property
    def count(self) -> int:
        return sum(len(piece.indices) for piece in self.pieces)

    def offset_of(self, number: int) -> int:
        """Return the offset of message `number`; the next offset for a number behind the last."""
        for piece in self.pieces:
            if number < len(piece.offsets):
                return piece.offsets[number]
            number -= len(piece.offsets)
        return self.next_offset

    def split(self, number: int) -> tuple[Window, Window]:
        """Return the first `number` messages, and the rest.

        Offsets left out in front of a message go with that message, or with the rest.
        """
        head: list[Piece] = []
        tail: list[Piece] = []
        middle = self.offset_of(number) if number else self.first_offset
        for piece in self.pieces:
            size = len(piece.indices)
            taken = max(0, min(number, size))
            if taken:
                head.append(piece if taken == size else piece.part(0, taken))
            if taken < size:
                tail.append(piece if taken == 0 else piece.part(taken, size))
            number -= size
        return Window(self.first_offset, middle, head), Window(middle, self.next_offset, tail)


def cut(stored: list[BatchStored], expected: int, next_offset: int) -> Window | None:
    """Return the messages from `expected` on, or None for a gap: then fetch again.

    A gap is a first offset above the expected one, a hole between two batches, or batches that end
    elsewhere than the reply says.
    """
    pieces: list[Piece] = []
    at = expected
    for record in stored:
        end = record.first_offset + record.kept
        if end <= at:
            continue
        if record.first_offset > at:
            return None
        indices = kept_indices(record)
        if len(indices) != record.kept:
            return None
        below = at - record.first_offset
        offsets = range(at, end)
        pieces.append(Piece(record, indices[below:] if below else indices, offsets))
        at = end
    if at != max(next_offset, expected):
        return None
    return Window(expected, at, pieces)


def kept_indices(record: BatchStored) -> Sequence[int]:
    """Return the indices of the messages that have offsets: all but masked duplicates."""
    if not record.mask:
        return range(record.count)
    bits = int.from_bytes(record.mask, "little")
    return [index for index in range(record.count) if bits >> index & 1]


def with_fingerprints(window: Window, fingerprint: Fingerprint) -> Window:
    pieces = []
    for piece in window.pieces:
        batch = piece.stored.batch
        assert batch is not None, "fetched batches come parsed"
        if batch.ids is not None:
            ids = batch.ids
            whole = len(piece.indices) == len(ids)
            chosen = ids if whole else [ids[index] for index in piece.indices]
            piece = replace(piece, fingerprints=fingerprint(chosen))
        pieces.append(piece)
    return Window(window.first_offset, window.next_offset, pieces)


def leave_out_known(
    window: Window, processed: Processed, appended: Committed | None = None
) -> Window:
    """Return the window without processed messages, each id at most once.

    `appended` is a commit that is not applied yet, so `processed` does not hold it.
    """
    prints = b"".join(piece.fingerprints or b"" for piece in window.pieces)
    before = b"" if appended is None else appended.fingerprints
    fresh = processed.explicit.fresh(prints, before) if prints else None
    if fresh is None and _numbers_are_new(window, processed, appended):
        return window
    seen = Processed()  # numbers of the appended commit and of earlier pieces of this window
    for producer, first, count in () if appended is None else appended.ranges:
        seen.add_numbers(producer, first, count)
    pieces: list[Piece] = []
    at = 0  # in `fresh`
    for piece in window.pieces:
        kept = piece
        if piece.fingerprints is not None:
            if fresh is not None:
                kept = piece.only(fresh[at : at + len(piece.indices)])
            at += len(piece.indices)
        elif piece.stored.first_sequence >= 0:
            kept = _unknown_numbers(piece, processed, seen)
        if kept.indices:
            pieces.append(kept)
    return Window(window.first_offset, window.next_offset, pieces)


def _numbers_are_new(window: Window, processed: Processed, appended: Committed | None) -> bool:
    """Return whether no sequence id is known or comes twice: the usual case, by a few questions."""
    seen = Processed()
    for producer, first, count in () if appended is None else appended.ranges:
        seen.add_numbers(producer, first, count)
    for producer, first, count in identities(window)[0]:
        if processed.knows_numbers(producer, first, count):
            return False
        if seen.knows_numbers(producer, first, count):
            return False
        seen.add_numbers(producer, first, count)
    return True


def _unknown_numbers(piece: Piece, processed: Processed, seen: Processed) -> Piece:
    producer, base = piece.stored.producer, piece.stored.first_sequence
    low, high = piece.indices[0], piece.indices[-1] + 1
    first, count = base + low, high - low
    if processed.knows_numbers(producer, first, count) or seen.knows_numbers(
        producer, first, count
    ):
        piece = piece.only(
            [
                not processed.knows_number(producer, base + index)
                and not seen.knows_number(producer, base + index)
                for index in piece.indices
            ]
        )
    for start, size in runs(piece.indices):
        seen.add_numbers(producer, base + start, size)
    return piece


def runs(indices: Sequence[int]) -> list[tuple[int, int]]:
    """As (first, count), ascending."""
    if not indices:
        return []
    first, last = indices[0], indices[-1]
    if last - first + 1 == len(indices):
        return [(first, len(indices))]
    found = []
    start = previous = first
    for index in indices[1:]:
        if index != previous + 1:
            found.append((start, previous + 1 - start))
            start = index
        previous = index
    found.append((start, previous + 1 - start))
    return found


def identities(window: Window) -> tuple[list[tuple[str, int, int]], bytes]:
    """Return the ids of a window for a commit: ranges and fingerprints."""
    ranges: list[tuple[str, int, int]] = []
    fingerprints: list[bytes] = []
    for piece in window.pieces:
        if piece.fingerprints is not None:
            fingerprints.append(piece.fingerprints)
        elif piece.stored.first_sequence >= 0:
            producer, base = piece.stored.producer, piece.stored.first_sequence
            for start, count in runs(piece.indices):
                previous = ranges[-1] if ranges else None
                if previous and previous[0] == producer and sum(previous[1:]) == base + start:
                    ranges[-1] = (producer, previous[1], previous[2] + count)
                else:
                    ranges.append((producer, base + start, count))
    return ranges, b"".join(fingerprints)
