"""The power goes at every call to the disk while messages go and what is left is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from oncemq.proof.verify.verify import verify
from oncemq.sim.disk.crash import Selection, sweep
from oncemq.sim.disk.disk import SimDisk
from tests.core.broker.help import entropy, runs
from tests.core.broker.keeping import Keeping, stored_from

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

SLOW_EVERY = 5
BUSY, SLOW = "t", "slow"
DRAWN = entropy()  # by all brokers of this file: each begins a history of its own


@dataclass(frozen=True)
class Promise:
    """What the broker has answered."""

    busy: int = 0
    slow: int = 0
    start: int = 0  # of the busy topic, as a reader was told


class Shop(Keeping):
    """A bounded topic beside one that keeps all, on any disk."""

    def __init__(self, disk: Any, promised: Promise, tell: Callable[[Promise], None]) -> None:
        self.promised, self.tell = promised, tell
        super().__init__("2KB", disk=disk, keep_bytes_min=1500)
        self.topic(SLOW)

    def start(self) -> None:
        self.draw = DRAWN
        super().start()

    def promise(self, **changes: int) -> None:
        self.promised = replace(self.promised, **changes)
        self.tell(self.promised)

    def store(self, count: int) -> None:
        for _ in range(count):
            busy, slow = self.promised.busy, self.promised.slow
            self.send_ids(0, item(BUSY, busy), session=busy.to_bytes(16, "big"))
            self.promise(busy=busy + 1)
            if busy % SLOW_EVERY == 0:
                session = (1 << 64 | slow).to_bytes(16, "big")
                self.send_ids(0, item(SLOW, slow), topic=SLOW, session=session)
                self.promise(slow=slow + 1)
            if busy % 3 == 0:
                self.later()
                told = self.fetch(0).message
                if getattr(told, "code", "") == "offset_trimmed":
                    self.promise(start=self.start_of())

    def check(self) -> None:
        """Nothing that was not deleted is missing, no id is forgotten, nobody is led astray."""
        promised, start = self.promised, self.start_of()
        assert start >= promised.start
        assert stored_from(self, 0, topic=SLOW)[: promised.slow] == [
            f"{number:04}" for number in range(promised.slow)
        ]
        expected = [f"{number:04}" for number in range(start, promised.busy)]
        assert stored_from(self, start)[: len(expected)] == expected
        for number in range(promised.busy):
            session = (2 << 64 | number).to_bytes(16, "big")
            answer = self.send_ids(0, item(BUSY, number), session=session)
            assert runs(answer) == [(1, "duplicate", number)]


def item(topic: str, number: int) -> dict[str, str]:
    return {f"{topic}-{number}": f"{number:04}" + "x" * 150}


class Case:
    """A life of a broker: it stores, forgets, keeps, ends and is killed."""

    def nothing(self) -> Promise:
        return Promise()

    def run(self, disk: SimDisk, promise: Callable[[Promise], None]) -> None:
        process = disk.process("first")
        shop = Shop(process, Promise(), promise)
        shop.store(28)
        assert shop.core.state.kept.parts
        assert shop.log.start > 0
        shop.driver.close(clean=True)
        process.kill()
        process = disk.process("second")
        shop = Shop(process, shop.promised, promise)
        shop.store(12)
        process.kill()

    def recover(self, disk: SimDisk, promised: Promise) -> Promise:
        process = disk.process("recovery")
        shop = Shop(process, promised, lambda _promised: None)
        process.kill()
        return shop.promised

    def check(self, disk: SimDisk, promised: Promise) -> None:
        process = disk.process("check")
        shop = Shop(process, promised, lambda _promised: None)
        shop.check()
        shop.later()
        report = verify(process, "data", None)
        assert report.ok, report.found.kept
        shop.driver.close(clean=True)
        process.kill()


def test_nothing_that_is_left_is_lost_wherever_the_power_goes() -> None:
    """Trimming, copying, discarding: a crash at any call, with any part of what was not synced."""
    report = sweep(
        Case(),
        disk=lambda: SimDisk(sector_bytes=256),
        selection=Selection(seeds=2, prefixes=2),
        violations_max=3,
    )
    assert report.violations == []
    assert report.calls > 400
