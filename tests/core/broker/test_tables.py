"""The broker's tables alone, each against the dumbest thing that could do its work."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from oncemq.core.broker.id_index import MemoryIdIndex
from oncemq.core.broker.offset_index import OffsetIndex
from oncemq.core.broker.sessions import RecentTable
from oncemq.core.broker.verdicts import Runs, judge_ids, kept_of, mask_of
from oncemq.limits import LIMITS
from oncemq.protocol import CONFLICT, DUPLICATE, STORED
from tests.core.broker.help import batch_with_ids

STEP = LIMITS.offset_index_step_bytes


@given(st.lists(st.integers(1, 3 * STEP), min_size=1, max_size=40), st.data())
def test_an_offset_is_found_within_one_step(gaps, data):
    """From `floor` on, the batch that holds an offset starts less than one step later."""
    index, positions, at = OffsetIndex(STEP), [], 0
    for number, gap in enumerate(gaps):
        positions.append(at)
        index.add(10 * number, at)
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
        index.add(number, at)
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
        index.add(number, at)
        at += gap
    again = OffsetIndex(STEP)
    for start in range(0, at + 1, cut):
        for first_offset, position in index.entries(start, start + cut):
            again.restore_entry(first_offset, position)
    assert again.entries(0, at + 1) == index.entries(0, at + 1)


@given(st.lists(st.integers(1, 9), max_size=20), st.integers(1, 7))
def test_the_id_index_comes_back_from_its_parts(sizes, part_ids):
    """Ids, places and hashes survive the way through the parts of a snapshot."""
    index = MemoryIdIndex(part_ids)
    for number, size in enumerate(sizes):
        ids = [b"s%d-%d" % (number, place) for place in range(size)]
        index.add(ids, range(number, number + size), number % 3, 100 * number)
    again = MemoryIdIndex(part_ids)
    for start, end in index.parts():
        assert 0 < end - start <= part_ids
        again.restore(index.freeze(start, end))
    assert len(again) == len(index) == sum(sizes)
    for number, size in enumerate(sizes):
        for place in range(size):
            tagged = b"s%d-%d" % (number, place)
            found = again.find(tagged)
            assert found == index.find(tagged)
            assert found == (number % 3, 100 * number + place, number + place)


@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 1)), min_size=1, max_size=25), st.data()
)
def test_verdicts_equal_those_of_a_dumb_judge(items, data):
    """Runs unpacked are what a loop over a plain dict says of each message."""
    known = data.draw(st.dictionaries(st.integers(0, 12), st.integers(0, 1), max_size=8))
    batch = batch_with_ids([(f"i{number}", f"v{value}") for number, value in items])
    hash_of = {}
    for value in (0, 1):
        probe = batch_with_ids([("x", f"v{value}")])
        assert probe.hashes is not None
        hash_of[value] = probe.hashes[0]
    index = MemoryIdIndex(LIMITS.id_part_ids)
    index.add([b"si%d" % number for number in known], [hash_of[v] for v in known.values()], 0, 0)
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
    runs, new = judge_ids(index, batch, 0, 500)
    flat = [(its, at + step) for count, its, at in runs.runs for step in range(count)]
    assert flat == expected
    assert new == [place for place, (its, _) in enumerate(expected) if its == STORED]
    assert index.all_new(batch.ids) == (len(new) == len(items))
    mask = mask_of(new, len(items))
    assert [place for place, kept in enumerate(kept_of(mask, len(items))) if kept] == new


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
