"""Zombies, exactly: a takeover at every call of the old owner, and every call of a takeover
interrupted by the old owner or by a third process. Whoever was told "synced" is in the log.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import pytest

from actors.errors import DiskFull, Fenced
from actors.sim.cuts import CutPolicy, KeepEverything, LoseEverything
from actors.sim.disk import SimDisk, SimProcess
from actors.storage.log import FencedLog, create
from tests.storage.crash_log import DIRECTORY, LOG_ID, OWNER, SEGMENT_BYTES
from tests.storage.crash_turns import Turns, every_switch

CUTS: tuple[CutPolicy, ...] = (LoseEverything(), KeepEverything())


@dataclass
class Actor:
    """A process with a log; notes what it was told, until it is fenced."""

    name: bytes
    process: SimProcess
    log: FencedLog | None = None
    told: list[tuple[int, bytes]] = field(default_factory=list)  # records whose sync returned
    fenced: bool = False
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
        except Fenced:
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


@contextmanager
def at_call(disk: SimDisk, call: int, act: Callable[[], None]) -> Iterator[list[int]]:
    """While inside, run `act` just before call number `call`; yields the number of calls met."""
    met = [0]
    busy = False

    def look(_kind: str, _path: str) -> None:
        nonlocal busy
        if busy:
            return
        met[0] += 1
        if met[0] == call:
            busy = True
            act()
            busy = False

    disk.observer = look
    try:
        yield met
    finally:
        disk.observer = None


def stage() -> tuple[SimDisk, Actor, Actor, Actor]:
    """A log whose first owner has stored something, and two processes that will want it."""
    disk = SimDisk(sector_bytes=256)
    create(disk, DIRECTORY, log_id=LOG_ID, owner=OWNER)
    first = Actor(b"first", disk.process("first"))
    first.open(2)
    first.group(0)
    return disk, first, Actor(b"second", disk.process("second")), Actor(b"third", disk.process("3"))


def check(disk: SimDisk, where: str, *actors: Actor) -> None:
    """All that anybody was told is in the log, once and at its place, also after a power cut;
    what was discarded has a snapshot in its place.
    """
    for policy in CUTS:
        left = disk.after_power_cut(policy)
        reader = Actor(b"reader", left.process("reader"))
        reader.open(100)
        assert reader.log is not None, where
        start = reader.log.start
        found = [(record.position, bytes(record.body)) for record in reader.log.replay(start)]
        assert start == 0 or reader.log.snapshots(), where
        for actor in actors:
            told = [record for record in actor.told if record[0] >= start]
            assert [record for record in told if record not in found] == [], where
        assert len({body for _, body in found}) == len(found), where


def sweep_calls(run: Callable[[int], int]) -> int:
    """Run with an interruption at call 1, 2, ... until the work has fewer calls; count them."""
    call = 1
    while run(call) >= call:
        call += 1
    return call - 1


@pytest.mark.slow
def test_a_takeover_at_any_call_of_the_owner() -> None:
    """A frozen owner wakes up anywhere in its work: it ends Fenced, or the successor has it all."""
    fenced = 0

    def run(call: int) -> int:
        nonlocal fenced
        disk, first, second, _ = stage()

        def take_over() -> None:
            second.open(5)
            second.group(1)

        with at_call(disk, call, take_over) as met:
            first.work()
        second.group(2)
        fenced += first.fenced
        check(disk, f"takeover at call {call}", first, second)
        if met[0] >= call:
            assert first.fenced, f"the old owner worked on after a takeover at call {call}"
            assert not second.fenced
            assert len(second.told) == 6
        return met[0]

    calls = sweep_calls(run)
    print(f"\ntakeover at each of {calls} calls of the owner, {fenced} fenced: zero violations")
    assert calls > 30
    assert fenced == calls


@pytest.mark.slow
def test_the_owner_works_at_any_call_of_the_takeover() -> None:
    """The old owner writes while it is being replaced: what it was told, the successor has."""
    kept = 0

    def run(call: int) -> int:
        nonlocal kept
        disk, first, second, _ = stage()
        with at_call(disk, call, first.work) as met:
            second.open(5)
        kept += len(first.told) > 3
        second.group(1)
        assert not second.fenced
        check(disk, f"owner at call {call}", first, second)
        return met[0]

    calls = sweep_calls(run)
    print(f"\nowner works at each of {calls} calls of the takeover: zero violations")
    assert calls > 20
    assert kept > 0, "the owner was never early enough to be told anything"


@pytest.mark.slow
def test_a_third_process_at_any_call_of_the_takeover() -> None:
    """A takeover that is overtaken ends Fenced, at the latest at its first sync."""

    def run(call: int) -> int:
        disk, first, second, third = stage()

        def overtake() -> None:
            third.open(9)
            third.group(1)

        with at_call(disk, call, overtake) as met:
            second.open(5)
            second.group(1)
        first.group(1)
        third.group(2)
        check(disk, f"overtaken at call {call}", first, second, third)
        if met[0] >= call:
            assert second.fenced, f"overtaken at call {call}"
            assert not third.fenced
            assert first.fenced
        return met[0]

    calls = sweep_calls(run)
    print(f"\novertaken at each of {calls} calls of the takeover: zero violations")
    assert calls > 30


STRIDE = 1 if os.environ.get("ONCEMQ_CRASH_ALL") == "1" else 17


def interleave(owner: Callable[[Actor], None], prepare: Callable[[SimDisk], None]) -> int:
    """Interleave an owner's work with a takeover at every pair of switches; count them."""

    def run(i: int, j: int) -> tuple[int, int]:
        disk, first, second, third = stage()
        first.group(9)
        prepare(disk)

        def take_over() -> None:
            second.open(5)
            second.group(1)

        turns = Turns(disk, i, j)
        turns.run(lambda: owner(first), take_over)
        where = f"switches at call {i} of the owner and call {j} of the takeover"
        assert not second.fenced, where
        second.group(2)
        check(disk, where, first, second)
        third.open(9)
        third.group(1)
        check(disk, where, first, second, third)
        return turns.calls(0), turns.calls(1)

    return every_switch(run, STRIDE)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_owner_and_a_takeover_with_two_switches() -> None:
    """The owner stops anywhere, the takeover stops anywhere, the owner goes on to its end, then
    the takeover: what either was told is in the log, and the log is whole.
    """
    count = interleave(Actor.work, lambda _disk: None)
    print(f"\n{count} interleavings of owner and takeover: zero violations")
    assert count > 200


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_owner_with_a_full_disk_and_a_takeover_with_two_switches() -> None:
    """A roll that fails leaves no trace: the owner goes on in the old segment, and a successor
    that saw the unfinished one is not harmed by that.
    """
    refused = 0

    def owner(first: Actor) -> None:
        nonlocal refused
        first.group(2)  # rolls, in vain
        refused += first.refused
        if first.log is not None and not first.fenced:
            with suppress(Fenced):
                first.log.attest()

    count = interleave(
        owner,
        lambda disk: disk.inject("sync_directory", errno.ENOSPC, path="gen-00000000000000000002"),
    )
    print(f"\n{count} interleavings on a full disk, {refused} refused: zero violations")
    assert refused > 0
