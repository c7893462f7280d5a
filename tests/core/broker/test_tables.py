"""The broker's tables alone, each against the dumbest thing that could do its work."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from oncemq.core.broker.id_index import IdIndex
from oncemq.core.broker.offset_index import OffsetIndex
from oncemq.core.broker.sessions import RecentTable
from oncemq.core.broker.topics import Topic
from oncemq.core.broker.verdicts import Runs, kept_of
from oncemq.limits import LIMITS, Limits
from oncemq.protocol import CONFLICT, DUPLICATE, STORED
from oncemq.records import BatchStored
from tests.core.broker.help import batch_with_ids

STEP = LIMITS.offset_index_step_bytes


@given(st.lists(st.integers(1, 3 * STEP), min_size=1, max_size=40), st.data())
def test_an_offset_is_found_within_one_step(gaps, data):
    """From `floor` on, the batch that holds an offset starts less than one step later."""
    index, positions, at = OffsetIndex(STEP), [], 0
    for number, gap in enumerate(gaps):
        positions.append(at)
        index.add(10 * number, at, number, at)
        at += gap
    number = data.draw(st.integers(0, len(gaps) - 1))
    floor = index.floor(10 * number + data.draw(st.integers(0, 9)))
    assert floor is not None
    assert floor <= positions[number] < floor + STEP


@given(st.lists(st.integers(1, 3 * STEP), min_size=1, max_size=40), st.data())
def test_reading_on_never_jumps_over_a_batch(gaps, data):
    """`read_on` jumps ahead only where no batch of the partition can lie."""
    index, positions, at = OffsetIndex(STEP), [], 0
    for number, gap in enumerate(gaps):
        positions.append(at)
        index.add(number, at, number, at)
        at += gap
    start = data.draw(st.integers(0, at + STEP))
    behind = [position for position in positions if position >= start]
    on = index.read_on(start)
    assert on is not None or behind == []
    if on is not None:
        assert on >= start
        assert behind == [] or on <= behind[0]


def test_an_empty_index_knows_nothing():
    """A partition without batches has no place to read from."""
    index = OffsetIndex(STEP)
    assert (index.floor(0), index.read_on(0), len(index)) == (None, None, 0)


@given(st.lists(st.integers(1, 2 * STEP), max_size=30), st.integers(1, 4 * STEP))
def test_entries_come_back_from_any_cut(gaps, cut):
    """Parts of a snapshot, cut anywhere, give the same index."""
    index, at = OffsetIndex(STEP), 0
    for number, gap in enumerate(gaps):
        index.add(number, at, number, at)
        at += gap
    again = OffsetIndex(STEP)
    for start in range(0, at + 1, cut):
        for entry in index.entries(start, start + cut):
            again.restore_entry(*entry)
    assert again.entries(0, at + 1) == index.entries(0, at + 1)


TOPICS = [Topic(number, f"t{number}", b"T" * 16, 1, 0, LIMITS) for number in range(2)]


def record_of(batch, mask, kept, *, topic=0, partition=0, first_offset=0):
    return BatchStored(
        topic, partition, first_offset, kept, 0, "", 0, -1, mask, b"", batch.raw, batch.crc,
        batch.count, batch,
    )  # fmt: skip


@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 1)), min_size=1, max_size=25),
    st.dictionaries(st.integers(0, 12), st.integers(0, 1), max_size=8),
)
def test_verdicts_equal_those_of_a_dumb_judge(items, known):
    """Runs unpacked are what a loop over a plain dict says of each message."""
    index = IdIndex(b"S" * 32, Limits(id_table_ids=3))
    if known:
        before = batch_with_ids([(f"i{number}", f"v{value}") for number, value in known.items()])
        index.add(record_of(before, b"", len(known)), TOPICS[0])
    batch = batch_with_ids([(f"i{number}", f"v{value}") for number, value in items])
    table = {number: (offset, value) for offset, (number, value) in enumerate(known.items())}
    expected, end = [], 500
    for number, value in items:
        if number not in table:
            table[number] = (end, value)
            expected.append((STORED, end))
            end += 1
        else:
            offset, original = table[number]
            expected.append((DUPLICATE if original == value else CONFLICT, offset))
    runs, mask, kept = index.judge(batch, TOPICS[0], 0, 500, 0)
    flat = [(its, at + step) for count, its, at in runs.runs for step in range(count)]
    assert flat == expected
    new = [place for place, (its, _) in enumerate(expected) if its == STORED]
    assert kept == len(new)
    assert not mask or [n for n, on in enumerate(kept_of(mask, len(items))) if on] == new
    if kept:
        index.add(record_of(batch, mask, kept, first_offset=500), TOPICS[0])
    again = index.judge(batch, TOPICS[0], 0, end, 0)
    assert again.kept == 0
    assert [its for count, its, _ in again.runs.runs for _ in range(count)] == [
        CONFLICT if its == CONFLICT else DUPLICATE for its, _ in expected
    ]
    assert index.judge(batch, TOPICS[1], 0, 0, 0).kept == len({number for number, _ in items})


@given(
    st.lists(
        st.tuples(
            st.lists(st.tuples(st.integers(0, 9), st.integers(0, 1)), min_size=1, max_size=6),
            st.integers(0, 1),
            st.booleans(),
            st.booleans(),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_batches_of_a_turn_know_of_each_other(arrivals):
    """Looked up together, they are judged as if each had been looked up when its turn came.

    Some are not stored after all, and some were not looked up with the others.
    """
    index, alone = (IdIndex(b"S" * 32, Limits(id_table_ids=3)) for _ in range(2))
    batches, copies = (
        [batch_with_ids([(f"i{n}", f"v{v}") for n, v in items]) for items, *_ in arrivals]
        for _ in range(2)
    )
    looked = [(batch, TOPICS[of[1]]) for batch, of in zip(batches, arrivals, strict=True) if of[3]]
    if looked:
        index.look_ahead(looked)
    end = 0
    for batch, copy, (_, topic, stored, _) in zip(batches, copies, arrivals, strict=True):
        verdicts, mask, kept = index.judge(batch, TOPICS[topic], 0, end, 0)
        expected = alone.judge(copy, TOPICS[topic], 0, end, 0)
        assert (verdicts.runs, mask, kept) == (expected.runs.runs, expected.mask, expected.kept)
        if stored and kept:
            for its, into in ((batch, index), (copy, alone)):
                into.add(record_of(its, mask, kept, topic=topic, first_offset=end), TOPICS[topic])
            end += kept


def test_runs_merge_neighbours_only():
    """Adjacent offsets under one verdict are one run; unknown offsets merge with each other."""
    runs = Runs()
    for verdict, offset in [
        (STORED, 5),
        (STORED, 6),
        (DUPLICATE, 7),
        (DUPLICATE, 9),
        (DUPLICATE, -1),
        (DUPLICATE, -1),
        (DUPLICATE, 0),
    ]:
        runs.add(1, verdict, offset)
    runs.add(0, CONFLICT, 3)
    assert runs.runs == [(2, 0, 5), (1, 1, 7), (1, 1, 9), (2, 1, -1), (1, 1, 0)]


def test_a_table_forgets_the_least_recently_used():
    """Use keeps an entry; the bound is never passed."""
    table: RecentTable[int] = RecentTable(2)
    table.put(b"a", 1)
    table.put(b"b", 2)
    assert table.get(b"a") == 1
    table.put(b"c", 3)
    assert (table.get(b"a"), table.get(b"b"), table.get(b"c"), len(table)) == (1, None, 3, 2)
