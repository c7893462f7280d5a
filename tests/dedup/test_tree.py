"""The set of fingerprints against a dict, its files against damage at every byte."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oncemq.dedup import bloom
from oncemq.dedup.run import BLOCK_BYTES, Run, RunWriter
from oncemq.dedup.table import Table
from oncemq.dedup.tree import FANOUT, STEP_ENTRIES, NewRun, Tree
from oncemq.errors import CorruptLog

MARK = b"m" * 16
WIDTH = 4


def entries_of(pairs: list[tuple[int, int]], first: int = 0) -> np.ndarray:
    """Entries with these fingerprints; values count on from `first`."""
    high, low = (np.array(column, np.uint64) for column in zip(*pairs, strict=True))
    values = np.arange(first, first + len(pairs), dtype=np.uint64)
    return np.stack((high, low, values, values + np.uint64(7)))


def random_pairs(count: int, seed: int = 1) -> list[tuple[int, int]]:
    high, low = np.random.default_rng(seed).integers(0, 2**64, (2, count), np.uint64).tolist()
    return list(zip(high, low, strict=True))


def make(tree: Tree) -> int:
    """Make all that is due, at once; return how many runs were made."""
    made = 0
    while due := tree.due():
        for new in due:
            buffer = b"".join(new.pieces(WIDTH, MARK))
            tree.made(new.number, Run(buffer, f"run-{new.number}", mark=MARK))
            made += 1
    return made


def run_of(entries: np.ndarray) -> bytes:
    writer = RunWriter(WIDTH, entries.shape[1], mark=MARK)
    ordered = entries[:, np.argsort(entries[0], kind="stable")]
    return b"".join([writer.add(ordered), *writer.finish([(1 << 64, [ordered])])])


# Few values for each half, so that fingerprints agree in one half, and slots and words collide.
halves = st.one_of(st.integers(0, 3), st.integers(0, 2**63), st.sampled_from([2**64 - 2, 2**40]))


@settings(max_examples=60)
@given(st.lists(st.tuples(halves, halves), max_size=120), st.integers(1, 5), st.data())
def test_the_tree_knows_what_a_dict_knows(pairs, table_entries, data):
    """Whatever is made when: every fingerprint is known once, with its values, and no other is."""
    tree, model = Tree(WIDTH, table_entries), {}
    at = 0
    while at < len(pairs):
        size = data.draw(st.integers(1, 12))
        fresh = [pair for pair in dict.fromkeys(pairs[at : at + size]) if pair not in model]
        at += size
        if fresh:
            tree.add(entries_of(fresh, len(model)))
            model.update({pair: len(model) + place for place, pair in enumerate(fresh)})
        for new in tree.due():
            if data.draw(st.booleans()):
                buffer = b"".join(new.pieces(WIDTH, MARK))
                tree.made(new.number, Run(buffer, "run", mark=MARK))
            else:
                tree.failed(new.number)
    make(tree)
    asked = [*model, *((high, low ^ 1) for high, low in model), (5, 5)]
    high, low = (np.array(column, np.uint64) for column in zip(*asked, strict=True))
    known, values = tree.find(high, low)
    assert known.tolist() == [pair in model for pair in asked]
    assert values[0][known].tolist() == [model[pair] for pair in asked if pair in model]
    assert tree.count == len(model)


def test_runs_are_merged_and_tables_written():
    """There are at most FANOUT - 1 runs of one size, and one table's entries in memory."""
    tree = Tree(WIDTH, 8)
    pairs = random_pairs(8 * FANOUT * FANOUT + 3)
    for start in range(0, len(pairs), 5):
        tree.add(entries_of(pairs[start : start + 5], start))
        make(tree)
    assert sum(run.count for run in tree.runs.values()) >= len(pairs) - 8
    assert len(tree.runs) < 3 * FANOUT
    assert tree.waiting == 0
    assert max(run.count for run in tree.runs.values()) >= 8 * FANOUT * FANOUT


