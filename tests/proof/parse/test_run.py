"""The second reader of runs finds what checksums cannot: answers that would be wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from oncemq.dedup import bloom
from oncemq.dedup.run import RunWriter
from oncemq.errors import CorruptLog
from oncemq.proof.parse.run import read_run, sum_of_places
from oncemq.storage.memory import MemoryDisk

MARK = b"m" * 16


def entries(count: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
    made = np.random.default_rng(7).integers(0, 2**64, (4, count), np.uint64)
    made[2] = np.arange(count)
    return made[:, np.argsort(made[0])]


def written(made: Any, monkeypatch: pytest.MonkeyPatch | None = None) -> MemoryDisk:
    """A disk with the run that a writer makes of these entries, sorted or not."""
    if monkeypatch is not None:
        monkeypatch.setattr(bloom, "put", lambda *_: None)
    writer = RunWriter(4, made.shape[1], mark=MARK)
    disk = MemoryDisk()
    file = disk.create("run")
    file.write(b"".join([writer.add(made), *writer.finish([(1 << 64, [made])])]), 0)
    return disk


@pytest.mark.parametrize("count", [1, 128, 129, 40_000])
def test_all_of_a_run_is_read(count: int) -> None:
    """Every entry comes once, in its order."""
    pieces = list(read_run(written(entries(count)), "run", 4, MARK))
    assert (np.concatenate(pieces, axis=1) == entries(count)).all()


def test_a_run_of_another_key_or_kind_is_found() -> None:
    """It would know no id that is asked for."""
    with pytest.raises(CorruptLog, match="another secret"):
        list(read_run(written(entries(9)), "run", 4, b"n" * 16))
    with pytest.raises(CorruptLog, match="not the footer"):
        list(read_run(written(entries(9)), "run", 2, MARK))


def test_entries_that_are_not_sorted_are_found() -> None:
    """A search between fences would pass over them."""
    made = entries(300)
    with pytest.raises(CorruptLog, match="not sorted"):
        list(read_run(written(made[:, ::-1]), "run", 4, MARK))
    made[:, [5, 6]] = made[:, [6, 5]]
    with pytest.raises(CorruptLog, match="not sorted"):
        list(read_run(written(made), "run", 4, MARK))


def test_an_entry_that_the_filter_lacks_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The filter would say "new" for an id that is there."""
    with pytest.raises(CorruptLog, match="filter lacks"):
        list(read_run(written(entries(300), monkeypatch), "run", 4, MARK))


@pytest.mark.parametrize("at", [10, 3 * 4096 + 3, 3 * 4096 + 30, 3 * 4096 + 60, -70, -3])
def test_damage_is_found_wherever_it_is(at: int) -> None:
    """In a block, a fence, a sum, the filter and the footer."""
    disk = written(entries(300))
    node = disk._node("run").data
    node[at] ^= 1
    with pytest.raises(CorruptLog):
        list(read_run(disk, "run", 4, MARK))


def test_the_newest_ids_are_counted_too() -> None:
    """They stand in a part of the snapshot, column behind column."""
    assert sum_of_places(entries(50).astype("<u8").tobytes()) == (50, 50 * 49 // 2)
