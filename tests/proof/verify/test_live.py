"""Proofs of a system that goes on between any two reads: no look cries, and none contradicts another."""

from __future__ import annotations

import itertools

import pytest

from oncemq.ids import output_producer
from oncemq.proof.checks.evidence import Evidence
from oncemq.proof.checks.verdict import run_checks
from oncemq.proof.verify.verify import Report, verify
from oncemq.storage.memory import MemoryDisk
from tests.proof.golden import DATA, STATE, explicit, numbered, shop
from tests.proof.live import MovingDisk

SENDER = output_producer("billing", "orders", 0)


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("place", [DATA, STATE])
def test_no_look_cries_whatever_is_committed_between_two_reads(place: str, every: int) -> None:
    """A message is stored, processed and answered by an output while log or ledger is read."""
    disk = MemoryDisk()
    broker, consumer = shop(disk)
    consumer.commit(8, ["o-4"])
    numbers = itertools.count()

    def go_on(path: str) -> None:
        if not path.startswith(place) or door.calls % every:
            return
        number = next(numbers)
        name, batch = f"live-{number}", numbered(1, b"%d" % number)
        offset = broker.store("orders", explicit(name))
        output = consumer.output("invoices", batch)
        consumer.commit(offset + 1, [name], outputs=[output])
        broker.store("invoices", batch, producer=SENDER)

    door = MovingDisk(disk, go_on)
    earlier: list[Report] = []
    for _ in range(4):
        report = verify(door, DATA, STATE, keep_max=10_000)
        verdict = run_checks(Evidence(report=report, earlier=earlier[-1:]))
        assert verdict.ok, verdict.found.kept
        earlier.append(report)
    assert next(numbers) > 8
    assert earlier[-1].topics["orders"]["groups"]["billing"]["processed"] > 8
