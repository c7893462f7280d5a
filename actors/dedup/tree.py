"""A set of fingerprints with their values: the newest in tables, all others in sorted runs.

Theory of operation. A log-structured merge tree (O'Neil et al. 1996). New entries go into a hash table.
A full table stands still and is written as a run; FANOUT runs of about one size are merged into one of
the next. Every entry is in exactly one place, so the order of asking does not matter, and a run is
replaced by what was made of it at any moment.

Entries are not deleted one by one: who asks says which of them live, and at most one entry of a
fingerprint does. A run goes as a whole once nothing in it can live any more (`forget`). With one
horizon H for all, runs that hold more than about two H of entries do not come about: eight runs are
merged only while the oldest is there, and a merged run goes one H after its newest entry came.

The tree makes no file. `due` says what should be made; the owner lets somebody write its bytes
beside the turn and gives the run to `made`. Until then the sources answer. Memory: two tables and
what waits to be written, plus the filters of the runs, which lie in the mapped files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce

import numpy as np
from numpy.typing import NDArray

from . import bloom
from .origin import NOWHERE, UNKNOWN, Origin
from .run import Run, RunWriter, Step
from .table import Table

Words = NDArray[np.uint64]

FANOUT = 8
_ADDED_MAX = 64  # batches that wait for being put into the table together
_FILTER_STEPS = 4  # a step for the filter is as much work as one of a merge
STEP_ENTRIES = 16 * 1024  # of one step of a merge: bounds its memory, and how long it holds on


Living = Callable[[NDArray[np.intp], Words], NDArray[np.bool_]]


@dataclass(frozen=True, slots=True, eq=False)
class NewRun:
    """A run to be made: its number, which no other run ever gets, and what goes into it."""

    number: int
    sources: Sequence[Table] | Sequence[Run]

    @property
    def count(self) -> int:
        return sum(source.count for source in self.sources)

    @property
    def origin(self) -> Origin:
        return reduce(Origin.with_, (source.origin for source in self.sources))

    def pieces(self, width: int, mark: bytes) -> Iterator[bytes]:
        """Yield its bytes, in steps of bounded size. Raises CorruptLog: a source is damaged.

        Reads only what never changes, so another thread may do it.
        """
        writer = RunWriter(width, self.count, mark=mark)
        steps = partial(_of_runs, _runs_of(self))
        if tables := [source for source in self.sources if isinstance(source, Table)]:
            joined = np.concatenate([table.entries for table in tables], axis=1)
            ordered = joined.take(np.argsort(joined[0], kind="stable"), axis=1)
            steps = partial(_of_columns, ordered)
        for _, columns in steps(STEP_ENTRIES):
            yield writer.add(_merged(columns))
        yield from writer.finish(steps(_FILTER_STEPS * STEP_ENTRIES))


def _runs_of(new: NewRun) -> list[Run]:
    return [source for source in new.sources if isinstance(source, Run)]


def _of_runs(runs: Sequence[Run], size: int) -> Iterator[Step]:
    """Yield all entries. Fingerprints are uniform, so equal ranges are equal work."""
    steps = max(1, -(-sum(run.count for run in runs) // size))
    starts = [0] * len(runs)
    for step in range(1, steps + 1):
        bound = (step << 64) // steps
        ends = [run.below(bound) for run in runs]
        yield bound, [run.entries(*span) for run, *span in zip(runs, starts, ends, strict=True)]
        starts = ends


def _of_columns(ordered: Words, size: int) -> Iterator[Step]:
    count = ordered.shape[1]
    for start in range(0, max(count, 1), size):
        end = min(start + size, count)
        bound = int(ordered[0, end]) if end < count else 1 << 64
        yield bound, [ordered[:, start:end]]


def _merged(columns: Sequence[Words]) -> Words:
    if len(columns) == 1:
        return columns[0]
    joined = np.concatenate(columns, axis=1)
    return joined.take(np.argsort(joined[0], kind="stable"), axis=1)


class Tree:
    """The set. Not thread-safe."""

    def __init__(self, width: int, table_entries: int, table_entries_max: int = 0) -> None:
        """`width`: words of an entry, of which the first two are the fingerprint.

        A table has `table_entries`, and up to `table_entries_max`, if that is more, as the set
        grows: larger tables make fewer runs to ask.
        """
        self._width = width
        self._table_entries = table_entries
        self._table_entries_max = max(table_entries, table_entries_max)
        self._table = Table(width, table_entries)
        # Full tables, oldest first, until they are written.
        self._full: list[Table] = []
        # Added and not yet in the table: many small batches are put there together.
        self._added: list[Words] = []
        self._added_origin = NOWHERE
        # Runs by number. Invariant: no entry is in two of runs, full tables, table and added.
        self._runs: dict[int, Run] = {}
        self._next_number = 0
        # What is being made. Invariant: at most one of tables, and one of the runs of each level.
        self._making: list[NewRun] = []

    @property
    def count(self) -> int:
        """How many entries there are, living or not."""
        in_runs = sum(run.count for run in self._runs.values())
        in_tables = sum(table.count for table in (*self._full, self._table))
        in_added = sum(len(entries[0]) for entries in self._added)
        return in_runs + in_tables + in_added

    # --- asking and adding -----------------------------------------------------------------------

    def find(
        self, high: Words, low: Words, living: Living | None = None
    ) -> tuple[NDArray[np.bool_], Words]:
        """Return which fingerprints are known, and the values of those. Raises CorruptLog.

        `living` tells of (places in `high`, first values of entries) which entries count; None: all.
        """
        self._settle()
        known = np.zeros(len(high), np.bool_)
        values = np.zeros((self._width - 2, len(high)), np.uint64)
        for table in (self._table, *self._full):
            which, numbers = table.find(high, low)
            if which.size:
                _take(known, values, which, table.entries[2:, numbers], living)
        if self._runs:
            bits = bloom.bits_of(low)
            for run in self._runs.values():
                which, entries = run.find(high, low, bits)
                if which.size:
                    _take(known, values, which, entries[2:], living)
        return known, values

    def add(self, entries: Words, origin: Origin = UNKNOWN) -> None:
        """Add entries whose fingerprints differ from each other and from those of all living ones."""
        self._added.append(entries)
        self._added_origin = self._added_origin.with_(origin)
        if len(self._added) == _ADDED_MAX:
            self._settle()

    def _settle(self) -> None:
        """Put into the table what was added."""
        if not self._added:
            return
        entries = np.concatenate(self._added, axis=1)
        self._added.clear()
        origin, self._added_origin = self._added_origin, NOWHERE
        while entries.shape[1]:
            if self._table.room == 0:
                self._full.append(self._table)
                share = self.count // FANOUT
                size = min(max(share, self._table_entries), self._table_entries_max)
                self._table = Table(self._width, size)
            some, entries = np.split(entries, [self._table.room], axis=1)
            self._table.add(some)
            self._table.origin = self._table.origin.with_(origin)

    def forget(self, forgotten_ms: Mapping[int, int]) -> None:
        """Drop the runs of which nothing lives: all their topics have forgotten what came so early."""
        self._runs = {
            number: run for number, run in self._runs.items() if not run.origin.gone(forgotten_ms)
        }

    # --- what is made beside the turn -----------------------------------------------------------

    @property
    def waiting(self) -> int:
        """Full tables that are not written yet: they cost memory."""
        return len(self._full)

    def due(self) -> list[NewRun]:
        """Return what should be made now; each one is given once."""
        self._settle()
        new: list[NewRun] = []
        if self._full and not any(isinstance(one.sources[0], Table) for one in self._making):
            new.append(self._start(list(self._full)))
        # A large merge must not keep small ones waiting: what is not merged is asked run by run.
        busy = {self._level(run) for one in self._making for run in _runs_of(one)}
        levels: dict[int, list[Run]] = {}
        for run in self._runs.values():
            levels.setdefault(self._level(run), []).append(run)
        for level, runs in sorted(levels.items()):
            if len(runs) >= FANOUT and level not in busy:
                new.append(self._start(runs))
        return new

    def _start(self, sources: list[Table] | list[Run]) -> NewRun:
        new = NewRun(self._next_number, sources)
        self._next_number += 1
        self._making.append(new)
        return new

    def _level(self, run: Run) -> int:
        level, size = 0, self._table_entries * FANOUT
        while run.count >= size:
            level, size = level + 1, size * FANOUT
        return level

    def made(self, number: int, run: Run) -> None:
        """Let the run that was made stand for its sources."""
        new = next(one for one in self._making if one.number == number)
        assert run.count == new.count, "a run holds what its sources held"
        self._making.remove(new)
        gone = set(map(id, new.sources))
        self._full = [table for table in self._full if id(table) not in gone]
        self._runs = {n: other for n, other in self._runs.items() if id(other) not in gone}
        run.origin = new.origin
        self._runs[number] = run

    def failed(self, number: int) -> None:
        """What was due could not be made: it becomes due again, under another number."""
        self._making = [one for one in self._making if one.number != number]

    def entries(self) -> Iterator[Words]:
        """Yield all entries, in steps of bounded size. Raises CorruptLog."""
        self._settle()
        for table in (*self._full, self._table):
            yield table.entries
        for run in self._runs.values():
            for start in range(0, run.count, STEP_ENTRIES):
                yield run.entries(start, min(start + STEP_ENTRIES, run.count))

    # --- snapshot --------------------------------------------------------------------------------

    @property
    def next_number(self) -> int:
        return self._next_number

    @property
    def runs(self) -> dict[int, Run]:
        return self._runs

    def recent(self) -> Words:
        """Return the entries that no run holds, oldest first."""
        self._settle()
        return np.concatenate([table.entries for table in (*self._full, self._table)], axis=1)

    @property
    def recent_origin(self) -> Origin:
        self._settle()
        return reduce(Origin.with_, (table.origin for table in (*self._full, self._table)))

    def restore(
        self, next_number: int, runs: dict[int, Run], recent: Words, origin: Origin = UNKNOWN
    ) -> None:
        """Become the set that `next_number`, `runs` and `recent` described; it was empty."""
        self._next_number = next_number
        self._runs = dict(runs)
        self.add(recent, origin)


def first_places(high: Words, low: Words) -> NDArray[np.intp] | None:
    """Return where each fingerprint stands for the first time; None: every one stands once."""
    ordered = np.sort(high)
    if not (ordered[1:] == ordered[:-1]).any():
        return None
    first: dict[tuple[int, int], int] = {}
    pairs = zip(high.tolist(), low.tolist(), strict=True)
    return np.array([first.setdefault(pair, place) for place, pair in enumerate(pairs)], np.intp)


def _take(
    known: NDArray[np.bool_],
    values: Words,
    which: NDArray[np.intp],
    found: Words,
    living: Living | None,
) -> None:
    """Take what one source has found into what is known."""
    if living is not None:
        lives = living(which, found[0])
        which, found = which[lives], found[:, lives]
    known[which] = True
    values[:, which] = found
