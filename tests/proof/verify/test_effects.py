"""Proof and story of effects: what is right, what is wrong, and what people are told."""

from __future__ import annotations

from oncemq.cli.explain import _lines
from oncemq.codec import records as codec
from oncemq.codec import wire
from oncemq.core.consumer.ledger import Ledger
from oncemq.outcome import Snapshot
from oncemq.proof.verify.verify import Report, verify
from oncemq.records import LedgerStarted
from oncemq.storage.memory import MemoryDisk
from tests.proof.forged_effects import end, intend, life, skipped
from tests.proof.golden import DATA, LOG_ID, STATE, Consumer, shop, topic_id
from tests.proof.story.test_explain import story_of


def proved(disk: MemoryDisk) -> Report:
    report = verify(disk, DATA, STATE)
    assert report.ok, report.found.kept
    return report


def test_every_lawful_life_of_an_effect_is_right() -> None:
    """Calls are counted; nothing is unknown in the end."""
    disk = MemoryDisk()
    _, consumer = shop(disk)
    life(consumer)
    row = proved(disk).topics["orders"]["groups"]["billing"]
    assert (row["effect_calls"], row["effects_unknown"], row["pending"]) == (4, 0, 0)


def test_an_operator_may_skip_a_message_that_waits() -> None:
    """That is no commit over their head."""
    disk = MemoryDisk()
    broker, consumer = shop(disk)
    skipped(broker, consumer)
    assert proved(disk).ok


def test_what_is_unknown_is_counted() -> None:
    """As long as nobody has spoken; a group without effects has no such counts."""
    disk = MemoryDisk()
    _, consumer = shop(disk)
    assert "effect_calls" not in proved(disk).topics["orders"]["groups"]["billing"]
    intend(consumer)
    assert proved(disk).topics["orders"]["groups"]["billing"]["effects_unknown"] == 1
    end(consumer, "unknown")
    assert proved(disk).topics["orders"]["groups"]["billing"]["effects_unknown"] == 1
    end(consumer, "again")
    assert proved(disk).topics["orders"]["groups"]["billing"]["effects_unknown"] == 0


def test_the_story_of_a_message_tells_each_call() -> None:
    """Why it was made and how it ended, also while nobody knows."""
    disk = MemoryDisk()
    _, consumer = shop(disk)
    life(consumer)
    story = story_of(disk, "o-4")
    [group] = story.groups
    assert [(one["number"], one["how"]) for one in group["effects"]] == [
        (1, "not_done"),
        (2, "again"),
        (3, ""),
        (4, "answered"),
    ]
    assert group["status"] == "processed"
    told = [line.strip() for line in _lines(story)]
    assert "effect charge, call 1 under epoch 2, policy ask: did not happen" in told
    assert "effect charge, call 3 under epoch 2, policy retry: unknown whether it happened" in told
    assert "effects" not in story_of(disk, "o-1").groups[0]


def test_the_story_says_why_nobody_knows() -> None:
    """With the error that the function raised."""
    disk = MemoryDisk()
    _, consumer = shop(disk)
    intend(consumer)
    end(consumer, "unknown")
    [group] = story_of(disk, "o-4").groups
    assert (group["status"], group["effects"][0]["why"]) == ("pending", "why")


def test_a_snapshot_that_forgets_an_effect_is_found() -> None:
    """It must say the same as the records below it."""
    for forgets in (False, True):
        disk = MemoryDisk()
        _, consumer = shop(disk)
        intend(consumer)
        end(consumer, "unknown")
        core = _core_of(consumer)
        snapshot = core.snapshot()
        if forgets:
            del snapshot.parts["ledger"]["effects"]
        _write(consumer, snapshot)
        report = verify(disk, DATA, STATE)
        assert set(report.found.counts) == ({"I13-atomicity"} if forgets else set())


def test_a_compacted_ledger_still_knows_its_open_effects() -> None:
    """Verify and explain begin at the snapshot."""
    disk = MemoryDisk()
    _, consumer = shop(disk)
    intend(consumer)
    end(consumer, "unknown")
    _write(consumer, _core_of(consumer).snapshot())
    consumer.log.discard(consumer.log.durable_end)
    assert proved(disk).topics["orders"]["groups"]["billing"]["effects_unknown"] == 1
    [group] = story_of(disk, "o-4").groups
    assert [(one["number"], one["how"]) for one in group["effects"]] == [(1, "unknown")]
    end(consumer, "answered")
    consumer.commit(8, ["o-4"])
    proved(disk)


def _core_of(consumer: Consumer) -> Ledger:
    core = Ledger()
    for stored in consumer.log.replay(0):
        core.apply(codec.decode(stored.type, stored.meta, stored.body, stored.body_crc), 0)
    assert core.started == LedgerStarted(
        "billing", "orders", 0, topic_id("orders"), LOG_ID, LOG_ID, 0
    )
    return core


def _write(consumer: Consumer, snapshot: Snapshot) -> None:
    log = consumer.log
    packed = {name: wire.pack_plain(part) for name, part in snapshot.parts.items()}
    log.write_snapshot(log.durable_end, packed, snapshot.keep)
