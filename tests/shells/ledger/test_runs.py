"""The files of the processed set of a ledger: a crash at every call, damage, loss, a full disk."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from oncemq.core.consumer.ledger import Ledger
from oncemq.driver import DISK_FULL_RETRY_MS, Driver, Silence
from oncemq.errors import CorruptLog
from oncemq.library.embedded.ledger import Keep, _LedgerCore
from oncemq.limits import Limits
from oncemq.ports import Background
from oncemq.sim.disk.crash import Selection, sweep
from oncemq.sim.disk.disk import SimDisk
from oncemq.sim.processes.late import Late
from oncemq.storage import layout
from oncemq.storage.log import FencedLog
from tests.core.broker.help import Clock, Events

DIRECTORY = "/ledger"
LEDGER_ID = b"i" * 16
SMALL = Limits(ledger_table_ids=2, ledger_table_ids_max=2)
COMMITS = 40


def prints(start: int, end: int) -> bytes:
    return b"".join(
        (n * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128).to_bytes(16, "big")
        for n in range(start, end)
    )


class Names(Events):
    """Events of which the names matter."""

    @property
    def names(self) -> set[str]:
        return {name for name, _ in self.seen}


class Owner:
    """A process that owns the ledger and commits three ids in each turn."""

    def __init__(self, disk: SimDisk, background: Background | None = None) -> None:
        self.events, self.clock = Names(), Clock()
        log = FencedLog.open(
            disk.process("owner"),
            DIRECTORY,
            generation=None,
            owner={},
            create_log_id=LEDGER_ID,
            segment_bytes=900,
        )
        self.core = _LedgerCore()
        self.core.ledger = Ledger(SMALL)
        self.driver = Driver(
            self.core,
            Silence(),
            self.clock,
            self.events,
            perform=lambda _work: None,
            snapshot_every_bytes=700,
            compacts=True,
            files=self.core.ledger.processed,
            background=background,
        )
        try:
            self.driver.open_log(log, DIRECTORY)
        except CorruptLog:
            self.driver.close(clean=False)
            raise
        self.driver.turn(0)

    @property
    def count(self) -> int:
        return self.core.ledger.processed.explicit_count

    def commit(self) -> None:
        self.driver.post(Keep(prints(self.count, self.count + 3)))
        self.driver.turn(0)
        self.driver.turn(0)

    def check(self) -> None:
        """It knows exactly the ids of its commits."""
        processed = self.core.ledger.processed
        assert self.count == self.core.ledger.commit_no * 3
        asked = prints(0, self.count + 5)
        fresh = processed.explicit.fresh(asked, b"")
        assert fresh == bytes(self.count) + b"\1" * 5 if self.count else fresh is None


@dataclass(frozen=True)
class Case:
    """A ledger that makes files, merges them, writes snapshots and discards its log."""

    seed: str

    def run(self, disk: SimDisk, promise: Callable[[int], None]) -> None:
        owner = Owner(disk, Late(self.seed))
        for number in range(1, COMMITS // 2):
            owner.commit()
            promise(number * 3)
        owner.driver.close()

    def nothing(self) -> int:
        return 0

    def recover(self, disk: SimDisk, promised: int) -> int:
        owner = Owner(disk)
        owner.check()
        assert owner.count >= promised
        owner.driver.close(clean=False)
        return owner.count

    def check(self, disk: SimDisk, promised: int) -> None:
        owner = Owner(disk)
        assert owner.count >= promised
        for _ in range(4):
            owner.commit()
        owner.check()


@pytest.mark.slow
def test_the_set_is_that_of_the_ledger_wherever_the_power_goes() -> None:
    """Files, merges, snapshots, discarded log: no crash forgets an id or knows one too many."""
    case = Case("a")
    report = sweep(
        case, disk=lambda: SimDisk(sector_bytes=256), selection=Selection(seeds=1, prefixes=1)
    )
    print(report)
    assert report.violations == []
    assert report.calls > 500


def grown(background: Background | None = None) -> tuple[SimDisk, Owner]:
    """A ledger with two snapshots, whose log reaches back to neither's start."""
    disk = SimDisk()
    owner = Owner(disk, background)
    for _ in range(COMMITS):
        owner.commit()
    owner.driver.close(clean=False)
    return disk, owner