def test_a_large_merge_goes_in_steps():
    """No piece of a merge is larger than a step, and nothing is lost between two steps."""
    pairs = random_pairs(STEP_ENTRIES + 5000)
    tree = Tree(WIDTH, -(-len(pairs) // FANOUT))
    tree.add(entries_of(pairs))
    assert make(tree) == 1  # what was waiting is written as one run
    buffers = [
        Run(run_of(entries_of(pairs[part::FANOUT], 0)), "part", mark=MARK) for part in range(FANOUT)
    ]
    merged = Tree(WIDTH, 1 << 20)
    merged.restore(FANOUT, dict(enumerate(buffers)), np.empty((WIDTH, 0), np.uint64))
    (new,) = merged.due()
    pieces = list(new.pieces(WIDTH, MARK))
    assert max(map(len, pieces)) < 8 * WIDTH * STEP_ENTRIES * 1.2
    merged.made(new.number, Run(b"".join(pieces), "all", mark=MARK))
    high, low = (np.array(column, np.uint64) for column in zip(*pairs, strict=True))
    assert merged.find(high, low)[0].all()
    assert len(merged.runs) == 1


def test_entries_that_agree_in_64_bits_are_told_apart():
    """Many with one high half, over several blocks: each is found, and no other."""
    each = BLOCK_BYTES // 8 // WIDTH
    pairs = [(7, low) for low in range(3 * each + 5)] + [(6, 1), (8, 1)]
    run = Run(run_of(entries_of(pairs)), "run", mark=MARK)
    high, low = (np.array(column, np.uint64) for column in zip(*pairs, strict=True))
    which, found = run.find(high, low, bloom.bits_of(low))
    assert sorted(which.tolist()) == list(range(len(pairs)))
    assert found[2].tolist() == which.tolist()
    strange = np.array([3 * each + 5], np.uint64)
    assert run.find(np.array([7], np.uint64), strange, bloom.bits_of(strange))[0].size == 0


def test_the_filter_lets_few_strangers_through():
    """One in two hundred, as its theory says; without it every question would read a block."""
    pairs = random_pairs(50_000)
    entries = entries_of(sorted(pairs))
    words = bloom.word_count(len(pairs))
    table = np.zeros(words, np.uint64)
    bloom.put(table, 0, words, entries[0], entries[1])
    assert bloom.may_hold(table, entries[0], bloom.bits_of(entries[1])).all()
    others = entries_of(random_pairs(50_000, seed=2))
    through = bloom.may_hold(table, others[0], bloom.bits_of(others[1])).mean()
    assert through < 0.008


def test_a_table_finds_all_at_its_bound():
    """A full table, with slots that many want."""
    pairs = [(number << 20, number) for number in range(500)]
    table = Table(WIDTH, 500)
    table.add(entries_of(pairs[:300]))
    table.add(entries_of(pairs[300:], 300))
    assert table.room == 0
    high, low = (np.array(column, np.uint64) for column in zip(*pairs, strict=True))
    which, numbers = table.find(high, low)
    assert sorted(which.tolist()) == list(range(500))
    assert (which == numbers).all()
    assert table.find(high, low + np.uint64(1))[0].size == 0


@pytest.mark.parametrize("count", [1, 128, 300])
def test_damage_at_any_byte_is_found_before_an_answer(count):
    """A flipped bit of a run is CorruptLog, or touches zeros that nothing reads."""
    pairs = random_pairs(count)
    entries = entries_of(pairs)
    whole = run_of(entries)
    good = Run(whole, "run", mark=MARK)
    good.check_all()
    high, low = entries[0], entries[1]
    silent = []
    for at in range(0, len(whole), 1 if count == 1 else 7):
        damaged = bytearray(whole)
        damaged[at] ^= 0x10
        try:
            run = Run(bytes(damaged), "run", mark=MARK)
            which, found = run.find(high, low, bloom.bits_of(low))
        except CorruptLog:
            continue
        silent.append(at)
        assert len(which) == count, f"byte {at}: an id is forgotten"
        assert (found[2:] == entries[2:, which]).all(), f"byte {at}: a wrong answer"
    assert silent == []


@pytest.mark.parametrize("length", [0, 10, 63, 4096, -1])
def test_a_run_that_was_cut_is_no_run(length):
    """A file that ends early is refused when it is opened."""
    whole = run_of(entries_of(random_pairs(200)))
    with pytest.raises(CorruptLog):
        Run(whole[:length], "run", mark=MARK)


def test_a_run_of_another_secret_is_refused():
    """Its fingerprints mean nothing here: they would answer "new" for every id."""
    whole = run_of(entries_of(random_pairs(3)))
    with pytest.raises(CorruptLog, match="another secret"):
        Run(whole, "run", mark=b"n" * 16)


def test_what_this_process_wrote_is_not_checked_again_and_all_else_is_once():
    """A block is checked at its first reading; `check_all` finds what was not read yet."""
    entries = entries_of(random_pairs(300))
    damaged = bytearray(run_of(entries))
    damaged[10] ^= 1
    own = Run(bytes(damaged), "run", mark=MARK, own=True)
    assert own.find(entries[0][:0], entries[1][:0], entries[0][:0])[0].size == 0
    with pytest.raises(CorruptLog, match="block"):
        Run(bytes(damaged), "run", mark=MARK).check_all()


def test_a_tree_comes_back_from_what_a_snapshot_holds():
    """Runs by number and the newest entries are all there is."""
    tree = Tree(WIDTH, 16)
    pairs = random_pairs(500)
    for start in range(0, 500, 10):
        tree.add(entries_of(pairs[start : start + 10], start))
        make(tree)
    again = Tree(WIDTH, 16)
    again.restore(tree.next_number, tree.runs, tree.recent())
    high, low = (np.array(column, np.uint64) for column in zip(*pairs, strict=True))
    known, values = again.find(high, low)
    assert known.all()
    assert values[0].tolist() == list(range(500))
    assert again.count == tree.count == 500


def test_a_merge_needs_a_step_in_memory(monkeypatch: pytest.MonkeyPatch):
    """What was written is let go, and no filter is held: both grow with the largest run."""
    small = STEP_ENTRIES // 16
    monkeypatch.setattr("oncemq.dedup.tree.STEP_ENTRIES", small)
    each = 16 * STEP_ENTRIES
    runs = [Run(run_of(entries_of(random_pairs(each, seed))), "run", mark=MARK) for seed in (1, 2)]
    new = NewRun(1, runs)
    tracemalloc.start()
    try:
        for _ in new.pieces(WIDTH, MARK):
            pass
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    step = 8 * WIDTH * small
    fences_and_sums = new.count // (BLOCK_BYTES // 8 // WIDTH) * 12
    assert peak < 16 * step + 3 * fences_and_sums < 8 * bloom.word_count(new.count)
