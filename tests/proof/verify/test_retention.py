"""The proof of a log that retention has shortened: what is left of it is checked as before."""

from __future__ import annotations

import pytest

from oncemq.errors import CorruptLog
from oncemq.proof.verify.verify import Report, verify
from tests.core.broker.keeping import Keeping
from tests.storage.loghelp import flip


def churned() -> Keeping:
    world = Keeping("4KB")
    for number in range(100):
        world.fill(1, first=number)
        world.send_ids(number, {f"id-{number}": "v" * 100})
        if number % 4 == 0:
            world.later()
    world.later()
    assert world.log.start > 0
    return world


def proof(world: Keeping) -> Report:
    return verify(world.disk, "data", None)


def test_a_shortened_log_is_proved_from_its_oldest_snapshot_on() -> None:
    """Accepted counts all that were ever stored; what was deleted is named."""
    world = churned()
    report = proof(world)
    assert report.ok, report.found.kept
    assert report.topics["t"]["accepted"] == 200
    assert report.topics["t"]["deleted"] == world.start_of()


def test_damage_below_the_oldest_snapshot_is_found() -> None:
    """Messages that are left of the time before it are read and checked, too."""
    world = churned()
    path = f"data/gen-{world.log.generation:020d}/{world.segments()[0]:020d}.log"
    flip(world.disk, path, 300)
    with pytest.raises(CorruptLog):
        proof(world)


def test_an_index_that_forgot_deleted_ids_is_found() -> None:
    """The ids of messages that are gone belong to the index as all others."""
    world = churned()
    tree = world.core.state.ids._trees[0]
    recent = tree.recent
    tree.recent = lambda: recent()[:, 1:]  # type: ignore[method-assign]
    world.driver.write_snapshot()
    report = proof(world)
    assert set(report.found.counts) == {"I13-atomicity"}
    assert "ids" in report.found.kept[0].explanation


def test_a_deleted_topic_is_left_out() -> None:
    """Its number is not given again, and what a ledger of it says needs no proof."""
    world = churned()
    world.topic("other")
    report = proof(world)
    assert set(report.topics) == {"t", "other"}