def files_of(disk: SimDisk, owner: Owner) -> tuple[str, list[str], list[str]]:
    """The directory, and the files that the newest snapshot names and the other one does not; and all."""
    log = owner.driver.log
    assert isinstance(log, FencedLog)
    assert log.start > 0
    newest, older = log._snapshots or ()
    mapped = [{p.file for p in info.parts if layout.is_mapped(p.file)} for info in (newest, older)]
    return log._view.path, sorted(mapped[0] - mapped[1]), sorted(mapped[0] & mapped[1])


def flip(disk: SimDisk, path: str, at: int) -> None:
    file = disk.process("vandal").open(path, write=True)
    at %= file.length()
    file.write(bytes([file.read(at, 1)[0] ^ 1]), at)
    file.sync()
    file.close()


@pytest.mark.parametrize("harm", ["lost", "shorter", "footer", "filter", "fence"])
def test_a_harmed_file_of_the_newest_snapshot_is_replayed(harm: str) -> None:
    """The snapshot before and the log behind it make the same set; it is said."""
    disk, owner = grown()
    directory, alone, _ = files_of(disk, owner)
    assert alone, "each snapshot has files of its own"
    for name in alone:
        _harm(disk, f"{directory}/{name}", harm)
    again = Owner(disk)
    again.check()
    assert again.count == owner.count
    assert "snapshot.fallback" in again.events.names


@pytest.mark.parametrize("harm", ["lost", "shorter", "footer", "filter", "fence"])
def test_a_harmed_file_that_the_log_does_not_replace_stops_the_ledger(harm: str) -> None:
    """With the file and the reason; never an empty set."""
    disk, owner = grown()
    directory, _, both = files_of(disk, owner)
    assert both, "snapshots share what has not changed"
    _harm(disk, f"{directory}/{both[0]}", harm)
    with pytest.raises(CorruptLog) as caught:
        Owner(disk)
    assert both[0] in str(caught.value)
    assert harm != "lost" or disk.process("looks").exists(directory), "all else is kept"
    with pytest.raises(CorruptLog, match=both[0]):
        Owner(disk)


@pytest.mark.parametrize("at", [0, 9, 2048, 4095])
def test_a_harmed_block_stops_the_ledger_when_it_is_asked(at: int) -> None:
    """No answer rests on a byte that was not checked."""
    disk, owner = grown()
    directory, _, both = files_of(disk, owner)
    flip(disk, f"{directory}/{both[0]}", at)
    again = Owner(disk)
    with pytest.raises(CorruptLog, match="checksum of a run's block"):
        again.check()


def _harm(disk: SimDisk, path: str, harm: str) -> None:
    process = disk.process("vandal")
    if harm == "lost":
        process.unlink(path)
    elif harm == "shorter":
        content = process.open(path)
        data = content.read(0, content.length() - 8)
        content.close()
        process.unlink(path)
        file = process.create(path)
        file.write(data, 0)
        file.sync()
        file.close()
    else:
        flip(disk, path, {"footer": -2, "filter": -68, "fence": 4096 + 3}[harm])


def test_a_full_disk_holds_files_back_and_forgets_nothing() -> None:
    """Ids wait in memory until there is room; then their file is made."""
    disk = SimDisk()
    owner = Owner(disk)
    disk.inject("write", errno.ENOSPC, path=".map")
    for _ in range(10):
        owner.commit()
    owner.check()
    assert owner.core.ledger.processed.behind
    assert "log.disk_full" in owner.events.names
    disk.faults.clear()
    owner.clock.ms += DISK_FULL_RETRY_MS
    owner.commit()
    assert not owner.core.ledger.processed.behind
    assert "file.made" in owner.events.names
    owner.check()
