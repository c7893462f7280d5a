"""The processed set against plain sets."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from oncemq.core.consumer.processed import Processed, Ranges
from oncemq.limits import Limits

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


prints = st.binary(min_size=16, max_size=16)


@given(st.data(), st.lists(st.lists(prints, max_size=12), max_size=8))
def test_explicit_ids_are_a_set(data: Any, batches: list[list[bytes]]) -> None:
    """Exactly those that are in the set, in the commit before, or earlier in the batch are not fresh."""
    processed = Processed(Limits(ledger_table_ids=data.draw(st.integers(1, 5))))
    model: set[bytes] = set()
    for batch in batches:
        before = data.draw(st.lists(st.sampled_from(sorted(model)), max_size=3)) if model else []
        before = list(dict.fromkeys([*data.draw(st.lists(prints, max_size=3)), *before]))
        asked = (
            data.draw(st.lists(st.sampled_from([*batch, *before, *model]), max_size=9))
            if (batch or before or model)
            else []
        )
        seen, wanted = model | set(before), []
        for one in asked:
            wanted.append(one not in seen)
            seen.add(one)
        found = processed.explicit.fresh(b"".join(asked), b"".join(before)) if asked else None
        assert found == (None if all(wanted) else bytes(wanted))
        processed.explicit.add(b"".join(dict.fromkeys(one for one in batch if one not in model)))
        model.update(batch)
        for new in processed.due():
            processed.made(new.name, b"".join(new.pieces()), "run")
    kept = b"".join(processed.all())
    assert sorted(kept[at : at + 16] for at in range(0, len(kept), 16)) == sorted(model)
    assert processed.explicit_count == len(model)


def test_fingerprints_that_agree_in_one_half_are_different() -> None:
    """All 128 bits decide."""
    one, other, third = b"a" * 16, b"a" * 8 + b"b" * 8, b"b" * 8 + b"a" * 8
    for entries in (1, 100):  # in a file, and in memory
        processed = Processed(Limits(ledger_table_ids=entries))
        processed.explicit.add(one)
        processed.explicit.add(b"z" * 16)
        for new in processed.due():
            processed.made(new.name, b"".join(new.pieces()), "run")
        assert processed.explicit.fresh(one + other + third, b"") == bytes([0, 1, 1])
        assert processed.explicit.fresh(one + other, third) == bytes([0, 1])
        assert processed.explicit.fresh(other + third, one) is None


def test_sequence_ids_need_no_numpy() -> None:
    """It is loaded with the first explicit id, in a process that meets one."""
    code = (
        "import sys\n"
        "from oncemq.core.consumer.ledger import Ledger\n"
        "from oncemq.core.consumer.window import cut, leave_out_known\n"
        "from oncemq.records import Committed, LedgerStarted\n"
        "ledger = Ledger()\n"
        "ledger.apply(LedgerStarted('g', 't', 0, b't' * 16, b'l' * 16, b'l' * 16, 0), 0)\n"
        "ledger.apply(Committed(1, 1, [(b't' * 16, 5)], [('p', 0, 5)], b'', {}), 1)\n"
        "again = Ledger()\n"
        "again.restore(ledger.snapshot().parts)\n"
        "leave_out_known(cut([], 0, 0), again.processed)\n"
        "assert not again.processed.due() and not again.processed.behind\n"
        "print('numpy' in sys.modules)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=True)
    assert run.stdout == b"False\n"
