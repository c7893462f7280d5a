"""The proof of the fenced log: crash it at every call to the disk, in every way, twice.

`make crash` (ONCEMQ_TEST_CRASH_ALL=1) runs the full product: every first crash with every second one.
Without it all first crashes are made, and the second crash in one of `SECOND_EVERY` recoveries,
with fewer prefixes and seeds. The figures are printed either way.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from oncemq.sim.disk.crash import Selection, SweepReport, sweep
from oncemq.sim.disk.cuts import LoseEverything
from oncemq.sim.disk.disk import SimDisk
from tests.storage.crash_log import LogCase, Promise

ALL = os.environ.get("ONCEMQ_TEST_CRASH_ALL") == "1"
SECOND_EVERY = 1 if ALL else 100
FIRST = Selection(seeds=16)
LESS = FIRST if ALL else Selection(seeds=4, prefixes=4)
SECOND = Selection(seeds=16) if ALL else Selection(seeds=3, prefixes=3)
SECTOR_BYTES = 256

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600 if ALL else 1200)]


def new_disk() -> SimDisk:
    """A disk with small sectors: groups of some hundred bytes lie in several."""
    return SimDisk(sector_bytes=SECTOR_BYTES)


def run_sweep(
    case: LogCase,
    title: str,
    disk: Callable[[], SimDisk] = new_disk,
    *,
    first: Selection = FIRST,
    proof: bool = True,
) -> SweepReport:
    """Sweep and print the figures. A counter-proof stops at the first violation."""
    began = time.perf_counter()
    report = sweep(
        case,
        disk=disk,
        selection=first,
        second=SECOND if proof else None,
        second_every=SECOND_EVERY,
        violations_max=5 if proof else 1,
    )
    print(f"\n{title}: {report}; {time.perf_counter() - began:.1f} s")
    for violation in report.violations:
        print(f"  {violation}")
    return report


@pytest.mark.parametrize("ledger", [False, True], ids=["broker", "ledger"])
def test_nothing_promised_is_lost_wherever_the_power_goes(ledger: bool) -> None:
    """Create, grow, roll, attest, snapshot, discard, close, reopen: no crash breaks a promise."""
    report = run_sweep(LogCase(ledger=ledger), "ledger" if ledger else "broker log")
    assert report.violations == []
    assert report.calls > 200
    assert report.crashes > 10 * report.states
    assert report.second_crashes > 10 * report.states


def test_nothing_promised_is_lost_without_hard_links() -> None:
    """Where links fail, sealed segments are copied: the same promises hold."""
    report = run_sweep(
        LogCase(),
        "without links",
        lambda: SimDisk(sector_bytes=SECTOR_BYTES, links=False),
        first=LESS,
    )
    assert report.violations == []


def lying(kind: str, path: str = "", nth: int = 1, times: int = 1_000_000) -> SimDisk:
    """A disk on which some syncs return without doing anything."""
    disk = new_disk()
    disk.lie(kind, path=path, nth=nth, times=times)
    return disk


@pytest.mark.parametrize(
    ("kind", "path", "why"),
    [
        ("sync_directory", "", "no directory is ever synced"),
        ("sync_directory", "gen-", "names inside generations are not synced"),
        ("sync", "", "no file is ever synced"),
        ("sync", "MANIFEST", "manifests are renamed into place unsynced"),
        ("sync", ".log", "segments are not synced"),
        ("sync", "snap-", "snapshots are renamed into place unsynced"),
        ("sync", "part-", "parts of snapshots are not synced"),
    ],
)
def test_a_forgotten_sync_is_found(kind: str, path: str, why: str) -> None:
    """The same sweep over a log that forgets one kind of sync finds a broken promise."""
    report = run_sweep(LogCase(), why, lambda: lying(kind, path), proof=False)
    assert report.violations


def test_single_directory_syncs_are_missed() -> None:
    """One directory sync at a time is left out (every one with ONCEMQ_TEST_CRASH_ALL, else one in
    four); a power cut that loses everything unsynced tells which ones carry a promise.
    """
    disk = new_disk()
    names: list[str] = []
    disk.observer = lambda kind, path: names.append(path) if kind == "sync_directory" else None
    LogCase().run(disk, lambda _promised: None)
    places = range(1, len(names) + 1, 1 if ALL else 4)
    needed = [nth for nth in places if missed("sync_directory", nth)]
    print(f"\n{len(needed)} of {len(places)} directory syncs are missed when left out:")
    for nth in places:
        print(f"  {nth} {names[nth - 1]}: {'missed' if nth in needed else 'redundant'}")
    assert len(needed) > len(places) // 4


def missed(kind: str, nth: int) -> bool:
    """Tell whether a sweep finds that the `nth` call of `kind` did nothing."""
    report = sweep(
        LogCase(),
        disk=lambda: lying(kind, nth=nth, times=1),
        selection=Selection(only=(LoseEverything(),)),
        violations_max=1,
    )
    return bool(report.violations)


def test_the_check_is_not_vacuous() -> None:
    """Told that more was acknowledged than was, or less was written, the check objects."""
    case = LogCase()
    disk = new_disk()
    last: list[Promise] = []
    case.run(disk, last.append)
    promised = case.recover(disk, last[-1])
    with pytest.raises(AssertionError, match="ends below"):
        case.recover(disk, replace(promised, durable_end=promised.durable_end + 1))
    disk = disk.copy()  # the failed check left its process and its lock behind
    with pytest.raises(AssertionError, match="invented"):
        case.recover(disk, replace(promised, written=promised.written[:-1]))
    disk = disk.copy()
    with pytest.raises(AssertionError, match="missing or changed"):
        case.recover(disk, replace(promised, written=(promised.written[-1],)))
