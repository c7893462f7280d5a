"""Real processes under fire; `make chaos` runs the long ones. Each check is shown to see."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from examples.flights import chaos, expected
from examples.flights.chaos_checks import check_commits, check_deeds, check_log, check_states
from oncemq.chaos import Deeds, Program, StoredMessage
from oncemq.ids import compound_id
from tests.process.house import ROOT, START_S

pytestmark = pytest.mark.process


@pytest.mark.timeout(1800)
def test_forty_kills(tmp_path: Path, seed: int) -> None:
    """Forty kills, three takeovers and a frozen broker: nothing lost, nothing doubled."""
    result = chaos.burn(tmp_path, seed, 40, 1500.0, print)
    assert result.wrong == []


@pytest.mark.chaos
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("run", range(5))
def test_two_hundred_kills(tmp_path: Path, seed: int, run: int) -> None:
    """Two hundred kills with each of five seeds: nothing lost, nothing doubled."""
    result = chaos.burn(tmp_path, 100 * seed + run, 200, 1500.0, print)
    assert result.wrong == []


def test_a_run_that_is_stopped_leaves_nothing(tmp_path: Path) -> None:
    """A stop signal, here in a hook around a fork, ends the run: exit 130, no file, no process."""
    code = (
        "import itertools, os, signal, sys\n"
        "forks = itertools.count(1)\n"
        "os.register_at_fork(\n"
        "    after_in_parent=lambda: next(forks) == 3 and signal.raise_signal(signal.SIGTERM)\n"
        ")\n"
        "from examples.flights.chaos import main\n"
        "sys.exit(main())\n"
    )
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environ = {**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)}
    with Program("fire", (sys.executable, "-c", code)).start(tmp_path, environ) as running:
        running.wait(START_S, 130)
    assert running.stdout().endswith("interrupted: all processes were stopped\n")
    assert running.stderr() == ""
    assert list(temporary.iterdir()) == []


# --- the checks see what they are for -------------------------------------------------------------

CYCLES = 2
ROWS = [
    {
        **dict.fromkeys(("year", "month", "day", "sched_dep_time"), "1"),
        "carrier": carrier,
        "flight": str(flight),
        "origin": "JFK",
        "dep_time": dep_time,
        "arr_delay": "NA" if dep_time == "NA" else "7",
    }
    for carrier in ("UA", "B6")
    for flight, dep_time in enumerate(("517", "NA", "600"))
]


def good_log() -> list[StoredMessage]:
    """A log as it must be: two Januaries by number, one by id, mixed."""
    numbered = [
        StoredMessage(0, f"flights/numbered:0:{n}", "numbered", 1 + n // 4, n, None, row, 0)
        for n, row in enumerate(ROWS * CYCLES)
    ]
    named = [
        StoredMessage(
            0,
            compound_id([row[name] for name in expected.ID_FIELDS]),
            "named",
            1,
            -1,
            None,
            row,
            0,
        )
        for row in ROWS
    ]
    mixed = numbered[:5] + named[:2] + numbered[5:] + named[2:]
    return [replace(message, offset=offset) for offset, message in enumerate(mixed)]


def swapped(log: list[StoredMessage], first: int, second: int) -> list[StoredMessage]:
    """The log with two messages in each other's place."""
    log = list(log)
    log[first], log[second] = log[second], log[first]
    return log


FLAWS: dict[str, Callable[[list[StoredMessage]], list[StoredMessage]]] = {
    "a numbered message lost": lambda log: log[:2] + log[3:],
    "the last message lost": lambda log: log[:-1],
    "a message with an id lost": lambda log: log[:5] + log[6:],
    "a numbered message twice": lambda log: [*log[:3], log[2], *log[3:]],
    "an id twice": lambda log: [*log, log[5]],
    "two numbered messages in another order": lambda log: swapped(log, 2, 3),
    "two ids in another order": lambda log: swapped(log, 5, 6),
    "a number given to another body": lambda log: [
        *log[:2],
        replace(log[2], value=log[1].value),
        *log[3:],
    ],
    "an id given to another body": lambda log: [
        *log[:5],
        replace(log[5], value=log[6].value),
        *log[6:],
    ],
    "a zombie's message after its successor's": lambda log: [
        *log[:10],
        replace(log[10], epoch=1),
        *log[11:],
    ],
}


def test_a_good_log_passes() -> None:
    """The check finds nothing where nothing is wrong."""
    assert check_log(good_log(), ROWS, CYCLES) == []


@pytest.mark.parametrize("flaw", FLAWS)
def test_a_flaw_in_the_log_is_seen(flaw: str) -> None:
    """Loss, doubling, disorder, another body and a zombie's write are each found."""
    assert check_log(FLAWS[flaw](good_log()), ROWS, CYCLES) != []


def test_states_are_compared_exactly() -> None:
    """One flight, one cancellation or one output too many or too few is found."""
    totals = expected.totals_of(ROWS * 3)
    assert totals["UA"] == {"flights": 9, "delay_minutes": 42, "cancelled": 3}
    good = {
        "totals": totals,
        "cancelled": expected.cancelled_of(totals),
        "jfk": {"UA": 9, "B6": 9},
    }
    assert check_states(ROWS, 3, good) == []
    flawed: dict[str, dict[str, object]] = {
        "totals": {**totals, "UA": {**totals["UA"], "flights": 10}},
        "cancelled": {"UA": 3},
        "jfk": {"UA": 9, "B6": 8},
    }
    for group, state in flawed.items():
        (wrong,) = check_states(ROWS, 3, {**good, group: state})
        assert wrong.startswith(group)
        assert check_states(ROWS, 3, {**good, group: {**good[group], "ZZ": 1}}) != []
        assert check_states(ROWS, 3, {**good, group: {}}) != []


def test_an_offset_committed_twice_is_seen() -> None:
    """Commits may leave holes (a killed process tells nothing), but never overlap."""
    good = [("g", "t", 0, 10), ("h", "t", 0, 4), ("g", "t", 30, 31), ("g", "t", 10, 20)]
    assert check_commits(good) == []
    assert check_commits([*good, ("g", "t", 19, 30)]) != []
    assert check_commits([]) != []


def test_a_run_that_hit_little_fails() -> None:
    """Each quota that is not reached fails the run by itself."""
    deeds = Deeds(
        kills=Counter(broker=14, producer=10, consumer=16),
        at_work=Counter(broker=9, producer=7, consumer=8),
        crashes=Counter(after_append_before_sync=1),
        fenced=Counter(producer=1, consumer=1),
    )
    events = Counter({"commit.synced": 300})
    assert check_deeds(deeds, events, 1, 0) == []
    assert check_deeds(deeds, events, 0, 0) != []
    assert check_deeds(deeds, events, 1, 3) != []
    assert check_deeds(deeds, Counter(), 1, 0) != []
    for change in (
        {"kills": deeds.kills - Counter(producer=1)},
        {"at_work": Counter(broker=9)},
        {"crashes": Counter()},
        {"fenced": Counter(producer=1)},
        {"fenced": Counter(consumer=1)},
    ):
        assert check_deeds(replace(deeds, **change), events, 1, 0) != []
