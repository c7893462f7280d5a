"""The sweep finds what it is for: each forgotten step of a small checkpoint, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from oncemq.sim.disk.crash import Selection, sweep
from oncemq.sim.disk.disk import SimDisk

VERSIONS = (b"first version", b"the second version", b"third")


class Checkpoint:
    """Write-temp, sync, rename, sync-directory, three times; `without` leaves steps out.

    A promise is the number of versions whose checkpoint has returned; one more may be there.
    """

    def __init__(self, *without: str) -> None:
        self.without = without

    def nothing(self) -> int:
        return 0

    def run(self, disk: SimDisk, promise: Callable[[int], None]) -> None:
        for number, version in enumerate(VERSIONS, 1):
            self.save(disk, version)
            promise(number)

    def save(self, disk: SimDisk, version: bytes) -> None:
        if disk.exists("data.tmp"):
            disk.unlink("data.tmp")
        file = disk.create("data.tmp")
        file.write(version, 0)
        if "sync" not in self.without:
            file.sync()
        file.close()
        disk.rename("data.tmp", "data")
        if "directory sync" not in self.without:
            disk.sync_directory("")

    def load(self, disk: SimDisk) -> int:
        if not disk.exists("data"):
            return 0
        return 1 + VERSIONS.index(disk.open("data").read(0, 100))

    def recover(self, disk: SimDisk, promised: int) -> int:
        found = self.load(disk)
        if found and "rewrite" not in self.without:  # it may be in the page cache only
            self.save(disk, VERSIONS[found - 1])
        return max(found, promised)

    def check(self, disk: SimDisk, promised: int) -> None:
        assert self.load(disk) in (promised, promised + 1), "a checkpoint was lost"


def test_a_correct_checkpoint_survives_everything() -> None:
    """No violation in any crash, nor in any crash of its recovery."""
    report = sweep(Checkpoint(), disk=lambda: SimDisk(sector_bytes=4), second=Selection(seeds=4))
    assert report.violations == [], str(report)
    assert report.calls > 20
    assert report.crashes > report.calls
    assert report.looked_at > 10
    assert report.second_crashes > report.second_looked_at > 0
    assert "zero violations" in str(report)


@pytest.mark.parametrize("step", ["sync", "directory sync"])
def test_a_forgotten_step_is_found(step: str) -> None:
    """Without the file sync, or without the directory sync, a returned checkpoint is lost."""
    report = sweep(Checkpoint(step), disk=lambda: SimDisk(sector_bytes=4), violations_max=3)
    assert len(report.violations) == 3
    assert "VIOLATIONS" in str(report)
    assert "crash before call" in str(report.violations[0])


def test_a_recovery_that_trusts_the_page_cache_is_found_by_the_second_crash() -> None:
    """Read after a kill, promised, then lost in a power cut: only two crashes show it."""
    case = Checkpoint("rewrite")
    alone = sweep(case, disk=lambda: SimDisk(sector_bytes=4))
    assert alone.violations == []
    report = sweep(case, disk=lambda: SimDisk(sector_bytes=4), second=Selection())
    assert any("second crash" in violation.where for violation in report.violations)


def test_a_lying_disk_is_found() -> None:
    """The lie of a disk counts like a forgotten call."""

    def lying() -> SimDisk:
        disk = SimDisk(sector_bytes=4)
        disk.lie("sync_directory", nth=2, times=1)
        return disk

    assert sweep(Checkpoint(), disk=lying).violations


def test_prefixes_can_be_bounded() -> None:
    """A long list of pending writes is cut at evenly spread places."""
    disk = SimDisk(sector_bytes=4)
    disk.create("a").write(bytes(400), 0)
    every = Selection(seeds=0).cuts(disk)
    some = Selection(seeds=0, prefixes=10).cuts(disk)
    assert len(every) == 5 + len(disk.pending()) - 1
    assert len(some) == 5 + 10


def test_one_in_so_many_recoveries_is_crashed_again() -> None:
    """`second_every` bounds the work of the second crash."""
    all_of_them = sweep(Checkpoint(), second=Selection(seeds=1))
    some = sweep(Checkpoint(), second=Selection(seeds=1), second_every=5)
    assert 0 < some.second_calls < all_of_them.second_calls
    assert some.crashes == all_of_them.crashes
