"""From fetched batches to the messages a handler sees, against models with full lists."""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from oncemq.codec import batch as batch_codec
from oncemq.core.consumer.processed import Processed
from oncemq.core.consumer.window import (
    Window,
    cut,
    identities,
    kept_indices,
    leave_out_known,
    runs,
    with_fingerprints,
)
from oncemq.records import BatchStored, Committed


def stored(
    first_offset: int,
    count: int,
    *,
    keep: list[bool] | None = None,
    first_sequence: int = 0,
    ids: list[bytes] | None = None,
    producer: str = "p",
) -> BatchStored:
    """A batch as the broker stores it; with `ids` under explicit ids."""
    batch = batch_codec.build([b"v"] * count, encodings=0, ids=ids)
    mask = b""
    kept = count
    if keep is not None and not all(keep):
        bits = sum(1 << i for i, one in enumerate(keep) if one)
        mask = bits.to_bytes((count + 7) // 8, "little")
        kept = sum(keep)
    sequence = -1 if ids is not None else first_sequence
    return BatchStored(
        0, 0, first_offset, kept, 1, producer, 1, sequence, mask, b"", batch.raw, batch.crc, count,
        batch,
    )  # fmt: skip


def fingerprint(ids: list[bytes]) -> bytes:
    """16 bytes an id, easy to read."""
    return b"".join(one.ljust(16, b".") for one in ids)


def offsets(window: Window) -> list[int]:
    return [offset for piece in window.pieces for offset in piece.offsets]


def names(window: Window) -> list[Any]:
    """(producer, number) or the tagged id of each message."""
    return [
        piece.stored.batch.ids[i]
        if piece.stored.batch.ids is not None
        else (piece.stored.producer, piece.stored.first_sequence + i)
        for piece in window.pieces
        for i in piece.indices
    ]


@st.composite
def logs(draw: Any) -> list[BatchStored]:
    """Some stored batches without holes, with and without masks and ids."""
    batches, offset, number = [], draw(st.integers(0, 5)), 0
    for index in range(draw(st.integers(1, 4))):
        keep = draw(st.lists(st.booleans(), min_size=1, max_size=9).filter(any))
        ids = [b"s%d-%d" % (index, i) for i in range(len(keep))] if draw(st.booleans()) else None
        batches.append(stored(offset, len(keep), keep=keep, first_sequence=number, ids=ids))
        offset += sum(keep)
        number += len(keep)
    return batches


@given(logs(), st.data())
def test_cut_starts_at_the_expected_offset(batches: list[BatchStored], data: Any) -> None:
    """Whatever lies below is passed over, nothing above is left out, masked messages never show."""
    start, end = batches[0].first_offset, batches[-1].first_offset + batches[-1].kept
    expected = data.draw(st.integers(start, end))
    window = cut(batches, expected, end)
    assert window is not None
    assert offsets(window) == list(range(expected, end))
    assert (window.first_offset, window.next_offset) == (expected, end)
    for piece in window.pieces:
        kept = list(kept_indices(piece.stored))
        places = [kept.index(i) + piece.stored.first_offset for i in piece.indices]
        assert places == list(piece.offsets)


@given(logs(), st.data())
def test_a_gap_is_never_taken(batches: list[BatchStored], data: Any) -> None:
    """A reply that starts above the expected offset, has a hole or ends elsewhere is refused."""
    start, end = batches[0].first_offset, batches[-1].first_offset + batches[-1].kept
    assert cut(batches, start - 1, end) is None
    assert cut(batches, start, end + 1) is None
    if len(batches) > 2:
        del batches[data.draw(st.integers(1, len(batches) - 2))]
        assert cut(batches, start, end) is None
    assert cut([], 7, 7) == Window(7, 7, [])
    assert cut([], 7, 9) is None


@given(logs(), st.data())
def test_split_keeps_every_message_and_offset(batches: list[BatchStored], data: Any) -> None:
    """Two halves are the whole, and the first one ends where the second begins."""
    end = batches[-1].first_offset + batches[-1].kept
    window = cut(batches, batches[0].first_offset, end)
    assert window is not None
    window = with_fingerprints(window, fingerprint)
    number = data.draw(st.integers(0, window.count))
    head, tail = window.split(number)
    assert (head.count, tail.count) == (number, window.count - number)
    assert offsets(head) + offsets(tail) == offsets(window)
    assert names(head) + names(tail) == names(window)
    assert head.first_offset == window.first_offset
    middle = window.offset_of(number) if number else window.first_offset
    assert head.next_offset == tail.first_offset == middle
    assert tail.next_offset == window.next_offset
    both = [identities(head), identities(tail)]
    assert both[0][1] + both[1][1] == identities(window)[1]


@given(logs(), logs(), st.data())
def test_the_skip_rule_is_a_full_set(
    earlier: list[BatchStored], batches: list[BatchStored], data: Any
) -> None:
    """Exactly the messages whose id is in the set, or stands earlier in the window, are left out."""
    end = batches[-1].first_offset + batches[-1].kept
    shown = cut(batches, batches[0].first_offset, end)
    assert shown is not None
    # the same ids once more at higher offsets, as a log that was fed again would show them
    for again in data.draw(st.lists(st.sampled_from(batches), max_size=2)):
        copy = stored(
            shown.next_offset,
            again.count,
            keep=[i in kept_indices(again) for i in range(again.count)],
            first_sequence=again.first_sequence,
            ids=again.batch.ids if again.batch is not None else None,
        )
        more = cut([copy], shown.next_offset, shown.next_offset + copy.kept)
        assert more is not None
        shown = Window(shown.first_offset, more.next_offset, shown.pieces + more.pieces)
    window = with_fingerprints(shown, fingerprint)
    known = cut(earlier, earlier[0].first_offset, earlier[-1].first_offset + earlier[-1].kept)
    assert known is not None
    known = known.split(data.draw(st.integers(0, known.count)))[0]
    ranges, fingerprints = identities(with_fingerprints(known, fingerprint))
    processed, appended = Processed(), None
    if data.draw(st.booleans()):
        appended = Committed(1, 1, [], ranges, fingerprints, {})
    else:
        for producer, first, count in ranges:
            processed.add_numbers(producer, first, count)
        processed.explicit.add(fingerprints)
    seen = set(names(known))
    wanted = []
    for offset, name in zip(offsets(window), names(window), strict=True):
        if name not in seen:
            wanted.append((offset, name))
        seen.add(name)
    left = leave_out_known(window, processed, appended)
    assert list(zip(offsets(left), names(left), strict=True)) == wanted
    assert (left.first_offset, left.next_offset) == (window.first_offset, window.next_offset)
    for piece in left.pieces:
        if piece.fingerprints is not None:
            ids = piece.stored.batch.ids
            assert piece.fingerprints == fingerprint([ids[i] for i in piece.indices])


@given(st.sets(st.integers(0, 30)))
def test_runs_cover_exactly_the_indices(numbers: set[int]) -> None:
    """Runs are maximal and hold each index once."""
    found = runs(sorted(numbers))
    assert [n for first, count in found for n in range(first, first + count)] == sorted(numbers)
    for (first, count), (after, _) in itertools.pairwise(found):
        assert first + count < after


def test_one_range_for_contiguous_batches() -> None:
    """A commit of many batches of one producer carries one range."""
    window = cut([stored(n * 4, 4, first_sequence=n * 4) for n in range(5)], 2, 20)
    assert window is not None
    assert identities(window) == ([("p", 2, 18)], b"")
