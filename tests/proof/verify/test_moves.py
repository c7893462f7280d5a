"""The proof of groups whose offset an operator moved: skipped is not lost, and not twice."""

from __future__ import annotations

from typing import Any

import pytest

from oncemq.codec import wire
from oncemq.core.consumer.ledger import Ledger
from oncemq.proof.checks.evidence import Evidence
from oncemq.proof.checks.verdict import run_checks
from oncemq.proof.verify.verify import Report, verify
from oncemq.records import Committed, LedgerStarted, Skipped
from oncemq.storage.memory import MemoryDisk
from tests.proof.golden import (
    DATA,
    LOG_ID,
    STATE,
    Broker,
    Consumer,
    explicit,
    numbered,
    put,
    topic_id,
)

ORDERS = topic_id("orders")


class Moved:
    """Ten messages, half with explicit ids and half numbered, and a group that is moved about."""

    def __init__(self) -> None:
        self.disk = MemoryDisk()
        self.broker = Broker(self.disk)
        self.broker.topic("orders")
        self.broker.producer("p")
        self.broker.store("orders", explicit(*"abcde"))
        self.broker.store("orders", numbered(5), producer="p")
        self.broker.grant("billing", "orders", 0, 2)
        self.consumer = Consumer(self.disk, "billing", "orders", segment_bytes=4096)
        self.consumer.start()
        self.core = Ledger()
        self.core.apply(LedgerStarted("billing", "orders", 0, ORDERS, LOG_ID, LOG_ID, 0), 0)

    def handle(self, following: int, ids: str = "", ranges: Any = ()) -> None:
        self.core.apply(self.consumer.commit(following, ids, ranges=ranges), 0)

    def move(self, to: int, *, said: tuple[int, int] | None = None) -> None:
        consumer = self.consumer
        consumer.number += 1
        first, following = said or (consumer.offset, to)
        record = Committed(2, consumer.number, [(ORDERS, to)], [], b"", {})
        record.skipped = [Skipped(ORDERS, first, following, "by order")]
        put(consumer.log, record)
        consumer.offset = to
        if said is None:
            self.core.apply(record, 0)

    def snapshot(self) -> None:
        snapshot = self.core.snapshot()
        packed = {name: wire.pack_plain(part) for name, part in snapshot.parts.items()}
        self.consumer.log.write_snapshot(self.consumer.log.durable_end, packed, snapshot.keep)

    def report(self) -> Report:
        return verify(self.disk, DATA, STATE)

    def row(self) -> dict[str, int]:
        report = self.report()
        assert report.ok, report.found.kept
        row = report.topics["orders"]["groups"]["billing"]
        return {name: row.get(name, 0) for name in
                ("processed", "skipped", "skipped_by_operator", "pending")}  # fmt: skip


def counts(processed: int, skipped: int, by_operator: int, pending: int) -> dict[str, int]:
    return {
        "processed": processed,
        "skipped": skipped,
        "skipped_by_operator": by_operator,
        "pending": pending,
    }


def test_what_is_jumped_over_is_skipped_by_an_operator() -> None:
    """In both kinds of ids, also in the middle of a batch."""
    moved = Moved()
    moved.handle(2, "ab")
    moved.move(7)
    moved.handle(10, ranges=[("p", 2, 3)])
    assert moved.row() == counts(5, 0, 5, 0)


def test_after_going_back_the_skipped_ones_are_processed_once() -> None:
    """Nothing is told of messages that are processed again by nobody."""
    moved = Moved()
    moved.handle(2, "ab")
    moved.move(7)
    moved.handle(10, ranges=[("p", 2, 3)])
    moved.move(0)
    assert moved.row() == counts(5, 0, 0, 5)
    moved.handle(5, "cde")
    moved.handle(10, ranges=[("p", 0, 2)])
    assert moved.row() == counts(10, 0, 0, 0)


def test_skipping_what_was_processed_counts_it_as_processed() -> None:
    """Back and forward again: only what was never handled is skipped."""
    moved = Moved()
    moved.handle(3, "abc")
    moved.move(0)
    moved.move(5)
    assert moved.row() == counts(3, 0, 2, 5)


def test_a_message_processed_twice_after_going_back_is_found() -> None:
    """The processed set must leave it out: this ledger's consumer forgot."""
    moved = Moved()
    moved.handle(5, "abcde")
    moved.move(0)
    moved.handle(5, "abcde")
    assert set(moved.report().found.counts) == {"I7-effect-once"}


def test_a_numbered_message_processed_twice_after_going_back_is_found() -> None:
    """The same with numbers."""
    moved = Moved()
    moved.handle(5, "abcde")
    moved.handle(10, ranges=[("p", 0, 5)])
    moved.move(5)
    moved.handle(10, ranges=[("p", 0, 5)])
    assert set(moved.report().found.counts) == {"I7-effect-once"}


def test_a_message_lost_beside_a_skipped_range_is_found() -> None:
    """What the record does not name is missing."""
    moved = Moved()
    moved.move(3)
    moved.handle(5, "d")
    moved.handle(8, ranges=[("p", 0, 2)])
    assert set(moved.report().found.counts) == {"I8-commit-covers"}


@pytest.mark.parametrize(
    ("to", "said", "check"),
    [
        (7, (3, 7), "I8-commit-covers"),
        (7, (2, 8), "P9-parked"),
        (0, (2, 1), "I8-commit-monotone"),
        (0, (3, 0), "I8-commit-monotone"),
    ],
)
def test_a_move_that_says_something_else_is_found(
    to: int, said: tuple[int, int], check: str
) -> None:
    """The range that is named must be the one that is jumped over, or gone back."""
    moved = Moved()
    moved.handle(2, "ab")
    moved.move(to, said=said)
    assert check in moved.report().found.counts


def test_an_offset_that_goes_back_without_an_order_is_found() -> None:
    """As before there were orders."""
    moved = Moved()
    moved.handle(5, "abcde")
    moved.consumer.commit(2)
    assert "I8-commit-monotone" in moved.report().found.counts


@pytest.mark.parametrize("after", [False, True], ids=["as it is", "going on"])
def test_a_compacted_ledger_tells_the_same(after: bool) -> None:
    """Skipped ranges and the place once reached are in the snapshot."""
    moved = Moved()
    moved.handle(5, "abcde")
    moved.move(8)
    moved.move(6)
    expected = counts(5, 0, 1, 4)
    if after:
        moved.handle(8, ranges=[("p", 1, 2)])
        expected = counts(7, 0, 1, 2)
    assert moved.row() == expected
    for number in range(90):
        filler = moved.consumer.commit(moved.consumer.offset, state={"filler": b"x" * 200})
        moved.core.apply(filler, 0)
        if number % 30 == 29:
            moved.snapshot()
    moved.consumer.log.discard(moved.consumer.log.durable_end)
    assert moved.consumer.log.start > 0
    assert moved.row() == expected


def test_the_evidence_of_a_run_knows_moves() -> None:
    """Checks over histories neither miss what was skipped nor call going back a fault."""
    moved = Moved()
    moved.handle(2, "ab")
    moved.move(7)
    moved.move(1)
    earlier = verify(moved.disk, DATA, STATE, keep_max=100)
    moved.move(0)
    report = verify(moved.disk, DATA, STATE, keep_max=100)
    assert report.kept is not None
    (ledger,) = report.kept.ledgers
    assert (ledger.next_offset, ledger.reached) == (0, 7)
    verdict = run_checks(Evidence(report=report, earlier=[earlier]))
    assert verdict.ok, verdict.found.kept
