"""Proof and story of messages that were parked, replayed, dropped: from files of real cores."""

from __future__ import annotations

from typing import Any

import pytest

from oncemq.errors import Reject
from oncemq.limits import LEASE_MS
from oncemq.proof.checks.evidence import Evidence
from oncemq.proof.checks.verdict import run_checks
from oncemq.proof.story.explain import explain
from oncemq.proof.verify.verify import Report, verify
from oncemq.shells.ledger.files import ledger_directory
from tests.core.consumer.letters_help import letters, private_done, send_private, with_poison
from tests.core.consumer.world import GROUP, TOPIC, Member, World


class Both:
    """The disks of a world behind one door: the broker's files lie below /broker."""

    def __init__(self, world: World) -> None:
        self._world = world

    def _disk(self, path: str) -> Any:
        disk = self._world.broker_disk if path.startswith("/broker") else self._world.disk
        return disk.process("proof")

    def list(self, directory: str) -> list[str]:
        return list(self._disk(directory).list(directory))

    def open(self, path: str) -> Any:
        return self._disk(path).open(path)

    def lock(self, path: str) -> Any:
        return self._disk(path).lock(path)


def proved(world: World) -> Report:
    report = verify(Both(world), "/broker", world.state)
    assert report.ok, report.found.kept
    return report


def counts(report: Report) -> dict[str, int]:
    return {n: c for n, c in report.topics[TOPIC]["groups"][GROUP].items() if n != "partitions"}


def replayed(world: World, *members: Member) -> None:
    """Run until the private topic is handled too."""
    world.clock.advance(LEASE_MS)
    member = members[-1]
    world.run(lambda: member.core.phase == "running" and private_done(world, member), member)


@pytest.fixture
def world() -> World:
    """Five messages, of which three are parked and two processed."""
    world = World()
    for number in range(5):
        world.send(number, id=f"m{number}")
    world.drain(with_poison(world, Reject("no"), "m1", "m2", "m3"))
    return world


@pytest.mark.parametrize("compact", [False, True])
def test_each_message_is_one_of_processed_parked_skipped(world: World, compact: bool) -> None:
    """Parked; then one replayed, one dropped, one parked again: every count follows."""
    assert counts(proved(world)) == {"processed": 2, "parked": 3, "skipped": 0, "pending": 0}
    first, second, third = letters(world)
    send_private(world, first.replay())
    send_private(world, second.drop())
    send_private(world, third.replay())
    member = with_poison(world, Reject("still not"), "m3")
    replayed(world, member)
    assert len(letters(world)) == 4
    if compact:
        member.actor._driver.write_snapshot()
        member.turn()
        world.stop(member)
    assert counts(proved(world)) == {"processed": 3, "parked": 1, "skipped": 1, "pending": 0}
    assert proved(world).topics[f"{TOPIC}.dead"]["accepted"] == 4


def test_a_ledger_that_lost_its_start_to_compaction_is_proved(world: World) -> None:
    """Counts and ids come from the snapshot, those of the private topic included."""
    send_private(world, letters(world)[0].replay())
    world.segment_bytes = 2_000
    member = world.member()
    replayed(world, member)
    log = member.actor._driver.log
    member.actor._driver.write_snapshot()
    for number in range(40):
        world.send("x", id=f"more{number}")
        world.drain(member)
    member.turn()
    member.actor._driver.write_snapshot()
    log.discard(log.durable_end)
    assert log.start > 0
    assert counts(proved(world))["parked"] == 2
    assert counts(proved(world))["processed"] == 43


def test_the_checkers_of_runs_know_the_second_input(world: World) -> None:
    """Commits of the private topic move nothing of the partition and process no id of it twice."""
    send_private(world, letters(world)[0].replay())
    replayed(world, world.member())
    report = verify(Both(world), "/broker", world.state, keep_max=1000)
    assert report.kept is not None
    letters_answered = [entry for entry in report.kept.entries if "@" in entry.topic]
    assert len(letters_answered) == 1
    verdict = run_checks(Evidence(report=report, drained=True))
    assert verdict.ok, verdict.found.kept


def test_the_story_of_a_parked_message(world: World) -> None:
    """Explain says that it was parked, why, and where its letter lies."""
    story = explain(Both(world), "m2", topic=TOPIC, data="/broker", state=world.state)
    [group] = story.groups
    assert (group["status"], group["kind"], group["attempts"]) == ("parked", "rejected", 1)
    [letter] = group["outputs"]
    assert (letter["topic"], letter["offset"]) == (f"{TOPIC}.dead", 1)
    handled = explain(Both(world), "m0", topic=TOPIC, data="/broker", state=world.state)
    assert handled.groups[0]["status"] == "processed"


def test_a_process_that_died_is_no_violation(world: World) -> None:
    """Marks, and the word of a good end, follow the rules of epochs and offsets."""
    world.send("x", id="slow")
    for _ in range(2):
        member = world.member()
        world.run(lambda m=member: bool(m.calls), member, handle=False)
        member.kill()
    last = world.member()
    world.drain(last)
    world.stop(last)
    assert counts(proved(world))["processed"] == 3
    assert ledger_directory(world.state, GROUP, TOPIC, 0).endswith("/0")
