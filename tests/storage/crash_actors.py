"""Processes that own, take over and lose a log; each notes what was acknowledged to it."""

from __future__ import annotations

from dataclasses import dataclass, field

from oncemq.errors import DiskFull, Fenced, LogInUse
from oncemq.sim.disk.cuts import CutPolicy, KeepEverything, LoseEverything
from oncemq.sim.disk.disk import SimDisk, SimProcess
from oncemq.storage.log import FencedLog, create
from tests.storage.crash_log import OWNER, SEGMENT_BYTES
from tests.storage.loghelp import DIRECTORY, LOG_ID

CUTS: tuple[CutPolicy, ...] = (LoseEverything(), KeepEverything())


@dataclass
class Actor:
    """A process with a log; notes what was acknowledged to it, until it is fenced."""

    name: bytes
    process: SimProcess
    log: FencedLog | None = None
    told: list[tuple[int, bytes]] = field(default_factory=list)  # records whose sync returned
    fenced: bool = False  # it ended: nothing it still does may count
    refused: int = 0

    def open(self, generation: int) -> None:
        try:
            self.log = FencedLog.open(
                self.process,
                DIRECTORY,
                generation=generation,
                owner=OWNER,
                segment_bytes=SEGMENT_BYTES,
            )
        except (Fenced, LogInUse):  # in use: another opening holds the lock that this one made
            self.fenced = True

    def group(self, number: int) -> None:
        """Append and sync a group, if this process still has a log and the disk has room."""
        if self.log is None or self.fenced:
            return
        bodies = [b"%s %d %d " % (self.name, number, part) * (9 + part) for part in range(3)]
        try:
            self.log.reserve(sum(map(len, bodies)))
            group = [(self.log.append(1, b"", body), body) for body in bodies]
            self.log.sync()
        except Fenced:
            self.fenced = True
        except DiskFull:
            self.refused += 1
        else:
            self.told += group

    def work(self) -> None:
        """Everything that an owner does: groups, rolls, attest, snapshot, discard."""
        self.group(1)
        self.group(2)
        try:
            if self.log is not None and not self.fenced:
                self.log.attest()
                self.log.write_snapshot(self.log.durable_end, {"state": b"s"}, set())
                self.log.discard(self.log.durable_end)
        except Fenced:
            self.fenced = True
        self.group(3)


def stage() -> tuple[SimDisk, Actor, Actor, Actor]:
    """A log whose first owner has stored something, and two processes that will want it."""
    disk = SimDisk(sector_bytes=256)
    create(disk, DIRECTORY, log_id=LOG_ID, owner=OWNER)
    first = Actor(b"first", disk.process("first"))
    first.open(2)
    first.group(0)
    return disk, first, Actor(b"second", disk.process("second")), Actor(b"third", disk.process("3"))


def found_in(left: SimDisk, where: str) -> tuple[int, list[tuple[int, bytes]]]:
    """Open what a power cut left; return (start of the log, records from there)."""
    reader = Actor(b"reader", left.process("reader"))
    reader.open(100)
    assert reader.log is not None, where
    start = reader.log.start
    assert start == 0 or reader.log.snapshots(), where
    return start, [(r.position, bytes(r.body)) for r in reader.log.replay(start)]


def check(disk: SimDisk, where: str, *actors: Actor) -> None:
    """All that was acknowledged is in the log, once and at its place, also after a power cut;
    what was discarded has a snapshot in its place.
    """
    for policy in CUTS:
        start, found = found_in(disk.after_power_cut(policy), where)
        for actor in actors:
            told = [record for record in actor.told if record[0] >= start]
            assert [record for record in told if record not in found] == [], where
        assert len({body for _, body in found}) == len(found), where
