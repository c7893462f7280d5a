"""Two processes on one log, interleaved call by call: every run with two switches.

The first stops at its call i, the second runs to its call j, the first goes on to its end, then
the second. ONCEMQ_TEST_CRASH_ALL=1 takes every pair (i, j), else one in STRIDE.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress

import pytest

from oncemq.errors import Fenced, StorageError
from oncemq.sim.disk.cuts import LoseEverything
from oncemq.sim.disk.disk import SimDisk
from oncemq.storage.outside_reader import LogReader
from tests.storage.crash_actors import Actor, check, found_in, stage
from tests.storage.crash_turns import Turns, every_switch
from tests.storage.loghelp import DIRECTORY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

STRIDE = 1 if os.environ.get("ONCEMQ_TEST_CRASH_ALL") == "1" else 17


CALLS_MAX = 120


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
        return turns.calls[0], turns.calls[1]

    return every_switch(run, STRIDE)


def test_an_owner_and_a_takeover_with_two_switches() -> None:
    """The owner stops anywhere, the takeover stops anywhere, the owner goes on to its end, then
    the takeover: what either was told is in the log, and the log is whole.
    """
    count = interleave(Actor.work, lambda _disk: None)
    print(f"\n{count} interleavings of owner and takeover: zero violations")
    assert count > 200


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


def test_two_takeovers_with_two_switches() -> None:
    """Two processes take over at once: the higher number has it in the end, the other is fenced,
    and what either was told before that is in the log.
    """

    def run(i: int, j: int) -> tuple[int, int]:
        disk, first, second, third = stage()
        first.group(9)

        def take_over(actor: Actor, generation: int) -> None:
            actor.open(generation)
            actor.group(1)

        turns = Turns(disk, i, j)
        turns.run(lambda: take_over(second, 5), lambda: take_over(third, 9))
        where = f"switches at call {i} of generation 5 and call {j} of generation 9"
        third.group(2)
        second.group(2)
        assert second.fenced, where
        assert not third.fenced, where
        check(disk, where, first, second, third)
        # One that finds its new lock taken tries a thousand times: no news in those calls.
        return min(turns.calls[0], CALLS_MAX), min(turns.calls[1], CALLS_MAX)

    count = every_switch(run, STRIDE)
    print(f"\n{count} interleavings of two takeovers: zero violations")
    assert count > 200


class Reader:
    """A process that only looks; what it printed must survive a power cut at that instant."""

    def __init__(self, disk: SimDisk) -> None:
        self.disk = disk
        self.process = disk.process("reader")
        self.printed: list[tuple[int, bytes]] | None = None
        self.start = 0
        self.left = disk

    def read(self) -> None:
        """Read once; a reader that must wait prints nothing."""
        with suppress(StorageError):
            reader = LogReader.open(self.process, DIRECTORY)
            self.left = self.disk.after_power_cut(LoseEverything())
            self.start = reader.start
            self.printed = [(record.position, bytes(record.body)) for record in reader.replay()]

    def check(self, where: str, told: list[tuple[int, bytes]]) -> None:
        """It prints all that was acknowledged before it began, and only durable records."""
        if self.printed is not None:
            expected = [record for record in told if record[0] >= self.start]
            assert self.printed[: len(expected)] == expected, where
            start, found = found_in(self.left, where)
            assert [r for r in self.printed if r[0] >= start and r not in found] == [], where


@pytest.mark.parametrize("what", ["owner", "takeover"])
def test_a_reader_with_two_switches(what: str) -> None:
    """A reader beside a working owner, or beside a takeover, sees no damage, misses nothing that
    was told before, and prints nothing that a power cut could still take back.
    """
    printed = 0

    def run(i: int, j: int) -> tuple[int, int]:
        nonlocal printed
        disk, first, second, _ = stage()
        first.group(9)
        told = list(first.told)
        reader = Reader(disk)

        def take_over() -> None:
            second.open(5)
            second.group(1)

        turns = Turns(disk, i, j)
        turns.run(first.work if what == "owner" else take_over, reader.read)
        reader.check(f"switches at call {i} of the {what} and call {j} of the reader", told)
        printed += reader.printed is not None
        return turns.calls[0], turns.calls[1]

    count = every_switch(run, STRIDE)
    print(f"\n{count} interleavings of {what} and reader, {printed} printed: zero violations")
    assert printed > count // 4
