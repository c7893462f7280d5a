"""`park_limit`: messages that fail in a row with one type of error are the handler's fault."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest

from oncemq import App
from oncemq.core.consumer.ledger import Ledger
from oncemq.errors import ParkLimitReached, Reject
from oncemq.limits import PARK_LIMIT_DEFAULT
from oncemq.records import Committed, LedgerStarted, Parked, Skipped
from tests.core.consumer.letters_help import letters
from tests.core.consumer.world import Member, World


@pytest.fixture
def world() -> World:
    return World()


def handler_that_fails(errors: dict[str, BaseException]) -> Any:
    def handle(message: Any, tx: Any) -> None:
        error = errors.get(message.value)
        if error is not None:
            raise error
        tx.state["handled"] = tx.state.get("handled", 0) + 1

    return handle


_numbers = count()
BAD = {"reject": Reject("no"), "value": ValueError("v"), "key": KeyError("k")}


def run_over(world: World, *values: str, **options: Any) -> Member:
    """Send these, and let a member with a limit of 3 handle all it can."""
    for value in values:
        world.send(value, id=f"m-{next(_numbers)}")
    member = world.member(handler_that_fails(BAD), **{"retries": 0, "park_limit": 3, **options})
    world.run(lambda: member.error is not None or world.drained(member), member)
    return member


def test_one_more_than_the_limit_stops_the_consumer(world: World) -> None:
    """It is not parked; the sentence names count, type, message and way out."""
    member = run_over(world, *["reject"] * 5)
    assert len(letters(world)) == 3
    assert isinstance(member.error, ParkLimitReached)
    told = str(member.error)
    assert "3 messages in a row were parked with Reject" in told
    assert "at offset 3 is not parked: Reject: no" in told
    assert "--park-limit" in told
    assert member.core.ledger.next_offset == 3


@pytest.mark.parametrize(
    "values",
    [
        ["value", "value", "value", "good", "value", "value", "value"],
        ["value", "value", "key", "value", "value", "key", "value"],
        ["good", "value", "value", "value", "key", "key", "key"],
    ],
)
def test_other_messages_and_other_errors_end_a_row(world: World, values: list[str]) -> None:
    """Also within one call, in which some are handled before the next one fails."""
    member = run_over(world, *values)
    assert member.error is None
    assert len(letters(world)) == len([value for value in values if value != "good"])
    world.stop(member)


def test_a_restart_does_not_begin_the_count_anew(world: World) -> None:
    """A supervisor that starts it again parks nothing more; a mended handler goes on."""
    run_over(world, *["value"] * 6)
    for _ in range(2):
        again = run_over(world)
        assert isinstance(again.error, ParkLimitReached)
    assert len(letters(world)) == 3
    larger = run_over(world, park_limit=5)
    assert isinstance(larger.error, ParkLimitReached)
    assert len(letters(world)) == 5
    before = BAD.pop("value")
    try:
        mended = run_over(world)
        assert mended.error is None
        world.stop(mended)
    finally:
        BAD["value"] = before
    assert isinstance(run_over(world, *["value"] * 4).error, ParkLimitReached)
    assert len(letters(world)) == 8


def test_without_a_limit_all_are_parked(world: World) -> None:
    """None is for topics in which long rows of bad messages are everyday business."""
    member = run_over(world, *["reject"] * (PARK_LIMIT_DEFAULT + 5), park_limit=None)
    assert member.error is None
    assert len(letters(world)) == PARK_LIMIT_DEFAULT + 5
    world.stop(member)


def test_the_default_limit(world: World) -> None:
    """100."""
    member = run_over(world, *["reject"] * 105, park_limit=PARK_LIMIT_DEFAULT)
    assert isinstance(member.error, ParkLimitReached)
    assert len(letters(world)) == PARK_LIMIT_DEFAULT == 100


def test_what_the_ledger_keeps_of_a_row() -> None:
    """Over a snapshot and back; an operator's move ends it; old records without a type make none."""
    topic = b"t" * 16
    ledger = Ledger()
    ledger.apply(LedgerStarted("g", "t", 0, topic, b"l" * 16, b"n" * 16, 0), 0)

    def commit(parked: str | None, *, moved: bool = False) -> None:
        at, number = ledger.next_offset, ledger.commit_no + 1
        record = Committed(1, number, [(topic, at + 1)], [("p", at, 1)], b"", {}, [])
        if parked is not None:
            record.parked.append(Parked(topic, at, "raised", 1, parked))
        if moved:
            record.ranges.clear()
            record.skipped.append(Skipped(topic, at, at + 1, "by order"))
        ledger.apply(record, 0)

    for _ in range(2):
        commit("ValueError")
    kept = Ledger()
    kept.restore(ledger.snapshot().parts)
    for one in (ledger, kept):
        assert (one.parked_row, one.row_error) == (2, "ValueError")
    commit(None, moved=True)
    assert ledger.parked_row == 0
    for _ in range(2):
        commit("")
    assert ledger.parked_row == 0


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "none", True])
def test_a_limit_is_a_number_or_none(wrong: Any) -> None:
    """Said at decoration."""
    with pytest.raises(ValueError, match="park_limit is a number from 1"):
        App().consumer("t", group="g", park_limit=wrong)(lambda message, tx: None)
