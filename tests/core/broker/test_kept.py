"""Kept parts: a slow topic does not pin the log of a busy one, and nothing of it is lost."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from oncemq.core.broker.kept import KeptParts
from oncemq.errors import CorruptLog
from oncemq.outcome import Keep
from oncemq.proof.verify.verify import verify
from oncemq.protocol import DeleteTopic, DescribeTopic
from oncemq.storage import layout
from tests.core.broker.help import runs
from tests.core.broker.keeping import Keeping, stored_from
from tests.storage.loghelp import flip

SLOW_EVERY = 10


class Pinned(Keeping):
    """A slow topic that keeps all, beside the busy one."""

    def __init__(self, retain: str = "8KB", **bounds: int) -> None:
        super().__init__(retain, **{"keep_bytes_min": 8192, **bounds})
        self.topic("slow")
        self.sent = 0

    def churn(self, count: int = 200) -> None:
        for _ in range(count):
            self.fill(1, first=self.sent)
            if self.sent % SLOW_EVERY == 0:
                session = self.sent.to_bytes(16, "big")
                item = {f"s-{self.sent}": f"{self.sent:04}"}
                self.send_ids(0, item, topic="slow", session=session)
            self.sent += 1
            if self.sent % 4 == 0:
                self.later()
        self.later()

    def slow(self) -> list[str]:
        return [f"{number:04}" for number in range(0, self.sent, SLOW_EVERY)]

    def used(self) -> int:
        """Bytes of log and of kept parts."""
        kept = sum(part.size for part in self.core.state.kept.parts)
        return self.log.durable_end - self.log.start + kept

    def parts(self) -> list[str]:
        return [part.name for part in self.core.state.kept.parts]


def test_a_copy_reads_no_log_that_may_be_discarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the parts that it takes in and its own stretch the log goes at any moment."""
    world = Pinned()
    wanted: list[tuple[Keep, int]] = []
    original = KeptParts.want

    def want(self: KeptParts, *args: Any) -> None:
        original(self, *args)
        assert self.making is not None
        wanted.append((self.making, world.core.state.needed_from))

    monkeypatch.setattr(KeptParts, "want", want)
    world.churn(800)
    assert any(keep.start < needed_from for keep, needed_from in wanted), "some take in parts"
    assert all(keep.log_start >= needed_from for keep, needed_from in wanted)


def test_the_log_of_a_busy_topic_goes_although_a_slow_one_keeps_all() -> None:
    """What is left is copied; the disk holds what is retained and a bounded rest."""
    world = Pinned()
    world.churn(400)
    assert world.parts()
    assert world.log.start > 0.6 * world.log.durable_end
    assert world.used() < 0.3 * world.log.durable_end
    assert stored_from(world, 0, topic="slow") == world.slow()
    first = world.start_of()
    assert stored_from(world, first) == [f"{number:04}" for number in range(first, 400)]


def test_kept_messages_survive_restarts() -> None:
    """A start maps the parts that its snapshot names; readers and resends find what is in them."""
    world = Pinned()
    for clean in (True, False, False, True):
        world.churn(120)
        world.crash(clean=clean)
        world.producer()
        assert world.parts()
        assert stored_from(world, 0, topic="slow") == world.slow()
        assert stored_from(world, 7, topic="slow") == world.slow()[7:]
        answer = world.send_ids(0, {"s-10": "0010"}, topic="slow", session=b"r" * 16)
        assert runs(answer)[0][:2] == (1, "duplicate")


def test_numbered_messages_in_a_kept_part_are_compared_when_they_come_again() -> None:
    """A resend finds its original there."""
    world = Pinned()
    world.producer("p2", nonce=b"2" * 16)
    world.send(0, "original", topic="slow", producer="p2")
    world.churn(200)
    assert world.log.start > 0
    again = {"topic": "slow", "producer": "p2"}
    assert runs(world.send(0, "original", **again)) == [(1, "duplicate", 0)]
    assert runs(world.send(0, "another", **again)) == [(1, "conflict", 0)]


def test_there_are_few_parts() -> None:
    """A new part takes in the smaller ones before it."""
    world = Pinned()
    world.churn(700)
    assert len(world.parts()) <= 6
    ranges = [(part.start, part.end) for part in world.core.state.kept.parts]
    assert all(one[1] <= other[0] for one, other in itertools.pairwise(ranges))


def test_a_part_goes_when_nothing_is_left_of_it() -> None:
    """Its file is deleted with the snapshots that named it."""
    world = Pinned()
    world.churn(200)
    assert world.parts()
    topic_id = world.ask(DescribeTopic(world.n, "slow", create=False)).topic_id
    world.ask(DeleteTopic(world.n, "slow", topic_id))
    for number in range(200, 300):
        world.fill(1, first=number)
        world.later()
    assert world.parts() == []
    assert not [name for name in parts_on_disk(world) if layout.is_mapped(name)]


def parts_on_disk(world: Pinned) -> list[str]:
    path = f"data/{layout.generation_name(world.log.generation)}"
    return [name for name in world.disk.list(path) if name.endswith(".map")]


def test_segments_go_only_when_both_snapshots_name_the_part() -> None:
    """With the newest snapshot lost the older one still finds every message."""
    world = Pinned()
    for _ in range(12):
        world.churn(40)
        newest = world.log.snapshots()[0].position
        path = f"data/{layout.generation_name(world.log.generation)}"
        world.driver.close(clean=False)
        world.disk.drop_locks()
        flip(world.disk, f"{path}/{layout.snapshot_name(newest)}", 60)
        world.start()
        world.open_peers()
        world.producer()
        assert world.events.named("snapshot.fallback")
        world.events.seen.clear()
        assert stored_from(world, 0, topic="slow") == world.slow()
    assert world.log.start > 0


@pytest.mark.parametrize("at", [100, -30])
def test_damage_in_a_part_stops_the_broker(at: int) -> None:
    """Of frames when they are read, of what finds them at the start; nothing is passed over."""
    world = Pinned()
    world.churn(200)
    world.crash(clean=True)
    path = f"data/{layout.generation_name(world.log.generation)}"
    (name,) = {
        part.file
        for info in world.log.snapshots()
        for part in info.parts
        if part.name == world.parts()[0]
    }
    world.driver.close()
    world.disk.drop_locks()
    file = world.disk.open(f"{path}/{name}")
    length = file.length()
    file.close()
    flip(world.disk, f"{path}/{name}", at % length)
    with pytest.raises(CorruptLog):
        world.start()
        world.open_peers()
        stored_from(world, 0, topic="slow")


def test_the_proof_reads_kept_parts() -> None:
    """What is in them is checked and accounted for like all else."""
    world = Pinned()
    world.churn(300)
    assert world.parts()
    report = verify(world.disk, "data", None)
    assert report.ok, report.found.kept
    assert report.topics["slow"]["accepted"] == len(world.slow())
    assert report.topics["slow"]["deleted"] == 0
