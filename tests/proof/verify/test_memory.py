"""A proof from files stays in the memory it was given, whatever it is handed at once."""

from __future__ import annotations

import tracemalloc

from oncemq.proof.verify.rows import Rows

IDS = 150_000


def test_all_ids_of_a_snapshot_at_once_take_no_more_than_a_run() -> None:
    """A part of a snapshot holds millions of ids; made rows all together they would not fit."""
    blob = b"".join(number.to_bytes(16, "big") for number in range(IDS))
    rows = Rows(run_records=20_000)
    tracemalloc.start()
    try:
        rows.committed_ids(1, blob, 0, IDS)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    try:
        assert sum(1 for _ in rows.ids.sorted()) == IDS
    finally:
        rows.close()
    assert peak < 3 * len(blob), f"{peak} bytes for {len(blob)} bytes of ids"
