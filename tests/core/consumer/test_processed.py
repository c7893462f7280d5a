"""The processed set against plain sets."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from oncemq.core.consumer.processed import Processed, Ranges, split_fingerprints

pieces = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 12)), max_size=25)


@given(pieces, st.tuples(st.integers(0, 60), st.integers(0, 12)))
def test_ranges_are_a_set_of_numbers(added: list[tuple[int, int]], asked: tuple[int, int]) -> None:
    """Numbers added in any order are in the ranges, and the ranges stay normal."""
    ranges, model = Ranges(), set()
    for start, size in added:
        ranges.add(start, start + size)
        model.update(range(start, start + size))
        flat = [edge for pair in ranges for edge in pair]
        assert flat == sorted(set(flat)), "sorted, not empty, never touching"
    assert {n for start, end in ranges for n in range(start, end)} == model
    start, size = asked
    assert ranges.touches(start, start + size) == bool(model & set(range(start, start + size)))
    assert (start in ranges) == (start in model)


def test_batches_in_order_stay_one_range() -> None:
    """A producer's batches one after the other cost one range, however many they are."""
    processed = Processed()
    for first in range(0, 10_000, 10):
        processed.add_numbers("p", first, 10)
    assert processed.ranges() == [["p", 0, 10_000]]
    assert processed.knows_number("p", 9_999)
    assert not processed.knows_number("p", 10_000)
    assert not processed.knows_number("q", 5)


@given(
    st.lists(st.binary(min_size=16, max_size=16), max_size=20), st.binary(min_size=16, max_size=16)
)
def test_fingerprints_are_a_set(blob: list[bytes], other: bytes) -> None:
    """A blob of fingerprints is the set of its parts."""
    processed = Processed()
    processed.add_fingerprints(split_fingerprints(b"".join(blob)))
    assert split_fingerprints(b"".join(blob)) == blob
    assert processed.fingerprints == set(blob)
    assert processed.knows_fingerprints([other]) == (other in blob)
